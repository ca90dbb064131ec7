"""The CPU kernels against the eager implementation in float64, within the roundings of float32 (rounding.py)."""

from __future__ import annotations

import logging
import math
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import margins
import pytest
import torch
from adam_cases import AdamCase, step_adam
from margins import check
from rounding import draws_for, simulate, size
from torch import Tensor

from pylo_zoo.errors import ZooError
from pylo_zoo.kernels.base import Normalized, ScratchBuffer, Task
from pylo_zoo.kernels.cpu import Advanced, CpuKernels, build, find_kernels
from pylo_zoo.ops.accumulators import Decays, advance_all, new_accumulators
from pylo_zoo.ops.adam import adam_direction
from pylo_zoo.ops.conditioning import moments
from pylo_zoo.ops.features import FEATURES, normalize
from pylo_zoo.ops.features import mean_square as mean_square_of
from pylo_zoo.ops.layout import LAYOUTS, Layout, axes_of
from pylo_zoo.ops.mlp import Layer
from pylo_zoo.ops.rule import Rule, adafac_rule, celo2_rule, velo_rule
from pylo_zoo.ops.step import learned_step

SHAPES = (
    *((), (1,), (7,), (1000,), (5, 3), (64, 64), (33, 127), (128, 1), (1, 128), (70, 1100)),
    *((16, 8, 3, 3), (8, 8, 3, 3), (64, 3, 3, 3), (32, 1, 3, 3), (6, 4, 5), (2, 3, 5, 5), (4, 8, 16), (3, 40, 70)),
    *((64, 3, 7, 7), (40, 65), (300, 127), (20, 100, 1, 5), (10, 512), (50, 9, 9, 9)),
)


@dataclass(frozen=True)
class Subject:
    """A rule with a network."""

    rule: Rule
    hidden: int
    layers: int = 2
    one_each: bool = False
    """Every parameter has its own network."""
    limit: float = 1000.0
    replace: bool = False


SUBJECTS = {
    "velo": Subject(velo_rule(0.001), 4, one_each=True),
    "velo-narrow": Subject(velo_rule(0.5), 3, layers=1),
    "celo2-relu": Subject(celo2_rule("relu", 0.0, False), 8),
    "celo2-tanh": Subject(celo2_rule("tanh", 0.3, True), 8, layers=3),
    "adafac-4": Subject(adafac_rule(0.001), 4, limit=math.inf),
    "adafac-16": Subject(adafac_rule(0.001), 16, limit=math.inf, replace=True),
    "adafac-32": Subject(adafac_rule(0.001), 32, limit=math.inf, replace=True),
}
REGIMES = ("ordinary", "first", "tiny", "huge", "zeros", "spikes", "nan")


@pytest.fixture(scope="module")
def kernels() -> CpuKernels:
    """Compiled once, into a directory that tests share."""
    result = find_kernels()
    if isinstance(result, str):
        pytest.skip(result)
    return result


def gradient(shape: Sequence[int], regime: str, generator: torch.Generator) -> Tensor:
    g = torch.randn(tuple(shape), generator=generator)
    if regime in ("tiny", "huge", "zeros"):
        return g * {"tiny": 1e-12, "huge": 1e4, "zeros": 0.0}[regime]
    if regime == "spikes":
        return torch.where(torch.rand(g.shape, generator=generator) < 0.01, g * 1e3, g * 1e-3)
    if regime == "nan":
        g.flatten()[-1] = math.nan
    return g * 0.1


def cases(subject: Subject, regime: str, kernels: CpuKernels) -> list[Task]:
    """A parameter of every shape in every layout that the kernels cover, after two ordinary steps."""
    generator = torch.Generator().manual_seed(1)
    decays = Decays(torch.tensor([0.9, 0.99, 0.999]), torch.tensor([0.95]), torch.tensor([0.9, 0.99, 0.999]))
    tasks = []
    for shape in SHAPES:
        for layout in {axes_of(shape or (1,), layout): layout for layout in LAYOUTS}.values():
            p = torch.randn(shape or (1,), generator=generator) * 0.5
            axes = axes_of(tuple(p.shape), layout)
            state = new_accumulators(p, axes)
            for _ in range(0 if regime == "first" else 2):
                advance_all(state, gradient(p.shape, "ordinary", generator), decays, axes)
            g = gradient(p.shape, regime, generator)
            if kernels.covers(p, axes, subject.rule, subject.hidden):
                tasks.append(Task(p, g, state, axes, decays, subject.limit, subject.replace))
    return tasks


