"""The step of a rule as fused kernels, and the one place where a backend is chosen.

``backend="eager"`` is :mod:`pylo_zoo.ops.step`. ``"fused"`` are the kernels of the parameter's
device: C++ on a CPU, compiled when first used, Triton on a GPU. ``"auto"`` takes kernels where the device has some.
"""

from __future__ import annotations

import importlib.util
import logging

import torch

from pylo_zoo.errors import ZooError
from pylo_zoo.kernels.base import Adam, Kernels, Normalized, ScratchBuffer, Task
from pylo_zoo.warn import warn

BACKENDS = ("auto", "eager", "fused")

_log = logging.getLogger("pylo_zoo")
_found: dict[str, Kernels | str] = {}
"""By kind of device: its kernels, or why there are none."""
_told: set[str] = set()


def kernels_for(backend: str, device: torch.device) -> Kernels | None:
    """The kernels that step parameters on ``device``; None if the eager implementation does.

    ``"auto"`` says once for each kind of device what it chose and why: in the log of ``pylo_zoo`` that it takes the
    kernels, and as a warning that it cannot.

    Raises:
        ZooError: ``backend="fused"``, and there are none for this device or machine.
    """
    if backend == "eager" or device.type == "meta":
        return None
    kind = device.type
    if kind not in _found:
        _found[kind] = _find(kind)
    found = _found[kind]
    if isinstance(found, str) and backend == "fused":
        raise ZooError(
            f'backend="fused" is not possible on {kind}: {found}',
            'Use backend="eager", which computes the same more slowly, or "auto", which falls back to it.',
        )
    if kind not in _told:
        _told.add(kind)
        if isinstance(found, str):
            warn(
                f'steps on {kind} take backend="eager", which is many times slower than "fused": {found} '
                'Give backend="eager" to say so and silence this.'
            )
        else:
            _log.info("steps on %s take fused kernels: %s", kind, found)
    return None if isinstance(found, str) else found


def check_backend(backend: str) -> None:
    """Raise :class:`~pylo_zoo.errors.ZooError` unless ``backend`` is one of :data:`BACKENDS`."""
    if backend not in BACKENDS:
        raise ZooError(f"backend is {backend!r}.", f"Use one of {', '.join(BACKENDS)}.")


def _find(kind: str) -> Kernels | str:
    if kind == "cpu":
        from pylo_zoo.kernels import cpu

        return cpu.find_kernels()
    if kind == "cuda":
        if importlib.util.find_spec("triton") is None:
            return "Triton is not installed (pip install triton)."
        from pylo_zoo.kernels import gpu

        return gpu.find_kernels()
    return f"there are no kernels for {kind}."


__all__ = ["BACKENDS", "Adam", "Kernels", "Normalized", "ScratchBuffer", "Task", "check_backend", "kernels_for"]
