"""The results of a comparison in words and rounded numbers, the same on the terminal, in Markdown and on the page."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

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


def spreads(found: Entry) -> Literal["one", "equal", "several"]:
    """What there is to say of seeds: that there is one, that they make no difference, or a range."""
    if len(found["seeds"]) < 2:
        return "one"
    known = [spread for each in found["optimizers"] for spread in (each["loss"], each["metric"]) if spread]
    return "equal" if known and all(each["min"] == each["max"] for each in known) else "several"


def seeds_note(found: Entry) -> str:
    """What stands in a table of losses and metrics."""
    return {
        "one": "One seed was run, so that no range is known.",
        "equal": f"The same in each of {len(found['seeds'])} seeds, so that there is no range.",
        "several": f"Means over {len(found['seeds'])} seeds, and the range from the least to the greatest.",
    }[spreads(found)]


def arrival(found: Entry | None) -> str:
    """Steps to a target: ``120``, ``120 (in 2 of 3 seeds)``, ``in 1 of 3 seeds: 120`` or ``never``."""
    if found is None:
        return NONE
    if not found["reached"]:
        return "never"
    share = f"in {found['reached']} of {found['of']} seeds"
    if found["steps"] is None:
        return f"{share}: {found['reached_steps']:,.0f}"  # a median of two may be a half
    return f"{found['steps']:,.0f}" + (f" ({share})" if found["reached"] < found["of"] else "")


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


def listed(names: Sequence[str]) -> str:
    """``a``; ``a and b``; ``a, b and c``."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


# --- notes -------------------------------------------------------------------------------------------------------


def notes(found: Entry) -> list[str]:
    """What one has to know to judge the numbers: what was tuned, what the figures are, what they do not say."""
    said = [*_tuned(found), *_method(found)]
    load = found["machine"]["load"]
    if load and (busy := found["machine"]["busy_runs"]):
        said.append(
            f"The machine was busy in {busy} of {count(found['machine']['runs'], 'run')}, the search's included: a "
            f"load of up to {load['max']:.1f} on {count(found['machine']['cores'], 'core')}. Times and what is worked "
            "out of them are not to be relied upon; losses are not touched by it."
        )
    if hand := [each["label"] for each in found["optimizers"] if each["hand_set"]]:
        said.append(
            f"{listed(hand)}: its weights were set by hand and never trained. It shows the machinery; judge no "
            "learned optimizer by it."
        )
    sound = [each for each in found["optimizers"] if each["loss"]]
    fitted = [each for each in sound if each["loss"]["mean"] < FITTED * each["runs"][0]["initial_loss"]]
    if len(fitted) > 1 and found["task"]["floor"] is None:
        said.append(
            f"{listed([each['label'] for each in fitted])} end below {100 * FITTED:g} % of the initial loss: they "
            "have learned the training data by heart. Differences between them say little; look at what is held out."
        )
    if spreads(found) == "equal":
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
        said.append(f"Not tuned: {listed(own)}.{point}")
    if not untuned:
        said.append("Every optimizer was tuned, with a seed that is none of the runs'. Only the learning rate was.")
    elif len(untuned) < len(found["optimizers"]):
        said.append(
            "Tuned optimizers saw the task before the runs that count, with a seed that is not among them; the others "
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
    reference, last = found["reference"], count(found["last"], "step")
    return [
        f"Every optimizer got the same initial weights and batches in each seed. A loss is the mean of the last {last} "
        f"(5 %){_over(found)}. Milliseconds are medians; a step is the model's work and the optimizer's, without "
        "evaluations. Diverged is who met a loss that is no finite number, or ended more than 10 % above the initial "
        "one.",
        f"Steps to {reference}: after how many an optimizer's loss, averaged over {last}, is at {reference}'s final "
        f"loss of the same seed{_most(found)}. The next column turns that round. A schedule that falls to 0 lets most "
        "of the loss fall at the end of a run.",
    ]


def _over(found: Entry) -> str:
    seeds = count(len(found["seeds"]), "seed")
    return {
        "one": ", of the one seed",
        "equal": f", the same in each of {seeds}",
        "several": f", mean and range (min–max) over {seeds}; results.json has the standard deviation, too",
    }[spreads(found)]


def _most(found: Entry) -> str:
    return (
        "; the median over seeds, or over those that get there, where they are no more than half"
        if len(found["seeds"]) > 1
        else ""
    )


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


def on(machine: Entry) -> str:
    """The processor, how much of it was used, and how busy it was."""
    load = ""
    if machine["load"]:
        low, high = (f"{machine['load'][end]:.1f}" for end in ("min", "max"))
        load = f", load {low}" if low == high else f", load {low}–{high}"
    cores, threads = count(machine["cores"] or 1, "core"), count(machine["threads"], "thread")
    return f"{machine['gpu'] or machine['processor']}, {cores}, {threads}{load}"


def made(found: Entry) -> list[tuple[str, str]]:
    """On what, of what and when: name and value."""
    machine = found["machine"]
    versions = " · ".join(f"{name} {machine[name]}" for name in ("pylo-zoo", "torch", "python"))
    schedules = ", ".join(
        f"{each['label']} {each['schedule']}" + (f" after {100 * each['warmup']:g} % warmup" if each["warmup"] else "")
        for each in found["optimizers"]
    )
    return [
        ("machine", on(machine)),
        ("system", machine["system"]),
        ("versions", versions),
        ("data", found["task"]["data"]),
        ("task's options", ", ".join(f"{key} = {value}" for key, value in found["task"]["options"].items()) or "none"),
        ("schedules", schedules),
        ("step peak", "; ".join(sorted({each["peak_method"] for each in found["optimizers"]}))),
        ("date", found["date"]),
    ]
