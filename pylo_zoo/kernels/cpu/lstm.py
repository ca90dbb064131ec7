"""The LSTM of VeLO, Celo and celo-adam on a CPU: inputs and gates in C++ (``lstm.h``).

torch computes the matrix products of many tensors, and C++ those of few, for which calls take longer than arithmetic.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from pylo_zoo.errors import ZooError
from pylo_zoo.kernels import guard
from pylo_zoo.ops.lstm import LSTMWeights
from pylo_zoo.ops.product import by_onednn, product

CPU = torch.device("cpu")
FEW_TENSORS, FEW_UNITS = 32, 128
"""C++ computes the products of at most this many tensors with at most this many units."""
VECTOR = 16
"""Numbers of units and of heads are multiples of this in C++."""
_pointer, _index = ctypes.c_void_p, ctypes.c_int64


def declare(library: Any) -> None:
    """Declare the arguments of the functions, which take addresses as integers."""
    library.pylo_zoo_lstm_inputs.argtypes = [*[_pointer] * 4, _index, _index, *[_pointer] * 3, _index, _pointer]
    library.pylo_zoo_gates.argtypes = [*[_pointer] * 3, _index, _index, _pointer, _pointer, ctypes.c_int]
    library.pylo_zoo_lstm_step.argtypes = [_pointer, _pointer, *[_index] * 5, *[_pointer] * 5]


class CpuLSTM:
    """:class:`~pylo_zoo.kernels.base.LSTMPlan` for the CPU."""

    def __init__(self, library: Any, weights: LSTMWeights, hidden: Tensor, cell: Tensor, ranks: Tensor | None) -> None:
        guard.check_lstm(weights, hidden, cell, ranks, CPU)
        self._library, self._weights, self._ranks = library, weights, ranks
        self.hidden, self.cell = hidden, cell
        self._rows = 1 if ranks is None else len(ranks)
        count, units = hidden.shape
        self._losses = torch.zeros((), dtype=torch.int64, device="cpu")  # powers of a number round differently
        self._few = None
        if count <= FEW_TENSORS and units <= FEW_UNITS and units % VECTOR == 0:
            self._few = _transposed(weights)
            self._addresses = (_pointer * len(self._few))(*(each.data_ptr() for each in self._few))
        self._multiply = product if by_onednn(hidden, weights.hidden_weight) else _multiply

    def inputs(
        self,
        run: tuple[Tensor, Tensor],
        decays: Tensor,
        loss: Tensor,
        losses: int,
        horizon: int,
        moments: Tensor | None = None,
    ) -> Tensor:
        if (moments is None) != (self._ranks is None):
            raise ZooError(f"The LSTM's moments are {moments}, but its ranks are {self._ranks}.", "Pass both or none.")
        guard.check_lstm_run([*run, decays, loss], moments, self._rows, CPU)
        powers = decays ** self._losses.fill_(losses)
        tables = [0, 0] if moments is None or self._ranks is None else [moments.data_ptr(), self._ranks.data_ptr()]
        out = torch.empty(self._rows, self._weights.input_weight.shape[1], device="cpu", dtype=torch.float32)
        self._library.pylo_zoo_lstm_inputs(
            *(each.data_ptr() for each in (*run, decays, powers)), losses, horizon, loss.data_ptr(), *tables,
            self._rows, out.data_ptr(),
        )  # fmt: skip
        return out

    def step(self, inputs: Tensor, keep_state: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        guard.check_lstm_inputs(inputs, self._rows, self._weights, CPU)
        new = (torch.empty_like(self.hidden), torch.empty_like(self.cell)) if keep_state else (self.hidden, self.cell)
        return *new, self._step_few(inputs, *new) if self._few is not None else self._step_many(inputs, *new)

    def _step_few(self, inputs: Tensor, hidden: Tensor, cell: Tensor) -> Tensor:
        assert self._few is not None
        (count, units), heads = self.hidden.shape, len(self._few[-1])
        out = torch.empty(count, heads, device="cpu", dtype=torch.float32)
        self._library.pylo_zoo_lstm_step(
            self._addresses, inputs.data_ptr(), *inputs.shape, count, units, heads, self.hidden.data_ptr(),
            self.cell.data_ptr(), hidden.data_ptr(), cell.data_ptr(), out.data_ptr(),
        )  # fmt: skip
        return out[:, : len(self._weights.head_bias)]

    def _step_many(self, inputs: Tensor, hidden: Tensor, cell: Tensor) -> Tensor:
        weights = self._weights
        pooled = torch.addmm(weights.pooled_bias, inputs, weights.pooled_weight.T).amax(dim=0).relu_()
        shift = torch.addmv(weights.gate_bias, weights.shared_weight, pooled)
        gates = self._multiply(self.hidden, weights.hidden_weight)
        if self._ranks is None:
            shift.addmv_(weights.input_weight, inputs[0])
        else:
            gates.addmm_(inputs, weights.input_weight.T)
        self._library.pylo_zoo_gates(
            gates.data_ptr(), shift.data_ptr(), self.cell.data_ptr(), *self.hidden.shape, hidden.data_ptr(),
            cell.data_ptr(), torch.get_num_threads(),
        )  # fmt: skip
        return torch.addmm(weights.head_bias, hidden, weights.head_weight.T)


def _multiply(x: Tensor, w: Tensor) -> Tensor:
    return torch.mm(x, w.T)


def _transposed(weights: LSTMWeights) -> list[Tensor]:
    """Copies of the weights for ``lstm.h``: ``[inputs, outputs]``, with zeros after the heads."""
    fill = -len(weights.head_bias) % VECTOR
    head_weight = torch.nn.functional.pad(weights.head_weight, (0, 0, 0, fill))
    head_bias = torch.nn.functional.pad(weights.head_bias, (0, fill))
    padded = weights._replace(head_weight=head_weight, head_bias=head_bias)
    return [each.T.contiguous() if each.ndim == 2 else each.contiguous() for each in padded]
