"""Small real training tasks, for ``train``, ``compare`` and for seeing what an optimizer does.

All of them run on two CPU cores without a network, and grow by options:

>>> make("quadratic", {"size": 4}).options["size"]
4
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from pylo_zoo import config
from pylo_zoo.errors import ZooError, quoted
from pylo_zoo.tasks import elsewhere, images, numbers, text
from pylo_zoo.tasks.base import Batch, Metrics, Task

__all__ = ["TASKS", "Batch", "Metrics", "Task", "make", "options"]

MOST = 1_000_000_000
"""Of an option that counts something."""

TASKS: Mapping[str, Callable[..., Task]] = {
    "digits-mlp": images.mlp,
    "digits-cnn": images.cnn,
    "digits-vit": images.vit,
    "chars": text.language_model,
    "diabetes": numbers.regression,
    "quadratic": numbers.quadratic,
    "torchvision": elsewhere.torchvision,
    "hub-text": elsewhere.hub_text,
}
"""What makes each task; its keyword arguments are the task's options."""


def make(name: str, options: Mapping[str, Any] | None = None) -> Task:
    """The task called ``name``.

    Args:
        name: of :data:`TASKS`, or ``module:function`` for one's own, whose function returns a :class:`Task`; the
            current directory is looked in, too.
        options: keyword arguments, such as the width.

    Raises:
        ZooError: there is no such task or option, or its data is missing.
    """
    factory = _own(name) if ":" in name else _known(name)
    options = dict(options or {})
    try:
        known = inspect.signature(factory).parameters
    except ValueError:
        raise ZooError(f"{name} is no function of Python's.", "It has to return a pylo_zoo.tasks.Task.") from None
    anything = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in known.values())
    if unknown := [key for key in options if key not in known and not anything]:
        near = difflib.get_close_matches(unknown[0], known, n=1)
        listing = f"It has {', '.join(known)}." if known else "It has none."
        raise ZooError(
            f"The task {name} has no option {quoted(unknown[0])}.",
            f"Did you mean {near[0]!r}? {listing}" if near else listing,
        )
    _check_types(name, factory, options)
    try:
        task = factory(**options)
    except ZooError:
        raise
    except Exception as error:
        if ":" not in name and isinstance(error, (MemoryError, RuntimeError)):  # torch's error for too little memory
            raise ZooError(
                f"The task {name} with {quoted(options)} does not fit in memory.", "Make it smaller."
            ) from error
        if ":" not in name:
            raise
        line = traceback.extract_tb(error.__traceback__)[-1]
        raise ZooError(
            f"The task {name} raised {type(error).__name__}: {error}.", f"See {line.filename}, line {line.lineno}."
        ) from error
    if not isinstance(task, Task):
        raise ZooError(f"{name} returns {type(task).__name__}.", "It has to return a pylo_zoo.tasks.Task.")
    return task


def options(name: str) -> dict[str, Any]:
    """The options of a task of :data:`TASKS` and their defaults."""
    parameters = inspect.signature(_known(name)).parameters
    return {key: each.default for key, each in parameters.items() if each.default is not inspect.Parameter.empty}


def _check_types(name: str, factory: Callable[..., Task], options: Mapping[str, Any]) -> None:
    """Numbers where the default is a number, and positive where it is a count."""
    for key, value in options.items():
        parameter = inspect.signature(factory).parameters.get(key)
        default = parameter.default if parameter else None
        number = config.is_finite(value)
        if isinstance(default, int) and not isinstance(default, bool):
            wrong = not number or int(value) != value or not 1 <= value <= MOST
            what = f"a whole number from 1 to {MOST:,}"
        elif isinstance(default, float):
            wrong, what = not number, "a number"
        else:
            continue
        if wrong:
            raise ZooError(f"The task {name}: {key} is {quoted(value)}.", f"It has to be {what}.")


def _known(name: str) -> Callable[..., Task]:
    if name in TASKS:
        return TASKS[name]
    near = difflib.get_close_matches(name.lower().replace("_", "-"), TASKS, n=1)
    listing = f"Tasks: {', '.join(TASKS)}; or module:function for one of your own."
    raise ZooError(f"There is no task {quoted(name)}.", f"Did you mean {near[0]!r}? {listing}" if near else listing)


def _own(name: str) -> Callable[..., Task]:
    module, _, function = name.partition(":")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module), function)
    except ImportError as error:
        raise ZooError(
            f"The task {name}: {error}.", "Run from the directory that the module lies in, or install it."
        ) from error
    except AttributeError as error:
        raise ZooError(f"The task {name}: {module} has no {function!r}.", "Check the function's name.") from error
    if not callable(found):
        raise ZooError(f"The task {name}: {function} is no function.", "It has to return a pylo_zoo.tasks.Task.")
    return cast(Callable[..., Task], found)
