"""Runs with and without graphs on the pretend accelerator: ``TRITON_INTERPRET=1 python graph_runs.py [CASE …]``.

Prints a JSON object: for each case its error text or null. A separate process, because torch allows one pretend device
and Triton chooses its interpreter on import.
"""

# torch's types do not include tensors with other data.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false
from __future__ import annotations

import copy
import gc
import inspect
import json
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from contract_table import CONTROLLED, LEARNED, TABLE, make
from torch import Tensor

if TYPE_CHECKING or __name__ == "__main__":
    from graph_double import CaptureError, GraphDouble, install_graphs
    from pretend_device import Constructors, PretendTensor, Recorder, unwrap
    from pretend_gpu import counting, install_gpu, on_device

from pylo_zoo.errors import ZooError

SHAPES = ((4, 3), (5,))
Event = Callable[["Run"], None]


@contextmanager
def on_pretend() -> Iterator[None]:
    """Operations run on the pretend device."""
    recorder = Recorder()
    with Constructors(recorder.waits), recorder:
        yield


class Run:
    """One optimizer over a few parameters; equal seeds give equal runs."""

    def __init__(
        self,
        name: str,
        dtype: torch.dtype = torch.float32,
        shapes: Sequence[Sequence[int]] = SHAPES,
        **arguments: Any,
    ) -> None:
        self.random = torch.Generator().manual_seed(0)
        self.dtype = dtype
        self.params = [self.parameter(shape) for shape in shapes]
        self.without: set[int] = set()
        self.optimizer = make(TABLE[name], self.params, **{"backend": "fused", **arguments})
        self.steps = 0
        self.host_loss = self.bad = False

    def normal(self, shape: Sequence[int]) -> PretendTensor:
        return on_device(torch.randn(tuple(shape), generator=self.random).to(self.dtype))

    def parameter(self, shape: Sequence[int]) -> PretendTensor:
        p = self.normal(shape)
        p.requires_grad_()
        return p

    def gradients(self) -> None:
        """New gradients at new addresses."""
        fresh = [self.normal(p.shape) for p in self.params]
        if self.bad:
            fresh[0].inner.view(-1)[0] = torch.nan
            self.bad = False
        for k, p in enumerate(self.params):
            p.grad = None if k in self.without else fresh[k]

    def step(self, steps: int = 1) -> Run:
        for _ in range(steps):
            self.gradients()
            loss = 2.0 * 0.9**self.steps
            with on_pretend():
                self.optimizer.step(loss=loss if self.host_loss else on_device(torch.tensor(loss)))
            self.steps += 1
        return self

    def state(self) -> list[Tensor]:
        """Everything that a step writes."""
        run = [value for value in self.optimizer.param_groups[0].values() if isinstance(value, Tensor)]
        of_params = [value for p in self.params for _, value in sorted(self.optimizer.state[p].items())]
        return [unwrap(each).detach().clone() for each in (*self.params, *run, *of_params)]


def same(one: Run, other: Run) -> None:
    for k, (a, b) in enumerate(zip(one.state(), other.state(), strict=True)):
        assert torch.equal(a, b), f"tensor {k} of {tuple(a.shape)} differs by {(a - b).abs().max()}"
    assert all(each.isfinite().all() for each in one.state())


# --- the optimizer's own graph ---------------------------------------------------------------------------------------


def schedule(run: Run) -> None:
    run.optimizer.param_groups[0]["lr"] *= 0.9
    run.optimizer.param_groups[0]["weight_decay"] = 1e-4 * run.steps


def loss_on_host(run: Run) -> None:
    run.host_loss = not run.host_loss


def gradient_leaves(run: Run) -> None:
    run.without = {1}


def gradient_returns(run: Run) -> None:
    run.without = set()


def load(run: Run) -> None:
    with on_pretend():
        run.optimizer.load_state_dict(copy.deepcopy(run.optimizer.state_dict()))


def one_more(run: Run) -> None:
    run.params.append(run.parameter((3, 5)))
    run.optimizer.add_param_group({"params": [run.params[-1]], "lr": run.optimizer.param_groups[0]["lr"] * 0.5})


