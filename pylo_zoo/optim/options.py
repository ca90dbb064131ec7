"""The options that all optimizers share, declared once for signatures, docstrings, checks, docs and the contract table.

A constructor declares ``**options: Unpack[SharedOptions]`` and passes ``**options`` to its base class.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, TypedDict, get_type_hints

from pylo_zoo.kernels import BACKENDS
from pylo_zoo.optim.checks import check_params, require

if sys.version_info >= (3, 11):
    from typing import Unpack
else:
    from typing_extensions import Unpack  # a dependency of torch


class SharedOptions(TypedDict, total=False):
    """Keyword arguments of every optimizer.

    Args:
        nonfinite: what a step does if the loss or a gradient is NaN or infinite. ``"propagate"`` passes it to the rule,
            as torch's optimizers and the original implementations do. ``"skip"`` changes nothing (parameters,
            accumulators, loss buffer, counters) and counts the step in ``skipped_steps``. ``"raise"`` changes nothing
            and raises. The last two break compiled graphs. ``"raise"`` reads one number back from each device.
            ``"skip"`` reads none from an accelerator: the step runs, and the device decides what it writes.
        master_weights: keep a float32 copy of each 16-bit parameter in the state and update that copy. Without it,
            steps smaller than half of a parameter's last bit (2⁻⁹ to 2⁻⁸ of its value in bfloat16) are lost. Groups may
            override it.
        backend: ``"eager"`` for torch operations, ``"fused"`` for the kernels of the parameters' device, or ``"auto"``
            for kernels if they are available (:mod:`pylo_zoo.kernels`). The backends agree up to rounding and share one
            state. ``"fused"`` compiles missing kernels in the constructor, ``"auto"`` in the first step.
        graphs: ``"auto"`` captures the fused step on a GPU in a CUDA graph and replays it, with the same results;
            ``"off"`` launches its kernels one by one. Muon does not capture itself.
    """

    nonfinite: str
    master_weights: bool
    backend: str
    graphs: str


DEFAULTS: SharedOptions = {"nonfinite": "propagate", "master_weights": False, "backend": "auto", "graphs": "auto"}
CHOICES = {"nonfinite": ("propagate", "skip", "raise"), "backend": BACKENDS, "graphs": ("auto", "off")}
"""The values of options that are strings."""
PER_GROUP = frozenset(["master_weights"])
"""Options that a parameter group may override. The others are attributes of the optimizer."""
PER_OPTIMIZER = tuple(name for name in DEFAULTS if name not in PER_GROUP)
DOCS_LINE = "    options: see :class:`~pylo_zoo.optim.options.SharedOptions`.\n"
"""The line of a class docstring that :func:`expand_docs` replaces."""


class HasSharedOptions:
    """Shows the shared options in the signature and docstring of each subclass, and checks argument names."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.__signature__ = _expand_signature(cls.__init__)
        if cls.__doc__:
            cls.__doc__ = expand_docs(inspect.cleandoc(cls.__doc__), SharedOptions.__doc__ or "")

    if not TYPE_CHECKING:  # type checkers should see __init__ only

        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            """First reject a module as ``params``, and ``**options`` that set other arguments of a base class."""
            check_params(kwargs.get("params", args[0] if args else None), cls.__name__)
            parameters = cls.__signature__.parameters
            if not any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
                _check_names(cls, kwargs.keys() - parameters.keys())
            return super().__new__(cls)


def check_options(cls: type[HasSharedOptions], options: SharedOptions) -> None:
    """Raise ``TypeError`` for an unknown name, and :class:`~pylo_zoo.errors.ZooError` for an unknown value."""
    _check_names(cls, options.keys() - DEFAULTS.keys())
    for name, choices in CHOICES.items():
        value = options.get(name, choices[0])
        require(value in choices, f"{name} is {value!r}.", f"Use one of {', '.join(choices)}.")


def _check_names(cls: type[HasSharedOptions], unknown: Collection[str]) -> None:
    for name in sorted(unknown):
        raise TypeError(f"{cls.__init__.__qualname__}() got an unexpected keyword argument {name!r}")


def expand_docs(text: str, shared: str) -> str:
    """The class docstring ``text``, without indentation, with the arguments of SharedOptions' docstring ``shared``."""
    _, _, entries = inspect.cleandoc(shared).partition("Args:\n")
    return f"{text}\n".replace(DOCS_LINE, f"{entries}\n").rstrip()


def _expand_signature(constructor: Callable[..., Any]) -> inspect.Signature:
    """The signature without ``self``, and with the shared options in place of ``**options``."""
    signature = inspect.signature(constructor)
    parameters = list(signature.parameters.values())[1:]
    last = parameters[-1] if parameters else None
    if last is not None and last.kind is last.VAR_KEYWORD and "SharedOptions" in str(last.annotation):
        types = get_type_hints(SharedOptions)
        parameters[-1:] = [
            inspect.Parameter(name, last.KEYWORD_ONLY, default=default, annotation=types[name].__name__)
            for name, default in DEFAULTS.items()
        ]
    return signature.replace(parameters=parameters)


__all__ = ["CHOICES", "DEFAULTS", "PER_GROUP", "PER_OPTIMIZER", "HasSharedOptions", "SharedOptions", "Unpack"]
