"""The contract: ``torch.compile`` of a training step that includes the optimizer.

Backend ``aot_eager`` traces and functionalizes like inductor but runs torch's own kernels: seconds instead of minutes.
One slow test runs inductor.
"""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from contract_table import CONTROLLED, TABLE, Entry, holds, make, same
from margins import check_close
from rounding import Simulation, simulate
from torch import Tensor, nn
from torch._dynamo.utils import counters

from pylo_zoo.errors import ZooError

STATE_RECOMPILES = torch.__version__ < "2.8"
"""torch 2.6 guards the length of a parameter group, and a learned optimizer's first step adds its state there, so the
second call compiles again. 2.8 does not; 2.7 was not tried."""
LRS: dict[str, Callable[[], Any]] = {"tensor": lambda: torch.tensor(0.1), "float": lambda: 0.1}


def run(
    entry: Entry,
    lr: Any,
    compiler: str | None,
    calls: int = 5,
    warm: int = 1,
    dtype: torch.dtype = torch.float32,
    **more: Any,
) -> tuple[list[float], list[nn.Parameter]]:
    """Losses and parameters of a short run with a schedule; after ``warm`` calls a recompilation is an error."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 6, bias=False)), torch.randn(16, 5)
    model, x = model.to(dtype), x.to(dtype)
    if entry.weights is None:
        more["ns_dtype"] = dtype
    optimizer = make(entry, model.parameters(), lr=lr, **more)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)

    def training_step(x: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step(loss=loss.detach())
        return loss.detach()

    torch.compiler.reset()
    counters.clear()
    step = training_step if compiler is None else torch.compile(training_step, backend=compiler)
    losses = []
    for call in range(calls):
        stance = torch.compiler.set_stance("default" if compiler is None or call < warm else "fail_on_recompile")
        with stance, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "lr has fallen")
            warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf")  # dynamo reads it
            warnings.filterwarnings("ignore", "Guards may run slower on Python 3.13.0")  # about Python, not a step
            losses.append(float(step(x)))
        scheduler.step()
    return losses, list(model.parameters())


def check_same(one: Any, other: Any, entry: Entry, **options: Any) -> None:
    """Check losses and parameters of two runs within each run's float32 roundings (rounding.py)."""
    first, second = ((torch.tensor(each[0]), *each[1]) for each in (one, other))
    for k, (a, b) in enumerate(zip(first, second, strict=True)):
        check_close(a, b, 2 * displaced(entry, **options).distance(k), f"parameter {k}" if k else "losses")


def displaced(entry: Entry, **options: Any) -> Simulation:
    """The run in float64, including the model's forward and backward pass."""

    def double() -> list[Tensor]:
        losses, params = run(entry, torch.tensor(0.1), None, dtype=torch.float64, backend="eager", **options)
        return [torch.tensor(losses, dtype=torch.float64), *params]

    with torch.enable_grad():
        return simulate(double, draws=2)


@holds("compile")
@pytest.mark.parametrize("lr", LRS)
@pytest.mark.parametrize("steps", ["auto", "eager"])
def test_a_compiled_step_matches_and_lr_does_not_recompile(entry: Entry, lr: str, steps: str) -> None:
    """A tensor ``lr`` compiles once. A float ``lr`` recompiles at its first change, as always in torch, and not again.

    With ``backend="auto"`` kernels run between the graphs; with "eager" the graphs contain the update.
    """
    eager = run(entry, LRS[lr](), None)
    compiler, warm = ("aot_eager", 1) if lr == "tensor" else ("eager", 2)
    warm = 2 if STATE_RECOMPILES and entry.weights is not None else warm
    compiled = run(entry, LRS[lr](), compiler, warm=warm, backend=steps)
    assert counters["graph_break"]  # at backward() and zero_grad(), as with every optimizer
    assert not [reason for reason in counters["graph_break"] if "data-dependent" in reason.lower()]
    assert not same(compiled[1], run(entry, LRS[lr](), None, calls=1)[1])
    check_same(compiled, eager, entry)


@pytest.mark.parametrize(
    ("options", "warm"),
    [({"nonfinite": "skip"}, 1), ({"decay": "l2", "weight_decay": 0.1}, 1), ({"accumulate": 2}, 2)],
)
def test_branching_options_compile(options: dict[str, Any], warm: int) -> None:
    entry = TABLE["VeLO"]
    eager = run(entry, torch.tensor(0.1), None, **options)
    warm = 2 if STATE_RECOMPILES else warm
    for steps in ("auto", "eager"):
        check_same(run(entry, torch.tensor(0.1), "eager", warm=warm, backend=steps, **options), eager, entry, **options)


