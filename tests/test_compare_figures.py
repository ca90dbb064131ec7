"""A comparison's statistics and the sentences about them, on invented losses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pylo_zoo.experiments.compare import figures, machine, styles, verdict, words
from pylo_zoo.experiments.compare.figures import Arrival, RunRecord
from pylo_zoo.experiments.compare.running import Trial, _next_lr, best


def run_of(losses: Sequence[float], seed: int = 0, **more: Any) -> RunRecord:
    return RunRecord(seed, losses, [0.001] * len(losses), [0.003] * len(losses), **more)


# --- figures -----------------------------------------------------------------------------------------------------


def test_the_final_loss_is_the_mean_of_the_last_steps() -> None:
    assert figures.final_loss(run_of([9, 8, 2, 4]), 2) == 3
    assert figures.final_loss(run_of([9, 8]), 10) == 8.5


@pytest.mark.parametrize(
    ("run", "why"),
    [
        (run_of([2, 1, 0.5]), None),
        (run_of([2, 1, math.nan]), "finite"),
        (run_of([2, 1, math.inf]), "finite"),
        (run_of([1, 3, 3]), "above the initial loss"),
        (run_of([], stopped="The loss is nan"), "finite"),
        (run_of([]), "no step"),
        (run_of([2, 1], evaluations={2: {"test_loss": math.nan}}), "finite"),
        (run_of([1, 1, 1]), None),
        (run_of([1, 1, 1.05]), None),
    ],
)
def test_divergence(run: RunRecord, why: str | None) -> None:
    result = figures.diverged(run, 1)
    assert (result is None) == (why is None)
    assert why is None or why in (result or "")
    assert (figures.final_loss(run, 1) is None) == (why is not None)


def test_spread() -> None:
    result = figures.spread([1.0, 2.0, 3.0])
    assert result == figures.Spread(2.0, 1.0, 3.0, 1.0, 3)
    assert figures.spread([5.0]) == figures.Spread(5.0, 5.0, 5.0, None, 1)
    assert figures.spread([]) is None
    assert figures.spread([1.0, math.nan]) is None


def test_smoothed_looks_back_only() -> None:
    assert figures.smoothed([4, 2, 0, 0], 2) == [4, 3, 1, 0]


def test_steps_to_a_loss() -> None:
    run = run_of([4, 2, 0, 0])
    assert figures.steps_to(run, 3, 2) == 2
    assert figures.steps_to(run, 0, 2) == 4
    assert figures.steps_to(run, -1, 2) is None
    assert figures.steps_to(run_of([0, 9, 9]), 1, 2) is None, "one lucky batch does not count"
    assert figures.steps_to(run, figures.final_loss(run, 2) or 0, 2) == 4, "a run reaches its own final loss"


def test_arrival_is_a_median_and_never_if_fewer_than_half_arrive() -> None:
    quick, slow, never = run_of([1, 0, 0], 0), run_of([1, 1, 0], 1), run_of([1, 1, 1], 2)
    goals: dict[int, float | None] = {0: 0.0, 1: 0.0, 2: 0.0}
    assert figures.arrival([quick, slow, never], goals, 1) == Arrival(3, sum([0.004] * 3), 2, 3, 2.5)
    assert figures.arrival([quick, never], goals, 1) == Arrival(None, None, 1, 2, 2)
    assert figures.arrival([never], goals, 1) == Arrival(None, None, 0, 1, None)
    assert figures.arrival([quick], {0: None}, 1) is None, "the other one diverged"


def test_a_band_is_the_median_from_least_to_greatest() -> None:
    result = figures.band([([1, 2], [1, 5]), ([1, 2], [3, 6]), ([1, 2, 3], [2, 9, 9])])
    assert (result.x, result.middle, result.low, result.high) == ([1, 2], [2, 6], [1, 5], [3, 9])
    assert figures.band([]).x == []


# --- tuning ------------------------------------------------------------------------------------------------------


def test_the_best_learning_rate_and_the_edge_of_the_grid() -> None:
    def grid(*losses: float | None) -> dict[float, Trial]:
        rates = (0.01, 0.03, 0.1)
        return {lr: Trial(lr, loss, 1.0) for lr, loss in zip(rates, losses, strict=True)}

    assert best(list(grid(3, 1, 2).values())).lr == 0.03
    assert _next_lr(grid(3, 1, 2)) is None
    assert _next_lr(grid(3, 2, 1)) == 0.333
    assert _next_lr(grid(1, 2, None)) == 0.00333
    assert best(list(grid(None, None, None).values())).lr == 0.01, "if all diverge, the smallest rate is chosen"


# --- sentences ---------------------------------------------------------------------------------------------------


def entry(label: str, losses: Sequence[float | None], metric: Sequence[float] = (), **more: Any) -> dict[str, Any]:
    sound = [loss for loss in losses if loss is not None]
    values = list(metric) or [0.5] * len(losses)
    spread = figures.spread(sound) if len(sound) == len(losses) else None
    quality = figures.spread(values)
    return {
        "label": label,
        "hand_set": False,
        "learned": label not in ("adamw", "muon"),
        "lr": 0.01,
        "lr_given": False,
        "tuning": {"lr": 0.01} if label in ("adamw", "muon") else None,
        "diverged": len(losses) - len(sound),
        "runs": [{"initial_loss": 2.0} for _ in losses],
        "loss": vars(spread) if spread else None,
        "metric": vars(quality) if quality else None,
        "seeds_ahead_of_reference": 2,
        **more,
    }


def sentences(*entries: dict[str, Any], metric: str | None = None) -> str:
    seeds = list(range(len(entries[0]["runs"])))
    task = {"metric": metric, "higher_is_better": True, "floor": None}
    return verdict.verdict({"optimizers": entries, "seeds": seeds, "reference": "adamw", "task": task})


def test_a_win_of_adamw_is_stated_first() -> None:
    text = sentences(entry("celo", [0.5, 0.6, 0.7]), entry("adamw", [0.1, 0.2, 0.3]))
    assert text.startswith("tuned adamw ends at the lowest training loss, 0.200 (0.100–0.300)")
    assert "3.0 times lower than untuned celo" in text
    assert "do not overlap" in text


def test_a_learned_optimizer_that_wins() -> None:
    text = sentences(entry("celo", [0.10, 0.11]), entry("adamw", [0.12, 0.13]))
    assert text.startswith("untuned celo ends at the lowest training loss")
    assert "16 % below tuned adamw" in text


def test_the_rank_of_adamw_is_stated_if_it_is_third_or_lower() -> None:
    text = sentences(entry("celo", [0.1, 0.11]), entry("muon", [0.12, 0.13]), entry("adamw", [0.5, 0.5]))
    assert "tuned adamw ranks 3 of 3 with 0.500." in text
    assert words.sentence("tuned a wins. tuned b: untuned c") == "Tuned a wins. Tuned b: untuned c"


def test_overlapping_ranges_are_not_a_win() -> None:
    text = sentences(entry("celo", [0.1, 0.2, 0.3]), entry("adamw", [0.25, 0.3, 0.35]), entry("muon", [1.0, 1.0, 1.1]))
    assert text.startswith("No clear winner: untuned celo has the lowest mean")
    assert "overlaps that of tuned adamw; it is ahead of adamw in 2 of 3 seeds" in text
    assert "muon" not in text


def test_a_single_seed_is_stated() -> None:
    text = sentences(entry("celo", [0.1]), entry("adamw", [0.2]))
    assert text.startswith("With one seed, untuned celo")
    assert "may be chance" in text


def test_seeds_without_spread_are_stated() -> None:
    text = sentences(entry("celo", [0.1, 0.1]), entry("adamw", [0.3, 0.3]))
    assert text.endswith("all seeds have the same results.")


def test_equal_losses() -> None:
    assert "end at the same training loss, 0.200" in sentences(entry("celo", [0.2, 0.2]), entry("adamw", [0.2, 0.2]))


def test_a_diverged_optimizer_cannot_win() -> None:
    text = sentences(entry("celo", [0.01, None]), entry("adamw", [0.2, 0.3]))
    assert text == (
        "tuned adamw is the only optimizer that did not diverge: training loss 0.250 (0.200–0.300). "
        "Diverged: celo in 1 of 2."
    )
    assert sentences(entry("celo", [None])).startswith("Every optimizer diverged")


def test_held_out_data_can_disagree() -> None:
    two = entry("celo", [0.1, 0.1], [0.8, 0.9]), entry("adamw", [0.2, 0.2], [0.95, 0.97])
    assert "In held-out accuracy, tuned adamw has the best mean, 0.960" in sentences(*two, metric="accuracy")
    assert "the ranges do not overlap" in sentences(*two, metric="accuracy")


def test_samples_are_described_as_hand_set() -> None:
    assert "velo-sample (weights set by hand, not tuned)" in sentences(
        entry("velo-sample", [0.1], hand_set=True), entry("adamw", [0.2])
    )


@pytest.mark.parametrize(
    ("arrival", "text"),
    [
        (None, "–"),
        ({"steps": 1200, "reached": 3, "of": 3}, "1,200"),
        ({"steps": 12.5, "reached": 2, "of": 3}, "12 (in 2 of 3 seeds)"),
        ({"steps": None, "reached": 1, "of": 3, "reached_steps": 1200}, "in 1 of 3 seeds: 1,200"),
        ({"steps": None, "reached": 0, "of": 3}, "never"),
    ],
)
def test_arrivals_are_described(arrival: dict[str, Any] | None, text: str) -> None:
    assert words.arrival(arrival) == text


def test_cells_have_a_secondary_text() -> None:
    assert words.parts("0.1 (0.05–0.2)") == ("0.1", "0.05–0.2")
    assert words.parts("9 runs, 77 s") == ("9 runs", "77 s")
    assert words.parts("never") == ("never", "")
    assert words.parts("in 1 of 3 seeds: 1,200") == ("in 1 of 3 seeds: 1,200", "")


# --- time, seeds, colors -----------------------------------------------------------------------------------------


def timed(label: str, seconds: float | None, **more: Any) -> dict[str, Any]:
    tuning = {"seconds": 9.0} if label == "adamw" else None
    there = {"steps": None if seconds is None else 5, "seconds": seconds, "reached": 2 * (seconds is not None), "of": 2}
    return entry(label, [0.1, 0.2], steps_to_reference=there, **{"tuning": tuning, **more})


def clocked(*entries: dict[str, Any], busy: int = 0) -> str | None:
    return verdict.clock({"optimizers": entries, "reference": "adamw", "machine": {"busy_runs": busy}})


def test_the_fastest_by_wall_clock() -> None:
    assert clocked(timed("celo", 40.0), timed("adamw", 3.1), timed("muon", None)) == (
        "No other optimizer reaches the final loss of tuned adamw faster: tuned adamw after 3.1 s and untuned celo "
        "after 40 s; untuned muon does not reach it. These times exclude tuning: 9.0 s for adamw."
    )
    once = timed("celo", None)
    once["steps_to_reference"]["reached"] = 1
    assert clocked(once, timed("adamw", 3.1), timed("muon", None), timed("sgd", None)) == (
        "No other optimizer reaches the final loss of tuned adamw faster: tuned adamw after 3.1 s; untuned celo "
        "reaches it in 1 of 2 seeds; untuned muon and untuned sgd do not reach it. These times exclude tuning: 9.0 s "
        "for adamw."
    )
    text = clocked(timed("celo", 1.0), timed("adamw", 3.1), busy=1)
    assert text is not None
    assert text.startswith(
        "untuned celo reaches the final loss of tuned adamw first: untuned celo after 1.0 s and tuned adamw after 3.1 s"
    )
    assert text.endswith("The machine was busy, so the times are approximate.")


def test_no_target_loss_gives_no_time_statement() -> None:
    assert clocked(timed("adamw", 3.1)) is None
    assert clocked(timed("adamw", None), timed("celo", None)) is None
    assert clocked(timed("adamw", 3.1) | {"loss": None}, timed("celo", 1.0)) is None


@pytest.mark.parametrize(
    ("entries", "kind", "sentence"),
    [
        ([entry("adamw", [0.1], [0.5])], "one", "Only one seed"),
        (
            [entry("adamw", [0.1, 0.1], [0.5, 0.5]), entry("celo", [None, None])],
            "equal",
            "All 2 seeds have the same results",
        ),
        ([entry("adamw", [0.1, 0.1], [0.5, 0.6])], "several", "Means over 2 seeds"),
    ],
)
def test_ranges_are_mentioned_only_if_they_exist(entries: list[dict[str, Any]], kind: str, sentence: str) -> None:
    result = {"optimizers": entries, "seeds": list(range(len(entries[0]["runs"])))}
    assert words.seed_variation(result) == kind
    assert words.seeds_note(result).startswith(sentence)


def test_an_optimizer_looks_the_same_in_every_report() -> None:
    assert len({*styles.KNOWN.values()}) == len(styles.KNOWN)
    assert not {*styles.KNOWN.values()} & {*styles.FREE}
    for labels in (["mine", "adamw"], ["celo", "adamw", "mine", "muon"]):
        result = styles.styles(labels)
        assert list(result) == labels
        assert result["adamw"] == styles.KNOWN["adamw"]
        assert result["mine"] == styles.styles(["mine"])["mine"]
    many = [f"optimizer {i}" for i in range(len(styles.FREE))]
    assert len({*styles.styles(many).values()}) == len(many), "all differ while colors last"
    assert styles.styles(many) == styles.styles(many[::-1])


def test_a_resumed_run_keeps_its_largest_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for now in (3.0, 1.0):
        monkeypatch.setattr(machine, "load", lambda now=now: now)
        machine.record_load(tmp_path, 0.5)
    assert machine.recorded_load(tmp_path) == 3.0
    (tmp_path / machine.RECORD).write_text("[")
    assert machine.recorded_load(tmp_path) is None
    assert not machine.busy(2.5, 2)
    assert machine.busy(2.6, 2)
