"""What a comparison comes to, in sentences: who ends lowest, and who is there first by the clock."""

from __future__ import annotations

from collections.abc import Sequence

from pylo_zoo.compare import words
from pylo_zoo.compare.words import Entry
from pylo_zoo.parity.phrases import number


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
    if named(sound[place]) not in said[0]:
        said.append(
            f"{named(sound[place])} is number {place + 1} of {len(sound)}, {words.ranged(sound[place]['loss'])}."
        )
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
        return f"{named(winner)}{alone}{finished}: training loss {words.ranged(winner['loss'])}."
    second = others[0]
    if winner["loss"] == second["loss"]:
        return f"{named(winner)} and {named(second)} end at the same training loss, {words.ranged(winner['loss'])}."
    if seeds == 1:
        return (
            f"In the one seed that was run, {named(winner)} ends at the lowest training loss, "
            f"{words.ranged(winner['loss'])}, before {named(second)} at {words.ranged(second['loss'])}; one seed shows "
            "no spread, so that this may be chance."
        )
    close = [each for each in others if _overlap(winner, each)]
    if not close:
        margin = _margin(winner, second)
        fixed = all(each["loss"]["min"] == each["loss"]["max"] for each in (winner, second))
        apart = "the seeds make no difference" if fixed else f"their ranges over {seeds} seeds do not overlap"
        return (
            f"{named(winner)} ends at the lowest training loss, {words.ranged(winner['loss'])}, {margin}"
            f"{named(second)}, {words.ranged(second['loss'])}; {apart}."
        )
    names = words.listed([named(each) for each in close])
    return (
        f"No clear winner: {named(winner)} has the lowest mean training loss, {words.ranged(winner['loss'])}, but its "
        f"range over {seeds} seeds overlaps that of {names}{_against_reference(winner, close, found)}."
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
        return f"In {name}, {named(best)} and {named(second)} are level at {words.ranged(best['metric'])}."
    lead = f"In {name}, {named(best)} has the best mean, {words.ranged(best['metric'])}, "
    lead += f"before {named(second)}, {words.ranged(second['metric'])}"
    if len(found["seeds"]) > 1:
        apart = best["metric"]["min"] > second["metric"]["max"] or best["metric"]["max"] < second["metric"]["min"]
        lead += "; the ranges do not overlap" if apart else "; the ranges overlap"
    return lead + "."


def _overlap(one: Entry, other: Entry) -> bool:
    a, b = one["loss"], other["loss"]
    return a["min"] <= b["max"] and b["min"] <= a["max"]


def named(each: Entry) -> str:
    """An optimizer with what matters to judge it: whether it was tuned, or set by hand."""
    if each["tuning"]:
        return f"tuned {each['label']}"
    hand = "hand-set " if each["hand_set"] else ""
    return f"{'' if each['lr_given'] else 'untuned '}{hand}{each['label']}"


# --- the clock ---------------------------------------------------------------------------------------------------


def clock(found: Entry) -> str | None:
    """Who is first at the loss where the reference ends, in seconds of training; None where that says nothing."""
    entries = found["optimizers"]
    goal = next(each for each in entries if each["label"] == found["reference"])
    if len(entries) < 2 or not goal["loss"]:
        return None
    arrived = [each for each in entries if (each["steps_to_reference"] or {}).get("seconds") is not None]
    if not arrived:
        return None
    first, *others = sorted(arrived, key=lambda each: each["steps_to_reference"]["seconds"])
    if first is goal:
        said = f"By the clock, nobody is at the final loss of {named(goal)} before it: it takes {_seconds(goal)}"
        said += "".join(f", {named(each)} {_seconds(each)}" for each in others)
    else:
        said = f"By the clock, {named(first)} is the first at the final loss of {named(goal)}: {_seconds(first)}"
        said += f", against {words.listed([f'{_seconds(each)} for {named(each)}' for each in others])}"
    late = [(each, each["steps_to_reference"] or {"reached": 0}) for each in entries if each not in arrived]
    said += "".join(
        f"; {named(each)} gets there in {to['reached']} of {to['of']} seeds" for each, to in late if to["reached"]
    )
    if never := [named(each) for each, to in late if not to["reached"]]:
        said += f"; {words.listed(never)} {'does' if len(never) == 1 else 'do'} not get there"
    said += "."
    if searched := [each for each in entries if each["tuning"]]:
        cost = words.listed([f"{words.duration(each['tuning']['seconds'])} for {each['label']}" for each in searched])
        said += f" The search for a learning rate is not in that: {cost}."
    if found["machine"]["busy_runs"]:
        said += " The machine was busy: these times are rough."
    return said


def _seconds(each: Entry) -> str:
    return f"{number(each['steps_to_reference']['seconds'], 2)} s"
