"""Muon's functions of tensors: coefficients, orthogonalization, scales, shapes and routes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from margins import check, check_close
from muon_runs import DOUBLE, normal
from rounding import gamma, simulate, size
from torch import Tensor

from pylo_zoo.errors import ZooError
from pylo_zoo.ops import orthogonalize as orthogonalization
from pylo_zoo.ops.muon import from_matrices, lr_scale, muon_route, to_matrices
from pylo_zoo.ops.orthogonalize import (
    COEFFICIENTS,
    newton_schulz,
    newton_schulz_all,
    orthogonalize,
    orthogonalize_all,
    resolve_coefficients,
)
from pylo_zoo.ops.stacks import PADDED, STACKED, join_shapes


def conditioned(rows: int, columns: int, condition: float = 30.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A matrix ``U·diag(s)·Vᵀ`` with known factors; s decreases from 1 to 1 / condition."""
    n = min(rows, columns)
    u = torch.linalg.qr(normal(rows, n, seed=1)).Q
    v = torch.linalg.qr(normal(columns, n, seed=2)).Q
    s = torch.logspace(0, -math.log10(condition), n, dtype=DOUBLE)
    return u @ torch.diag(s) @ v.T, u, s, v


def displace(x: Tensor) -> Tensor:
    """``x``, rounded once in a simulated run."""
    return x * torch.ones((), dtype=x.dtype)


# --- coefficients ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preset", "triples", "total", "weighted"),
    [  # from SPEC §7's table: the sum of its numbers, and the sum of each times its position
        ("original", 1, 0.7009999999999996, -0.011000000000000565),
        ("quintic", 5, 2.7808, 22.199099999999994),
        ("polar_express", 8, 10.499394593181885, 107.00469093985056),
        ("polar_express_safer", 8, 10.367201439944411, 106.5512117408693),
    ],
)
def test_the_presets_match_the_spec(preset: str, triples: int, total: float, weighted: float) -> None:
    numbers = [number for triple in COEFFICIENTS[preset] for number in triple]
    assert len(COEFFICIENTS[preset]) == triples
    assert all(len(triple) == 3 for triple in COEFFICIENTS[preset])
    weighed = [k * number for k, number in enumerate(numbers, 1)]  # fsum rounds once, and each product once
    check(abs(math.fsum(numbers) - total), gamma(4, DOUBLE) * math.fsum(map(abs, numbers)), "sum")
    check(abs(math.fsum(weighed) - weighted), gamma(4, DOUBLE) * math.fsum(map(abs, weighed)), "weighted sum")


def test_steps_cut_a_list_or_repeat_its_last_triple() -> None:
    quintic = COEFFICIENTS["quintic"]
    assert resolve_coefficients("quintic", 5) == quintic
    assert resolve_coefficients("quintic", 2) == quintic[:2]
    assert resolve_coefficients("quintic", 7) == (*quintic, quintic[-1], quintic[-1])
    assert resolve_coefficients("original", 3) == COEFFICIENTS["original"] * 3


def test_custom_coefficients_as_a_triple_or_a_list() -> None:
    assert resolve_coefficients((2, -1.5, 0.5), 2) == ((2.0, -1.5, 0.5),) * 2
    assert resolve_coefficients([[2, -1.5, 0.5], [1, 0, 0]], 3) == ((2.0, -1.5, 0.5), (1.0, 0.0, 0.0), (1.0, 0.0, 0.0))
    assert resolve_coefficients([(2, -1.5, 0.5)], 1) == ((2.0, -1.5, 0.5),)


