"""The runs of a comparison: tune the learning rates, then train every optimizer with every seed.

Each run has its own directory. A finished run is read from there, and an interrupted one is resumed, so a comparison
can be interrupted at any time.
"""

from __future__ import annotations

import json
import math
import shutil
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pylo_zoo.errors import ZooError, reason
from pylo_zoo.experiments.compare import machine
from pylo_zoo.experiments.compare.figures import RunRecord, final_loss
from pylo_zoo.experiments.compare.plan import EVALUATIONS, LAST, TUNING_SEED, Comparison, Entrant, slug
from pylo_zoo.experiments.train.loop import (
    CHECKPOINT,
    CHECKPOINTS,
    METRICS,
    MIN_FREE,
    RESULT,
    RUN,
    Diverged,
    Run,
    Step,
    TrainPlan,
    train,
)
from pylo_zoo.experiments.train.recipes import Recipe
from pylo_zoo.files import read_text, translate_os_errors, write_file
from pylo_zoo.leftovers import is_empty, sweep_folder

SHARED = "comparison.json"
RUNS = "runs"
OPTION_NAMES = {
    "task": "TASK",
    "options": "--set",
    "steps": "--steps",
    "tune_steps": "--tune-steps",
    "schedule": "--schedule",
    "device": "--device",
    "threads": "--threads",
}
"""The command-line option of each field in comparison.json."""
TIMING_STEPS, TIMING_SECONDS = 5, 1.0
"""Upper bounds of a timing run, which estimates the step time of an optimizer."""
EXTENSIONS = 2
"""How often the grid may grow by one learning rate if the best one is at its edge."""
BYTES_PER_STEP = 256
"""Upper bound of a line of metrics."""
ANOTHER = "Choose another directory with --out."
AGAIN = "Remove it, and run the command again."


@dataclass(frozen=True)
class Trial:
    """A learning rate that was tried. ``loss`` is the final loss, or None if the run diverged."""

    lr: float
    loss: float | None
    seconds: float
    load: float | None = None


@dataclass(frozen=True)
class Tuning:
    """The result of tuning a learning rate.

    Attributes:
        trials: the trials, by ascending learning rate.
        lr: the best learning rate.
        steps: steps per run.
        extended: how often the grid grew.
        at_edge: whether the best learning rate is at the edge of the grid, so a better one may be outside.
    """

    trials: list[Trial]
    lr: float
    steps: int
    extended: int
    at_edge: bool

    @property
    def seconds(self) -> float:
        """Training time of all trials."""
        return sum(each.seconds for each in self.trials)


@dataclass
class Outcome:
    """The runs of one optimizer.

    Attributes:
        entrant: the optimizer.
        recipe: the recipe of its runs, with the tuned learning rate.
        tuning: the result of tuning, or None.
        records: one run per seed.
        parameters: number of parameters of the model.
        new_runs: number of runs that this process trained; the others were read from disk.
    """

    entrant: Entrant
    recipe: Recipe
    tuning: Tuning | None = None
    records: list[RunRecord] = field(default_factory=list)
    parameters: int = 0
    new_runs: int = 0


class Monitor(Protocol):
    """Receives the progress of a comparison."""

    def expect(self, steps: dict[str, int], runs: int) -> None:
        """Add ``runs`` runs, with ``steps`` by optimizer, to the remaining work."""
        ...

    def pace(self, label: str, seconds: float) -> None:
        """Receive the step time of an optimizer before its first run."""
        ...

    def run(self, title: str, label: str, run: Run) -> AbstractContextManager[Callable[[Step], None]]:
        """Return the callback for the steps of ``run``."""
        ...

    def done(self, title: str, record: RunRecord) -> None:
        """Receive a finished run, trained now or read from disk."""
        ...


class NullMonitor:
    """A :class:`Monitor` that ignores everything."""

    def expect(self, steps: dict[str, int], runs: int) -> None:
        pass

    def pace(self, label: str, seconds: float) -> None:
        pass

    def run(self, title: str, label: str, run: Run) -> AbstractContextManager[Callable[[Step], None]]:
        return nullcontext(lambda step: None)

    def done(self, title: str, record: RunRecord) -> None:
        pass


