"""Small training tasks for ``pylo-zoo train`` and ``pylo-zoo compare``.

The tasks run on two CPU cores, most of them without a network. Options set their size:

>>> make("quadratic", {"size": 4}).options["size"]
4
"""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from pylo_zoo.errors import UsageError, ZooError, did_you_mean, quoted
from pylo_zoo.experiments.tasks import downloaded, images, numbers, text
from pylo_zoo.experiments.tasks.base import Batch, Metrics, Task
from pylo_zoo.parsing import is_finite

__all__ = ["TASKS", "Batch", "Metrics", "Task", "make", "options"]

MAX_VALUE = 1_000_000_000
"""Maximum value of an integer option."""

TASKS: Mapping[str, Callable[..., Task]] = {
    "digits-mlp": images.mlp,
    "digits-cnn": images.cnn,
    "digits-vit": images.vit,
    "chars": text.language_model,
    "diabetes": numbers.regression,
    "quadratic": numbers.quadratic,
    "torchvision": downloaded.torchvision,
    "hub-text": downloaded.hub_text,
}
"""The function that builds each task; its keyword arguments are the options."""


def make(name: str, options: Mapping[str, Any] | None = None) -> Task:
    """Build the task ``name``.

    Args:
        name: a name in :data:`TASKS`, or ``module:function`` for your own task, where the function returns a
            :class:`Task`. The module may be in the current directory.
        options: keyword arguments, such as the width.

    Raises:
        ZooError: the task or the option does not exist, or the data is missing.
    """
    factory = _import_task(name) if ":" in name else _find_task(name)
    options = dict(options or {})
    try:
        known = inspect.signature(factory).parameters
    except ValueError:
        raise UsageError(f"{name} is not a Python function.", "Pass a function that returns a Task.") from None
    accepts_any = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in known.values())
    if unknown := [key for key in options if key not in known and not accepts_any]:
        listing = f"It has {', '.join(known)}." if known else "It has none."
        raise UsageError(
            f"Unknown option {quoted(unknown[0])} of the task {name}.", did_you_mean(unknown[0], known, listing)
        )
    options = _checked(name, factory, options)
    try:
        task = factory(**options)
    except ZooError:
        raise
    except Exception as error:
        if ":" not in name and isinstance(error, (MemoryError, RuntimeError)):  # torch raises RuntimeError
            raise ZooError(
                f"The task {name} with {quoted(options)} does not fit in memory.", "Use smaller options."
            ) from error
        if ":" not in name:
            raise
        line = traceback.extract_tb(error.__traceback__)[-1]
        raise ZooError(
            f"The task {name} raised {type(error).__name__}: {error}.", f"See {line.filename}, line {line.lineno}."
        ) from error
    if not isinstance(task, Task):
        raise UsageError(f"{name} returns {type(task).__name__}.", "Return a pylo_zoo.experiments.tasks.Task.")
    return task


def options(name: str) -> dict[str, Any]:
    """The options of a task in :data:`TASKS` and their defaults."""
    parameters = inspect.signature(_find_task(name)).parameters
    return {key: each.default for key, each in parameters.items() if each.default is not inspect.Parameter.empty}


def _checked(name: str, factory: Callable[..., Task], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options, with ``32.0`` as an int if the default is an integer.

    A default that is a number requires a number; one that is an integer requires a positive integer.
    """
    checked = dict(options)
    for key, value in options.items():
        parameter = inspect.signature(factory).parameters.get(key)
        default = parameter.default if parameter else None
        number = is_finite(value)
        if isinstance(default, int) and not isinstance(default, bool):
            wrong = not number or int(value) != value or not 1 <= value <= MAX_VALUE
            allowed = f"an integer from 1 to {MAX_VALUE:,}"
        elif isinstance(default, float):
            wrong, allowed = not number, "a number"
        else:
            continue
        if wrong:
            raise UsageError(f"The task {name}: {key} is {quoted(value)}.", f"It must be {allowed}.")
        checked[key] = type(default)(value)
    return checked


def _find_task(name: str) -> Callable[..., Task]:
    if name in TASKS:
        return TASKS[name]
    listing = f"Tasks: {', '.join(TASKS)}, or module:function for your own."
    raise UsageError(f"Unknown task {quoted(name)}.", did_you_mean(name, TASKS, listing))


def _import_task(name: str) -> Callable[..., Task]:
    module, _, function = name.partition(":")
    if (directory := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, directory)
    try:
        factory = getattr(importlib.import_module(module), function)
    except ImportError as error:
        raise UsageError(
            f"The task {name}: {error}.", "Run in the directory that contains the module, or install it."
        ) from error
    except AttributeError as error:
        raise UsageError(f"The task {name}: {module} has no {function!r}.", "Check the function's name.") from error
    if not callable(factory):
        raise UsageError(f"The task {name}: {function} is not a function.", "Pass a function that returns a Task.")
    return cast(Callable[..., Task], factory)
