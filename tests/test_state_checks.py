"""A step checks parameters, gradients and state before it writes anything, in every optimizer and backend."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import state_fuzz
import torch
from contract_table import CONTROLLED, TABLE, give_gradients, make, owned, parameters, same, same_state
from state_fuzz import expanded, shifted, snapshot, strided
from torch import Tensor, nn

from pylo_zoo.errors import ZooError
from pylo_zoo.kernels import kernels_for

BACKENDS = ("fused", "eager")
SHAPES = [(6, 6), (4, 4, 3, 3), (7,)]
Broken = Callable[[Any, nn.Parameter], None]

each_optimizer = pytest.mark.parametrize("name", TABLE)
each_backend = pytest.mark.parametrize("backend", BACKENDS)


@pytest.fixture(autouse=True)
def _kernels() -> None:
    if kernels_for("auto", torch.device("cpu")) is None:
        pytest.skip("no C++ compiler")


def stepped(name: str, backend: str, **more: Any) -> tuple[Any, list[nn.Parameter]]:
    """An optimizer after one step, with new gradients."""
    params = parameters(shapes=SHAPES)
    optimizer = make(TABLE[name], params, backend=backend, **more)
    give_gradients(params, 0)
    optimizer.step(loss=1.0)
    give_gradients(params, 1)
    return optimizer, params


def each_entry(change: Callable[[Tensor], Any]) -> Broken:
    """Change every entry of a parameter's state that the change affects."""

    def broken(optimizer: Any, p: nn.Parameter) -> None:
        state = optimizer.state[p]
        for name, value in state.items():
            state[name] = change(value)

    return broken


def replaced(shape: tuple[int, ...], with_gradient: bool = True) -> Broken:
    def broken(optimizer: Any, p: nn.Parameter) -> None:
        if with_gradient:
            p.grad = None
        p.data = torch.randn(shape)
        if with_gradient:
            p.grad = torch.randn(shape)

    return broken


def gradient_data(change: Callable[[Tensor], Tensor]) -> Broken:
    def broken(optimizer: Any, p: nn.Parameter) -> None:
        assert p.grad is not None
        p.grad.data = change(p.grad)

    return broken


def without(optimizer: Any, p: nn.Parameter) -> None:
    state = optimizer.state[p]
    name = next(iter(state))
    state[name] = None
    if len(state) > 1:  # an empty state is that of a parameter before its first step
        del state[name]


def state_data(optimizer: Any, p: nn.Parameter) -> None:
    for value in optimizer.state[p].values():
        value.data = value.data.double()


def same_address(change: Callable[[Tensor], Tensor]) -> Broken:
    """Change the metadata of each entry, whose memory stays where it is."""

    def broken(optimizer: Any, p: nn.Parameter) -> None:
        for value in optimizer.state[p].values():
            address = value.data_ptr()
            value.data = change(value.data)
            assert value.data_ptr() == address

    return broken


def parameter_data(change: Callable[[Tensor], Tensor]) -> Broken:
    def broken(optimizer: Any, p: nn.Parameter) -> None:
        p.data = change(p.data)

    return broken


