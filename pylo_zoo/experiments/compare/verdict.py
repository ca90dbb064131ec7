"""The conclusions of a comparison in sentences: which optimizer ends lowest, and which reaches a loss first."""

from __future__ import annotations

from collections.abc import Sequence

from pylo_zoo.experiments.compare import words
from pylo_zoo.experiments.compare.words import Entry
from pylo_zoo.report.phrases import number


def verdict(results: Entry) -> str:
    """Which optimizer ends lowest, by how much, and whether the seeds support it."""
    finite = sorted(
        (each for each in results["optimizers"] if each["loss"] and not each["diverged"]),
        key=lambda each: each["loss"]["mean"],
    )
    diverged = [each for each in results["optimizers"] if each["diverged"]]
    if not finite:
        return "Every optimizer diverged with at least one seed, so there is nothing to compare."
    sentences = [_winner_sentence(finite, results)]
    rank = next((i for i, each in enumerate(finite) if each["label"] == results["reference"]), 0)
    if named(finite[rank]) not in sentences[0]:
        loss = words.mean_and_range(finite[rank]["loss"])
        sentences.append(f"{named(finite[rank])} ranks {rank + 1} of {len(finite)} with {loss}.")
    if (best := _held_out_sentence(finite, results)) is not None:
        sentences.append(best)
    if diverged:
        counts = "; ".join(f"{each['label']} in {each['diverged']} of {len(each['runs'])}" for each in diverged)
        sentences.append(f"Diverged: {counts}.")
    return " ".join(sentences)


def _winner_sentence(finite: Sequence[Entry], results: Entry) -> str:
    winner, *others = finite
    seeds = len(results["seeds"])
    loss = words.mean_and_range(winner["loss"])
    if not others:
        several = len(results["optimizers"]) > 1
        finished = "is the only optimizer that did not diverge" if several else "was the only optimizer"
        return f"{named(winner)} {finished}: training loss {loss}."
    second = others[0]
    if winner["loss"] == second["loss"]:
        return f"{named(winner)} and {named(second)} end at the same training loss, {loss}."
    second_loss = words.mean_and_range(second["loss"])
    if seeds == 1:
        return (
            f"With one seed, {named(winner)} ends at the lowest training loss, {loss}, before {named(second)} at "
            f"{second_loss}. One seed shows no spread, so this may be chance."
        )
    close = [each for each in others if _overlap(winner, each)]
    if not close:
        margin = _margin(winner, second)
        fixed = all(each["loss"]["min"] == each["loss"]["max"] for each in (winner, second))
        ranges = "all seeds have the same results" if fixed else f"their ranges over {seeds} seeds do not overlap"
        return (
            f"{named(winner)} ends at the lowest training loss, {loss}, {margin}{named(second)}, {second_loss}; "
            f"{ranges}."
        )
    names = words.listed([named(each) for each in close])
    return (
        f"No clear winner: {named(winner)} has the lowest mean training loss, {loss}, but its range over {seeds} seeds "
        f"overlaps that of {names}{_against_reference(winner, close, results)}."
    )


def _against_reference(winner: Entry, close: Sequence[Entry], results: Entry) -> str:
    """In how many seeds the winner is ahead of the reference, if their ranges overlap."""
    ahead = winner["seeds_ahead_of_reference"]
    if ahead is None or not any(each["label"] == results["reference"] for each in close):
        return ""
    return f"; it is ahead of {results['reference']} in {ahead} of {len(results['seeds'])} seeds"


def _margin(winner: Entry, second: Entry) -> str:
    """The ratio of the losses, if both are positive."""
    low, high = winner["loss"]["mean"], second["loss"]["mean"]
    if low <= 0 or high <= 0:
        return "before "
    return f"{100 * (1 - low / high):.2g} % below " if high / low < 2 else f"{number(high / low)} times lower than "


def _held_out_sentence(finite: Sequence[Entry], results: Entry) -> str | None:
    """Which optimizer is best on held-out data, if at least two have a metric."""
    task = results["task"]
    known = [each for each in finite if each["metric"]]
    if task["metric"] is None or len(known) < 2:
        return None
    best, second, *_ = sorted(known, key=lambda e: e["metric"]["mean"] * (-1 if task["higher_is_better"] else 1))
    name = f"held-out {task['metric'].replace('_', ' ')}"
    if best["metric"]["mean"] == second["metric"]["mean"]:
        return f"In {name}, {named(best)} and {named(second)} are equal: {words.mean_and_range(best['metric'])}."
    text = f"In {name}, {named(best)} has the best mean, {words.mean_and_range(best['metric'])}, "
    text += f"before {named(second)}, {words.mean_and_range(second['metric'])}"
    if len(results["seeds"]) > 1:
        apart = best["metric"]["min"] > second["metric"]["max"] or best["metric"]["max"] < second["metric"]["min"]
        text += "; the ranges do not overlap" if apart else "; the ranges overlap"
    return text + "."


def _overlap(one: Entry, other: Entry) -> bool:
    a, b = one["loss"], other["loss"]
    return a["min"] <= b["max"] and b["min"] <= a["max"]


def named(each: Entry) -> str:
    """The label of an optimizer, with whether it was tuned or hand-set."""
    if each["tuning"]:
        return f"tuned {each['label']}"
    if each["hand_set"]:
        return f"{each['label']} (weights set by hand{'' if each['lr_given'] else ', not tuned'})"
    return f"{'' if each['lr_given'] else 'untuned '}{each['label']}"


# --- the clock ---------------------------------------------------------------------------------------------------


def clock(results: Entry) -> str | None:
    """Which optimizer first reaches the reference's final loss in training time, or None if that is unknown."""
    entries = results["optimizers"]
    reference = next(each for each in entries if each["label"] == results["reference"])
    if len(entries) < 2 or not reference["loss"]:
        return None
    arrived = [each for each in entries if (each["steps_to_reference"] or {}).get("seconds") is not None]
    if not arrived:
        return None
    first, *others = sorted(arrived, key=lambda each: each["steps_to_reference"]["seconds"])
    target = f"the final loss of {named(reference)}"
    times = [f"{named(each)} after {_seconds(each)}" for each in (first, *others)]
    if first is reference:
        text = f"No other optimizer reaches {target} faster: {words.listed(times)}"
    else:
        text = f"{named(first)} reaches {target} first: {words.listed(times)}"
    late = [(each, each["steps_to_reference"] or {"reached": 0}) for each in entries if each not in arrived]
    text += "".join(
        f"; {named(each)} reaches it in {to['reached']} of {to['of']} seeds" for each, to in late if to["reached"]
    )
    if never := [named(each) for each, to in late if not to["reached"]]:
        text += f"; {words.listed(never)} {'does' if len(never) == 1 else 'do'} not reach it"
    text += "."
    if tuned := [each for each in entries if each["tuning"]]:
        cost = words.listed([f"{words.duration(each['tuning']['seconds'])} for {each['label']}" for each in tuned])
        text += f" These times exclude tuning: {cost}."
    if results["machine"]["busy_runs"]:
        text += " The machine was busy, so the times are approximate."
    return text


def _seconds(each: Entry) -> str:
    return f"{number(each['steps_to_reference']['seconds'], 2)} s"
