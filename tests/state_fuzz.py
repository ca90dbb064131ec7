"""Mutates parameters, gradients, state and groups at random between steps: ``python tests/state_fuzz.py --steps N``.

After each mutation, a step must either raise a ZooError and leave every parameter, state tensor and group unchanged, or
compute what the eager implementation computes from the same tensors.

The truth is eager in float64. A step may differ from it by four times the error of eager float32 (the same arithmetic
in another order; Newton–Schulz and cancellation amplify both alike), or by 1e-5 of the movement (about forty products,
each rounded to 6e-8, through three layers), plus one rounding of the parameter to its dtype.
"""

from __future__ import annotations

import argparse
import copy
import io
import math
import pickle
import random
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from contract_table import CONTROLLED, TABLE, owned
from torch import Tensor, nn

from pylo_zoo.errors import ZooError
from pylo_zoo.optim.precision import wide_value

SHAPES = ((), (7,), (1,), (6, 4), (9, 9), (8, 4, 3, 3), (3, 6, 4), (300,), (0, 3), (5, 1))
FACTOR, OF_MOVEMENT, OF_STATE = 4.0, 1e-5, 1e-6
OVERFLOW = torch.finfo(torch.float32).max * 1e-3
"""The smallest ``1 − β`` is 1e-3: a larger moment came from a square over float32's maximum."""


class Wrong(AssertionError):
    """A step wrote something and raised, raised an error other than ZooError, or differs from eager."""


