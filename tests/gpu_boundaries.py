"""Boundary checks of the GPU kernels, in a separate process: ``python gpu_boundaries.py DEVICE`` (see gpu_checks.py).

Sizes one below, at and one above each block and tile; zero parameters; long vectors; and the pointer checks.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import gpu_checks
import torch
from adam_cases import AdamCase, step_adam
from gpu_checks import RULES, kernels, make_layers, make_tasks
from gpu_truth import agree, expected_of
from proceed_cases import Made, check_proceed, check_refused
from torch import Tensor

from pylo_zoo.errors import ZooError
from pylo_zoo.kernels.base import Normalized, ScratchBuffer, Task

BLOCKS = (64, 128, 256, 512, 1024)
"""TILE_X; TILE_Y, TABLE_BLOCK, MULTIPLY_BLOCK; LANES · PER_LANE; MOVE_BLOCK; ADAM_BLOCK and MIN_TILES tiles."""
VECTORS = [(block + k,) for block in BLOCKS for k in (-1, 0, 1)]
MATRICES = [(63, 127), (64, 128), (65, 129), (16, 16), (15, 17), (4, 255), (257, 3)]
LONG = [(66_001,)]


def check(name: str, tasks: Sequence[Task]) -> list[Tensor]:
    """Compare accumulators and steps with eager."""
    rule, units, hidden = RULES[name]
    layers = make_layers(rule, units, hidden)
    expected = [expected_of(task, rule, layers) for task in tasks]
    steps = kernels().steps(kernels().advance(tasks, rule, None), layers, ScratchBuffer())
    for task, step, of_task in zip(tasks, steps, expected, strict=True):
        for plane, got in {**task.state, "step": step}.items():
            agree(f"{plane} of {tuple(task.p.shape)}", got, of_task[plane])
    return steps


def check_sizes(name: str, shapes: Sequence[tuple[int, ...]]) -> None:
    check(name, make_tasks(shapes, "torch"))


def check_zero(name: str) -> None:
    """Parameters of a zero-initialized layer move because of the epsilon in ``sqrt(mean(p²) + 1e-9)``."""
    tasks = [t._replace(p=torch.zeros_like(t.p)) for t in make_tasks([(7,), (300,), (16, 16)], "torch")]
    assert all(step.abs().sum() > 0 for step in check(name, tasks))


def check_long() -> None:
    """Every element of a long vector is advanced and moved."""
    rule, units, hidden = RULES["velo"]
    (task,) = make_tasks(LONG, "torch")
    before = [x.clone() for x in (task.p, task.state["momentum"], task.state["second_moment"])]
    advanced = kernels().advance([task], rule, None)
    kernels().move(advanced, make_layers(rule, units, hidden), [0.1], [0.01])
    for old, new in zip(before, (task.p, task.state["momentum"], task.state["second_moment"]), strict=True):
        assert not (old == new).flatten().unfold(0, 64, 1).all(1).any()


def check_guard() -> None:
    """Wrong tensors are an error before anything is written."""
    rule, units, hidden = RULES["velo"]
    for name, change in {
        "a wider dtype": lambda x: x.double(),
        "a size": lambda x: x[..., :-1, :].contiguous() if x.shape[-2] > 1 else x[..., :-1].contiguous(),
        "strides": lambda x: torch.cat([x, x], -1)[..., : x.shape[-1]],
        "no state": lambda x: x.flatten()[:0],
    }.items():
        for key in ("p", "g", "momentum", "second_moment", "row", "col"):
            first, task = make_tasks([(6, 4), (6, 4)], "torch")
            if key in ("p", "g"):
                wrong = task._replace(**{key: change(getattr(task, key))})
            else:
                wrong = task._replace(state={**task.state, key: change(task.state[key])})
            if key == "col" and name == "strides":
                continue  # with one column, these strides are equivalent
            before = [x.clone() for x in (first.p, *first.state.values())]
            _refused(f"{name} of {key}", lambda a=first, b=wrong: kernels().advance([a, b], rule, None))
            assert all(map(torch.equal, before, (first.p, *first.state.values())))
    tasks = make_tasks([(6, 4)], "torch")
    layers, advanced = make_layers(rule, units, hidden), kernels().advance(tasks, rule, None)
    _refused("a coefficient less", lambda: kernels().move(advanced, layers, [], [0.0]))
    _refused("two scales", lambda: kernels().advance(tasks, rule, torch.ones(2)))
    _refused("narrow layers", lambda: kernels().move(advanced, [(w[:, 1:], b) for w, b in layers], [0.1], [0.0]))
    p = tasks[0].p
    adam = AdamCase(p, p, p[None, :3], p[None], 1, (0.9, 0.95), 1e-8, 0.0, 0.1, 0.0, 1.0, False)
    _refused("a short moment", lambda: step_adam(kernels(), [adam], None))
    _refused("a short step", lambda: kernels().move_normalized([Normalized(p, p[:3], (-1,), 1e-9)], [0.1], [0.0]))


def _few(name: str, dtype: torch.dtype = torch.float32) -> Made:
    rule, units, hidden = RULES[name]
    return (
        make_tasks([(7,), (5, 3), (16, 16), (8, 4, 3, 3)], "torch", dtype=dtype),
        rule,
        make_layers(rule, units, hidden),
    )


def check_stopped(name: str, dtype: torch.dtype) -> None:
    check_proceed(kernels(), lambda: _few(name, dtype), gpu_checks.DEVICE)


def check_wrong_proceed() -> None:
    check_refused(kernels(), lambda: _few("velo"), gpu_checks.DEVICE)


def _refused(what: str, call: Callable[[], Any]) -> None:
    try:
        call()
    except ZooError:
        return
    raise AssertionError(f"{what} is not refused")


CHECKS: dict[str, Callable[[], None]] = {
    **{f"vectors {name}": partial(check_sizes, name, VECTORS) for name in ("velo", "adafac-32")},
    **{f"matrices {name}": partial(check_sizes, name, MATRICES) for name in ("velo", "celo2-relu")},
    **{f"zero parameters {name}": partial(check_zero, name) for name in ("velo", "celo2-relu", "adafac-4")},
    "long vectors": check_long,
    "guard": check_guard,
    **{f"proceed {name}": partial(check_stopped, name, torch.float32) for name in ("velo", "celo2-relu", "adafac-32")},
    "proceed bfloat16": partial(check_stopped, "velo", torch.bfloat16),
    "wrong proceed": check_wrong_proceed,
}


def main() -> None:
    gpu_checks.DEVICE = sys.argv[1]
    gpu_checks.SHARED_DECAYS = gpu_checks.decays()
    torch.set_num_threads(1)
    results: dict[str, str | None] = {}
    for name, run in CHECKS.items():
        try:
            run()
            results[name] = None
        except Exception:
            results[name] = traceback.format_exc()
    print(json.dumps(results))


if __name__ == "__main__":
    main()