def network(subject: Subject, count: int) -> list[Layer]:
    """Weights, one set or ``count`` sets."""
    generator = torch.Generator().manual_seed(2)
    widths = [len(FEATURES) * 2 + 2 if subject.rule.features == tuple(FEATURES) else 28]
    widths += [subject.hidden] * subject.layers + [3]
    bank = (count,) if subject.one_each else ()
    return [
        (torch.randn(*bank, b, a, generator=generator) * a**-0.5, torch.randn(*bank, b, generator=generator) * 0.3)
        for a, b in pairwise(widths)
    ]


def of_parameter(layers: Sequence[Layer], k: int, dtype: torch.dtype) -> list[Layer]:
    return [((w[k] if w.ndim == 3 else w).to(dtype), (b[k] if b.ndim == 2 else b).to(dtype)) for w, b in layers]


def copied(task: Task, dtype: torch.dtype) -> Task:
    state = {name: each.to(dtype, copy=True) for name, each in task.state.items()}
    decays = Decays(*(each.to(dtype) for each in task.decays))
    return task._replace(p=task.p.to(dtype, copy=True), g=task.g.to(dtype), state=state, decays=decays)


@dataclass(frozen=True)
class Eager:
    """The eager results of one parameter."""

    state: Mapping[str, Tensor]
    moments: Tensor
    step: Tensor
    moved: Tensor


COEFFICIENT, SHRINK = 0.1, 0.01


def compute_eager(task: Task, rule: Rule, layers: Sequence[Layer], scale: float = 1.0) -> Eager:
    p, g, state, axes, decays, limit, replace = task
    before = moments(p, state["momentum"], state["second_moment"])
    g = g * scale
    if replace:
        g = torch.nan_to_num(g, posinf=torch.finfo(torch.float32).max, neginf=torch.finfo(torch.float32).min)
    g = g.clamp(-limit, limit)
    step = learned_step(p, g, state, decays, axes, rule, layers)
    return Eager(state, before, step, p - COEFFICIENT * step - SHRINK * p)


class Expected(NamedTuple):
    """A result in float64, in eager float32 for values that overflow it, and the error bound of a correct program."""

    truth: Tensor
    eager: Tensor
    bound: float


def figures(compute_eager: Eager) -> dict[str, Tensor]:
    """The results to compare, by name; moments separately, since their sizes differ."""
    moments = {f"moment {i}": each for i, each in enumerate(compute_eager.moments)}
    return {**compute_eager.state, **moments, "step": compute_eager.step, "moved": compute_eager.moved}


def expected(task: Task, rule: Rule, layers: Sequence[Layer], scale: float = 1.0) -> dict[str, Expected]:
    """What the eager implementation computes, with bounds from the roundings of float32 (rounding.py)."""

    def run(dtype: torch.dtype) -> Eager:
        return compute_eager(copied(task, dtype), rule, [(w.to(dtype), b.to(dtype)) for w, b in layers], scale)

    eager = figures(run(torch.float32))
    simulation = simulate(lambda: list(figures(run(torch.float64)).values()), draws=draws_for(task.p.numel()))
    return {
        name: Expected(simulation.truth[k], each, simulation.distance(k))
        for k, (name, each) in enumerate(eager.items())
    }


