"""The meta-networks: their parameters, forward passes and learned decays.

A network is built from an architecture and a behavior (:mod:`pylo_zoo.config`). Its ``state_dict`` is the content of an
artifact's ``model.safetensors``. Weights are in torch's layout, ``[outputs, inputs]``.

Parity compares networks on random inputs: ``probe_shapes()`` returns the shapes of the inputs, and ``probe(inputs)``
the outputs. Only there, as in JAX, an element is a row of features; elsewhere it is a column.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pylo_zoo.config import (
    AdafacBehavior,
    CELO2Architecture,
    CELO2Behavior,
    CeloAdamBehavior,
    CeloBehavior,
    ControllerArchitecture,
    ELOBehavior,
    HyperNetArchitecture,
    MLPArchitecture,
    VeLOBehavior,
)
from pylo_zoo.ops.accumulators import Decays
from pylo_zoo.ops.lstm import LSTMWeights, compose
from pylo_zoo.ops.mlp import Layer, mlp
from pylo_zoo.ops.product import product

VELO_CHANNELS = 30
"""Per-parameter features of VeLO, Celo and CELO2 (SPEC §4)."""
ADAFAC_CHANNELS = 39
"""Per-parameter features of AdafacMLP, μLO and ELO, including time features (SPEC §3)."""
UNFACTORED_CHANNELS = 15
"""Per-parameter features of CELO2 if the second moment is not factored."""
VELO_LSTM_INPUTS = 30
CELO_LSTM_INPUTS = 18

PROBE_TENSORS = 5
PROBE_ELEMENTS = 64
"""Number of tensors and of elements in parity's probes."""


class Control(NamedTuple):
    """The LSTM's outputs for N tensors: ``hidden``, ``cell`` ``[N, H]``, ``controls [N, inits]``, ``lr_mult [N]``."""

    hidden: Tensor
    cell: Tensor
    controls: Tensor | None
    lr_mult: Tensor


