"""Compares the JAX reference with the research groups' own optimizers, if their packages can be imported.

Parity tests the torch side against the reference, and golden trajectories test the reference. This module runs the
originals on any checkpoint, parameters and gradients: ``learned_optimization`` (VeLO, AdafacMLP), ``celo`` (Celo,
celo-adam) and ``celo2_optax`` (CELO2, CELO2-base). These packages are optional and are imported only when a function
of this module is called.

    check = check_reference("velo", theta, architecture=..., behavior=..., hyper={"num_steps": 100},
                            params=params, grads=grads, losses=losses)
    assert check.agrees, check.worst
"""

from __future__ import annotations

import hashlib
import importlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from pylo_zoo import config
from pylo_zoo.errors import ZooError, count

__all__ = [
    "FLOOR",
    "ORIGINALS",
    "TOLERANCE",
    "Check",
    "Original",
    "Run",
    "available",
    "check_reference",
    "run_original",
]

TOLERANCE = 1e-4
"""Relative to a parameter's largest movement. Over a dozen steps, rounding separates two float32 programs by about
1e-5, and a weight that is off by 1 % causes 1e-3 or more. tests/golden/README.md uses the same tolerance."""
FLOOR = 4 * float(np.finfo(np.float32).eps)
"""Relative to a parameter's largest value: the rounding error of storing it in float32, subtracted from each error."""

Params = Mapping[str, Any]
"""Arrays by name, in JAX layout."""


@dataclass(frozen=True)
class Original:
    """The original implementation of one family.

    Attributes:
        module, name: the class or function, called with the fields of the architecture and the behavior.
        drive: called with ``(callable, arguments, theta, hyper, params, grads, losses)``; yields the parameters after
            each step.
        fixed: further arguments of the callable.
        needs_loss: whether the rule reads the loss.
        unsupported: hyperparameters that the original lacks, with the value at which ours has no effect.
    """

    module: str
    name: str
    drive: Callable[..., Iterator[Params]]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    needs_loss: bool = False
    unsupported: Mapping[str, Any] = field(default_factory=dict)

    @property
    def package(self) -> str:
        """The package to import."""
        return self.module.partition(".")[0]


@dataclass(frozen=True, eq=False)
class Run:
    """The result of running an original.

    Attributes:
        original: dotted name of the class or function.
        version: version of its distribution, or "unknown".
        sha256: sha256 of its source file, or ""; the version of ``learned_optimization`` has been 0.0.1 for years.
        params: float32 parameters after each step, by name.
    """

    original: str
    version: str
    sha256: str
    params: list[dict[str, np.ndarray]]


@dataclass(frozen=True, eq=False)
class Check:
    """A comparison of the reference with the original, with the same initial parameters, gradients and losses.

    Attributes:
        run: the original's run.
        reference: the reference's parameters after each step.
        errors: largest error of each parameter, minus the floor, relative to its largest movement.
    """

    run: Run
    reference: list[dict[str, np.ndarray]]
    errors: dict[str, float]

    @property
    def agrees(self) -> bool:
        """Whether every error is within :data:`TOLERANCE`; NaN is not."""
        return all(error <= TOLERANCE for error in self.errors.values())

    @property
    def worst(self) -> tuple[str, float]:
        """The parameter with the largest error, and that error; NaN is the largest."""
        return max(self.errors.items(), key=lambda item: (np.isnan(item[1]), item[1]))


# --- running -----------------------------------------------------------------------------------------------------


def available() -> dict[str, str]:
    """The originals' packages that can be imported, with their versions or "unknown".

    Importing them can take seconds. A package may contain the originals of only some of its families.
    """
    versions = {}
    for original in ORIGINALS.values():
        try:
            _load(original)
        except ZooError:
            continue
        versions[original.package] = _version(original)
    return versions