@pytest.mark.parametrize(
    ("coefficients", "steps", "complaint"),
    [
        ("quintik", 5, "Unknown coefficient preset 'quintik'"),
        ([], 5, "ns_coefficients is"),
        (3.0, 5, "ns_coefficients is 3.0"),
        (None, 5, "ns_coefficients is None"),
        ((1.0, 2.0), 5, "not three finite numbers"),
        ([(1.0, 2.0, 3.0), (1.0, 2.0)], 5, "not three finite numbers"),
        ([(1.0, 2.0, 3.0), 4.0], 5, "not three finite numbers"),
        ((1.0, math.nan, 3.0), 5, "not three finite numbers"),
        ((1.0, math.inf, 3.0), 5, "not three finite numbers"),
        ((1.0, True, 3.0), 5, "not three finite numbers"),
        ((1.0, 10**400, 3.0), 5, "a number of 401 digits.*not three finite numbers"),
        ((1.0, 10**5000, 3.0), 5, "a number of 5,001 digits.*not three finite numbers"),
        pytest.param(10**5000, 5, "ns_coefficients is a number of 5,001 digits", id="a long integer"),
        (["abc"], 5, "not three finite numbers"),
        ("quintic", 0, "ns_steps is 0"),
        ("quintic", -1, "ns_steps is -1"),
        pytest.param("quintic", -(10**5000), "ns_steps is a number of 5,001 digits", id="a long number of steps"),
        ("quintic", 10**12, "ns_steps is 1000000000000"),
        ("quintic", 2.5, "ns_steps is 2.5"),
        ("quintic", True, "ns_steps is True"),
    ],
)
def test_invalid_coefficients(coefficients: Any, steps: Any, complaint: str) -> None:
    with pytest.raises(ZooError, match=complaint):
        resolve_coefficients(coefficients, steps)


# --- orthogonalization -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", COEFFICIENTS)
@pytest.mark.parametrize(("rows", "columns"), [(24, 24), (40, 12), (12, 40)])
def test_singular_vectors_are_kept_and_values_follow_the_polynomials(preset: str, rows: int, columns: int) -> None:
    matrix, u, s, v = conditioned(rows, columns)
    triples = resolve_coefficients(preset, 6)
    x = s / torch.linalg.vector_norm(s)  # the Frobenius norm is that of the singular values
    for a, b, c in triples:
        x = a * x + b * x**3 + c * x**5
    # Factors that are orthogonal up to rounding cause errors of the matrix, which the iteration amplifies like its own.
    run = simulate(lambda: [u.T @ orthogonalize(displace(matrix), triples, dtype=DOUBLE) @ v], DOUBLE)
    check_close(u.T @ orthogonalize(matrix, triples, dtype=DOUBLE) @ v, torch.diag(x), 2 * run.distance(0))


@pytest.mark.parametrize(
    ("preset", "steps", "low", "high"),
    [  # the presets' guaranteed bands; condition 30, so each iterate's smallest value starts above 0.005
        ("original", 5, 0.65, 1.16),
        ("quintic", 5, 0.65, 1.16),
        ("polar_express", 5, 0.85, 1.15),
        ("polar_express_safer", 5, 0.85, 1.15),
        ("quintic", 8, 0.97, 1.03),
        ("polar_express", 8, 1 - 1e-9, 1 + 1e-9),
        ("polar_express_safer", 8, 1 - 1e-9, 1 + 1e-9),
    ],
)
def test_singular_values_approach_one(preset: str, steps: int, low: float, high: float) -> None:
    for rows, columns in ((24, 24), (40, 12), (12, 40)):
        matrix = conditioned(rows, columns)[0]
        values = torch.linalg.svdvals(orthogonalize(matrix, resolve_coefficients(preset, steps), dtype=DOUBLE))
        assert low < values.min()
        assert values.max() < high


@pytest.mark.parametrize("preset", ["polar_express", "polar_express_safer"])
@pytest.mark.parametrize("shape", [(20, 20), (33, 9), (9, 33), (3, 2, 17, 8)])
def test_polar_express_converges_to_the_polar_factor(preset: str, shape: tuple[int, ...]) -> None:
    matrices = normal(*shape)
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    result = orthogonalize(matrices, resolve_coefficients(preset, 10), dtype=DOUBLE)
    # After ten steps only rounding errors remain, which the iteration and the SVD amplify by the condition number.
    run = simulate(
        lambda: [orthogonalize(displace(matrices), resolve_coefficients("polar_express", 10), dtype=DOUBLE)], DOUBLE
    )
    check_close(result, u @ vh, 2 * run.distance(0))


