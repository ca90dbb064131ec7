"""How PyLO's optimizers find their weights, and a PyLO script with one changed import."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hub_double
import numpy as np
import pylo_files
import pytest
import torch
from golden_data import artifact as golden
from hub_double import HubDouble
from pylo_compat import MULO_OFFSETS, parameters
from safetensors.numpy import save
from torch import nn
from trees import synthetic_artifact, theta, write_theta

from pylo_zoo.artifact import write
from pylo_zoo.compat import pylo, weights
from pylo_zoo.convert import convert
from pylo_zoo.converters import FAMILIES
from pylo_zoo.converters.base import leaf_shapes
from pylo_zoo.errors import ZooError

OFFSETS = {name: list(value) for name, value in MULO_OFFSETS.items()}
OF = {"CELO2": "celo2", "ELO_CELO2": "elo-celo2", "ELO": "elo"}


def tensors(family: str) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in pylo_files.FILES[family](theta(family)).items()}


class PyLOsModule(nn.Module):
    """A stand-in for a PyLO network: its state_dict has PyLO's names."""

    def __init__(self, family: str, activation: str | None = None) -> None:
        super().__init__()
        for name, value in tensors(family).items():
            *path, last = name.split(".")
            module: nn.Module = self
            for part in path:
                if part not in module._modules:
                    module.add_module(part, nn.Module())
                module = module.get_submodule(part)
            module.register_parameter(last, nn.Parameter(value))
        if activation:
            self.activation = activation


# --- local weights -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OF)
def test_files_and_modules(name: str, tmp_path: Path) -> None:
    family = OF[name]
    expected = convert(family, source=write_theta(tmp_path, family)).fingerprint
    folder = tmp_path / "repository"
    folder.mkdir()
    safetensors = pylo_files.write(folder, family, theta(family))
    (folder / "config.json").write_text('{"hidden_size": 8}')
    torch.save(tensors(family), tmp_path / "network.pt")
    artifact = write(convert(family, source=safetensors), tmp_path / "zoo")
    for inputs in (
        {"checkpoint_path": tmp_path / "network.pt"},
        {"checkpoint_path": str(safetensors)},
        {"hf_key": str(folder)},
        {"hf_key": safetensors.as_posix()},
        {"hf_key": str(artifact)},
        {"hf_key": tmp_path / "theta.state"},
        {"network": PyLOsModule(family)},
        {"network": PyLOsModule(family), "checkpoint_path": "absent.pt", "hf_key": "absent"},
        {"checkpoint_path": safetensors, "hf_key": "absent"},
        {"network": convert(family, source=safetensors)},
    ):
        optimizer: Any = getattr(pylo, name)(parameters(), **inputs)
        assert optimizer.artifact.fingerprint == expected, inputs


def test_a_modules_activation_is_used() -> None:
    artifact = pylo.CELO2(parameters(), network=PyLOsModule("celo2", "tanh")).artifact
    assert artifact.behavior.mlp_activation == "tanh"
    with pytest.raises(ZooError, match="mlp_activation is 'gelu'"):
        pylo.CELO2(parameters(), network=PyLOsModule("celo2", "gelu"))


def test_orthogonalize_false_is_celo2_base_with_adamw_for_vectors(tmp_path: Path) -> None:
    path = pylo_files.write(tmp_path, "celo2", theta("celo2"))
    optimizer = pylo.CELO2(parameters(), checkpoint_path=path, orthogonalize=False)
    assert (optimizer.artifact.family, optimizer.behavior.orthogonalize) == ("celo2", False)