class Run:
    """One optimizer under test."""

    def __init__(self, name: str, backend: str, rng: random.Random) -> None:
        self.name, self.rng = name, rng
        self.generator = torch.Generator().manual_seed(rng.randrange(2**31))
        entry = TABLE[name]
        options: dict[str, Any] = {"backend": backend}
        if rng.random() < 0.3:
            options["master_weights"] = True
        if name in CONTROLLED and rng.random() < 0.3:
            options["accumulate"] = 2
        if rng.random() < 0.2:
            options["nonfinite"] = "skip"
        if name == "Muon":
            options["ns_dtype"] = torch.float32
        shapes = rng.sample(SHAPES, 5)
        params = [nn.Parameter(self.normal(shape, rng.choice((torch.float32, torch.bfloat16)))) for shape in shapes]
        layout = rng.choice(("torch", "jax"))
        groups = [{"params": params[:3], "layout": layout}, {"params": params[3:], "layout": "torch"}]
        weights: dict[str, Any] = {} if entry.weights is None else {"weights": entry.weights}
        self.optimizer: Any = entry.cls(groups, **{**weights, **entry.arguments, **options})
        self.loss: Any = 1.0
        self.history: list[str] = []

    def normal(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(tuple(shape), generator=self.generator).to(dtype)

    @property
    def params(self) -> list[nn.Parameter]:
        return owned(self.optimizer)

    def one(self) -> nn.Parameter:
        return self.rng.choice(self.params)

    def one_with_gradient(self) -> nn.Parameter | None:
        return self.rng.choice([p for p in self.params if p.grad is not None] or [None])

    def one_entry(self) -> tuple[dict[str, Any], str] | None:
        states = [state for state in self.optimizer.state.values() if state]
        if not states:
            return None
        state = self.rng.choice(states)
        return state, self.rng.choice(sorted(state))

    def refresh(self) -> None:
        """New gradients in the parameters' shapes, sometimes none, and a loss."""
        for p in self.params:
            if p.is_floating_point() and not p.is_meta:
                p.grad = None
                if self.rng.random() < 0.9 and p.requires_grad:
                    p.grad = self.normal(p.shape).to(p)
        self.loss = self.rng.choice((1.0, torch.tensor(0.5), torch.tensor([2.0])))


# --- mutations -------------------------------------------------------------------------------------------------------


def strided(x: Tensor) -> Tensor:
    """Equal values with other strides, if the shape allows any."""
    return x.mT.contiguous().mT if x.ndim >= 2 else torch.stack([x, x], -1)[..., 0]


def shifted(x: Tensor) -> Tensor:
    """Equal values, contiguous, at an unaligned address."""
    flat = torch.empty(x.numel() + 3, dtype=x.dtype)
    return flat[3:].view(x.shape).copy_(x)


def expanded(x: Tensor) -> Tensor:
    return x.flatten()[:1].expand(x.numel()).view(x.shape) if x.numel() > 1 else x


def overlapping(x: Tensor) -> Tensor:
    if x.ndim < 2 or x.numel() < 4:
        return x
    return torch.zeros(x.numel() * 2, dtype=x.dtype).as_strided(x.shape, [1] * x.ndim)


def reshaped(run: Run, x: Tensor) -> Tensor:
    choices = [x.flatten(), x.mT.contiguous() if x.ndim >= 2 else x[None], x.repeat(*[2] * max(x.ndim, 1))]
    choices += [x.flatten()[: max(1, x.numel() // 2)].clone(), torch.empty(0, dtype=x.dtype), x[None].clone()]
    return run.rng.choice(choices)


def valued(run: Run, x: Tensor) -> Tensor:
    factor = run.rng.choice((0.0, 1e-20, 1e20, math.nan, math.inf, -1.0))
    return x * factor


def changed(run: Run, x: Tensor) -> Tensor:
    """``x`` with other metadata or values."""
    casts = (torch.bfloat16, torch.float16, torch.float64, torch.complex64, torch.int32, torch.float32, torch.bool)
    changes: list[Callable[[Tensor], Tensor]] = [
        strided, shifted, expanded, overlapping,
        lambda x: reshaped(run, x), lambda x: valued(run, x), lambda x: valued(run, x),
        lambda x: x.to(run.rng.choice(casts)), lambda x: x.to(run.rng.choice(casts)),
        lambda x: x.to("meta"), lambda x: x.clone(), lambda x: x.to_sparse(),
    ]  # fmt: skip
    return run.rng.choice(changes)(x.detach())


def change_parameter(run: Run) -> None:
    p = run.one()
    p.data = changed(run, p.data)
    if run.rng.random() < 0.5 and p.is_floating_point() and not p.is_meta and p.layout == torch.strided:
        p.grad = None
        p.grad = run.normal(p.shape).to(p)


def change_gradient(run: Run) -> None:
    p = run.one_with_gradient()
    if p is not None and p.grad is not None:
        p.grad.data = changed(run, p.grad.data)


def assign_gradient(run: Run) -> None:
    p = run.one_with_gradient()
    if p is not None and p.grad is not None:
        p.grad = run.rng.choice((strided, shifted, expanded, lambda g: valued(run, g)))(p.grad)


def change_state(run: Run) -> None:
    result = run.one_entry()
    if result is not None and isinstance(result[0][result[1]], Tensor):
        state, name = result
        state[name] = changed(run, state[name])


def change_state_data(run: Run) -> None:
    result = run.one_entry()
    if result is not None and isinstance(result[0][result[1]], Tensor):
        state, name = result
        state[name].data = changed(run, state[name])


def break_state(run: Run) -> None:
    result = run.one_entry()
    if result is not None:
        state, name = result
        state[name] = run.rng.choice((None, 3, 0.5, "text", [1.0]))
        if run.rng.random() < 0.3:
            del state[name]


def count_back(run: Run) -> None:
    for state in run.optimizer.state.values():
        if isinstance(state.get("step"), Tensor) and run.rng.random() < 0.5:
            state["step"].fill_(run.rng.choice((-1, -7, 10**12, 0)))


def add_foreign(run: Run) -> None:
    for state in run.optimizer.state.values():
        state["slow_buffer"] = run.rng.choice((None, torch.zeros(3), "text"))


def cast_all(run: Run) -> None:
    dtype = run.rng.choice((torch.bfloat16, torch.float64, torch.float32))
    for state in run.optimizer.state.values():
        for name, value in state.items():
            state[name] = value.to(dtype) if isinstance(value, Tensor) else value


def swap_states(run: Run) -> None:
    keys = list(run.optimizer.state)
    if len(keys) > 1:
        a, b = run.rng.sample(keys, 2)
        states = run.optimizer.state
        states[a], states[b] = states[b], states[a]


def drop_state(run: Run) -> None:
    if run.optimizer.state:
        run.optimizer.state.pop(run.rng.choice(list(run.optimizer.state)))


def change_option(run: Run) -> None:
    group = run.rng.choice(run.optimizer.param_groups)
    rates = [("lr", value) for value in (None, "fast", 0, math.nan, torch.tensor(1e-3), torch.tensor([0.1, 0.2]))]
    routes = [("layout", "jax"), ("layout", "torch"), ("rule", "adamw"), ("rule", "learned"), ("use_fallback", True)]
    others: list[tuple[str, Any]] = [("weight_decay", None), ("master_weights", True), ("master_weights", False)]
    name, value = run.rng.choice([*rates, *routes, *others])
    if name in group:
        group[name] = value


def change_run_state(run: Run) -> None:
    group = run.optimizer.param_groups[0]
    name = run.rng.choice(("step", "loss_average", "loss_minimum", "loss_sum", "banked"))
    if isinstance(group.get(name), Tensor):
        group[name] = changed(run, group[name])


def change_loss(run: Run) -> None:
    run.loss = run.rng.choice((torch.tensor(1.0, device="meta"), math.nan, None, torch.ones(2), 1e38, torch.tensor(2)))


def toggle_gradients(run: Run) -> None:
    p = run.one()
    if p.is_floating_point():
        p.requires_grad_(not p.requires_grad)


def add_group(run: Run) -> None:
    run.optimizer.add_param_group({"params": [nn.Parameter(run.normal(run.rng.choice(SHAPES)))], "layout": "torch"})
    run.refresh()


def copy_optimizer(run: Run) -> None:
    how = run.rng.choice((copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x)), _through_file))
    run.optimizer = how(run.optimizer)
    run.refresh()


def _through_file(optimizer: Any) -> Any:
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    optimizer.load_state_dict(torch.load(file))
    return optimizer


def load_changed(run: Run) -> None:
    """Load a state of equal values with other strides, or a changed one, which loads or is refused as a whole."""
    saved = copy.deepcopy(run.optimizer.state_dict())
    one = run.rng.random() < 0.5
    for state in saved["state"].values():
        for name, value in state.items():
            if isinstance(value, Tensor):
                state[name] = strided(value) if one else changed(run, value) if run.rng.random() < 0.1 else value
    before = snapshot(run.optimizer)
    try:
        run.optimizer.load_state_dict(saved)
    except ZooError:
        if snapshot(run.optimizer) != before:
            raise Wrong("a refused state was partly loaded") from None


MUTATIONS = (
    *(change_parameter, change_gradient, assign_gradient, change_state, change_state_data, break_state, count_back),
    *(add_foreign, cast_all, swap_states, drop_state, change_option, change_run_state, change_loss, toggle_gradients),
    *(add_group, copy_optimizer, load_changed),
)


# --- checking a step -------------------------------------------------------------------------------------------------


def snapshot(optimizer: Any) -> Any:
    """A bitwise copy of everything that a step may write."""
    states = [_bits(optimizer.state[p]) if optimizer.state.get(p) else None for p in owned(optimizer)]
    groups = [{k: _bits(v) for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    return [_bits(p) for p in owned(optimizer)], states, groups, optimizer.skipped_steps


def _bits(value: Any) -> Any:
    if isinstance(value, Tensor):
        about = (value.shape, value.dtype, value.device, value.layout)
        if value.is_meta or value.layout != torch.strided:
            return about
        values = torch.empty(value.numel(), dtype=value.dtype).copy_(value.detach().reshape(-1))
        return (*about, value.stride(), values.view(torch.uint8).numpy().tobytes() if values.numel() else b"")
    if isinstance(value, dict):
        return {key: _bits(each) for key, each in value.items()}
    return "nan" if value != value else value


def twin(run: Run, dtype: torch.dtype | None) -> Any:
    """An eager optimizer over copies of everything, in the same dtypes or in ``dtype``."""
    source, groups = run.optimizer, []
    pairs: list[tuple[Any, nn.Parameter]] = []
    for group in source.param_groups:
        params = []
        for p in group["params"]:
            g = p.grad
            if is_left_out(run, p):
                g, value = None, torch.zeros(0)
            elif dtype is None:
                value = p.detach().clone()
            else:
                wide = p.dtype == torch.float32 or not group["master_weights"]
                state = {} if wide else {k: v.clone() for k, v in (source.state.get(p) or {}).items() if k == "master"}
                value = wide_value(p.detach(), state).to(dtype) if p.numel() else p.detach().to(dtype)
            q = nn.Parameter(torch.zeros((), dtype=torch.float32))
            if g is not None:
                q = nn.Parameter(torch.zeros_like(g, memory_format=torch.contiguous_format))
                q.grad = g.detach().clone()
            q.data = value
            q.requires_grad_(p.requires_grad)
            params.append(q)
            pairs.append((p, q))
        groups.append({"params": params, "layout": group["layout"]})
    entry = TABLE[run.name]
    weights = {} if entry.weights is None else {"weights": entry.weights}
    options = {"accumulate": source.param_groups[0]["accumulate"]} if run.name in CONTROLLED else {}
    with torch.no_grad():
        arguments = {**weights, **entry.arguments, **options, "backend": "eager", "nonfinite": source.nonfinite}
        other: Any = entry.cls(groups, **arguments)
    for group, theirs in zip(other.param_groups, source.param_groups, strict=True):
        group.update({k: _copied(v, dtype) for k, v in theirs.items() if k != "params"})
    for p, q in pairs:
        if source.state.get(p) and not is_left_out(run, p):
            other.state[q] = {k: _copied(v, dtype) for k, v in source.state[p].items()}
    for group in other.param_groups[1:]:  # one run's state
        group.update({k: other.param_groups[0][k] for k in getattr(other, "run_keys", ()) if k in group})
    return other


def is_left_out(run: Run, p: Tensor) -> bool:
    """Whether no step reads ``p``: it has no elements, or neither a gradient nor accumulated gradients."""
    banked = (run.optimizer.state.get(p) or {}).get("banked")
    waits = (
        isinstance(banked, Tensor)
        and banked.dtype == torch.int64
        and banked.numel() == 1
        and not banked.is_meta
        and banked.item() > 0
    )
    return p.numel() == 0 or (p.grad is None and not waits)


def _copied(value: Any, dtype: torch.dtype | None) -> Any:
    if not isinstance(value, Tensor):
        return copy.deepcopy(value)
    return value.detach().to(dtype if dtype is not None and value.is_floating_point() else value.dtype, copy=True)


def step(run: Run, ran: Counter[str]) -> bool:
    """Take and check one step; False if it was refused."""
    before = snapshot(run.optimizer)
    loss = run.loss if run.name in CONTROLLED else None
    reason: Exception | None = None
    try:
        references = twin(run, None), twin(run, torch.float64)
    except Exception as error:  # if a tensor cannot be copied, nothing may be computed from it
        references, reason = None, error
    start = [p.detach().double().clone() for p in owned(references[1])] if references else []
    try:
        run.optimizer.step(loss=loss)
    except ZooError as error:
        if snapshot(run.optimizer) != before:
            raise Wrong(f"a refused step wrote something: {error}") from error
        ran[f"refused: {error.message.split(';')[0][:40]}"] += 1
        return False
    except Exception as error:
        touched = "" if snapshot(run.optimizer) == before else ", after it wrote something"
        raise Wrong(f"{type(error).__name__}: {error}{touched}") from error
    if references is None:
        raise Wrong("a step computed something from tensors that cannot be copied") from reason
    for each in references:
        each.step(loss=loss)
    _compare(run, references[0], references[1], start)
    ran["like eager"] += 1
    return True


@torch.no_grad()
def _compare(run: Run, eager: Any, truth: Any, start: Sequence[Tensor]) -> None:
    together = zip(owned(run.optimizer), owned(eager), owned(truth), start, strict=True)
    stepped = [each for each in together if not is_left_out(run, each[0])]
    squares = sum(float(_finite(t - old, t).square().sum()) for _, _, t, old in stepped)
    typical = math.sqrt(squares / max(1, sum(p.numel() for p, *_ in stepped)))  # terms of one element may cancel
    for p, q, t, old in stepped:
        movement = max(float(_finite(t - old, t).norm()), typical * math.sqrt(p.numel()))
        rounding = torch.finfo(p.dtype).eps * float(_finite(t, t).norm())
        _close(f"parameter {tuple(p.shape)}", p, q, t, OF_MOVEMENT * movement + rounding)
        ours, theirs, true = (o.state.get(x) or {} for o, x in ((run.optimizer, p), (eager, q), (truth, t)))
        if ours.keys() != theirs.keys():
            raise Wrong(f"the state has {sorted(ours)}, eager's {sorted(theirs)}")
        for name in ours.keys() & true.keys() - {"slow_buffer"}:
            size = float(_finite(true[name].double(), true[name].double()).norm())
            _close(f"{name} of {tuple(p.shape)}", ours[name], theirs[name], true[name], OF_STATE * size)


def _finite(x: Tensor, like: Tensor) -> Tensor:
    return torch.where(like.isfinite() & x.isfinite(), x, 0.0)


def _close(what: str, got: Tensor, eager: Tensor, truth: Tensor, floor: float) -> None:
    if got.shape != eager.shape or got.dtype != eager.dtype:
        raise Wrong(f"{what}: {got.dtype} {tuple(got.shape)}, eager has {eager.dtype} {tuple(eager.shape)}")
    got, eager, truth = got.double(), eager.double(), truth.double()
    # Products at the edge of float32, such as (1 - β)·g², overflow in one order but not in another.
    overflown = truth.isfinite() & (got.isfinite() != eager.isfinite())
    if (overflown & ~(truth.abs() > OVERFLOW)).any() or (
        ~truth.isfinite() & (got.isfinite() != eager.isfinite())
    ).any():
        raise Wrong(f"{what}: the non-finite elements differ from eager's")
    finite = got.isfinite() & eager.isfinite() & truth.isfinite()
    error, yardstick = (float((x - truth)[finite].norm()) for x in (got, eager))
    if error > FACTOR * yardstick + floor:
        raise Wrong(f"{what}: error {error:.3g}, eager's {yardstick:.3g}, floor {floor:.3g}")


def fuzz(
    steps: int, seed: int, names: Sequence[str] = tuple(TABLE), backends: Sequence[str] = ("fused", "eager")
) -> Counter[str]:
    """Run ``steps`` mutated steps; return counts of their outcomes.

    Raises:
        Wrong: with the seed and the mutations that led to it.
    """
    rng, ran = random.Random(seed), Counter[str]()
    done = 0
    while done < steps:
        name, backend = rng.choice(list(names)), rng.choice(list(backends))
        key = rng.randrange(2**31)
        done += episode(name, backend, key, ran)
    ran["steps"] = done
    return ran


def episode(name: str, backend: str, seed: int, ran: Counter[str]) -> int:
    """Mutate and step one optimizer until a step is refused, at most eight times; return the number of steps."""
    rng = random.Random(seed)
    run = Run(name, backend, rng)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run.refresh()
        try:
            step(run, Counter())
            for count in range(1, 9):
                run.refresh()
                for mutation in rng.sample(MUTATIONS, rng.choice((1, 1, 2))):
                    run.history.append(mutation.__name__)
                    try:
                        mutation(run)
                    except ZooError:
                        pass
                    except (RuntimeError, TypeError, ValueError) as error:
                        if isinstance(error, Wrong):
                            raise
                        run.history.append(f"({type(error).__name__})")  # torch refuses this mutation
                if not step(run, ran):
                    return count
        except Exception as error:
            where = f"episode({name!r}, {backend!r}, {seed}, Counter()) after {', '.join(run.history)}"
            raise Wrong(f"{where}: {type(error).__name__}: {str(error)[:300]}") from error
    return 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep-going", action="store_true", help="print what is wrong and go on")
    parser.add_argument("--fused", action="store_true", help="the fused backend alone")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rng, ran, done = random.Random(arguments.seed), Counter[str](), 0
    while done < arguments.steps:
        name, backend = rng.choice(list(TABLE)), "fused" if arguments.fused else rng.choice(("fused", "eager"))
        try:
            done += episode(name, backend, rng.randrange(2**31), ran)
        except Wrong as error:
            ran["wrong"] += 1
            done += 1
            print(str(error)[:600], flush=True)
            if not arguments.keep_going:
                raise SystemExit(1) from None
    print(f"{done} mutated steps: {ran['like eager']} like eager, {ran['wrong']} wrong, the others refused")
    raise SystemExit(bool(ran["wrong"]))


if __name__ == "__main__":
    main()
