"""Which rule updates each parameter, and why: as :func:`~pylo_zoo.optim.param_groups` decides it, or as an optimizer
with two rules does. And the table that prints it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Route:
    """Where one parameter goes: its group's ``layout`` and ``rule``, and the reason.

    ``rule`` is "learned", "adamw", or None where the checkpoint decides by the number of axes: CELO2 gives vectors and
    scalars to AdamW, CELO2-base to its rule. Muon's rules are "muon", "adamw" and "nadamw".
    """

    name: str
    shape: tuple[int, ...]
    layout: str
    rule: str | None
    reason: str
    kind: str = ""
    """embedding, head, norm, bias, vector, table, matrix, convolution or stack."""
    tied: tuple[str, ...] = ()
    """Its other names, where it is shared."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What else its group says, such as ``lr`` and ``weight_decay``."""
    group: int = 0
    """Which of the user's own groups it comes from."""


class Routes(tuple[Route, ...]):
    """The routes of a model, in its order. ``print`` shows them as a table; numbered layers alike share a line."""

    frozen: tuple[str, ...]
    """Names of the parameters left out because they need no gradient."""

    def __new__(cls, routes: Iterable[Route], frozen: Iterable[str] = ()) -> Routes:
        self = super().__new__(cls, routes)
        self.frozen = tuple(frozen)
        return self

    def __str__(self) -> str:
        return self.table()

    def table(self, *, collapse: bool = True) -> str:
        """The routes as text.

        Args:
            collapse: show the same parameter of numbered layers (``h.0.…``, ``h.1.…``) once, as ``h.*.…``, with their
                number, where everything about them is the same.
        """
        said = {key for route in self for key in route.options}
        options = [key for key in ("lr", "weight_decay") if key in said]
        options += sorted(said - set(options))
        header = ["parameter", "shape", "layout", "rule", *options, "why"]
        rows = [
            [name, "×".join(map(str, route.shape)) or "scalar", route.layout, route.rule or "auto"]
            + [_shown(route.options.get(key, "")) for key in options]
            + [_why(route)]
            for name, route in self._lines(collapse)
        ]
        widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
        rule = ["─" * width for width in widths]
        rule[-1] = "─" * min(widths[-1], 40)
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in (header, rule, *rows)
        ]
        return "\n".join([*lines, "", *self._summary()])

    def _lines(self, collapse: bool) -> list[tuple[str, Route]]:
        """Each line's name and the route that stands for it."""
        alike: dict[Any, list[Route]] = {}
        for route in self:
            name = NUMBERS.sub("*", route.name) if collapse else route.name
            tied = tuple(NUMBERS.sub("*", other) for other in route.tied)
            options = tuple((key, _shown(value)) for key, value in route.options.items())
            key = (name, route.shape, route.layout, route.rule, route.reason, tied, options, route.group)
            alike.setdefault(key, []).append(route)
        return [(_common([route.name for route in found]), found[0]) for found in alike.values()]

    def _summary(self) -> list[str]:
        sizes = {
            rule: sum(math.prod(route.shape) for route in self if (route.rule or "auto") == rule)
            for rule in sorted({route.rule or "auto" for route in self}, key=_in_summary)
        }
        parts = ", ".join(f"{rule} {_short(size)}" for rule, size in sizes.items())
        lines = [f"{len(self)} parameters, {_short(sum(sizes.values()))} numbers: {parts or 'none'}"]
        if "auto" in sizes:
            lines.append("auto: the checkpoint decides; CELO2 gives these to AdamW, CELO2-base to its rule")
        if self.frozen:
            names = ", ".join(self.frozen[:3]) + (", …" if len(self.frozen) > 3 else "")
            lines.append(f"left out, since they need no gradient: {len(self.frozen)} ({names})")
        return lines


def routes_of(
    groups: Iterable[Mapping[str, Any]], decide: Callable[[Tensor, Mapping[str, Any]], tuple[str, str]]
) -> Routes:
    """The routes of an optimizer's parameters, by its groups.

    Args:
        groups: its ``param_groups``. Parameters without names are called by their position.
        decide: the rule of a parameter in a group, and why.
    """
    found, frozen = [], []
    for number, group in enumerate(groups):
        names = group.get("param_names") or [f"group {number}, parameter {k}" for k in range(len(group["params"]))]
        for name, p in zip(names, group["params"], strict=True):
            if p.requires_grad or (p.is_floating_point() and p.grad is not None):
                found.append(Route(name, tuple(p.shape), group["layout"], *decide(p, group), group=number))
            else:
                frozen.append(name)
    return Routes(found, frozen)


def _in_summary(rule: str) -> tuple[int, str]:
    order = ("learned", "muon", "adamw", "nadamw", "auto")
    return order.index(rule) if rule in order else len(order), rule


NUMBERS = re.compile(r"((?<![^.])|(?<=layer_)|(?<=block_))\d+(?![^.])")
"""The numbers of a name's layers: ``h.0``, ``encoder_layer_0``."""


def _common(names: list[str]) -> str:
    """One name for all, with ``*`` where their numbers differ, and how many they are."""
    columns = zip(*(name.split(".") for name in names), strict=True)
    name = ".".join(parts[0] if len(set(parts)) == 1 else "*" for parts in columns)
    return f"{name} ({len(names)})" if len(names) > 1 else name


def _why(route: Route) -> str:
    return f"{route.reason}; tied with {', '.join(route.tied)}" if route.tied else route.reason


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _short(count: int) -> str:
    """Three digits and a unit: 124M."""
    power = max(0, min((len(str(count)) - 1) // 3, 4))
    return f"{count / 1000**power:.3g}{' kMGT'[power].strip()}"


__all__ = ["Route", "Routes", "routes_of"]
