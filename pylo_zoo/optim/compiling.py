"""The parts of a step that stay outside compiled graphs."""

from __future__ import annotations

import torch

_EXCLUDED: set[type] = set()
METHODS = (
    *("_init_state", "_check", "_step_fused", "_count_skipped", "_count_call"),
    *("_set_condition", "_clear_condition"),
)
"""What stays outside compiled graphs, if a class has it."""


def exclude_from_compile(cls: type) -> None:
    """Exclude state creation, checks and kernels of ``cls`` from compiled graphs.

    If state were created inside a graph, the next step would need a second graph. This runs when a class is first
    instantiated, because importing dynamo takes most of a second; torch's ``add_param_group`` imports it anyway.
    """
    if cls not in _EXCLUDED:
        _EXCLUDED.add(cls)
        for name in METHODS:
            if hasattr(cls, name):
                setattr(cls, name, torch.compiler.disable(getattr(cls, name)))
