"""What is compared: a task, optimizers, seeds, and who is tuned; checked before anything is trained."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pylo_zoo import registry
from pylo_zoo.errors import ZooError
from pylo_zoo.fetch import Access
from pylo_zoo.tasks import Task
from pylo_zoo.train import recipes, schedules
from pylo_zoo.train.recipes import BASELINES, Recipe
from pylo_zoo.train.setup import AUTO, Setup

TUNING_SEED = 1_000_003
"""Of the runs that choose a learning rate: none of the seeds that are reported, which count from 0."""
EVALUATIONS = 20
"""Looks at the data that is held out, in a run."""
LAST = 0.05
"""Share of the steps at the end of a run whose mean loss is its final one; curves are smoothed over as many."""


@dataclass(frozen=True)
class Wanted:
    """A comparison as it is asked for; None leaves a field to the task.

    Attributes:
        task: a name of :data:`pylo_zoo.tasks.TASKS`, or ``module:function``.
        optimizers: as for :func:`pylo_zoo.train.recipes.find`.
        options: of the task.
        seeds: so many runs of each optimizer, with seeds from 0.
        steps: of each run.
        tune: names among ``optimizers`` whose learning rate is searched for; None: the baselines.
        tune_steps: of each run of the search; by default ``steps``.
        lrs: learning rates by name, which are then not searched for.
        schedule: of the learning rate, for every optimizer that does not plan by itself.
        device: ``auto`` is a GPU where there is one.
        threads: of torch on the CPU.
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
    """An optimizer of the comparison.

    Attributes:
        recipe: with its own learning rate; where it is tuned, another takes its place.
        tuned: whether its learning rate is searched for.
        given: whether the user gave its learning rate.
        hand_set: whether it is a sample, whose weights nobody trained.
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
        """Whether it was meta-trained, or has the form of one that was."""
        return self.recipe.artifact is not None


@dataclass(frozen=True)
class Comparison:
    """A comparison that can be run; all in it is here and checked."""

    wanted: Wanted
    task: Task
    entrants: Sequence[Entrant]
    steps: int
    tune_steps: int
    device: str

    @property
    def reference(self) -> Entrant:
        """What the others are held against: AdamW, else the first baseline, else the first of all."""
        named = {each.recipe.name: each for each in self.entrants}
        return next((named[name] for name in BASELINES if name in named), self.entrants[0])

    @property
    def last(self) -> int:
        """Steps at the end of a run over which its final loss is averaged; also the window of smoothed curves."""
        return max(1, round(LAST * self.steps))

    def shared(self) -> dict[str, Any]:
        """What every run has in common: runs of two comparisons that differ here cannot be put together."""
        return {
            "task": self.task.name,
            "options": dict(self.task.options),
            "steps": self.steps,
            "tune_steps": self.tune_steps,
            "schedule": self.wanted.schedule,
            "device": self.device,
            "threads": self.wanted.threads,
        }


def planned(wanted: Wanted, access: Access | None = None) -> Comparison:
    """``wanted`` with its task, its optimizers and their weights, which are fetched where they are not here.

    Raises:
        ZooError: a name is unknown, a figure impossible, or data or weights are unavailable.
    """
    names = list(dict.fromkeys(wanted.optimizers))
    if not names:
        raise ZooError("No optimizer is named.", "Name some, as in adamw,muon,velo-sample.")
    if len(names) < len(wanted.optimizers):
        twice = next(name for name in names if list(wanted.optimizers).count(name) > 1)
        raise ZooError(f"{twice} is named twice.", "Name each optimizer once.")
    if wanted.seeds < 1 or wanted.seeds > TUNING_SEED or (wanted.tune_steps or 1) < 1:
        raise ZooError("Seeds and steps are counts.", "They have to be at least 1.")
    tuned = _tuned(wanted, names)
    _among(wanted.lrs, names, "--lr")
    for name, lr in wanted.lrs.items():
        if not (math.isfinite(lr) and lr > 0):
            raise ZooError(f"The learning rate of {name} is {lr:g}.", "It has to be above 0.")
        if name in (wanted.tune or ()):
            raise ZooError(f"{name} is to be tuned, and has a learning rate given.", "Leave one of the two out.")
    if wanted.schedule is not None:
        schedules.check(wanted.schedule)
    # Unknown names first, all of them: the nearest is suggested before data or weights are loaded.
    found = [recipes.find_recipe(name, lr=wanted.lrs.get(name), access=access) for name in names]
    setup = Setup(
        wanted.task, "adamw", wanted.options, steps=wanted.steps, device=wanted.device, threads=wanted.threads
    )
    first = setup.build(None)
    entrants = [
        Entrant(_scheduled(recipe, wanted), name in tuned and name not in wanted.lrs, name in wanted.lrs, _hand(recipe))
        for name, recipe in zip(names, _told_apart(found), strict=True)
    ]
    steps = first.plan.steps
    return Comparison(wanted, first.task, entrants, steps, wanted.tune_steps or steps, first.plan.device)


def downloads(wanted: Wanted, access: Access | None = None) -> dict[str, str]:
    """The optimizers of ``wanted`` that have to be fetched, and from where."""
    found = {name: recipes.needs_download(name, access) for name in wanted.optimizers}
    return {name: address for name, address in found.items() if address}


def slug(text: str) -> str:
    """``text`` as part of a file's name."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-.") or "x"


def _tuned(wanted: Wanted, names: Sequence[str]) -> set[str]:
    if wanted.tune is None:
        return {name for name in names if name in BASELINES}
    _among(wanted.tune, names, "--tune")
    return set(wanted.tune)


def _among(given: Mapping[str, Any] | Sequence[str], names: Sequence[str], option: str) -> None:
    for name in given:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            meant = f"Did you mean {near[0]!r}? " if near else ""
            raise ZooError(
                f"{option} names {name!r}, which is not compared.", f"{meant}Compared are {', '.join(names)}."
            )


def _scheduled(recipe: Recipe, wanted: Wanted) -> Recipe:
    return recipe if wanted.schedule is None or recipe.needs_loss else replace(recipe, schedule=wanted.schedule)


def _told_apart(found: Sequence[Recipe]) -> list[Recipe]:
    """``found`` with labels that differ, also as file names: two directories may hold artifacts of one name."""
    taken: dict[str, int] = {}
    made = []
    for recipe in found:
        count = taken[slug(recipe.label)] = taken.get(slug(recipe.label), 0) + 1
        made.append(recipe if count == 1 else replace(recipe, label=f"{recipe.label} ({count})"))
    return made


def _hand(recipe: Recipe) -> bool:
    known = registry.load_registry()
    names = {recipe.name, recipe.artifact.name} if recipe.artifact else set()
    return any(name in known and not known[name].trained for name in names)
