"""Checks of errors against bounds. Each check records its margin, error over bound, for the report of a test run."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

LIMIT = 0.5
"""Largest margin that a reported run allows: an error nearer to its bound may exceed it on another processor."""

_ratios: list[tuple[float, str]] = []


def check(error: float, bound: float, what: str) -> None:
    """Assert that ``error`` is at most ``bound``, and record the margin.

    A bound of 0 requires equality and has no margin.
    """
    error, bound = float(error), float(bound)  # plain numbers can be sent between the processes of a test run
    if bound > 0:
        _ratios.append((error / bound if math.isfinite(error) else math.inf, what))
    assert error <= bound, f"{what}: error {error:.3g}, bound {bound:.3g}"


def check_close(got: Any, expected: Any, bound: Any, what: str = "") -> None:
    """Assert in float64 that all elements of ``got`` are within ``bound`` of ``expected``; record the worst margin.

    Args:
        got: a tensor, or anything that ``np.asarray`` accepts.
        expected: the same shape.
        bound: one number, or an array or tensor with one bound per element.
        what: names the comparison in errors and in the report.
    """
    got, expected = (_double(each) for each in (got, expected))
    assert got.shape == expected.shape, f"{what}: shape {tuple(got.shape)}, expected {tuple(expected.shape)}"
    if not got.numel():
        return
    errors = (got - expected).abs().flatten()
    bounds = _double(bound).expand(got.shape).flatten()
    assert bool((bounds >= 0).all()), f"{what}: a bound is negative or NaN"
    ratios = torch.where(errors == 0, 0.0, errors / bounds)
    worst = int(ratios.nan_to_num(nan=math.inf).argmax())
    check(errors[worst].item(), bounds[worst].item(), what)


def _double(values: Any) -> Tensor:
    tensor = values if isinstance(values, Tensor) else torch.tensor(np.asarray(values, np.float64))
    return tensor.detach().cpu().double()


@contextmanager
def forgotten() -> Iterator[None]:
    """Do not record margins of planted faults, which must exceed their bounds."""
    before = _ratios[:]
    try:
        yield
    finally:
        _ratios[:] = before


def take() -> list[tuple[float, str]]:
    """The margins since the last call."""
    taken = _ratios[:]
    _ratios.clear()
    return taken


def extend(margins: list[tuple[float, str]]) -> None:
    """Record margins that another process measured."""
    _ratios.extend((ratio, what) for ratio, what in margins)
