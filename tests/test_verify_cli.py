"""``pylo-zoo verify``: exit status, output and files."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import Capture, digests, refused, report_of, run, without_jax
from proofs import corrupted, random_weights

from pylo_zoo import artifact, converters, parity
from pylo_zoo.errors import ZooError
from pylo_zoo.fetch import Access
from pylo_zoo.fetch.errors import Unavailable
from pylo_zoo.parity import cases, completeness, controls, kernel_faults, targets
from pylo_zoo.report import bounds
from pylo_zoo.report.records import Control

pytest.importorskip("jax")

ROOT = Path(__file__).parent.parent
FAMILY = "celo-adam"
"""The family whose proof is fastest."""


@pytest.fixture(scope="module")
def proven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact's directory with its proof, made by the command itself, next to the original."""
    random_artifact, source = random_weights(FAMILY)
    directory = tmp_path_factory.mktemp("verify")
    artifact.write(random_artifact, directory / FAMILY)
    (directory / "theta.state").write_bytes(source.read_bytes())
    assert run("verify", directory / FAMILY, "--source", directory / "theta.state", "-q") == 0
    return directory / FAMILY


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


def usage(capsys: Capture, *argv: object) -> str:
    assert run("verify", *argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    return err


def test_verify_writes_its_proof_into_the_directory(proven: Path, capsys: Capture) -> None:
    assert sorted(digests(proven)) == [
        "config.json",
        "model.safetensors",
        "parity-vectors.safetensors",
        "parity.json",
    ]
    report = json.loads((proven / "parity.json").read_text())
    assert report["status"] == "passed"
    assert report["vectors_sha256"] == digests(proven)["parity-vectors.safetensors"]
    before = digests(proven)
    assert run("verify", proven, "--replay") == 0
    out = capsys.readouterr().out
    assert "whole runs" in out
    assert "6 of 6 caught" in out
    assert out.splitlines()[-1] == "parity: passed"
    assert digests(proven) == before


def test_replay_needs_no_jax(proven: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    without_jax(monkeypatch)
    assert run("verify", proven, "--replay", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert {check["level"] for check in result["checks"]} == {"network", "trajectory"}
    assert run("verify", proven, "--source", proven.parent / "theta.state") == 1
    assert "--replay" in capsys.readouterr().err


def test_every_kind_of_report_is_written(proven: Path, capsys: Capture, tmp_path: Path) -> None:
    page, card, xml = (tmp_path / name for name in ("parity.html", "card.md", "parity.xml"))
    words = ["--source", proven.parent / "theta.state", "--html", page, "--markdown", card, "--junit", xml]
    assert run("verify", proven, *words, "--explain", "--seed", "3") == 0
    out = capsys.readouterr().out
    assert "Nearest to its bound (no quantity of a single step exceeds its bound): " in out
    assert "fraction_features" in out
    assert json.loads((proven / "parity.json").read_text())["settings"]["seed"] == 3
    assert "<svg" in page.read_text()
    assert FAMILY in card.read_text()
    suites = ElementTree.parse(xml).getroot()
    assert (suites.get("failures"), suites.get("errors")) == ("0", "0")
    assert int(suites.get("tests", 0)) > 20


def test_a_broken_port_is_explained(proven: Path, capsys: Capture, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    artifact.write(corrupted(artifact.read(proven), "controller.step_size.bias", 1.01), wrong)
    assert run("verify", wrong, "--source", proven.parent / "theta.state", "--junit", tmp_path / "x.xml") == 1
    out, err = capsys.readouterr()
    assert "First difference: lr_mult of " in out
    assert re.search(r"torch -?\d\.\d+, original -?\d\.\d+", out)
    assert "the torch side is already wrong" in out
    assert [line.partition(":")[0] for line in err.splitlines()] == ["Error", "Hint"]
    assert int(ElementTree.parse(tmp_path / "x.xml").getroot().get("failures", 0)) > 5
    assert json.loads((wrong / "parity.json").read_text())["status"] == "failed"


def test_a_bound_can_be_tightened(proven: Path, capsys: Capture) -> None:
    words = ["verify", proven, "--source", proven.parent / "theta.state", "-q"]
    assert run(*words, "--max-error", "1e-20") == 1
    assert capsys.readouterr().out == "failed\n"
    assert run(*words, "--max-error", "1e-11") == 0


def test_an_undetected_fault_fails_the_run(
    proven: Path, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blind = controls.Fault("nothing", "nothing at all", data=lambda data: data)
    monkeypatch.setattr(controls, "FAULTS", (blind,))
    monkeypatch.setattr(completeness, "check", lambda *arguments: None)
    words = "verify", shutil.copytree(proven, tmp_path / "copy"), "--source", proven.parent / "theta.state"
    assert run(*words) == 1
    out, err = capsys.readouterr()
    assert "missed: nothing" in out
    assert "it missed a planted fault (nothing)" in err
    monkeypatch.setattr(controls, "FAULTS", (replace(blind, data=lambda data: None),))
    monkeypatch.setattr(controls, "by_level", lambda *arguments, right: [])
    monkeypatch.setattr(kernel_faults, "run", lambda *arguments, right: [])
    assert run(*words) == 1
    assert "it could try no planted fault" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "--all"),
        (["zoo/celo", "--all"], "--all"),
        (["--all", "--replay"], "--replay"),
        (["--all", "--source", "theta.state"], "--source"),
        (["zoo/celo", "--require-all"], "--require-all requires --all"),
        (["zoo/celo", "--replay", "--max-error", "1e-9"], "--max-error"),
        (["zoo/celo", "--max-error", "-1"], "--max-error"),
        (["zoo/celo", "--seed", "x"], "--seed"),
    ],
)
def test_wrong_usage_exits_with_2(capsys: Capture, words: list[str], complaint: str) -> None:
    assert complaint in usage(capsys, *words)


def test_an_unknown_family(capsys: Capture) -> None:
    assert "Unknown family 'celo3'" in refused(capsys, "verify", "random:celo3", status=2)


def test_a_report_that_cannot_be_written(proven: Path, capsys: Capture, tmp_path: Path) -> None:
    assert str(tmp_path / "no" / "x.html") in refused(
        capsys, "verify", proven, "--replay", "--html", tmp_path / "no" / "x.html"
    )


# --- verify all --------------------------------------------------------------------------------------------------


def everything(monkeypatch: pytest.MonkeyPatch, **outcomes: Any) -> None:
    """Set each target's outcome without running anything: an error of its one check, or an exception."""
    random_artifact, _ = random_weights(FAMILY)

    def verify_target(name: str, *args: Any, **kwargs: Any) -> parity.Report:
        outcome = outcomes.get(name.replace(":", "_").replace("-", "_"), 1e-9)
        if isinstance(outcome, Exception):
            raise outcome
        return report_of(random_artifact, outcome)

    monkeypatch.setattr(targets, "verify_target", verify_target)


def test_all_is_every_family_and_every_entry(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    everything(monkeypatch)
    assert run("verify", "--all", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["status"], len(result["reports"]), result["missing"]) == ("passed", len(targets.targets()), {})
    assert {f"random:{family}" for family in converters.OWN} <= set(targets.targets())
    assert {"velo", "celo", "velo-sample"} <= set(targets.targets())


def test_missing_files_are_listed_and_fail_only_if_required(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    everything(
        monkeypatch,
        velo=Unavailable("velo's file is not in the cache.", "Turn offline mode off (--offline, HF_HUB_OFFLINE)."),
    )
    assert run("verify", "--all", "--junit", tmp_path / "all.xml") == 0
    assert "missing: velo's file" in re.sub(r"\s+", " ", capsys.readouterr().out)
    assert int(ElementTree.parse(tmp_path / "all.xml").getroot().get("skipped", 0)) >= 1
    assert run("verify", "--all", "--require-all", "-q") == 1
    assert "The files of these entries are unavailable: velo." in capsys.readouterr().err


def test_one_broken_entry_does_not_stop_the_others(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    everything(monkeypatch, velo=ZooError("velo is not what it should be.", "Look."))
    assert run("verify", "--all", "--json") == 1
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert (result["status"], list(result["broken"])) == ("failed", ["velo"])
    assert len(result["reports"]) == len(targets.targets()) - 1
    assert "velo could not be checked: velo is not what it should be." in err


def test_files_outside_the_cache_are_missing_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "targets", lambda: ["velo", "celo2"])
    result = targets.verify_all(Access(offline=True))
    assert list(result.missing) == ["velo", "celo2"]
    assert (result.passed, result.broken, result.reports) == (False, {}, [])


def test_one_failure_fails_all(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    everything(monkeypatch, random_celo2=0.5)
    assert run("verify", "--all", "-q") == 1
    out, err = capsys.readouterr()
    assert out == "failed\n"
    assert err.startswith("Error: ")


def test_all_without_jax_fails(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    without_jax(monkeypatch)
    assert run("verify", "--all", "--offline", "-q") == 1
    assert "pip install 'pylo-zoo[jax]'" in capsys.readouterr().err


def test_a_missed_control_is_a_failure_of_the_report() -> None:
    report = report_of(random_weights(FAMILY)[0], 1e-9)
    assert report.passed
    object.__setattr__(report, "controls", [Control("x", "x", "missed", "nothing")])
    assert report.status == "failed"


# --- workflows and their page -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["parity.yml", "verify-artifact.yml"])
def test_the_workflows_use_commands_that_exist(name: str, capsys: Capture) -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / name).read_text())
    steps = workflow["jobs"]["verify"]["steps"]
    lines = [line for step in steps for line in step.get("run", "").splitlines() if line.startswith("pylo-zoo ")]
    assert lines
    for line in lines:
        words = shlex.split(line.replace("${SOURCE:+", "").replace('"$SOURCE"}', '"$SOURCE"'))[1:]
        assert run(words[0], "--help") == 0
        known = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
        assert {word for word in words if word.startswith("--")} <= known


def test_the_reusable_workflow_matches_the_page() -> None:
    page = (ROOT / "docs" / "parity.md").read_text()
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "verify-artifact.yml").read_text())
    example = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)[0])
    call = workflow[True]["workflow_call"]  # YAML reads `on` as a truth value
    inputs = example["jobs"]["parity"]["with"]
    assert set(inputs) <= set(call["inputs"])
    assert {name for name, field in call["inputs"].items() if field.get("required")} <= set(inputs)
    assert example["jobs"]["parity"]["uses"].endswith("/.github/workflows/verify-artifact.yml@main")


def test_the_page_matches_the_code() -> None:
    page = (ROOT / "docs" / "parity.md").read_text()
    assert f"{bounds.FACTOR} · noise" in page
    assert f"{bounds.FLOOR} · eps" in page
    assert f"{len(cases.CASES)} shapes" in page
    assert "on seven of the shapes" in " ".join(page.lower().split())
    assert len(cases.REDUCED) == 7
    assert "eleven regimes" in page
    assert len(cases.REGIMES) == 11
    assert len(controls.FAULTS) == 13