def test_velo_from_its_two_files(tmp_path: Path) -> None:
    expected = convert("velo", source=write_theta(tmp_path, "velo")).fingerprint
    both = pylo_files.write(tmp_path, "velo", theta("velo"))
    rnn, mlp = both / "VeLO_RNN", both / "VeLO_MLP"
    for one, other in ((rnn, mlp), (rnn / "model.safetensors", mlp / "model.safetensors"), (both, both)):
        optimizer = pylo.VeLO(parameters(), hf_key_rnn=str(one), hf_key_mlp=str(other))
        assert optimizer.artifact.fingerprint == expected
    sample = pylo.VeLO(parameters(), hf_key_rnn="velo-sample", hf_key_mlp="velo-sample").artifact
    assert sample.name == "velo-sample"
    (tmp_path / "empty").mkdir()
    for one, other, message in (
        (str(mlp), str(rnn), None),
        (str(tmp_path / "empty"), str(mlp), "holds no model.safetensors"),
        (sample, str(mlp), "'velo-sample' is a whole VeLO"),
        (str(rnn), str(rnn), "give a directory that holds both"),
    ):
        if message is None:
            assert pylo.VeLO(parameters(), hf_key_rnn=one, hf_key_mlp=other).artifact.fingerprint == expected
            continue
        with pytest.raises(ZooError, match=message):
            pylo.VeLO(parameters(), hf_key_rnn=one, hf_key_mlp=other)


def test_mulos_offsets(tmp_path: Path) -> None:
    path = pylo_files.write(tmp_path, "mulo", theta("mulo"))
    expected = convert("mulo", source=path, settings=OFFSETS).fingerprint
    for name in ("AdafacLO", "AdafacLO_CUDA"):
        assert getattr(pylo, name)(parameters(), hf_key=str(path)).artifact.fingerprint == expected
    groups = [{"params": parameters(), "width_mult": 2.0}]
    assert pylo.MuLO(groups, hf_key=str(tmp_path)).artifact.fingerprint == expected
    own = write_theta(tmp_path / "..", "mulo")
    assert pylo.AdafacLO(parameters(), hf_key=str(own)).artifact.fingerprint == convert("mulo", source=own).fingerprint


def test_load_from_file(tmp_path: Path) -> None:
    decays = {name: torch.tensor(value) / 2 for name, value in OFFSETS.items()}
    path = tmp_path / "trained.pt"
    torch.save({"state_dict": tensors("mulo"), "decays": decays}, path)
    for optimizer in (
        pylo.AdafacLO_CUDA(parameters(), load_from_file=path, rms_decays=[0.5]),
        pylo.MuLO_CUDA([{"params": parameters(), "width_mult": 1.0}], load_from_file=str(path)),
    ):
        for name, value in decays.items():
            assert torch.equal(optimizer.artifact.tensors[name], value)
        assert optimizer.artifact.behavior.step_mult == 0.01
    torch.save(tensors("mulo"), path)
    with pytest.raises(ZooError, match="no network with its decays"):
        pylo.AdafacLO_CUDA(parameters(), load_from_file=path)


