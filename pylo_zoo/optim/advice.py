"""Warnings about settings that train badly without an error: strong decay, a second schedule, embeddings as matrices.

docs/training.md, "Schedules and decay", has the measurements (``benchmarks/decay.py``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

SHRINKING = 3e-3
"""Smallest ``lr·weight_decay`` that broke training: half of a parameter is gone in 230 steps. At 1e-3 runs trained."""
PAGE = 'docs/training.md, "Schedules and decay"'


def decay_warning(optimizer: str, lr: Any, weight_decay: float) -> str | None:
    """The warning about a decay that shrinks parameters faster than steps of a learned size can restore; or None.

    Args:
        optimizer: name of the class.
        lr, weight_decay: of a group with decoupled decay. The ``lr`` multiplies steps of a size that was learned.
    """
    if isinstance(lr, Tensor) and lr.is_meta:
        return None
    shrink = float(lr) * weight_decay
    if shrink < SHRINKING:
        return None
    return (
        f"weight_decay={weight_decay:g} with lr={float(lr):g} takes {shrink:.2g} of every parameter away at each step, "
        f"more than {optimizer}'s steps restore: use weight_decay={1e-3 / float(lr):.1g} or less ({PAGE})."
    )


class LrWatch:
    """Notices that something lowers the learning rates of a run, from the value at each step."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[float, float]] = {}

    def fall(self, groups: Sequence[Mapping[str, Any]]) -> tuple[float, float] | None:
        """The highest and the present ``lr`` of a group whose ``lr`` falls; None if none does.

        A scheduler is recognized by the ``initial_lr`` that it leaves in the group, at its first fall. Without one,
        the ``lr`` must have fallen to half. An ``lr`` of 0 is not a fall: it freezes a group. An ``lr`` on an
        accelerator is not read, because that would wait for the device.
        """
        for number, group in enumerate(groups):
            lr = group["lr"]
            if isinstance(lr, Tensor) and lr.device.type != "cpu":
                continue
            now = float(lr)
            last, peak = self._seen.get(number, (now, now))
            self._seen[number] = now, max(peak, now)
            if 0 < now < last and ("initial_lr" in group or now <= peak / 2):
                return peak, now
        return None


def schedule_warning(optimizer: str, peak: float, lr: float) -> str:
    """The warning about a learning rate that falls under an optimizer with a schedule of its own."""
    return (
        f"lr has fallen from {peak:.6g} to {lr:.6g}. {optimizer} plans its own schedule from num_steps and the loss, "
        f"and a falling lr shortens its steps twice: keep lr constant ({PAGE})."
    )


# --- embeddings ------------------------------------------------------------------------------------------------------

NAMES = re.compile(
    r"(^|[._])(wte|wpe|lm_head|((tok|token|word|vocab|pos|position|positional|input|output)_?)?"
    r"(emb|embed|embeds|embedding|embeddings|embed_tokens))(\.weight)?$"
)
TALL_ROWS, TALL_RATIO, LORA_RANKS = 4096, 8, 128
"""A matrix with at least so many rows, so many times its columns, is a table or an output head. Up to so many columns
it may be a LoRA factor instead."""
MIN_ROWS, ZERO_ROWS = 64, 0.75
"""A gradient with more than this share of its rows 0 is that of a table of which a batch reads few rows. Half the rows
may be 0 for a layer before a ReLU in a batch of one; so many of so many are not."""


class Candidate(NamedTuple):
    """A parameter that a matrix rule would take, although nobody chose that."""

    parameter: Tensor
    gradient: Tensor
    name: str | None


def embedding_evidence(candidates: Iterable[Candidate]) -> tuple[Tensor, str] | None:
    """The first candidate that looks like an embedding or an output head, and why; None if none does.

    Names and shapes decide first. Then the gradients do: a batch leaves most rows of an embedding without gradient.
    One number per candidate is read back from its device, all of one device together.
    """
    tables = [each for each in candidates if each.parameter.ndim == 2]
    for p, _, name in tables:
        rows, columns = p.shape
        if name is not None and NAMES.search(name):
            return p, f"its name is {name}"
        if rows >= TALL_ROWS and rows >= TALL_RATIO * columns and columns > LORA_RANKS:
            return p, f"it has {rows / columns:.0f} times as many rows as columns"
    long = [each for each in tables if each.parameter.shape[0] >= MIN_ROWS and not each.gradient.is_meta]
    for device in {each.gradient.device for each in long}:
        here = [each for each in long if each.gradient.device == device]
        counts = torch.stack([(each.gradient == 0).all(dim=1).sum() for each in here]).tolist()
        for each, zeros in zip(here, counts, strict=True):
            rows = each.parameter.shape[0]
            if ZERO_ROWS * rows < zeros < rows:
                return each.parameter, f"{zeros} of the {rows} rows of its gradient are 0"
    return None


def embedding_warning(p: Tensor, why: str, rule: str) -> str:
    """The warning about an embedding, or output head, that takes ``rule``."""
    return (
        f"a parameter of shape {tuple(p.shape)} looks like an embedding or output head ({why}) and takes {rule}, which "
        f'is meant for dense layers. Build the groups with param_groups(model), or set rule="adamw" in its group; '
        f'rule="learned" keeps it there and silences this warning ({PAGE}).'
    )


__all__ = [
    "Candidate",
    "LrWatch",
    "decay_warning",
    "embedding_evidence",
    "embedding_warning",
    "schedule_warning",
]
