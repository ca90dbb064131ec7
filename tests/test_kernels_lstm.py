"""The CPU kernels of the LSTM against the eager implementation in float64, within the roundings of float32."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import margins
import pytest
import torch
from margins import check
from rounding import simulate, size
from torch import Tensor

from pylo_zoo.errors import ZooError
from pylo_zoo.kernels.cpu import CpuKernels, find_kernels, lstm
from pylo_zoo.nets import CELO_LSTM_INPUTS, VELO_LSTM_INPUTS, Control, Controller
from pylo_zoo.ops import conditioning
from pylo_zoo.ops.lstm import LSTMWeights
from pylo_zoo.optim import Celo

SHAPES = ((1, 7), (3, 16), (32, 64), (33, 64), (5, 130), (9, 512))
"""Tensors and units: on both sides of every limit of :mod:`pylo_zoo.kernels.cpu.lstm`."""
DRAWS = 12


@pytest.fixture(scope="module")
def kernels() -> CpuKernels:
    result = find_kernels()
    if isinstance(result, str):
        pytest.skip(result)
    return result


def controller(units: int, inputs: int, controls: int | None = 5) -> Controller:
    """An LSTM whose gates are neither linear nor saturated."""
    generator = torch.Generator().manual_seed(units)
    net = Controller(inputs, units, controls).requires_grad_(False)
    for p in net.parameters():
        p.copy_(torch.randn(p.shape, generator=generator) / math.sqrt(p.shape[-1] if p.ndim > 1 else 4))
    return net


def state(count: int, units: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(count)
    return torch.randn(count, units, generator=generator).tanh(), torch.randn(count, units, generator=generator)


def ranks(count: int) -> Tensor:
    return conditioning.ranks([(2,) * (k % 6) for k in range(count)])


def outputs(control: Control) -> list[Tensor]:
    assert control.controls is not None
    return [control.hidden, control.cell, torch.cat([control.controls, control.lr_mult[:, None]], dim=1)]


def reference(net: Controller, inputs: Tensor, hidden: Tensor, cell: Tensor) -> Any:
    """The eager results in float64, with the error bounds of a correct program."""
    wide = Controller(inputs.shape[1], hidden.shape[1], net.controls.weight.shape[0] if net.controls else None)
    wide.load_state_dict(net.state_dict())
    wide = wide.double().requires_grad_(False)
    given = [each.double() for each in (inputs, hidden, cell)]
    return simulate(lambda: outputs(wide(*given)), draws=DRAWS)


def step(plan: lstm.CpuLSTM, inputs: Tensor, keep_state: bool = False) -> list[Tensor]:
    return list(plan.step(inputs, keep_state))


@pytest.mark.parametrize("run_alone", [False, True])
@pytest.mark.parametrize(("count", "units"), SHAPES)
def test_a_step_agrees(kernels: CpuKernels, count: int, units: int, run_alone: bool) -> None:
    net = controller(units, CELO_LSTM_INPUTS if run_alone else VELO_LSTM_INPUTS)
    hidden, cell = state(count, units)
    inputs = torch.randn(1 if run_alone else count, CELO_LSTM_INPUTS if run_alone else VELO_LSTM_INPUTS)
    expected = reference(net, inputs.expand(count, -1), hidden, cell)
    plan = kernels.plan_lstm(net.compose(), hidden, cell, None if run_alone else ranks(count))
    results = step(plan, inputs)
    assert results[0] is hidden
    assert results[1] is cell
    for k, name in enumerate(("hidden", "cell", "heads")):
        check(size(results[k].double() - expected.truth[k]), expected.distance(k), f"{name} of {count}×{units}")


@pytest.mark.parametrize(("count", "units"), [(3, 16), (5, 130)])
def test_swapped_gates_are_detected(kernels: CpuKernels, count: int, units: int) -> None:
    net = controller(units, VELO_LSTM_INPUTS)
    (hidden, cell), inputs = state(count, units), torch.randn(count, VELO_LSTM_INPUTS)
    expected = reference(net, inputs, hidden, cell)
    i, g, f, o = net.lstm.weight.chunk(4)
    net.lstm.weight.copy_(torch.cat([i, f, g, o]))
    results = step(kernels.plan_lstm(net.compose(), hidden, cell, ranks(count)), inputs)
    with margins.without_recording(), pytest.raises(AssertionError, match="error"):
        check(size(results[1].double() - expected.truth[1]), expected.distance(1), "cell")


def test_few_and_many_tensors_agree_and_the_number_of_threads_changes_no_bit(
    kernels: CpuKernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pointwise part is the same; products differ by roundings, which the reference bounds."""
    net, inputs = controller(64, VELO_LSTM_INPUTS), torch.randn(20, VELO_LSTM_INPUTS)
    gates, shift, cell = torch.randn(700, 4 * 24), torch.randn(4 * 24), torch.randn(700, 24)
    results = []
    for threads in (1, 2):
        new = [torch.empty_like(cell) for _ in range(2)]
        addresses = [each.data_ptr() for each in (gates, shift, cell)]
        kernels._library.pylo_zoo_gates(*addresses, 700, 24, *(each.data_ptr() for each in new), threads)
        results.append(new)
    assert all(map(torch.equal, *results))
    expected = reference(net, inputs, *state(20, 64))
    for most in (0, 32):
        monkeypatch.setattr(lstm, "FEW_TENSORS", most)
        got = step(kernels.plan_lstm(net.compose(), *state(20, 64), ranks(20)), inputs)
        for k in range(3):
            check(size(got[k].double() - expected.truth[k]), expected.distance(k), f"at most {most}, result {k}")


