"""The contract: what every optimizer owes its user, as one table of optimizers × properties.

A test takes a row with :func:`holds`, which runs it over every optimizer of the row that has no reason to be left out;
docs/optimizers.md shows the same table, written by ``python tests/contract_docs.py``.
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
    """An optimizer as the tests build it; ``weights`` is None where it needs none."""

    cls: type[ZooOptimizer]
    weights: Artifact | None
    arguments: dict[str, Any]


class Property(NamedTuple):
    """A row: its heading, what is promised, and why some optimizers, or all (``"*"``), are left out."""

    section: str
    promise: str
    left_out: Mapping[str, str] = {}

    def reason(self, name: str) -> str | None:
        """Why the optimizer of that name is left out; None where a test has to hold it to the promise."""
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
"""Weights that train, for the optimizers of which some are here."""
LEARNED = tuple(name for name in TABLE if name != "Muon")
UNCONTROLLED = tuple(name for name in TABLE if name not in CONTROLLED)

NO_LOSS = dict.fromkeys(UNCONTROLLED, "reads no loss: `step()` needs none, and returns what it is given")
NO_HORIZON = dict.fromkeys(UNCONTROLLED, "knows no `num_steps`: its run has no planned end")
NOT_LONG = dict.fromkeys(UNCONTROLLED, "has no limit of steps; accumulate outside, as with any torch optimizer")
NO_CLIP = "has no `clip_norm`, as its original: `clip_grad_norm_` outside does it, as for torch's optimizers"
DECOUPLED = "decoupled alone, as its original; L2 is one line outside, `p.grad.add_(p, alpha=wd)`"

STEPS, STATE, PARAMETERS, TRAINING, TORCH = (
    "Steps, losses and groups",
    "State",
    "Parameters",
    "Training loops",
    "PyTorch's own checks (`test_optim.py`, `common_optimizers.py`)",
)
PROPERTIES = {
    "losses": Property(STEPS, "closure, `step(loss)`, `loss=`, `set_loss`; tensors and numbers: the same run"),
    "missing_loss": Property(STEPS, "a missing, double or odd loss: an error before anything moves", NO_LOSS),
    "pending_loss": Property(STEPS, "`set_loss` is used once, and superseded by a newer loss", NO_LOSS),
    "zero_grad": Property(STEPS, "`zero_grad(set_to_none=…)`; gradients are never written"),
    "none_grads": Property(STEPS, "absent gradients and frozen parameters are left alone"),
    "skipped": Property(STEPS, "a step without gradients needs no loss and counts nothing; a closure may return None"),
    "added_later": Property(STEPS, "`add_param_group` in mid-run, unfreezing included"),
    "groups": Property(STEPS, "several groups, each with its own options"),
    "bad_groups": Property(STEPS, "a group that cannot be is an error, and is not kept"),
    "foreign_options": Property(
        STEPS, "options that change a step and do not exist here (`maximize`, another optimizer's): an error"
    ),
    "schedulers": Property(STEPS, "every `torch.optim.lr_scheduler`, warm restarts included: AdamW's `lr`s, used"),
    "tensor_lr": Property(STEPS, "a tensor `lr` is a float `lr`"),
    "horizon": Property(STEPS, "past `num_steps`: goes on with the last fraction, warns once", NO_HORIZON),
    "decay_warning": Property(
        STEPS,
        "a `weight_decay` that undoes the steps warns once, with the number",
        dict.fromkeys(("CELO2", "CELO2-base", "ELO_CELO2", "ELO", "Muon"), "its `lr` scales its steps and its decay"),
    ),
    "schedule_warning": Property(
        STEPS,
        "a falling `lr` warns once",
        dict.fromkeys(UNCONTROLLED, "has no schedule of its own: give it one"),
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
    "resume": Property(STATE, "saved, loaded in a fresh process: the next 50 steps bit-identical"),
    "copies": Property(STATE, "`deepcopy` and pickle go on bit for bit"),
    "state_dtype": Property(STATE, "float32 state of 16-bit parameters stays float32; float64 of float64"),
    "devices": Property(STATE, "a state moves to its parameters' device; counters stay on the CPU"),
    "misfit": Property(STATE, "an own entry missing, misshapen or of another optimizer: an error, nothing changed"),
    "run_misfit": Property(
        STATE, "the same for the state of the run", {"Muon": "keeps no state of the run, but that of its parameters"}
    ),
    "foreign": Property(STATE, "entries of wrappers (Lookahead, SAM) in state and groups are kept, copied and loaded"),
    "numbers": Property(STATE, "counters and run state that are ints, floats, lists or NumPy's become tensors"),
    "checkpoint": Property(STATE, "`torch.distributed.checkpoint.state_dict`: got and set, bit for bit (one process)"),
    "format_version": Property(STATE, "`format_version`; an unknown one is an error; older states load"),
    "shapes": Property(PARAMETERS, "0-d, empty and size-1 parameters"),
    "strides": Property(PARAMETERS, "non-contiguous and channels_last parameters and gradients"),
    "tied": Property(PARAMETERS, "tied parameters step once; expanded ones are an error"),
    "half": Property(PARAMETERS, "bfloat16 and float16 parameters: finite, float32 state, rounded once"),
    "master": Property(PARAMETERS, "`master_weights=True`: float32's run, rounded; written-to parameters are heard"),
    "float64": Property(PARAMETERS, "float64 parameters are updated in float64"),
    "refused": Property(PARAMETERS, "complex, integer and sparse parameters with gradients: an error"),
    "frozen": Property(PARAMETERS, "frozen parameters of any dtype and layout are accepted, as in quantized models"),
    "lazy": Property(PARAMETERS, "a lazy parameter without a shape: an error"),
    "meta": Property(PARAMETERS, "built, stepped and loaded on the meta device"),
    "autocast": Property(TRAINING, "autocast: a step inside it is a step outside it"),
    "grad_scaler": Property(TRAINING, "`GradScaler`: a skipped step leaves all state alone, and no stale loss"),
    "accumulation": Property(TRAINING, "gradients accumulated outside: micro-batches make the batch"),
    "long_runs": Property(TRAINING, "`accumulate=`, Google's past 150,000 steps; in the state", NOT_LONG),
    "clipping": Property(TRAINING, "`clip_norm` is `clip_grad_norm_`", dict.fromkeys((*CONTROLLED, "Muon"), NO_CLIP)),
    "nonfinite": Property(TRAINING, '`nonfinite=`: "propagate", "skip", "raise", for loss and gradients'),
    "decoupled": Property(TRAINING, "decoupled decay is `p·(1 − lr·wd)`, apart from the step"),
    "l2": Property(
        TRAINING, '`decay="l2"`, Google\'s, is done outside by hand', dict.fromkeys(UNCONTROLLED, DECOUPLED)
    ),
    "compile": Property(TRAINING, "`torch.compile` of a training step: the same run, no recompilation as `lr` changes"),
    "capturable": Property(
        TRAINING,
        "CUDA graphs (`capturable`)",
        {"*": "not offered: counters live on the CPU, and no GPU was at hand to test a graph on"},
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
    "torch_noop": Property(TORCH, "without gradients a step is none"),
    "torch_zero": Property(
        TORCH,
        "with zero gradients and no decay a step moves nothing",
        dict.fromkeys([name for name in LEARNED if name != "CeloAdam"], "its network has biases: a test shows it move"),
    ),
    "torch_state": Property(TORCH, "`state_dict` is deterministic; loads with `weights_only`, with named parameters"),
    "torch_copies": Property(TORCH, "`deepcopy` has all public attributes; state is there after a step"),
    "torch_counter": Property(TORCH, "a saved `step` that is a number loads (`load_nontensor_step`)"),
    "torch_complex": Property(TORCH, "complex parameters", {"*": "refused with an error: `torch.view_as_real`"}),
    "torch_sparse": Property(TORCH, "sparse gradients (rosenbrock)", {"*": "refused: the rules read every element"}),
    "torch_impls": Property(
        TORCH,
        "`foreach`, `fused`, `differentiable`, `maximize`, `capturable` agree with the plain loop",
        {"*": "these options do not exist here: one text of the maths, nothing to compare"},
    ),
    "torch_gpus": Property(
        TORCH, "parameters of several GPUs in one optimizer", {"*": "no GPU was at hand; never tried"}
    ),
}
HELD: dict[str, list[str]] = {}
"""The tests of each row, as ``module::test``, once their modules are imported."""


def holds(key: str) -> Callable[[Test], Test]:
    """Run a test of ``entry`` over the optimizers that a row has to hold for."""
    row = PROPERTIES[key]
    names = [name for name in TABLE if row.reason(name) is None]

    def mark(test: Test) -> Test:
        where = f"{test.__module__}::{test.__name__}"
        if where not in HELD.setdefault(key, []):
            HELD[key].append(where)
        test.row = key  # pyright: ignore[reportFunctionMemberAccess]
        return pytest.mark.parametrize("entry", [TABLE[name] for name in names], ids=names)(test)

    return mark


# --- what the tests share ----------------------------------------------------------------------------------------

SHAPES = [(), (7,), (1,), (6, 6), (11, 3), (5, 5, 3, 3), (1, 6)]


def parameters(dtype: torch.dtype = torch.float32, shapes: Any = SHAPES, seed: int = 0) -> list[nn.Parameter]:
    """Parameters ~ N(0, 1), the same for every dtype up to rounding."""
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]


def make(entry: Entry, params: Any, **more: Any) -> Any:
    """The optimizer of an entry over ``params``."""
    weights = {} if entry.weights is None else {"weights": entry.weights}
    return entry.cls(params, **{**weights, **entry.arguments, **more})


def give_gradients(params: list[nn.Parameter], step: int) -> None:
    """Gradients ~ N(0, 1), the same for every dtype up to rounding."""
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
    """Whether two lists of tensors are equal, bit for bit."""
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def same_state(one: Any, other: Any) -> bool:
    """Whether two ``state_dict()``s are equal, bit for bit, dtypes included."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same_state(value, other[key]) for key, value in one.items())
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(same_state(a, b) for a, b in zip(one, other, strict=True))
    return one == other