BROKEN: dict[str, Broken] = {
    "a larger parameter": replaced((12, 8)),
    "a smaller parameter": replaced((3, 2)),
    "a parameter with as many elements": replaced((4, 9)),
    "a parameter without its gradient": replaced((12, 8), with_gradient=False),
    "a flat parameter": replaced((36,)),
    "a float64 parameter": parameter_data(Tensor.double),
    "a complex parameter": parameter_data(lambda p: p.to(torch.complex64)),
    "an expanded parameter": parameter_data(expanded),
    "bfloat16 state": each_entry(Tensor.bfloat16),
    "float64 state": each_entry(Tensor.double),
    "integer state": each_entry(lambda x: x.to(torch.int32)),
    "complex state": each_entry(lambda x: x.to(torch.complex64)),
    "state of other strides": each_entry(lambda x: strided(x) if x.ndim >= 2 else x),
    "state of another shape": each_entry(lambda x: x[..., :1].clone() if x.ndim else x[None]),
    "state with an additional axis": each_entry(lambda x: x[None]),
    "empty state": each_entry(lambda x: x.flatten()[:0]),
    "meta state": each_entry(lambda x: x.to("meta")),
    "sparse state": each_entry(lambda x: x.to_sparse()),
    "None in the state": each_entry(lambda x: None),
    "numbers in the state": each_entry(lambda x: 1.0),
    "a missing entry": without,
    "state.data": state_data,
    "state.data with an additional axis": same_address(lambda x: x[None]),
    "state.data as integers": same_address(lambda x: x.view(torch.int32) if x.is_floating_point() else x[None]),
    "expanded state.data": same_address(lambda x: expanded(x) if x.numel() > 1 else x[None]),
    "a gradient of another shape": gradient_data(lambda g: torch.randn(12, 8)),
    "a gradient with as many elements": gradient_data(lambda g: g.reshape(4, 9)),
    "a short gradient": gradient_data(lambda g: g[:1]),
    "a complex gradient": gradient_data(lambda g: g.to(torch.complex64)),
    "an integer gradient": gradient_data(lambda g: g.to(torch.int32)),
}


@each_optimizer
@each_backend
@pytest.mark.parametrize("what", BROKEN)
def test_mismatches_are_errors_before_any_write(name: str, backend: str, what: str) -> None:
    """Also in the last parameter: those before it have not moved."""
    for place in (0, -1):
        params = parameters(shapes=[(6, 6), (7,), (4, 4, 3, 3), (6, 6)])
        optimizer = make(TABLE[name], params, backend=backend)
        give_gradients(params, 0)
        optimizer.step(loss=1.0)
        give_gradients(params, 1)
        BROKEN[what](optimizer, params[place])
        before = snapshot(optimizer)
        with pytest.raises(ZooError) as raised:
            optimizer.step(loss=1.0)
        assert snapshot(optimizer) == before
        assert "\n" not in str(raised.value)
        assert len(str(raised.value)) <= 250


def test_the_error_names_the_entry_its_value_and_the_expected_one() -> None:
    optimizer, (p, *_) = stepped("VeLO", "fused")
    optimizer.state[p]["momentum"] = optimizer.state[p]["momentum"].bfloat16()
    with pytest.raises(ZooError) as raised:
        optimizer.step(1.0)
    assert raised.value.message == (
        "Parameter 0 (6, 6): state 'momentum' is bfloat16 (3, 6, 6) on cpu; a step needs float32 (3, 6, 6) on cpu."
    )
    assert raised.value.hint == "Build a new optimizer, or load_state_dict a state that fits."


def changed_gradient(change: Callable[[Tensor], Tensor]) -> Broken:
    def fine(optimizer: Any, p: nn.Parameter) -> None:
        assert p.grad is not None
        p.grad = change(p.grad)

    return fine


def foreign(optimizer: Any, p: nn.Parameter) -> None:
    optimizer.state[p].update(slow_buffer=torch.zeros(2), old=None)


def toggled(optimizer: Any, p: nn.Parameter) -> None:
    p.requires_grad_(False)


FINE: dict[str, Broken] = {
    "other strides": parameter_data(strided),
    "a slice of a larger tensor": parameter_data(lambda p: torch.cat([p, p], -1)[..., : p.shape[-1]]),
    "an unaligned parameter": parameter_data(shifted),
    "a gradient of other strides": changed_gradient(strided),
    "an expanded gradient": changed_gradient(expanded),
    "an unaligned gradient": changed_gradient(shifted),
    "an unaligned state": each_entry(shifted),
    "copied state": each_entry(Tensor.clone),
    "foreign entries": foreign,
    "a parameter that requires no gradient": toggled,
}