def close(got: Tensor, reference: Expected, what: str) -> None:
    """Check ``got`` within its bound of float64, and that the same elements as in eager float32 are not finite."""
    truth, eager, bound = reference
    assert torch.equal(got.isfinite(), eager.isfinite()), what
    finite = eager.isfinite() & truth.isfinite()
    check(size((got.double() - truth)[finite]), bound, what)


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("name", SUBJECTS)
def test_accumulators_moments_steps_and_moves_agree(kernels: CpuKernels, name: str, regime: str) -> None:
    subject = SUBJECTS[name]
    tasks = cases(subject, regime, kernels)
    if regime not in ("ordinary", "spikes"):  # those of several units of work take as long as all others together
        tasks = [task for task in tasks if task.p.numel() < 20_000]
    layers = network(subject, len(tasks))
    references = [expected(t, subject.rule, of_parameter(layers, k, torch.float32)) for k, t in enumerate(tasks)]
    advanced = kernels.advance(tasks, subject.rule, None, moments=True)
    taken, steps = kernels.moments(advanced), kernels.steps(advanced, layers, ScratchBuffer())
    kernels.move(advanced, layers, [COEFFICIENT] * len(tasks), [SHRINK] * len(tasks))
    for k, (task, of_task) in enumerate(zip(tasks, references, strict=True)):
        got = figures(Eager(task.state, taken[k], steps[k], task.p))
        for each, value in got.items():
            close(value, of_task[each], f"{each} of {tuple(task.p.shape)} {task.axes}")


def test_gradients_are_scaled_first(kernels: CpuKernels) -> None:
    subject = SUBJECTS["velo"]
    tasks = cases(subject, "huge", kernels)
    layers = network(subject, len(tasks))
    references = [expected(t, subject.rule, of_parameter(layers, k, torch.float32), 0.25) for k, t in enumerate(tasks)]
    steps = kernels.steps(kernels.advance(tasks, subject.rule, torch.tensor(0.25)), layers, ScratchBuffer())
    for step, of_task in zip(steps, references, strict=True):
        close(step, of_task["step"], f"step of {tuple(step.shape)}")


@pytest.mark.parametrize("name", SUBJECTS)
def test_skipping_unused_moments_changes_no_bit(kernels: CpuKernels, name: str) -> None:
    subject = SUBJECTS[name]
    runs = []
    for with_moments in (True, False):
        tasks = cases(subject, "ordinary", kernels)
        advanced = kernels.advance(tasks, subject.rule, None, moments=with_moments)
        steps = kernels.steps(advanced, network(subject, len(tasks)), ScratchBuffer())
        runs.append([*steps, *(x for task in tasks for x in task.state.values())])
    assert all(map(torch.equal, *runs))


def test_the_scratch_buffer_is_reused_and_grows() -> None:
    room = ScratchBuffer()
    small = room.take([torch.Size([3, 5]), torch.Size([2])])
    assert [tuple(each.shape) for each in small] == [(3, 5), (2,)]
    assert all(each.is_contiguous() and each.data_ptr() % 64 == 0 for each in small)
    again = room.take([torch.Size([20])])
    assert again[0].data_ptr() == small[0].data_ptr()
    (large,) = room.take([torch.Size([100, 7])])
    assert large.shape == (100, 7)


def test_an_owner_receives_the_same_tensors_until_the_buffer_grows(kernels: CpuKernels) -> None:
    room, shapes = ScratchBuffer(), [torch.Size([3, 5]), torch.Size([2])]
    task = cases(SUBJECTS["velo"], "ordinary", kernels)[:1]
    owner = kernels.plan(task, SUBJECTS["velo"].rule)
    views = room.take(shapes, owner)
    assert room.take(shapes, owner) is views
    room.take([torch.Size([1000])])
    again = room.take(shapes, owner)
    assert again is not views
    assert again[0].data_ptr() != views[0].data_ptr()  # the old memory exists as long as the old views