def replace_value(run: Run) -> None:
    p = run.params[0]
    p.inner = p.inner.clone()


def replace_run_state(run: Run) -> None:
    group = run.optimizer.param_groups[0]
    group["step"] = on_device(unwrap(group["step"]).clone())


def lr_on_device(run: Run) -> None:
    group = run.optimizer.param_groups[0]
    group["lr"] = on_device(torch.tensor(float(group["lr"])))


def lr_in_place(run: Run) -> None:
    group = run.optimizer.param_groups[0]
    group["lr"].inner.mul_(0.7)


def other_horizon(run: Run) -> None:
    for group in run.optimizer.param_groups:
        if "num_steps" in group:
            group["num_steps"] = 20


def other_betas(run: Run) -> None:
    for group in run.optimizer.param_groups:
        if "adam_betas" in group:
            group["adam_betas"] = (0.8, 0.9)


def nan_once(run: Run) -> None:
    run.bad = True


QUICK: dict[int, Sequence[Event]] = {1: [schedule], 2: [schedule, loss_on_host], 3: [schedule, loss_on_host]}
"""What happens before a step."""
LONG: dict[int, Sequence[Event]] = {
    **{0: [gradient_leaves], 2: [gradient_returns], 4: [load], 7: [one_more], 9: [replace_value]},
    **{11: [replace_run_state], 14: [lr_on_device], 16: [lr_in_place], 17: [schedule, gradient_leaves]},
    **{18: [other_horizon, other_betas], 21: [load, gradient_returns]},
}
SKIPPED: dict[int, Sequence[Event]] = {3: [nan_once], 5: [schedule]}


def own_graph(name: str, events: dict[int, Sequence[Event]], steps: int, replays: int, **arguments: Any) -> None:
    """The run is bit-identical with and without the optimizer's graphs, which do most of the steps."""
    runs = {}
    for graphs in ("off", "auto"):
        double.captured.clear()
        run = runs[graphs] = Run(name, graphs=graphs, **arguments)
        for step in range(steps):
            for event in events.get(step, ()):
                event(run)
            run.step()
        done = sum(graph.replays for graph in double.captured)
        assert (done >= replays) if graphs == "auto" else not double.captured, f"{graphs}: {done} replays"
        assert not run.optimizer._graph_budget.failed
    same(runs["off"], runs["auto"])


def own_copies(name: str) -> None:
    """Copies and saved states contain no graph, and continue bit-identically."""
    run, other = Run(name).step(3), Run(name, graphs="off").step(3)
    assert run.optimizer._plan.graph._captured is not None
    saved = run.optimizer.state_dict()
    assert not any("graph" in str(key) for group in saved["param_groups"] for key in group if key != "graphs")
    state = run.optimizer.__getstate__()
    assert not any(isinstance(value, (GraphDouble, type(run.optimizer._plan))) for value in state.values())
    assert state["graphs"] == "auto"
    run.optimizer.__setstate__(state)
    same(run.step(3), other.step(3))


def own_failure(name: str) -> None:
    """A failed capture leaves everything unchanged; the step launches its kernels, and a warning gives the reason."""
    expected, run = Run(name, graphs="off").step(4), Run(name).step(2)
    double.fails = True
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run.step(2)
    assert run.optimizer._graph_budget.failed
    assert sum("without CUDA graphs: the capture fails" in str(each.message) for each in caught) == 1
    same(run, expected)


def own_changing_kinds(name: str) -> None:
    """Gradients that change their dtype or become strided: the step launches its kernels, or captures again."""
    runs = []
    for graphs in ("off", "auto"):
        double.captured.clear()
        run = Run(name, graphs=graphs)
        for step in range(8):
            run.gradients()
            g = run.params[0].grad
            if 4 <= step < 6:
                run.params[0].grad = on_device(unwrap(g).T.contiguous().T)
            run.gradients = lambda: None
            run.step()
            del run.gradients
        runs.append(run)
    assert 1 <= len(double.captured) <= 2
    assert sum(graph.replays for graph in double.captured) >= 3
    same(*runs)


