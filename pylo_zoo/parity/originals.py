"""The JAX reference held live against the groups' own optimizers, where a user has those importable.

The reference judges the torch side; golden trajectories judge the reference. This asks the originals themselves, on
any checkpoint, parameters and gradients: ``learned_optimization`` (VeLO, AdafacMLP), ``celo`` (Celo, celo-adam) and
``celo2_optax`` (CELO2, CELO2-base). None is a dependency, and none is imported before a function here is called.

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
from pylo_zoo.errors import ZooError

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
"""Of a parameter's largest movement. Two float32 programs part by some 1e-5 over a dozen steps, by rounding alone; a
weight off by one per cent leaves 1e-3 and more. tests/golden/README.md has the same bar for the same reason."""
FLOOR = 4 * float(np.finfo(np.float32).eps)
"""Of a parameter's largest value: what keeping it in float32 may cost, taken off the error first."""

Params = Mapping[str, Any]
"""Name to array, in JAX's layout."""


@dataclass(frozen=True)
class Original:
    """Where one family's own implementation is found, and how it is run.

    Attributes:
        module, name: the class or function, called with the fields of the architecture and the behaviour.
        drive: ``(callable, arguments, theta, hyper, params, grads, losses)`` to the params after each step.
        fixed: further arguments of the callable.
        needs_loss: whether the rule reads the loss.
        only: hyperparameters that the original does not have, with the one value at which ours does nothing.
    """

    module: str
    name: str
    drive: Callable[..., Iterator[Params]]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    needs_loss: bool = False
    only: Mapping[str, Any] = field(default_factory=dict)

    @property
    def package(self) -> str:
        """The name that a user imports."""
        return self.module.partition(".")[0]


@dataclass(frozen=True, eq=False)
class Run:
    """What the original computed.

    Attributes:
        original: dotted name of what ran.
        version: its distribution's version, or "unknown".
        sha256: of the source file that ran, or "": ``learned_optimization`` has called itself 0.0.1 for years.
        params: after each step, name to float32 array.
    """

    original: str
    version: str
    sha256: str
    params: list[dict[str, np.ndarray]]


@dataclass(frozen=True, eq=False)
class Check:
    """The reference beside the original, from the same start over the same gradients and losses.

    Attributes:
        run: the original's.
        reference: the reference's params after each step.
        errors: each parameter's worst error over the run, past the floor and relative to its largest movement.
    """

    run: Run
    reference: list[dict[str, np.ndarray]]
    errors: dict[str, float]

    @property
    def agrees(self) -> bool:
        """Whether every parameter is within :data:`TOLERANCE`; a NaN is not."""
        return all(error <= TOLERANCE for error in self.errors.values())

    @property
    def worst(self) -> tuple[str, float]:
        """The parameter that is furthest off, and by how much; a NaN is furthest."""
        return max(self.errors.items(), key=lambda item: (np.isnan(item[1]), item[1]))


# --- asking ------------------------------------------------------------------------------------------------------


