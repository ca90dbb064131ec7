"""The plan of a comparison: task, optimizers, seeds and tuning, checked before any training."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pylo_zoo import registry
from pylo_zoo.errors import UsageError, did_you_mean, quoted
from pylo_zoo.experiments.tasks import Task
from pylo_zoo.experiments.train import recipes, schedules
from pylo_zoo.experiments.train.recipes import BASELINES, Recipe
from pylo_zoo.experiments.train.setup import AUTO, Setup
from pylo_zoo.fetch import Access
from pylo_zoo.parsing import is_finite

TUNING_SEED = 1_000_003
"""Seed of the tuning runs. The reported runs use other seeds, which start at 0."""
EVALUATIONS = 20
"""Evaluations on held-out data per run."""
LAST = 0.05
"""Fraction of a run at its end whose mean loss is the final loss. Curves are smoothed over as many steps."""


@dataclass(frozen=True)
class CompareRequest:
    """The settings of a comparison. The task chooses a field that is None.

    Attributes:
        task: a name in :data:`pylo_zoo.experiments.tasks.TASKS`, or ``module:function``.
        optimizers: names, as in :func:`pylo_zoo.experiments.train.recipes.find_recipe`.
        options: options of the task.
        seeds: number of runs per optimizer, with seeds from 0.
        steps: steps per run.
        tune: the optimizers whose learning rate is tuned; None is the baselines.
        tune_steps: steps per tuning run; None is ``steps``.
        lrs: fixed learning rates by name; these optimizers are not tuned.
        schedule: learning-rate schedule of the optimizers without their own schedule.
        device: ``auto`` is a GPU if one exists.
        threads: torch's CPU threads.
    """

    task: str
    optimizers: Sequence[str]
    options: Mapping[str, Any] = field(default_factory=dict)
    seeds: int = 3
    steps: int | None = None
    tune: Sequence[str] | None = None
    tune_steps: int | None = None
    lrs: Mapping[str, float] = field(default_factory=dict)
    schedule: str | None = None
    device: str = AUTO
    threads: int = 1


@dataclass(frozen=True)
class Entrant:
    """An optimizer in the comparison.

    Attributes:
        recipe: the optimizer; tuning replaces its learning rate.
        tuned: whether its learning rate is tuned.
        given: whether the user gave its learning rate.
        hand_set: whether its weights are a sample that was set by hand, not trained.
    """

    recipe: Recipe
    tuned: bool
    given: bool
    hand_set: bool

    @property
    def label(self) -> str:
        """Its name in tables and figures."""
        return self.recipe.label

    @property
    def learned(self) -> bool:
        """Whether it is a learned optimizer."""
        return self.recipe.artifact is not None


@dataclass(frozen=True)
class Comparison:
    """A checked comparison, with its task and its optimizers loaded."""

    request: CompareRequest
    task: Task
    entrants: Sequence[Entrant]
    steps: int
    tune_steps: int
    device: str

    @property
    def reference(self) -> Entrant:
        """The optimizer that the others are compared with: AdamW, else the first baseline, else the first one."""
        named = {each.recipe.name: each for each in self.entrants}
        return next((named[name] for name in BASELINES if name in named), self.entrants[0])

    @property
    def last(self) -> int:
        """The number of steps over which the final loss is averaged; also the smoothing window of curves."""
        return max(1, round(LAST * self.steps))

    def shared(self) -> dict[str, Any]:
        """The settings that all runs share. Runs that differ here cannot be part of one comparison."""
        return {
            "task": self.task.name,
            "options": dict(self.task.options),
            "steps": self.steps,
            "tune_steps": self.tune_steps,
            "schedule": self.request.schedule,
            "device": self.device,
            "threads": self.request.threads,
        }


def plan_comparison(request: CompareRequest, access: Access | None = None) -> Comparison:
    """Check ``request`` and load its task and optimizers. Weights that are not cached are downloaded.

    Raises:
        ZooError: a name is unknown, a value is out of range, or data or weights are unavailable.
    """
    names = list(dict.fromkeys(request.optimizers))
    if not names:
        raise UsageError("No optimizer is named.", "Name some, such as adamw,muon,velo-sample.")
    if len(names) < len(request.optimizers):
        twice = next(name for name in names if list(request.optimizers).count(name) > 1)
        raise UsageError(f"{twice} is named twice.", "Name each optimizer once.")
    if request.seeds < 1 or request.seeds > TUNING_SEED or (request.tune_steps or 1) < 1:
        raise UsageError(
            f"seeds is {request.seeds} and tune_steps is {request.tune_steps}.",
            f"Use 1 to {TUNING_SEED:,} seeds and at least 1 step.",
        )
    tuned = _tuned_names(request, names)
    _check_names(request.lrs, names, "--lr")
    for name, lr in request.lrs.items():
        if not is_finite(lr) or lr <= 0:
            raise UsageError(f"The learning rate of {name} is {quoted(lr)}.", "It must be above 0.")
        if name in (request.tune or ()):
            raise UsageError(f"{name} has both --tune and --lr.", "Leave one of the two out.")
    if request.schedule is not None:
        schedules.check(request.schedule)
    # Check all names before any data or weights are loaded.
    named = [recipes.find_recipe(name, lr=request.lrs.get(name), access=access) for name in names]
    setup = Setup(
        request.task, "adamw", request.options, steps=request.steps, device=request.device, threads=request.threads
    )
    first = setup.build(None)
    entrants = [
        Entrant(
            _with_schedule(recipe, request),
            name in tuned and name not in request.lrs,
            name in request.lrs,
            _is_hand_set(recipe),
        )
        for name, recipe in zip(names, _with_unique_labels(named), strict=True)
    ]
    steps = first.plan.steps
    return Comparison(request, first.task, entrants, steps, request.tune_steps or steps, first.plan.device)


def downloads(request: CompareRequest, access: Access | None = None) -> dict[str, str]:
    """The optimizers that must be downloaded, with their addresses."""
    addresses = {name: recipes.needs_download(name, access) for name in request.optimizers}
    return {name: address for name, address in addresses.items() if address}


def slug(text: str) -> str:
    """``text`` as part of a file name."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-.") or "x"


def _tuned_names(request: CompareRequest, names: Sequence[str]) -> set[str]:
    if request.tune is None:
        return {name for name in names if name in BASELINES}
    _check_names(request.tune, names, "--tune")
    return set(request.tune)


def _check_names(option_names: Mapping[str, Any] | Sequence[str], names: Sequence[str], option: str) -> None:
    for name in option_names:
        if name not in names:
            hint = did_you_mean(name, names, f"Compared: {', '.join(names)}.")
            raise UsageError(f"{option} names {name!r}, which is not compared.", hint)


def _with_schedule(recipe: Recipe, request: CompareRequest) -> Recipe:
    return recipe if request.schedule is None or recipe.needs_loss else replace(recipe, schedule=request.schedule)


def _with_unique_labels(recipes: Sequence[Recipe]) -> list[Recipe]:
    """Number equal labels, because two directories may hold artifacts with the same name.

    The labels also differ as file names.
    """
    counts: dict[str, int] = {}
    unique = []
    for recipe in recipes:
        count = counts[slug(recipe.label)] = counts.get(slug(recipe.label), 0) + 1
        unique.append(recipe if count == 1 else replace(recipe, label=f"{recipe.label} ({count})"))
    return unique


def _is_hand_set(recipe: Recipe) -> bool:
    known = registry.load_registry()
    names = {recipe.name, recipe.artifact.name} if recipe.artifact else set()
    return any(name in known and not known[name].trained for name in names)