def run_original(
    family: str,
    theta: Mapping[str, Any],
    *,
    architecture: Mapping[str, Any],
    behavior: Mapping[str, Any],
    hyper: Mapping[str, Any],
    params: Params,
    grads: Sequence[Params],
    losses: Sequence[Any] | None = None,
) -> Run:
    """Run a family's original in float32.

    Args:
        family: a key of :data:`ORIGINALS`.
        theta: the meta-parameters, nested as ``flax.serialization.msgpack_restore`` returns them.
        architecture, behavior: the fields of the family's records in ``pylo_zoo.config``.
        hyper: hyperparameters, named as in the torch constructor; missing ones have their defaults. In CELO2, AdamW
            updates the 0-d and 1-d parameters.
        params: initial parameters by name, in JAX layout.
        grads: gradients by name, for each step.
        losses: one loss per step.

    Raises:
        ZooError: the family has no known or importable original, the original fails to run, a hyperparameter is
            unknown, or the inputs do not fit each other.
    """
    original = _original(family)
    make = _load(original)
    complete = _hyper(family, original, hyper)
    losses = _check_inputs(original, params, grads, losses)
    import jax
    import jax.numpy as jnp

    from pylo_zoo.reference import FAMILIES

    arguments = {
        **asdict(config.parse(FAMILIES[family].architecture, architecture, "architecture")),
        **asdict(config.parse(FAMILIES[family].behavior, behavior, "behavior")),
        **original.fixed,
    }
    with _quiet_float32():
        inputs = theta, dict(params), [*map(dict, grads)], losses
        weights, start, gradients, losses = jax.tree.map(lambda x: jnp.asarray(x, "float32"), inputs)
        try:
            steps = list(original.drive(make, arguments, weights, complete, start, gradients, losses))
        except Exception as error:
            raise _failed(original, "fails to run", error, "Check that theta has this architecture.") from error
    trajectory = [{name: np.asarray(p) for name, p in step.items()} for step in steps]
    return Run(f"{original.module}.{original.name}", _version(original), _sha256(original), trajectory)


def check_reference(
    family: str,
    theta: Mapping[str, Any],
    *,
    architecture: Mapping[str, Any],
    behavior: Mapping[str, Any],
    hyper: Mapping[str, Any],
    params: Params,
    grads: Sequence[Params],
    losses: Sequence[Any] | None = None,
) -> Check:
    """Run a family's original and the reference, and compare them; arguments and errors as :func:`run_original`."""
    records: dict[str, Any] = {"architecture": architecture, "behavior": behavior, "hyper": hyper}
    run = run_original(family, theta, **records, params=params, grads=grads, losses=losses)
    from pylo_zoo.reference import build

    trajectory = []
    with _quiet_float32():
        reference = build(family, theta, **records)
        current: Any = params
        state = reference.init(params)
        for t, gradient in enumerate(grads):
            current, state = reference.update(current, gradient, state, None if losses is None else losses[t])
            trajectory.append({name: np.asarray(p) for name, p in current.items()})
    return Check(run, trajectory, {name: _error(name, params, run.params, trajectory) for name in params})


def _error(name: str, start: Params, expected: list[dict[str, np.ndarray]], got: list[dict[str, np.ndarray]]) -> float:
    """The largest error of one parameter, minus the floor, relative to its largest movement in ``expected``."""
    original, ours = (np.stack([step[name].astype(np.float64) for step in run]) for run in (expected, got))
    movement = np.abs(original - np.asarray(start[name], np.float32)).max()
    error = np.maximum(np.abs(ours - original).max() - FLOOR * np.abs(original).max(), 0)  # NaN stays NaN
    return float(error) if error == 0 else float(np.divide(error, movement)) if movement else float("inf")


# --- importing ---------------------------------------------------------------------------------------------------


def _original(family: str) -> Original:
    if family in ORIGINALS:
        return ORIGINALS[family]
    raise ZooError(f"Unknown original {family!r}.", f"Choose one of {', '.join(ORIGINALS)}.")