def available() -> dict[str, str]:
    """The originals' packages that can be imported here, with their versions ("unknown" where none is recorded).

    This imports them, which can take seconds. One package may hold some families' originals and not others'.
    """
    found = {}
    for original in ORIGINALS.values():
        try:
            _load(original)
        except ZooError:
            continue
        found[original.package] = _version(original)
    return found


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
    """Run a family's original, in float32.

    Args:
        family: a key of :data:`ORIGINALS`.
        theta: the meta-parameters, nested as ``flax.serialization.msgpack_restore`` returns them.
        architecture, behavior: the fields of the family's records in ``pylo_zoo.config``.
        hyper: hyperparameters by the torch constructor's names; a missing one takes its default. In CELO2, AdamW takes
            the 0-d and 1-d parameters.
        params: the start, name to array in JAX's layout; ``grads``: the same a step; ``losses``: a number a step.

    Raises:
        ZooError: no original of this family is known, or importable; it fails to run; it has no such
            hyperparameter; or the inputs do not fit each other.
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
        given = jax.tree.map(lambda x: jnp.asarray(x, "float32"), (theta, dict(params), [*map(dict, grads)], losses))
        weights, start, steps, seen = given
        try:
            moved = list(original.drive(make, arguments, weights, complete, start, steps, seen))
        except Exception as error:
            raise _failed(original, "fails to run", error, "Check that theta is of this architecture.") from error
    trajectory = [{name: np.asarray(p) for name, p in step.items()} for step in moved]
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
    """Run a family's original and our reference, and compare them; arguments and errors of :func:`run_original`."""
    records: dict[str, Any] = {"architecture": architecture, "behavior": behavior, "hyper": hyper}
    run = run_original(family, theta, **records, params=params, grads=grads, losses=losses)
    from pylo_zoo.reference import build

    trajectory = []
    with _quiet_float32():
        reference = build(family, theta, **records)
        now: Any = params
        state = reference.init(params)
        for t, gradient in enumerate(grads):
            now, state = reference.update(now, gradient, state, None if losses is None else losses[t])
            trajectory.append({name: np.asarray(p) for name, p in now.items()})
    return Check(run, trajectory, {name: _error(name, params, run.params, trajectory) for name in params})


def _error(name: str, start: Params, expected: list[dict[str, np.ndarray]], got: list[dict[str, np.ndarray]]) -> float:
    """The worst error of one parameter, past the floor, of its largest movement in ``expected``."""
    original, ours = (np.stack([step[name].astype(np.float64) for step in run]) for run in (expected, got))
    movement = np.abs(original - np.asarray(start[name], np.float32)).max()
    error = np.maximum(np.abs(ours - original).max() - FLOOR * np.abs(original).max(), 0)  # lets a NaN through
    return float(error) if error == 0 else float(np.divide(error, movement)) if movement else float("inf")


# --- finding -----------------------------------------------------------------------------------------------------


def _original(family: str) -> Original:
    if family in ORIGINALS:
        return ORIGINALS[family]
    raise ZooError(f"No original in JAX is known here for {family}.", f"There is one for {', '.join(ORIGINALS)}.")


def _load(original: Original) -> Callable[..., Any]:
    """Import an original. Whatever goes wrong in a third party's import is one error here: it is not importable."""
    try:
        with _quiet_float32():
            return getattr(importlib.import_module(original.module), original.name)
    except Exception as error:
        raise _failed(original, "cannot be imported", error, "No package index has a whole one.") from error


