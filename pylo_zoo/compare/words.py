"""The results of a comparison in words and rounded numbers, the same on the terminal, in Markdown and on the page."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pylo_zoo.parity.phrases import NONE, count, number

DIGITS = 3
FITTED = 0.01
"""A training loss below this share of the initial one: the data is learned by heart, and differences say little."""
SMALL_PEAK = 1_000_000
Entry = Mapping[str, Any]

HEAD = (
    "optimizer",
    "learning rate",
    "training loss",
    "held out",
    "steps to {reference}",
    "{reference}'s steps to it",
    "optimizer a step",
    "state / parameter",
    "step peak",
    "diverged",
    "cost with tuning",
)


def figure(value: float | None) -> str:
    """A loss or a metric, to three digits."""
    return number(value, DIGITS)


def duration(seconds: float) -> str:
    """``< 0.1 s``, ``42 s``, ``3.5 min``, ``2.1 h``."""
    if seconds < 0.1:
        return "< 0.1 s"
    for limit, size, unit in ((120, 1, "s"), (7200, 60, "min"), (float("inf"), 3600, "h")):
        if seconds < limit:
            return f"{number(seconds / size, 2)} {unit}"
    return NONE


def ranged(spread: Entry | None) -> str:
    """Mean, and from where to where: ``0.123 (0.12–0.13)``."""
    if spread is None:
        return NONE
    if spread["count"] < 2 or spread["min"] == spread["max"]:
        return figure(spread["mean"])
    return f"{figure(spread['mean'])} ({figure(spread['min'])}–{figure(spread['max'])})"


def arrival(found: Entry | None) -> str:
    """Steps to a target; ``never`` where not even half the seeds reached it."""
    if found is None:
        return NONE
    but = "but in " if found["steps"] is None else "in "
    share = f" ({but}{found['reached']} of {found['of']} seeds)" if 0 < found["reached"] < found["of"] else ""
    steps = "never" if found["steps"] is None else f"{found['steps']:,.0f}"  # a median of two may be a half
    return f"{steps}{share}"


def peak(each: Entry) -> str:
    """The memory of a step."""
    found = each["peak_bytes"]
    if found is None:
        return NONE
    small = found < SMALL_PEAK and "kernel" in each["peak_method"]
    return "< 1 MB" if small else f"{number(found / 1e6, 3)} MB"


def rate(each: Entry) -> str:
    """The learning rate, and where it comes from."""
    return f"{each['lr']:.3g}, {'tuned' if each['tuning'] else 'given' if each['lr_given'] else 'untuned'}"


def timing(each: Entry) -> str:
    """Time and share of the optimizer in a step."""
    return NONE if each["share"] is None else f"{number(each['optimizer_ms'], 3)} ms ({100 * each['share']:.0f} %)"


def row(each: Entry, found: Entry) -> list[str]:
    """The line of a table for an optimizer, in the order of :data:`HEAD`."""
    itself = each["label"] == found["reference"]
    total = len(each["runs"])
    return [
        each["label"] + (" (hand-set)" if each["hand_set"] else ""),
        rate(each),
        ranged(each["loss"]),
        ranged(each["metric"]),
        NONE if itself else arrival(each["steps_to_reference"]),
        NONE if itself else arrival(each["reference_steps_to_it"]),
        timing(each),
        f"{number(each['state_bytes_per_parameter'], 3)} B",
        peak(each),
        f"✕ {each['diverged']} of {total}" if each["diverged"] else "no",
        f"{count(each['cost']['runs'], 'run')}, {duration(each['cost']['seconds'])}",
    ]


def parts(cell: str) -> tuple[str, str]:
    """A cell of :func:`row` as what counts, and what stands in small letters below it."""
    for start, end in ((" (", ")"), (", ", "")):
        main, mark, rest = cell.partition(start)
        if mark:
            return main, rest.removesuffix(end)
    return cell, ""


def head(found: Entry) -> list[str]:
    """:data:`HEAD`, with the names of this comparison."""
    titles = [title.format(reference=found["reference"]) for title in HEAD]
    if found["task"]["metric"]:
        titles[3] = f"held out: {found['task']['metric'].replace('_', ' ')}"
    return titles


# --- the verdict -------------------------------------------------------------------------------------------------


def verdict(found: Entry) -> str:
    """Who ends lowest, by how much, and what that is worth; the first sentence says where the reference wins."""
    sound = sorted(
        (each for each in found["optimizers"] if each["loss"] and not each["diverged"]), key=lambda e: e["loss"]["mean"]
    )
    broken = [each for each in found["optimizers"] if each["diverged"]]
    if not sound:
        return "Every optimizer diverged in one seed at least: nothing is to be compared."
    said = [_first(sound, found)]
    place = next((i for i, each in enumerate(sound) if each["label"] == found["reference"]), 0)
    if _named(sound[place]) not in said[0]:
        said.append(f"{_named(sound[place])} is number {place + 1} of {len(sound)}, {ranged(sound[place]['loss'])}.")
    if (best := _held_out(sound, found)) is not None:
        said.append(best)
    if broken:
        each = "; ".join(f"{one['label']} in {one['diverged']} of {len(one['runs'])}" for one in broken)
        said.append(f"Diverged: {each}.")
    return " ".join(said)


def _first(sound: Sequence[Entry], found: Entry) -> str:
    winner, *others = sound
    seeds = len(found["seeds"])
    if not others:
        alone = " alone" if len(found["optimizers"]) > 1 else ""
        finished = " finished without diverging" if alone else " was the only optimizer"
        return f"{_named(winner)}{alone}{finished}: training loss {ranged(winner['loss'])}."
    second = others[0]
    if winner["loss"] == second["loss"]:
        return f"{_named(winner)} and {_named(second)} end at the same training loss, {ranged(winner['loss'])}."
    if seeds == 1:
        return (
            f"In the one seed that was run, {_named(winner)} ends at the lowest training loss, "
            f"{ranged(winner['loss'])}, before {_named(second)} at {ranged(second['loss'])}; one seed shows no spread, "
            "so that this may be chance."
        )
    close = [each for each in others if _overlap(winner, each)]
    if not close:
        margin = _margin(winner, second)
        fixed = all(each["loss"]["min"] == each["loss"]["max"] for each in (winner, second))
        apart = "the seeds make no difference" if fixed else f"their ranges over {seeds} seeds do not overlap"
        return (
            f"{_named(winner)} ends at the lowest training loss, {ranged(winner['loss'])}, {margin}"
            f"{_named(second)}, {ranged(second['loss'])}; {apart}."
        )
    names = _listed([_named(each) for each in close])
    return (
        f"No clear winner: {_named(winner)} has the lowest mean training loss, {ranged(winner['loss'])}, but its range "
        f"over {seeds} seeds overlaps that of {names}{_against_reference(winner, close, found)}."
    )


def _against_reference(winner: Entry, close: Sequence[Entry], found: Entry) -> str:
    """In how many seeds the winner is ahead of the reference, where their ranges overlap."""
    known = winner["seeds_ahead_of_reference"]
    if known is None or not any(each["label"] == found["reference"] for each in close):
        return ""
    return f"; it is ahead of {found['reference']} in {known} of {len(found['seeds'])} seeds"


def _margin(winner: Entry, second: Entry) -> str:
    """How far ahead, where a ratio means something."""
    low, high = winner["loss"]["mean"], second["loss"]["mean"]
    if low <= 0 or high <= 0:
        return "before "
    return f"{100 * (1 - low / high):.2g} % below " if high / low < 2 else f"{number(high / low)} times lower than "


def _held_out(sound: Sequence[Entry], found: Entry) -> str | None:
    """Who is best on data that is held out, if that is said of at least two."""
    task = found["task"]
    known = [each for each in sound if each["metric"]]
    if task["metric"] is None or len(known) < 2:
        return None
    best, second, *_ = sorted(known, key=lambda e: e["metric"]["mean"] * (-1 if task["higher_is_better"] else 1))
    name = f"held-out {task['metric'].replace('_', ' ')}"
    if best["metric"]["mean"] == second["metric"]["mean"]:
        return f"In {name}, {_named(best)} and {_named(second)} are level at {ranged(best['metric'])}."
    lead = f"In {name}, {_named(best)} has the best mean, {ranged(best['metric'])}, "
    lead += f"before {_named(second)}, {ranged(second['metric'])}"
    if len(found["seeds"]) > 1:
        apart = best["metric"]["min"] > second["metric"]["max"] or best["metric"]["max"] < second["metric"]["min"]
        lead += "; the ranges do not overlap" if apart else "; the ranges overlap"
    return lead + "."


def _overlap(one: Entry, other: Entry) -> bool:
    a, b = one["loss"], other["loss"]
    return a["min"] <= b["max"] and b["min"] <= a["max"]


def _named(each: Entry) -> str:
    if each["tuning"]:
        return f"tuned {each['label']}"
    hand = "hand-set " if each["hand_set"] else ""
    return f"{'' if each['lr_given'] else 'untuned '}{hand}{each['label']}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


# --- notes -------------------------------------------------------------------------------------------------------


def notes(found: Entry) -> list[str]:
    """What one has to know to judge the numbers: what was tuned, what the figures are, what they do not say."""
    said = [*_tuned(found), *_method(found)]
    loads = [load for load in (found["machine"]["load"], found["machine"]["load_after"]) if load is not None]
    if loads and max(loads) > (found["machine"]["cores"] or 1) + 0.5:
        said.append(
            f"The machine was busy: a load of up to {max(loads):.1f} on {count(found['machine']['cores'], 'core')}. "
            "Times and what is worked out of them are not to be relied upon; losses are not touched by it."
        )
    if hand := [each["label"] for each in found["optimizers"] if each["hand_set"]]:
        said.append(
            f"{_listed(hand)}: its weights were set by hand and never trained. It shows the machinery; judge no "
            "learned optimizer by it."
        )
    sound = [each for each in found["optimizers"] if each["loss"]]
    fitted = [each for each in sound if each["loss"]["mean"] < FITTED * each["runs"][0]["initial_loss"]]
    if len(fitted) > 1 and found["task"]["floor"] is None:
        said.append(
            f"{_listed([each['label'] for each in fitted])} end below {100 * FITTED:g} % of the initial loss: they "
            "have learned the training data by heart. Differences between them say little; look at what is held out."
        )
    if len(found["seeds"]) > 1 and sound and all(each["loss"]["min"] == each["loss"]["max"] for each in sound):
        said.append("The seeds make no difference on this task, so that there is no spread to judge a difference by.")
    said.append(
        f"One task of {found['parameters']:,} parameters and {found['steps']:,} steps says nothing about others; "
        "optimizers change places with size, length and batch."
    )
    return said


def _tuned(found: Entry) -> list[str]:
    said = [_searched(each) for each in found["optimizers"] if each["tuning"]]
    untuned = [each for each in found["optimizers"] if not each["tuning"]]
    if untuned:
        own = [f"{each['label']} (lr {each['lr']:.3g}{', given' if each['lr_given'] else ''})" for each in untuned]
        point = " To run without tuning is the point of a learned optimizer." if _any_learned(untuned) else ""
        said.append(f"Not tuned: {_listed(own)}.{point}")
    if not untuned:
        said.append("Every optimizer was tuned, with a seed that is none of the runs'. Only the learning rate was.")
    elif len(untuned) < len(found["optimizers"]):
        said.append(
            "Whoever was tuned saw the task before the runs that count, with a seed that is not among them; the others "
            "did not. That favours the tuned in the losses and burdens them in the cost, which counts it. Only the "
            "learning rate was tuned: no weight decay, no schedule, no warmup."
        )
    else:
        said.append("No optimizer was tuned. A baseline that is not tuned is a weak one: beating it proves little.")
    return said


def _any_learned(entries: Sequence[Entry]) -> bool:
    return any(each["learned"] for each in entries)


def _searched(each: Entry) -> str:
    """How the learning rate of an optimizer was found, and at what cost."""
    tuning = each["tuning"]
    rates = [trial["lr"] for trial in tuning["trials"]]
    lost = sum(trial["loss"] is None for trial in tuning["trials"])
    grown = f", {tuning['extended']} of them since the best lay at the edge" if tuning["extended"] else ""
    edge = "; it lies at the edge of what was tried, and a better one may lie beyond" if tuning["at_edge"] else ""
    return (
        f"{each['label']} was tuned: {count(tuning['runs'], 'learning rate')} from {min(rates):.3g} to {max(rates):.3g}"
        f"{grown}, {tuning['steps'] // tuning['runs']:,} steps each, {duration(tuning['seconds'])} in all; the best is "
        f"{tuning['lr']:.3g}{edge}." + (f" {lost} of them diverged." if lost else "")
    )


def _method(found: Entry) -> list[str]:
    of = "mean and range (min–max)" if len(found["seeds"]) > 1 else "value"
    reference, last = found["reference"], count(found["last"], "step")
    return [
        f"Every optimizer got the same initial weights and batches in each seed. A loss is the mean of the last {last} "
        f"(5 %), {of} over {count(len(found['seeds']), 'seed')}; results.json has the standard deviation, too. "
        "Milliseconds are medians; a step is the model's work and the optimizer's, without evaluations. Diverged is "
        "who met a loss that is no finite number, or ended more than 10 % above the initial one.",
        f"Steps to {reference}: after how many an optimizer's loss, averaged over {last}, is at {reference}'s final "
        "loss of the same seed; the median over seeds, and “never” where not even half of them get there. The next "
        "column turns that round. A schedule that falls to 0 lets most of the loss fall at the end of a run.",
    ]


# --- the rest of a report ----------------------------------------------------------------------------------------

CAPTIONS = {
    "loss-steps.png": "Training loss by steps",
    "loss-seconds.png": "Training loss by seconds of training",
    "held-out.png": "Data that is held out, by steps",
    "optimizer-time.png": "Where a step's time goes",
}


def sentence(text: str) -> str:
    """``text`` with a capital at the beginning of each sentence."""
    return re.sub(
        r"(^|\. )(tuned|untuned)\b", lambda match: match[1] + match[2].capitalize(), text[:1].upper() + text[1:]
    )


def setting(found: Entry) -> str:
    """What was done, in a line."""
    task = found["task"]
    return (
        f"{sentence(task['summary'])} ({found['parameters']:,} parameters), {found['steps']:,} steps, "
        f"{count(len(found['seeds']), 'seed')}, on {found['device']}."
    )


def made(found: Entry) -> list[tuple[str, str]]:
    """On what, of what and when: name and value."""
    machine = found["machine"]
    versions = " · ".join(f"{name} {machine[name]}" for name in ("pylo-zoo", "torch", "python"))
    load = "" if machine["load"] is None else f", load {machine['load']} before and {machine['load_after']} after"
    schedules = ", ".join(
        f"{each['label']} {each['schedule']}" + (f" after {100 * each['warmup']:g} % warmup" if each["warmup"] else "")
        for each in found["optimizers"]
    )
    return [
        (
            "machine",
            f"{machine['gpu'] or machine['processor']}, {machine['cores']} cores, {machine['threads']} threads{load}",
        ),
        ("system", machine["system"]),
        ("versions", versions),
        ("data", found["task"]["data"]),
        ("task's options", ", ".join(f"{key} = {value}" for key, value in found["task"]["options"].items()) or "none"),
        ("schedules", schedules),
        ("step peak", "; ".join(sorted({each["peak_method"] for each in found["optimizers"]}))),
        ("date", found["date"]),
    ]
