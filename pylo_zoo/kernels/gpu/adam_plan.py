"""The host's side of AdamW's kernel: tables of parameters, built once, and numbers that change at each step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pylo_zoo.kernels import guard
from pylo_zoo.kernels.base import Adam, AdamInputs
from pylo_zoo.kernels.gpu.adam import adam_elements
from pylo_zoo.kernels.gpu.launch import launch
from pylo_zoo.kernels.gpu.plan import Addresses
from pylo_zoo.kernels.gpu.records import STEPS, TYPES, blocks, ceil_div, factors_of, rows, scale_of, upload
from pylo_zoo.ops.capture import is_capturing

ADAM_BLOCK = 1024
"""Elements per program."""


class AdamKind(NamedTuple):
    """The parameters of one launch."""

    kind: tuple[bool, torch.dtype, torch.dtype]
    """Whether they are aligned; dtypes of parameters and gradients."""
    records: Tensor
    programs: Tensor
    """The block table."""
    start: int
    """Their place in the gradients' table."""


class AdamTables:
    """What the kernel reads for all parameters."""

    def __init__(self, kinds: list[AdamKind], gradients: Addresses) -> None:
        self.kinds, self.gradients = kinds, gradients


class GpuAdamPlan:
    """:class:`~pylo_zoo.kernels.base.AdamPlan` for a GPU. One launch per kind of parameter: dtypes and alignment."""

    def __init__(self, tasks: Sequence[Adam]) -> None:
        self._device = tasks[0].p.device
        self._kept = [(task.momentum, task.second_moment) for task in tasks]
        self._nesterov = [int(task.nesterov) for task in tasks]
        self._tables: AdamTables | None = None
        self._signature: tuple[object, ...] = ()
        self._captured: list[object] = []
        self._uploaded: tuple[Tensor, Tensor, Tensor] | None = None
        """The last step's numbers on the host; their decays, float64 ``[N, 2]``, and the rest, on the device."""

    def bind(self, values: Sequence[Tensor], gradients: Sequence[Tensor]) -> AdamTables:
        addresses = list(map(Tensor.data_ptr, gradients))
        aligned = [address % 16 == 0 for address in addresses]
        signature = list(map(Tensor.data_ptr, values)), [g.dtype for g in gradients], aligned
        if self._tables is None or signature != self._signature:
            self._tables, self._signature = self._new_tables(values, gradients), signature
        self._tables.gradients.set(addresses)
        return self._tables

    def step(self, inputs: AdamInputs, checked: bool = False, proceed: Tensor | None = None) -> None:
        guard.check_adam_inputs(inputs, None if checked else self._kept, TYPES, self._device)
        guard.check_proceed(proceed, self._device)
        tables = self.bind(inputs.values, inputs.gradients)
        scale, numbers = scale_of(inputs.scale, self._device), self._numbers(inputs)
        if is_capturing():  # the graph, which may be the caller's, reads its tables and numbers
            self._captured.append((tables, self._uploaded))
        gradients = tables.gradients.on_device()
        for (aligned, p_type, g_type), records, programs, start in tables.kinds:
            launch(
                adam_elements, len(programs), records, gradients[start:], programs, numbers, scale, proceed,
                P_TYPE=TYPES[p_type], G_TYPE=TYPES[g_type], ALIGNED=aligned, BLOCK=ADAM_BLOCK,
            )  # fmt: skip

    def _new_tables(self, values: Sequence[Tensor], gradients: Sequence[Tensor]) -> AdamTables:
        kinds: dict[tuple[bool, torch.dtype, torch.dtype], list[dict[str, int]]] = {}
        for k, (p, g, (m, v)) in enumerate(zip(values, gradients, self._kept, strict=True)):
            addresses = {"p": p.data_ptr(), "momentum": m.data_ptr(), "second_moment": v.data_ptr()}
            aligned = p.numel() % 4 == 0 and all(each % 16 == 0 for each in (*addresses.values(), g.data_ptr()))
            record = {**addresses, "size": p.numel(), "task": k, "nesterov": self._nesterov[k]}
            kinds.setdefault((aligned, p.dtype, g.dtype), []).append(record)
        members = [[record["task"] for record in records] for records in kinds.values()]
        of_gradients = Addresses(members, self._device)
        tables = [
            AdamKind(
                kind,
                rows(STEPS, records, self._device),
                blocks([ceil_div(record["size"], ADAM_BLOCK) for record in records], self._device),
                start,
            )
            for (kind, records), start in zip(kinds.items(), of_gradients.starts, strict=True)
        ]
        return AdamTables(tables, of_gradients)

    def _numbers(self, inputs: AdamInputs) -> Tensor:
        """The values of :data:`~pylo_zoo.kernels.gpu.adam.NUMBERS`. Decays are rounded to float32, as in eager.

        The bias corrections are computed on the device, in float64, because the counters are there.
        """
        uploaded = self._uploaded
        if uploaded is None or not torch.equal(uploaded[0], inputs.numbers):
            betas, rest = inputs.numbers.float().split([2, 3], dim=1)
            betas, rest = upload(betas.double().contiguous(), self._device), upload(rest.contiguous(), self._device)
            uploaded = inputs.numbers, betas, rest
            if not is_capturing():  # in a capture, they have no values before the first replay
                self._uploaded = uploaded
        _, betas, rest = uploaded
        corrections = 1 - betas ** inputs.counts[:, None]
        factors = [factors_of(each, self._device)[:, None] for each in (inputs.coefficient, inputs.shrink)]
        return torch.cat([betas.float(), corrections.float(), rest[:, :2], *factors, rest[:, 2:]], dim=1)
