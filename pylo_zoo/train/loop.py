"""One training run: its steps, what it writes down, and how it goes on after it was cut off.

A run's directory holds ``run.json`` (what the run is), ``metrics.jsonl`` (a line a step), ``checkpoint.pt`` (the last
one) and, at the end, ``result.json``. Every file but the metrics is moved in whole; of the metrics, what is later than
the checkpoint is cut off when a run goes on, and comes again.
"""

from __future__ import annotations

import io
import json
import math
import pickle
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pylo_zoo.errors import ZooError
from pylo_zoo.files import explained, is_empty, read_text, sweep_folder, write_file
from pylo_zoo.tasks import Task
from pylo_zoo.train.interrupts import interrupts
from pylo_zoo.train.recipes import Recipe
from pylo_zoo.train.schedules import check, factor

RUN, METRICS, CHECKPOINT, RESULT = "run.json", "metrics.jsonl", "checkpoint.pt", "result.json"
VERSION = 1
CHECKPOINTS = 16
"""Sizes of the model for which there has to be room: two checkpoints with the largest state of any optimizer here."""
LEAST_FREE = 8 * 1024 * 1024


@dataclass(frozen=True)
class TrainPlan:
    """How long, on what, and how often to look.

    Attributes:
        steps: of the run.
        seed: of the weights and of the data's order.
        device: that the model is trained on.
        compile: whether ``torch.compile`` makes the model's forward pass.
        evaluate_every: steps between two looks at the data that is held out; 0 looks at the end alone.
        save_every: steps between two checkpoints; 0 saves at the end alone.
    """

    steps: int
    seed: int = 0
    device: str = "cpu"
    compile: bool = False
    evaluate_every: int = 0
    save_every: int = 0


@dataclass(frozen=True)
class Step:
    """What one step was: 0-based number, loss before it, learning rate factor, and seconds in model and optimizer."""

    step: int
    loss: float
    lr: float
    model_seconds: float
    optimizer_seconds: float
    evaluation: dict[str, float] | None = None


@dataclass
class Result:
    """What came of a run.

    Attributes:
        losses: of every step, before it.
        evaluations: of the data that is held out, by step.
        model_seconds, optimizer_seconds: of every step that this process made.
        diverged: why the run ended before its time, or None.
        state_bytes: of the optimizer's state.
        resumed_at: the step at which this process took up the run.
    """

    losses: list[float] = field(default_factory=list)
    evaluations: dict[int, dict[str, float]] = field(default_factory=dict)
    model_seconds: list[float] = field(default_factory=list)
    optimizer_seconds: list[float] = field(default_factory=list)
    diverged: str | None = None
    state_bytes: int = 0
    resumed_at: int = 0

    @property
    def final(self) -> dict[str, float]:
        """The last evaluation."""
        return self.evaluations[max(self.evaluations)] if self.evaluations else {}


class Diverged(ZooError):
    """The loss, or a parameter, is no longer a finite number."""


