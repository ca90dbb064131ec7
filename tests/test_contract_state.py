"""The contract: states are saved, loaded, copied, moved and refused."""

from __future__ import annotations

import copy
import io
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from contract_table import (
    TABLE,
    Entry,
    give_gradients,
    holds,
    make,
    owned,
    parameters,
    same,
    same_state,
    train,
)
from torch import nn

from pylo_zoo.errors import ZooError

DEVICES = ["meta", *(["cuda"] if torch.cuda.is_available() else [])]

FRESH = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
from contract_table import TABLE, make, train

torch.set_num_threads(1)
runs = torch.load(sys.argv[2], weights_only=True)
for key, run in runs.items():
    params = [torch.nn.Parameter(p) for p in run["params"]]
    optimizer = make(TABLE[key.partition(":")[0]], params, **run["more"])
    optimizer.load_state_dict(run["optimizer"])
    train(optimizer, params, range(10, 60))
    run["params"] = [p.detach() for p in params]
torch.save(runs, sys.argv[2])
"""
VARIANTS: dict[str, tuple[torch.dtype, dict[str, Any]]] = {
    "float32": (torch.float32, {}),
    "eager": (torch.float32, {"backend": "eager"}),
    "bfloat16": (torch.bfloat16, {}),
    "master": (torch.bfloat16, {"master_weights": True, "nonfinite": "skip"}),
}


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[list[nn.Parameter], Any]]:
    """Per optimizer and variant: the parameters of an uninterrupted run and of a run resumed in a new process."""
    unbroken, runs = {}, {}
    file = tmp_path_factory.mktemp("resume") / "runs.pt"
    for name, entry in TABLE.items():
        for variant, (dtype, more) in VARIANTS.items():
            key, params = f"{name}:{variant}", parameters(dtype)
            optimizer = make(entry, params, **more)
            train(optimizer, params, range(10))
            saved = {"optimizer": optimizer.state_dict(), "params": [p.detach().clone() for p in params], "more": more}
            runs[key] = copy.deepcopy(saved)
            train(optimizer, params, range(10, 60))
            unbroken[key] = params
    torch.save(runs, file)
    command = [sys.executable, "-c", FRESH, str(Path(__file__).parent), str(file)]
    env = {**os.environ, "PYLO_ZOO_HOME": str(file.parent / "home")}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    result = torch.load(file, weights_only=True)
    return {key: (unbroken[key], result[key]["params"]) for key in unbroken}


@holds("resume")
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_new_process_continues_bit_for_bit(
    entry: Entry, variant: str, resumed: dict[str, tuple[list[nn.Parameter], Any]]
) -> None:
    (name,) = (name for name, each in TABLE.items() if each == entry)
    unbroken, result = resumed[f"{name}:{variant}"]
    assert same(unbroken, result)
    assert variant == "bfloat16" or not same(unbroken, parameters(VARIANTS[variant][0]))


@holds("resume")
@pytest.mark.parametrize("backend", ["auto", "eager"])
def test_a_saved_run_continues_bit_for_bit(entry: Entry, backend: str) -> None:
    params = parameters()
    optimizer = make(entry, params, backend=backend)
    train(optimizer, params, range(3))
    file = io.BytesIO()
    torch.save({"optimizer": optimizer.state_dict(), "params": params}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = [nn.Parameter(p.detach().clone()) for p in saved["params"]]
    second = make(entry, resumed, backend=backend)
    second.load_state_dict(saved["optimizer"])
    assert second.backend == backend
    train(optimizer, params, range(3, 8))
    train(second, resumed, range(3, 8))
    assert same(params, resumed)
    assert same_state(optimizer.state_dict(), second.state_dict())


@holds("copies")
def test_copies_continue_bit_for_bit(entry: Entry) -> None:
    params = parameters()
    optimizer = make(entry, params, nonfinite="skip", backend="eager")
    train(optimizer, params, range(3))
    copies = [pickle.loads(pickle.dumps(optimizer)), copy.deepcopy(optimizer)]
    train(optimizer, params, range(3, 8))
    for other in copies:
        assert (other.nonfinite, other.backend) == ("skip", "eager")
        assert not same(params, owned(other))
        train(other, owned(other), range(3, 8))
        assert same(params, owned(other))


@holds("state_dtype")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_loading_keeps_the_dtype_of_the_state(entry: Entry, dtype: torch.dtype) -> None:
    params = parameters(dtype)
    optimizer = make(entry, params)
    train(optimizer, params, range(2))
    second = make(entry, params)
    second.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for p in params:
        assert p.dtype == dtype
        for name, value in second.state[p].items():
            assert value.dtype == (torch.int64 if name == "step" else wide)
            assert torch.equal(value, optimizer.state[p][name])
            assert value is not optimizer.state[p][name]
    assert same_state(second.state_dict(), optimizer.state_dict())


@holds("state_dtype")
def test_a_float32_state_loads_into_16_and_64_bit_parameters(entry: Entry) -> None:
    params = parameters()
    optimizer = make(entry, params)
    train(optimizer, params, range(2))
    for dtype, wide in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        cast = [nn.Parameter(p.detach().to(dtype)) for p in params]
        second = make(entry, cast)
        second.load_state_dict(optimizer.state_dict())
        values = [value for state in second.state.values() for value in state.values()]
        assert {value.dtype for value in values if value.is_floating_point()} == {wide}
        train(second, cast, range(2, 3))
        assert all(torch.isfinite(p).all() for p in cast)


@holds("devices")
@pytest.mark.parametrize("device", DEVICES)
def test_a_state_moves_to_its_parameters_device(entry: Entry, device: str) -> None:
    params = parameters()
    optimizer = make(entry, params)
    train(optimizer, params, range(2))
    there = [nn.Parameter(p.detach().to(device)) for p in params]
    second = make(entry, there)
    second.load_state_dict(optimizer.state_dict())
    run = [value for key, value in second.param_groups[0].items() if key in getattr(second, "run_keys", ())]
    for value in [*run, *(value for state in second.state.values() for value in state.values())]:
        assert value.device.type == device
    train(second, there, range(2, 3))
    assert all(p.device.type == device for p in there)


Change = Any


@holds("misfit")
def test_a_state_that_does_not_fit_changes_nothing(entry: Entry) -> None:
    params = parameters()
    optimizer = make(entry, params)
    train(optimizer, params, range(2))
    good = copy.deepcopy(optimizer.state_dict())
    name = next(key for key, value in good["state"][3].items() if value.ndim > 1)
    other_name = next(each for each, other in TABLE.items() if other.cls is not entry.cls and other.weights is not None)
    other = make(TABLE[other_name], parameters())
    train(other, owned(other), range(1))
    changes: list[tuple[Change, str]] = [
        (lambda s: s["state"][3].pop(name), "does not fit"),
        (lambda s: s["state"][3].clear(), "does not fit"),
        (lambda s: s["state"][3].update(banked=torch.zeros(1)), "does not fit|banked"),
        (lambda s: s["state"][3].update({name: None}), f"does not fit: {name} is None"),
        (lambda s: s["state"].update({3: [1, 2]}), "is a list"),
        (lambda s: s["state"][3].update({name: torch.zeros(2, 2)}), r"does not fit.*\(2, 2\)"),
        (lambda s: s["param_groups"][0]["params"].pop(), "groups hold"),
        (lambda s: s["param_groups"].append(s["param_groups"][0]), "groups hold"),
        (lambda s: s["param_groups"][0].update(lr=-1.0), "lr is -1.0"),
        (lambda s: s["param_groups"][0].update(layout="rows"), "layout is 'rows'"),
        (lambda s: s["state"].update({99: {}}), "belong to no parameter"),
        (lambda s: s.pop("state"), r"not an optimizer state.*'state'"),
        (lambda s: s.update(other.state_dict()), "saved with weights|does not fit"),
        (
            lambda s: s.update(torch.optim.AdamW(parameters()).state_dict()),
            "saved with weights|does not record|betas|layout|lr|does not fit",
        ),
    ]
    for change, complaint in changes[: len(changes) if entry.weights is not None else -1]:
        wrong = copy.deepcopy(good)
        change(wrong)
        with pytest.raises(ZooError, match=complaint):
            optimizer.load_state_dict(wrong)
        assert same_state(optimizer.state_dict(), good)
    train(optimizer, params, range(2, 3))


def test_the_same_names_in_another_order_are_an_error() -> None:
    """States are matched by position; the names, if present, reveal another order."""
    entry = TABLE["VeLO"]
    named = [(f"layer.{k}", nn.Parameter(torch.ones(3, 3))) for k in range(2)]
    optimizer = make(entry, named)
    if "param_names" not in optimizer.param_groups[0]:
        pytest.skip("this torch version stores no names")
    train(optimizer, [p for _, p in named], range(1))
    with pytest.raises(ZooError, match="the same in another order"):
        make(entry, named[::-1]).load_state_dict(optimizer.state_dict())


@holds("run_misfit")
def test_a_run_state_that_does_not_fit_changes_nothing(entry: Entry) -> None:
    params = parameters()
    optimizer = make(entry, params)
    train(optimizer, params, range(2))
    good = copy.deepcopy(optimizer.state_dict())
    changes: list[tuple[Change, str]] = [
        (lambda s: s["param_groups"][0].update(weights="other"), "saved with weights other"),
        (lambda s: s["param_groups"][0].update(step=torch.zeros(2)), "state of the run does not fit"),
    ]
    for key in optimizer.run_keys:
        changes.append((lambda s, key=key: s["param_groups"][0].pop(key), "state of the run does not fit"))
    if "num_steps" in good["param_groups"][0]:
        changes.append((lambda s: s["param_groups"][0].update(num_steps=0), "num_steps is 0"))
        changes.append((lambda s: s["param_groups"][0].update(accumulate=3), "accumulate=3"))
    for change, complaint in changes:
        wrong = copy.deepcopy(good)
        change(wrong)
        with pytest.raises(ZooError, match=complaint):
            optimizer.load_state_dict(wrong)
        assert same_state(optimizer.state_dict(), good)


@holds("checkpoint")
def test_distributed_checkpoint_functions_get_and_set_the_state(entry: Entry) -> None:
    """They step a new optimizer once with lr 0 and zero gradients; if the rule needs a loss, it must be set before."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3))
    other = copy.deepcopy(model)
    optimizer, second = make(entry, model.parameters()), make(entry, other.parameters())
    train(optimizer, list(model.parameters()), range(3))
    saved = copy.deepcopy(get_optimizer_state_dict(model, optimizer))
    assert set(saved["state"]) == {"0.weight", "0.bias", "1.weight", "1.bias"}
    other.load_state_dict(model.state_dict())
    if entry.cls.needs_loss:
        second.set_loss(0.0)
    set_optimizer_state_dict(other, second, saved)
    assert same(model.parameters(), other.parameters())
    assert same_state(second.state_dict(), optimizer.state_dict())
    train(optimizer, list(model.parameters()), range(3, 6))
    train(second, list(other.parameters()), range(3, 6))
    assert same(model.parameters(), other.parameters())