def test_a_plan_of_the_last_pass_steps_other_tensors(kernels: CpuKernels) -> None:
    """A plan's second step, with other values, steps and numbers, equals a new plan's."""
    shapes, results = ((5, 3), (33, 127), (7,)), []
    for planned in (True, False):
        generator, plan = torch.Generator().manual_seed(0), None
        for factor in (0.1, 0.3):
            values, steps = ([torch.randn(s, generator=generator) for s in shapes] for _ in range(2))
            tasks = [Normalized(p, d, (-1,), 1e-9) for p, d in zip(values, steps, strict=True)]
            plan = plan if planned and plan is not None else kernels.plan_normalized(tasks)
            plan.move(values, steps, [factor] * 3, torch.full((3,), factor / 10, dtype=torch.float64))
            results.append(values)
    assert all(map(torch.equal, results[1], results[3]))
    plan = kernels.plan_normalized(tasks)
    before = [p.clone() for p in values]
    for wrong in ([*values[:2], values[2].double()], [*values[:2], torch.zeros(8)]):
        with pytest.raises(ZooError):
            plan.move(wrong, steps, [0.1] * 3, [0.0] * 3)
        with pytest.raises(ZooError):
            plan.move(values, wrong, [0.1] * 3, [0.0] * 3)
    with pytest.raises(ZooError):
        plan.move(values, steps, [0.1] * 2, [0.0] * 3)
    assert all(map(torch.equal, before, values))


def results(kernels: CpuKernels, name: str, threads: int) -> list[Tensor]:
    """Everything that a step writes."""
    subject = SUBJECTS[name]
    tasks = cases(subject, "spikes", kernels)
    layers = network(subject, len(tasks))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        advanced = kernels.advance(tasks, subject.rule, None, moments=True)
        moments = kernels.moments(advanced)
        kernels.move(advanced, layers, torch.full((len(tasks),), COEFFICIENT), [SHRINK] * len(tasks))
    finally:
        torch.set_num_threads(before)
    return [moments, *(x for task in tasks for x in (task.p, *task.state.values()))]


@pytest.mark.parametrize("name", SUBJECTS)
def test_the_number_of_threads_changes_no_bit(kernels: CpuKernels, name: str) -> None:
    one, two, again = (results(kernels, name, threads) for threads in (1, 2, 2))
    assert all(map(torch.equal, one, two))
    assert all(map(torch.equal, two, again))


@pytest.mark.parametrize("name", SUBJECTS)
@pytest.mark.parametrize("layer", [0, -1])
def test_a_corrupted_weight_is_detected(kernels: CpuKernels, name: str, layer: int) -> None:
    subject = SUBJECTS[name]
    tasks = [task for task in cases(subject, "ordinary", kernels) if 100 < task.p.numel() < 5000][:6]
    layers = network(subject, len(tasks))
    references = [
        expected(t, subject.rule, of_parameter(layers, k, torch.float32))["step"] for k, t in enumerate(tasks)
    ]
    layers[layer][0][..., 0, 1] += 0.01  # multiplied, since a weight that is small by chance would hardly change
    steps = kernels.steps(kernels.advance(tasks, subject.rule, None), layers, ScratchBuffer())
    caught = 0
    for step, of_task in zip(steps, references, strict=True):
        try:
            with margins.without_recording():
                close(step, of_task, "step")
        except AssertionError:
            caught += 1
    assert caught >= len(tasks) // 2, "ReLU can switch off a unit for a whole parameter, but not for most"


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("limit", [math.inf, 0.5])
def test_adam_agrees(kernels: CpuKernels, nesterov: bool, limit: float) -> None:
    generator = torch.Generator().manual_seed(3)
    betas = 0.9, 0.95
    tasks, references = [], []
    for k, shape in enumerate([(1,), (7,), (33, 127), (40000,), (70001,)]):
        p, g, m = (torch.randn(shape, generator=generator) for _ in range(3))
        moments = m[None], torch.rand(shape, generator=generator)[None]
        tasks.append(AdamCase(p, g, *moments, k + 1, betas, 1e-8, 1e-10, COEFFICIENT, SHRINK, limit, nesterov))
        references.append(simulate(partial(adam, tasks[-1], 0.5), draws=draws_for(p.numel())))
    step_adam(kernels, tasks, torch.tensor(0.5))
    for task, of_task in zip(tasks, references, strict=True):
        for k, got in enumerate((task.p, task.momentum, task.second_moment)):
            check(size(got.double() - of_task.truth[k]), of_task.distance(k), f"{tuple(task.p.shape)} {k}")


