"""Checks of the GPU kernels against the eager implementation, in a separate process: ``python gpu_checks.py DEVICE``.

With ``TRITON_INTERPRET=1`` and DEVICE cpu, Triton's interpreter runs the kernels; with DEVICE cuda, a GPU does. The
process prints a JSON object: for each check its error text or null, and its margins (margins.py).
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import margins
import torch
from adam_cases import AdamCase, step_adam
from gpu_truth import agree, compute_eager, expected, expected_of, inputs_of
from margins import check_close
from rounding import Simulation, draws_for, one_rounding, simulate
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pylo_zoo.kernels.base import Normalized, ScratchBuffer, Task
from pylo_zoo.ops.accumulators import Decays, new_accumulators
from pylo_zoo.ops.adam import adam_direction
from pylo_zoo.ops.conditioning import moments as moments_of
from pylo_zoo.ops.features import FEATURES
from pylo_zoo.ops.layout import LAYOUTS, Layout, axes_of
from pylo_zoo.ops.mlp import Layer
from pylo_zoo.ops.rule import Rule, adafac_rule, celo2_rule, velo_rule

DEVICE = sys.argv[1] if __name__ == "__main__" else "cpu"
SHAPES = [(1,), (7,), (300,), (5, 3), (32, 32), (16, 1), (6, 4, 5), (2, 3, 5, 5), (4, 8, 16)]
CONVOLUTIONS = {"torch": (8, 8, 3, 3), "jax": (3, 3, 8, 8), "torch-stacked": (2, 2, 8, 4)}
FEW = [(7,), (300,), (5, 3), (16, 16), (8, 4, 3, 3)]
RULES: dict[str, tuple[Rule, int, int]] = {
    "velo": (velo_rule(0.001), 4, 2),
    "celo2-relu": (celo2_rule("relu", 0.0, True), 8, 2),
    "celo2-tanh": (celo2_rule("tanh", 0.5, False), 8, 3),
    "adafac-4": (adafac_rule(0.001), 4, 2),
    "adafac-32": (adafac_rule(0.001), 32, 2),
    "adafac-20": (adafac_rule(0.001), 20, 1),
}
"""Rule, hidden units, hidden layers."""
REGIMES = ("tiny", "huge", "zeros", "spikes", "nan", "overflow", "nan-to-num")


def decays(velocity: float = 0.999) -> Decays:
    of_three = torch.tensor([0.9, 0.99, 0.999], device=DEVICE)
    return Decays(of_three, torch.tensor([velocity], device=DEVICE), of_three.clone())


def make_tasks(
    shapes: Sequence[tuple[int, ...]], layout: Layout, regime: str = "ordinary", dtype: torch.dtype = torch.float32
) -> list[Task]:
    generator = torch.Generator().manual_seed(len(regime))

    def normal(shape: Sequence[int]) -> Tensor:
        return torch.randn(shape, generator=generator)

    def task(shape: tuple[int, ...]) -> Task:
        p, g, axes = normal(shape), normal(shape), axes_of(shape, layout)
        state = {name: normal(each.shape).square() * 0.1 for name, each in new_accumulators(p, axes).items()}
        factor = {"tiny": 1e-12, "huge": 1e6, "zeros": 0.0, "overflow": 1e25}.get(regime, 1.0)
        g *= factor
        if regime in ("tiny", "zeros"):
            state = {name: each * (factor if name == "momentum" else factor**2) for name, each in state.items()}
        if regime == "zeros":
            p.zero_()
        if regime == "spikes":
            g.view(-1)[:: max(2, g.numel() // 3)] *= 1e4
        if regime in ("nan", "nan-to-num"):
            g.view(-1)[g.numel() // 2] = torch.nan
        if regime == "nan-to-num":
            g.view(-1)[0] = torch.inf
        limit = torch.inf if regime in ("overflow", "nan-to-num") else 1000.0
        state = {name: each.to(DEVICE) for name, each in state.items()}
        p, g = p.to(DEVICE, dtype), g.to(DEVICE, dtype)
        return Task(p, g, state, axes, SHARED_DECAYS, limit, regime == "nan-to-num")

    return [task(shape) for shape in shapes]


def make_layers(rule: Rule, units: int, hidden: int, many: int | None = None) -> list[Layer]:
    """Random layers of one network, or of ``many``."""
    generator = torch.Generator().manual_seed(units)
    sizes = [28 if rule.time else 30, *[units] * hidden, 2 if rule.time else 3]
    lead = () if many is None else (many,)

    def layer(inputs: int, outputs: int) -> Layer:
        weight = torch.randn((*lead, outputs, inputs), generator=generator) * 0.5
        return weight.to(DEVICE), (torch.randn((*lead, outputs), generator=generator) * 0.5).to(DEVICE)

    return [layer(*pair) for pair in pairwise(sizes)]


def kernels() -> Any:
    from pylo_zoo.kernels.gpu import GpuKernels

    return KEPT.setdefault("kernels", GpuKernels())


def check_steps(name: str, layout: Layout, regime: str, shapes: Sequence[tuple[int, ...]]) -> None:
    """Compare accumulators, then steps."""
    rule, units, hidden = RULES[name]
    tasks, layers = make_tasks(shapes, layout, regime), make_layers(rule, units, hidden)
    references = [expected_of(task, rule, layers) for task in tasks]
    advanced = kernels().advance(tasks, rule, None)
    for task, step, of_task in zip(tasks, kernels().steps(advanced, layers, ScratchBuffer()), references, strict=True):
        assert (step.shape, step.dtype) == (task.p.shape, torch.float32)
        for plane, got in {**task.state, "step": step}.items():
            agree(f"{plane} of {tuple(task.p.shape)}", got, of_task[plane])


def check_features(name: str) -> None:
    """Compare factors and the normalization scales, feature by feature."""
    from pylo_zoo.kernels.gpu.elements import CANDIDATES

    rule, *_ = RULES[name]
    tasks = make_tasks(SHAPES, "torch")

    def scales(task: Task, dtype: torch.dtype) -> dict[str, Tensor]:
        inputs = inputs_of(task, rule, dtype)[1]
        names = sorted({feature.replace("diag", "row") for feature in CANDIDATES})
        channels = {name: FEATURES[name](inputs) for name in names}
        return {
            f"{name} {k}": torch.rsqrt(rule.norm_eps + x.square().mean())
            for name, factors in channels.items()
            for k, x in enumerate(factors)
        }

    references = [expected(partial(scales, task)) for task in tasks]
    for results in kernels().advance(tasks, rule, None).batches:
        for group, place in enumerate(results.batch.places):
            for feature, members in CANDIDATES.items():
                for channel, k in enumerate(members):
                    if k not in results.inputs.select:
                        continue
                    got = results.scales[group, results.inputs.select.index(k), 0]
                    of_task = references[place.index][f"{feature.replace('diag', 'row')} {channel}"]
                    agree(f"scale of {feature} {channel} of {place.shape}", got.view(()), of_task)


def check_moments() -> None:
    """Compare the means of the old parameter and accumulators."""
    tasks = make_tasks(FEW, "torch")

    def means(task: Task, dtype: torch.dtype) -> dict[str, Tensor]:
        result = moments_of(task.p.to(dtype), *(task.state[name].to(dtype) for name in ("momentum", "second_moment")))
        return {str(k): each for k, each in enumerate(result)}

    for name in ("velo", "celo2-relu"):
        references = [expected(partial(means, task)) for task in tasks]
        result = kernels().moments(kernels().advance(tasks, RULES[name][0], None, moments=True))
        assert result.shape == (len(tasks), 9)
        for got, of_task in zip(result, references, strict=True):
            for k in range(9):
                agree(f"moment {k}, {name}", got[k], of_task[str(k)])


def check_normalized() -> None:
    """Compare CELO2's last pass, per matrix."""
    generator = torch.Generator().manual_seed(0)
    for shape, over in (((64, 30), (-2, -1)), ((8, 4, 3, 3), (-4, -3)), ((7,), (-1,))):
        for dtype in (torch.float32, torch.bfloat16):
            p, step = (torch.randn(shape, generator=generator).to(DEVICE) for _ in range(2))
            p = p.to(dtype)
            tasks, references = [], []
            rates, decays = [0.1, 0.2, 0.3], [0.0, 0.01, 0.02]
            for k in range(3):  # of one shape, so they are moved together
                tasks.append(Normalized(p + k, step * (k - 1), over, 1e-9))
                moved = partial(move_normalized, tasks[k], rates[k], decays[k], tasks[k].p.double())
                references.append(simulate(moved, draws=draws_for(p.numel())))
            kernels().move_normalized(tasks, rates, decays)
            for task, of_task in zip(tasks, references, strict=True):
                rounded_once(f"{tuple(task.p.shape)} {dtype}", task.p, of_task)


