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

    def step(self, inputs: AdamInputs, checked: bool = False, proceed: Tensor | None = None) -> None:
        values, gradients = inputs.values, inputs.gradients
        guard.check_adam_inputs(inputs, None if checked else self._kept, TYPES, self._device)
        guard.check_proceed(proceed, self._device)
        signature = *(list(map(Tensor.data_ptr, x)) for x in (values, gradients)), [g.dtype for g in gradients]
        if signature != self._signature:
            self._kinds, self._signature = self._tables(values, gradients), signature
        scale, table = scale_of(inputs.scale, self._device), self._numbers(inputs)
        for (aligned, p_type, g_type), (records, programs) in self._kinds.items():
            launch(
                adam_elements, len(programs), records, programs, table, scale, proceed,
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
        """The values of :data:`~pylo_zoo.kernels.gpu.adam.NUMBERS`. Decays are rounded to float32, as in eager."""
        betas, rest = inputs.numbers.split([2, 3], dim=1)
        betas = betas.float().double()
        corrections = 1 - betas ** inputs.counts[:, None]
        on_host = torch.cat([betas, corrections, rest], dim=1).float()
        table = upload(on_host, self._device)
        factors = torch.stack([factors_of(each, self._device) for each in (inputs.coefficient, inputs.shrink)], dim=1)
        return torch.cat([table[:, :6], factors, table[:, 6:]], dim=1)
