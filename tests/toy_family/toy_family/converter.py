"""The toy family's checkpoints: their content, and which leaf becomes which tensor. No torch and no JAX here."""

from __future__ import annotations

from dataclasses import dataclass

from pylo_zoo.converters.base import IDENTITY, TRANSPOSE, Family, Leaves, Rename, Table, axis_size, make_record


@dataclass(frozen=True)
class ToyArchitecture:
    """Read from the leaves' shapes."""

    hidden_size: int


@dataclass(frozen=True)
class ToyBehavior:
    """Not readable from shapes. The defaults are the released values."""

    step_mult: float = 0.01
    initial_momentum_decays: tuple[float] = (0.9,)
    initial_rms_decays: tuple[float] = (0.99,)


def table(architecture: ToyArchitecture) -> Table:
    """Every leaf of a checkpoint, the tensor that it becomes, and the change of layout."""
    return (
        Rename((("hidden", "w"),), "hidden.weight", TRANSPOSE),
        Rename((("hidden", "b"),), "hidden.bias", IDENTITY),
        Rename((("out", "w"),), "out.weight", TRANSPOSE),
        Rename((("out", "b"),), "out.bias", IDENTITY),
    )


def infer(leaves: Leaves) -> ToyArchitecture:
    """Read the architecture from the leaves; ``axis_size`` names a leaf that is missing."""
    return make_record(ToyArchitecture, hidden_size=axis_size(leaves, ("hidden", "b"), 0))


TOY = Family(
    name="toy",
    title="Toy momentum",
    paper="0000.00000",
    optimizer="toy_family.optimizer:Toy",
    architecture=ToyArchitecture,
    behavior=ToyBehavior,
    released=ToyArchitecture(hidden_size=3),
    net="toy_family.optimizer:ToyNet",
    table=table,
    infer=infer,
    defaults={"lr": 1.0, "weight_decay": 0.0, "clip_norm": None},
    reference="toy_family.reference:TOY",
    parity_hyper={"lr": 1.0, "weight_decay": 0.1, "clip_norm": 1.0},
)