@pytest.mark.parametrize("shape", [(32, 32), (48, 16), (16, 48), (5, 12, 20), (2, 3, 20, 12)])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.bfloat16, 0.024), (torch.float16, 3e-3), (torch.float32, 1e-5)])
def test_narrow_dtypes_compute_the_same(shape: tuple[int, ...], dtype: torch.dtype, limit: float) -> None:
    matrices, triples = normal(*shape, dtype=torch.float32), resolve_coefficients("original", 5)
    exact = orthogonalize(matrices.double(), triples, dtype=DOUBLE)
    result = orthogonalize(matrices, triples, dtype=dtype)
    assert result.dtype == torch.float32
    assert result.shape == matrices.shape
    # measured: 0.015 to 0.018 and 1.7e-3 to 2.1e-3; rounding each product twice gives 0.029 to 0.036 and 4e-3
    assert (result - exact).norm() < limit * exact.norm()
    assert (result - exact).norm() > 0


def test_a_stack_equals_its_matrices() -> None:
    stack, triples = normal(3, 7, 5), resolve_coefficients("quintic", 5)
    together = orthogonalize(stack, triples, dtype=DOUBLE)
    for one, matrix in zip(together, stack, strict=True):
        run = simulate(lambda m=matrix: [orthogonalize(m, triples, dtype=DOUBLE)], DOUBLE)
        check_close(one, run.truth[0], 2 * run.distance(0))


MANY = [(7, 5), (5, 7), (3, 5, 7), (2, 2, 7, 5), (4, 4), (0, 4), (0, 7, 5), (7, 5), (9, 9)]


@pytest.mark.parametrize("padded", [0, 1 << 16])
@pytest.mark.parametrize("most", [1, 70, 1 << 17])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_many_tensors_give_the_same_results_as_each_alone(
    most: int, padded: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PADDED, "cpu", padded)
    tensors, triples = [normal(*shape, seed=k) for k, shape in enumerate(MANY)], resolve_coefficients("original", 5)
    runs = [simulate(lambda x=x: [newton_schulz(x, triples, 1e-8)], dtype) for x in tensors]
    exact = [run.truth[0] for run in runs]
    monkeypatch.setitem(STACKED, "cpu", most)
    tensors = [x.to(dtype) for x in tensors]
    before = [x.clone() for x in tensors]
    result = newton_schulz_all(tensors, triples, 1e-8)
    others = orthogonalize_all(tensors, triples, dtype=dtype)
    again = newton_schulz_all(tensors, triples, 1e-8)
    for k, one in enumerate(exact):
        assert result[k].shape == others[k].shape == one.shape
        assert result[k].dtype == others[k].dtype == dtype
        assert torch.equal(result[k], again[k])
        assert torch.equal(tensors[k], before[k])
        check(size(result[k] - one, 2), 2 * runs[k].distance(0, 2), f"{MANY[k]}")
        epsilon = 1e-7 * size(one, 2)  # the norm's epsilon differs
        check(size(others[k] - one, 2), 2 * runs[k].distance(0, 2) + epsilon, f"{MANY[k]} with another epsilon")


def test_stacks_are_of_equal_shapes_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    stacks: list[tuple[int, ...]] = []
    iterate = orthogonalization._iterate
    monkeypatch.setattr(orthogonalization, "_iterate", lambda x, *more: stacks.append(x.shape) or iterate(x, *more))
    monkeypatch.setitem(STACKED, "cpu", 105)
    monkeypatch.setitem(PADDED, "cpu", 0)
    newton_schulz_all([normal(*shape) for shape in MANY], resolve_coefficients("original", 1), 1e-8)
    assert sorted(stacks) == sorted([(3, 5, 7)] * 3 + [(5, 7), (4, 4), (0, 4), (9, 9)])


def test_small_matrices_of_other_shapes_are_padded_to_one_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    stacks: list[tuple[int, ...]] = []
    iterate = orthogonalization._iterate
    monkeypatch.setattr(orthogonalization, "_iterate", lambda x, *more: stacks.append(x.shape) or iterate(x, *more))
    newton_schulz_all([normal(*shape) for shape in MANY], resolve_coefficients("original", 1), 1e-8)
    assert stacks == [(12, 9, 9), (0, 4)]


