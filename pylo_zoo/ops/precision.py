"""The precision of Newton–Schulz iterations (docs/performance.md): a dtype, and whether products round to TF32."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pylo_zoo.errors import ZooError

NsDtype = str | torch.dtype | None
"""How a precision is requested: a name in :data:`PRECISIONS`, a dtype, or None for the default."""

_log = logging.getLogger("pylo_zoo")
_reported: set[str] = set()
"""Device types for which a missing TF32 was reported."""


class Precision(NamedTuple):
    """The dtype that iterates are stored in, and whether products round their float32 operands to TF32."""

    dtype: torch.dtype
    tf32: bool = False

    @property
    def name(self) -> str:
        """The name in :data:`PRECISIONS`."""
        return "tf32" if self.tf32 else str(self.dtype).removeprefix("torch.")


PRECISIONS = {
    "float32": Precision(torch.float32),
    "tf32": Precision(torch.float32, tf32=True),
    "bfloat16": Precision(torch.bfloat16),
    "float16": Precision(torch.float16),
    "float64": Precision(torch.float64),
}
"""Precisions by name. TF32 has the exponent of float32 and ten bits of mantissa, and sums in float32."""
NS_DTYPES = ("float32", "tf32", "bfloat16")
"""The names that all optimizers with Newton–Schulz document."""


def check_ns_dtype(value: Any) -> None:
    """Raise :class:`ZooError` unless ``value`` is a :data:`NsDtype`."""
    names = [*PRECISIONS, *(each.dtype for each in PRECISIONS.values())]
    if not (value is None or any(type(value) is type(each) and value == each for each in names)):
        raise ZooError(f"ns_dtype is {value!r}.", f"Use one of {', '.join(PRECISIONS)}, a torch dtype, or None.")


def resolve_precision(ns_dtype: NsDtype, dtype: torch.dtype, device: torch.device) -> Precision:
    """The precision of iterations of matrices of ``dtype`` on ``device``.

    None selects what JAX does by default: ``dtype`` itself, and TF32 for float32 on a device that has it. Without TF32,
    ``"tf32"`` runs as float32, which the log of ``pylo_zoo`` reports once per device type.
    """
    if ns_dtype is None:
        return Precision(dtype, tf32=dtype == torch.float32 and has_tf32(device))
    precision = PRECISIONS[ns_dtype] if isinstance(ns_dtype, str) else Precision(ns_dtype)
    if precision.tf32 and not has_tf32(device):
        if device.type not in _reported and not torch.compiler.is_compiling():
            _reported.add(device.type)
            _log.warning('ns_dtype="tf32" runs as float32 on %s, which has no TF32', device)
        return PRECISIONS["float32"]
    return precision


def has_tf32(device: torch.device) -> bool:
    """Whether matrix products on ``device`` can round to TF32: NVIDIA GPUs since Ampere (compute capability 8)."""
    if device.type != "cuda" or torch.version.hip is not None or not torch.cuda.is_available():
        return False
    return torch.cuda.get_device_capability(device)[0] >= 8


def round_to_tf32(x: Tensor) -> Tensor:
    """Float32 values rounded to the nearest TF32 value, ties to even: what a product does to its operands."""
    bits = x.contiguous().view(torch.int32)
    return ((bits + 0x0FFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)