def own_changing_alignment(name: str) -> None:
    """Gradients at other multiples of an address need other tables, which a graph does not contain."""
    runs = []
    for graphs in ("off", "auto"):
        double.captured.clear()
        run = Run(name, graphs=graphs)
        for step in range(8):
            run.gradients()
            p = run.params[0]
            if step == 5:
                run.params[0].grad = on_device(torch.cat([torch.zeros(1), unwrap(p.grad).flatten()])[1:].view(p.shape))
            run.gradients = lambda: None
            run.step()
            del run.gradients
        runs.append(run)
    assert sum(graph.replays for graph in double.captured) >= 3
    same(*runs)


def own_budget(name: str) -> None:
    """A run that changes all the time stops capturing."""
    double.captured.clear()
    run, other = Run(name), Run(name, graphs="off")
    for each in (run, other):
        for step in range(40):
            if step % 4 == 0:
                load(each)
            each.step()
    assert len(double.captured) == 8, len(double.captured)
    same(run, other)


def own_in_other_capture(name: str) -> None:
    """A step inside a capture of the caller launches its kernels."""
    run = Run(name).step(1)
    count = len(double.captured)
    user_graph(run)
    assert len(double.captured) == count + 1
    assert run.optimizer._plan.graph._captured is None


# --- the caller's graph ----------------------------------------------------------------------------------------------


class Given:
    """Gradients and loss at fixed places, for a captured training step; ``fill`` sets their values."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.noise = [run.normal(p.shape) for p in run.params]
        self.loss = on_device(torch.tensor(2.0))

    def fill(self) -> None:
        for each in self.noise:
            each.inner.copy_(torch.randn(each.shape, generator=self.run.random))
        self.loss.inner.mul_(0.9)

    def training_step(self) -> None:
        """What a loop does between batches: gradients that depend on the parameters, then the step."""
        for p, noise in zip(self.run.params, self.noise, strict=True):
            p.grad = p.detach() * 0.1 + noise
        self.run.optimizer.step(loss=self.loss + 0.0)


def user_graph(run: Run) -> tuple[Given, GraphDouble]:
    given = Given(run)
    with double.user_capture() as graph:
        given.training_step()
    for p in run.params:
        p.grad = None
    gc.collect()
    return given, graph


def user_capture(name: str, **arguments: Any) -> None:
    """A captured training step, replayed, gives the run without graphs: counters, state and parameters."""
    run, expected = (Run(name, **arguments).step(1) for _ in range(2))
    before = run.state()
    given, graph = user_graph(run)
    assert all(torch.equal(a, b) for a, b in zip(before, run.state(), strict=True)), "a capture executes nothing"
    other = Given(expected)
    for step in range(3):
        if step == 2:  # steps outside the graph, at other addresses, do not disturb it
            run.step()
            expected.step()
            gc.collect()
        given.fill()
        graph.replay()
        other.fill()
        with on_pretend():
            other.training_step()
    same(run, expected)


def user_other_steps(name: str) -> None:
    """Steps of other parameters outside the caller's graph leave its tables and the state's memory in place."""
    run, expected = (Run(name, shapes=((4, 3), (5,), (3,), (2,))).step(1) for _ in range(2))
    given, graph = user_graph(run)
    other = Given(expected)
    for without in ({1}, set()):
        for each in (run, expected):
            each.without = without
            each.step()
        gc.collect()
        given.fill()
        graph.replay()
        other.fill()
        with on_pretend():
            other.training_step()
    same(run, expected)


def user_lr(name: str) -> None:
    """In the caller's graph, a learning rate on the device takes effect when it changes; a float is frozen."""
    results = []
    for on_dev in (True, False):
        states = []
        for factor in (1.0, 0.0):
            run = Run(name, graphs="off")
            if on_dev:
                lr_on_device(run)
            run.step(2)
            given, graph = user_graph(run)
            group = run.optimizer.param_groups[0]
            if on_dev:
                group["lr"].inner.mul_(factor)
            else:
                group["lr"] *= factor
            given.fill()
            graph.replay()
            states.append(run.state()[: len(run.params)])
        results.append(all(torch.equal(a, b) for a, b in zip(*states, strict=True)))
    assert results == [False, True], results