def test_padding_is_bounded_by_the_operations_that_it_adds() -> None:
    cpu = torch.device("cpu")
    assert join_shapes({(32, 64): 1, (30, 60): 1}, cpu) == {(32, 64): [(32, 64), (30, 60)]}
    assert join_shapes({(32, 64): 1, (30, 60): 100}, cpu) == {(32, 64): [(32, 64)], (30, 60): [(30, 60)]}
    assert len(join_shapes({(512, 512): 1, (500, 500): 1}, cpu)) == 2
    assert len(join_shapes({(32, 64): 1, (40, 40): 1}, cpu)) == 2, "neither contains the other"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_scale_of_a_matrix_does_not_matter_to_a_narrow_dtype(dtype: torch.dtype) -> None:
    matrix, triples = normal(16, 16, dtype=torch.float32), resolve_coefficients("quintic", 5)
    expected = orthogonalize(matrix, triples, dtype=dtype)
    for exponent in (-20, 40):  # powers of two scale without rounding; float16 ends at 2¹⁶
        assert torch.equal(orthogonalize(matrix * 2.0**exponent, triples, dtype=dtype), expected)


def test_eps_is_a_lower_bound_of_the_divisor() -> None:
    matrix = normal(6, 4)
    tiny = matrix * (1e-9 / matrix.norm())
    identity = [(1.0, 0.0, 0.0)]
    check_close(
        orthogonalize(tiny, identity, eps=1e-7, dtype=DOUBLE), tiny / 1e-7, gamma(4, DOUBLE) * tiny.abs() / 1e-7
    )
    zeros = torch.zeros(6, 4)
    assert torch.equal(orthogonalize(zeros, resolve_coefficients("quintic", 5)), zeros)


def test_the_safety_factor_multiplies_the_norm_and_celo2_adds_eps_to_it() -> None:
    matrix, identity = normal(6, 4), [(1.0, 0.0, 0.0)]
    norm = matrix.norm()
    rounding = gamma(2 * (6 * 4 + 4), DOUBLE) * matrix.abs() / norm  # two norms of 24 terms, and quotients
    check_close(orthogonalize(matrix, identity, safety_factor=1.25, dtype=DOUBLE), matrix / (1.25 * norm), rounding)
    check_close(newton_schulz(matrix, identity, 0.5), matrix / (norm + 0.5), rounding)


def test_orthogonalize_does_not_change_its_input() -> None:
    matrix = normal(6, 9)
    before = matrix.clone()
    orthogonalize(matrix, resolve_coefficients("quintic", 5), dtype=DOUBLE)
    assert torch.equal(matrix, before)


# --- scales and shapes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "columns", "adjust_lr_fn", "scale"),
    [
        (64, 16, "original", 2.0),
        (16, 64, "original", 1.0),
        (64, 16, "match_rms_adamw", 1.6),
        (16, 64, "match_rms_adamw", 1.6),
        (64, 16, "rms_to_rms", 2.0),
        (16, 64, "rms_to_rms", 0.5),
        (64, 16, None, 1.0),
        (16, 64, None, 1.0),
    ],
)
def test_lr_scales(rows: int, columns: int, adjust_lr_fn: str | None, scale: float) -> None:
    check(abs(lr_scale(rows, columns, adjust_lr_fn) - scale), gamma(3, DOUBLE) * scale, "scale")  # a root and products


@pytest.mark.parametrize("name", ["Original", "", "moonlight"])
def test_an_unknown_lr_scale_is_an_error(name: str) -> None:
    with pytest.raises(ZooError, match=r"adjust_lr_fn is .*original, match_rms_adamw, rms_to_rms, or None"):
        lr_scale(4, 4, name)