@each_optimizer
@pytest.mark.parametrize("what", FINE)
def test_valid_state_gives_the_eager_result(name: str, what: str) -> None:
    """Both backends see the same strides and values, and their steps agree up to rounding of the movement."""
    more = {"ns_dtype": torch.float32} if name == "Muon" else {}
    results, before = [], []
    for backend in BACKENDS:
        optimizer, params = stepped(name, backend, **more)
        before = [p.detach().clone() for p in params]
        FINE[what](optimizer, params[0])
        optimizer.step(loss=1.0)
        results.append(params)
    for fused, eager, old in zip(*results, before, strict=True):
        assert (eager != old).any()
        # Two steps of about forty rounded products (6e-8 each), amplified by Newton–Schulz if the rule uses it.
        assert (fused - eager).norm() <= 2e-4 * (eager - old).norm() + 1e-6 * eager.norm()


@each_optimizer
@pytest.mark.parametrize("more", [{}, {"master_weights": True}, {"accumulate": 2}], ids=str)
def test_loading_makes_contiguous_copies(name: str, more: dict[str, Any]) -> None:
    """Equal values with other strides: the next step is bit-identical."""
    if "accumulate" in more and name not in CONTROLLED:
        pytest.skip("the optimizer does not accumulate")
    dtype = torch.bfloat16 if more.get("master_weights") else torch.float32
    params = parameters(dtype, SHAPES)
    optimizer = make(TABLE[name], params, **more)
    give_gradients(params, 0)
    optimizer.step(loss=1.0)
    other = copy.deepcopy(optimizer)
    saved = copy.deepcopy(optimizer.state_dict())
    for state in saved["state"].values():
        for key, value in state.items():
            state[key] = strided(value)
    optimizer.load_state_dict(saved)
    assert all(value.is_contiguous() for state in optimizer.state.values() for value in state.values())
    for each in (optimizer, other):
        give_gradients(owned(each), 1)
        each.step(loss=1.0)
    assert same(owned(optimizer), owned(other))
    assert same_state(optimizer.state_dict(), other.state_dict())


@pytest.mark.parametrize("value", [None, "text", torch.zeros(3, 6, 6, device="meta"), torch.zeros(3, 6, 6).to_sparse()])
def test_loading_other_values_than_tensors_is_refused(value: Any) -> None:
    optimizer, _ = stepped("VeLO", "eager")
    saved, before = copy.deepcopy(optimizer.state_dict()), snapshot(optimizer)
    saved["state"][0]["momentum"] = value
    with pytest.raises(ZooError, match="momentum"):
        optimizer.load_state_dict(saved)
    assert snapshot(optimizer) == before


@pytest.mark.parametrize("name", CONTROLLED)
@each_backend
def test_a_parameter_with_accumulated_gradients_is_checked(name: str, backend: str) -> None:
    """It has no gradient in the step that moves it."""
    optimizer, params = stepped(name, backend, accumulate=2)
    params[0].grad = None
    optimizer.state[params[0]]["momentum"] = optimizer.state[params[0]]["momentum"].double()
    before = snapshot(optimizer)
    with pytest.raises(ZooError, match="momentum"):
        optimizer.step(loss=1.0)
    assert snapshot(optimizer) == before


@pytest.mark.parametrize("name", CONTROLLED)
@pytest.mark.parametrize("entry", ["loss_average", "loss_minimum"])
@pytest.mark.parametrize("change", [Tensor.bfloat16, lambda x: x[:3], lambda x: x.to("meta"), lambda x: None])
def test_the_state_of_the_run_is_checked(name: str, entry: str, change: Callable[[Tensor], Any]) -> None:
    optimizer, _ = stepped(name, "fused")
    optimizer.param_groups[0][entry] = change(optimizer.param_groups[0][entry])
    before = snapshot(optimizer)
    with pytest.raises(ZooError, match=entry):
        optimizer.step(1.0)
    assert snapshot(optimizer) == before


@pytest.mark.parametrize("name", CONTROLLED)
@pytest.mark.parametrize("nonfinite", ["propagate", "skip"])
def test_a_loss_without_a_value_is_refused(name: str, nonfinite: str) -> None:
    optimizer, _ = stepped(name, "fused", nonfinite=nonfinite)
    before = snapshot(optimizer)
    with pytest.raises(ZooError, match="meta device"):
        optimizer.step(torch.tensor(1.0, device="meta"))
    assert snapshot(optimizer) == before