def _load(original: Original) -> Callable[..., Any]:
    """Import an original. Any exception of the import becomes one error."""
    try:
        with _quiet_float32():
            return getattr(importlib.import_module(original.module), original.name)
    except Exception as error:
        raise _failed(original, "cannot be imported", error) from error


def _failed(original: Original, problem: str, error: Exception, hint: str = "") -> ZooError:
    cause = f"{type(error).__name__}: {error}".splitlines()[0]
    install = f"Install {original.package} from {HOMES[original.package]}, in a version that runs on this JAX."
    return ZooError(
        f"The original, {original.module}.{original.name} (version {_version(original)}), {problem}: {cause}.",
        f"{install} {hint}".strip(),
    )


def _version(original: Original) -> str:
    try:
        return metadata.version(original.package)
    except metadata.PackageNotFoundError:
        return "unknown"


def _sha256(original: Original) -> str:
    path = importlib.import_module(original.module).__file__
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() if path else ""


@contextmanager
def _quiet_float32() -> Iterator[None]:
    """Use float32 with full-precision matrix products, and ignore warnings of third-party packages."""
    import jax
    from jax import experimental

    enable: Any = (jax if hasattr(jax, "enable_x64") else experimental).enable_x64  # pyright: ignore[reportAttributeAccessIssue]
    with enable(False), jax.default_matmul_precision("highest"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# --- checking inputs ---------------------------------------------------------------------------------------------


def _hyper(family: str, original: Original, hyper: Mapping[str, Any]) -> dict[str, Any]:
    """All hyperparameters of the family; those in ``original.unsupported`` must have the value without effect."""
    from pylo_zoo.reference import FAMILIES, REQUIRED

    known = FAMILIES[family].hyper
    if unknown := sorted(set(hyper) - set(known)):
        raise ZooError(f"hyper: unknown {', '.join(unknown)}.", f"{family} has {', '.join(known)}.")
    complete = {**known, **hyper}
    if missing := [name for name, value in complete.items() if value is REQUIRED]:
        raise ZooError(f"hyper: {', '.join(missing)} missing.", f"Set it: {family} requires it.")
    for name, neutral in original.unsupported.items():
        if complete[name] != neutral:
            raise ZooError(
                f"hyper: {name} is {complete[name]!r}, but the original of {family} has no such argument.",
                f"Leave it at {neutral!r}.",
            )
    return complete


def _check_inputs(
    original: Original, params: Params, grads: Sequence[Params], losses: Sequence[Any] | None
) -> list[float]:
    """Check shapes and lengths, and return the losses; zeros if the rule reads none."""
    shapes = {name: np.shape(p) for name, p in params.items()}
    if not shapes or not grads:
        raise ZooError("params or grads is empty.", "Pass at least one parameter and one step of gradients.")
    for t, step in enumerate(grads):
        if {name: np.shape(g) for name, g in step.items()} != shapes:
            raise ZooError(
                f"The gradients of step {t} do not fit the parameters.", "Use the names and shapes of the parameters."
            )
    if losses is None and not original.needs_loss:
        return [0.0] * len(grads)
    if losses is None or len(losses) != len(grads):
        given = count(0 if losses is None else len(losses), "loss")
        raise ZooError(f"{given} for {count(len(grads), 'step')}.", "Pass one loss per step.")
    return [float(loss) for loss in losses]


# --- interfaces of the originals ---------------------------------------------------------------------------------


def _drive_lopt(make: Any, arguments: dict, theta: Any, hyper: Any, params: Any, grads: Any, losses: Any) -> Iterator:
    """The interface of ``learned_optimization``: the state holds the parameters, and the random key is not used.

    Theta is converted to the structure of freshly initialized weights, as when a checkpoint is loaded, because the
    LSTM's state is a haiku class.
    """
    import jax
    from flax import serialization

    learned = make(**arguments)
    optimizer = learned.opt_fn(serialization.from_state_dict(learned.init(jax.random.PRNGKey(0)), theta))
    state = optimizer.init(params, num_steps=hyper.get("num_steps", len(grads)))
    for gradient, loss in zip(grads, losses, strict=True):
        state = optimizer.update(state, gradient, loss, key=jax.random.PRNGKey(0))
        yield optimizer.get_params(state)


def _drive_velo(make: Any, arguments: dict, theta: Any, *rest: Any) -> Iterator:
    """Google's class has ff_mult as a literal 100; scaling the stack of MLPs has the effect of another factor."""
    import jax

    scale = arguments.pop("ff_mult") / 100.0
    stack = jax.tree.map(lambda w: w * scale, theta["ff_mod_stack"])
    yield from _drive_lopt(make, arguments, {**theta, "ff_mod_stack": stack}, *rest)


def _drive_celo2(
    vectors: str, make: Any, arguments: dict, theta: Any, hyper: Any, params: Any, grads: Any, losses: Any
) -> Iterator:
    """The interface of ``celo2_optax``: a transformation, combined with AdamW and weight decay as in its README.

    ``vectors`` is the rule of 0-d and 1-d parameters, "learned" or "adamw". The losses are not used.
    """
    import optax

    lr, decay = hyper["lr"], hyper["weight_decay"]
    adam = {"eps": hyper["adam_eps"], "weight_decay": hyper["adam_weight_decay"]}
    if adam["weight_decay"] is None:
        adam["weight_decay"] = decay
    rules: Any = {
        "learned": optax.chain(
            make(theta, **arguments), optax.add_decayed_weights(decay), optax.scale_by_learning_rate(lr)
        ),
        "adamw": optax.adamw(lr * hyper["adam_lr_mult"], *hyper["adam_betas"], **adam),
    }
    labels = {name: "learned" if p.ndim > 1 else vectors for name, p in params.items()}
    clip = optax.identity() if hyper["clip_norm"] is None else optax.clip_by_global_norm(hyper["clip_norm"])
    optimizer = optax.chain(clip, optax.multi_transform(rules, labels))
    state = optimizer.init(params)
    for gradient in grads:
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        yield params


# --- the table ---------------------------------------------------------------------------------------------------

HOMES = {
    "learned_optimization": "https://github.com/google/learned_optimization",
    "celo": "https://github.com/amoudgl/celo",
    "celo2_optax": "https://github.com/amoudgl/celo2",
}
"""Repositories of the packages. PyPI's ``learned_optimization`` is from 2022: it lacks VeLO, has an older AdafacMLP (no
epsilon in its last feature of unfactored tensors), and requires a JAX older than the reference's."""

_PLAIN = {"lr": 1.0, "weight_decay": 0.0}
_LIMIT = {"grad_clip_val": 1000.0}
_CONTROLLED = partial(Original, needs_loss=True, unsupported=_PLAIN)

ORIGINALS: dict[str, Original] = {
    "velo": _CONTROLLED("learned_optimization.research.general_lopt.hyper_v2", "HyperV2", _drive_velo),
    "celo": _CONTROLLED("celo.optimizers.celo", "Celo", _drive_lopt, fixed={"train_phase": 2}),
    "celo-adam": _CONTROLLED("celo.optimizers.celo_adam", "Celo", _drive_lopt),
    "celo2": Original("celo2_optax", "scale_by_celo2", partial(_drive_celo2, "adamw"), unsupported=_LIMIT),
    "celo2-base": Original("celo2_optax", "scale_by_celo2", partial(_drive_celo2, "learned"), unsupported=_LIMIT),
    "adafac-mlp": Original(
        "learned_optimization.learned_optimizers.adafac_mlp_lopt",
        "AdafacMLPLOpt",
        _drive_lopt,
        unsupported={**_PLAIN, "clip_norm": None},
    ),
}
"""The families whose original is a callable JAX program. ELO and μLO have no standalone original."""
