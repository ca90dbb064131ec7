"""Where a difference begins: the first quantity of the chain that is off, and what it does to those after it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pylo_zoo.parity.quantities import meaning, order
from pylo_zoo.parity.report import Explanation, Link
from pylo_zoo.parity.steps import Found


def first_difference(found: Sequence[Found]) -> Explanation | None:
    """The first quantity beyond its bound: in float64 before float32, by run, step, and place in the chain."""
    for each in sorted(found, key=lambda each: each.dtype != "float64"):
        steps, keys = np.nonzero(each.off)
        if len(steps):
            step = steps.min()
            first = min(order(each.walked.ledger.keys[key][1]) for key in keys[steps == step])
            candidates = [key for key in keys[steps == step] if order(each.walked.ledger.keys[key][1]) == first]
            at = each.excess[step]
            return explain(each, int(step), int(max(candidates, key=lambda key: (at[key], each.errors[step, key]))))
    return None


def worst(found: Sequence[Found]) -> Explanation | None:
    """The quantity that comes nearest to its bound, in float64, of the runs that show the whole chain."""
    double = [each for each in found if each.dtype == "float64" and len(each.errors) and each.walked.run.noted]
    if not double:
        return None
    each = max(double, key=lambda each: each.excess.max())
    step, key = np.unravel_index(int(each.excess.argmax()), each.excess.shape)
    return explain(each, int(step), int(key))


def explain(found: Found, step: int, place: int) -> Explanation:
    """What happened to quantity number ``place`` at ``step``, and the whole chain of its parameter."""
    ledger = found.walked.ledger
    case, quantity = key = ledger.keys[place]
    part = ledger.slice(key)
    ours, truth = found.ours[step][part], found.walked.truth[step][part]
    errors = ledger.errors(ours, truth, found.walked.units[step][part])
    at = int(errors.argmax())
    off = found.off[step]
    same = {name: bool(off[ledger.index[name, what]]) for name, what in ledger.keys if what == quantity and name}
    return Explanation(
        run=found.walked.run.name,
        dtype=found.dtype,
        layout=found.layout,
        step=step,
        case=case,
        shape=ledger.shapes[key],
        quantity=quantity,
        meaning=meaning(quantity),
        index=tuple(int(i) for i in np.unravel_index(at, ledger.shapes[key])) if ledger.shapes[key] else (),
        ours=float(ours[at]),
        theirs=float(truth[at]),
        misfit=found.misfits.get(key),
        off_in=[name for name, is_off in same.items() if is_off],
        right_in=[name for name, is_off in same.items() if not is_off],
        chain=[
            Link(what, meaning(what), float(found.errors[step, k]), float(found.allowed[k]))
            for k, (name, what) in enumerate(ledger.keys)
            if name in ("", case) and found.compared[k]
        ],
        kernels=found.kernels,
    )
