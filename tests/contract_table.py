"""The contract: what every optimizer promises, as one table of optimizers × properties.

A test selects a row with :func:`holds`, which runs it over every optimizer that the row does not leave out.
docs/optimizers.md shows the same table; ``python tests/contract_docs.py`` writes it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pytest
import torch
from golden_data import artifact
from torch import Tensor, nn
from trees import synthetic_artifact

from pylo_zoo import converters, load
from pylo_zoo.artifact import Artifact
from pylo_zoo.convert import convert
from pylo_zoo.optim import (
    CELO2,
    ELO,
    ELO_CELO2,
    AdafacLO,
    Celo,
    CeloAdam,
    LearnedOptimizer,
    MuLO,
    Muon,
    VeLO,
    optimizer_class,
)
from pylo_zoo.optim.contract import ZooOptimizer
from pylo_zoo.optim.lstm_controlled import LSTMControlledOptimizer
from pylo_zoo.optim.options import DEFAULTS

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


CONFIGURED = {
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
"""The entries with particular weights or arguments, in the order of the table in docs/optimizers.md."""


def unconfigured() -> dict[str, Entry]:
    """An entry with random weights for each other class that a family names."""
    entries = {}
    for family in converters.OWN:
        cls = optimizer_class(family)
        if all(cls is not entry.cls for entry in CONFIGURED.values()):
            horizon = {"num_steps": 100} if "num_steps" in inspect.signature(cls).parameters else {}
            entries[cls.__name__] = Entry(cls, synthetic_artifact(family), horizon)
    return entries


TABLE = {**CONFIGURED, **unconfigured()}


def without_argument(*names: str) -> tuple[str, ...]:
    """The optimizers whose constructor has none of these arguments."""
    return tuple(name for name, entry in TABLE.items() if not {*names} & inspect.signature(entry.cls).parameters.keys())


CONTROLLED = tuple(name for name, entry in TABLE.items() if issubclass(entry.cls, LSTMControlledOptimizer))
CHECKPOINTS = Path(__file__).parent / "checkpoints"
TRAINED: dict[type[ZooOptimizer], Callable[[], Artifact]] = {
    VeLO: lambda: load("velo-sample"),
    Celo: lambda: convert("celo", source=CHECKPOINTS / "celo" / "theta.state"),
    CeloAdam: lambda: convert("celo-adam", source=CHECKPOINTS / "celo-adam" / "theta.state"),
}
"""Trained weights, for the optimizers that have some in this repository."""
LEARNED = tuple(name for name, entry in TABLE.items() if issubclass(entry.cls, LearnedOptimizer))
UNCONTROLLED = tuple(name for name in TABLE if name not in CONTROLLED)

NO_LOSS = dict.fromkeys(
    [name for name, entry in TABLE.items() if not entry.cls.needs_loss],
    "does not read the loss; `step()` returns what it receives",
)
NO_HORIZON = dict.fromkeys(without_argument("num_steps"), "has no `num_steps`")
LR_SCALES = dict.fromkeys(
    [name for name, entry in TABLE.items() if not getattr(entry.cls, "learns_step_sizes", False)],
    "`lr` scales the steps and the decay",
)
ONE_RULE = dict.fromkeys(without_argument("adam_betas", "betas"), "updates every parameter by one rule")
NOT_LONG = dict.fromkeys(
    UNCONTROLLED, "no limit on steps; accumulate gradients outside, as with other torch optimizers"
)
NO_CLIP = "no `clip_norm`, like the original; use `clip_grad_norm_`"
DECOUPLED = "decoupled decay only, like the original; L2 is one line outside: `p.grad.add_(p, alpha=wd)`"

STEPS, STATE, PARAMETERS, TRAINING, TORCH = (
    "Steps, losses and groups",
    "State",
    "Parameters",
    "Training loops",
    "PyTorch's optimizer tests (`test_optim.py`, `common_optimizers.py`)",
)
PROPERTIES = {
    "losses": Property(
        STEPS, "closure, `step(loss)`, `loss=` and `set_loss`, with tensors and numbers, give the same run"
    ),
    "missing_loss": Property(STEPS, "a missing, ambiguous or invalid loss is an error; nothing changes", NO_LOSS),
    "pending_loss": Property(STEPS, "the loss of `set_loss` is used once; a newer loss replaces it", NO_LOSS),
    "zero_grad": Property(STEPS, "`zero_grad(set_to_none=…)` works; gradients are never modified"),
    "none_grads": Property(STEPS, "parameters without gradient and frozen parameters do not change"),
    "skipped": Property(
        STEPS, "a step without gradients needs no loss and advances no counter; a closure may return None"
    ),
    "added_later": Property(STEPS, "`add_param_group` and unfreezing during a run"),
    "groups": Property(STEPS, "each group has its own options"),
    "shared_options": Property(
        STEPS,
        f"the shared options ({', '.join(f'`{name}`' for name in DEFAULTS)}) are keyword arguments in every signature "
        "and docstring; copies keep them",
    ),
    "bad_groups": Property(STEPS, "an invalid group is an error and is not kept"),
    "foreign_options": Property(
        STEPS, "unsupported options that would change a step (`maximize`, other optimizers' options) are errors"
    ),
    "schedulers": Property(
        STEPS, "every `torch.optim.lr_scheduler`, including warm restarts, sets the same `lr` as for AdamW"
    ),
    "tensor_lr": Property(STEPS, "a tensor `lr` gives the same run as a float `lr`"),
    "horizon": Property(STEPS, "past `num_steps`, the run continues with the last fraction and warns once", NO_HORIZON),
    "decay_warning": Property(
        STEPS,
        "a `weight_decay` that undoes the steps warns once and names a smaller value",
        LR_SCALES,
    ),
    "schedule_warning": Property(
        STEPS,
        "a falling `lr` warns once",
        dict.fromkeys(UNCONTROLLED, "no learned schedule; use a scheduler"),
    ),
    "embedding_warning": Property(
        STEPS,
        "an embedding in a group without `rule` warns once",
        {**ONE_RULE, "CELO2-base": "updates every parameter by one rule"},
    ),
    "routes": Property(
        STEPS,
        "`routes()` shows each parameter's rule and the reason",
        ONE_RULE,
    ),
    "ns_dtype": Property(
        STEPS,
        "`ns_dtype` sets the precision of Newton–Schulz, by group: float32, tf32 or bfloat16 ([errors]"
        "(performance.md#newtonschulz)); by default the original's (Muon: bfloat16)",
        {
            **dict.fromkeys(without_argument("ns_dtype"), "does not orthogonalize"),
            "CELO2-base": "its checkpoint does not orthogonalize",
        },
    ),
    "repr": Property(STEPS, "`repr` shows options, not state"),
    "resume": Property(STATE, "after saving and loading in a new process, the next 50 steps are bit-identical"),
    "copies": Property(STATE, "runs continue bit-identically after `deepcopy` and pickle"),
    "state_dtype": Property(STATE, "state stays float32 for 16-bit parameters and float64 for float64"),
    "devices": Property(STATE, "loaded state moves to the parameters' device, counters included"),
    "misfit": Property(
        STATE, "a missing or misshapen entry, or another optimizer's state, is an error; nothing changes"
    ),
    "run_misfit": Property(STATE, "the same for the state of the run", {"Muon": "has per-parameter state only"}),
    "foreign": Property(STATE, "wrappers' entries (Lookahead, SAM) in state and groups are kept, copied and loaded"),
    "numbers": Property(STATE, "counters and run state stored as ints, floats, lists or NumPy arrays become tensors"),
    "checkpoint": Property(
        STATE, "`torch.distributed.checkpoint.state_dict` gets and sets the state exactly (one process)"
    ),
    "format_version": Property(STATE, "an unknown `format_version` is an error; older states load"),
    "shapes": Property(PARAMETERS, "0-d, empty and size-1 parameters work"),
    "strides": Property(
        PARAMETERS, "strides of parameters and gradients (non-contiguous, channels_last) do not matter"
    ),
    "tied": Property(PARAMETERS, "tied parameters are updated once; expanded parameters are errors"),
    "half": Property(PARAMETERS, "bfloat16 and float16 parameters: finite steps, float32 state, one rounding"),
    "master": Property(
        PARAMETERS, "`master_weights=True`: the float32 run, rounded; writes to parameters are detected"
    ),
    "float64": Property(PARAMETERS, "float64 parameters are updated in float64"),
    "refused": Property(PARAMETERS, "complex, integer and sparse parameters with gradients are errors"),
    "frozen": Property(PARAMETERS, "frozen parameters of any dtype and layout are accepted, as in quantized models"),
    "lazy": Property(PARAMETERS, "an uninitialized lazy parameter is an error"),
    "meta": Property(PARAMETERS, "construction, steps and loading work on the meta device"),
    "autocast": Property(TRAINING, "autocast does not change a step"),
    "grad_scaler": Property(TRAINING, "`GradScaler`: a skipped step changes no state and leaves no stale loss"),
    "accumulation": Property(TRAINING, "gradients accumulated over micro-batches give the step of the whole batch"),
    "long_runs": Property(
        TRAINING, "`accumulate=` (Google's, for runs over 150,000 steps) is saved in the state", NOT_LONG
    ),
    "clipping": Property(
        TRAINING, "`clip_norm` equals `clip_grad_norm_`", dict.fromkeys(without_argument("clip_norm"), NO_CLIP)
    ),
    "nonfinite": Property(TRAINING, '`nonfinite=`: "propagate", "skip", "raise", for loss and gradients'),
    "decoupled": Property(TRAINING, "decoupled decay is `p·(1 − lr·wd)`, independent of the step"),
    "l2": Property(
        TRAINING,
        '`decay="l2"` (Google\'s) equals adding it to gradients and loss by hand',
        dict.fromkeys(UNCONTROLLED, DECOUPLED),
    ),
    "compile": Property(TRAINING, "a compiled training step gives the same run; a changing `lr` does not recompile"),
    "capturable": Property(
        TRAINING,
        "a step after the first can be part of a CUDA graph that you capture (on a double of graphs: no GPU ran it)",
    ),
    "own_graph": Property(
        TRAINING,
        '`graphs="auto"`: a fused step on a GPU replays its own CUDA graph, bit-identical to `"off"` (same double)',
        dict.fromkeys(
            [name for name in TABLE if name not in LEARNED],
            "torch operations read its gradients, which its own graph would have to copy; capture the training step",
        ),
    ),
    "torch_errors": Property(TORCH, "constructor errors that all optimizers share (`get_error_inputs_for_all_optims`)"),
    "torch_direction": Property(
        TORCH,
        "the loss decreases, with contiguous and non-contiguous parameters",
        dict.fromkeys(
            [name for name in LEARNED if name not in CONTROLLED],
            "the test weights are random, so steps have no direction",
        ),
    ),
    "torch_hooks": Property(TORCH, "step pre- and post-hooks, including global ones, run in order"),
    "torch_state_hooks": Property(
        TORCH, "`state_dict` and `load_state_dict` hooks run in order and may replace the state"
    ),
    "torch_noop": Property(TORCH, "a step without gradients changes nothing"),
    "torch_zero": Property(
        TORCH,
        "a step with zero gradients and no decay changes nothing",
        dict.fromkeys(
            [name for name in LEARNED if name != "CeloAdam"],
            "its network has biases; a test shows that parameters move",
        ),
    ),
    "torch_state": Property(
        TORCH, "`state_dict` is deterministic and loads with `weights_only` and with named parameters"
    ),
    "torch_copies": Property(TORCH, "`deepcopy` copies all public attributes; state exists after a step"),
    "torch_counter": Property(TORCH, "a saved `step` that is a number loads (`load_nontensor_step`)"),
    "torch_complex": Property(TORCH, "complex parameters", {"*": "an error that suggests `torch.view_as_real`"}),
    "torch_sparse": Property(TORCH, "sparse gradients (rosenbrock)", {"*": "an error: the rules read every element"}),
    "torch_impls": Property(
        TORCH,
        "`foreach`, `fused`, `differentiable`, `maximize`, `capturable` agree with the for-loop implementation",
        {"*": "these options do not exist"},
    ),
    "torch_gpus": Property(
        TORCH, "parameters of several GPUs in one optimizer", {"*": "not tested: no GPU was available"}
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
    weights: dict[str, Any] = {} if entry.weights is None else {"weights": entry.weights}
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
