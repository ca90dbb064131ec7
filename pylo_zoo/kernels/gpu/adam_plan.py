"""The host's side of AdamW's kernel: tables of parameters, built once, and numbers that change at each step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pylo_zoo.kernels import guard
from pylo_zoo.kernels.base import Adam, AdamInputs
from pylo_zoo.kernels.gpu.adam import adam_elements
from pylo_zoo.kernels.gpu.launch import launch
from pylo_zoo.kernels.gpu.records import STEPS, TYPES, blocks, ceil_div, factors_of, rows, scale_of, upload

ADAM_BLOCK = 1024
"""Elements per program."""


class GpuAdamPlan:
    """:class:`~pylo_zoo.kernels.base.AdamPlan` for a GPU. One launch per kind of parameter: dtypes and alignment."""

    def __init__(self, tasks: Sequence[Adam]) -> None:
        self._device = tasks[0].p.device
        self._kept = [(task.momentum, task.second_moment) for task in tasks]
        self._nesterov = [int(task.nesterov) for task in tasks]
        self._kinds: dict[tuple[Any, ...], tuple[Tensor, Tensor]] = {}
        """The records' table and the block table of each kind."""
        self._signature: tuple[object, ...] = ()
        self._uploaded: tuple[Tensor, Tensor, Tensor] | None = None
        """The last step's numbers on the host; their decays, float64 ``[N, 2]``, and the rest, on the device."""

    def step(self, inputs: AdamInputs, checked: bool = False) -> None:
        values, gradients = inputs.values, inputs.gradients
        guard.check_adam_inputs(inputs, None if checked else self._kept, TYPES, self._device)
        signature = *(list(map(Tensor.data_ptr, x)) for x in (values, gradients)), [g.dtype for g in gradients]
        if signature != self._signature:
            self._kinds, self._signature = self._tables(values, gradients), signature
        scale, table = scale_of(inputs.scale, self._device), self._numbers(inputs)
        for (aligned, p_type, g_type), (records, programs) in self._kinds.items():
            launch(
                adam_elements, len(programs), records, programs, table, scale,
                P_TYPE=TYPES[p_type], G_TYPE=TYPES[g_type], ALIGNED=aligned, BLOCK=ADAM_BLOCK,
            )  # fmt: skip

    def _tables(
        self, values: Sequence[Tensor], gradients: Sequence[Tensor]
    ) -> dict[tuple[Any, ...], tuple[Tensor, Tensor]]:
        kinds: dict[tuple[Any, ...], list[dict[str, int]]] = {}
        for k, (p, g, (m, v)) in enumerate(zip(values, gradients, self._kept, strict=True)):
            addresses = {"p": p.data_ptr(), "g": g.data_ptr(), "momentum": m.data_ptr(), "second_moment": v.data_ptr()}
            aligned = p.numel() % 4 == 0 and all(address % 16 == 0 for address in addresses.values())
            record = {**addresses, "size": p.numel(), "task": k, "nesterov": self._nesterov[k]}
            kinds.setdefault((aligned, p.dtype, g.dtype), []).append(record)
        return {
            kind: (
                rows(STEPS, records, self._device),
                blocks([ceil_div(record["size"], ADAM_BLOCK) for record in records], self._device),
            )
            for kind, records in kinds.items()
        }

    def _numbers(self, inputs: AdamInputs) -> Tensor:
        """The values of :data:`~pylo_zoo.kernels.gpu.adam.NUMBERS`. Decays are rounded to float32, as in eager.

        The bias corrections are computed on the device, in float64, because the counters are there.
        """
        if self._uploaded is None or not torch.equal(self._uploaded[0], inputs.numbers):
            betas, rest = inputs.numbers.float().split([2, 3], dim=1)
            betas, rest = upload(betas.double().contiguous(), self._device), upload(rest.contiguous(), self._device)
            self._uploaded = inputs.numbers, betas, rest
        _, betas, rest = self._uploaded
        corrections = 1 - betas ** inputs.counts[:, None]
        factors = [factors_of(each, self._device)[:, None] for each in (inputs.coefficient, inputs.shrink)]
        return torch.cat([betas.float(), corrections.float(), rest[:, :2], *factors, rest[:, 2:]], dim=1)
