"""How to train with a checkpoint, in lines to copy: the same wherever they are shown."""

from __future__ import annotations

import inspect


def training(family: str, weights: str) -> list[str]:
    """The two lines of Python that make the optimizer of ``family`` with ``weights``, in terms of a ``model``.

    Args:
        family: of the checkpoint.
        weights: what ``weights=`` is given: a registry name, a directory, or an address on the Hub.
    """
    from pylo_zoo import optim

    optimizer = optim.optimizer_class(family)
    name = optimizer.__name__
    arguments = inspect.signature(optimizer).parameters
    # Layouts belong to the modules, and so does what goes to AdamW; CELO2-base has its own rule for everything.
    everything = ', learned="*"' if family == "celo2-base" else ""
    steps = "num_steps=10_000, " if "num_steps" in arguments else ""
    ours = getattr(optim, name, None) is optimizer
    imports = [f"from pylo_zoo.optim import {name}, param_groups"]
    if not ours:  # another package's
        imports = [f"from pylo_zoo.optim import param_groups; from {optimizer.__module__} import {name}"]
    return [*imports, f'opt = {name}(param_groups(model{everything}), {steps}weights="{weights}")']