def user_autograd(name: str) -> None:
    """Forward, backward and step in one capture."""
    losses = []
    for captured in (False, True):
        run = Run(name, graphs="off").step(2)
        target = run.normal((3,))

        def training_step(run: Run = run, target: Tensor = target) -> Tensor:
            for p in run.params:
                p.grad = None
            loss = (run.params[0].mean(0) - target).square().sum()
            loss = loss + sum(p.square().sum() for p in run.params[1:])
            loss.backward()
            run.optimizer.step(loss=loss)
            return loss.detach()

        if captured:
            with double.user_capture() as graph:
                training_step()
            for _ in range(3):
                graph.replay()
        else:
            with on_pretend():
                for _ in range(3):
                    training_step()
        losses.append(run)
    same(*losses)


def _refused(run: Run, message: str, step: Callable[[], None]) -> None:
    before, text = run.state(), ""
    try:
        with double.user_capture():
            step()
    except ZooError as error:
        text = str(error)
    assert message in text, f"no error about {message!r}: {text!r}"
    assert all(torch.equal(a, b) for a, b in zip(before, run.state(), strict=True))


def user_errors(name: str) -> None:
    """What a caller's graph cannot contain is one error, and nothing changes."""
    run = Run(name)
    _refused(run, "first step", Given(run).training_step)
    run.step(2)
    run.params.append(run.parameter((3, 5)))
    run.optimizer.add_param_group({"params": [run.params[-1]]})
    run.step(1)
    load(run)
    _refused(run, "differs from the last one", Given(run).training_step)
    run.step(2)
    if name in CONTROLLED:
        given = Given(run)
        given.loss = 1.0
        _refused(run, "would repeat", given.training_step)
    run = Run(name, nonfinite="raise").step(2)
    _refused(run, "reads values", Given(run).training_step)


def control() -> None:
    """The double notices what a graph forbids and freezes."""
    x = on_device(torch.ones(4))
    forbidden: dict[str, Callable[[], Any]] = {
        "reads a value": lambda: (x + 1).sum().item(),
        "a copy from the host": lambda: torch.ones(4).to(x.device),
        "pinned memory": lambda: torch.ones(4).pin_memory(),
        "on the host": lambda: x + torch.ones(4),
        "torch.tensor": lambda: torch.tensor([1.0], device=x.device),
    }
    for name, action in forbidden.items():
        try:
            with double.user_capture():
                action()
        except CaptureError:
            continue
        raise AssertionError(f"{name} was not noticed")
    factor, scalar = 2.0, torch.tensor(3.0)
    source = torch.ones(4).pin_memory()
    with double.user_capture() as graph:
        x.mul_(factor).mul_(scalar)
        y = source.to(x.device, non_blocking=True) + x
    assert torch.equal(x.inner, torch.ones(4))
    scalar.fill_(5.0)
    source.fill_(4.0)
    graph.replay()
    graph.replay()
    assert torch.equal(x.inner, torch.full((4,), 36.0))
    assert torch.equal(y.inner, torch.full((4,), 40.0))
    del source
    gc.collect()
    try:
        graph.replay()
    except CaptureError:
        return
    raise AssertionError("freed pinned memory was not noticed")


MIXED = ((6, 4), (5, 3), (8,), (7,), (8, 4, 3, 3), (3, 2, 3, 3))
"""One shape of each kind: matrix, convolution or vector, aligned to 16 bytes or not."""


def launches(name: str, most: int, **arguments: Any) -> None:
    """A step has the same number of launches for any number of tensors, and at most ``most``. Copies count, too."""
    counts = []
    for many in (1, 2):
        run = Run(name, graphs="off", shapes=MIXED * many, **arguments).step(1)
        run.gradients()
        with counting() as count:
            run.optimizer.step(loss=on_device(torch.tensor(1.0)))
        counts.append(count)
    assert counts[0] == counts[1], counts
    assert sum(counts[0].values()) <= most, counts[0]


