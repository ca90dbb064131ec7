"""The runs of a comparison: learning rates are searched for first, then every optimizer trains with every seed.

Each run has a directory of its own. One that is finished is read and not run again, one that was cut off goes on: the
whole comparison can be interrupted at any time.
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

from pylo_zoo.compare import machine
from pylo_zoo.compare.figures import Course, final_loss
from pylo_zoo.compare.plan import EVALUATIONS, LAST, TUNING_SEED, Comparison, Entrant, slug
from pylo_zoo.errors import ZooError
from pylo_zoo.files import explained, is_empty, read_text, sweep_folder, write_file
from pylo_zoo.train.loop import (
    CHECKPOINT,
    CHECKPOINTS,
    LEAST_FREE,
    METRICS,
    RESULT,
    RUN,
    Diverged,
    Run,
    Step,
    TrainPlan,
    train,
)
from pylo_zoo.train.recipes import Recipe

SHARED = "comparison.json"
RUNS = "runs"
WORDS = {
    "task": "TASK",
    "options": "--set",
    "steps": "--steps",
    "tune_steps": "--tune-steps",
    "schedule": "--schedule",
    "device": "--device",
    "threads": "--threads",
}
"""What the fields of comparison.json are called on the command line."""
PROBED, PROBING = 5, 1.0
"""Steps and seconds, at most, that tell how long a step of an optimizer takes."""
EXTENSIONS = 2
"""So often the grid grows by one learning rate, while the best lies at its edge."""
BYTES_A_STEP = 256
"""Of a line of metrics, at most."""


@dataclass(frozen=True)
class Trial:
    """A learning rate that was tried: its final loss, None where the run diverged, and the machine's load meanwhile."""

    lr: float
    loss: float | None
    seconds: float
    load: float | None = None


@dataclass(frozen=True)
class Tuning:
    """A search for a learning rate.

    Attributes:
        trials: by learning rate, ascending.
        lr: the best of them.
        steps: of each run.
        extended: how often the grid grew.
        at_edge: whether the best still lies at the grid's edge, so that a better one may lie beyond.
    """

    trials: list[Trial]
    lr: float
    steps: int
    extended: int
    at_edge: bool

    @property
    def seconds(self) -> float:
        """That training took, all in all."""
        return sum(each.seconds for each in self.trials)


@dataclass
class Outcome:
    """What came of one optimizer.

    Attributes:
        entrant: the optimizer.
        recipe: that its runs had, with the learning rate that was found.
        tuning: the search, if there was one.
        courses: a run a seed.
        parameters: of the model.
        made: how many of its runs were made now; the others were found.
    """

    entrant: Entrant
    recipe: Recipe
    tuning: Tuning | None = None
    courses: list[Course] = field(default_factory=list)
    parameters: int = 0
    made: int = 0


class Watch(Protocol):
    """Who looks on while a comparison runs."""

    def expect(self, steps: dict[str, int], runs: int) -> None:
        """Hear how many steps are still to come, by optimizer, in how many runs."""
        ...

    def pace(self, label: str, seconds: float) -> None:
        """Hear how long a step of an optimizer takes, of which no run was made yet."""
        ...

    def run(self, title: str, label: str, run: Run) -> AbstractContextManager[Callable[[Step], None]]:
        """A function that hears of every step of ``run``."""
        ...

    def done(self, title: str, course: Course) -> None:
        """Hear what came of a run, made or found."""
        ...


class Nobody:
    """A :class:`Watch` that is not interested."""

    def expect(self, steps: dict[str, int], runs: int) -> None:
        """Nothing."""

    def pace(self, label: str, seconds: float) -> None:
        """Nothing."""

    def run(self, title: str, label: str, run: Run) -> AbstractContextManager[Callable[[Step], None]]:
        """Nothing, too."""
        return nullcontext(lambda step: None)

    def done(self, title: str, course: Course) -> None:
        """Nothing either."""


