"""Prints reports as tables on a terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pylo_zoo.errors import count
from pylo_zoo.report import bounds, phrases
from pylo_zoo.report.records import Check, Control, Error, Explanation, Report

LEGEND = (
    "Errors are the largest over all shapes, steps and layouts, relative to the update (whole\n"
    "runs: to the movement; network: to the largest output). ulps are of float32; many are\n"
    "fine for a parameter that is near zero, where an ulp is far smaller than an update. The column\n"
    "'tightest at' names the error nearest to its bound. --html FILE shows everything,\n"
    "--explain one chain."
)
MAX_LINKS = 12
"""Number of quantities shown from the first one beyond its bound."""


def print_report(report: Report, console: Console, *, explained: bool = False) -> None:
    """Print one report: one line per run, the planted faults, the reasons of a failure, and the verdict."""
    table = _table(f"Parity of {report.name} ({report.family}) with its JAX original")
    for column in ("check", "run"):
        table.add_column(column)
    for column in ("float64", "float32", "ulps"):
        table.add_column(column, justify="right")
    table.add_column("tightest at")
    table.add_column("")
    _add_leaves_and_statements(table, report)
    for (level, kind, name), checks in _grouped(report.checks).items():
        table.add_row(
            _describe_level(level, kind),
            _describe_run(name, checks),
            *_numbers(checks),
            _verdict(all(c.passed for c in checks)),
        )
    _add_kernels(table, report)
    _add_controls(table, report.controls)
    console.print(table)
    if report.checks:
        console.print(LEGEND, soft_wrap=True)
        for reason in wide_bounds(report.checks):
            console.print(reason, soft_wrap=True)
    for contradiction in report.statements.contradictions:
        console.print(Text(contradiction, style="red"), soft_wrap=True)
    for each in report.statements.unsaid:
        if "released value" in each:
            text = f"Neither the source's files nor the registry state {each}."
            console.print(Text(text, style="yellow"), soft_wrap=True)
    if report.explanation and (explained or report.explanation.failed):
        explain(report.explanation, console, whole=explained)
    if report.status == "failed" and not (report.explanation and report.explanation.failed):
        for sentence in phrases.failures(report):
            console.print(Text(sentence, style="red"), soft_wrap=True)
    console.print(verdict(report), soft_wrap=True)


def wide_bounds(checks: Sequence[Check]) -> list[str]:
    """One sentence per run and dtype in which a large error passes: why its bound is so wide."""
    largest_by_run: dict[tuple[str, str], tuple[Error, str]] = {}
    for check in checks:
        errors = [error for error in phrases.compared(check).values() if phrases.loose(error) and error.passed]
        largest = max(errors, key=lambda error: error.error, default=None)
        if largest is None or largest.error <= phrases.LOOSE:
            continue
        run = (check.dtype, _describe_run(check.name, [check]))
        if run not in largest_by_run or largest_by_run[run][0].error < largest.error:
            largest_by_run[run] = largest, phrases.UNITS[check.level]
    return [
        f"{dtype}, {run}: {error.error:.1e} {unit} passes, because the original's own float32 error is up to "
        f"{(error.allowed or 0.0) / bounds.FACTOR:.1e}, and {bounds.FACTOR} times that is allowed."
        for (dtype, run), (error, unit) in largest_by_run.items()
    ]


def verdict(report: Report) -> Text:
    """The status in one line."""
    if report.reason:
        return Text(f"parity: not checked ({report.reason})")
    return Text(f"parity: {report.status}", style="green" if report.passed else "bold red")


def summary(reports: Sequence[Report], missing: Mapping[str, str], broken: Mapping[str, str], console: Console) -> None:
    """Print one line per entry."""
    table = _table("Parity")
    for column in ("name", "family"):
        table.add_column(column)
    for column in ("float64", "float32", "faults caught"):
        table.add_column(column, justify="right")
    table.add_column("")
    for report in reports:
        numbers = [_worst(report.worst_step(dtype)) for dtype in ("float64", "float32")]
        table.add_row(report.name, report.family, *numbers, caught(report.controls), verdict(report))
    for name, reason in missing.items():
        table.add_row(name, "", "", "", "", Text(f"missing: {reason}", style="yellow"))
    for name, reason in broken.items():
        table.add_row(name, "", "", "", "", Text(f"not checked: {reason}", style="bold red"))
    console.print(table)


def caught(controls: Sequence[Control]) -> str:
    """Numbers of planted faults that were caught and that apply."""
    statuses = [control.status for control in controls]
    applicable = len(statuses) - statuses.count("not applicable")
    return f"{statuses.count('caught')} of {applicable}" if applicable else "–"


def explain(explanation: Explanation, console: Console, *, whole: bool = False) -> None:
    """Print the explained quantity, and the chain of quantities of its parameter at that step."""
    e = explanation
    first = next((index for index, link in enumerate(e.chain) if link.quantity == e.quantity), 0)
    failed = e.failed
    title = "First difference" if failed else "Nearest to its bound (no quantity of a single step exceeds its bound)"
    of = f"of {e.case!r} {list(e.shape)}" if e.case else "of the run"
    console.print(Text(f"\n{title}: {e.quantity} {of}", style="bold red" if failed else "bold"), soft_wrap=True)
    console.print(f"  {e.meaning}", soft_wrap=True)
    by = f", {phrases.backend(e.kernels)}" if e.kernels else ""
    console.print(f"  in the run {e.run!r}, step {e.step + 1}, {e.dtype}, {e.layout} layout{by}", soft_wrap=True)
    if e.misfit:
        console.print(f"  {e.misfit}", soft_wrap=True)
    else:
        at = f" at index {list(e.index)}" if e.index else ""
        console.print(f"  torch {e.ours:.17g}, original {e.theirs:.17g}{at}", soft_wrap=True)
    if failed and e.off_in:
        console.print(f"  differs in: {'; '.join(e.off_in)}", soft_wrap=True)
        console.print(f"  agrees in: {'; '.join(e.right_in) or 'none'}", soft_wrap=True)
    table = _table("Quantities of that step, in order")
    table.add_column("quantity", no_wrap=True)
    table.add_column("error", justify="right")
    table.add_column("allowed", justify="right")
    table.add_column("")
    links = list(e.chain) if whole else [*e.chain[max(0, first - 2) : first + MAX_LINKS], *e.chain[-1:]]
    for link in dict.fromkeys(links):
        table.add_row(link.quantity, _number(link.error), _number(link.allowed), _verdict(link.passed))
    console.print(table)


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))


def _add_leaves_and_statements(table: Table, report: Report) -> None:
    broken = [*report.leaves.missing, *report.leaves.extra, *report.leaves.differing]
    where = broken[0] if broken else count(report.leaves.compared, "leaf")
    result = f"{len(broken)} differ" if report.leaves.compared else "not compared"
    table.add_row("leaves", "bit for bit", result, "", "", where, _verdict(report.leaves.passed))
    differing, unsaid = f"{len(report.statements.contradictions)} differ", len(report.statements.unsaid)
    unchecked = f"{count(unsaid, 'field')} not stated" if unsaid else ""
    table.add_row("behavior", "as its source states", differing, "", "", unchecked, _verdict(report.statements.passed))


def _add_controls(table: Table, controls: Sequence[Control]) -> None:
    if not controls:
        return
    if all(control.status == "not applicable" for control in controls):
        table.add_row("planted faults", "not planted", "", "", "", controls[0].by)
        return
    missed = [control.name for control in controls if control.status == "missed"]
    where = f"missed: {', '.join(missed)}" if missed else ""
    table.add_row("planted faults", f"{caught(controls)} caught", "", "", "", where, _verdict(not missed))


def _add_kernels(table: Table, report: Report) -> None:
    """Add two rows per compared device, for single steps and whole runs, and the reason for each other device."""
    for each in report.kernels:
        if not each.compared:
            table.add_row(f"{each.device} kernels", "not compared", "", "", "", each.reason)
    if ran := phrases.newton_schulz(report):
        table.add_row("Newton–Schulz", ", ".join(sorted({*(report.newton_schulz or {}).values()})), "", "", "", ran)
    for device in report.devices[1:]:
        for level, title in (("step", "single steps"), ("trajectory", "whole runs")):
            if checks := report.of_level(level, device):
                runs, passed = len({check.name for check in checks}), all(check.passed for check in checks)
                significant = [_without_loose_errors(check) for check in checks]
                tight = [check for check in significant if not all(map(phrases.loose, check.errors.values()))]
                row = f"{device} kernels", f"{title}, {count(runs, 'run')}"
                table.add_row(*row, *_numbers(tight or significant), _verdict(passed))


def _without_loose_errors(check: Check) -> Check:
    """``check`` without passing errors that have a loose bound, if other errors are left."""
    errors = {name: each for name, each in check.errors.items() if not (phrases.loose(each) and each.passed)}
    return replace(check, errors=errors or check.errors)


def _grouped(checks: Sequence[Check]) -> dict[tuple[str, str, str], list[Check]]:
    """The checks of the eager implementation by level, kind and name."""
    groups: dict[tuple[str, str, str], list[Check]] = {}
    for check in (check for check in checks if not check.kernels):
        groups.setdefault((check.level, check.kind, check.name), []).append(check)
    return groups


def _describe_level(level: str, kind: str) -> str:
    if level == "step":
        return {"regime": "single steps", "options": "… with options", "flags": "… with flags"}[kind]
    return {"network": "network", "trajectory": "whole runs", "original": "reference, original"}[level]


def _describe_run(name: str, checks: Sequence[Check]) -> str:
    short = name.partition(":")[0]
    return f"{short}, {count(checks[0].steps, 'step')}" if checks[0].level == "trajectory" else short


def _numbers(checks: Sequence[Check]) -> tuple[str, str, str, str]:
    """The largest error in each dtype, the largest float32 error in ulps, and the name of the tightest comparison."""
    errors = {
        dtype: [error for check in checks if check.dtype == dtype for error in check.errors.values()]
        for dtype in ("float64", "float32")
    }
    largest = {
        dtype: max((e.error for e in each if e.allowed is not None), default=None) for dtype, each in errors.items()
    }
    ulps = max((e.ulps for e in errors["float32"] if e.ulps is not None and e.allowed is not None), default=None)
    check = max(checks, key=lambda check: (bool(check.broken), check.errors[check.worst].excess))
    where = check.broken[0] if check.broken else check.worst
    return _number(largest["float64"]), _number(largest["float32"]), _number(ulps, ".2g"), where


def _worst(item: tuple[str, Error] | None) -> str:
    return _number(item[1].error) if item else ""


def _number(value: float | None, form: str = ".1e") -> str:
    if value is None:
        return ""
    return f"{value:{form}}" if math.isfinite(value) else "∞"


def _verdict(passed: bool) -> Text:
    return Text("ok", style="green") if passed else Text("FAILED", style="bold red")
