"""A learned optimizer from end to end: converted, proven, published, pulled elsewhere, trained with, resumed, proven
again and exported as the original file.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import Capture, digests, run
from golden_data import CELO
from hub_client import connect
from hub_double import TOKEN, HubDouble
from hub_invariants import check_complete, check_silence
from torch import Tensor, nn
from trees import write_theta

from pylo_zoo import artifact
from pylo_zoo.fetch import store
from pylo_zoo.optim import optimizer_class
from pylo_zoo.publish.plan import PUBLISHED

pytest.importorskip("jax")
pytest.importorskip("matplotlib")

REPO, TAG = "org/name", "v1"
URI = f"hf://{REPO}@{TAG}"
STEPS, HALF = 8, 4
FAMILIES = ["celo-adam", pytest.param("celo", marks=pytest.mark.slow)]
"""Random weights of the family whose proof is fastest, and the checkpoint that was published."""


def source(family: str, directory: Path) -> Path:
    if family != "celo":
        return write_theta(directory, family, scale=0.1)
    return CELO


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


def optimizer(family: str, of: nn.Module) -> Any:
    """Built from the name alone, as a user would."""
    cls: Any = optimizer_class(family)
    return cls(of.parameters(), num_steps=STEPS, weights=URI)


def train(of: nn.Module, by: Any, steps: range) -> list[float]:
    """The losses of these steps; a batch is determined by its number."""
    losses = []
    for step in steps:
        random = torch.Generator().manual_seed(step)
        inputs, targets = torch.randn(16, 6, generator=random), torch.randint(3, (16,), generator=random)
        loss = nn.functional.cross_entropy(of(inputs), targets)
        by.zero_grad()
        loss.backward()
        by.step(loss=loss)
        losses.append(loss.item())
    return losses


def tensors(of: nn.Module, by: Any) -> list[Tensor]:
    """Everything that a run resumes from."""
    states = by.state_dict()["state"]
    kept = itertools.chain.from_iterable(state.values() for _, state in sorted(states.items(), key=str))
    return [*of.parameters(), *(each for each in kept if isinstance(each, Tensor))]


@pytest.mark.parametrize("family", FAMILIES)
def test_from_a_checkpoint_and_back(
    family: str, hub: HubDouble, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = source(family, tmp_path)
    directory = Path("zoo") / family

    # --- on this machine: convert, verify, publish ---
    assert run("convert", family, "--source", file, "--out", directory, "--no-verify", "-q") == 0
    assert run("publish", directory, "--repo-id", REPO, "--license", "MIT") == 1, "publishing requires a proof"
    assert "parity was not checked" in capsys.readouterr().err
    assert not hub.repos
    assert run("verify", directory, "--source", file, "-q") == 0
    proof = json.loads((directory / "parity.json").read_text())
    assert (proof["status"], proof["fingerprint"]) == ("passed", artifact.read(directory).fingerprint)
    capsys.readouterr()
    assert run("publish", directory, "--repo-id", REPO, "--license", "MIT", "--tag", TAG, "--json") == 0
    published = json.loads(capsys.readouterr().out)
    repo = hub.repos[REPO]
    assert published["commit"] == repo.head == repo.tags[TAG]
    assert set(repo.files()) == {*PUBLISHED, ".gitattributes"}
    assert repo.files()["model.safetensors"] == (directory / "model.safetensors").read_bytes()

    # --- on another machine: pull and train ----
    monkeypatch.setenv("PYLO_ZOO_HOME", str(tmp_path / "elsewhere"))
    connect(hub, monkeypatch, tmp_path / "elsewhere-hf")
    capsys.readouterr()
    assert run("pull", REPO, "--revision", TAG, "-q") == 0
    pulled = Path(capsys.readouterr().out.strip())
    assert pulled.is_relative_to(tmp_path / "elsewhere")
    assert pulled.name == repo.head
    check_complete(store.home(), repo)
    before, count = digests(pulled), len(hub.log)
    whole, interrupted = model(), model()
    one, other = optimizer(family, whole), optimizer(family, interrupted)
    assert len(hub.log) == count, "loading a pulled artifact sends no request"

    # --- train, checkpoint, resume ---
    losses = train(whole, one, range(STEPS))
    first = train(interrupted, other, range(HALF))
    torch.save({"model": interrupted.state_dict(), "optimizer": other.state_dict()}, "run.pt")
    saved = torch.load("run.pt", weights_only=True)
    resumed = model()
    resumed.load_state_dict(saved["model"])
    third = optimizer(family, resumed)
    third.load_state_dict(saved["optimizer"])
    assert first + train(resumed, third, range(HALF, STEPS)) == losses
    ends = tensors(whole, one), tensors(resumed, third)
    assert len(ends[0]) == len(ends[1]) > len(list(whole.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
    assert not torch.equal(next(whole.parameters()), next(model().parameters()))

    # --- prove again and export --------------
    assert run("verify", f"hf://{REPO}", "--replay", "-q") == 0
    assert run("verify", URI, "--replay", "-q") == 0
    assert run("export", pulled, "--out", "again.state", "-q") == 0
    assert Path("again.state").read_bytes() == file.read_bytes()
    assert digests(pulled) == before, "the pulled files are unchanged"
    out, err = capsys.readouterr()
    check_silence(out, err, json.dumps(published))
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
