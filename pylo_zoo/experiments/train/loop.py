"""One training run: its steps, the files it writes, and how it resumes.

The directory of a run contains ``run.json`` (the settings), ``metrics.jsonl`` (a line per step), ``checkpoint.pt`` (the
last checkpoint) and, at the end, ``result.json``. Files are replaced atomically, except for the metrics: when a run
resumes, it cuts off the lines after the checkpoint and writes them again.
"""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pylo_zoo.errors import ZooError, count, reason
from pylo_zoo.experiments.tasks import Task
from pylo_zoo.experiments.train.interrupts import interrupts
from pylo_zoo.experiments.train.recipes import Recipe
from pylo_zoo.experiments.train.results import Result, state_bytes, summary
from pylo_zoo.experiments.train.schedules import check, factor
from pylo_zoo.files import open_regular, read_text, translate_os_errors, write_file
from pylo_zoo.leftovers import is_empty, sweep_folder

RUN, METRICS, CHECKPOINT, RESULT = "run.json", "metrics.jsonl", "checkpoint.pt", "result.json"
VERSION = 1
CHECKPOINTS = 16
"""Required disk space in units of the model's size: two checkpoints with the largest state of any optimizer."""
MIN_FREE = 8 * 1024 * 1024
"""Required disk space in bytes, in addition."""
DAMAGED = (OSError, EOFError, RuntimeError, LookupError, ValueError, TypeError, AttributeError, pickle.UnpicklingError)
"""Exceptions of ``torch.load`` and ``load_state_dict`` for a damaged checkpoint."""


@dataclass(frozen=True)
class TrainPlan:
    """The length, seed and device of a run, and its evaluation and checkpoint intervals.

    Attributes:
        steps: number of steps.
        seed: seed of the initial weights and of the data order.
        device: device of the model.
        compile: whether to compile the model with ``torch.compile``.
        evaluate_every: steps between evaluations on held-out data; 0 evaluates only at the end.
        save_every: steps between checkpoints; 0 saves only at the end.
    """

    steps: int
    seed: int = 0
    device: str = "cpu"
    compile: bool = False
    evaluate_every: int = 0
    save_every: int = 0


@dataclass(frozen=True)
class Step:
    """One step: its 0-based number, the loss before it, the learning-rate factor, and its times in seconds."""

    step: int
    loss: float
    lr: float
    model_seconds: float
    optimizer_seconds: float
    evaluation: dict[str, float] | None = None


class Diverged(ZooError):
    """The loss is not finite."""