@pytest.mark.parametrize("name", ["CELO2", "CeloAdam", "Muon"])
@each_backend
def test_a_negative_count_is_refused(name: str, backend: str) -> None:
    """``1 − β⁰`` is 0, so a step would divide by zero after counters and moments have changed."""
    optimizer, params = stepped(name, backend)
    (counter,) = [state["step"] for p, state in optimizer.state.items() if "step" in state and p is params[-1]]
    counter.fill_(-1)
    before = snapshot(optimizer)
    with pytest.raises(ZooError, match="'step' is -1"):
        optimizer.step(loss=1.0)
    assert snapshot(optimizer) == before


@each_optimizer
def test_inference_mode_is_refused_if_tensors_cannot_be_written(name: str) -> None:
    params = parameters(shapes=SHAPES)
    optimizer = make(TABLE[name], params)
    give_gradients(params, 0)
    with torch.inference_mode():
        optimizer.step(loss=1.0)
    before = snapshot(optimizer)
    with pytest.raises(ZooError, match="inference"):
        optimizer.step(loss=1.0)
    assert snapshot(optimizer) == before


@each_backend
@each_optimizer
def test_mutated_steps_raise_before_any_write_or_agree_with_eager(name: str, backend: str) -> None:
    """A few episodes of ``python tests/state_fuzz.py``."""
    ran = state_fuzz.fuzz(12, seed=3, names=[name], backends=[backend])
    assert ran["steps"] >= 12


@pytest.mark.slow
def test_ten_thousand_mutated_steps_find_nothing() -> None:
    ran = state_fuzz.fuzz(10_000, seed=0)
    assert ran["like eager"] > 3000


def test_the_fuzz_test_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the checks disabled, in the eager implementation, whose invalid steps cannot crash the process."""
    monkeypatch.setattr("pylo_zoo.optim.state_checks.StateChecks.check", lambda *args: False)
    with pytest.raises(state_fuzz.Wrong):
        state_fuzz.fuzz(400, seed=1, backends=["eager"])


@each_optimizer
def test_float64_parameters_do_not_affect_others(name: str) -> None:
    """VeLO's LSTM then generates float64 weights, which kernels of float32 parameters must not read directly."""
    more = {"ns_dtype": torch.float32} if name == "Muon" else {}
    results, before = [], []
    for backend in BACKENDS:
        params = [*parameters(torch.float64, [(5, 5)]), *parameters(torch.float32, SHAPES)]
        before = [p.detach().clone() for p in params]
        optimizer = make(TABLE[name], params, backend=backend, **more)
        for k in range(2):
            give_gradients(params, k)
            optimizer.step(loss=1.0)
        results.append(params)
    for fused, eager, old in zip(*results, before, strict=True):
        # As above.
        assert (fused - eager).norm() <= 2e-4 * (eager - old).norm() + 1e-6 * eager.norm()


@each_optimizer
def test_gradients_of_another_dtype_are_converted(name: str) -> None:
    """They come and go between steps, with and without a plan for them."""
    if not hasattr(nn.Parameter(torch.ones(1)), "grad_dtype"):
        pytest.skip("this torch has no gradients of another dtype")
    results = []
    for backend in BACKENDS:
        params = parameters(shapes=SHAPES)
        more = {"ns_dtype": torch.float32} if name == "Muon" else {}
        optimizer = make(TABLE[name], params, backend=backend, **more)
        for step in range(4):
            give_gradients(params, step)
            for p in params if step % 2 == 0 else ():
                assert p.grad is not None
                g, p.grad = p.grad.bfloat16(), None
                p.grad_dtype = None
                p.grad = g
            optimizer.step(loss=1.0)
        assert params[0].grad is not None
        results.append(params)
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(*results, strict=True))
