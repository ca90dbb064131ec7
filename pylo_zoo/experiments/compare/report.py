"""The report of a comparison: ``results.json``, and the same results as Markdown, HTML and figures."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from pylo_zoo.experiments.compare import figures, machine, verdict, words
from pylo_zoo.experiments.compare.memory import Peak, measured
from pylo_zoo.experiments.compare.memory import recorded as recorded_peak
from pylo_zoo.experiments.compare.plan import TUNING_SEED, Comparison
from pylo_zoo.experiments.compare.running import Outcome, Tuning, best
from pylo_zoo.files import read_text, write_file

RESULTS, MARKDOWN, PAGE = "results.json", "report.md", "report.html"
VERSION = 1
TIMES = (
    "model_ms",
    "optimizer_ms",
    "share",
    "seconds",
    "cost",
    "load",
    "peak_bytes",
    "date",
    "machine",
    "command",
    "clock",
)
"""Keys of values that differ when the same comparison is repeated."""

Results = dict[str, Any]
Progress = Callable[[str, int, int], None]
NOT_REQUESTED = "not requested"


def results(
    comparison: Comparison,
    outcomes: Sequence[Outcome],
    *,
    command: str,
    memory: bool = True,
    previous: Results | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Results:
    """The contents of ``results.json``. All numbers are finite.

    Args:
        comparison: the comparison.
        outcomes: its runs.
        command: the command line that repeats the comparison.
        memory: whether to measure the peak memory of a step, which takes seconds per optimizer. Without it, the report
            only has measurements of ``previous``.
        previous: an earlier report of this comparison. Its memory measurements are reused. If no run is new, its
            machine and date are reused too.
        progress: called with the optimizer whose memory is measured, the number of finished measurements and their
            total.
    """
    unchanged = previous if previous and not any(each.new_runs for each in outcomes) else None
    peaks = _peaks(comparison, outcomes, previous, progress if memory else None)
    last = comparison.last
    reference = next(each for each in outcomes if each.entrant is comparison.reference)
    task, seeds = comparison.task, comparison.request.seeds
    metric = next((name for each in outcomes for record in each.records for name in record.final), None)
    content: Results = {
        "version": VERSION,
        "task": {
            "name": task.name,
            "summary": task.summary,
            "options": dict(task.options),
            "data": task.data,
            "metric": metric,
            "higher_is_better": task.higher_is_better,
            "floor": task.floor,
        },
        "steps": comparison.steps,
        "seeds": list(range(seeds)),
        "last": last,
        "schedule": comparison.request.schedule,
        "tuning_seed": TUNING_SEED,
        "tune_steps": comparison.tune_steps,
        "device": comparison.device,
        "parameters": outcomes[0].parameters,
        "reference": comparison.reference.label,
        "optimizers": [_optimizer(comparison, each, reference, metric, peaks[each.recipe.label]) for each in outcomes],
        "machine": _machine(comparison, outcomes, unchanged),
        "date": unchanged["date"] if unchanged else datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command,
    }
    texts = {"verdict": verdict.verdict(content), "clock": verdict.clock(content), "notes": words.notes(content)}
    return {**texts, **content}


def recorded(out: Path) -> Results | None:
    """The report in ``out``, or None if it does not exist or cannot be read."""
    try:
        stored = json.loads(read_text(out / RESULTS))
    except (OSError, ValueError):
        return None
    return stored if isinstance(stored, dict) and stored.get("version") == VERSION else None


def _loads(outcomes: Sequence[Outcome]) -> list[float | None]:
    """The load of the machine during every run, including tuning."""
    return [
        load
        for each in outcomes
        for load in (
            *(trial.load for trial in (each.tuning.trials if each.tuning else ())),
            *(record.load for record in each.records),
        )
    ]


def _machine(comparison: Comparison, outcomes: Sequence[Outcome], unchanged: Results | None) -> Results:
    state = unchanged["machine"] if unchanged else machine.state(comparison.device)
    loads = _loads(outcomes)
    known = [each for each in loads if each is not None]
    return {
        **state,
        "threads": comparison.request.threads,
        "load": {"min": min(known), "max": max(known)} if known else None,
        "busy_runs": sum(machine.busy(each, state["cores"]) for each in known),
        "runs": len(loads),
    }


def _peaks(
    comparison: Comparison, outcomes: Sequence[Outcome], previous: Results | None, progress: Progress | None
) -> dict[str, Peak]:
    """The peak memory of a step, by label: from the previous report, else measured if ``progress`` is not None."""
    entries = previous["optimizers"] if previous else ()
    known = {(each["name"], each["weights"]): recorded_peak(each) for each in entries}
    recipes = [outcome.recipe for outcome in outcomes]
    keys = [(recipe.name, recipe.artifact.fingerprint if recipe.artifact else None) for recipe in recipes]
    peaks = {
        recipe.label: known.get(key) or Peak(None, NOT_REQUESTED) for recipe, key in zip(recipes, keys, strict=True)
    }
    if progress is None:
        return peaks
    missing = [recipe for recipe, key in zip(recipes, keys, strict=True) if known.get(key) is None]
    request = comparison.request
    for done, recipe in enumerate(missing):
        progress(f"memory of {recipe.label}", done, len(missing))
        peaks[recipe.label] = measured(request.task, request.options, recipe.name, comparison.device)
    if missing:
        progress("memory", len(missing), len(missing))
    return peaks


def _optimizer(comparison: Comparison, outcome: Outcome, reference: Outcome, metric: str | None, peak: Peak) -> Results:
    entrant, recipe, last = outcome.entrant, outcome.recipe, comparison.last
    runs = [_run(record, last) for record in outcome.records]
    losses = _final_losses(outcome, last)
    model = _milliseconds([each for record in outcome.records for each in record.model_seconds])
    optimizer = _milliseconds([each for record in outcome.records for each in record.optimizer_seconds])
    state = max(record.state_bytes for record in outcome.records)
    reference_losses = _final_losses(reference, last)
    ahead = None
    if outcome is not reference and None not in losses.values() and None not in reference_losses.values():
        ahead = figures.wins(
            [v for v in losses.values() if v is not None], [v for v in reference_losses.values() if v is not None]
        )
    return {
        "name": recipe.name,
        "label": recipe.label,
        "learned": entrant.learned,
        "family": recipe.artifact.family if recipe.artifact else None,
        "weights": recipe.artifact.fingerprint if recipe.artifact else None,
        "hand_set": entrant.hand_set,
        "lr": recipe.lr,
        "lr_given": entrant.given,
        "schedule": recipe.schedule,
        "warmup": recipe.warmup,
        "weight_decay": recipe.weight_decay,
        "tuning": _tuning(outcome.tuning),
        "runs": runs,
        "diverged": sum(run["diverged"] is not None for run in runs),
        "loss": _spread([run["loss"] for run in runs]),
        "metric": _spread([run["evaluation"].get(metric) for run in runs]),
        "seeds_ahead_of_reference": ahead,
        "steps_to_reference": _arrival(outcome, reference_losses, last),
        "reference_steps_to_it": _arrival(reference, losses, last),
        "model_ms": model,
        "optimizer_ms": optimizer,
        "share": optimizer / (model + optimizer) if model is not None and optimizer is not None else None,
        "state_bytes": state,
        "state_bytes_per_parameter": state / outcome.parameters,
        "peak_bytes": peak.bytes,
        "peak_method": peak.method,
        "cost": _cost(outcome),
    }


def _run(record: figures.RunRecord, last: int) -> Results:
    diverged = figures.diverged(record, last)
    return {
        "seed": record.seed,
        "steps": len(record.losses),
        "initial_loss": record.losses[0] if record.losses else None,
        "loss": figures.final_loss(record, last),
        "evaluation": {} if diverged else dict(record.final),
        "diverged": diverged,
        "seconds": sum(record.seconds),
        "load": record.load,
    }


def _final_losses(outcome: Outcome, last: int) -> dict[int, float | None]:
    """The final loss by seed."""
    return {record.seed: figures.final_loss(record, last) for record in outcome.records}


def _spread(values: Sequence[float | None]) -> Results | None:
    known = [value for value in values if value is not None]
    spread = figures.spread(known) if len(known) == len(values) else None
    return asdict(spread) if spread else None


def _arrival(outcome: Outcome, targets: Mapping[int, float | None], last: int) -> Results | None:
    arrival = figures.arrival(outcome.records, targets, last)
    return asdict(arrival) if arrival else None


def _milliseconds(seconds: Sequence[float]) -> float | None:
    return 1000 * statistics.median(seconds) if seconds else None


def _tuning(tuning: Tuning | None) -> Results | None:
    if tuning is None:
        return None
    return {
        "trials": [asdict(each) for each in tuning.trials],
        "lr": tuning.lr,
        "loss": best(tuning.trials).loss,
        "runs": len(tuning.trials),
        "steps": tuning.steps * len(tuning.trials),
        "seconds": tuning.seconds,
        "extended": tuning.extended,
        "at_edge": tuning.at_edge,
    }


def _cost(outcome: Outcome) -> Results:
    """Runs, steps and seconds of training, including tuning."""
    tuning = outcome.tuning
    return {
        "runs": len(outcome.records) + (len(tuning.trials) if tuning else 0),
        "steps": sum(len(each.losses) for each in outcome.records)
        + (tuning.steps * len(tuning.trials) if tuning else 0),
        "seconds": sum(sum(each.seconds) for each in outcome.records) + (tuning.seconds if tuning else 0.0),
    }


def write(content: Results, outcomes: Sequence[Outcome], out: Path) -> list[Path]:
    """Write ``results.json``, the report as Markdown and HTML, and the figures. Return their paths.

    Raises:
        ZooError: a file cannot be written.
    """
    from pylo_zoo.experiments.compare import markdown, page, plots

    pictures = plots.draw(content, outcomes)
    files = {
        RESULTS: (json.dumps(content, indent=2, allow_nan=False) + "\n").encode(),
        MARKDOWN: markdown.render_comparison(content, list(pictures)).encode(),
        PAGE: page.render_page(content, pictures).encode(),
        **pictures,
    }
    for name, data in files.items():
        write_file(out / name, data)
    return [out / name for name in files]
