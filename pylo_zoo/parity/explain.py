"""Finds the first quantity of the chain that differs, and describes the whole chain of that parameter."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pylo_zoo.parity.quantities import meaning, order
from pylo_zoo.parity.steps import StepComparison
from pylo_zoo.report.records import Explanation, Link


def first_difference(comparisons: Sequence[StepComparison]) -> Explanation | None:
    """The first quantity beyond its bound, ordered by dtype (float64 first), run, step and position in the chain."""
    for each in sorted(comparisons, key=lambda each: each.dtype != "float64"):
        steps, keys = np.nonzero(each.off)
        if len(steps):
            step = steps.min()
            first = min(order(each.reference.ledger.keys[key][1]) for key in keys[steps == step])
            candidates = [key for key in keys[steps == step] if order(each.reference.ledger.keys[key][1]) == first]
            at = each.excess[step]
            return explain(each, int(step), int(max(candidates, key=lambda key: (at[key], each.errors[step, key]))))
    return None


def worst(comparisons: Sequence[StepComparison]) -> Explanation | None:
    """The float64 quantity nearest to its bound, over the runs that record the whole chain."""
    double = [
        each for each in comparisons if each.dtype == "float64" and len(each.errors) and each.reference.run.traced
    ]
    if not double:
        return None
    each = max(double, key=lambda each: each.excess.max())
    step, key = np.unravel_index(int(each.excess.argmax()), each.excess.shape)
    return explain(each, int(step), int(key))


def explain(comparison: StepComparison, step: int, place: int) -> Explanation:
    """Describe the quantity at index ``place`` of the ledger at ``step``, with the whole chain of its parameter."""
    ledger = comparison.reference.ledger
    case, quantity = key = ledger.keys[place]
    part = ledger.slice(key)
    ours, truth = comparison.ours[step][part], comparison.reference.truth[step][part]
    errors = ledger.errors(ours, truth, comparison.reference.units[step][part])
    at = int(errors.argmax())
    off = comparison.off[step]
    off_by_case = {name: bool(off[ledger.index[name, q]]) for name, q in ledger.keys if q == quantity and name}
    return Explanation(
        run=comparison.reference.run.name,
        dtype=comparison.dtype,
        layout=comparison.layout,
        step=step,
        case=case,
        shape=ledger.shapes[key],
        quantity=quantity,
        meaning=meaning(quantity),
        index=tuple(int(i) for i in np.unravel_index(at, ledger.shapes[key])) if ledger.shapes[key] else (),
        ours=float(ours[at]),
        theirs=float(truth[at]),
        misfit=comparison.misfits.get(key),
        off_in=[name for name, is_off in off_by_case.items() if is_off],
        right_in=[name for name, is_off in off_by_case.items() if not is_off],
        chain=[
            Link(q, meaning(q), float(comparison.errors[step, k]), float(comparison.allowed[k]))
            for k, (name, q) in enumerate(ledger.keys)
            if name in ("", case) and comparison.compared[k]
        ],
        kernels=comparison.kernels,
    )