def adam(task: AdamCase, scale: float) -> list[Tensor]:
    """Parameter and moments after the step, in float64."""
    p, g, m, v = (x.to(torch.float64, copy=True) for x in (task.p, task.g, task.momentum, task.second_moment))
    g = (g * scale).clamp(-task.max_gradient, task.max_gradient)
    # float32 stores β and 1 − β separately: β's own error there is one rounding.
    betas = tuple(torch.tensor([beta], dtype=torch.float64) for beta in task.betas)
    direction = adam_direction(
        m, v, g, torch.tensor(task.step), (betas[0], betas[1]), task.eps, task.eps_root, task.nesterov
    )
    return [p - task.coefficient * direction - task.shrink * p, m, v]


@pytest.mark.parametrize(
    ("shape", "layout", "rule", "hidden", "covered"),
    [
        ((64, 64), "torch", velo_rule(0.001), 32, True),
        ((64, 64), "torch", velo_rule(0.001), 33, False),
        ((0, 4), "torch", velo_rule(0.001), 4, False),
        ((2, 3, 5, 5), "torch", celo2_rule("relu", 0.0, False), 8, False),  # factored over the spatial axes
        ((2, 3, 5, 5), "torch", velo_rule(0.001), 4, True),
        ((70, 80, 9, 9), "torch", velo_rule(0.001), 4, False),  # 81 elements between neighbors
        ((16, 8, 3, 3), "torch", celo2_rule("relu", 0.0, False), 8, True),
        ((16, 8, 3, 3), "jax", celo2_rule("relu", 0.0, False), 8, False),
        ((1000,), "torch", celo2_rule("tanh", 0.0, False), 8, True),
        ((64, 64), "torch", Rule(("gradient",), ("gradient",), 0.0, 0.0, 0.0), 4, False),
    ],
)
def test_which_parameters_are_covered(
    kernels: CpuKernels, shape, layout, rule: Rule, hidden: int, covered: bool
) -> None:
    assert kernels.covers(torch.empty(shape), axes_of(shape, layout), rule, hidden) is covered


def test_the_result_of_an_advance_keeps_its_memory_alive(kernels: CpuKernels) -> None:
    subject = SUBJECTS["velo"]
    advanced = kernels.advance(cases(subject, "ordinary", kernels), subject.rule, torch.tensor(1.0), moments=True)
    assert isinstance(advanced, Advanced)
    assert kernels.moments(advanced).isfinite().all()


# --- building -------------------------------------------------------------------------------------------------------

STUB = """#!/bin/sh
echo run >> "$RUNS"
exec c++ "$@"
"""