class Run:
    """One run, in memory, and on the disk where it has a directory.

    Args:
        task: what is trained.
        recipe: what trains it.
        plan: how.
        out: the run's directory, or None.
        asked: what the user said, so that the run can be made again from its directory alone.
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
        """Train, a step at a time, to the end of the run.

        Raises:
            Diverged: a loss is not finite; the last checkpoint stands.
            ZooError: the disk refuses.
        """
        while self.step < self.plan.steps:
            done = self._one()
            self.result.losses.append(done.loss)
            self.result.model_seconds.append(done.model_seconds)
            self.result.optimizer_seconds.append(done.optimizer_seconds)
            self.step += 1
            last = self.step == self.plan.steps
            if last or (self.plan.evaluate_every and self.step % self.plan.evaluate_every == 0):
                done = replace(done, evaluation=self.evaluate())
                self.result.evaluations[self.step] = done.evaluation or {}
            self._note(done)
            if last or (self.plan.save_every and self.step % self.plan.save_every == 0):
                self.save()
            yield done
        self.result.state_bytes = state_bytes(self.optimizer)

    def _one(self) -> Step:
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
            raise Diverged(*self._why(value))
        middle = self._now()
        self.optimizer.step(lambda: value) if self.recipe.needs_loss else self.optimizer.step()
        end = self._now()
        return Step(self.step, value, scale, middle - start, end - middle)

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def _why(self, loss: float) -> tuple[str, str]:
        before = ", ".join(f"{each:.4g}" for each in self.result.losses[-4:]) or "none"
        kept = f" Its last checkpoint stands in {self.out}." if self.out and (self.out / CHECKPOINT).is_file() else ""
        return (
            f"The loss is {loss} at step {self.step} (the ones before: {before}); the run was stopped.{kept}",
            self.recipe.remedy,
        )

    def evaluate(self) -> dict[str, float]:
        """The model on data that is held out."""
        self.model.eval()
        try:
            return self.task.evaluate(self.model)
        finally:
            self.model.train()

    # --- the disk ---------------------------------------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        """What the run is, as ``run.json`` holds it: two that agree in it give the same losses."""
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
        """Write a checkpoint in one step, if the run has a directory."""
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
        """Make the run's directory.

        Raises:
            ZooError: it is in use, or cannot be written.
        """
        if self.out is None:
            return
        if self.out.exists() and (not self.out.is_dir() or not is_empty(self.out)):
            raise ZooError(
                f"{self.out} is in use already.",
                f"{self._found()}, or give another directory with --out.",
            )
        with explained(self.out):
            self.out.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.out).free
        needed = CHECKPOINTS * sum(p.numel() * p.element_size() for p in self.model.parameters())
        if free < needed + LEAST_FREE:
            raise ZooError(
                f"{self.out} has {free:,} bytes left, and the run may need {needed + LEAST_FREE:,}.",
                "Make room, or give another directory with --out.",
            )
        write_file(self.out / RUN, (json.dumps(self.describe(), indent=2) + "\n").encode())
        write_file(self.out / METRICS, b"")

    def _found(self) -> str:
        """What to do about a directory in which something is."""
        assert self.out is not None
        if (self.out / RESULT).is_file():
            return "The run in it is over: remove it"
        return f"Go on with the run in it (--resume {self.out})" if (self.out / RUN).is_file() else "Empty it"

    def resume(self) -> None:
        """Take up the run in its directory at its last checkpoint; from the beginning where it has none.

        Raises:
            ZooError: there is no run, it is another one than this, or a file of it is damaged.
        """
        assert self.out is not None
        sweep_folder(self.out)
        try:
            described = json.loads(read_text(self.out / RUN))
        except (OSError, ValueError) as error:
            raise ZooError(f"{self.out} holds no run: {error}.", "Begin one, without --resume.") from error
        ours = json.loads(json.dumps(self.describe()))
        if described != ours:
            other = sorted(key for key in {*described, *ours} if described.get(key) != ours.get(key))
            raise ZooError(
                f"The run in {self.out} is another one: {', '.join(other)} differ.", "Resume it as it was begun."
            )
        path = self.out / CHECKPOINT
        if path.is_file():
            try:
                kept = torch.load(path, map_location=self.device, weights_only=True)
                self.model.load_state_dict(kept["model"])
                self.optimizer.load_state_dict(kept["optimizer"])
                torch.set_rng_state(kept["random"].cpu())
                if kept["cuda_random"] is not None and self.device.type == "cuda":
                    torch.cuda.set_rng_state(kept["cuda_random"].cpu(), self.device)
                self.step = int(kept["step"])
                self.result.evaluations = dict(kept["evaluations"])
            except (OSError, RuntimeError, KeyError, ValueError, pickle.UnpicklingError) as error:
                raise ZooError(
                    f"{path} cannot be read: {str(error).splitlines()[0]}", "Start a new run in another directory."
                ) from error
        self._cut()
        self.result.resumed_at = self.step

    def _cut(self) -> None:
        """Forget what was written down of steps that come again."""
        assert self.out is not None
        path = self.out / METRICS
        lines = read_text(path).splitlines() if path.is_file() else []
        kept = lines[: self.step]
        try:
            self.result.losses = [float(json.loads(line)["loss"]) for line in kept]
        except (ValueError, KeyError, TypeError) as error:
            raise ZooError(f"{path} is damaged.", "Start a new run in another directory.") from error
        if len(kept) < self.step:
            raise ZooError(
                f"{path} has {len(kept)} steps, and the checkpoint {self.step}.", "Start a new run elsewhere."
            )
        write_file(path, "".join(f"{line}\n" for line in kept).encode())

    def _note(self, done: Step) -> None:
        if self.out is None:
            return
        line = {key: value for key, value in asdict(done).items() if value is not None}
        try:
            with (self.out / METRICS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise ZooError(
                f"{self.out / METRICS} cannot be written: {error.strerror}.", "Make room, and go on with --resume."
            ) from error

    def finish(self) -> None:
        """Write the result."""
        if self.out is None:
            return
        write_file(self.out / RESULT, (json.dumps(summary(self, self.result), indent=2) + "\n").encode())


def summary(run: Run, result: Result) -> dict[str, Any]:
    """The figures of a run: losses are means over its last twentieth, times medians in milliseconds."""
    last = result.losses[-max(1, len(result.losses) // 20) :]
    return {
        "steps": run.step,
        "loss": statistics.fmean(last) if last else None,
        "evaluation": result.final,
        "diverged": result.diverged,
        "model_ms": _milliseconds(result.model_seconds),
        "optimizer_ms": _milliseconds(result.optimizer_seconds),
        "state_bytes": result.state_bytes,
        "resumed_at": result.resumed_at,
    }


def _milliseconds(seconds: list[float]) -> float | None:
    return 1000 * statistics.median(seconds) if seconds else None


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of the tensors in the optimizer's state."""
    values = (value for state in optimizer.state.values() for value in state.values())
    return sum(value.numel() * value.element_size() for value in values if isinstance(value, torch.Tensor))


def train(
    run: Run,
    *,
    resume: bool = False,
    listen: Callable[[Step], None] = lambda step: None,
    begun: Callable[[], None] = lambda: None,
) -> Result:
    """Train to the end.

    Args:
        run: the run, new.
        resume: whether to take it up where it was cut off.
        listen: hears of every step.
        begun: called when the directory is ready, or the checkpoint read, before the first step.

    Returns:
        The result; one that diverged says why, and is no exception.

    Raises:
        KeyboardInterrupt: somebody pressed Ctrl-C; the step was finished, and a checkpoint of just then is there.
        ZooError: the directory is in use, is another run's, or cannot be written.
    """
    run.resume() if resume else run.begin()
    begun()
    try:
        with interrupts() as interrupted:
            for step in run.steps():
                listen(step)
                if interrupted() and run.step < run.plan.steps:
                    run.save()
                    raise KeyboardInterrupt
    except Diverged as error:
        run.result.diverged = error.message
    run.result.state_bytes = state_bytes(run.optimizer)
    over = run.out is not None and (run.out / RESULT).is_file()
    if run.result.model_seconds or run.result.diverged or not over:  # a run that was over keeps the result that it has
        run.finish()
    return run.result
