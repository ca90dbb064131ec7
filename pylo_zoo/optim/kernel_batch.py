"""Parameters that fused kernels update together, and their learning rates as vectors."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from pylo_zoo.kernels import CapturablePlan, Kernels
from pylo_zoo.ops.slots import live
from pylo_zoo.ops.transfer import number, upload, upload_numbers
from pylo_zoo.optim.contract import Group
from pylo_zoo.optim.step_plan import Kept, ParamStep

_dtype = attrgetter("dtype")


class KernelBatch(Kept):
    """Parameters on one device that its kernels update together. It lives as long as the plan of the step.

    Attributes:
        kernels: the kernels of their device.
        positions: indices of ``items`` in the step's sequence of parameters.
        items: the parameters.
        values: during a step, the tensors that kernels update: the parameters, or copies of those they cannot update.
        advanced: during a step, the result of the kernels' factor and moment passes.
        frozen: numbers that launches of the step contain, for a graph; they can change between steps.
    """

    def __init__(self, kernels: Kernels) -> None:
        super().__init__()
        self.kernels = kernels
        self.positions: list[int] = []
        self.items: list[ParamStep] = []
        self.values: list[Tensor] = []
        self.advanced: Any = None
        self.frozen: Callable[[], Hashable] = tuple
        self._copied: set[int] = set()
        self._constants: tuple[Any, Tensor] | None = None
        self._rates: tuple[Any, tuple[Tensor, Tensor]] | None = None

    def add(self, position: int, item: ParamStep) -> None:
        item.is_direct = item.fits(self.kernels.dtypes)
        self.positions.append(position)
        self.items.append(item)

    @property
    def device(self) -> torch.device:
        return self.items[0].parameter.device

    def can_be_captured(self, device: torch.device) -> bool:
        """Whether a graph on ``device`` can contain this step: kernels read all gradients and values in place."""
        ready = self.kernels.graphs and "plan" in self and self.device == device
        return ready and not self._find_copied([item.gradient for item in self.items])

    def bind(self) -> object:
        """Set :attr:`values`, and give the kernels' plan this step's tensors; returns its tables."""
        gradients = self.begin()
        plan: CapturablePlan = self.kept("plan")
        return plan.bind(self.values, gradients)

    def release(self) -> None:
        """Forget the step's tensors without writing anything."""
        self.values, self.advanced = [], None

    def begin(self) -> list[Tensor]:
        """Set :attr:`values`; returns the gradients, contiguous, in a dtype of the kernels."""
        self.values = [item.parameter for item in self.items]
        gradients = [item.gradient for item in self.items]
        self._copied = self._find_copied(gradients)
        for k in self._copied:
            self.values[k], gradients[k] = self.items[k].kernel_inputs(self.kernels.dtypes)
        return gradients

    def _find_copied(self, gradients: Sequence[Tensor]) -> set[int]:
        """Indices of the parameters whose value or gradient kernels cannot use in place."""
        copied = {k for k, item in enumerate(self.items) if not item.is_direct or item.l2 or item.own_scale is not None}
        dtypes = self.kernels.dtypes
        contiguous = all(map(Tensor.is_contiguous, gradients)) and not any(map(Tensor.is_neg, gradients))
        if not contiguous or not set(dtypes).issuperset(map(_dtype, gradients)):
            copied.update(
                k for k, g in enumerate(gradients) if g.dtype not in dtypes or not g.is_contiguous() or g.is_neg()
            )
        return copied

    def finish(self) -> None:
        """Write copies to their parameters and release the step's tensors."""
        for k in self._copied:
            self.items[k].write_back()
        # Kernels write behind autograd's back, and backward through a graph that saved an old value must fail.
        torch.autograd.graph.increment_version(self.values)
        self.release()

    def index(self, device: torch.device) -> Tensor:
        """:attr:`positions` as a tensor, copied to the device once."""
        return self.keep(f"positions on {device}", lambda: torch.tensor(self.positions, device=device))

    @property
    def groups(self) -> list[Group]:
        """The parameter groups of ``items``, each once."""
        return self.keep("groups", lambda: list({id(item.group): item.group for item in self.items}.values()))

    def spread(self, per_group: Tensor) -> Tensor:
        """One row per parameter, ``[N, …]``, from one per element of :attr:`groups`."""

        def group_of() -> Tensor:
            number = {id(group): k for k, group in enumerate(self.groups)}
            return torch.tensor([number[id(item.group)] for item in self.items], device=per_group.device)

        return per_group[self.keep(f"groups on {per_group.device}", group_of)]

    def constants(self, per_group: Sequence[tuple[float, ...]]) -> Tensor:
        """Numbers of each group as rows per parameter, float64 ``[N, …]`` on the CPU."""
        if self._constants is None or self._constants[0] != per_group:
            self._constants = per_group, self.spread(torch.tensor(per_group, dtype=torch.float64))
        return self._constants[1]

    def rates(
        self,
        rate: Callable[[Group], float | Tensor],
        decay: Callable[[Group], float],
        dtype: torch.dtype = torch.float64,
    ) -> tuple[Tensor, Tensor]:
        """The learning rate and its product with the weight decay, per parameter.

        Returns:
            Two vectors ``[N]``: in ``dtype`` on the CPU, or float32 on the device of a learning rate that is a tensor.
        """
        rates, decays = [rate(group) for group in self.groups], [decay(group) for group in self.groups]
        tensors = [each for each in rates if isinstance(each, Tensor)]
        if tensors:
            like = next((each for each in tensors if each.device.type != "cpu"), tensors[0]).float()
            per_group = torch.stack([number(each, like) for each in rates])
            return self.spread(per_group), self.spread(per_group * upload_numbers(decays, per_group))
        if self._rates is None or self._rates[0] != (rates, decays, dtype):
            per_group = torch.tensor(rates, dtype=torch.float64)
            products = per_group * torch.tensor(decays, dtype=torch.float64)
            vectors = self.spread(per_group).to(dtype), self.spread(products).to(dtype)
            self._rates = (rates, decays, dtype), vectors
        return self._rates[1]

    def factors(
        self,
        rate: Callable[[Group], float | Tensor],
        decay: Callable[[Group], float],
        multipliers: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """:meth:`rates`, with the learning rates multiplied by ``multipliers`` ``[N]``, for the kernels.

        On the kernels' device, with one upload, unless that is a CPU. Multipliers on the host must not change.
        """
        on_host = multipliers if multipliers is not None and multipliers.is_cpu else None
        there = multipliers if on_host is None else None

        def both(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
            rates, shrink = self.rates(rate, decay, dtype)
            return (rates if on_host is None else product_of(rates, on_host)), shrink

        if self.device.type == "cpu":
            rates, shrink = both(torch.float64 if multipliers is None else multipliers.dtype)
            return (rates if there is None else product_of(rates, there)), shrink
        count = len(self.items)
        padded = -(-count // 4) * 4  # so that both rows are aligned to 16 bytes

        def rows() -> Tensor:
            return torch.stack([pad(each, (0, padded - count)) for each in both()])

        table = live(rows, (2, padded), self.device, torch.float32 if there is None else there.dtype)
        rates, shrink = table[0, :count], table[1, :count]
        return (rates if there is None else rates * there), shrink


def product_of(rates: Tensor, factors: Tensor) -> Tensor:
    """``rates · factors``, on the accelerator if one of them is there, so that the other is copied, not read."""
    if factors.is_cpu and not rates.is_cpu:
        return rates * upload(factors.to(rates.dtype), rates.device)
    if rates.device != factors.device or factors.dtype == torch.float32:
        rates = upload(rates.to(factors.dtype), factors.device)
    return rates * factors