@holds("format_version")
def test_every_group_has_a_format_version_and_an_unknown_one_is_an_error(entry: Entry) -> None:
    params = parameters()
    optimizer = make(entry, [{"params": params[:3]}, {"params": params[3:]}])
    train(optimizer, params, range(2))
    good = copy.deepcopy(optimizer.state_dict())
    assert [group["format_version"] for group in good["param_groups"]] == [1, 1]
    newer = copy.deepcopy(good)
    newer["param_groups"][1]["format_version"] = 2
    with pytest.raises(ZooError, match=r"format_version.*2.*reads 1"):
        optimizer.load_state_dict(newer)
    assert same_state(optimizer.state_dict(), good)


@holds("format_version")
def test_a_state_that_predates_an_option_gets_its_default(entry: Entry) -> None:
    params = parameters()
    optimizer = make(entry, params)
    train(optimizer, params, range(1))
    old = copy.deepcopy(optimizer.state_dict())
    for option in ("format_version", "master_weights", "decay", "accumulate", "safety_factor"):
        old["param_groups"][0].pop(option, None)
    before = copy.deepcopy(optimizer.state_dict())
    optimizer.load_state_dict(old)
    assert same_state(optimizer.state_dict(), before)
    give_gradients(params, 1)
    optimizer.step(loss=1.0)


@holds("format_version")
def test_a_state_from_before_the_first_step_starts_a_run(entry: Entry) -> None:
    params, again = parameters(), parameters()
    optimizer, other = make(entry, params), make(entry, again)
    empty = copy.deepcopy(optimizer.state_dict())
    train(optimizer, params, range(2))
    optimizer.load_state_dict(empty)
    with torch.no_grad():
        for p, fresh in zip(params, parameters(), strict=True):
            p.copy_(fresh)
    train(optimizer, params, range(2))
    train(other, again, range(2))
    assert same(params, again)
