"""Example code for training with a checkpoint. Every command that shows such code uses this text."""

from __future__ import annotations

import inspect


def training(family: str, weights: str) -> list[str]:
    """Two lines of Python that build the optimizer of ``family`` for a model called ``model``.

    Args:
        family: the checkpoint's family.
        weights: the value of the ``weights`` argument: a registry name, a directory or a Hub address.
    """
    from pylo_zoo import converters, optim

    optimizer = optim.optimizer_class(family)
    name = optimizer.__name__
    arguments = inspect.signature(optimizer).parameters
    learn_all = ', learned="*"' if converters.get(family).learns_all else ""
    steps = "num_steps=10_000, " if "num_steps" in arguments else ""
    imports = [f"from pylo_zoo.optim import {name}, param_groups"]
    if getattr(optim, name, None) is not optimizer:  # from another package
        imports = [f"from pylo_zoo.optim import param_groups; from {optimizer.__module__} import {name}"]
    return [*imports, f'opt = {name}(param_groups(model{learn_all}), {steps}weights="{weights}")']
