"""The subjects of benchmarks: every learned optimizer, Muon, variants of AdamW, and Newton–Schulz alone.

The time of a step does not depend on the values of the weights. Families therefore use random weights of the published
sizes, and no checkpoint is needed. Random weights do not train.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pylo_zoo import converters, registry
from pylo_zoo.artifact import Artifact
from pylo_zoo.errors import UsageError, ZooError, did_you_mean
from pylo_zoo.experiments.bench.report import TORCH
from pylo_zoo.experiments.bench.shapes import Parameters
from pylo_zoo.files import is_local
from pylo_zoo.kernels import products_for
from pylo_zoo.ops.layout import axes_of
from pylo_zoo.ops.orthogonalize import COEFFICIENTS, orthogonalize_all, resolve_coefficients
from pylo_zoo.ops.precision import NsDtype, resolve_precision
from pylo_zoo.ops.product import fp32_precision
from pylo_zoo.optim import Muon, optimizer_class
from pylo_zoo.samples.random_weights import RANDOM, random_artifact
from pylo_zoo.weights import load, no_artifact

HORIZON = 100_000
"""The ``num_steps`` of VeLO, Celo and CeloAdam."""
LOSS = 1.0
ITERATIONS = 5
MATMULS = 3 * ITERATIONS


@dataclass
class Work:
    """Repeatable work, such as the steps of an optimizer on its own parameters."""

    step: Callable[[], Any]
    tensors: list[Tensor]
    """Tensors that must stay finite."""
    optimizer: torch.optim.Optimizer | None = None

    @property
    def finite(self) -> bool:
        return all(bool(tensor.isfinite().all()) for tensor in self.tensors)

    @property
    def state_bytes(self) -> int | None:
        """Size of the tensors in the optimizer's state."""
        if self.optimizer is None:
            return None
        values = (value for state in self.optimizer.state.values() for value in state.values())
        return sum(value.numel() * value.element_size() for value in values if isinstance(value, Tensor))


class NothingToDo(ZooError):
    """A shape set has nothing for a subject, such as matrices for Newton–Schulz."""


WorkFactory = Callable[[Parameters, str], Work]
"""Builds the work from parameters and a backend."""


@dataclass(frozen=True)
class Subject:
    """Something to benchmark: a row of the table.

    Attributes:
        name: the name that users type.
        about: a short description.
        make: builds its work.
        against: the name of the reference.
        reference: builds the work of the reference.
        weights: "none", "random:FAMILY", or the name of the loaded artifact.
        has_backends: whether it has the backends of this package.
    """

    name: str
    about: str
    make: WorkFactory
    against: str = "AdamW fused"
    reference: WorkFactory = lambda parameters, backend: adamw(parameters, backend, fused=True)
    weights: str = "none"
    has_backends: bool = True


# --- optimizers --------------------------------------------------------------------------------------------------


def adamw(parameters: Parameters, backend: str = TORCH, **variant: bool) -> Work:
    """torch's AdamW with ``fused=True``, ``foreach=True``, or ``foreach=False`` (a loop over tensors)."""
    params = list(parameters)
    optimizer = torch.optim.AdamW(params, **variant)  # pyright: ignore[reportArgumentType]
    return Work(optimizer.step, [p.data for p in params], optimizer)


def _muon(parameters: Parameters, backend: str) -> Work:
    optimizer = Muon(parameters.groups(), backend=backend)
    return Work(optimizer.step, [p.data for p in parameters], optimizer)


def _learned(load_artifact: Callable[[], Artifact], parameters: Parameters, backend: str) -> Work:
    artifact = load_artifact()
    cls = optimizer_class(artifact.family)
    horizon: dict[str, Any] = {"num_steps": HORIZON} if cls.needs_loss else {}
    groups = parameters.groups(learned=converters.get(artifact.family).learns_all)
    optimizer = cls(groups, weights=artifact, **horizon, backend=backend)
    step = partial(optimizer.step, LOSS) if cls.needs_loss else optimizer.step
    return Work(step, [p.data for p in parameters], optimizer)


# --- Newton–Schulz alone -----------------------------------------------------------------------------------------


