"""The contract: what training loops do around a step: AMP, accumulation, clipping, decay, non-finite values."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from contract_table import Entry, give_gradients, holds, loss_at, make, parameters, same, same_state, train
from displaced_runs import check_same_run, displaced, in_double
from margins import check_close
from rounding import gamma, simulate
from torch import Tensor, nn

from pylo_zoo.errors import ZooError
from pylo_zoo.kernels.cpu import CpuKernels
from pylo_zoo.optim import ELO, MuLO, contract
from pylo_zoo.optim.step_condition import StepCondition, find_finite, is_finite_loss

BAD = (math.nan, math.inf, -math.inf)

# --- mixed precision ---------------------------------------------------------------------------------------------


@holds("autocast")
def test_a_step_inside_autocast_equals_a_step_outside_it(entry: Entry) -> None:
    runs = []
    for enabled in (False, True):
        params = parameters()
        optimizer = make(entry, params)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == (torch.bfloat16 if enabled else torch.float32)
            train(optimizer, params, range(3))
        runs.append(params)
    assert same(*runs)


WAYS: dict[str, Callable[[Any, Any, Tensor], Any]] = {
    "step(loss)": lambda scaler, optimizer, loss: scaler.step(optimizer, loss),
    "step(loss=)": lambda scaler, optimizer, loss: scaler.step(optimizer, loss=loss),
    "set_loss": lambda scaler, optimizer, loss: [optimizer.set_loss(loss), scaler.step(optimizer)][1],
}


@holds("grad_scaler")
@pytest.mark.parametrize("way", WAYS)
def test_a_step_that_grad_scaler_skips_changes_no_state(entry: Entry, way: str) -> None:
    ends = []
    for overflows in ([], [1, 3]):
        torch.manual_seed(0)
        model, x = nn.Linear(6, 4), torch.randn(8, 6)
        optimizer, scaler = make(entry, model.parameters()), torch.amp.GradScaler("cpu", init_scale=2.0**10)
        taken = 0
        for call in range(4 + len(overflows)):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = model(x).square().mean()
            scaler.scale(loss).backward()
            before = copy.deepcopy(optimizer.state_dict()), [p.detach().clone() for p in model.parameters()]
            if call in overflows:
                model.weight.grad[0, 0] = math.inf  # pyright: ignore[reportOptionalSubscript]
            WAYS[way](scaler, optimizer, loss.detach() if call not in overflows else torch.tensor(math.nan))
            scaler.update()
            unchanged = same_state(optimizer.state_dict(), before[0]) and same(model.parameters(), before[1])
            assert unchanged == (call in overflows)
            taken += call not in overflows
        assert taken == 4
        ends.append(list(model.parameters()))
    assert same(*ends)


# --- non-finite values -------------------------------------------------------------------------------------------


def set_and_count(condition: StepCondition, gradients: Sequence[Tensor], loss: Any) -> None:
    """:meth:`StepCondition.set_finite` that also takes losses on the CPU."""
    condition.set(find_finite(gradients, loss if isinstance(loss, Tensor) else None))
    condition.count()


@holds("nonfinite")
@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize("decides", ["host", "device"])
def test_skip_and_raise_touch_nothing(entry: Entry, where: str, decides: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if decides == "device":  # as on an accelerator, with the CPU as the device
        monkeypatch.setattr(contract, "is_known_on_host", lambda _: False)
        monkeypatch.setattr(
            contract, "is_finite_loss", lambda loss, read_all: not read_all or is_finite_loss(loss, True)
        )
        monkeypatch.setattr(StepCondition, "set_finite", set_and_count)
        monkeypatch.setattr(CpuKernels, "plan_lstm", lambda *_: None)  # conditional steps compute the LSTM with torch
    params, alone = parameters(), parameters()
    skipping, other = make(entry, params, nonfinite="skip"), make(entry, alone)
    train(skipping, params, range(2))
    train(other, alone, range(2))
    for count, bad in enumerate(BAD, start=1):
        give_gradients(params, 2)
        loss = loss_at(2)
        if where == "loss":
            loss = torch.tensor(bad)
        else:
            params[3].grad[1, 2] = bad  # pyright: ignore[reportOptionalSubscript]
        for optimizer, choice in ((skipping, "raise"), (skipping, "skip")):
            optimizer.nonfinite = choice
            before = copy.deepcopy(optimizer.state_dict())
            if choice == "raise":
                with pytest.raises(ZooError, match=rf"The {where} is not|A {where} is not.*1 of 7.*\(6, 6\)"):
                    optimizer.step(loss=loss)
            else:
                assert optimizer.step(lambda loss=loss: loss) is loss
            assert same_state(optimizer.state_dict(), before)
            assert same(params, alone)
        assert skipping.skipped_steps == count
    assert copy.deepcopy(skipping).skipped_steps == pickle.loads(pickle.dumps(skipping)).skipped_steps == len(BAD)
    skipping.load_state_dict(skipping.state_dict())
    assert skipping.skipped_steps == len(BAD)
    train(skipping, params, range(2, 5))
    train(other, alone, range(2, 5))
    assert same(params, alone)


@holds("nonfinite")
@pytest.mark.parametrize("loss", [10**400, -(10**400)], ids=["positive", "negative"])
def test_an_integer_loss_beyond_float_range_is_not_finite(entry: Entry, loss: int) -> None:
    params = parameters(shapes=[(6, 6)])
    give_gradients(params, 0)
    optimizer = make(entry, params, nonfinite="skip")
    optimizer.step(loss=loss)
    assert optimizer.skipped_steps == 1
    optimizer.nonfinite = "raise"
    with pytest.raises(ZooError, match="The loss is not finite"):
        optimizer.step(loss=loss)
    assert same(params, parameters(shapes=[(6, 6)]))
    optimizer.nonfinite = "propagate"
    optimizer.step(loss=loss)


@holds("nonfinite")
def test_by_default_non_finite_values_reach_the_rule_as_in_the_original(entry: Entry) -> None:
    params = parameters(shapes=[(6, 6)])
    optimizer = make(entry, params)
    give_gradients(params, 0)
    params[0].grad[0, 0] = math.nan  # pyright: ignore[reportOptionalSubscript]
    optimizer.step(loss=loss_at(0))
    replaced = entry.cls in (ELO, MuLO)  # their rules replace NaN by 0 (SPEC §3)
    assert bool(torch.isfinite(params[0]).all()) == replaced
    if entry.cls.needs_loss:
        params = parameters(shapes=[(6, 6)])
        optimizer = make(entry, params)
        give_gradients(params, 0)
        optimizer.step(loss=math.nan)
        assert bool(optimizer.param_groups[0]["loss_average"].isnan().all())


# --- accumulation ------------------------------------------------------------------------------------------------


@holds("accumulation")
def test_micro_batches_equal_the_batch(entry: Entry) -> None:
    def run(parts: int) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(8, 6, generator=generator, dtype=torch.float64)
        weight = nn.Parameter(torch.randn(6, 6, generator=generator, dtype=torch.float64))
        optimizer = make(entry, [weight], **in_double(entry))
        for _ in range(3):
            weight.grad = torch.zeros_like(weight)
            total = 0.0
            for part in x.chunk(parts):
                difference = part @ weight.detach()  # written out, because a simulated run has no backward pass
                weight.grad += part.T @ difference * (2 / (difference.numel() * parts))
                total += difference.square().mean().item() / parts
            optimizer.step(loss=total)
        return weight.detach()

    ends = [run(1), run(4)]
    # The gradients are sums of eight products, in two orders.
    check_same_run(ends[:1], ends[1:], simulate(lambda: [run(1)], torch.float64))


def micro_step(optimizer: Any, params: list[nn.Parameter], call: int) -> None:
    give_gradients(params, call)
    if call % 3 == 1:
        params[1].grad = None
    if call >= 3:
        params[2].grad = None
    optimizer.step(loss=loss_at(call))


@holds("long_runs")
def test_accumulate_steps_on_means_and_resumes_from_a_saved_state(entry: Entry) -> None:
    params, by_hand = parameters(), parameters()
    optimizer = make(entry, params, num_steps=32, accumulate=3, nonfinite="skip")
    other = make(entry, by_hand, num_steps=10)
    for k in range(3):
        sums = [torch.zeros(p.shape) for p in params]
        start = [p.detach().clone() for p in params]
        for call in range(3 * k, 3 * k + 3):
            assert same(params, start)
            micro_step(optimizer, params, call)
            for total, p in zip(sums, params, strict=True):
                total += 0 if p.grad is None else p.grad
            if call == 4:
                optimizer.step(loss=math.inf)  # not added to the accumulated sum
                saved = copy.deepcopy(optimizer.state_dict())
                params = [nn.Parameter(p.detach().clone()) for p in params]
                optimizer = make(entry, params, num_steps=32, accumulate=3)
                optimizer.load_state_dict(saved)
        for p, total in zip(by_hand, sums, strict=True):
            p.grad = total / 3 if total.any() else None
        loss = (loss_at(3 * k) + loss_at(3 * k + 1) + loss_at(3 * k + 2)) / 3
        other.step(loss=loss)
        assert same(params, by_hand)
    for key in ("step", "loss_average", "loss_minimum"):
        assert torch.equal(optimizer.param_groups[0][key], other.param_groups[0][key])


@holds("long_runs")
def test_accumulate_auto_follows_google_and_is_part_of_the_state(entry: Entry) -> None:
    for num_steps, accumulate, horizon in ((150_000, 1, 150_000), (150_001, 2, 75_000), (300_001, 3, 100_000)):
        optimizer = make(entry, parameters(), num_steps=num_steps, accumulate="auto")
        assert (optimizer.param_groups[0]["accumulate"], optimizer.horizon) == (accumulate, horizon)
        assert optimizer.num_steps == num_steps
    for wrong in (0, 1.5, "always", True):
        with pytest.raises(ZooError, match="accumulate is"):
            make(entry, parameters(), accumulate=wrong)
    with pytest.raises(ZooError, match="accumulate=2, but the run has 1"):
        make(entry, [{"params": parameters(), "accumulate": 2}])
    banked = make(entry, parameters(), accumulate=2)
    with pytest.raises(ZooError, match=r"accumulate=2.*has 1"):
        make(entry, parameters()).load_state_dict(banked.state_dict())


# --- clipping and decay ------------------------------------------------------------------------------------------


@holds("clipping")
def test_clip_norm_equals_clip_grad_norm_before_the_step(entry: Entry) -> None:
    for scale in (10.0, 1e-3):  # clipped, and not clipped
        inside, outside = parameters(torch.float64), parameters(torch.float64)
        options: Any = in_double(entry)
        first, second = make(entry, inside, clip_norm=0.5, **options), make(entry, outside, clip_norm=None, **options)
        for step in range(3):
            for each in (inside, outside):
                give_gradients(each, step)
                for p in each:
                    p.grad.mul_(scale)  # pyright: ignore[reportOptionalMemberAccess]
            norm = torch.nn.utils.get_total_norm([p.grad for p in outside if p.grad is not None])
            assert bool(norm > 0.5) == (scale == 10.0)
            for p in outside:  # torch's own clipping adds 1e-6 to the norm
                p.grad.mul_((0.5 / norm).clamp(max=1))  # pyright: ignore[reportOptionalMemberAccess]
            first.step()
            second.step()
        check_same_run(
            inside, outside, displaced(entry, 3, dtype=torch.float64, scale=scale, clip_norm=0.5), f"{scale}"
        )
    for value, shown in (
        (0, "0"),
        ("1.0", "'1.0'"),
        (10**400, "a number of 401 digits"),
        (math.nan, "nan"),
        (True, "True"),
    ):
        with pytest.raises(ZooError, match=rf"^clip_norm is {shown}\."):
            make(entry, parameters(), clip_norm=value)


@holds("decoupled")
@pytest.mark.filterwarnings("ignore:weight_decay=0.5")
def test_decoupled_decay_is_separate_from_the_step(entry: Entry) -> None:
    shapes = [(6, 6), (7,)]
    decayed, plain = parameters(shapes=shapes), parameters(shapes=shapes)
    optimizer, other = (make(entry, p, weight_decay=wd, lr=0.1) for p, wd in ((decayed, 0.5), (plain, 0.0)))
    for each, params in ((optimizer, decayed), (other, plain)):
        give_gradients(params, 0)
        each.step(loss=loss_at(0))
    for q, r, start in zip(decayed, plain, parameters(shapes=shapes), strict=True):
        lr = 0.1 * (optimizer.param_groups[0].get("adam_lr_mult", 1.0) if "step" in optimizer.state[q] else 1.0)
        # Each parameter is a sum of three terms, rounded at each addition, and the difference is rounded once more.
        rounding = gamma(4, torch.float32) * (start.abs() + (r - start).abs()) * 2
        check_close(r - q, lr * 0.5 * start, rounding)


@holds("l2")
def test_l2_decay_is_added_to_gradients_and_loss(entry: Entry) -> None:
    params, by_hand = parameters(), parameters()
    groups = [{"params": params[:4]}, {"params": params[4:], "weight_decay": 0.2, "decay": "l2"}]
    optimizer, other = make(entry, groups, weight_decay=0.0), make(entry, by_hand)
    for step in range(6):
        give_gradients(params, step)
        give_gradients(by_hand, step)
        loss = loss_at(step)
        with torch.no_grad():
            for p in by_hand[4:]:
                loss = loss + 0.2 * p.square().sum()
                p.grad = p.grad + 0.2 * p  # pyright: ignore[reportOptionalOperand]
        optimizer.step(loss=loss_at(step))
        other.step(loss=loss)
    assert same(params, by_hand)
    assert torch.equal(optimizer.param_groups[0]["loss_average"], other.param_groups[0]["loss_average"])
    with pytest.raises(ZooError, match="decay is 'L2'"):
        make(entry, parameters(), decay="L2")
