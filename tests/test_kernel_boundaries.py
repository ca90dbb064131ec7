"""CPU kernels at the sizes at which work is split, with zero parameters, long vectors and unusual gradients.

``plan.h`` splits work into vectors of W elements, tiles of up to 4·W, units of UNIT elements, runs of up to UNIT_LENGTH
elements, UNIT_RUNS runs and periods of up to LONGEST_PERIOD. Sizes one below, at and one above each of these reach
every branch of the split; the slow sanitizer test, which also runs these tests, detects accesses beyond the tensors.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from adam_cases import AdamCase, step_adam
from test_backends import optimizer
from test_kernels_cpu import SUBJECTS, Eager, close, expected, figures, network, of_parameter
from torch import Tensor, nn

from pylo_zoo.errors import ZooError
from pylo_zoo.kernels.base import Normalized, ScratchBuffer, Task
from pylo_zoo.kernels.cpu import CpuKernels, build, find_kernels
from pylo_zoo.ops.accumulators import Decays, advance_all, new_accumulators
from pylo_zoo.ops.layout import axes_of

LANES = (8, 16)  # W, by machine
TILES = tuple(k * w for w in LANES for k in (1, 2, 4))
UNIT, UNIT_LENGTH, UNIT_RUNS, LONG_RUN, LONGEST_PERIOD, LONGEST_CYCLE = 32768, 4096, 64, 128, 512, 64


def around(*sizes: int) -> list[int]:
    return sorted({size + k for size in sizes for k in (-1, 0, 1)})


VECTORS = [(n,) for n in around(*TILES, UNIT_LENGTH, UNIT, 2 * UNIT)] + [(3 * UNIT + 5,)]
RUNS = [(rows, 130) for rows in around(UNIT_RUNS)] + [(9, columns) for columns in around(LONG_RUN, UNIT_LENGTH)]
PERIODS = [(12, b, 3) for b in around(LONGEST_PERIOD // 3)] + [(6, 5, c) for c in around(16, LONGEST_CYCLE)]
STACKS = [(UNIT // 64 + k, 8, 8) for k in (-1, 0, 1)]  # groups of one unit
ZEROS = [(1,), (7,), (300,), (16, 16), (9, 130), (6, 4, 3)]
DECAYS = Decays(torch.tensor([0.9, 0.99, 0.999]), torch.tensor([0.95]), torch.tensor([0.9, 0.99, 0.999]))
COEFFICIENT, SHRINK = 0.1, 0.01


@pytest.fixture(scope="module")
def kernels() -> CpuKernels:
    result = find_kernels()
    if isinstance(result, str):
        pytest.skip(result)
    return result


def test_the_boundaries_match_the_sources() -> None:
    source = (build.SOURCES / "plan.h").read_text()
    for name in ("UNIT", "UNIT_LENGTH", "UNIT_RUNS", "LONG_RUN", "LONGEST_PERIOD", "LONGEST_CYCLE"):
        match = re.search(rf"constexpr Index {name} = (\d+);", source)
        assert match is not None
        assert int(match[1]) == globals()[name]
    assert "TILE = 4 * W" in source


def tasks_of(shapes: Sequence[tuple[int, ...]], name: str, kernels: CpuKernels, zero: bool = False) -> list[Task]:
    """Tasks after one ordinary step; ``zero`` parameters are those of a zero-initialized layer."""
    generator, subject, tasks = torch.Generator().manual_seed(5), SUBJECTS[name], []
    for shape in shapes:
        for layout in ("torch", "jax") if len(shape) > 2 else ("torch",):
            axes = axes_of(shape, layout)
            p = torch.zeros(shape) if zero else torch.randn(shape, generator=generator) * 0.5
            if not kernels.covers(p, axes, subject.rule, subject.hidden):
                continue
            state = new_accumulators(p, axes)
            advance_all(state, torch.randn(shape, generator=generator) * 0.1, DECAYS, axes)
            g = torch.randn(shape, generator=generator) * 0.1
            tasks.append(Task(p, g, state, axes, DECAYS, subject.limit, subject.replace))
    assert tasks
    return tasks


def check(name: str, tasks: Sequence[Task], kernels: CpuKernels) -> list[Tensor]:
    """Compare accumulators, moments, steps and moved parameters with eager, within bounds from float32 roundings."""
    subject, layers = SUBJECTS[name], network(SUBJECTS[name], len(tasks))
    references = [expected(t, subject.rule, of_parameter(layers, k, torch.float32)) for k, t in enumerate(tasks)]
    advanced = kernels.advance(tasks, subject.rule, None, moments=True)
    moments = kernels.moments(advanced)
    steps = [step.clone() for step in kernels.steps(advanced, layers, ScratchBuffer())]
    kernels.move(advanced, layers, [COEFFICIENT] * len(tasks), [SHRINK] * len(tasks))
    for k, (task, of_task) in enumerate(zip(tasks, references, strict=True)):
        for each, value in figures(Eager(task.state, moments[k], steps[k], task.p)).items():
            close(value, of_task[each], f"{each} of {tuple(task.p.shape)} {task.axes}")
    return steps


@pytest.mark.parametrize("name", ["velo", "celo2-tanh", "adafac-16"])
@pytest.mark.parametrize("shapes", [VECTORS, RUNS, PERIODS, STACKS], ids=["vectors", "runs", "periods", "stacks"])
def test_sizes_around_every_boundary(kernels: CpuKernels, name: str, shapes: list[tuple[int, ...]]) -> None:
    check(name, tasks_of(shapes, name, kernels), kernels)


@pytest.mark.parametrize("name", SUBJECTS)
def test_zero_parameters_move(kernels: CpuKernels, name: str) -> None:
    """Their ``sqrt(mean(p²) + 1e-9)`` is 3.2e-5; without the 1e-9 they would stay zero forever."""
    steps = check(name, tasks_of(ZEROS, name, kernels, zero=True), kernels)
    assert all(step.abs().sum() > 0 for step in steps)


def test_every_element_of_a_long_vector_is_advanced_and_moved(kernels: CpuKernels) -> None:
    """A skipped unit would keep its bits, however small its share of the whole is."""
    for shape in [(100_000,), (2 * UNIT + 1,), (300, 700)]:
        (task, *_) = tasks_of([shape], "velo", kernels)
        before = [x.clone() for x in (task.p, task.state["momentum"], task.state["second_moment"])]
        subject, layers = SUBJECTS["velo"], network(SUBJECTS["velo"], 1)
        kernels.move(kernels.advance([task], subject.rule, None), layers, [COEFFICIENT], [SHRINK])
        for old, new in zip(before, (task.p, task.state["momentum"], task.state["second_moment"]), strict=True):
            runs = (old == new).flatten().unfold(0, 64, 1).all(1)
            assert not runs.any(), f"{shape}: {int(runs.sum())} runs of 64 elements have not moved"


@pytest.mark.parametrize("size", [*around(*LANES, UNIT, 2 * UNIT), 3 * UNIT + 5])
def test_adam_and_the_normalized_pass_around_boundaries(kernels: CpuKernels, size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    p, g, step = (torch.randn(size, generator=generator) for _ in range(3))
    m, v, moved, normalized = torch.zeros(1, size), torch.zeros(1, size), p.clone(), p.clone()
    step_adam(kernels, [AdamCase(moved, g, m, v, 1, (0.9, 0.95), 1e-8, 0.0, 0.1, 0.01, torch.inf, False)], None)
    # At the first step m̂ is g and v̂ is g².
    reference = p.double() * 0.99 - 0.1 * g.double() / (g.double().abs() + 1e-8)
    # p, decay and direction are each rounded once, the corrections twice: under ten roundings of at most |p| + 0.1.
    assert ((moved - reference).abs() <= 10 * 2**-24 * (p.abs() + 0.1)).all()
    kernels.move_normalized([Normalized(normalized, step, (-1,), 1e-9)], [0.1], [0.01])
    reference = p.double() * 0.99 - 0.1 * step.double() * torch.rsqrt(step.double().square().mean() + 1e-9)
    assert ((normalized - reference).abs() <= 10 * 2**-24 * (p.abs() + 0.1 * step.abs())).all()


GRADIENTS: dict[str, Any] = {
    "transposed": lambda g: g.mT.contiguous().mT if g.ndim > 1 else g,
    "every second": lambda g: torch.stack([g, -g], -1)[..., 0],
    "unaligned": lambda g: torch.cat([torch.zeros(1), g.flatten()])[1:].view(g.shape),
    "expanded": lambda g: g.flatten()[:1].expand(g.numel()).view(g.shape),
}


@pytest.mark.parametrize("how", GRADIENTS)
@pytest.mark.parametrize("name", ["VeLO", "CELO2", "CELO2-base", "CeloAdam", "AdafacLO"])
def test_gradients_with_other_strides(name: str, how: str) -> None:
    """The same bits as from a contiguous gradient with these values."""
    _same_as_contiguous(name, GRADIENTS[how], torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["VeLO", "CELO2", "CELO2-base", "CeloAdam", "AdafacLO"])
def test_16_bit_gradients(name: str, dtype: torch.dtype) -> None:
    """16-bit parameters and gradients, contiguous or not, give the same bits."""
    _same_as_contiguous(name, GRADIENTS["transposed"], dtype)


def _same_as_contiguous(name: str, change: Any, dtype: torch.dtype) -> None:
    shapes, result = ((), (7,), (300,), (24, 24), (33, 70), (8, 8, 3, 3)), []
    for contiguous in (True, False):
        generator = torch.Generator().manual_seed(3)
        params = [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]
        opt = optimizer(name, params, "auto")
        for _ in range(2):
            for p in params:
                g = change(torch.randn(p.shape, generator=generator)).to(dtype)
                p.grad = g.contiguous() if contiguous else g
            opt.step(1.0)
        result.append(params)
    assert all(map(torch.equal, *result))


@pytest.mark.parametrize("name", ["VeLO", "Celo"])
def test_a_zero_initialized_parameter_moves_under_fused(name: str) -> None:
    moved = {}
    for backend in ("auto", "eager"):
        params = [nn.Parameter(torch.zeros(shape)) for shape in ((40,), (12, 10))]
        opt = optimizer(name, params, backend)
        for p in params:
            p.grad = torch.linspace(-1, 1, p.numel()).view(p.shape)
        opt.step(1.0)
        moved[backend] = params
    for fused, eager in zip(moved["auto"], moved["eager"], strict=True):
        assert eager.abs().min() > 0
        # The first step from zero does not round p: the error is that of about forty products, 6e-8 each.
        assert (fused - eager).norm() <= 4e-6 * eager.norm()


# --- pointer checks --------------------------------------------------------------------------------------------------

MISFITS: dict[str, Any] = {
    "float64": lambda x: x.double(),
    "bfloat16": lambda x: x.bfloat16(),
    "one element less": lambda x: x.flatten()[1:].clone(),
    "nothing": lambda x: x.flatten()[:0],
    "other strides": lambda x: torch.stack([x, x], -1)[..., 0],
    "the meta device": lambda x: x.to("meta"),
}


def refused(call: Any) -> None:
    with pytest.raises(ZooError):
        call()


@pytest.mark.parametrize("what", MISFITS)
def test_no_address_is_passed_unchecked(kernels: CpuKernels, what: str) -> None:
    """Each kernel call raises an error, and the parameter before the invalid one is unchanged."""
    rule, layers = SUBJECTS["adafac-4"].rule, network(SUBJECTS["adafac-4"], 1)
    for shape in ((6, 4), (24,)):
        names = ("p", "g", *new_accumulators(torch.empty(shape), axes_of(shape, "torch")))
        for name in names:
            first, task = tasks_of([shape, shape], "adafac-4", kernels)
            if name in ("p", "g"):
                wrong = task._replace(**{name: MISFITS[what](getattr(task, name))})
            else:
                wrong = task._replace(state={**task.state, name: MISFITS[what](task.state[name])})
            before = [x.clone() for x in (first.p, *first.state.values())]
            refused(lambda a=first, b=wrong: kernels.advance([a, b], rule, None))
            assert all(map(torch.equal, before, (first.p, *first.state.values())))
    tasks = tasks_of([(6, 4)], "adafac-4", kernels)
    advanced = kernels.advance(tasks, rule, None)
    for k in range(len(layers)):
        for part in range(2):
            pair = list(layers[k])
            pair[part] = MISFITS[what](pair[part])
            wrong_layers = [*layers[:k], (pair[0], pair[1]), *layers[k + 1 :]]
            if what != "other strides":  # networks are copied
                refused(lambda layers=wrong_layers: kernels.move(advanced, layers, [0.1], [0.0]))
    p, g, moments = torch.ones(6, 4), torch.ones(6, 4), torch.zeros(1, 6, 4)
    for k in range(4):
        tensors = [p, g, moments, moments.clone()]
        tensors[k] = MISFITS[what](tensors[k])
        adam = AdamCase(tensors[0], tensors[1], tensors[2], tensors[3], 1, (0.9, 0.95), 1e-8, 0.0, 0.1, 0.0, 1.0, False)
        refused(lambda adam=adam: step_adam(kernels, [adam], None))
    for one, other in ((MISFITS[what](p), g), (p, MISFITS[what](g))):
        refused(lambda a=one, b=other: kernels.move_normalized([Normalized(a, b, (-1,), 1e-9)], [0.1], [0.0]))
    assert (p == 1).all()


def test_too_few_numbers_are_refused(kernels: CpuKernels) -> None:
    rule, layers = SUBJECTS["adafac-4"].rule, network(SUBJECTS["adafac-4"], 1)
    tasks = tasks_of([(6, 4), (7,)], "adafac-4", kernels)
    refused(lambda: kernels.advance(tasks, rule, torch.ones(2)))
    values = torch.ones(6)
    case = AdamCase(values, values, values[None], values[None], 1, (0.9, 0.95), 0.1, 0.0, 0.1, 0.0, 1.0, False)
    refused(lambda: step_adam(kernels, [case], torch.ones(2)))
    advanced = kernels.advance(tasks, rule, None)
    refused(lambda: kernels.move(advanced, layers, [0.1], [0.0, 0.0]))
    refused(lambda: kernels.move(advanced, layers, [0.1, 0.1], torch.zeros(1)))
    refused(lambda: kernels.move(advanced, layers[:1], [0.1, 0.1], [0.0, 0.0]))


def test_a_lazily_negated_gradient_is_read_correctly() -> None:
    """``conj().imag`` of one element is contiguous, but its memory has the other sign."""
    moved: list[Tensor] = []
    for backend in ("auto", "eager"):
        p = nn.Parameter(torch.ones(1))
        opt = optimizer("ELO", [p], backend)
        p.grad = torch.tensor([1 + 2j]).conj().imag
        assert p.grad.is_neg()
        opt.step()
        moved.append(opt.state[p]["momentum"].flatten())
    assert torch.equal(moved[0], moved[1])
