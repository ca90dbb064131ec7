"""Learned optimizers for PyTorch, proven to compute what the original JAX code computes."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from pylo_zoo.errors import ZooError

if TYPE_CHECKING:
    from pylo_zoo.artifact import Artifact
    from pylo_zoo.weights import load

__version__ = "0.1.0"
__all__ = ["Artifact", "ZooError", "__version__", "load"]

# Imported on first use: `import pylo_zoo` (and --help) does not wait for torch.
_LAZY = {"Artifact": "pylo_zoo.artifact", "load": "pylo_zoo.weights"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
