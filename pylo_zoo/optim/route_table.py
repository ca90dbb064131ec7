"""Routes: which rule updates each parameter and why, according to :func:`~pylo_zoo.optim.param_groups` or an optimizer.

``print`` shows them as a table.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from pylo_zoo.errors import count


@dataclass(frozen=True)
class Route:
    """The layout and rule of one parameter, and the reason.

    ``rule`` is "learned", "adamw", or None if the checkpoint decides: CELO2 updates vectors and scalars with AdamW,
    CELO2-base with the learned rule. Muon's rules are "muon", "adamw" and "nadamw".
    """

    name: str
    shape: tuple[int, ...]
    layout: str
    rule: str | None
    reason: str
    kind: str = ""
    """embedding, head, norm, bias, vector, table, matrix, convolution or stack."""
    tied: tuple[str, ...] = ()
    """The other names of a shared parameter."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """The other options of its group, such as ``lr`` and ``weight_decay``."""
    group: int = 0
    """The index of the user's group that contains it."""


class Routes(tuple[Route, ...]):
    """The routes of a model, in its order. ``print`` shows a table; equal routes of numbered layers share a row."""

    frozen: tuple[str, ...]
    """Names of the parameters without ``requires_grad``, which have no route."""

    def __new__(cls, routes: Iterable[Route], frozen: Iterable[str] = ()) -> Routes:
        self = super().__new__(cls, routes)
        self.frozen = tuple(frozen)
        return self

    def __str__(self) -> str:
        return self.table()

    def table(self, *, collapse: bool = True) -> str:
        """The routes as text.

        Args:
            collapse: show equal routes of numbered layers (``h.0.…``, ``h.1.…``) in one row, as ``h.*.… (12)``.
        """
        keys = {key for route in self for key in route.options}
        options = [key for key in ("lr", "weight_decay") if key in keys]
        options += sorted(keys - set(options))
        header = ["parameter", "shape", "layout", "rule", *options, "why"]
        rows = [
            [name, "×".join(map(str, route.shape)) or "scalar", route.layout, route.rule or "auto"]
            + [_format_value(route.options.get(key, "")) for key in options]
            + [_format_reason(route)]
            for name, route in self._lines(collapse)
        ]
        widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
        separator = ["─" * width for width in widths]
        separator[-1] = "─" * min(widths[-1], 40)
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in (header, separator, *rows)
        ]
        return "\n".join([*lines, "", *self._summary()])

    def _lines(self, collapse: bool) -> list[tuple[str, Route]]:
        """The name and a representative route of each row."""
        equal: dict[Any, list[Route]] = {}
        for route in self:
            name = NUMBERS.sub("*", route.name) if collapse else route.name
            tied = tuple(NUMBERS.sub("*", other) for other in route.tied)
            options = tuple((key, _format_value(value)) for key, value in route.options.items())
            key = (name, route.shape, route.layout, route.rule, route.reason, tied, options, route.group)
            equal.setdefault(key, []).append(route)
        return [(_common_name([route.name for route in routes]), routes[0]) for routes in equal.values()]

    def _summary(self) -> list[str]:
        sizes = {
            rule: sum(math.prod(route.shape) for route in self if (route.rule or "auto") == rule)
            for rule in sorted({route.rule or "auto" for route in self}, key=_summary_order)
        }
        parts = ", ".join(f"{rule} {_format_count(size)}" for rule, size in sizes.items())
        lines = [f"{count(len(self), 'parameter')}, {_format_count(sum(sizes.values()))} elements: {parts or 'none'}"]
        if "auto" in sizes:
            lines.append("auto: the checkpoint decides; CELO2 uses AdamW, CELO2-base the learned rule")
        if self.frozen:
            names = ", ".join(self.frozen[:3]) + (", …" if len(self.frozen) > 3 else "")
            lines.append(f"frozen (requires_grad=False): {len(self.frozen)} ({names})")
        return lines


def routes_of(
    groups: Iterable[Mapping[str, Any]], decide: Callable[[Tensor, Mapping[str, Any]], tuple[str, str]]
) -> Routes:
    """The routes of an optimizer's parameters.

    Args:
        groups: its ``param_groups``. Parameters without names are named by their position.
        decide: returns the rule of a parameter in a group, and the reason.
    """
    routes, frozen = [], []
    for number, group in enumerate(groups):
        names = group.get("param_names") or position_names(number, len(group["params"]))
        for name, p in zip(names, group["params"], strict=True):
            if p.requires_grad or (p.is_floating_point() and p.grad is not None):
                routes.append(Route(name, tuple(p.shape), group["layout"], *decide(p, group), group=number))
            else:
                frozen.append(name)
    return Routes(routes, frozen)


def position_names(number: int, count: int) -> list[str]:
    """Names for the ``count`` parameters of group ``number``."""
    return [f"group {number}, parameter {k}" for k in range(count)]


def _summary_order(rule: str) -> tuple[int, str]:
    order = ("learned", "muon", "adamw", "nadamw", "auto")
    return order.index(rule) if rule in order else len(order), rule


NUMBERS = re.compile(r"((?<![^.])|(?<=layer_)|(?<=block_))\d+(?![^.])")
"""Layer numbers in a parameter's name: ``h.0``, ``encoder_layer_0``."""


def _common_name(names: list[str]) -> str:
    """One name for all, with ``*`` for parts that differ, and their number: ``h.*.weight (12)``."""
    columns = zip(*(name.split(".") for name in names), strict=True)
    name = ".".join(parts[0] if len(set(parts)) == 1 else "*" for parts in columns)
    return f"{name} ({len(names)})" if len(names) > 1 else name


def _format_reason(route: Route) -> str:
    return f"{route.reason}; tied with {', '.join(route.tied)}" if route.tied else route.reason


def _format_value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _format_count(count: int) -> str:
    """``count`` with three digits and a unit, such as 124M."""
    power = max(0, min((len(str(count)) - 1) // 3, 4))
    return f"{count / 1000**power:.3g}{' kMGT'[power].strip()}"


__all__ = ["Route", "Routes", "routes_of"]