def prepare(comparison: Comparison, out: Path) -> None:
    """Make the directory of the comparison, or find the same comparison in it.

    Optimizers and seeds may be added to a comparison; what its runs have in common has to stay.

    Raises:
        ZooError: the directory cannot be written, is too full, or holds something else.
    """
    ours = json.loads(json.dumps(comparison.shared()))
    path = out / SHARED
    if path.is_file():
        try:
            theirs = json.loads(read_text(path))
        except (OSError, ValueError) as error:
            raise ZooError(f"{path} cannot be read: {error}.", "Give another directory with --out.") from error
        if theirs != ours:
            said = _differences(theirs if isinstance(theirs, dict) else {}, ours)
            raise ZooError(
                f"{out} holds another comparison: {said}.", "Give another directory with --out, or the same words."
            )
    with explained(out):
        if not path.is_file() and out.exists() and (not out.is_dir() or not is_empty(out)):
            raise ZooError(f"{out} is in use already.", "Give another directory with --out.")
        (out / RUNS).mkdir(parents=True, exist_ok=True)
        sweep_folder(out)
        free = shutil.disk_usage(out).free
    model = comparison.task.model(0)
    runs = sum(_expected(comparison).values())
    needed = CHECKPOINTS * sum(p.numel() * p.element_size() for p in model.parameters()) + LEAST_FREE
    needed += BYTES_A_STEP * runs
    if free < needed:
        raise ZooError(
            f"{out} has {free:,} bytes left, and the comparison may need {needed:,}.",
            "Make room, or give another directory with --out.",
        )
    write_file(path, (json.dumps(ours, indent=2) + "\n").encode())


def _differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """What two comparisons do not have in common, in the words of the command line."""
    other = [key for key in WORDS if theirs.get(key) != ours[key]]
    if all(each.get("tune_steps") == each.get("steps") for each in (theirs, ours)) and "steps" in other:
        other.remove("tune_steps")  # it only follows
    said = [f"{WORDS[key]} is {_value(theirs.get(key))} there and {_value(ours[key])} here" for key in other]
    return "; ".join(said) or f"{SHARED} has other fields"


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}={each}" for key, each in value.items()) or "nothing"
    return "the default" if value is None else str(value)


def run_all(comparison: Comparison, out: Path, watch: Watch | None = None) -> list[Outcome]:
    """Tune, then train: for each seed every optimizer in turn, so that what else the machine does meets them all.

    Raises:
        KeyboardInterrupt: somebody pressed Ctrl-C; the same call goes on where it ended.
        ZooError: the disk refuses, or a directory holds another run.
    """
    watch = watch or Nobody()
    watch.expect(_expected(comparison), _count(comparison))
    runner = _Runner(comparison, out / RUNS, watch)
    outcomes = []
    for entrant in comparison.entrants:
        tuning = runner.tune(entrant) if entrant.tuned else None
        outcomes.append(Outcome(entrant, entrant.recipe.tuned(tuning.lr) if tuning else entrant.recipe, tuning))
    for seed in range(comparison.wanted.seeds):
        for outcome in outcomes:
            outcome.courses.append(runner.course(outcome.recipe, comparison.steps, seed))
    parameters = sum(p.numel() for p in comparison.task.model(0).parameters())
    for outcome in outcomes:
        outcome.parameters, outcome.made = parameters, runner.made[outcome.entrant.label]
    return outcomes


def _expected(comparison: Comparison) -> dict[str, int]:
    """Steps of each optimizer, while no grid has grown."""
    return {
        each.label: comparison.wanted.seeds * comparison.steps
        + (len(each.recipe.grid) * comparison.tune_steps if each.tuned else 0)
        for each in comparison.entrants
    }


def _count(comparison: Comparison) -> int:
    return sum(comparison.wanted.seeds + (len(each.recipe.grid) if each.tuned else 0) for each in comparison.entrants)