VARIANTS: dict[str, dict[str, Any]] = {
    "clip_norm": {"clip_norm": 0.5},
    "accumulate": {"accumulate": 2},
    "skip": {"nonfinite": "skip"},
    "master": {"master_weights": True, "dtype": torch.bfloat16},
    "L2": {"decay": "l2", "weight_decay": 1e-3},
}


def accepted(name: str, variant: str) -> bool:
    names = inspect.signature(TABLE[name].cls).parameters
    return all(argument in names or argument == "dtype" for argument in VARIANTS[variant])


EVERY: dict[str, Callable[[], None]] = {
    **{f"own graph, {name}": partial(own_graph, name, QUICK, 4, 2) for name in LEARNED},
    **{f"the caller's graph, {name}": partial(user_capture, name) for name in TABLE},
}
"""The optimizers of the quick cases, which cover every kernel."""
CASES: dict[str, Callable[[], None]] = {
    "control": control,
    **EVERY,
    **{f"own graph of CeloAdam, {case.__name__}": partial(case, "CeloAdam") for case in (own_copies, own_failure)},
    "own graph of CELO2, strided gradients": partial(own_changing_kinds, "CELO2"),
    "own graph of CELO2, unaligned gradients": partial(own_changing_alignment, "CELO2"),
    **{
        f"the caller's graph, other steps, {name}": partial(user_other_steps, name)
        for name in ("Celo", "CELO2", "Muon")
    },
    "own graph in the caller's": partial(own_in_other_capture, "ELO"),
    **{f"the caller's graph, lr, {name}": partial(user_lr, name) for name in ("CeloAdam", "Muon")},
    **{f"the caller's graph, errors, {name}": partial(user_errors, name) for name in ("CeloAdam", "Muon")},
    "the caller's graph, autograd": partial(user_autograd, "CeloAdam"),
    "launches, CeloAdam": partial(launches, "CeloAdam", 88),
}
SLOW: dict[str, Callable[[], None]] = {
    **{name: case for name, case in EVERY.items() if name not in CASES},
    **{f"the caller's graph, lr, {name}": partial(user_lr, name) for name in ("VeLO", "CELO2")},
    **{f"own graph, long, {name}": partial(own_graph, name, LONG, 24, 6) for name in LEARNED},
    **{
        f"own graph, {variant}, {name}": partial(own_graph, name, QUICK, 8, least, **VARIANTS[variant])
        for name in LEARNED
        for variant, least in (("clip_norm", 4), ("accumulate", 1))
        if accepted(name, variant)
    },
    **{
        f"own graph, skipped steps, {name}": partial(own_graph, name, SKIPPED, 7, 4, nonfinite="skip")
        for name in LEARNED
    },
    **{
        f"the caller's graph, {variant}, {name}": partial(user_capture, name, **VARIANTS[variant])
        for name in TABLE
        for variant in VARIANTS
        if variant != "accumulate" and accepted(name, variant)
    },
    **{f"the caller's graph, eager, {name}": partial(user_capture, name, backend="eager") for name in TABLE},
    **{f"the caller's graph, errors, {name}": partial(user_errors, name) for name in TABLE},
    "launches, ELO": partial(launches, "ELO", 40, clip_norm=None),
    "launches, ELO with clipping": partial(launches, "ELO", 44),
    "launches, CELO2's rule": partial(launches, "CELO2-base", 40),
    "launches, VeLO": partial(launches, "VeLO", 145),
    "own graph, budget": partial(own_budget, "CeloAdam"),
}


def main(names: Sequence[str]) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    results: dict[str, str | None] = {}
    for name in names or CASES:
        started, results[name] = time.perf_counter(), None
        double.current, double.fails = None, False
        try:
            {**CASES, **SLOW}[name]()
        except Exception:
            results[name] = traceback.format_exc()
        print(f"{name}: {time.perf_counter() - started:.1f} s", file=sys.stderr)
    print(json.dumps(results))


if __name__ == "__main__":
    install_gpu()
    double = install_graphs()
    main(sys.argv[1:])
