"""``pylo-zoo info`` of a directory or a Hub repository; test_cli_words.py covers the registry."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from commands import Capture, refused, report_of, run
from hub_double import HubDouble
from trees import write_theta

from pylo_zoo import artifact, converters
from pylo_zoo.convert import convert

NASTY = "a \x1b[31mred\x07 card"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """An artifact with a report that passed."""
    converted = convert("elo", source=write_theta(tmp_path, "elo"))
    converted = replace(converted, parity=report_of(converted, error=1e-7).to_dict())
    return artifact.write(converted, tmp_path / "made", extra_files={artifact.CARD: NASTY.encode()})


def test_info_of_a_directory(directory: Path, capsys: Capture) -> None:
    assert run("info", directory) == 0
    text = capsys.readouterr().out
    for what in ("elo", "passed", "file:theta.state", "model.safetensors", "hidden_size", "ELO(param_groups(model)"):
        assert what in text
    assert "by its publisher" not in text
    assert run("info", directory, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["parity"]["status"], result["commit"], result["license"]) == ("passed", None, "unknown")
    sizes = {each["name"]: each["bytes"] for each in result["files"]}
    assert sizes == {path.name: path.stat().st_size for path in directory.iterdir()}


def test_info_of_a_hub_repository_with_its_card(hub: HubDouble, directory: Path, capsys: Capture) -> None:
    repo = hub.create("org/mine", {path.name: path.read_bytes() for path in directory.iterdir()})
    assert run("info", "hf://org/mine") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert repo.head in text
    assert "its publisher" in text, "who made the proof"
    assert 'weights="hf://org/mine"' in text
    assert run("info", "hf://org/mine", "--card") == 0
    assert capsys.readouterr().out == "a \\x1b[31mred\\x07 card\n", "no escape sequences"
    assert run("info", "org/mine", "--json", "--offline") == 0
    assert json.loads(capsys.readouterr().out)["card"] == NASTY


@pytest.mark.parametrize("family", converters.FAMILIES)
def test_random_weights(family: str, capsys: Capture) -> None:
    name = f"random:{family}"
    assert run("info", name) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"{name}\n")
    assert f'weights="{name}"' in text
    assert run("info", name, "--json") == 0
    described = json.loads(capsys.readouterr().out)
    assert (described["family"], described["files"], described["directory"]) == (family, [], None)
    assert described["parity"]["status"] == "not_run"
    assert "has no model card.\nHint: Leave --card out." in refused(capsys, "info", name, "--card")


def test_random_weights_of_an_unknown_family(capsys: Capture) -> None:
    assert "celo3" in refused(capsys, "info", "random:celo3", status=2)


def test_info_without_a_card(directory: Path, capsys: Capture) -> None:
    (directory / artifact.CARD).unlink()
    assert "has no model card" in refused(capsys, "info", directory, "--card")
    assert run("info", directory, "--json") == 0
    assert json.loads(capsys.readouterr().out)["card"] is None


def test_a_path_that_does_not_exist_is_a_failure(capsys: Capture) -> None:
    for name in ("nope/", "./nope", "nope/elo/"):
        assert "does not exist" in refused(capsys, "info", name)


def test_an_artifact_without_a_report(directory: Path, capsys: Capture) -> None:
    (directory / artifact.PARITY).unlink()
    assert run("info", directory) == 0
    text = capsys.readouterr().out
    assert "not checked" in text
    assert "not_run" not in text
    error = refused(capsys, "verify", directory, "--replay")
    assert f"{directory} has no proof to replay." in error
    assert f"Run `pylo-zoo verify {directory}` with JAX installed." in error
