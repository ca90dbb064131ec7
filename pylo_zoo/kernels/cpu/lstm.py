"""The LSTM of VeLO, Celo and celo-adam on a CPU: inputs and gates in C++ (``lstm.h``), products by torch."""

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
_pointer, _index = ctypes.c_void_p, ctypes.c_int64


def declare(library: Any) -> None:
    """Declare the arguments of the two functions, which take addresses as integers."""
    library.pylo_zoo_lstm_inputs.argtypes = [*[_pointer] * 4, _index, _index, *[_pointer] * 3, _index, _pointer]
    library.pylo_zoo_gates.argtypes = [*[_pointer] * 3, _index, _index, _pointer, _pointer, ctypes.c_int]


class CpuLSTM:
    """:class:`~pylo_zoo.kernels.base.LSTMPlan` for the CPU."""

    def __init__(self, library: Any, weights: LSTMWeights, hidden: Tensor, cell: Tensor, ranks: Tensor | None) -> None:
        guard.check_lstm(weights, hidden, cell, ranks, CPU)
        self._library, self._weights, self._ranks = library, weights, ranks
        self.hidden, self.cell = hidden, cell
        self._rows = 1 if ranks is None else len(ranks)
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
        powers = decays**losses
        tables = [0, 0] if moments is None or self._ranks is None else [moments.data_ptr(), self._ranks.data_ptr()]
        out = torch.empty(self._rows, self._weights.input_weight.shape[1], device="cpu", dtype=torch.float32)
        self._library.pylo_zoo_lstm_inputs(
            *(each.data_ptr() for each in (*run, decays, powers)), losses, horizon, loss.data_ptr(), *tables,
            self._rows, out.data_ptr(),
        )  # fmt: skip
        return out

    def step(self, inputs: Tensor, keep_state: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        weights, count, units = self._weights, *self.hidden.shape
        pooled = torch.addmm(weights.pooled_bias, inputs, weights.pooled_weight.T).amax(dim=0).relu_()
        shift = torch.addmv(weights.gate_bias, weights.shared_weight, pooled)
        gates = self._multiply(self.hidden, weights.hidden_weight)
        if self._ranks is None:
            shift.addmv_(weights.input_weight, inputs[0])
        else:
            gates.addmm_(inputs, weights.input_weight.T)
        hidden, cell = self.hidden, self.cell
        if keep_state:
            hidden, cell = torch.empty_like(hidden), torch.empty_like(cell)
        self._library.pylo_zoo_gates(
            gates.data_ptr(), shift.data_ptr(), self.cell.data_ptr(), count, units, hidden.data_ptr(), cell.data_ptr(),
            torch.get_num_threads(),
        )  # fmt: skip
        return hidden, cell, torch.addmm(weights.head_bias, hidden, weights.head_weight.T)


def _multiply(x: Tensor, w: Tensor) -> Tensor:
    return torch.mm(x, w.T)
