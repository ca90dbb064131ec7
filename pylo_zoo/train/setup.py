"""What a user asks of a run, by names and figures: checked, made into a run, and read back from a run's directory."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pylo_zoo import tasks
from pylo_zoo.config import is_finite
from pylo_zoo.errors import ZooError, quoted
from pylo_zoo.fetch import Access
from pylo_zoo.files import read_text
from pylo_zoo.train import recipes, schedules
from pylo_zoo.train.loop import RUN, Run, TrainPlan


def threads() -> int:
    """How many threads torch computes with."""
    return torch.get_num_threads()


AUTO = "auto"


@dataclass(frozen=True)
class Setup:
    """A run as it is asked for; None leaves a field to the task or the optimizer.

    Attributes:
        task: a name of :data:`pylo_zoo.tasks.TASKS`, or ``module:function``.
        optimizer: as for :func:`pylo_zoo.train.recipes.find`, like ``weights``, ``lr``, ``schedule``, ``warmup`` (a
            share of the run) and ``weight_decay``.
        options: of the task.
        steps, seed, device, compile, evaluate_every, save_every: of :class:`~pylo_zoo.train.loop.TrainPlan`; the device
            ``"auto"`` is a GPU where there is one.
        threads: of torch on the CPU. Several that wait for each other on shared cores make steps as small as these
            hundreds of times slower, and another number adds in another order.
    """

    task: str
    optimizer: str
    options: Mapping[str, Any] = field(default_factory=dict)
    weights: str | None = None
    lr: float | None = None
    schedule: str | None = None
    warmup: float | None = None
    weight_decay: float | None = None
    steps: int | None = None
    seed: int = 0
    device: str = AUTO
    compile: bool = False
    evaluate_every: int = 0
    save_every: int = 100
    threads: int = 1

    def check(self) -> None:
        """Refuse figures that no run can have.

        Raises:
            ZooError: so they are.
        """
        if self.schedule is not None:
            schedules.check(self.schedule)
        limits = {"lr": self.lr, "weight_decay": self.weight_decay, "warmup": self.warmup, "steps": self.steps}
        for name, value in limits.items():
            if value is not None and (
                not is_finite(value) or value < 0 or (name == "steps" and value < 1) or (name == "warmup" and value > 1)
            ):
                what = {"steps": "at least 1", "warmup": "a share of the run, from 0 to 1"}.get(name, "not negative")
                raise ZooError(f"{name} is {quoted(value)}.", f"It has to be {what}.")
        _device(self.device)

    def build(self, out: Path | None, access: Access | None = None) -> Run:
        """The run; the optimizer's weights are fetched where they are not here.

        Raises:
            ZooError: a name is unknown, a figure impossible, or data or weights are unavailable.
        """
        self.check()
        torch.set_num_threads(self.threads)
        task = tasks.make(self.task, self.options)
        recipe = recipes.find_recipe(
            self.optimizer,
            weights=self.weights,
            lr=self.lr,
            access=access,
            schedule=self.schedule,
            warmup=self.warmup,
            weight_decay=self.weight_decay,
        )
        plan = TrainPlan(
            self.steps or task.steps,
            self.seed,
            str(_device(self.device)),
            self.compile,
            self.evaluate_every,
            self.save_every,
        )
        return Run(task, recipe, plan, out, dataclasses.asdict(self))

    @property
    def name(self) -> str:
        """For a directory: task, optimizer and seed."""
        words = (self.task, Path(self.optimizer).name or self.optimizer, f"seed{self.seed}")
        return "-".join(re.sub(r"[^A-Za-z0-9.]+", "-", word).strip("-.") for word in words)


def of_directory(out: Path) -> Setup:
    """What the run in ``out`` was asked for as.

    Raises:
        ZooError: there is no run of a command.
    """
    try:
        asked = json.loads(read_text(out / RUN))["asked"]
    except FileNotFoundError as error:
        what = "holds no run" if out.is_dir() else "is no directory, and holds no run"
        raise ZooError(f"{out} {what}.", "Give the directory of a run of `pylo-zoo train`.") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ZooError(f"{out} holds no run: {error}.", "Give the directory of a run of `pylo-zoo train`.") from error
    if not isinstance(asked, dict) or not isinstance(asked.get("options"), dict):
        raise ZooError(f"The run in {out} was not begun by `pylo-zoo train`.", "Go on with what began it.")
    try:
        setup = Setup(**asked)
    except TypeError as error:
        raise ZooError(f"{out / RUN} is damaged: {error}.", "Start a new run.") from error
    for name, sound in FIELDS.items():
        if not sound(value := getattr(setup, name)):
            raise ZooError(f"{out / RUN} is damaged: {name} is {quoted(value)}.", "Start a new run.")
    return setup


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


FIELDS: Mapping[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("task", "optimizer", "device"), _is_text),
    **dict.fromkeys(("weights", "schedule"), lambda value: value is None or _is_text(value)),
    **dict.fromkeys(("lr", "warmup", "weight_decay"), lambda value: value is None or is_finite(value)),
    **dict.fromkeys(("seed", "evaluate_every", "save_every"), _is_count),
    "steps": lambda value: value is None or _is_count(value),
    "threads": lambda value: _is_count(value) and 1 <= value <= 1_024,
    "compile": lambda value: isinstance(value, bool),
    "options": lambda value: isinstance(value, dict),
}
"""Whether a value that ``run.json`` holds is sound, by field of :class:`Setup`."""


def _device(name: str) -> torch.device:
    if name == AUTO:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ZooError(f"There is no device {name!r} here: {str(error).splitlines()[0]}", "Use cpu.") from error
    return device