def run_bare(entry: Entry, batches: Tensor, compiler: str | None, **more: Any) -> tuple[Any, list[nn.Parameter]]:
    """Run over ``batches [calls, 16, 5]`` and pass each loss with ``set_loss``; return optimizer and parameters."""
    torch.manual_seed(0)
    model = nn.Linear(5, 6).to(batches.dtype)
    if entry.weights is None:
        more["ns_dtype"] = batches.dtype
    optimizer = make(entry, model.parameters(), lr=torch.tensor(0.1), **more)

    def training_step(x: Tensor) -> None:
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        optimizer.set_loss(loss.detach())
        optimizer.step()

    torch.compiler.reset()
    step = training_step if compiler is None else torch.compile(training_step, backend=compiler)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf")  # dynamo reads it
        warnings.filterwarnings("ignore", "Guards may run slower on Python 3.13.0")  # about Python, not a step
        for x in batches:
            step(x)
    return optimizer, list(model.parameters())


def check_bare(compiled: list[nn.Parameter], entry: Entry, batches: Tensor, **more: Any) -> None:
    """Compare a compiled :func:`run_bare` with an uncompiled run, within the float32 roundings of both."""

    def double() -> list[Tensor]:
        return list(run_bare(entry, batches.double(), None, backend="eager", **more)[1])

    with torch.enable_grad():
        bound = simulate(double, draws=2)
    for k, (one, other) in enumerate(zip(compiled, run_bare(entry, batches, None, **more)[1], strict=True)):
        check_close(one, other, 2 * bound.distance(k), f"parameter {k}")


@pytest.mark.parametrize("name", CONTROLLED)
def test_set_loss_inside_a_compiled_step(name: str) -> None:
    entry = TABLE[name]
    batches = torch.randn(4, 16, 5, generator=torch.Generator().manual_seed(1))
    optimizer, compiled = run_bare(entry, batches, "eager")
    check_bare(compiled, entry, batches)
    with pytest.raises(ZooError, match="this step has none"):
        optimizer.step()  # each loss was used once


@pytest.mark.parametrize("name", ["VeLO", "ELO", "Muon"])
def test_a_compiled_step_counts_the_steps_it_skips(name: str) -> None:
    """With ``nonfinite="skip"``; with ``"raise"`` the compiled function raises the error and nothing has moved."""
    batches = torch.randn(5, 16, 5, generator=torch.Generator().manual_seed(1))
    batches[1, 0, 0] = batches[3, 0, 0] = torch.nan
    optimizer, compiled = run_bare(TABLE[name], batches, "eager", nonfinite="skip")
    assert optimizer.skipped_steps == 2
    check_bare(compiled, TABLE[name], batches, nonfinite="skip")
    with pytest.raises(ZooError, match="is not finite"):
        run_bare(TABLE[name], batches, "eager", nonfinite="raise")


def test_a_recompilation_is_detected() -> None:
    """The check above can fail: a float ``lr`` recompiles at its first change."""
    with pytest.raises(RuntimeError, match="fail_on_recompile"):
        run(TABLE["ELO"], 0.1, "eager")


@pytest.mark.parametrize("name", TABLE)
def test_an_eager_step_reads_no_value_inside_a_graph(name: str) -> None:
    """Reading one breaks the graph, and then every parameter's shape compiles its own."""
    params = [nn.Parameter(torch.randn(shape)) for shape in ((5, 6), (7, 3), (4,))]
    optimizer = make(TABLE[name], params, backend="eager")
    torch.compiler.reset()
    counters.clear()
    step = torch.compile(lambda loss: optimizer.step(loss=loss), backend="eager")
    for call in range(3):
        for p in params:
            p.grad = torch.randn_like(p)
        step(torch.tensor(1.0 + call))
    breaks = {reason: number for reason, number in counters["graph_break"].items() if "item()" in reason}
    assert breaks == {}


def test_importing_the_optimizers_does_not_import_the_compiler() -> None:
    script = "import sys, pylo_zoo.optim; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False, timeout=120).returncode == 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # in inductor's own imports
@pytest.mark.parametrize("steps", ["auto", "eager"])
@pytest.mark.parametrize("name", ["VeLO", "CELO2", "Muon"])
def test_inductor_compiles_it(name: str, steps: str) -> None:
    entry = TABLE[name]
    check_same(run(entry, torch.tensor(0.1), "inductor", backend=steps), run(entry, torch.tensor(0.1), None), entry)