def test_the_state_stays_if_asked(kernels: CpuKernels) -> None:
    net = controller(16, VELO_LSTM_INPUTS)
    (hidden, cell), inputs = state(4, 16), torch.randn(4, VELO_LSTM_INPUTS)
    before = hidden.clone(), cell.clone()
    plan = kernels.plan_lstm(net.compose(), hidden, cell, ranks(4))
    kept = step(plan, inputs, keep_state=True)
    assert all(map(torch.equal, before, (hidden, cell)))
    assert all(map(torch.equal, kept, step(plan, inputs)))
    assert not torch.equal(hidden, before[0])


def test_nan_propagates(kernels: CpuKernels) -> None:
    for units in (16, 130):
        net, (hidden, cell) = controller(units, VELO_LSTM_INPUTS), state(3, units)
        cell[1, 3] = math.nan
        results = step(kernels.plan_lstm(net.compose(), hidden, cell, ranks(3)), torch.zeros(3, VELO_LSTM_INPUTS))
        assert results[1][1, 3].isnan()
        assert results[0][1, 3].isnan()
        assert results[2][1].isnan().all()
        assert results[2][0].isfinite().all()


# --- inputs ----------------------------------------------------------------------------------------------------------

LOSSES = {
    "falling": [2.0, 1.5, 1.2, 1.1, 1.0, 0.9, 0.9],
    "negative": [-1.0, -2.0, -1.5, -3.0, -2.5],
    "equal": [1.0] * 6,
    "exploding": [1.0, 1e3, 1e8, 1e30],
    "zero": [0.0, 0.0, 1.0, 0.0],
    "infinite": [1.0, math.inf, 1.0, 1.0],
    "nan": [1.0, 0.9, math.nan, 1.0],
}