def move_normalized(task: Normalized, rate: float, decay: float, p: Tensor) -> list[Tensor]:
    step = task.step.double()
    normalized = step * torch.rsqrt(1e-9 + step.square().mean(dim=task.over, keepdim=True))
    return [p - decay * p - rate * normalized]


def rounded_once(what: str, p: Tensor, simulation: Simulation) -> None:
    """The kernel computes in float32 and rounds the parameter once; only the excess over that rounding is checked."""
    truth = simulation.truth[0].cpu()
    excess = (p.detach().cpu().double() - truth).abs() - one_rounding(truth, p.dtype)
    margins.check(excess.clamp(min=0).max().item(), simulation.distance(0), what)


def check_move(dtype: torch.dtype, name: str, of_gradient: torch.dtype | None = None) -> None:
    """Moved parameters with per-parameter networks, coefficients and shrinkage, and with scaled gradients."""
    rule, units, hidden = RULES[name]
    tasks = [task._replace(g=task.g.to(of_gradient or dtype)) for task in make_tasks(FEW, "torch", dtype=dtype)]
    layers = make_layers(rule, units, hidden, len(tasks))
    coefficient, shrink = [0.1 / (k + 1) for k in range(len(tasks))], [0.01 * k for k in range(len(tasks))]

    def moved(k: int) -> list[Tensor]:
        step = compute_eager(tasks[k], rule, [(weight[k], bias[k]) for weight, bias in layers], torch.float64, 0.5).step
        p = tasks[k].p.double()
        return [p - coefficient[k] * step - shrink[k] * p]

    references = [simulate(partial(moved, k), draws=draws_for(task.p.numel())) for k, task in enumerate(tasks)]
    advanced = kernels().advance(tasks, rule, torch.tensor(0.5, device=DEVICE))
    factor = coefficient if dtype == torch.float32 else torch.tensor(coefficient, device=DEVICE)
    kernels().move(advanced, layers, factor, shrink)
    for task, of_task in zip(tasks, references, strict=True):
        rounded_once(f"{tuple(task.p.shape)} {dtype}", task.p, of_task)


