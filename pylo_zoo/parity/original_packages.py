"""The research groups' own packages: the table of original optimizers, their interfaces, and how they are imported.

The packages are optional: ``learned_optimization`` (VeLO, AdafacMLP), ``celo`` (Celo, celo-adam) and ``celo2_optax``
(CELO2, CELO2-base). They are imported only when a function of this module is called.
"""

from __future__ import annotations

import hashlib
import importlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from pylo_zoo.errors import ZooError

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


# --- importing ---------------------------------------------------------------------------------------------------


def find_original(family: str) -> Original:
    if family in ORIGINALS:
        return ORIGINALS[family]
    raise ZooError(f"Unknown original {family!r}.", f"Choose one of {', '.join(ORIGINALS)}.")


def load(original: Original) -> Callable[..., Any]:
    """Import an original. Any exception of the import becomes one error."""
    try:
        with quiet_float32():
            return getattr(importlib.import_module(original.module), original.name)
    except Exception as error:
        raise failed(original, "cannot be imported", error) from error


def failed(original: Original, problem: str, error: Exception, hint: str = "") -> ZooError:
    cause = f"{type(error).__name__}: {error}".splitlines()[0]
    install = f"Install {original.package} from {HOMES[original.package]}, in a version that runs on this JAX."
    return ZooError(
        f"The original, {original.module}.{original.name} (version {version(original)}), {problem}: {cause}.",
        f"{install} {hint}".strip(),
    )


def version(original: Original) -> str:
    try:
        return metadata.version(original.package)
    except metadata.PackageNotFoundError:
        return "unknown"


def sha256(original: Original) -> str:
    path = importlib.import_module(original.module).__file__
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() if path else ""


@contextmanager
def quiet_float32() -> Iterator[None]:
    """Use float32 with full-precision matrix products, and ignore warnings of third-party packages."""
    import jax
    from jax import experimental

    enable: Any = (jax if hasattr(jax, "enable_x64") else experimental).enable_x64  # pyright: ignore[reportAttributeAccessIssue]
    with enable(False), jax.default_matmul_precision("highest"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


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