def prepare(comparison: Comparison, out: Path) -> None:
    """Create the directory of the comparison, or check that it contains the same comparison.

    Optimizers and seeds may be added later; the settings that all runs share must stay.

    Raises:
        ZooError: the directory cannot be written, has too little space, or contains something else.
    """
    ours = json.loads(json.dumps(comparison.shared()))
    path = out / SHARED
    if path.is_file():
        try:
            theirs = json.loads(read_text(path))
        except (OSError, ValueError) as error:
            raise ZooError(
                f"{path} cannot be read: {reason(error)}.", "Choose another directory with --out."
            ) from error
        if theirs != ours:
            differences = _differences(theirs if isinstance(theirs, dict) else {}, ours)
            raise ZooError(
                f"{out} contains another comparison: {differences}.",
                "Choose another directory with --out, or the same options.",
            )
    with translate_os_errors(out):
        if not path.is_file() and out.exists() and (not out.is_dir() or not is_empty(out)):
            problem = "is not empty" if out.is_dir() else "is a file"
            raise ZooError(f"{out} {problem}.", ANOTHER)
        (out / RUNS).mkdir(parents=True, exist_ok=True)
        sweep_folder(out)
        free = shutil.disk_usage(out).free
    model = comparison.task.model(0)
    steps = sum(_expected_steps(comparison).values())
    needed = CHECKPOINTS * sum(p.numel() * p.element_size() for p in model.parameters()) + MIN_FREE
    needed += BYTES_PER_STEP * steps
    if free < needed:
        raise ZooError(
            f"{out} has {free:,} bytes left, and the comparison may need {needed:,}.",
            "Free disk space, or pass another directory with --out.",
        )
    write_file(path, (json.dumps(ours, indent=2) + "\n").encode())


def _differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """The settings in which two comparisons differ, as command-line options."""
    keys = [key for key in OPTION_NAMES if theirs.get(key) != ours[key]]
    if all(each.get("tune_steps") == each.get("steps") for each in (theirs, ours)) and "steps" in keys:
        keys.remove("tune_steps")  # it differs only because its default is steps
    clauses = [
        f"{OPTION_NAMES[key]} is {_format_value(theirs.get(key))} there and {_format_value(ours[key])} here"
        for key in keys
    ]
    return "; ".join(clauses) or f"{SHARED} has other fields"


def _format_value(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}={each}" for key, each in value.items()) or "nothing"
    return "the default" if value is None else str(value)


def run_all(comparison: Comparison, out: Path, monitor: Monitor | None = None) -> list[Outcome]:
    """Tune, then train. For each seed the optimizers run in turn, so other load on the machine affects all of them.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed. The same call resumes.
        ZooError: a file cannot be written, or a directory contains another run.
    """
    monitor = monitor or NullMonitor()
    monitor.expect(_expected_steps(comparison), _expected_runs(comparison))
    runner = _Runner(comparison, out / RUNS, monitor)
    outcomes = []
    for entrant in comparison.entrants:
        tuning = runner.tune(entrant) if entrant.tuned else None
        outcomes.append(Outcome(entrant, entrant.recipe.with_lr(tuning.lr) if tuning else entrant.recipe, tuning))
    for seed in range(comparison.request.seeds):
        for outcome in outcomes:
            outcome.records.append(runner.run(outcome.recipe, comparison.steps, seed))
    parameters = sum(p.numel() for p in comparison.task.model(0).parameters())
    for outcome in outcomes:
        outcome.parameters, outcome.new_runs = parameters, runner.new_runs[outcome.entrant.label]
    return outcomes


def _expected_steps(comparison: Comparison) -> dict[str, int]:
    """Steps of each optimizer, if no grid grows."""
    return {
        each.label: comparison.request.seeds * comparison.steps
        + (len(each.recipe.grid) * comparison.tune_steps if each.tuned else 0)
        for each in comparison.entrants
    }


def _expected_runs(comparison: Comparison) -> int:
    return sum(comparison.request.seeds + (len(each.recipe.grid) if each.tuned else 0) for each in comparison.entrants)