class Affine(nn.Module):
    """An affine map: ``weight [*bank, outputs, inputs]``, ``bias [*bank, outputs]``, uninitialized."""

    def __init__(self, inputs: int, outputs: int, *bank: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(*bank, outputs, inputs))
        self.bias = nn.Parameter(torch.empty(*bank, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight, self.bias)


class MLP(nn.Module):
    """``hidden_layers`` hidden layers of ``hidden`` units. With ``bank``, that many stacked sets of weights."""

    def __init__(self, inputs: int, hidden: int, hidden_layers: int, outputs: int, *bank: int) -> None:
        super().__init__()
        widths = [inputs, *[hidden] * hidden_layers, outputs]
        self.layers = nn.ModuleList(Affine(a, b, *bank) for a, b in pairwise(widths))

    def weights(self) -> list[Layer]:
        return [(layer.weight, layer.bias) for layer in self.layers]  # pyright: ignore[reportReturnType]


class Controller(nn.Module):
    """The LSTM that runs once per tensor and step (SPEC §4).

    One affine map of ``[input, hidden]`` computes the gates, in the order i, g, f, o. 1 is added to the forget gate.
    """

    def __init__(self, inputs: int, hidden: int, controls: int | None) -> None:
        super().__init__()
        self.initial_hidden = nn.Parameter(torch.empty(1, hidden))
        self.initial_cell = nn.Parameter(torch.empty(1, hidden))
        self.pooled = Affine(inputs, hidden)
        self.direct = Affine(inputs, hidden)
        self.lstm = Affine(2 * hidden, 4 * hidden)
        self.controls = Affine(hidden, controls) if controls else None
        self.step_size = Affine(hidden, 1)

    def forward(self, inputs: Tensor, hidden: Tensor, cell: Tensor) -> Control:
        """One LSTM step over all N tensors: ``inputs [N, inputs]``, ``hidden`` and ``cell`` ``[N, H]``."""
        pooled = torch.relu(self.pooled(inputs)).amax(dim=0)
        of_inputs, of_hidden = self.lstm.weight.split(hidden.shape[-1], dim=-1)
        direct, shift = self.direct.weight, self.direct.bias + pooled
        gates = product(hidden, of_hidden)
        if len(inputs) > inputs.shape[-1]:  # the cheaper order of three factors: half the cost for many tensors
            gates.addmm_(inputs, (of_inputs @ direct).T).add_(of_inputs @ shift)
        else:
            gates.addmm_(torch.addmm(shift, inputs, direct.T), of_inputs.T)
        i, g, f, o = gates.add_(self.lstm.bias).chunk(4, dim=-1)
        cell = torch.sigmoid(f + 1) * cell + torch.sigmoid(i) * torch.tanh(g)
        hidden = torch.sigmoid(o) * torch.tanh(cell)
        controls = self.controls(hidden) if self.controls is not None else None
        return Control(hidden, cell, controls, self.step_size(hidden)[:, 0])

    def compose(self) -> LSTMWeights:
        """The weights for fused kernels, without a graph."""
        heads = [self.step_size] if self.controls is None else [self.controls, self.step_size]
        pooled, direct, lstm, *outputs = (
            (each.weight.detach(), each.bias.detach()) for each in (self.pooled, self.direct, self.lstm, *heads)
        )
        return compose(pooled, direct, lstm, outputs)


def controller_shapes(inputs: int, hidden: int) -> dict[str, tuple[int, int]]:
    """The shapes of a :class:`Controller`'s probe inputs."""
    states = {"hidden": (PROBE_TENSORS, hidden), "cell": (PROBE_TENSORS, hidden)}
    return {"lstm_inputs": (PROBE_TENSORS, inputs), **states}


def in_range(decays: Tensor) -> Tensor:
    """Decays of second moments, clipped to [0, 1] (SPEC §1)."""
    return decays.clamp(0, 1)


class FixedDecays:
    """Mixin for networks with the behavior's decays: all except AdafacMLP and μLO, which learn them."""

    behavior: Any  # a record with initial decays

    def decays(self) -> Decays:
        """The initial decays, with those of second moments clipped to [0, 1]."""
        momentum, rms, adafactor = self.initial_decays()
        return Decays(momentum, in_range(rms), in_range(adafactor))

    def initial_decays(self) -> Decays:
        """The decays in the behavior, as tensors."""
        like = next(self.parameters())  # pyright: ignore[reportAttributeAccessIssue]
        adafactor = getattr(self.behavior, "initial_adafactor_decays", ())
        momentum, rms, adafactor = (
            torch.tensor(values, dtype=like.dtype, device=like.device)
            for values in (self.behavior.initial_momentum_decays, self.behavior.initial_rms_decays, adafactor)
        )
        return Decays(momentum, rms, adafactor)


class VeLONet(FixedDecays, nn.Module):
    """VeLO (SPEC §4): :class:`Controller` and a bank of ``param_inits`` MLPs ``30 → 4 → 4 → 3``."""

    lstm_inputs = VELO_LSTM_INPUTS

    def __init__(self, architecture: HyperNetArchitecture, behavior: CeloBehavior) -> None:
        super().__init__()
        a = architecture
        self.architecture, self.behavior = architecture, behavior
        self.controller = Controller(self.lstm_inputs, a.lstm_hidden_size, a.param_inits)
        self.mlp = MLP(VELO_CHANNELS, a.ff_hidden_size, a.ff_hidden_layers, 3, a.param_inits)

    def forward(self, inputs: Tensor, hidden: Tensor, cell: Tensor) -> Control:
        """One LSTM step. ``controls`` is the input of :meth:`write`, and ``lr_mult`` scales the update."""
        return self.finish(self.controller(inputs, hidden, cell))

    def finish(self, control: Control) -> Control:
        """The controls and step sizes from the controller's outputs."""
        return control

    @property
    def write_mult(self) -> float:
        """The factor on the generated weights."""
        assert isinstance(self.behavior, VeLOBehavior)
        return self.behavior.ff_mult

    def write(self, controls: Tensor) -> list[Layer]:
        """Generate the MLPs of N tensors: layers of ``[N, outputs, inputs]`` and ``[N, outputs]``.

        Every weight is ``ff_mult · mean over inits(controls · bank)``, computed as one matrix product per leaf.
        """
        scaled = controls * self.write_mult / self.architecture.param_inits

        def mixed(bank: Tensor) -> Tensor:
            return (scaled @ bank.flatten(1)).unflatten(1, bank.shape[1:])

        return [(mixed(weight), mixed(bias)) for weight, bias in self.mlp.weights()]

    def flat_bank(self) -> Tensor:
        """All weights of the bank of MLPs, with the factors of :meth:`write`: ``[inits, weights]``."""
        leaves = [leaf.detach().flatten(1) for layer in self.mlp.weights() for leaf in layer]
        return torch.cat(leaves, dim=1) * (self.write_mult / self.architecture.param_inits)

    def split_written(self, written: Tensor) -> list[Layer]:
        """The result of :meth:`write` as views of ``written``: controls times :meth:`flat_bank`, ``[N, weights]``."""
        leaves, start = [], 0
        for leaf in (leaf for layer in self.mlp.weights() for leaf in layer):
            shape = leaf.shape[1:]
            leaves.append(written[:, start : start + shape.numel()].unflatten(1, shape))
            start += shape.numel()
        return list(zip(leaves[::2], leaves[1::2], strict=True))

    def probe_shapes(self) -> dict[str, tuple[int, int]]:
        shapes = controller_shapes(self.lstm_inputs, self.architecture.lstm_hidden_size)
        return {**shapes, "features": (PROBE_ELEMENTS, VELO_CHANNELS)}

    def probe(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        control = self(inputs["lstm_inputs"], inputs["hidden"], inputs["cell"])
        layers, x = self.write(control.controls), inputs["features"].T.contiguous()
        outputs = [mlp([(w[k], b[k]) for w, b in layers], x).T for k in range(PROBE_TENSORS)]
        return {**control._asdict(), "mlp": torch.stack(outputs)}


class CeloNet(VeLONet):
    """Celo (SPEC §5): 18 inputs, a softmax over the inits, an exponential step size, and no ``ff_mult``."""

    lstm_inputs = CELO_LSTM_INPUTS

    @property
    def write_mult(self) -> float:
        return 1.0

    def finish(self, control: Control) -> Control:
        assert control.controls is not None
        return control._replace(controls=control.controls.softmax(dim=-1), lr_mult=celo_lr_mult(control.lr_mult))


class CeloAdamNet(FixedDecays, nn.Module):
    """celo-adam (SPEC §5): Celo's controller without an MLP."""

    def __init__(self, architecture: ControllerArchitecture, behavior: CeloAdamBehavior) -> None:
        super().__init__()
        self.architecture, self.behavior = architecture, behavior
        self.controller = Controller(CELO_LSTM_INPUTS, architecture.lstm_hidden_size, None)

    def decays(self) -> Decays:
        """Adam's decays, which are not clipped (SPEC §5)."""
        return self.initial_decays()

    def forward(self, inputs: Tensor, hidden: Tensor, cell: Tensor) -> Control:
        return self.finish(self.controller(inputs, hidden, cell))

    def finish(self, control: Control) -> Control:
        return control._replace(lr_mult=celo_lr_mult(control.lr_mult))

    def probe_shapes(self) -> dict[str, tuple[int, int]]:
        return controller_shapes(CELO_LSTM_INPUTS, self.architecture.lstm_hidden_size)

    def probe(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        control = self(inputs["lstm_inputs"], inputs["hidden"], inputs["cell"])
        return {"hidden": control.hidden, "cell": control.cell, "lr_mult": control.lr_mult}


def celo_lr_mult(output: Tensor) -> Tensor:
    """Celo's step size from the controller's raw output (SPEC §5)."""
    return 0.1 * torch.exp(output)


class CELO2Net(FixedDecays, nn.Module):
    """CELO2, CELO2-base, ELO-CELO2 (SPEC §6): one MLP ``30 → 8 → 8 → 3``."""

    def __init__(self, architecture: CELO2Architecture, behavior: CELO2Behavior) -> None:
        super().__init__()
        self.architecture, self.behavior = architecture, behavior
        self.mlp = MLP(VELO_CHANNELS, architecture.ff_hidden_size, architecture.ff_hidden_layers, 3)

    def forward(self, features: Tensor) -> Tensor:
        """``features [30 or 15, n]`` → direction, magnitude and one unused ``[3, n]``."""
        return mlp(self.mlp.weights(), features, self.behavior.mlp_activation)

    def probe_shapes(self) -> dict[str, tuple[int, int]]:
        widths = {"features": VELO_CHANNELS, "features_unfactored": UNFACTORED_CHANNELS}
        return {name: (PROBE_ELEMENTS, width) for name, width in widths.items()}

    def probe(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"mlp": self(inputs["features"].T).T, "mlp_unfactored": self(inputs["features_unfactored"].T).T}


class ELONet(FixedDecays, nn.Module):
    """ELO (SPEC §3): one MLP ``39 → 32 → 32 → 2`` with the initial decays."""

    def __init__(self, architecture: MLPArchitecture, behavior: ELOBehavior) -> None:
        super().__init__()
        self.architecture, self.behavior = architecture, behavior
        self.mlp = MLP(ADAFAC_CHANNELS, architecture.hidden_size, architecture.hidden_layers, 2)

    def forward(self, features: Tensor) -> Tensor:
        """``features [39, n]`` → direction and magnitude ``[2, n]``."""
        return mlp(self.mlp.weights(), features)

    def probe_shapes(self) -> dict[str, tuple[int, int]]:
        return {"features": (PROBE_ELEMENTS, ADAFAC_CHANNELS)}

    def probe(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"mlp": self(inputs["features"].T).T}


class AdafacNet(ELONet):
    """AdafacMLP and μLO (SPEC §3): ELO's MLP with learned offsets of the decays."""

    def __init__(self, architecture: MLPArchitecture, behavior: AdafacBehavior) -> None:
        super().__init__(architecture, behavior)
        self.momentum_decays = nn.Parameter(torch.empty(3))
        self.rms_decays = nn.Parameter(torch.empty(1))
        self.adafactor_decays = nn.Parameter(torch.empty(3))

    def decays(self) -> Decays:
        """``1 − exp(10·(ln(1 − d0)/10 + offset))`` with the initial decays ``d0``."""
        initial = self.initial_decays()

        def learned(decay: Tensor, offset: Tensor) -> Tensor:
            return 1 - torch.exp(10 * (torch.log(1 - decay) / 10 + offset))

        return Decays(
            learned(initial.momentum, self.momentum_decays),
            in_range(learned(initial.rms, self.rms_decays)),
            in_range(learned(initial.adafactor, self.adafactor_decays)),
        )

    def probe(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Includes the effective decays, because they are learned."""
        decays = {f"{name}_decays": value for name, value in self.decays()._asdict().items()}
        return {**super().probe(inputs), **decays}
