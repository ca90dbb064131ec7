"""Small parity reports written by hand: one that passed, one that failed, one without JAX, and a hostile one."""

from __future__ import annotations

import math
from dataclasses import replace

from pylo_zoo.report.records import (
    Check,
    Control,
    Coverage,
    Error,
    Explanation,
    Kernels,
    Leaves,
    Link,
    Quantity,
    Report,
    Settings,
    Statements,
)

HOSTILE = (
    "</title><script>alert(1)</script>\"'><img src=x onerror=a()> | `b` [c](http://d.e) *f* @g <!-- ]]> "
    "\x00\x1b\u202e\ud800"
)
SHAPES = {"vector": "7", "square dense": "6×6"}


def errors(scale: float, allowed: float | None = 1e-12) -> dict[str, Error]:
    """Errors of two parameters, the second four times as large."""
    return {"vector": Error(scale, allowed, 3.0), "square dense": Error(4 * scale, allowed, 12.0)}


def passing(name: str = "velo") -> Report:
    """A small report in which everything passes."""
    steps = [
        Check("step", dtype, layout, setting, 3, errors(size * factor, 20 * size), kind, by_step=[size, size, size])
        for dtype, size in (("float64", 2.5e-14), ("float32", 1.5e-5))
        for kind, setting in (("regime", "ordinary"), ("flags", "numbers changed: ff_mult"))
        for layout, factor in (("torch", 1.0), ("jax", 2.0))
    ]
    runs = [
        Check("trajectory", dtype, "torch", "long", 4, errors(size), by_step=[size, 0.0, 2 * size, 4 * size])
        for dtype, size in (("float64", 3e-15), ("float32", 2e-13))
    ]
    fused = [
        Check(
            "step", "float32", "torch", "ordinary", 3, errors(1e-5, 2e-4), "regime", by_step=[4e-5] * 3, kernels="cpu"
        ),
        Check("trajectory", "float32", "torch", "long", 4, errors(1e-5, 2e-4), by_step=[4e-5] * 4, kernels="cpu"),
    ]
    return Report(
        name=name,
        family="velo",
        source={"uri": "gs://somewhere/theta.state", "sha256": "a" * 64, "bytes": 12},
        fingerprint="b" * 64,
        leaves=Leaves(3),
        statements=Statements(),
        settings=Settings(7, 1e-10, 64, 64, {"lr": 0.1}, {"ff_mult": 100.0}),
        checks=[
            Check("network", "float64", "", "random inputs", 1, {"mlp": Error(6e-16, 5e-14)}),
            *steps,
            *runs,
            *fused,
        ],
        quantities=[
            Quantity("row", "float64", 0.0, 4e-14, "ordinary", "torch", "square dense", 0),
            Quantity("row", "float32", 7e-7, 4e-5, "ordinary", "torch", "square dense", 1),
            Quantity("parameter", "float64", 6e-14, 5e-13, "ordinary", "jax", "vector", 2),
        ],
        controls=[
            Control("one bit", "a bit is flipped", "caught", "direction", "vector", 4e-9, 6e-14),
            Control("gate order", "the gates are permuted", "not applicable", "the rule has no gates"),
        ],
        explanation=explanation(2e-16),
        coverage=Coverage({"shape": [f"{n} {s}" for n, s in SHAPES.items()], "dtype": ["float64"]}, ["infinity"]),
        kernels=[Kernels("cpu", "", ["vector"]), Kernels("cuda", "this machine has no CUDA device")],
        environment={"torch": "2.13.0", "jax": "0.10.2"},
        vectors=b"vectors",
        created="2026-11-22T14:14:43+00:00",
    )


def explanation(error: float) -> Explanation:
    """The quantity ``row`` of a square parameter, off by ``error``."""
    chain = [
        Link("momentum", "mean", 0.0, 1e-14),
        Link("row", "second moment", error, 4e-14),
        Link("step", "", 1.0, 2.0),
    ]
    right, off = ["vector"], ["square dense"]
    return Explanation(
        *("ordinary", "float64", "torch", 1, "square dense", (6, 1), "row", "second moment", (4, 0), 0.5, 0.75, None),
        off_in=off if error > 4e-14 else [],
        right_in=right if error > 4e-14 else right + off,
        chain=chain,
    )


def failing() -> Report:
    """A report of a port that swaps two axes, misses a fault and lost a leaf."""
    report = passing("broken")
    wrong = replace(report.checks[1], errors=errors(0.3), broken=["row of square dense"])
    unfit = replace(report.checks[2], errors=errors(math.inf, 0.0))
    missed = Control("decays", "the decays are permuted", "missed", "nothing")
    return replace(
        report,
        leaves=Leaves(3, missing=["a/b"], differing=["mlp/w0"]),
        statements=Statements(["ff_mult is 1.0 in config.gin"]),
        checks=[report.checks[0], wrong, unfit, *report.checks[3:]],
        controls=[*report.controls, missed],
        explanation=explanation(0.25),
    )


def not_run() -> Report:
    """A report without JAX."""
    report = passing("unknown")
    return Report(
        report.name, report.family, report.source, report.fingerprint, report.leaves, report.statements, reason="no jax"
    )


def hostile(text: str = HOSTILE) -> Report:
    """A failing report in which every third-party string is ``text``."""
    report = failing()
    checks = [
        replace(c, name=text, errors={text: c.errors[c.worst]}, broken=[text] if c.level == "step" else [])
        for c in report.checks
    ]
    assert report.explanation is not None
    chain = [replace(link, quantity=text, meaning=text) for link in report.explanation.chain]
    texts = {"run": text, "case": text, "quantity": text, "meaning": text, "misfit": text}
    return replace(
        report,
        name=text,
        family=text,
        source={"uri": text, "sha256": "a" * 64, "bytes": 1},
        leaves=Leaves(3, missing=[text], extra=[text], differing=[text]),
        statements=Statements([text]),
        checks=checks,
        quantities=[replace(each, name=text, run=text, case=text) for each in report.quantities],
        controls=[
            Control(text, text, status, text, text, 1.0, 0.5) for status in ("caught", "missed", "not applicable")
        ],
        explanation=replace(report.explanation, **texts, off_in=[text], right_in=[text], chain=chain),
        kernels=[Kernels("cpu", text, [text]), Kernels("cuda", "", [text])],
        coverage=Coverage({text: [text], "shape": [f"{text} 7"]}, [text]),
        environment={text: text},
        created=text,
        reason=text,
    )