def check_adam(dtype: torch.dtype) -> None:
    """Three steps of AdamW and NAdamW; each starts from the kernel's previous result."""
    shapes = [(1,), (7,), (33, 32), (64, 64)]
    tasks = make_tasks(shapes, "torch", dtype=dtype)
    moments = [[torch.zeros(1, *shape, device=DEVICE) for _ in range(2)] for shape in shapes]
    betas, eps, root, rate, decay = (0.9, 0.95), 1e-8, 1e-10, 0.02, 0.003
    single = torch.tensor(betas, dtype=torch.float32).double().to(DEVICE)
    for step in (1, 2, 3):
        inputs, references = [], []
        for k, task in enumerate(tasks):
            nesterov, count = k % 2 == 1, torch.tensor(step, device=DEVICE)
            m, v = moments[k]
            inputs.append(AdamCase(task.p, task.g, m, v, step, betas, eps, root, rate, decay, 0.7, nesterov))
            start = [task.p.double(), *(each.double() for each in moments[k])]

            def moved(
                g: Tensor = task.g, start: list[Tensor] = start, count: Tensor = count, nesterov: bool = nesterov
            ) -> list[Tensor]:
                p, m, v = (each.clone() for each in start)
                clipped = (g.double() * 0.5).clamp(-0.7, 0.7)
                direction = adam_direction(m, v, clipped, count, (single[:1], single[1:]), eps, root, nesterov)
                return [p - decay * p - rate * direction, m, v]

            references.append(simulate(moved, draws=draws_for(task.p.numel())))
        step_adam(kernels(), inputs, torch.tensor(0.5, device=DEVICE))
        for k, task in enumerate(tasks):
            rounded_once(f"step {step}, {tuple(task.p.shape)}", task.p, references[k])
            for place, got in enumerate(moments[k], 1):
                what = f"moment {place} in step {step}, {tuple(task.p.shape)}"
                check_close(got, references[k].truth[place].cpu(), references[k].distance(place), what)


