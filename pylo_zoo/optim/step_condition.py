"""Steps with values that are not finite (``nonfinite``), and steps of which only the device knows whether they are.

On an accelerator, ``nonfinite="skip"`` does not wait: the step runs under a :class:`StepCondition`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from pylo_zoo.errors import ZooError, quoted
from pylo_zoo.ops.apply import foreach
from pylo_zoo.optim.checks import all_finite, as_float, describe_parameter
from pylo_zoo.optim.param_grad import ParamGrad


def is_known_on_host(gradients: Iterable[Tensor]) -> bool:
    """Whether the host can read these gradients without waiting for a device."""
    return all(g.is_cpu for g in gradients)


def is_finite_loss(loss: Any, read_all: bool) -> bool:
    """Whether a loss is finite; other objects count as finite, and without ``read_all``, losses on an accelerator."""
    if isinstance(loss, Real):
        return math.isfinite(as_float(loss))
    return not isinstance(loss, Tensor) or not (loss.is_cpu or read_all) or all_finite([loss])


def nonfinite_error(grads: Sequence[ParamGrad], loss: Any) -> ZooError:
    """The error of ``nonfinite="raise"``: which values are not finite."""
    bad = [describe_parameter(p, group) for p, g, group in grads if not all_finite([g])]
    shown = loss if isinstance(loss, Tensor) else quoted(loss)
    return ZooError(
        f"A gradient is not finite: {len(bad)} of {len(grads)} are not, the first of a {bad[0]}."
        if bad
        else f"The loss is not finite: it is {shown}.",
        'Find the overflow, or set nonfinite="skip" to skip such steps.',
    )


def find_finite(gradients: Sequence[Tensor], loss: Tensor | None) -> Tensor:
    """Whether no element of the gradients and the loss is NaN or infinite: bool ``[]``, which is not read.

    It compares largest magnitudes, which propagate NaN and, unlike sums and 2-norms, do not overflow. That takes a few
    kernels, whatever the number of gradients. The result is on the first device that is not a CPU.
    """
    alike: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for g in gradients:
        alike.setdefault((g.device, g.dtype), []).append(g)
    flags = [torch.isfinite(torch.stack(foreach._foreach_norm(each, math.inf))).all() for each in alike.values()]
    flags += [] if loss is None else [torch.isfinite(loss).all()]
    device = next((flag.device for flag in flags if not flag.is_cpu), flags[0].device)
    return torch.stack([flag.to(device) for flag in flags]).all()


def new_counter(device: torch.device) -> Tensor:
    """A counter of steps, int64 ``[]``. A captured step can advance it, because it is on the device of the step."""
    return torch.zeros((), dtype=torch.int64, device=device)


class StepCondition:
    """The condition of the current step, and the count of steps that were not applied.

    Without a condition, a step is applied. With one, everything that the step writes keeps its old value if the
    condition is false: kernels read :meth:`flag`, small tensors are chosen by :meth:`choose`, and others are copied
    before their update (:meth:`save`) and restored after it (:meth:`restore`).

    The flags keep their addresses, so that a captured step reads those of its replay.
    """

    def __init__(self) -> None:
        self.is_active = False
        self._flags: dict[torch.device, tuple[Tensor, Tensor]] = {}
        """int32 ``[1]`` and bool ``[]`` per device."""
        self._source: Tensor | None = None
        self._skipped = 0
        self._skipped_there: dict[torch.device, Tensor] = {}

    # --- the condition -------------------------------------------------------------------------------------------

    def set(self, applies: Tensor) -> None:
        """Set the condition of this step, bool ``[]``."""
        self.is_active, self._source = True, applies
        for flags in self._flags.values():
            for flag in flags:
                flag.copy_(applies)

    def set_finite(self, gradients: Sequence[Tensor], loss: Any) -> None:
        """Set the condition that gradients, and a loss that the host cannot read, are finite; count skipped steps."""
        on_device = loss.detach() if isinstance(loss, Tensor) and not loss.is_cpu else None
        self.set(find_finite(gradients, on_device))
        self.count()

    def clear(self) -> None:
        self.is_active, self._source = False, None

    def flag(self, device: torch.device) -> Tensor | None:
        """``proceed`` of :class:`~pylo_zoo.kernels.Kernels`, int32 ``[1]``; None without a condition."""
        return self._on(device)[0] if self.is_active else None

    def mask(self, device: torch.device) -> Tensor:
        """The condition as bool ``[]``; there must be one."""
        return self._on(device)[1]

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if device not in self._flags:
            assert self._source is not None
            applies = self._source.to(device, copy=True)
            self._flags[device] = applies.to(torch.int32).reshape(1), applies
        return self._flags[device]

    # --- what depends on it --------------------------------------------------------------------------------------

    def choose(self, new: Tensor, old: Tensor) -> Tensor:
        """``new`` if the step is applied, else ``old``."""
        return torch.where(self.mask(new.device), new, old) if self.is_active else new

    def save(self, tensors: Iterable[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """The tensors, each with a copy; none without a condition."""
        return [(tensor, tensor.clone()) for tensor in tensors] if self.is_active else []

    def save_written(
        self, parameters: Sequence[Tensor], states: Iterable[Mapping[str, Any]]
    ) -> list[tuple[Tensor, Tensor]]:
        """:meth:`save` of parameters and all tensors of their states."""
        if not self.is_active:
            return []
        entries = (value for state in states for value in state.values() if isinstance(value, Tensor))
        return self.save([*parameters, *entries])

    def restore(self, saved: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Restore the tensors of :meth:`save` if the step is not applied."""
        for tensor, copy in saved:
            tensor.copy_(self.choose(tensor, copy))

    def advance(self, counters: Sequence[Tensor]) -> None:
        """Add 1 to counters ``[]`` on one device if the step is applied."""
        if self.is_active and counters:
            one = self.mask(counters[0].device).to(counters[0].dtype)
            foreach._foreach_add_(counters, [one] * len(counters))
        else:
            foreach._foreach_add_(counters, 1)

    # --- skipped steps -------------------------------------------------------------------------------------------

    def count(self) -> None:
        """Count this step as skipped: on the device if there is a condition, and only if it is false."""
        if self._source is None:
            self._skipped += 1
            return
        device = self._source.device
        if device not in self._skipped_there:
            self._skipped_there[device] = torch.zeros((), dtype=torch.int64, device=device)
        self._skipped_there[device] += ~self._source

    @property
    def skipped(self) -> int:
        """The number of skipped steps. Waits for the device."""
        return self._skipped + sum(int(each) for each in self._skipped_there.values() if not each.is_meta)

    @skipped.setter
    def skipped(self, number: int) -> None:
        self._skipped = number
        for each in self._skipped_there.values():  # a graph may hold it
            each.zero_()
