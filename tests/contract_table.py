"""The contract: what every optimizer guarantees, as one table of optimizers × properties.

A test selects a row with :func:`holds`, which runs it over every optimizer that the row does not leave out.
docs/optimizers.md shows the same table; ``python tests/contract_docs.py`` writes it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pytest
import torch
from golden_data import artifact
from torch import Tensor, nn
from trees import synthetic_artifact

from pylo_zoo import load
from pylo_zoo.artifact import Artifact
from pylo_zoo.convert import convert
from pylo_zoo.optim import CELO2, ELO, ELO_CELO2, AdafacLO, Celo, CeloAdam, MuLO, Muon, VeLO
from pylo_zoo.optim.contract import ZooOptimizer

Test = TypeVar("Test", bound=Callable[..., None])


class Entry(NamedTuple):
    """An optimizer as the tests build it; ``weights`` is None if it needs none."""

    cls: type[ZooOptimizer]
    weights: Artifact | None
    arguments: dict[str, Any]


class Property(NamedTuple):
    """A row: its section, its promise, and the reason why an optimizer, or every one (``"*"``), is left out."""

    section: str
    promise: str
    left_out: Mapping[str, str] = {}

    def reason(self, name: str) -> str | None:
        """Why the optimizer ``name`` is left out; None if a test must cover it."""
        return self.left_out.get(name, self.left_out.get("*"))


TABLE = {
    "VeLO": Entry(VeLO, artifact("velo_small"), {"num_steps": 100}),
    "Celo": Entry(Celo, synthetic_artifact("celo"), {"num_steps": 100}),
    "CeloAdam": Entry(CeloAdam, synthetic_artifact("celo-adam"), {"num_steps": 100}),
    "CELO2": Entry(CELO2, artifact("celo2"), {}),
    "CELO2-base": Entry(CELO2, artifact("celo2_base"), {"weight_decay": 0.1}),
    "ELO_CELO2": Entry(ELO_CELO2, artifact("elo_celo2"), {}),
    "ELO": Entry(ELO, artifact("elo"), {"clip_norm": 1.0}),
    "AdafacLO": Entry(AdafacLO, artifact("small_fc_lopt"), {}),
    "MuLO": Entry(MuLO, artifact("small_fc_lopt"), {}),
    "Muon": Entry(Muon, None, {}),
}
CONTROLLED = ("VeLO", "Celo", "CeloAdam")
CHECKPOINTS = Path(__file__).parent / "checkpoints"
TRAINED: dict[type[ZooOptimizer], Callable[[], Artifact]] = {
    VeLO: lambda: load("velo-sample"),
    Celo: lambda: convert("celo", source=CHECKPOINTS / "celo" / "theta.state"),
    CeloAdam: lambda: convert("celo-adam", source=CHECKPOINTS / "celo-adam" / "theta.state"),
}
"""Trained weights, for the optimizers that have some in this repository."""
LEARNED = tuple(name for name in TABLE if name != "Muon")
UNCONTROLLED = tuple(name for name in TABLE if name not in CONTROLLED)

NO_LOSS = dict.fromkeys(UNCONTROLLED, "uses no loss: `step()` requires none and returns the one it receives")
NO_HORIZON = dict.fromkeys(UNCONTROLLED, "has no `num_steps`: its run has no planned end")
NOT_LONG = dict.fromkeys(UNCONTROLLED, "has no limit on steps; accumulate outside, as with any torch optimizer")
NO_CLIP = "has no `clip_norm`, like its original; call `clip_grad_norm_`, as with torch's optimizers"
DECOUPLED = "only decoupled decay, like its original; L2 takes one line before the step: `p.grad.add_(p, alpha=wd)`"

STEPS, STATE, PARAMETERS, TRAINING, TORCH = (
    "Steps, losses and groups",
    "State",
    "Parameters",
    "Training loops",
    "PyTorch's own checks (`test_optim.py`, `common_optimizers.py`)",
)
PROPERTIES = {
    "losses": Property(
        STEPS, "closure, `step(loss)`, `loss=` and `set_loss`, with tensors or numbers, give the same run"
    ),
    "missing_loss": Property(
        STEPS, "a missing, duplicate or malformed loss is an error before anything moves", NO_LOSS
    ),
    "pending_loss": Property(STEPS, "a loss from `set_loss` is used once; a newer loss replaces it", NO_LOSS),
    "zero_grad": Property(STEPS, "`zero_grad(set_to_none=…)`; gradients are never written"),
    "none_grads": Property(STEPS, "absent gradients and frozen parameters are left alone"),
    "skipped": Property(STEPS, "a step without gradients needs no loss and counts nothing; a closure may return None"),
    "added_later": Property(STEPS, "`add_param_group` and unfreezing in the middle of a run"),
    "groups": Property(STEPS, "several groups, each with its own options"),
    "bad_groups": Property(STEPS, "an invalid group is an error and is not added"),
    "foreign_options": Property(
        STEPS, "unsupported options that would change a step (`maximize`, another optimizer's) are an error"
    ),
    "schedulers": Property(
        STEPS, "every `torch.optim.lr_scheduler`, warm restarts included, sets the same `lr`s as for AdamW"
    ),
    "tensor_lr": Property(STEPS, "a tensor `lr` acts like a float `lr`"),
    "horizon": Property(STEPS, "past `num_steps`, steps continue with the last fraction and warn once", NO_HORIZON),
    "decay_warning": Property(
        STEPS,
        "a `weight_decay` that cancels the steps warns once, with the number",
        dict.fromkeys(
            ("CELO2", "CELO2-base", "ELO_CELO2", "ELO", "Muon"), "its `lr` scales both its steps and its decay"
        ),
    ),
    "schedule_warning": Property(
        STEPS,
        "a falling `lr` warns once",
        dict.fromkeys(UNCONTROLLED, "has no built-in schedule, so it needs one"),
    ),
    "embedding_warning": Property(
        STEPS,
        "an embedding in a group without `rule` warns once",
        {
            **dict.fromkeys((*CONTROLLED, "ELO", "AdafacLO", "MuLO"), "updates every parameter by one rule"),
            "CELO2-base": "updates every parameter by one rule",
        },
    ),
    "routes": Property(
        STEPS,
        "`routes()`: the rule of every parameter, and why",
        {
            **dict.fromkeys((*CONTROLLED, "ELO", "AdafacLO", "MuLO"), "updates every parameter by one rule"),
        },
    ),
    "repr": Property(STEPS, "`repr` shows options, not buffers"),
    "resume": Property(STATE, "saved and loaded in a new process: the next 50 steps are bit-identical"),
    "copies": Property(STATE, "`deepcopy` and pickle continue bit for bit"),
    "state_dtype": Property(STATE, "state is float32 for 16-bit parameters and float64 for float64; loading keeps it"),
    "devices": Property(STATE, "state moves to the parameters' device; counters stay on the CPU"),
    "misfit": Property(
        STATE, "a missing or misshapen entry, or another optimizer's state, is an error and changes nothing"
    ),
    "run_misfit": Property(STATE, "the same for the run's state", {"Muon": "keeps only per-parameter state"}),
    "foreign": Property(
        STATE, "entries that wrappers (Lookahead, SAM) add to state and groups are kept, copied and loaded"
    ),
    "numbers": Property(STATE, "counters and run state given as ints, floats, lists or NumPy arrays become tensors"),
    "checkpoint": Property(
        STATE, "`torch.distributed.checkpoint.state_dict` gets and sets the state bit for bit (one process)"
    ),
    "format_version": Property(STATE, "an unknown `format_version` is an error; older states load"),
    "shapes": Property(PARAMETERS, "0-d, empty and size-1 parameters"),
    "strides": Property(PARAMETERS, "non-contiguous and channels_last parameters and gradients"),
    "tied": Property(PARAMETERS, "a tied parameter steps once; an expanded one is an error"),
    "half": Property(PARAMETERS, "bfloat16 and float16 parameters: finite steps, float32 state, rounded once per step"),
    "master": Property(
        PARAMETERS, "`master_weights=True`: a float32 run, rounded; a parameter written from outside is picked up"
    ),
    "float64": Property(PARAMETERS, "float64 parameters are updated in float64"),
    "refused": Property(PARAMETERS, "complex, integer and sparse parameters with gradients are an error"),
    "frozen": Property(PARAMETERS, "frozen parameters of any dtype and layout are accepted, as in quantized models"),
    "lazy": Property(PARAMETERS, "a lazy parameter without a shape is an error"),
    "meta": Property(PARAMETERS, "built, stepped and loaded on the meta device"),
    "autocast": Property(TRAINING, "a step inside autocast equals a step outside it"),
    "grad_scaler": Property(TRAINING, "`GradScaler`: a skipped step leaves all state unchanged and no stale loss"),
    "accumulation": Property(TRAINING, "gradients accumulated by the caller: micro-batches equal the batch"),
    "long_runs": Property(TRAINING, "`accumulate=`, as Google does beyond 150,000 steps; part of the state", NOT_LONG),
    "clipping": Property(TRAINING, "`clip_norm` is `clip_grad_norm_`", dict.fromkeys((*CONTROLLED, "Muon"), NO_CLIP)),
    "nonfinite": Property(TRAINING, '`nonfinite=`: "propagate", "skip", "raise", for loss and gradients'),
    "decoupled": Property(TRAINING, "decoupled decay is `p·(1 − lr·wd)`, separate from the step"),
    "l2": Property(
        TRAINING,
        '`decay="l2"`, Google\'s, equals adding it to the gradient by hand',
        dict.fromkeys(UNCONTROLLED, DECOUPLED),
    ),
    "compile": Property(
        TRAINING, "`torch.compile` of a training step: the same run, no recompilation when `lr` changes"
    ),
    "capturable": Property(
        TRAINING,
        "CUDA graphs (`capturable`)",
        {"*": "not supported: counters live on the CPU, and no graph was tested on a GPU"},
    ),
    "torch_errors": Property(TORCH, "constructor errors that all optimizers share (`get_error_inputs_for_all_optims`)"),
    "torch_direction": Property(
        TORCH,
        "the loss goes down, contiguous or not",
        dict.fromkeys(
            [name for name in LEARNED if name not in CONTROLLED],
            "its weights here are random: their steps have no direction",
        ),
    ),
    "torch_hooks": Property(TORCH, "step pre and post hooks, global ones, in order"),
    "torch_state_hooks": Property(TORCH, "`state_dict` and `load_state_dict` hooks, in order, replacing included"),
    "torch_noop": Property(TORCH, "a step without gradients does nothing"),
    "torch_zero": Property(
        TORCH,
        "with zero gradients and no decay a step moves nothing",
        dict.fromkeys(
            [name for name in LEARNED if name != "CeloAdam"], "its network has biases, so it moves; a test shows it"
        ),
    ),
    "torch_state": Property(TORCH, "`state_dict` is deterministic; loads with `weights_only`, with named parameters"),
    "torch_copies": Property(TORCH, "`deepcopy` has all public attributes; state is there after a step"),
    "torch_counter": Property(TORCH, "a saved `step` that is a number loads (`load_nontensor_step`)"),
    "torch_complex": Property(TORCH, "complex parameters", {"*": "refused with an error: `torch.view_as_real`"}),
    "torch_sparse": Property(TORCH, "sparse gradients (rosenbrock)", {"*": "refused: the rules read every element"}),
    "torch_impls": Property(
        TORCH,
        "`foreach`, `fused`, `differentiable`, `maximize`, `capturable` agree with the plain loop",
        {"*": "these options do not exist here, so there is nothing to compare"},
    ),
    "torch_gpus": Property(
        TORCH, "parameters of several GPUs in one optimizer", {"*": "not tested: it needs several GPUs"}
    ),
}
HELD: dict[str, list[str]] = {}
"""The tests of each row, as ``module::test``; filled when their modules are imported."""


def holds(key: str) -> Callable[[Test], Test]:
    """Run a test of ``entry`` over the optimizers that the row ``key`` covers."""
    row = PROPERTIES[key]
    names = [name for name in TABLE if row.reason(name) is None]

    def mark(test: Test) -> Test:
        where = f"{test.__module__}::{test.__name__}"
        if where not in HELD.setdefault(key, []):
            HELD[key].append(where)
        test.row = key  # pyright: ignore[reportFunctionMemberAccess]
        return pytest.mark.parametrize("entry", [TABLE[name] for name in names], ids=names)(test)

    return mark


# --- shared helpers ----------------------------------------------------------------------------------------------

SHAPES = [(), (7,), (1,), (6, 6), (11, 3), (5, 5, 3, 3), (1, 6)]


def parameters(dtype: torch.dtype = torch.float32, shapes: Any = SHAPES, seed: int = 0) -> list[nn.Parameter]:
    """Parameters ~ N(0, 1), equal for every dtype up to rounding."""
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]


def make(entry: Entry, params: Any, **more: Any) -> Any:
    """The optimizer of an entry over ``params``."""
    weights = {} if entry.weights is None else {"weights": entry.weights}
    return entry.cls(params, **{**weights, **entry.arguments, **more})


def give_gradients(params: list[nn.Parameter], step: int) -> None:
    """Set gradients ~ N(0, 1), equal for every dtype up to rounding."""
    generator = torch.Generator().manual_seed(1000 + step)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator).to(p)


def loss_at(step: int) -> Tensor:
    return torch.tensor(2.0 * 0.95**step)


def train(optimizer: Any, params: list[nn.Parameter], steps: range) -> None:
    for step in steps:
        give_gradients(params, step)
        optimizer.step(loss=loss_at(step))


def owned(optimizer: Any) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def same(one: Any, other: Any) -> bool:
    """Whether two lists of tensors are equal bit for bit."""
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def same_state(one: Any, other: Any) -> bool:
    """Whether two ``state_dict()``s are equal bit for bit, dtypes included."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same_state(value, other[key]) for key, value in one.items())
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(same_state(a, b) for a, b in zip(one, other, strict=True))
    return one == other