def _stepped(tasks: Sequence[Task], rule: Rule, layers: Sequence[Layer]) -> list[Tensor]:
    return kernels().steps(kernels().advance(tasks, rule, None), layers, ScratchBuffer())


def check_alone() -> None:
    """A parameter's step is bit-identical alone, together with others, and repeated."""
    cases: list[tuple[str, Layout]] = [("velo", "jax"), ("celo2-relu", "torch"), ("adafac-32", "torch-stacked")]
    for name, layout in cases:
        rule, units, hidden = RULES[name]
        layers = make_layers(rule, units, hidden)
        shapes = [(5, 3), (9, 16), (7,), (3, 8, 4)]
        together = _stepped(make_tasks(shapes, layout), rule, layers)
        again = _stepped(make_tasks(shapes, layout), rule, layers)
        alone = [_stepped([task], rule, layers)[0] for task in make_tasks(shapes, layout)]
        for a, b, c in zip(together, again, alone, strict=True):
            assert torch.equal(a, b)
            assert torch.equal(a, c)


def check_long() -> None:
    """A parameter that takes many programs, each of which processes several tiles."""
    rule, units, hidden = RULES["velo"]
    shapes, layers = [(70, 60), (2400,)], make_layers(rule, units, hidden)
    tasks = make_tasks(shapes, "torch")
    references = [expected_of(task, rule, layers)["step"] for task in tasks]
    for task, got, of_task in zip(tasks, _stepped(tasks, rule, layers), references, strict=True):
        agree(f"step of {tuple(task.p.shape)}", got, of_task)


def check_corrupted() -> None:
    """The comparison detects a change of one weight by a thousandth."""
    for name in ("velo", "adafac-32"):
        rule, units, hidden = RULES[name]
        tasks, layers = make_tasks([(32, 32)], "torch"), make_layers(rule, units, hidden)
        reference = expected_of(tasks[0], rule, layers)["step"]
        layers[0][0][1, 2] *= 1.001
        (step,) = _stepped(tasks, rule, layers)
        try:
            with margins.without_recording():
                agree("step", step, reference)
        except AssertionError:
            continue
        raise AssertionError(f"{name}: a wrong weight was not detected")


