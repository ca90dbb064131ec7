"""CELO2, CELO2-base and ELO-CELO2 (SPEC §6). They share one tree and differ in behavior and defaults."""

from __future__ import annotations

from dataclasses import replace

from pylo_zoo.config import CELO2Architecture, CELO2BaseBehavior, CELO2Behavior
from pylo_zoo.converters.base import (
    IDENTITY,
    TRANSPOSE,
    Family,
    Leaves,
    Naming,
    Rename,
    Table,
    Transpose,
    axis_size,
    make_record,
)
from pylo_zoo.converters.tables import FF_STACK, GROUPS, count_numbered, hidden_layers, mlp

DEFAULTS = {
    "lr": 1e-3,
    "weight_decay": 0.0,
    "clip_norm": None,
    "adam_lr_mult": 20.0,
    "adam_eps": 1e-8,
    "adam_weight_decay": None,
    "grad_clip_val": 1000.0,
}


def table(architecture: CELO2Architecture) -> Table:
    return mlp(FF_STACK, architecture.ff_hidden_layers, GROUPS)


def infer(leaves: Leaves) -> CELO2Architecture:
    return make_record(
        CELO2Architecture,
        ff_hidden_size=axis_size(leaves, (*FF_STACK, "b0"), -1),
        ff_hidden_layers=hidden_layers(leaves, FF_STACK),
    )


def pylo_table(architecture: CELO2Architecture) -> Table:
    """PyLO keeps JAX's ``(in, out)`` layout, with one tensor per feature group."""
    groups = tuple((f"w0.{k}",) for k in range(len(GROUPS)))
    rows = [
        Rename(groups, "mlp.layers.0.weight", Transpose(GROUPS, name="concatenate groups + transpose")),
        Rename((("b0",),), "mlp.layers.0.bias", IDENTITY),
    ]
    for j in range(architecture.ff_hidden_layers):
        rows.append(Rename(((f"dense_w.{j}",),), f"mlp.layers.{j + 1}.weight", TRANSPOSE))
        rows.append(Rename(((f"dense_b.{j}",),), f"mlp.layers.{j + 1}.bias", IDENTITY))
    return tuple(rows)


def pylo_infer(leaves: Leaves) -> CELO2Architecture:
    return make_record(
        CELO2Architecture,
        ff_hidden_size=axis_size(leaves, ("b0",), -1),
        ff_hidden_layers=count_numbered(leaves, r"dense_[wb]\.(\d{1,4})"),
    )


CELO2 = Family(
    name="celo2",
    title="Celo2",
    paper="2602.19142",
    optimizer="pylo_zoo.optim:CELO2",
    architecture=CELO2Architecture,
    behavior=CELO2Behavior,
    released=CELO2Architecture(ff_hidden_size=8, ff_hidden_layers=2),
    net="pylo_zoo.nets:CELO2Net",
    table=table,
    infer=infer,
    defaults=DEFAULTS,
    reference="pylo_zoo.reference.celo2:CELO2",
    parity_hyper={"lr": 1e-2, "weight_decay": 0.1},
    advice=(
        "It updates matrices and convolutions. AdamW updates embeddings, the output head, norms and biases with the "
        "learning rate `lr * adam_lr_mult`. Tune `lr` and `adam_lr_mult`, and use a schedule, as with any optimizer.",
    ),
    pylo=Naming(pylo_table, pylo_infer),
)

CELO2_BASE = replace(
    CELO2,
    name="celo2-base",
    title="Celo2-base",
    behavior=CELO2BaseBehavior,
    reference="pylo_zoo.reference.celo2:CELO2_BASE",
    learns_all=True,
    advice=("It updates every parameter. Tune the learning rate, and use a schedule.",),
)

ELO_CELO2 = replace(
    CELO2,
    name="elo-celo2",
    title="ELO-Celo2",
    paper="2506.10315",
    optimizer="pylo_zoo.optim:ELO_CELO2",
    defaults={**DEFAULTS, "weight_decay": 0.1, "clip_norm": 1.0, "adam_lr_mult": 1.0},
    reference="pylo_zoo.reference.celo2:ELO_CELO2",
    parity_hyper={"lr": 1e-2},
    advice=(
        "It updates matrices and convolutions, and AdamW updates the rest. It clips gradients by their global norm.",
    ),
)
