"""Fused kernels, and the choice of a backend.

``backend="eager"`` is :mod:`pylo_zoo.ops.step`. ``"fused"`` uses the kernels of the parameter's device: C++ on a CPU,
compiled at first use, and Triton on a GPU. ``"auto"`` uses kernels if the device has them.
"""

from __future__ import annotations

import importlib.util
import logging

import torch

from pylo_zoo.errors import ZooError
from pylo_zoo.kernels.base import (
    Adam,
    AdamInputs,
    AdamPlan,
    CapturablePlan,
    KernelPlan,
    Kernels,
    LSTMPlan,
    Normalized,
    NormalizedPlan,
    ScratchBuffer,
    Task,
)
from pylo_zoo.ops.precision import Precision
from pylo_zoo.ops.product import Products, ProductsFor, torch_products
from pylo_zoo.warn import warn

BACKENDS = ("auto", "eager", "fused")

_log = logging.getLogger("pylo_zoo")
_by_device: dict[str, Kernels | str] = {}
"""By device type: its kernels, or why they are unavailable."""
_products: dict[str, ProductsFor] = {}
"""By device type: chooses the matrix products of Newton–Schulz."""
_reported: set[str] = set()
"""Device types whose choice by ``"auto"`` was reported."""


def kernels_for(backend: str, device: torch.device) -> Kernels | None:
    """The kernels that step parameters on ``device``; None if the eager implementation does.

    ``"auto"`` reports its choice once per device type: kernels in the log of ``pylo_zoo``, the eager implementation as
    a warning with the reason.

    Raises:
        ZooError: ``backend`` is ``"fused"`` and the device or machine has no kernels.
    """
    if backend == "eager" or device.type == "meta":
        return None
    kind = device.type
    if kind not in _by_device:
        _by_device[kind] = _find(kind)
    kernels = _by_device[kind]
    if isinstance(kernels, str) and backend == "fused":
        raise ZooError(
            f'backend="fused" is unavailable on {kind}: {kernels}',
            'Use backend="eager", which is slower, or "auto".',
        )
    if kind not in _reported:
        _reported.add(kind)
        if isinstance(kernels, str):
            warn(
                f'steps on {kind} use backend="eager", which is many times slower than "fused": {kernels} '
                'Pass backend="eager" to silence this warning.'
            )
        else:
            _log.info("steps on %s use fused kernels: %s", kind, kernels)
    return None if isinstance(kernels, str) else kernels


def available_kernels(device: torch.device) -> Kernels | None:
    """The kernels of a device, compiled if necessary; None, without a warning, if it has none."""
    if device.type == "meta":
        return None
    if device.type not in _by_device:
        _by_device[device.type] = _find(device.type)
    kernels = _by_device[device.type]
    return None if isinstance(kernels, str) else kernels


def products_for(device: torch.device, precision: Precision) -> Products:
    """The matrix products of Newton–Schulz iterations: Triton's on CUDA devices, else torch's.

    Inside compiled graphs, Triton's are used if :func:`prepare_products` has imported them.
    """
    if device.type == "cuda" and precision.dtype != torch.float64:
        if not torch.compiler.is_compiling():
            prepare_products(device)
        return _products.get("cuda", torch_products)(device, precision)
    return torch_products(device, precision)


def prepare_products(device: torch.device) -> None:
    """Import Triton's products if ``device`` is a CUDA device and Triton is installed."""
    if device.type == "cuda" and "cuda" not in _products:
        if importlib.util.find_spec("triton") is None:
            _products["cuda"] = torch_products
        else:
            from pylo_zoo.kernels.gpu import products

            _products["cuda"] = products.triton_products


def _find(kind: str) -> Kernels | str:
    if kind == "cpu":
        from pylo_zoo.kernels import cpu

        return cpu.find_kernels()
    if kind == "cuda":
        if importlib.util.find_spec("triton") is None:
            return "Triton is not installed (pip install triton)."
        from pylo_zoo.kernels import gpu

        return gpu.find_kernels()
    return f"pylo-zoo has no kernels for {kind}."


__all__ = [
    "BACKENDS",
    "Adam",
    "AdamInputs",
    "AdamPlan",
    "CapturablePlan",
    "KernelPlan",
    "Kernels",
    "LSTMPlan",
    "Normalized",
    "NormalizedPlan",
    "ScratchBuffer",
    "Task",
    "available_kernels",
    "kernels_for",
    "prepare_products",
    "products_for",
]