class Run:
    """One run: model, optimizer and results, and a directory for its files.

    Args:
        task: the model, its data and its loss.
        recipe: the optimizer.
        plan: length, seed and device.
        out: the directory of the run, or None.
        asked: the user's settings, stored in ``run.json`` so that the run can be resumed from its directory.
    """

    def __init__(
        self,
        task: Task,
        recipe: Recipe,
        plan: TrainPlan,
        out: Path | None = None,
        asked: Mapping[str, Any] | None = None,
    ) -> None:
        check(recipe.schedule)
        self.task, self.recipe, self.plan, self.out, self.asked = task, recipe, plan, out, asked
        self.device = torch.device(plan.device)
        self.model = task.model(plan.seed).to(self.device)
        self.optimizer = recipe.make(self.model, plan.steps)
        self.base = [group["lr"] for group in self.optimizer.param_groups]
        self.forward: nn.Module = torch.compile(self.model) if plan.compile else self.model  # pyright: ignore
        self.step = 0
        self.result = Result()

    # --- training ---------------------------------------------------------------------------------------------

    def steps(self) -> Iterator[Step]:
        """Train to the end of the run, and yield each step.

        Raises:
            Diverged: the loss is not finite. The last checkpoint is kept.
            ZooError: a file cannot be written.
        """
        while self.step < self.plan.steps:
            step = self._train_step()
            self.result.losses.append(step.loss)
            self.result.model_seconds.append(step.model_seconds)
            self.result.optimizer_seconds.append(step.optimizer_seconds)
            self.step += 1
            last = self.step == self.plan.steps
            if last or (self.plan.evaluate_every and self.step % self.plan.evaluate_every == 0):
                step = replace(step, evaluation=self.evaluate())
                self.result.evaluations[self.step] = step.evaluation or {}
            self._append_metrics(step)
            if last or (self.plan.save_every and self.step % self.plan.save_every == 0):
                self.save()
            yield step
        self.result.state_bytes = state_bytes(self.optimizer)

    def _train_step(self) -> Step:
        scale = factor(self.recipe.schedule, self.step, self.plan.steps, round(self.recipe.warmup * self.plan.steps))
        for group, base in zip(self.optimizer.param_groups, self.base, strict=True):
            group["lr"] = base * scale
        start = self._now()
        batch = tuple(each.to(self.device) for each in self.task.batch(self.plan.seed, self.step))
        self.optimizer.zero_grad()
        loss = self.task.loss(self.forward, batch)
        loss.backward()
        value = loss.item()
        if not math.isfinite(value):
            raise self._divergence(value)
        middle = self._now()
        self.optimizer.step(lambda: value) if self.recipe.needs_loss else self.optimizer.step()
        end = self._now()
        return Step(self.step, value, scale, middle - start, end - middle)

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def _divergence(self, loss: float) -> Diverged:
        previous = ", ".join(f"{each:.4g}" for each in self.result.losses[-4:]) or "none"
        kept = f" The last checkpoint is in {self.out}." if self.out and (self.out / CHECKPOINT).is_file() else ""
        message = f"The loss is {loss} at step {self.step} (previous losses: {previous}), so the run stopped.{kept}"
        return Diverged(message, self.recipe.remedy)

    def evaluate(self) -> dict[str, float]:
        """The metrics of the model on held-out data."""
        self.model.eval()
        try:
            return self.task.evaluate(self.model)
        finally:
            self.model.train()

    # --- the disk ---------------------------------------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        """The contents of ``run.json``. Runs with equal contents have equal losses."""
        artifact = self.recipe.artifact
        recipe = {key: value for key, value in vars(self.recipe).items() if key not in ("artifact", "grid")}
        return {
            "version": VERSION,
            "task": self.task.name,
            "options": dict(self.task.options),
            "recipe": recipe,
            "weights": artifact.fingerprint if artifact else None,
            "plan": asdict(self.plan),
            "asked": dict(self.asked) if self.asked is not None else None,
        }

    def save(self) -> None:
        """Write a checkpoint atomically, if the run has a directory."""
        if self.out is None:
            return
        buffer = io.BytesIO()
        torch.save(
            {
                "step": self.step,
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "random": torch.get_rng_state(),
                "cuda_random": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
                "evaluations": self.result.evaluations,
            },
            buffer,
        )
        write_file(self.out / CHECKPOINT, buffer.getvalue())

    def begin(self) -> None:
        """Create the directory of the run.

        Raises:
            ZooError: the directory is in use, cannot be written, or has too little space.
        """
        if self.out is None:
            return
        if self.out.exists() and (not self.out.is_dir() or not is_empty(self.out)):
            problem, action = (
                ("is not empty", self._directory_hint()) if self.out.is_dir() else ("is a file", "Move it")
            )
            raise ZooError(f"{self.out} {problem}.", f"{action}, or pass another directory with --out.")
        with translate_os_errors(self.out):
            self.out.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.out).free
        needed = CHECKPOINTS * sum(p.numel() * p.element_size() for p in self.model.parameters())
        if free < needed + MIN_FREE:
            raise ZooError(
                f"{self.out} has {free:,} bytes left, and the run may need {needed + MIN_FREE:,}.",
                "Free disk space, or pass another directory with --out.",
            )
        write_file(self.out / RUN, (json.dumps(self.describe(), indent=2) + "\n").encode())
        write_file(self.out / METRICS, b"")

    def _directory_hint(self) -> str:
        assert self.out is not None
        if not self.out.is_dir():
            return "Move it"
        if (self.out / RESULT).is_file():
            return "Remove the finished run in it"
        return f"Resume the run in it (--resume {self.out})" if (self.out / RUN).is_file() else "Empty it"

    def resume(self) -> None:
        """Load the last checkpoint from the directory of the run. Without a checkpoint, start at step 0.

        Raises:
            ZooError: the directory contains no run or another run, or a file is damaged.
        """
        assert self.out is not None
        sweep_folder(self.out)
        try:
            stored = json.loads(read_text(self.out / RUN))
        except (OSError, ValueError) as error:
            raise ZooError(f"{self.out} contains no run: {reason(error)}.", "Start one without --resume.") from error
        current = json.loads(json.dumps(self.describe()))
        if stored != current:
            different = sorted(key for key in {*stored, *current} if stored.get(key) != current.get(key))
            raise ZooError(
                f"{self.out} contains another run: {', '.join(different)} differ.",
                "Resume it with the settings that it was started with.",
            )
        path = self.out / CHECKPOINT
        if os.path.lexists(path):
            try:
                self._load_checkpoint(path)
            except DAMAGED as error:
                cause = reason(error).splitlines()[0].rstrip(".")
                hint = "Start a new run in another directory."
                raise ZooError(f"{path} cannot be read: {cause}.", hint) from error
        self._truncate_metrics()
        self.result.resumed_at = self.step

    def _load_checkpoint(self, path: Path) -> None:
        with open_regular(path) as file:
            kept = torch.load(file, map_location=self.device, weights_only=True)
        step = int(kept["step"])
        if not 0 <= step <= self.plan.steps:
            raise ValueError(f"its step is {step}, and the run has {self.plan.steps}")
        self.model.load_state_dict(kept["model"])
        self.optimizer.load_state_dict(kept["optimizer"])
        torch.set_rng_state(kept["random"].cpu())
        if kept["cuda_random"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(kept["cuda_random"].cpu(), self.device)
        self.step = step
        self.result.evaluations = dict(kept["evaluations"])

    def _truncate_metrics(self) -> None:
        """Remove the metrics of the steps after the checkpoint."""
        assert self.out is not None
        path = self.out / METRICS
        try:
            lines = read_text(path).splitlines() if path.is_file() else []
            kept = lines[: self.step]
            self.result.losses = [float(json.loads(line)["loss"]) for line in kept]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ZooError(f"{path} is damaged.", "Start a new run in another directory.") from error
        if len(kept) < self.step:
            raise ZooError(
                f"{path} has {count(len(kept), 'step')}, but the checkpoint has {self.step}.",
                "Start a new run in another directory.",
            )
        write_file(path, "".join(f"{line}\n" for line in kept).encode())

    def _append_metrics(self, step: Step) -> None:
        if self.out is None:
            return
        line = {key: value for key, value in asdict(step).items() if value is not None}
        try:
            with (self.out / METRICS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise ZooError(
                f"{self.out / METRICS} cannot be written: {error.strerror}.",
                "Free disk space, then resume with --resume.",
            ) from error

    def finish(self) -> None:
        """Write ``result.json``."""
        if self.out is None:
            return
        write_file(self.out / RESULT, (json.dumps(summary(self.result, self.step), indent=2) + "\n").encode())


def train(
    run: Run,
    *,
    resume: bool = False,
    on_step: Callable[[Step], None] = lambda step: None,
    on_start: Callable[[], None] = lambda: None,
) -> Result:
    """Train to the end.

    Args:
        run: a new run.
        resume: whether to resume from the directory of the run.
        on_step: called after every step.
        on_start: called before the first step, when the directory or the checkpoint is ready.

    Returns:
        The result. If the run diverged, it contains the reason; no exception is raised.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed. The current step was finished and saved.
        ZooError: the directory is in use, contains another run, or cannot be written.
    """
    run.resume() if resume else run.begin()
    on_start()
    try:
        with interrupts() as interrupted:
            for step in run.steps():
                on_step(step)
                if interrupted() and run.step < run.plan.steps:
                    run.save()
                    raise KeyboardInterrupt
    except Diverged as error:
        run.result.diverged = error.message
    run.result.state_bytes = state_bytes(run.optimizer)
    finished = run.out is not None and (run.out / RESULT).is_file()
    if run.result.model_seconds or run.result.diverged or not finished:  # a finished run keeps its result.json
        run.finish()
    return run.result