@pytest.fixture
def own_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels are built in this test's own directory."""
    monkeypatch.delenv("PYLO_ZOO_KERNELS")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder of sources that compile quickly."""
    sources = tmp_path / "sources"
    sources.mkdir()
    (sources / "kernels.cpp").write_text('extern "C" int answer() { return 42; }\n')
    monkeypatch.setattr(build, "SOURCES", sources)
    return sources


@pytest.mark.usefixtures("own_folder")
def test_without_a_compiler_the_reason_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ZooError, match="No C\\+\\+ compiler was found"):
        build.load()


@pytest.mark.parametrize(
    ("cxx", "reason"),
    [("false", "does not compile"), ("no-such-compiler", "is not installed"), ('g++ "', "cannot be parsed")],
)
def test_a_compiler_that_fails_is_named(monkeypatch: pytest.MonkeyPatch, cxx: str, reason: str) -> None:
    monkeypatch.setenv("CXX", cxx)
    with pytest.raises(ZooError, match=f"{re.escape(cxx)}.*{reason}|{reason}"):
        build.load()


@pytest.mark.usefixtures("kernels", "own_folder")
@pytest.mark.parametrize("cxx", [None, "c++", "./named -g0"])
def test_an_existing_library_needs_no_compiler_and_no_write_permission(
    small: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cxx: str | None
) -> None:
    """As in an image that was built on a machine with a compiler."""
    monkeypatch.chdir(tmp_path)
    named = tmp_path / "named"
    named.write_text('#!/bin/sh\nexec c++ "$@"\n')
    named.chmod(0o755)
    if cxx is None:
        monkeypatch.delenv("CXX", raising=False)
    else:
        monkeypatch.setenv("CXX", cxx)
    build.load()
    (library,) = Path(os.environ["PYLO_ZOO_HOME"], "kernels").glob("*.so")
    library.with_suffix(".lock").unlink(missing_ok=True)
    named.unlink()
    library.parent.chmod(0o555)
    (tmp_path / "nothing").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    try:
        assert build.load().answer() == 42
        assert list(library.parent.iterdir()) == [library]
    finally:
        library.parent.chmod(0o755)
    (small / "kernels.cpp").write_text('extern "C" int answer() { return 43; }\n')
    with pytest.raises(ZooError, match=r"No C\+\+ compiler was found|is not installed"):
        build.load()


@pytest.mark.usefixtures("kernels", "own_folder", "small")
def test_compiling_is_announced_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    build.load()
    (record,) = caplog.records
    folder = Path(os.environ["PYLO_ZOO_HOME"], "kernels")
    assert (record.name, record.levelno) == ("pylo_zoo", logging.WARNING)
    assert record.getMessage() == (
        f"compiling the CPU kernels for this machine, once (about ten seconds), into {folder}"
    )
    caplog.clear()
    build.load()
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ZooError):
        build.load()
    assert not caplog.records


@pytest.mark.usefixtures("own_folder")
def test_a_home_that_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PYLO_ZOO_HOME", str(tmp_path / "file"))
    with pytest.raises(ZooError, match="PYLO_ZOO_HOME"):
        build.load()


@pytest.mark.usefixtures("own_folder")
def test_two_processes_share_one_build_and_a_damaged_one_is_replaced(
    kernels: CpuKernels, small: Path, tmp_path: Path
) -> None:
    compiler, runs = tmp_path / "compiler", tmp_path / "runs"
    compiler.write_text(STUB)
    compiler.chmod(0o755)
    code = f"from pathlib import Path\nfrom pylo_zoo.kernels.cpu import build\nbuild.SOURCES = Path({str(small)!r})\n"
    code += "print(build.load().answer())"
    env = {**os.environ, "CXX": str(compiler), "RUNS": str(runs)}

    def loading() -> subprocess.Popen[str]:
        return subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, text=True)

    def compilations() -> int:
        return len(runs.read_text().split())

    both = [loading(), loading()]
    assert [each.communicate()[0].strip() for each in both] == ["42", "42"]
    assert compilations() == 1
    (library,) = Path(env["PYLO_ZOO_HOME"], "kernels").glob("*.so")
    library.write_bytes(library.read_bytes()[:-100])
    assert loading().communicate()[0].strip() == "42"
    assert compilations() == 2
    assert loading().communicate()[0].strip() == "42"
    assert compilations() == 2


@pytest.mark.parametrize("layout", LAYOUTS)
def test_steps_are_normalized_by_matrix(kernels: CpuKernels, layout: Layout) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [*SHAPES, (3, 700, 90), (16, 3, 16, 16), (2, 5, 40, 40)]
    tasks, references = [], []
    for shape in shapes:
        shape = shape or (1,)
        axes, p = axes_of(shape, layout), torch.randn(shape, generator=generator)
        step = torch.randn(shape, generator=generator) * torch.linspace(0.1, 10, shape[-1])
        tasks.append(Normalized(p, step, axes.matrix, 1e-9))
        references.append(
            simulate(partial(normalized, p.double(), step.double(), axes.matrix), draws=draws_for(p.numel()))
        )
    kernels.move_normalized(tasks, [COEFFICIENT] * len(tasks), torch.full((len(tasks),), SHRINK))
    for task, of_task in zip(tasks, references, strict=True):
        check(size(task.p.double() - of_task.truth[0]), of_task.distance(0), f"{tuple(task.p.shape)} {task.over}")


def normalized(p: Tensor, step: Tensor, over: tuple[int, ...]) -> list[Tensor]:
    return [p - COEFFICIENT * normalize(step, mean_square_of(step, over), 1e-9) - SHRINK * p]
