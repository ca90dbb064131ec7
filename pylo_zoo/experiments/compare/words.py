"""The texts and rounded numbers of a comparison, shared by the terminal, the Markdown report and the HTML page."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pylo_zoo.errors import count
from pylo_zoo.report.phrases import NONE, number

DIGITS = 3
FITTED = 0.01
"""A training loss below this fraction of the initial loss means that the model memorized the data."""
SMALL_PEAK = 1_000_000
"""The kernel's peak memory is not meaningful below this many bytes."""
Entry = Mapping[str, Any]

HEAD = (
    "optimizer",
    "learning rate",
    "training loss",
    "held out",
    "steps to {reference}",
    "{reference}'s steps to it",
    "optimizer per step",
    "state / parameter",
    "step peak",
    "diverged",
    "cost with tuning",
)


def rounded(value: float | None) -> str:
    """A loss or a metric with three digits."""
    return number(value, DIGITS)


def duration(seconds: float) -> str:
    """A duration such as ``< 0.1 s``, ``42 s``, ``3.5 min`` or ``2.1 h``."""
    if seconds < 0.1:
        return "< 0.1 s"
    for limit, size, unit in ((120, 1, "s"), (7200, 60, "min"), (float("inf"), 3600, "h")):
        if seconds < limit:
            return f"{number(seconds / size, 2)} {unit}"
    return NONE


def mean_and_range(spread: Entry | None) -> str:
    """A mean with its range, such as ``0.123 (0.12–0.13)``."""
    if spread is None:
        return NONE
    if spread["count"] < 2 or spread["min"] == spread["max"]:
        return rounded(spread["mean"])
    return f"{rounded(spread['mean'])} ({rounded(spread['min'])}–{rounded(spread['max'])})"


def seed_variation(results: Entry) -> Literal["one", "equal", "several"]:
    """Whether there is one seed, all seeds have equal results, or the results vary."""
    if len(results["seeds"]) < 2:
        return "one"
    known = [spread for each in results["optimizers"] for spread in (each["loss"], each["metric"]) if spread]
    return "equal" if known and all(each["min"] == each["max"] for each in known) else "several"


def seeds_note(results: Entry) -> str:
    """The note on a table of losses and metrics."""
    seeds = len(results["seeds"])
    return {
        "one": "Only one seed was run, so the range is unknown.",
        "equal": f"All {seeds} seeds have the same results.",
        "several": f"Means over {seeds} seeds, with the range from minimum to maximum.",
    }[seed_variation(results)]


def arrival(entry: Entry | None) -> str:
    """Steps to a target: ``120``, ``120 (in 2 of 3 seeds)``, ``in 1 of 3 seeds: 120`` or ``never``."""
    if entry is None:
        return NONE
    if not entry["reached"]:
        return "never"
    share = f"in {entry['reached']} of {entry['of']} seeds"
    if entry["steps"] is None:
        return f"{share}: {entry['reached_steps']:,.0f}"
    return f"{entry['steps']:,.0f}" + (f" ({share})" if entry["reached"] < entry["of"] else "")


def peak(each: Entry) -> str:
    """The peak memory of a step."""
    value = each["peak_bytes"]
    if value is None:
        return NONE
    small = value < SMALL_PEAK and "kernel" in each["peak_method"]
    return "< 1 MB" if small else f"{number(value / 1e6, 3)} MB"


def rate(each: Entry) -> str:
    """The learning rate and its origin."""
    return f"{each['lr']:.3g}, {'tuned' if each['tuning'] else 'given' if each['lr_given'] else 'untuned'}"


def timing(each: Entry) -> str:
    """The time of the optimizer and its share of a step."""
    return NONE if each["share"] is None else f"{number(each['optimizer_ms'], 3)} ms ({100 * each['share']:.0f} %)"


def row(each: Entry, results: Entry) -> list[str]:
    """The table row of an optimizer, in the order of :data:`HEAD`."""
    is_reference = each["label"] == results["reference"]
    total = len(each["runs"])
    return [
        each["label"] + (" (hand-set)" if each["hand_set"] else ""),
        rate(each),
        mean_and_range(each["loss"]),
        mean_and_range(each["metric"]),
        "reference" if is_reference else arrival(each["steps_to_reference"]),
        "reference" if is_reference else arrival(each["reference_steps_to_it"]),
        timing(each),
        f"{number(each['state_bytes_per_parameter'], 3)} B",
        peak(each),
        f"✕ {each['diverged']} of {total}" if each["diverged"] else "no",
        f"{count(each['cost']['runs'], 'run')}, {duration(each['cost']['seconds'])}",
    ]


