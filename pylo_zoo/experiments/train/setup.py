"""The settings of a run as a user gives them, and as ``run.json`` stores them."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pylo_zoo.errors import UsageError, ZooError, quoted, reason
from pylo_zoo.experiments import tasks
from pylo_zoo.experiments.train import recipes, schedules
from pylo_zoo.experiments.train.loop import RUN, Run, TrainPlan
from pylo_zoo.fetch import Access
from pylo_zoo.files import read_text
from pylo_zoo.parsing import is_finite


def threads() -> int:
    """The number of threads that torch uses."""
    return torch.get_num_threads()


AUTO = "auto"


@dataclass(frozen=True)
class Setup:
    """The settings of a run. The task or the optimizer chooses a field that is None.

    Attributes:
        task: a name in :data:`pylo_zoo.experiments.tasks.TASKS`, or ``module:function``.
        optimizer, weights, lr, schedule, warmup, weight_decay: see :func:`~.recipes.find_recipe`;
            ``warmup`` is a fraction of the run.
        options: options of the task.
        steps, seed, device, compile, evaluate_every, save_every: see :class:`~.loop.TrainPlan`; the
            device ``"auto"`` is a GPU if one exists.
        threads: torch's CPU threads. On shared cores, several threads make such small steps hundreds of times slower.
            The number of threads also changes the order of sums, and so the losses.
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
        """Check the values of the settings.

        Raises:
            ZooError: a value is out of range, or the schedule or the device does not exist.
        """
        if self.schedule is not None:
            schedules.check(self.schedule)
        limits = {"lr": self.lr, "weight_decay": self.weight_decay, "warmup": self.warmup, "steps": self.steps}
        for name, value in limits.items():
            if value is not None and (
                not is_finite(value) or value < 0 or (name == "steps" and value < 1) or (name == "warmup" and value > 1)
            ):
                allowed = {"steps": "at least 1", "warmup": "a fraction from 0 to 1"}.get(name, "at least 0")
                raise UsageError(f"{name} is {quoted(value)}.", f"It must be {allowed}.")
        _find_device(self.device)

    def build(self, out: Path | None, access: Access | None = None) -> Run:
        """Build the run. Weights that are not cached are downloaded.

        Raises:
            ZooError: a name is unknown, a value is out of range, or data or weights are unavailable.
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
            str(_find_device(self.device)),
            self.compile,
            self.evaluate_every,
            self.save_every,
        )
        return Run(task, recipe, plan, out, dataclasses.asdict(self))

    @property
    def name(self) -> str:
        """A directory name from task, optimizer and seed."""
        words = (self.task, Path(self.optimizer).name or self.optimizer, f"seed{self.seed}")
        return "-".join(re.sub(r"[^A-Za-z0-9.]+", "-", word).strip("-.") for word in words)


def read_setup(out: Path) -> Setup:
    """The settings of the run in the directory ``out``.

    Raises:
        ZooError: the directory holds no run of ``pylo-zoo train``, or its ``run.json`` is damaged.
    """
    try:
        settings = json.loads(read_text(out / RUN))["asked"]
    except (FileNotFoundError, NotADirectoryError) as error:
        problem = "contains no run" if out.is_dir() else "does not exist" if not os.path.lexists(out) else "is a file"
        raise ZooError(f"{out} {problem}.", "Pass the directory of a run of `pylo-zoo train`.") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ZooError(
            f"{out} contains no run: {reason(error)}.", "Pass the directory of a run of `pylo-zoo train`."
        ) from error
    if not isinstance(settings, dict) or not isinstance(settings.get("options"), dict):
        raise ZooError(
            f"The run in {out} was not started by `pylo-zoo train`.", "Resume it with the command that started it."
        )
    try:
        setup = Setup(**settings)
    except TypeError as error:
        raise ZooError(f"{out / RUN} is damaged: {error}.", "Start a new run.") from error
    for name, is_valid in FIELDS.items():
        if not is_valid(value := getattr(setup, name)):
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
"""The check of each field of :class:`Setup` that ``run.json`` stores."""


def _find_device(name: str) -> torch.device:
    if name == AUTO:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"device is {quoted(name)}.", f"Use {AUTO}, cpu or cuda.") from None
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ZooError(f"Device {name!r} is not available: {str(error).splitlines()[0]}", "Use cpu.") from error
    return device
