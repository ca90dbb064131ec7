"""What can be timed: every learned optimizer, Muon, AdamW's other forms, and Newton–Schulz alone.

The time of a step does not depend on the values of the weights, so that families get random ones of the published sizes
and no checkpoint is needed. Nothing can be said of training with them.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pylo_zoo import converters, registry
from pylo_zoo.artifact import Artifact
from pylo_zoo.bench.report import TORCH
from pylo_zoo.bench.shapes import Parameters
from pylo_zoo.errors import ZooError
from pylo_zoo.ops.layout import axes_of
from pylo_zoo.ops.orthogonalize import COEFFICIENTS, orthogonalize_all, resolve_coefficients
from pylo_zoo.optim import Muon, optimizer_class
from pylo_zoo.samples.random_weights import RANDOM, random_artifact
from pylo_zoo.weights import load

HORIZON = 100_000
"""Steps of the run that VeLO, Celo and CeloAdam believe to be in."""
LOSS = 1.0
ITERATIONS = 5
MATMULS = 3 * ITERATIONS


@dataclass
class Work:
    """Something to do again and again: one optimizer's steps, on parameters of its own."""

    step: Callable[[], Any]
    tensors: list[Tensor]
    """What has to stay finite."""
    optimizer: torch.optim.Optimizer | None = None

    @property
    def finite(self) -> bool:
        return all(bool(tensor.isfinite().all()) for tensor in self.tensors)

    @property
    def state_bytes(self) -> int | None:
        """Bytes of the tensors that the optimizer keeps for its parameters."""
        if self.optimizer is None:
            return None
        values = (value for state in self.optimizer.state.values() for value in state.values())
        return sum(value.numel() * value.element_size() for value in values if isinstance(value, Tensor))


class NothingToDo(ZooError):
    """A shape set has nothing for a subject, such as matrices for Newton–Schulz."""


Maker = Callable[[Parameters, str], Work]
"""Makes the work on given parameters with a backend."""


@dataclass(frozen=True)
class Subject:
    """A row of the table.

    Attributes:
        name: as users type it.
        about: what it is.
        make: the work on given parameters, with a backend.
        against: what it is compared with.
        reference: the work of that.
        weights: "random", "none", or what was loaded.
        has_backends: whether it has the backends of this package, or is torch's alone.
    """

    name: str
    about: str
    make: Maker
    against: str = "AdamW fused"
    reference: Maker = lambda parameters, backend: adamw(parameters, backend, fused=True)
    weights: str = "none"
    has_backends: bool = True


# --- makers ------------------------------------------------------------------------------------------------------


def adamw(parameters: Parameters, backend: str = TORCH, **form: bool) -> Work:
    """torch's AdamW in one of its forms: ``fused=True``, ``foreach=True``, or ``foreach=False``, the plain loop."""
    params = list(parameters)
    optimizer = torch.optim.AdamW(params, **form)  # pyright: ignore[reportArgumentType]
    return Work(optimizer.step, [p.data for p in params], optimizer)


def _muon(parameters: Parameters, backend: str) -> Work:
    optimizer = Muon(parameters.groups(), backend=backend)
    return Work(optimizer.step, [p.data for p in parameters], optimizer)


def _learned(artifact: Callable[[], Artifact], parameters: Parameters, backend: str) -> Work:
    found = artifact()
    cls = optimizer_class(found.family)
    horizon: dict[str, Any] = {"num_steps": HORIZON} if cls.needs_loss else {}
    groups = parameters.groups(learned=found.family == "celo2-base")
    optimizer = cls(groups, weights=found, **horizon, backend=backend)
    step = partial(optimizer.step, LOSS) if cls.needs_loss else optimizer.step
    return Work(step, [p.data for p in parameters], optimizer)


# --- Newton–Schulz alone -----------------------------------------------------------------------------------------


def _matrices(parameters: Parameters) -> list[Tensor]:
    """The gradients that CELO2 would orthogonalize, in float32 at least: ``[*positions, rows, columns]``."""
    found: list[Tensor] = []
    for entry, params in parameters.made:
        if len(entry.shape) >= 2 and not entry.embedding:
            axes = axes_of(entry.shape, "torch").matrix
            gradients = (p.grad.movedim(axes, (-2, -1)) for p in params if p.grad is not None)
            found += [g.to(torch.promote_types(g.dtype, torch.float32)) for g in gradients]
    if not found:
        raise NothingToDo("The set has no matrices.", "Use another shape set.")
    return found


def newton_schulz(parameters: Parameters, backend: str = TORCH, dtype: torch.dtype = torch.float32) -> Work:
    """Newton–Schulz in ``dtype`` over all matrices of the gradients, as optimizers call it."""
    triples = resolve_coefficients(COEFFICIENTS["original"], ITERATIONS)
    matrices = _matrices(parameters)
    made: list[Tensor] = []

    def step() -> None:
        made[:] = orthogonalize_all(matrices, triples, dtype=dtype)

    return Work(step, made)


def matmuls(parameters: Parameters, backend: str = TORCH, dtype: torch.dtype = torch.float32) -> Work:
    """The products of Newton–Schulz without anything between them, into memory that is there already."""
    sides: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    for matrix in (each.to(dtype) for each in _matrices(parameters)):
        x = matrix.mT if matrix.shape[-2] > matrix.shape[-1] else matrix
        x = (x / x.norm(dim=(-2, -1), keepdim=True)).contiguous()
        gram = x @ x.mT
        sides.append((x, gram, torch.empty_like(gram), torch.empty_like(x)))

    def step() -> None:
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
        Subject("adamw", "fused AdamW against itself: the noise", partial(adamw, fused=True), has_backends=False),
        Subject("adamw-foreach", "torch's AdamW, foreach", partial(adamw, foreach=True), has_backends=False),
        Subject("adamw-loop", "torch's AdamW, a tensor at a time", partial(adamw, foreach=False), has_backends=False),
        Subject("muon", "Muon, Newton–Schulz in bfloat16", _muon),
        Subject(
            "velo-sample",
            "VeLO, the small one that ships",
            partial(_learned, partial(load, "velo-sample")),
            weights="velo-sample",
        ),
        *(_random(name, name, converters.OWN[name].title) for name in converters.OWN),
        _random("celo2-rule", "celo2", "CELO2's rule without Newton–Schulz", orthogonalize=False),
        Subject(
            "newton-schulz",
            f"{ITERATIONS} iterations in float32, against their {MATMULS} products a matrix",
            newton_schulz,
            against="the matmuls",
            reference=matmuls,
            has_backends=False,
        ),
    )
}
"""Every subject by name."""


def find_subject(name: str) -> Subject:
    """The subject called ``name``: of :data:`SUBJECTS`, a registry entry, an artifact's directory, ``hf://ORG/NAME`` or
    ``random:FAMILY``.

    Raises:
        ZooError: none exists, or its weights are unavailable.
    """
    if name in SUBJECTS:
        return SUBJECTS[name]
    if not name.startswith(("hf://", RANDOM)) and not Path(name).is_dir() and name not in registry.load_registry():
        known = [*SUBJECTS, *registry.load_registry()]
        near = difflib.get_close_matches(name.lower().replace("_", "-"), known, n=1)
        listing = f"There are {', '.join(SUBJECTS)}; every name of `pylo-zoo list`; an artifact's directory; or all."
        raise ZooError(f"There is no optimizer {name!r}.", f"Did you mean {near[0]!r}? {listing}" if near else listing)
    artifact = load(name)
    return Subject(name, artifact.name, partial(_learned, lambda: artifact), weights=artifact.name)