class _Runner:
    """Makes runs in ``place``, or finds them there."""

    def __init__(self, comparison: Comparison, place: Path, watch: Watch) -> None:
        self.comparison, self.place, self.watch = comparison, place, watch
        self.made = Counter[str]()
        self.timed: set[str] = set()

    def tune(self, entrant: Entrant) -> Tuning:
        """The best learning rate of the grid, which grows while the best is at its edge."""
        steps = self.comparison.tune_steps
        grid = sorted({*entrant.recipe.grid})
        trials = {lr: self._trial(entrant, lr) for lr in grid}
        extended = 0
        while extended < EXTENSIONS and (beyond := _beyond(trials)) is not None:
            self.watch.expect({entrant.label: steps}, 1)
            trials[beyond] = self._trial(entrant, beyond)
            extended += 1
        ordered = [trials[lr] for lr in sorted(trials)]
        return Tuning(ordered, best(ordered).lr, steps, extended, _beyond(trials) is not None)

    def _trial(self, entrant: Entrant, lr: float) -> Trial:
        course = self.course(entrant.recipe.tuned(lr), self.comparison.tune_steps, TUNING_SEED)
        loss = final_loss(course, max(1, round(LAST * self.comparison.tune_steps)))
        return Trial(lr, loss, sum(course.seconds), course.load)

    def course(self, recipe: Recipe, steps: int, seed: int) -> Course:
        """The run of ``recipe`` with ``seed``, from the disk where it is finished."""
        tuning = seed == TUNING_SEED
        out = self.place / f"{slug(recipe.label)}-lr{recipe.lr:.6g}-{'tuning' if tuning else f'seed{seed}'}"
        plan = TrainPlan(
            steps,
            seed,
            self.comparison.device,
            evaluate_every=0 if tuning else max(1, steps // EVALUATIONS),
            save_every=max(50, steps // 5),
        )
        run = Run(self.comparison.task, recipe, plan, out)
        title = f"{recipe.label}, lr {recipe.lr:.3g}, {'tuning' if tuning else f'seed {seed}'}"
        if not _finished(run):
            self._time()
            load = machine.load()
            try:
                with self.watch.run(title, recipe.label, run) as listen:
                    train(run, resume=(out / RUN).is_file(), listen=listen)
            finally:
                if (out / RUN).is_file():
                    machine.keep(out, load)
            self.made[recipe.label] += 1
            (out / CHECKPOINT).unlink(missing_ok=True)  # nothing goes on from here, and many runs fill a disk
        else:
            self.watch.expect({recipe.label: -steps}, 0)
        course = read(out, seed)
        if recipe.label not in self.timed and course.losses:
            self.timed.add(recipe.label)
            self.watch.pace(recipe.label, sum(course.seconds) / len(course.losses))
        self.watch.done(title, course)
        return course

    def _time(self) -> None:
        """Try a few steps of each optimizer that is not timed yet, so that the time left is known from the start."""
        for entrant in self.comparison.entrants:
            if entrant.label in self.timed:
                continue
            self.timed.add(entrant.label)
            run = Run(self.comparison.task, entrant.recipe, TrainPlan(PROBED, TUNING_SEED, self.comparison.device))
            start, seconds = time.monotonic(), []
            with suppress(Diverged):
                for step in run.steps():
                    seconds.append(step.model_seconds + step.optimizer_seconds)
                    if time.monotonic() - start > PROBING:
                        break
            if seconds:  # the first one warms up
                self.watch.pace(entrant.label, statistics.median(seconds[1:] or seconds))


def best(trials: list[Trial]) -> Trial:
    """The one with the least loss; where all diverged, the one with the least learning rate."""
    return min(trials, key=lambda each: (math.inf if each.loss is None else each.loss, each.lr))


def _beyond(trials: dict[float, Trial]) -> float | None:
    """The next learning rate outside the grid, if the best one is at its edge; the ratio is the edge's own."""
    rates = sorted(trials)
    if len(rates) < 2:
        return None
    found = best(list(trials.values())).lr
    ends = {rates[0]: rates[0] ** 2 / rates[1], rates[-1]: rates[-1] ** 2 / rates[-2]}
    return float(f"{ends[found]:.3g}") if found in ends else None


def _finished(run: Run) -> bool:
    """Whether ``run`` is on the disk, to its end.

    Raises:
        ZooError: another run is.
    """
    assert run.out is not None
    if not (run.out / RESULT).is_file():
        return False
    try:
        described = json.loads(read_text(run.out / RUN))
    except (OSError, ValueError) as error:
        raise ZooError(f"{run.out} holds no run: {error}.", "Remove it, and run the command again.") from error
    if described != json.loads(json.dumps(run.describe())):
        raise ZooError(
            f"The run in {run.out} is another one: weights or settings have changed since.",
            "Give another directory with --out, or remove that run.",
        )
    return True


def read(out: Path, seed: int) -> Course:
    """What a finished run wrote down.

    Raises:
        ZooError: a file of it is missing or damaged.
    """
    try:
        result: dict[str, Any] = json.loads(read_text(out / RESULT))
        lines = list(_lines(out / METRICS))
        return Course(
            seed=seed,
            losses=[float(line["loss"]) for line in lines],
            model_seconds=[float(line["model_seconds"]) for line in lines],
            optimizer_seconds=[float(line["optimizer_seconds"]) for line in lines],
            evaluations={int(line["step"]) + 1: line["evaluation"] for line in lines if "evaluation" in line},
            stopped=result["diverged"],
            state_bytes=int(result["state_bytes"]),
            load=machine.kept(out),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ZooError(f"The run in {out} is damaged: {error}.", "Remove it, and run the command again.") from error


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    for line in read_text(path).splitlines():
        yield json.loads(line)
