"""``pylo-zoo convert``: its output, what it refuses, and the files that it leaves."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from commands import Capture, digests, refused, report_of, run, without_jax
from trees import encode, nested, theta, write_checkpoint, write_params, write_theta

from pylo_zoo import artifact, optim, parity
from pylo_zoo.convert import convert
from pylo_zoo.converters import FAMILIES
from pylo_zoo.report.records import Report


@pytest.fixture(autouse=True)
def in_an_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# --- convert -------------------------------------------------------------------------------------------------------


def test_convert_and_export_round_trip(capsys: Capture, tmp_path: Path) -> None:
    path = write_theta(tmp_path, "celo")
    assert run("convert", "celo", "--source", path, "--no-verify") == 0
    out, err = capsys.readouterr()
    assert out.startswith("zoo/celo\n")
    assert err == "Warning: parity was not checked: --no-verify.\n"
    assert sorted(digests(Path("zoo/celo"))) == ["config.json", "model.safetensors", "parity.json"]
    report = artifact.read("zoo/celo").parity
    assert report is not None
    assert (report["status"], report["reason"]) == ("not_run", "--no-verify")
    assert report["leaves"]["passed"]
    assert report["leaves"]["compared"] == 33
    assert run("export", "zoo/celo", "--out", "again.state") == 0
    assert Path("again.state").read_bytes() == path.read_bytes()


def test_convert_prints_json(capsys: Capture, tmp_path: Path) -> None:
    path = write_theta(tmp_path, "adafac-mlp")
    words = ["--out", "x", "--no-verify", "--json", "-q", "--set", "step_mult=1e-2"]
    assert run("convert", "mulo", "--source", path, *words) == 0
    out, err = capsys.readouterr()
    output = json.loads(out)
    assert err == ""
    assert (output["directory"], output["family"], output["name"], output["matched_entry"]) == (
        "x",
        "mulo",
        "mulo",
        None,
    )
    assert output["behavior"]["step_mult"] == 0.01
    assert output["source"] == {
        "uri": "file:theta.state",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "bytes": path.stat().st_size,
        "license": "unknown",
        "format": "flax-msgpack",
    }


def test_quiet_prints_the_directory(capsys: Capture, tmp_path: Path) -> None:
    assert run("convert", "elo", "--source", write_theta(tmp_path, "elo"), "--no-verify", "-q") == 0
    assert capsys.readouterr() == ("zoo/elo\n", "")


def test_format_pt(tmp_path: Path) -> None:
    words = ["--source", write_theta(tmp_path, "celo2"), "--no-verify", "--format", "pt"]
    assert run("convert", "celo2", *words) == 0
    loaded = torch.load("zoo/celo2/model.pt", weights_only=True)
    assert {name: tensor.tolist() for name, tensor in loaded.items()} == {
        name: tensor.tolist() for name, tensor in artifact.read("zoo/celo2").state_dict().items()
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_defaults_and_behavior_are_the_released_ones(family: str, tmp_path: Path) -> None:
    converted = convert(family, source=write_theta(tmp_path, family))
    assert converted.behavior == FAMILIES[family].behavior()
    assert converted.defaults == {key: value for key, value in FAMILIES[family].defaults.items() if value is not None}
    assert converted.defaults["weight_decay"] == (0.1 if family == "elo-celo2" else 0.0)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_optimizer_that_a_family_names_exists(family: str) -> None:
    module, _, name = FAMILIES[family].optimizer.partition(":")
    assert (module, name in optim.__all__) == ("pylo_zoo.optim", True), (
        f"The optimizer of {family}, {module}:{name}, is not exported: import {name} in pylo_zoo/optim/__init__.py, "
        f"add it to __all__, and name it 'pylo_zoo.optim:{name}' in the family."
    )
    result = optim.optimizer_class(family)
    assert FAMILIES[family].optimizer == f"pylo_zoo.optim:{result.__name__}"
    assert family in result.families


# --- parity ------------------------------------------------------------------------------------------------------


def plant_error(monkeypatch: pytest.MonkeyPatch, error: float) -> None:
    """Make parity report this error."""

    def verify(converted: artifact.Artifact, source: Path, **how: object) -> Report:
        assert hashlib.sha256(source.read_bytes()).hexdigest() == converted.source.sha256
        return report_of(converted, error)

    monkeypatch.setattr(parity, "verify", verify)


def test_parity_runs_by_default_and_its_report_is_stored(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant_error(monkeypatch, error=1e-7)
    assert run("convert", "elo", "--source", write_theta(tmp_path, "elo")) == 0
    out, err = capsys.readouterr()
    assert "network" in out
    assert err == ""
    report = artifact.read("zoo/elo").parity
    assert report is not None
    assert report["status"] == "passed"


def test_without_jax_the_artifact_is_written_with_a_warning(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_jax(monkeypatch)
    assert run("convert", "elo", "--source", write_theta(tmp_path, "elo")) == 0
    assert capsys.readouterr().err.startswith("Warning: parity was not checked: jax and flax are not installed")
    report = artifact.read("zoo/elo").parity
    assert report is not None
    assert (report["status"], report["leaves"]["passed"]) == ("not_run", True)


@pytest.mark.parametrize("existing", [True, False])
def test_a_failing_parity_writes_nothing(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, existing: bool
) -> None:
    path = write_theta(tmp_path, "elo")
    if existing:
        assert run("convert", "elo", "--source", path, "--no-verify", "-q") == 0
        capsys.readouterr()
    before = digests(Path("zoo/elo")) if existing else None
    plant_error(monkeypatch, error=0.5)
    assert run("convert", "elo", "--source", path, "--force", "--json") == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["parity"]["status"] == "failed"
    assert [line.partition(":")[0] for line in err.splitlines()] == ["Error", "Hint"]
    assert sorted(path.name for path in tmp_path.iterdir()) == (["theta.state", "zoo"] if existing else ["theta.state"])
    assert not existing or digests(Path("zoo/elo")) == before


# --- what is refused ---------------------------------------------------------------------------------------------


def wrong_family(tmp_path: Path) -> tuple[list[object], str]:
    path = write_theta(tmp_path, "celo2")
    return ["velo", "--source", path], r"not a checkpoint of the family velo.*\n.*as celo2 or celo2-base"


def misspelled_family(tmp_path: Path) -> tuple[list[object], str]:
    leaves = theta("elo")
    del leaves["nn", "~", "b1"]
    (tmp_path / "theta.state").write_bytes(encode(nested(leaves)))
    return ["elo", "--source", "theta.state"], "not a checkpoint of the family elo"


def not_finite(tmp_path: Path) -> tuple[list[object], str]:
    leaves = theta("elo")
    leaves["nn", "~", "b1"][0] = math.nan
    (tmp_path / "theta.state").write_bytes(encode(nested(leaves)))
    return ["elo", "--source", "theta.state"], r"NaN or infinite values \(1\): nn/~/b1"


def damaged(tmp_path: Path) -> tuple[list[object], str]:
    (tmp_path / "theta.state").write_bytes(encode(nested(theta("elo")))[:-5])
    return ["elo", "--source", "theta.state"], "not a complete flax msgpack file"


def absent(tmp_path: Path) -> tuple[list[object], str]:
    return ["elo", "--source", "nothing.state"], r"nothing\.state does not exist"


def output_that_exists(tmp_path: Path) -> tuple[list[object], str]:
    path = write_theta(tmp_path, "elo")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("keep")
    return ["elo", "--source", path, "--out", "notes", "--force"], "mine.txt"


def unknown_setting(tmp_path: Path) -> tuple[list[object], str]:
    return ["elo", "--source", write_theta(tmp_path, "elo"), "--set", "exp_mlt=1"], "Did you mean 'exp_mult'"


def setting_of_another_family(tmp_path: Path) -> tuple[list[object], str]:
    return ["elo", "--source", write_theta(tmp_path, "elo"), "--set", "ff_mult=1"], "unknown field 'ff_mult'"


def setting_of_the_wrong_type(tmp_path: Path) -> tuple[list[object], str]:
    return ["elo", "--source", write_theta(tmp_path, "elo"), "--set", "exp_mult=yes"], "exp_mult is True"


def setting_without_a_value(tmp_path: Path) -> tuple[list[object], str]:
    return ["elo", "--source", write_theta(tmp_path, "elo"), "--set", "exp_mult"], "is not FIELD=VALUE"


def setting_against_the_tree(tmp_path: Path) -> tuple[list[object], str]:
    path = write_theta(tmp_path, "velo")
    return [
        "velo",
        "--source",
        path,
        "--set",
        "param_inits=4",
    ], "param_inits is 4 in the settings .*, but 3 in"


def setting_against_the_gin_file(tmp_path: Path) -> tuple[list[object], str]:
    words = ["--set", "use_bugged_loss_features=true"]
    return ["velo", "--source", write_params(tmp_path), *words], "is true in the settings .*, but false in config.gin"


def setting_against_the_container(tmp_path: Path) -> tuple[list[object], str]:
    words = ["--set", "use_bugged_next_lstm_state=false"]
    return ["velo", "--source", write_checkpoint(tmp_path), *words], "but true in the flax-checkpoint container"


def gin_file_against_the_tree(tmp_path: Path) -> tuple[list[object], str]:
    path = write_params(tmp_path, gin="HyperV2.param_inits = 3\n")
    return ["velo", "--source", path], "lstm_hidden_size is 128 in config.gin, but 5 in the tree of leaves"


def gin_file_with_an_ablation(tmp_path: Path) -> tuple[list[object], str]:
    path = write_params(tmp_path, gin="HyperV2.with_g = False\n")
    return ["velo", "--source", path], r"HyperV2\.with_g = False is another update rule"


def gin_file_of_another_family(tmp_path: Path) -> tuple[list[object], str]:
    path = write_params(tmp_path)
    path.write_bytes(encode({"params": nested(theta("celo")), "gen_id": "", "step": 0}))
    return ["celo", "--source", path], "so this is a velo checkpoint, not celo"


def unknown_name(tmp_path: Path) -> tuple[list[object], str]:
    return ["vello"], "Unknown checkpoint 'vello'.*\n.*Did you mean 'velo'"


def unknown_family(tmp_path: Path) -> tuple[list[object], str]:
    return ["adam", "--source", write_theta(tmp_path, "elo")], "Unknown family 'adam'.*\n.*Did you mean 'celo-adam'"


def entry_with_a_source(tmp_path: Path) -> tuple[list[object], str]:
    return ["velo-s", "--source", "f"], "velo-s is a registry entry.*\n.*convert velo --source f"


def unreachable_entry(tmp_path: Path) -> tuple[list[object], str]:
    by_hand = (
        r"resolve/main/theta.state \(149,216 bytes, sha256 35683c.*`pylo-zoo convert celo --source theta.state --out"
    )
    return ["celo"], f"hf://amoudgl/celo/theta.state is not in the cache.*\n.*{by_hand}"


def entry_of_two_files(tmp_path: Path) -> tuple[list[object], str]:
    return ["velo-pylo"], "not in the cache.*\n.*convert velo --source DIRECTORY"


FAILURES = [
    wrong_family,
    misspelled_family,
    not_finite,
    damaged,
    absent,
    output_that_exists,
    unknown_setting,
    setting_of_another_family,
    setting_of_the_wrong_type,
    setting_without_a_value,
    setting_against_the_tree,
    setting_against_the_gin_file,
    setting_against_the_container,
    gin_file_against_the_tree,
    gin_file_with_an_ablation,
    gin_file_of_another_family,
    unknown_name,
    unknown_family,
    entry_with_a_source,
    unreachable_entry,
    entry_of_two_files,
]
WRONG_USAGE = [
    unknown_setting,
    setting_of_another_family,
    setting_of_the_wrong_type,
    setting_without_a_value,
    unknown_name,
    unknown_family,
    entry_with_a_source,
]
"""The failures that are mistakes in the command line itself."""


@pytest.mark.parametrize("case", FAILURES, ids=lambda case: case.__name__)
def test_a_refusal_is_two_lines_and_leaves_nothing(
    case: Callable[[Path], tuple[list[object], str]], capsys: Capture, tmp_path: Path, zoo_home: Path
) -> None:
    words, complaint = case(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    error = refused(capsys, "convert", *words, "--no-verify", status=2 if case in WRONG_USAGE else 1)
    assert re.search(complaint, error), error
    assert sorted(tmp_path.rglob("*")) == before
    assert [path for path in zoo_home.rglob("*") if path.is_file() and path.suffix != ".lock"] == []


def test_a_refused_replacement_leaves_the_old_artifact(capsys: Capture, tmp_path: Path) -> None:
    path = write_theta(tmp_path, "elo")
    assert run("convert", "elo", "--source", path, "--no-verify", "-q") == 0
    before = digests(Path("zoo/elo"))
    capsys.readouterr()
    assert "already exists" in refused(capsys, "convert", "elo", "--source", path, "--no-verify")
    path.write_bytes(path.read_bytes()[:-1])
    refused(capsys, "convert", "elo", "--source", path, "--no-verify", "--force")
    assert digests(Path("zoo/elo")) == before
    assert [entry.name for entry in Path("zoo").iterdir()] == ["elo"]
