"""Warnings about settings that train badly: strong weight decay, an extra schedule, embeddings treated as matrices.

See docs/training.md, "Schedules and decay", for the measurements (``benchmarks/decay.py``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

SHRINKING = 3e-3
"""Smallest ``lr·weight_decay`` that broke training: it halves a parameter in 230 steps. Runs at 1e-3 trained."""
PAGE = 'docs/training.md, "Schedules and decay"'


def decay_warning(optimizer: str, lr: Any, weight_decay: float) -> str | None:
    """The warning about a weight decay that shrinks parameters faster than the learned steps restore them, or None.

    Args:
        optimizer: the optimizer's class name.
        lr, weight_decay: options of a group with decoupled decay, for a rule that learned its step sizes.
    """
    if isinstance(lr, Tensor) and lr.is_meta:
        return None
    shrink = float(lr) * weight_decay
    if shrink < SHRINKING:
        return None
    return (
        f"weight_decay={weight_decay:g} with lr={float(lr):g} shrinks every parameter by {shrink:.2g} of its value per "
        f"step, more than {optimizer}'s steps restore: use weight_decay={1e-3 / float(lr):.1g} or less ({PAGE})."
    )


class LRWatch:
    """Detects falling learning rates by comparing each step's values with earlier ones."""

    def __init__(self) -> None:
        self._last_and_peak: dict[int, tuple[float, float]] = {}

    def detect_fall(self, groups: Sequence[Mapping[str, Any]]) -> tuple[float, float] | None:
        """The highest and the current ``lr`` of a group whose ``lr`` falls, or None.

        With a scheduler, recognized by ``initial_lr`` in the group, any decrease counts. Without one, the ``lr`` must
        fall to half. An ``lr`` of 0 freezes a group and does not count. An ``lr`` on an accelerator is not read,
        because that would wait for the device.
        """
        for number, group in enumerate(groups):
            lr = group["lr"]
            if isinstance(lr, Tensor) and lr.device.type != "cpu":
                continue
            now = float(lr)
            last, peak = self._last_and_peak.get(number, (now, now))
            self._last_and_peak[number] = now, max(peak, now)
            if 0 < now < last and ("initial_lr" in group or now <= peak / 2):
                return peak, now
        return None


def schedule_warning(optimizer: str, peak: float, lr: float) -> str:
    """The warning about a falling learning rate under an optimizer that learned its own schedule."""
    return (
        f"lr has fallen from {peak:.6g} to {lr:.6g}, but {optimizer} already schedules its steps by num_steps and the "
        f"loss: keep lr constant ({PAGE})."
    )


# --- embeddings ------------------------------------------------------------------------------------------------------

NAMES = re.compile(
    r"(^|[._])(wte|wpe|lm_head|((tok|token|word|vocab|pos|position|positional|input|output)_?)?"
    r"(emb|embed|embeds|embedding|embeddings|embed_tokens))(\.weight)?$"
)
TALL_ROWS, TALL_RATIO, LORA_RANKS = 4096, 8, 128
"""A matrix with at least this many rows, and this many times more rows than columns, is a table or an output head. With
at most ``LORA_RANKS`` columns it may be a LoRA factor instead."""
MIN_ROWS, ZERO_ROWS = 64, 0.75
"""If a gradient has at least ``MIN_ROWS`` rows and more than this fraction of them are 0, the parameter is an
embedding: a batch reads few of its rows. A layer before a ReLU can have half its rows 0 in a batch of one."""


class Candidate(NamedTuple):
    """A parameter that gets a matrix rule by default."""

    parameter: Tensor
    gradient: Tensor
    name: str | None


def embedding_evidence(candidates: Iterable[Candidate]) -> tuple[Candidate, str] | None:
    """The first candidate that looks like an embedding or an output head, with the reason, or None.

    Names and shapes are checked first, then gradients: a batch leaves most rows of an embedding's gradient zero. This
    reads one number per candidate back, in one transfer per device.
    """
    matrices = [each for each in candidates if each.parameter.ndim == 2]
    for each in matrices:
        (rows, columns), name = each.parameter.shape, each.name
        if name is not None and NAMES.search(name):
            return each, f"its name is {name}"
        if rows >= TALL_ROWS and rows >= TALL_RATIO * columns and columns > LORA_RANKS:
            return each, f"it has {rows / columns:.0f} times as many rows as columns"
    long = [each for each in matrices if each.parameter.shape[0] >= MIN_ROWS and not each.gradient.is_meta]
    for device in {each.gradient.device for each in long}:
        on_device = [each for each in long if each.gradient.device == device]
        counts = torch.stack([(each.gradient == 0).all(dim=1).sum() for each in on_device]).tolist()
        for each, zeros in zip(on_device, counts, strict=True):
            rows = each.parameter.shape[0]
            if ZERO_ROWS * rows < zeros < rows:
                return each, f"{zeros} of the {rows} rows of its gradient are 0"
    return None


def embedding_warning(candidate: Candidate, why: str, rule: str) -> str:
    """The warning about an embedding or output head that gets ``rule``."""
    shape, name = (
        tuple(candidate.parameter.shape),
        f" ({candidate.name})" if candidate.name and candidate.name not in why else "",
    )
    return (
        f"a parameter of shape {shape}{name} looks like an embedding or output head ({why}) and takes {rule}, which "
        f'is for dense layers. Build groups with param_groups(model), or set rule="adamw" in its group; '
        f'rule="learned" silences this warning ({PAGE}).'
    )


__all__ = [
    "Candidate",
    "LRWatch",
    "decay_warning",
    "embedding_evidence",
    "embedding_warning",
    "schedule_warning",
]