@pytest.mark.parametrize("spatial", [(), (3,), (3, 2), (2, 3, 4)])
@pytest.mark.parametrize("strides", ["contiguous", "transposed"])
def test_matrices_of_a_convolution(spatial: tuple[int, ...], strides: str) -> None:
    weight = (
        normal(5, 4, *spatial)
        if strides == "contiguous"
        else normal(*spatial[::-1], 4, 5).permute(*range(len(spatial) + 1, -1, -1))
    )
    flat, stack = to_matrices(weight, "flatten"), to_matrices(weight, "batched")
    positions = math.prod(spatial)
    assert flat.shape == (5, 4 * positions)
    assert stack.shape == ((positions, 5, 4) if spatial else (5, 4))
    for out in range(5):
        assert torch.equal(flat[out], weight[out].reshape(-1))
        for channel in range(4):
            column = stack[:, out, channel] if spatial else stack[out, channel]
            assert torch.equal(column, weight[out, channel].reshape(column.shape))
    assert torch.equal(from_matrices(flat, weight.shape), weight)
    assert torch.equal(from_matrices(stack, weight.shape), weight)


@pytest.mark.parametrize(
    ("shape", "mode", "complaint"),
    [((4,), "flatten", "is not a matrix"), ((), "batched", "is not a matrix"), ((4, 4), "x", "conv_mode")],
)
def test_invalid_shapes_and_modes(shape: tuple[int, ...], mode: str, complaint: str) -> None:
    with pytest.raises(ZooError, match=complaint):
        to_matrices(torch.zeros(shape), mode)


@pytest.mark.parametrize(
    ("shape", "flags", "reason"),
    [
        ((64, 128), {}, "ok"),
        ((4, 512), {}, "ok"),  # a ratio of 128 is not over 128
        ((4, 513), {}, "extreme_aspect_ratio:128.2"),
        ((2048, 8), {}, "extreme_aspect_ratio:256.0"),
        ((96, 3, 4, 4), {}, "ok"),  # (96, 48) flattened
        ((3, 64), {}, "min_dim_too_small:3"),
        ((64, 2), {}, "min_dim_too_small:2"),
        ((3, 64, 3, 3), {}, "min_dim_too_small:3"),
        ((64, 3, 1), {}, "min_dim_too_small:3"),
        ((8, 64, 5, 5), {}, "extreme_aspect_ratio:200.0"),
        ((), {}, "insufficient_dims"),
        ((64,), {}, "insufficient_dims"),
        ((1, 64), {}, "insufficient_dims"),
        ((64, 1, 1, 1), {}, "insufficient_dims"),
        ((0, 64), {}, "insufficient_dims"),
        ((0, 64, 3), {}, "min_dim_too_small:0"),
        ((1, 196, 768), {}, "leading_unit_dims"),
        ((64, 1, 3, 3), {}, "leading_unit_dims"),
        ((64, 128), {"use_fallback": True}, "use_fallback_flag"),
        ((64, 128), {"use_muon": False}, "use_muon_flag"),
        ((64, 128), {"use_fallback": True, "use_muon": True}, "use_fallback_flag"),
        ((64, 128), {"use_fallback": True, "use_muon": False}, "use_fallback_flag"),
        ((64,), {"use_muon": True}, "insufficient_dims"),  # the flag cannot make it a matrix
        ((3, 3, 1, 64), {"layout": "jax"}, "leading_unit_dims"),
        ((3, 3, 1, 64), {}, "min_dim_too_small:3"),
        ((3, 64, 64), {"layout": "jax"}, "ok"),
    ],
)
def test_routes(shape: tuple[int, ...], flags: Any, reason: str) -> None:
    assert muon_route(shape, **flags) == (reason == "ok", reason)


@pytest.mark.parametrize("shape", [(64, 128), (3, 3), (3, 64, 3, 3), (64, 1, 3, 3), (4, 513), (1, 64), (0, 64)])
def test_use_muon_decides_for_all_parameters_with_two_axes(shape: tuple[int, ...]) -> None:
    assert muon_route(shape, use_muon=True) == (True, "use_muon_flag")
    assert muon_route(shape, use_muon=True, use_fallback=True) == (False, "use_fallback_flag")