@pytest.mark.parametrize("name", LOSSES)
def test_the_run_s_averages_are_those_of_torch_bit_for_bit(kernels: CpuKernels, name: str) -> None:
    """Features of the fraction differ by the errors of two hyperbolic tangents. All else has the same roundings."""
    horizon, net = 5, controller(16, CELO_LSTM_INPUTS)
    plan = kernels.plan_lstm(net.compose(), *state(2, 16), None)
    average, minimum = torch.zeros(10), torch.full((10,), conditioning.LOSS_MINIMUM_START)
    fused, decays = (average.clone(), minimum.clone()), conditioning.loss_decays(horizon, average)
    for k, loss in enumerate(LOSSES[name]):
        t = torch.tensor(k)
        conditioning.advance_loss(average, minimum, t, torch.tensor(loss), decays)
        fraction = conditioning.fraction_features(t.clamp(max=horizon - 1), horizon, average)
        features = conditioning.loss_features(average, minimum, t + 1, decays)
        inputs = plan.inputs(fused, decays, torch.tensor(loss), k + 1, horizon)
        torch.testing.assert_close(fused, (average, minimum), rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(inputs[0, 9:], features, rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(inputs[0, :9], fraction, rtol=4 * 2**-23, atol=0)  # 2 ulp each


def test_the_tensors_features_agree(kernels: CpuKernels) -> None:
    count, net = 40, controller(16, VELO_LSTM_INPUTS)
    generator = torch.Generator().manual_seed(0)
    moments = torch.randn(count, 9, generator=generator) * 10.0 ** torch.randint(-8, 3, (count, 9), generator=generator)
    moments[:, [0, 4, 5, 6, 8]] = moments[:, [0, 4, 5, 6, 8]].abs()
    moments[0] = 0
    plan = kernels.plan_lstm(net.compose(), *state(count, 16), ranks(count))
    run = torch.zeros(10), torch.full((10,), conditioning.LOSS_MINIMUM_START)
    inputs = plan.inputs(run, conditioning.loss_decays(9, run[0]), torch.tensor(1.0), 1, 9, moments)
    wide = moments.double(), ranks(count).double()
    expected = simulate(lambda: [conditioning.tensor_features(*wide)], draws=DRAWS)
    check(size(inputs[:, 18:].double() - expected.truth[0]), expected.distance(0), "features of tensors")
    assert (inputs[:, :18] == inputs[0, :18]).all()


def test_a_lazily_negated_loss_is_read_correctly(kernels: CpuKernels) -> None:
    """``z.conj().imag`` is a view of memory with the opposite sign."""
    negated = torch.tensor(1 + 2j, dtype=torch.complex64).conj().imag
    assert negated.is_neg()
    averages = []
    for loss in (negated, torch.tensor(-2.0)):
        p = torch.nn.Parameter(torch.ones(3))
        optimizer = Celo([p], num_steps=10, weights="random:celo", backend="fused")
        p.grad = torch.ones(3)
        optimizer.step(loss=loss)
        averages.append(optimizer.param_groups[0]["loss_average"])
    assert torch.equal(*averages)


# --- no address is passed unchecked ----------------------------------------------------------------------------------

MISFITS = {
    "other dtype": lambda x: x.double(),
    "one more": lambda x: torch.cat([x, x.narrow(0, 0, 1)]) if x.ndim else torch.stack([x, x]),
    "other strides": lambda x: x.repeat_interleave(2, dim=-1)[..., ::2] if x.ndim else x.double(),
}


def refused(call: Any) -> None:
    with pytest.raises(ZooError):
        call()


@pytest.mark.parametrize("what", MISFITS)
@pytest.mark.parametrize("units", [16, 130])
def test_misfits_are_refused(kernels: CpuKernels, what: str, units: int) -> None:
    change, net, count = MISFITS[what], controller(units, VELO_LSTM_INPUTS), 3
    weights, valid = net.compose(), [*state(count, units), ranks(count)]
    for k in range(3):
        wrong = [change(each) if j == k else each for j, each in enumerate(valid)]
        refused(lambda wrong=wrong: kernels.plan_lstm(weights, *wrong))
    if what != "other strides":  # torch reads the weights, or they are copied
        for k in range(len(weights)):
            wrong_weights = LSTMWeights(*(change(each) if j == k else each for j, each in enumerate(weights)))
            refused(lambda wrong=wrong_weights: kernels.plan_lstm(wrong, *valid))
    plan = kernels.plan_lstm(weights, *valid)
    average, before = torch.zeros(10), valid[0].clone()
    arguments: Sequence[Tensor] = [average, average.clone(), average.clone(), torch.tensor(1.0), torch.zeros(count, 9)]
    for k in range(len(arguments)):
        a, m, d, loss, moments = (change(each) if j == k else each for j, each in enumerate(arguments))
        refused(lambda a=a, m=m, d=d, loss=loss, moments=moments: plan.inputs((a, m), d, loss, 1, 9, moments))
    refused(lambda: plan.inputs((average, average), average, torch.tensor(1.0), 1, 9))
    refused(lambda: plan.step(change(torch.zeros(count, VELO_LSTM_INPUTS))))
    assert torch.equal(valid[0], before)
    assert (average == 0).all()