def parts(cell: str) -> tuple[str, str]:
    """A cell of :func:`row` split into its main text and the small text below it."""
    for start, end in ((" (", ")"), (", ", "")):
        main, mark, rest = cell.partition(start)
        if mark:
            return main, rest.removesuffix(end)
    return cell, ""


def head(results: Entry) -> list[str]:
    """:data:`HEAD` with the names of this comparison."""
    titles = [title.format(reference=results["reference"]) for title in HEAD]
    if results["task"]["metric"]:
        titles[3] = f"held out: {results['task']['metric'].replace('_', ' ')}"
    return titles


def listed(names: Sequence[str]) -> str:
    """An enumeration: ``a``, ``a and b`` or ``a, b and c``."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


# --- notes -------------------------------------------------------------------------------------------------------


def notes(results: Entry) -> list[str]:
    """The notes of the report: tuning, method and limits of the results."""
    sentences = [*_tuning_notes(results), *_method_notes(results)]
    load = results["machine"]["load"]
    if load and (busy := results["machine"]["busy_runs"]):
        sentences.append(
            f"The machine was busy in {busy} of {count(results['machine']['runs'], 'run')}, including tuning: its load "
            f"was up to {load['max']:.1f} on {count(results['machine']['cores'], 'core')}. All times are unreliable; "
            "the losses are not affected."
        )
    if hand_set := [each["label"] for each in results["optimizers"] if each["hand_set"]]:
        sentences.append(
            f"The weights of {listed(hand_set)} were set by hand and never trained. They show that the code works, not "
            "how well a learned optimizer trains."
        )
    finite = [each for each in results["optimizers"] if each["loss"]]
    fitted = [each for each in finite if each["loss"]["mean"] < FITTED * each["runs"][0]["initial_loss"]]
    if len(fitted) > 1 and results["task"]["floor"] is None:
        sentences.append(
            f"{listed([each['label'] for each in fitted])} end below {100 * FITTED:g} % of the initial loss: they "
            "memorized the training data. Compare their held-out metric instead of the loss."
        )
    if seed_variation(results) == "equal":
        sentences.append("All seeds have the same results on this task, so the spread over seeds is unknown.")
    sentences.append(
        f"These results hold for one task with {count(results['parameters'], 'parameter')} and "
        f"{count(results['steps'], 'step')}. "
        "The ranking of optimizers changes with the model size, the number of steps and the batch size."
    )
    return sentences


def _tuning_notes(results: Entry) -> list[str]:
    sentences = [_tuning_note(each) for each in results["optimizers"] if each["tuning"]]
    untuned = [each for each in results["optimizers"] if not each["tuning"]]
    if untuned:
        rates = [f"{each['label']} (lr {each['lr']:.3g}{', given' if each['lr_given'] else ''})" for each in untuned]
        purpose = " Learned optimizers are meant to run without tuning." if _any_learned(untuned) else ""
        sentences.append(f"Not tuned: {listed(rates)}.{purpose}")
    if not untuned:
        sentences.append(
            "The learning rate of every optimizer was tuned, with a seed that the reported runs do not use."
        )
    elif len(untuned) < len(results["optimizers"]):
        sentences.append(
            "Tuning trains on the same task, with a seed that the reported runs do not use. It lowers the losses of "
            "the tuned optimizers, and the cost column includes it. Only the learning rate was tuned, not weight "
            "decay, schedule or warmup."
        )
    else:
        sentences.append("No optimizer was tuned. An untuned baseline is weak: beating it proves little.")
    return sentences


def _any_learned(entries: Sequence[Entry]) -> bool:
    return any(each["learned"] for each in entries)


def _tuning_note(each: Entry) -> str:
    """How the learning rate of an optimizer was tuned, and what it cost."""
    tuning = each["tuning"]
    steps = count(tuning["steps"] // tuning["runs"], "step")
    rates = [trial["lr"] for trial in tuning["trials"]]
    diverged = sum(trial["loss"] is None for trial in tuning["trials"])
    extended = f" ({tuning['extended']} added because the best was at the edge)" if tuning["extended"] else ""
    edge = ", at the edge of the tried range, so a better one may exist outside" if tuning["at_edge"] else ""
    return (
        f"{each['label']} was tuned: {count(tuning['runs'], 'learning rate')} from {min(rates):.3g} to {max(rates):.3g}"
        f"{extended}, {steps} each, {duration(tuning['seconds'])} in total. The "
        f"best is {tuning['lr']:.3g}{edge}." + (f" {count(diverged, 'trial')} diverged." if diverged else "")
    )


def _method_notes(results: Entry) -> list[str]:
    reference, last = results["reference"], count(results["last"], "step")
    return [
        "For each seed, all optimizers got the same initial weights and batches. A loss is the mean of the last "
        f"{last} (5 %){_seeds_clause(results)}. Times are medians per step, of model and optimizer, without "
        "evaluation. A run diverged if its loss was not finite, or ended more than 10 % above the initial loss.",
        f"Steps to {reference}: the number of steps until the loss, averaged over {last}, reaches {reference}'s final "
        f"loss with the same seed{_median_clause(results)}. The next column is the reverse: {reference}'s steps to the "
        "final loss of this optimizer. With a schedule that decays to 0, most of the loss falls at the end of a run.",
    ]


def _seeds_clause(results: Entry) -> str:
    seeds = count(len(results["seeds"]), "seed")
    return {
        "one": " of one seed",
        "equal": f", the same in all {seeds}",
        "several": f"; the table shows mean and range (min–max) over {seeds}, results.json also the standard deviation",
    }[seed_variation(results)]


def _median_clause(results: Entry) -> str:
    return (
        " (the median over seeds, or, if at most half of the seeds reach it, over those that do)"
        if len(results["seeds"]) > 1
        else ""
    )


# --- the rest of a report ----------------------------------------------------------------------------------------

CAPTIONS = {
    "loss-steps.png": "Training loss by steps",
    "loss-seconds.png": "Training loss by seconds of training",
    "held-out.png": "Held-out metric by steps",
    "optimizer-time.png": "Step time of model and optimizer",
}


def sentence(text: str) -> str:
    """``text`` with a capital letter at the start of each sentence."""
    return re.sub(
        r"(^|\. )(tuned|untuned)\b", lambda match: match[1] + match[2].capitalize(), text[:1].upper() + text[1:]
    )


def setting(results: Entry) -> str:
    """Task, parameters, steps, seeds and device in one line."""
    task = results["task"]
    return (
        f"{sentence(task['summary'])} ({count(results['parameters'], 'parameter')}), "
        f"{count(results['steps'], 'step')}, {count(len(results['seeds']), 'seed')}, on {results['device']}."
    )


def describe_machine(machine: Entry) -> str:
    """Processor, cores, threads and load in one line."""
    load = ""
    if machine["load"]:
        low, high = (f"{machine['load'][end]:.1f}" for end in ("min", "max"))
        load = f", load {low}" if low == high else f", load {low}–{high}"
    cores, threads = count(machine["cores"] or 1, "core"), count(machine["threads"], "thread")
    return f"{machine['gpu'] or machine['processor']}, {cores}, {threads}{load}"


def provenance(results: Entry) -> list[tuple[str, str]]:
    """Machine, versions, data, settings and date, as names and values."""
    machine, options = results["machine"], results["task"]["options"]
    versions = " · ".join(f"{name} {machine[name]}" for name in ("pylo-zoo", "torch", "python"))
    schedules = ", ".join(
        f"{each['label']} {each['schedule']}" + (f" after {100 * each['warmup']:g} % warmup" if each["warmup"] else "")
        for each in results["optimizers"]
    )
    return [
        ("machine", describe_machine(machine)),
        ("system", machine["system"]),
        ("versions", versions),
        ("data", results["task"]["data"]),
        ("task options", ", ".join(f"{key} = {value}" for key, value in options.items()) or "none"),
        ("schedules", schedules),
        ("step peak", "; ".join(sorted({each["peak_method"] for each in results["optimizers"]}))),
        ("date", results["date"]),
    ]