# --- published weights -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "entry"),
    [
        ("VeLO", {}, "velo-pylo"),
        ("VeLO_CUDA", {}, "velo-pylo"),
        ("VeLO", {"hf_key_rnn": "velo-s", "hf_key_mlp": "velo-s"}, "velo-s"),
        ("CELO2", {}, "celo2-pylo"),
        ("CELO2", {"hf_key": "amoudgl/celo2"}, "celo2"),
        ("CELO2", {"hf_key": "celo2-base"}, "celo2-base"),
        ("ELO", {}, "elo"),
        ("ELO_CELO2", {}, "elo-celo2"),
        ("AdafacLO", {}, "mulo"),
        ("AdafacLO", {"hf_key": "amoudgl/adafac-mlp-lopt"}, "adafac-mlp"),
        ("MuLO", {}, "mulo"),
        ("MuLO_CUDA", {}, "mulo"),
    ],
)
def test_published_keys_are_registry_names(
    name: str, options: dict[str, Any], entry: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    requested = []

    def load(what: str) -> Any:
        requested.append(what)
        return synthetic_artifact(FAMILIES[entry].name if entry in FAMILIES else entry.partition("-")[0])

    monkeypatch.setattr(weights, "load", load)
    getattr(pylo, name)([{"params": parameters(), "width_mult": 1.0}], **options)
    assert requested == [entry]


VELO_SCRIPT = """
import torch
from pylo.optim import VeLO

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1))
data, target = torch.randn(64, 8), torch.randn(64, 1)
optimizer = VeLO(model.parameters(), lr=1.0, num_steps=30, weight_decay=0.001)
schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lr_lambda=lambda step: 1.0)
losses = []
for _ in range(30):
    optimizer.zero_grad()
    loss = torch.nn.functional.mse_loss(model(data), target)
    loss.backward()
    optimizer.step(loss)
    schedule.step()
    losses.append(loss.item())
"""

CELO2_SCRIPT = """
import torch
from pylo.optim import CELO2_naive

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Embedding(10, 8), torch.nn.Linear(8, 8), torch.nn.Linear(8, 10))
table, *others = model.parameters()
optimizer = CELO2_naive([{"params": others}, {"params": [table], "is_embedding": True}], lr=1e-2, clip_grad=True)
warmup = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.1, total_iters=5)
words = torch.arange(10)
for _ in range(20):
    optimizer.zero_grad()
    loss = torch.nn.functional.cross_entropy(model(words), words.roll(1))
    loss.backward()
    optimizer.step()
    warmup.step()
assert all(p.isfinite().all() for p in model.parameters())
print(sorted({str(group["rule"]) for group in optimizer.param_groups}), loss.item())
"""


def changed(script: str) -> str:
    assert script.count("from pylo.optim import") == 1
    return script.replace("from pylo.optim import", "from pylo_zoo.compat.pylo import")


def test_a_velo_script_runs_by_changing_one_import(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "load", lambda name: {"velo-pylo": golden("velo_small")}[name])
    names: dict[str, Any] = {}
    exec(changed(VELO_SCRIPT), names)
    assert np.isfinite(names["losses"]).all()
    assert len(set(names["losses"])) == 30


@pytest.fixture
def hub() -> Iterator[HubDouble]:
    """Environment for separate processes: this one stays offline."""
    with hub_double.serving() as hub:
        yield hub


def released(family: str) -> dict[tuple[str, ...], np.ndarray]:
    """Random leaves of the published size."""
    random = np.random.default_rng(0)
    shapes = leaf_shapes(FAMILIES[family], FAMILIES[family].released)
    return {path: 0.1 * random.standard_normal(shape, dtype=np.float32) for path, shape in shapes.items()}


def python(code: str, hub: HubDouble, cwd: Path) -> subprocess.CompletedProcess[str]:
    env = hub.environment(cwd / "hf-home")
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, check=False, timeout=120)


def test_a_celo2_script_fetches_its_default_weights(hub: HubDouble, tmp_path: Path) -> None:
    hub.create("DiamondXL/celo2", {"model.safetensors": save(pylo_files.celo2(released("celo2")))})
    done = python(changed(CELO2_SCRIPT), hub, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("['None', 'adamw'] ")
    assert hub.requests("HEAD", "^/DiamondXL/celo2/resolve/main/model.safetensors$")


def test_a_custom_repository(hub: HubDouble, tmp_path: Path) -> None:
    velo = theta("velo")
    for repository, result in (("me/rnn", pylo_files.velo_rnn(velo)), ("me/mlp", pylo_files.velo_mlp(velo))):
        hub.create(repository, {"model.safetensors": save(result)})
    hub.create("me/elo", {"model.safetensors": save(pylo_files.network(theta("elo")))})
    code = """
import torch
from pylo_zoo.compat.pylo import ELO, VeLO
p = [torch.nn.Parameter(torch.randn(3, 2))]
print(VeLO(p, hf_key_rnn="me/rnn", hf_key_mlp="me/mlp").artifact.fingerprint)
print(ELO(p, hf_key="me/elo").artifact.fingerprint)
"""
    done = python(code, hub, tmp_path)
    assert done.returncode == 0, done.stderr
    expected = [convert(family, source=write_theta(tmp_path, family)).fingerprint for family in ("velo", "elo")]
    assert done.stdout.split() == expected
