"""PyLO's recorded signatures, and helpers that build optimizers with its names.

Recorded from github.com/Belilovsky-Lab/pylo; docs/migrating-from-pylo.md lists the commits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from trees import synthetic_artifact

from pylo_zoo import optim
from pylo_zoo.artifact import Artifact
from pylo_zoo.compat import pylo

ARTIFACTS = {family: synthetic_artifact(family) for family in ("velo", "celo2", "elo-celo2", "elo", "mulo")}
SHAPES = [(), (7,), (6, 6), (11, 3), (5, 5, 3, 3)]

INITIAL = {"initial_momentum_decays": (0.9, 0.99, 0.999)}
FACTORED = {"initial_adafactor_decays": (0.9, 0.99, 0.999)}
MULO_OFFSETS = {
    "momentum_decays": (0.15216392, 0.14245212, 0.06812963),
    "rms_decays": (0.01079706,),
    "adafactor_decays": (0.18621896, -0.10864615, -0.06185547),
}
UNUSED = {"concat_weights": True, "make_separate_weights": False, "split_weights": False}
VELO = {
    "momentum_decays": (0.0, 0.0, 0.0),
    "rms_decays": (0.0,),
    "adafactor_decays": (0.0, 0.0, 0.0),
    "lr": 1e-3,
    "exp_mult": 0.001,
    "step_mult": 0.001,
    "input_size": 30,
    "hidden_size": 4,
    "hidden_layers": 1,
    **INITIAL,
    "lstm_input_size": 30,
    "lstm_hidden_size": 512,
    "param_inits": 256,
    "num_steps": 10000,
    "initial_rms_decays": (0.999,),
    **FACTORED,
    **UNUSED,
    "weight_decay": 0.0,
    "clip_grad": False,
    "mup_lrs": None,
    "hf_key_rnn": "Pauljanson002/VeLO_RNN",
    "hf_key_mlp": "Pauljanson002/VeLO_MLP",
}
BACKBONE = {
    "ff_hidden_size": 8,
    "ff_hidden_layers": 2,
    **INITIAL,
    "initial_rms_decays": (0.95,),
    **FACTORED,
    "exp_mult": 0.0,
    "rmsmult": 1.0,
    "param_scale_mult": False,
    "ns_coeffs": (3.4445, -4.7750, 2.0315),
    "ns_iters": 5,
    "ns_eps": 1e-8,
    "grad_clip_val": 1000.0,
}
CELO2 = {
    "lr": 1e-3,
    "weight_decay": 0.0,
    "adam_lr_mult": 1.0,
    "adam_weight_decay": None,
    "adam_betas": (0.9, 0.95),
    "adam_eps": 1e-8,
    "use_adamw_for_1d": True,
    "orthogonalize": True,
    "clip_grad": False,
    "clip_norm": 1.0,
    **BACKBONE,
    "hf_key": "DiamondXL/celo2",
    "checkpoint_path": None,
    "network": None,
}
ELO_CELO2 = {
    "lr": 1e-3,
    "weight_decay": 0.1,
    "clip_grad": True,
    "clip_norm": 1.0,
    "adam_lr_mult": 1.0,
    "adam_weight_decay": None,
    "use_adamw_for_1d": True,
    "orthogonalize": True,
    **BACKBONE,
    "hf_key": "DiamondXL/elo-celo2",
    "checkpoint_path": None,
    "network": None,
}
ELO = {
    "lr": 0.001,
    "exp_mult": 0.001,
    "weight_decay": 0.0,
    "hidden_size": 32,
    "hidden_layers": 1,
    **INITIAL,
    "initial_rms_decays": (0.999,),
    **FACTORED,
    "clip_grad": False,
    "clip_norm": 1.0,
    "hf_key": "DiamondXL/elo",
    "checkpoint_path": None,
    "network": None,
}
ADAFAC = {
    **MULO_OFFSETS,
    "lr": 1.0,
    "exp_mult": 0.001,
    "step_mult": 0.01,
    "input_size": 39,
    "hidden_size": 32,
    "hidden_layers": 1,
    **INITIAL,
    "initial_rms_decays": (0.999,),
    **FACTORED,
    "max_grad_norm": None,
    **UNUSED,
    "clip_grad": False,
    "weight_decay": 0.0,
    "mup_lrs": None,
    "hf_key": "btherien/mulo",
}
ADAFAC_CUDA = {
    "lr": 1.0,
    "min_dim_size_to_factor": 32,
    "decay_rate": 0.8,
    "decay_offset": 0,
    "beta2_cap": 0.999,
    **INITIAL,
    "initial_rms_decays": (0.999,),
    **FACTORED,
    **MULO_OFFSETS,
    "momentum_dtype": torch.float32,
    "eps": None,
    "weight_decay": 0.0,
    "clipping_threshold": None,
    "max_grad_norm": None,
    "unscaled_wd": False,
    "step_mult": 0.01,
    "exp_mult": 0.001,
    "load_from_file": None,
    "foreach": False,
    "hf_key": "btherien/mulo",
}
SIGNATURES = {
    "VeLO_naive": VELO,
    "VeLO_CUDA": {**VELO, "legacy": False},
    "CELO2_naive": CELO2,
    "CELO2_CUDA": CELO2,
    "ELO_CELO2_naive": ELO_CELO2,
    "ELO_CELO2_CUDA": {**ELO_CELO2, "adam_lr_mult": 20.0},
    "ELO_naive": ELO,
    "ELO_CUDA": ELO,
    "AdafacLO_naive": ADAFAC,
    "AdafacLO_CUDA": ADAFAC_CUDA,
    "MuLO_naive": {"impl": pylo.AdafacLO_naive, **ADAFAC},
    "MuLO_CUDA": {"impl": pylo.AdafacLO_CUDA, **ADAFAC_CUDA},
}
OURS = {name: getattr(optim, name.rpartition("_")[0]) for name in SIGNATURES}
ALIASES = ("VeLO", "CELO2", "ELO", "ELO_CELO2", "AdafacLO", "MuLO")


def parameters(dtype: torch.dtype = torch.float32, shapes: Any = SHAPES) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]


def give_gradients(params: list[nn.Parameter], step: int, scale: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(1000 + step)
    for p in params:
        p.grad = scale * torch.randn(p.shape, generator=generator).to(p)


def train(optimizer: Any, params: list[nn.Parameter], steps: range = range(4)) -> list[nn.Parameter]:
    for step in steps:
        give_gradients(params, step)
        optimizer.step(torch.tensor(2.0 * 0.95**step))
    return params


def same(one: list[nn.Parameter], other: list[nn.Parameter]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def widths(params: list[nn.Parameter], width: float = 4.0) -> list[dict[str, Any]]:
    return [{"params": params, "width_mult": width}]


def keys(name: str, artifact: Artifact | None = None) -> dict[str, Any]:
    artifact = (
        artifact
        or ARTIFACTS[{"VeLO": "velo", "CELO2": "celo2", "ELO": "elo", "ELO_CELO2": "elo-celo2"}.get(stem(name), "mulo")]
    )
    return {"hf_key_rnn": artifact, "hf_key_mlp": artifact} if stem(name) == "VeLO" else {"hf_key": artifact}


def stem(name: str) -> str:
    return name.removesuffix("_naive").removesuffix("_CUDA")


def build(name: str, params: Any, **options: Any) -> Any:
    """An optimizer with PyLO's name; MuLO's parameters get a width of 4."""
    if stem(name) == "MuLO" and isinstance(params[0], nn.Parameter):
        params = widths(params)
    return getattr(pylo, name)(params, **{**keys(name), **options})