class Launches(TorchDispatchMode):
    """Counts torch operations (without views) and kernel launches."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def check_launches() -> None:
    """A hundred parameters need as many launches as ten."""
    from pylo_zoo.kernels import gpu

    rule, units, hidden = RULES["velo"]
    counts = []
    launch = gpu.launch
    for many in (2, 20):
        tasks = make_tasks([(4, 4), (5,), (3, 4), (8,), (2, 3, 4)] * many, "torch")
        layers = make_layers(rule, units, hidden, len(tasks))
        plan, counter = kernels().plan(tasks, rule), Launches()
        values, gradients = [task.p for task in tasks], [task.g for task in tasks]

        def counted(*_: Any, counter: Launches = counter, **__: Any) -> None:
            counter.count += 1

        gpu.launch = counted
        try:
            for _ in range(2):  # the first step builds the tables
                counter.count = 0
                with counter:
                    advanced = plan.advance(values, gradients, None)
                    kernels().move(advanced, layers, [0.1] * len(tasks), [0.0] * len(tasks))
        finally:
            gpu.launch = launch
        counts.append(counter.count)
    assert counts[0] == counts[1], f"launches: {counts}"
    assert counts[0] < 200


def check_waiting() -> None:
    """No step synchronizes with the device, even when tables are built. On a GPU, torch itself raises if one does."""
    rule, units, hidden = RULES["velo"]
    tasks = make_tasks([(8, 12), (5,), (3, 4, 5)], "torch")
    layers = make_layers(rule, units, hidden, len(tasks))
    scale = torch.tensor(1.0, device=DEVICE)
    if DEVICE == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        advanced = kernels().advance(tasks, rule, scale)
        kernels().move(advanced, layers, [0.1] * len(tasks), [0.0] * len(tasks))
    finally:
        if DEVICE == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    assert all(task.p.isfinite().all() for task in tasks)


def check_covers() -> None:
    """Which parameters are left to eager."""
    p, axes = torch.empty(4, 8, 5, 5, device="meta"), axes_of((4, 8, 5, 5), "torch")
    covers = kernels().covers
    assert all(covers(p, axes, rule, units) for rule, units, _ in RULES.values())
    assert not covers(p, axes, RULES["velo"][0], 65)
    assert not covers(torch.empty(0, 3), axes_of((0, 3), "jax"), RULES["velo"][0], 4)


HALVES = (torch.float32, torch.bfloat16, torch.float16)
CHECKS: dict[str, Callable[[], None]] = {
    **{
        f"steps {name} {layout}": partial(check_steps, name, layout, "ordinary", [*SHAPES, CONVOLUTIONS[layout]])
        for name in RULES
        for layout in (LAYOUTS if name in ("velo", "celo2-relu", "adafac-32") else ("torch",))
    },
    **{
        f"steps {name} {regime}": partial(check_steps, name, "torch", regime, FEW)
        for name in ("velo", "celo2-relu", "adafac-32")
        for regime in REGIMES
    },
    **{f"features {name}": partial(check_features, name) for name in ("velo", "adafac-4")},
    "moments": check_moments,
    "normalized": check_normalized,
    **{
        f"move {name} {str(dtype)[6:]}": partial(check_move, dtype, name)
        for name in ("velo", "adafac-32")
        for dtype in HALVES
    },
    **{f"adam {str(dtype)[6:]}": partial(check_adam, dtype) for dtype in HALVES},
    "move velo float32 by bfloat16": partial(check_move, torch.float32, "velo", torch.bfloat16),
    "alone": check_alone,
    "long": check_long,
    "corrupted": check_corrupted,
    "launches": check_launches,
    "waiting": check_waiting,
    "covers": check_covers,
}
KEPT: dict[str, Any] = {}
SHARED_DECAYS = decays()


def round_as_hardware() -> None:
    """Round float32 to bfloat16 to nearest, as GPUs and torch do; the interpreter does not. So for TF32."""
    import triton.language as tl
    from triton.runtime import interpreter

    convert = interpreter._convert_float

    def converted(data: Any, source: Any, target: Any, mode: Any) -> Any:
        if (source, target) != (tl.float32, tl.bfloat16):
            return convert(data, source, target, mode)
        return torch.tensor(data).bfloat16().view(torch.int16).numpy().view("uint16")

    interpreter._convert_float = converted
    multiply = interpreter.InterpreterBuilder.create_dot

    def multiplied(self: Any, a: Any, b: Any, total: Any, precision: Any, *rest: Any) -> Any:
        if str(precision).endswith(".TF32"):
            a, b = (interpreter.TensorHandle(_as_tf32(each.data), each.dtype) for each in (a, b))
        return multiply(self, a, b, total, precision, *rest)

    setattr(interpreter.InterpreterBuilder, "create_dot", multiplied)  # noqa: B010 — its parameters have other names


def _as_tf32(data: Any) -> Any:
    """What tensor cores read of float32: they drop the last 13 bits."""
    return (data.view("int32") & -0x2000).view("float32")


def main() -> None:
    torch.set_num_threads(1)
    if DEVICE == "cpu":
        round_as_hardware()
    results: dict[str, tuple[str | None, list[tuple[float, str]]]] = {}
    for name, check in CHECKS.items():
        margins.take()
        error = None
        try:
            started = time.perf_counter()
            check()
            print(name, f"{time.perf_counter() - started:.2f} s", file=sys.stderr)
        except Exception:
            error = traceback.format_exc()
        results[name] = error, sorted(margins.take())[-1:]
    print(json.dumps(results))


if __name__ == "__main__":
    main()
