"""What came of a comparison: ``results.json``, and the texts and pictures that say the same."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from pylo_zoo.compare import figures, machine, verdict, words
from pylo_zoo.compare.memory import Peak, measured
from pylo_zoo.compare.memory import recorded as recorded_peak
from pylo_zoo.compare.plan import TUNING_SEED, Comparison
from pylo_zoo.compare.running import Outcome, Tuning, best
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
"""Keys of what differs from one making of the same comparison to the next."""

Results = dict[str, Any]


def results(
    comparison: Comparison,
    outcomes: Sequence[Outcome],
    *,
    command: str,
    memory: bool = True,
    before: Results | None = None,
    say: Callable[[], None] = lambda: None,
) -> Results:
    """Everything that is reported, as ``results.json`` holds it; no number in it is other than finite.

    Args:
        comparison: what was compared.
        outcomes: its runs.
        command: the line that makes the same comparison.
        memory: whether to measure the peak memory of a step, which takes seconds for each optimizer.
        before: the report that there was already: memory that it knows is not measured again, and where no run was
            made since, machine and date are its own.
        say: called before memory is measured, if it is.
    """
    old = before if before and not any(each.made for each in outcomes) else None
    peaks = _peaks(comparison, outcomes, before, say) if memory else {}
    last = comparison.last
    reference = next(each for each in outcomes if each.entrant is comparison.reference)
    task, seeds = comparison.task, comparison.wanted.seeds
    metric = next((name for each in outcomes for course in each.courses for name in course.final), None)
    found: Results = {
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
        "schedule": comparison.wanted.schedule,
        "tuning_seed": TUNING_SEED,
        "tune_steps": comparison.tune_steps,
        "device": comparison.device,
        "parameters": outcomes[0].parameters,
        "reference": comparison.reference.label,
        "optimizers": [
            _optimizer(comparison, each, reference, metric, peaks.get(each.recipe.label, Peak(None, "not asked for")))
            for each in outcomes
        ],
        "machine": _machine(comparison, outcomes, old),
        "date": old["date"] if old else datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command,
    }
    return {"verdict": verdict.verdict(found), "clock": verdict.clock(found), "notes": words.notes(found), **found}


def recorded(out: Path) -> Results | None:
    """The report that ``out`` holds already; None where there is none that can be read."""
    try:
        found = json.loads(read_text(out / RESULTS))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("version") == VERSION else None


def _loads(outcomes: Sequence[Outcome]) -> list[float | None]:
    """Of the machine during every run, the search's included."""
    return [
        load
        for each in outcomes
        for load in (
            *(trial.load for trial in (each.tuning.trials if each.tuning else ())),
            *(course.load for course in each.courses),
        )
    ]


def _machine(comparison: Comparison, outcomes: Sequence[Outcome], before: Results | None) -> Results:
    """What the runs were made on: as it was written down, if all of them are old."""
    state = before["machine"] if before else machine.state(comparison.device)
    loads = _loads(outcomes)
    known = [each for each in loads if each is not None]
    return {
        **state,
        "threads": comparison.wanted.threads,
        "load": {"min": min(known), "max": max(known)} if known else None,
        "busy_runs": sum(machine.busy(each, state["cores"]) for each in known),
        "runs": len(loads),
    }


def _peaks(
    comparison: Comparison, outcomes: Sequence[Outcome], before: Results | None, say: Callable[[], None]
) -> dict[str, Peak]:
    """The memory of a step, by label: as it was written down, or else measured."""
    known = {(each["name"], each["weights"]): recorded_peak(each) for each in (before["optimizers"] if before else ())}
    found: dict[str, Peak] = {}
    said = False
    for outcome in outcomes:
        recipe = outcome.recipe
        peak = known.get((recipe.name, recipe.artifact.fingerprint if recipe.artifact else None))
        if peak is None:
            if not said:
                say()
            said = True
            peak = measured(comparison.wanted.task, comparison.wanted.options, recipe.name, comparison.device)
        found[recipe.label] = peak
    return found


def _optimizer(comparison: Comparison, outcome: Outcome, reference: Outcome, metric: str | None, peak: Peak) -> Results:
    entrant, recipe, last = outcome.entrant, outcome.recipe, comparison.last
    runs = [_run(course, last) for course in outcome.courses]
    losses = _finals(outcome, last)
    model = _milliseconds([each for course in outcome.courses for each in course.model_seconds])
    optimizer = _milliseconds([each for course in outcome.courses for each in course.optimizer_seconds])
    state = max(course.state_bytes for course in outcome.courses)
    theirs = _finals(reference, last)
    ahead = None
    if outcome is not reference and None not in losses.values() and None not in theirs.values():
        ahead = figures.wins(
            [v for v in losses.values() if v is not None], [v for v in theirs.values() if v is not None]
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
        "steps_to_reference": _arrival(outcome, theirs, last),
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


def _run(course: figures.Course, last: int) -> Results:
    why = figures.diverged(course, last)
    return {
        "seed": course.seed,
        "steps": len(course.losses),
        "initial_loss": course.losses[0] if course.losses else None,
        "loss": figures.final_loss(course, last),
        "evaluation": {} if why else dict(course.final),
        "diverged": why,
        "seconds": sum(course.seconds),
        "load": course.load,
    }


def _finals(outcome: Outcome, last: int) -> dict[int, float | None]:
    return {course.seed: figures.final_loss(course, last) for course in outcome.courses}


def _spread(values: Sequence[float | None]) -> Results | None:
    known = [value for value in values if value is not None]
    found = figures.spread(known) if len(known) == len(values) else None
    return asdict(found) if found else None


def _arrival(outcome: Outcome, targets: Mapping[int, float | None], last: int) -> Results | None:
    found = figures.arrival(outcome.courses, targets, last)
    return asdict(found) if found else None


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
    """Runs, steps and seconds of training, tuning included."""
    tuning = outcome.tuning
    return {
        "runs": len(outcome.courses) + (len(tuning.trials) if tuning else 0),
        "steps": sum(len(each.losses) for each in outcome.courses)
        + (tuning.steps * len(tuning.trials) if tuning else 0),
        "seconds": sum(sum(each.seconds) for each in outcome.courses) + (tuning.seconds if tuning else 0.0),
    }


def write(found: Results, outcomes: Sequence[Outcome], out: Path) -> list[Path]:
    """Write ``results.json``, the report as Markdown and as a page, and the figures; what was written.

    Raises:
        ZooError: the file system refuses.
    """
    from pylo_zoo.compare import markdown, page, plots

    pictures = plots.draw(found, outcomes)
    content = {
        RESULTS: (json.dumps(found, indent=2, allow_nan=False) + "\n").encode(),
        MARKDOWN: markdown.render_comparison(found, list(pictures)).encode(),
        PAGE: page.render_page(found, pictures).encode(),
        **pictures,
    }
    for name, data in content.items():
        write_file(out / name, data)
    return [out / name for name in content]