def _failed(original: Original, what: str, error: Exception, hint: str) -> ZooError:
    said = f"{type(error).__name__}: {error}".splitlines()[0]
    return ZooError(
        f"The original, {original.module}.{original.name} (version {_version(original)}), {what}: {said}.",
        f"Install {original.package} from {HOMES[original.package]}, in a version that runs on this JAX. {hint}",
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
    """float32 whatever the caller has enabled, products in full precision, and no third party's warnings."""
    import jax
    from jax import experimental

    enable: Any = (jax if hasattr(jax, "enable_x64") else experimental).enable_x64  # pyright: ignore[reportAttributeAccessIssue]
    with enable(False), jax.default_matmul_precision("highest"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# --- checking what was given -------------------------------------------------------------------------------------


def _hyper(family: str, original: Original, hyper: Mapping[str, Any]) -> dict[str, Any]:
    """All hyperparameters of the family, those in ``original.only`` at the value where they do nothing."""
    from pylo_zoo.reference import FAMILIES, REQUIRED

    known = FAMILIES[family].hyper
    if unknown := sorted(set(hyper) - set(known)):
        raise ZooError(f"hyper: unknown {', '.join(unknown)}.", f"{family} knows {', '.join(known)}.")
    complete = {**known, **hyper}
    if missing := [name for name, value in complete.items() if value is REQUIRED]:
        raise ZooError(f"hyper: {', '.join(missing)} missing.", f"{family} needs it.")
    for name, neutral in original.only.items():
        if complete[name] != neutral:
            raise ZooError(
                f"hyper: {name} is {complete[name]!r}, and the original of {family} has no such thing to set.",
                f"Leave it at {neutral!r}.",
            )
    return complete


def _check_inputs(
    original: Original, params: Params, grads: Sequence[Params], losses: Sequence[Any] | None
) -> list[float]:
    """The losses, zeros where none are read."""
    shapes = {name: np.shape(p) for name, p in params.items()}
    if not shapes or not grads:
        raise ZooError("There is nothing to run.", "Give at least one parameter and one step of gradients.")
    for t, step in enumerate(grads):
        if {name: np.shape(g) for name, g in step.items()} != shapes:
            raise ZooError(f"The gradients of step {t} do not fit the parameters.", "Names and shapes must be theirs.")
    if losses is None and not original.needs_loss:
        return [0.0] * len(grads)
    if losses is None or len(losses) != len(grads):
        given = 0 if losses is None else len(losses)
        raise ZooError(f"{given} losses are given for {len(grads)} steps.", "Give one loss a step.")
    return [float(loss) for loss in losses]


# --- driving -----------------------------------------------------------------------------------------------------


def _drive_lopt(make: Any, arguments: dict, theta: Any, hyper: Any, params: Any, grads: Any, losses: Any) -> Iterator:
    """``learned_optimization``'s interface: the state holds the params; a key is split, and never used.

    Theta takes the structure of a fresh one, as where a checkpoint is loaded: the LSTM's state is a class of haiku's.
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
    """Google's class has ff_mult as a literal 100; any other factor is the same as a scaled stack of MLPs."""
    import jax

    scale = arguments.pop("ff_mult") / 100.0
    stack = jax.tree.map(lambda w: w * scale, theta["ff_mod_stack"])
    yield from _drive_lopt(make, arguments, {**theta, "ff_mod_stack": stack}, *rest)


def _drive_celo2(
    vectors: str, make: Any, arguments: dict, theta: Any, hyper: Any, params: Any, grads: Any, losses: Any
) -> Iterator:
    """``celo2_optax``'s interface: a transformation, composed with AdamW and decay as its README says.

    ``vectors`` is the rule of 0-d and 1-d parameters, "learned" or "adamw"; nothing reads the losses.
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
"""Where the packages are published. ``learned_optimization`` is on PyPI too, as of 2022: without VeLO, with an older
AdafacMLP (no epsilon in its last feature of unfactored tensors), and for a JAX older than the reference's."""

_PLAIN = {"lr": 1.0, "weight_decay": 0.0}
_LIMIT = {"grad_clip_val": 1000.0}
_CONTROLLED = partial(Original, needs_loss=True, only=_PLAIN)

ORIGINALS: dict[str, Original] = {
    "velo": _CONTROLLED("learned_optimization.research.general_lopt.hyper_v2", "HyperV2", _drive_velo),
    "celo": _CONTROLLED("celo.optimizers.celo", "Celo", _drive_lopt, fixed={"train_phase": 2}),
    "celo-adam": _CONTROLLED("celo.optimizers.celo_adam", "Celo", _drive_lopt),
    "celo2": Original("celo2_optax", "scale_by_celo2", partial(_drive_celo2, "adamw"), only=_LIMIT),
    "celo2-base": Original("celo2_optax", "scale_by_celo2", partial(_drive_celo2, "learned"), only=_LIMIT),
    "adafac-mlp": Original(
        "learned_optimization.learned_optimizers.adafac_mlp_lopt",
        "AdafacMLPLOpt",
        _drive_lopt,
        only={**_PLAIN, "clip_norm": None},
    ),
}
"""The families whose original is a JAX program that can be called; ELO's and μLO's have none that stands alone."""