def _matrices(parameters: Parameters) -> list[Tensor]:
    """The gradients that CELO2 orthogonalizes, in at least float32: ``[*positions, rows, columns]``."""
    matrices: list[Tensor] = []
    for entry, params in parameters.by_entry:
        if len(entry.shape) >= 2 and not entry.embedding:
            axes = axes_of(entry.shape, "torch").matrix
            gradients = (p.grad.movedim(axes, (-2, -1)) for p in params if p.grad is not None)
            matrices += [g.to(torch.promote_types(g.dtype, torch.float32)) for g in gradients]
    if not matrices:
        raise NothingToDo("The shape set has no matrices.", "Use another shape set.")
    return matrices


def newton_schulz(parameters: Parameters, backend: str = TORCH, dtype: NsDtype = torch.float32) -> Work:
    """Newton–Schulz in ``dtype`` on all gradient matrices, called as optimizers call it."""
    triples = resolve_coefficients(COEFFICIENTS["original"], ITERATIONS)
    matrices = _matrices(parameters)
    results: list[Tensor] = []

    def step() -> None:
        results[:] = orthogonalize_all(matrices, triples, dtype=dtype, products_for=products_for)

    return Work(step, results)


def matmuls(parameters: Parameters, backend: str = TORCH, dtype: NsDtype = torch.float32) -> Work:
    """Only the matrix products of Newton–Schulz, dense, into preallocated memory."""
    sides: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    matrices = _matrices(parameters)
    precision = resolve_precision(dtype, matrices[0].dtype, matrices[0].device)
    for matrix in (each.to(precision.dtype) for each in matrices):
        x = matrix.mT if matrix.shape[-2] > matrix.shape[-1] else matrix
        x = (x / x.norm(dim=(-2, -1), keepdim=True)).contiguous()
        gram = x @ x.mT
        sides.append((x, gram, torch.empty_like(gram), torch.empty_like(x)))

    def step() -> None:
        with fp32_precision("tf32" if precision.tf32 else "ieee"):
            for x, gram, square, out in sides:
                for _ in range(ITERATIONS):
                    torch.matmul(x, x.mT, out=gram)
                    torch.matmul(gram, gram, out=square)
                    torch.matmul(square, x, out=out)

    return Work(step, [out for *_, out in sides])


# --- by name -----------------------------------------------------------------------------------------------------


def _random(name: str, family: str, about: str, **behavior: Any) -> Subject:
    return Subject(
        name, about, partial(_learned, partial(random_artifact, family, **behavior)), weights=f"random:{family}"
    )


SUBJECTS: Mapping[str, Subject] = {
    each.name: each
    for each in (
        Subject("adamw", "fused AdamW against itself: noise", partial(adamw, fused=True), has_backends=False),
        Subject("adamw-foreach", "torch's AdamW, foreach", partial(adamw, foreach=True), has_backends=False),
        Subject("adamw-loop", "torch's AdamW, one tensor at a time", partial(adamw, foreach=False), has_backends=False),
        Subject("muon", "Muon, Newton–Schulz in bfloat16", _muon),
        Subject(
            "velo-sample",
            "the small VeLO sample in this package",
            partial(_learned, partial(load, "velo-sample")),
            weights="velo-sample",
        ),
        *(_random(name, name, converters.OWN[name].title) for name in converters.OWN),
        _random("celo2-rule", "celo2", "CELO2's rule without Newton–Schulz", orthogonalize=False),
        Subject(
            "newton-schulz",
            f"{ITERATIONS} iterations in float32, against their {MATMULS} products per matrix",
            newton_schulz,
            against="the matmuls",
            reference=matmuls,
            has_backends=False,
        ),
    )
}
"""All subjects by name."""


def find_subject(name: str) -> Subject:
    """The subject ``name``.

    Args:
        name: a name in :data:`SUBJECTS`, a registry name, an artifact directory, ``hf://ORG/NAME`` or
            ``random:FAMILY``.

    Raises:
        ZooError: it does not exist, or its weights are unavailable.
    """
    if name in SUBJECTS:
        return SUBJECTS[name]
    if not name.startswith(("hf://", RANDOM)) and not Path(name).is_dir() and name not in registry.load_registry():
        if "/" in name or is_local(name):
            raise no_artifact(name)
        known = [*SUBJECTS, *registry.load_registry()]
        listing = (
            f"Optimizers: {', '.join(SUBJECTS)}, names from `pylo-zoo list`, an artifact directory, random:FAMILY, all."
        )
        raise UsageError(f"Unknown optimizer {name!r}.", did_you_mean(name, known, listing))
    artifact = load(name)
    return Subject(name, artifact.name, partial(_learned, lambda: artifact), weights=artifact.name)