class _Runner:
    """Trains runs in ``directory``, or reads finished ones from it."""

    def __init__(self, comparison: Comparison, directory: Path, monitor: Monitor) -> None:
        self.comparison, self.directory, self.monitor = comparison, directory, monitor
        self.new_runs = Counter[str]()
        self.timed: set[str] = set()

    def tune(self, entrant: Entrant) -> Tuning:
        """Find the best learning rate of the grid, which grows while the best one is at its edge."""
        steps = self.comparison.tune_steps
        grid = sorted({*entrant.recipe.grid})
        trials = {lr: self._trial(entrant, lr) for lr in grid}
        extended = 0
        while extended < EXTENSIONS and (next_lr := _next_lr(trials)) is not None:
            self.monitor.expect({entrant.label: steps}, 1)
            trials[next_lr] = self._trial(entrant, next_lr)
            extended += 1
        ordered = [trials[lr] for lr in sorted(trials)]
        return Tuning(ordered, best(ordered).lr, steps, extended, _next_lr(trials) is not None)

    def _trial(self, entrant: Entrant, lr: float) -> Trial:
        record = self.run(entrant.recipe.with_lr(lr), self.comparison.tune_steps, TUNING_SEED)
        loss = final_loss(record, max(1, round(LAST * self.comparison.tune_steps)))
        return Trial(lr, loss, sum(record.seconds), record.load)

    def run(self, recipe: Recipe, steps: int, seed: int) -> RunRecord:
        """Train ``recipe`` with ``seed``, or read that run if it is finished."""
        tuning = seed == TUNING_SEED
        out = self.directory / f"{slug(recipe.label)}-lr{recipe.lr:.6g}-{'tuning' if tuning else f'seed{seed}'}"
        plan = TrainPlan(
            steps,
            seed,
            self.comparison.device,
            evaluate_every=0 if tuning else max(1, steps // EVALUATIONS),
            save_every=max(50, steps // 5),
        )
        run = Run(self.comparison.task, recipe, plan, out)
        title = f"{recipe.label}, lr {recipe.lr:.3g}, {'tuning' if tuning else f'seed {seed}'}"
        if not _is_finished(run):
            self._time_steps()
            load = machine.load()
            try:
                with self.monitor.run(title, recipe.label, run) as on_step:
                    train(run, resume=(out / RUN).is_file(), on_step=on_step)
            finally:
                if (out / RUN).is_file():
                    machine.record_load(out, load)
            self.new_runs[recipe.label] += 1
            (out / CHECKPOINT).unlink(missing_ok=True)  # a finished run does not resume, and many runs fill a disk
        else:
            self.monitor.expect({recipe.label: -steps}, 0)
        record = read(out, seed)
        if recipe.label not in self.timed and record.losses:
            self.timed.add(recipe.label)
            self.monitor.pace(recipe.label, sum(record.seconds) / len(record.losses))
        self.monitor.done(title, record)
        return record

    def _time_steps(self) -> None:
        """Time a few steps of each optimizer that has not run yet, for an early estimate of the remaining time."""
        for entrant in self.comparison.entrants:
            if entrant.label in self.timed:
                continue
            self.timed.add(entrant.label)
            plan = TrainPlan(TIMING_STEPS, TUNING_SEED, self.comparison.device)
            run = Run(self.comparison.task, entrant.recipe, plan)
            start, seconds = time.monotonic(), []
            with suppress(Diverged):
                for step in run.steps():
                    seconds.append(step.model_seconds + step.optimizer_seconds)
                    if time.monotonic() - start > TIMING_SECONDS:
                        break
            if seconds:  # the first step is a warm-up
                self.monitor.pace(entrant.label, statistics.median(seconds[1:] or seconds))


def best(trials: list[Trial]) -> Trial:
    """The trial with the lowest loss, or with the lowest learning rate if all diverged."""
    return min(trials, key=lambda each: (math.inf if each.loss is None else each.loss, each.lr))


def _next_lr(trials: dict[float, Trial]) -> float | None:
    """The next learning rate outside the grid if the best one is at its edge. It continues the ratio at that edge."""
    rates = sorted(trials)
    if len(rates) < 2:
        return None
    lr = best(list(trials.values())).lr
    ends = {rates[0]: rates[0] ** 2 / rates[1], rates[-1]: rates[-1] ** 2 / rates[-2]}
    return float(f"{ends[lr]:.3g}") if lr in ends else None


def _is_finished(run: Run) -> bool:
    """Whether the directory of ``run`` contains the finished run.

    Raises:
        ZooError: it contains another run.
    """
    assert run.out is not None
    if not (run.out / RESULT).is_file():
        return False
    try:
        stored = json.loads(read_text(run.out / RUN))
    except (OSError, ValueError) as error:
        raise ZooError(f"{run.out} contains no run: {reason(error)}.", AGAIN) from error
    if stored != json.loads(json.dumps(run.describe())):
        raise ZooError(
            f"{run.out} contains a run with other weights or settings.",
            "Choose another directory with --out, or remove that run.",
        )
    return True


def read(out: Path, seed: int) -> RunRecord:
    """Read a finished run.

    Raises:
        ZooError: a file is missing or damaged.
    """
    try:
        result: dict[str, Any] = json.loads(read_text(out / RESULT))
        lines = list(_read_lines(out / METRICS))
        return RunRecord(
            seed=seed,
            losses=[float(line["loss"]) for line in lines],
            model_seconds=[float(line["model_seconds"]) for line in lines],
            optimizer_seconds=[float(line["optimizer_seconds"]) for line in lines],
            evaluations={int(line["step"]) + 1: line["evaluation"] for line in lines if "evaluation" in line},
            stopped=result["diverged"],
            state_bytes=int(result["state_bytes"]),
            load=machine.recorded_load(out),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ZooError(f"The run in {out} is damaged: {reason(error)}.", AGAIN) from error


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    for line in read_text(path).splitlines():
        yield json.loads(line)
