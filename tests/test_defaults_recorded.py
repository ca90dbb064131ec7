"""The defaults of a proven artifact cannot change unnoticed; older artifacts and states still load."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import Capture, refused, report_of, run
from trees import write_theta

from pylo_zoo import artifact, weights
from pylo_zoo.artifact import Artifact
from pylo_zoo.convert import convert
from pylo_zoo.errors import ZooError
from pylo_zoo.optim import ELO
from pylo_zoo.pipeline import build_artifact
from pylo_zoo.publish import plan
from pylo_zoo.report.reading import read_report
from pylo_zoo.report.records import Report


@pytest.fixture
def proven(tmp_path: Path) -> Path:
    """An artifact with a report that passed."""
    converted = build_artifact("elo", source=write_theta(tmp_path, "elo"), out=tmp_path / "a", verify=False).artifact
    report = {**report_of(converted, 1e-7).to_dict(), "defaults": dict(converted.defaults)}
    artifact.write_parity(tmp_path / "a", report)
    return tmp_path / "a"


def edit(folder: Path, name: str, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads((folder / name).read_text())
    change(content)
    (folder / name).write_text(json.dumps(content))


def test_the_report_records_the_defaults(tmp_path: Path) -> None:
    converted = build_artifact("elo", source=write_theta(tmp_path, "elo"), out=tmp_path / "a", verify=False).artifact
    recorded = json.loads((tmp_path / "a" / "parity.json").read_text())["defaults"]
    assert recorded == dict(converted.defaults) != {}
    assert read_report(json.loads((tmp_path / "a" / "parity.json").read_text())).defaults == recorded


def test_an_untouched_artifact_loads(proven: Path) -> None:
    assert weights.load(proven).changed_default() is None


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "another rate": (lambda c: c["defaults"].update(lr=0.125), r"the default lr was [\d.e-]+ and is 0\.125"),
    "a missing rate": (lambda c: c["defaults"].pop("lr"), r"the default lr was [\d.e-]+ and is None"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_an_edited_default_is_refused_with_a_remedy(case: str, proven: Path, capsys: Capture) -> None:
    change, reason = CHANGES[case]
    edit(proven, "config.json", change)
    with pytest.raises(ZooError, match=reason) as error:
        ELO([torch.nn.Parameter(torch.ones(3))], weights=str(proven))
    assert error.value.hint == f"Check it again with `pylo-zoo verify {proven}`."
    refused(capsys, "info", proven)
    refused(capsys, "train", "quadratic", "--optimizer", proven, "--steps", "1", "--out", proven.parent / "run")
    loaded = artifact.read(proven)
    assert loaded.parity is not None
    fault = plan._fault(loaded, proven, read_report(loaded.parity))
    assert fault is not None
    assert fault.startswith("its default lr was ")


@pytest.mark.parametrize("value", [5, [], "x", None, {"lr": "x"}, {}])
def test_an_invalid_record_does_not_count_as_agreement(value: Any, proven: Path) -> None:
    edit(proven, "parity.json", lambda c: c.update(defaults=value))
    if value is None:  # like an artifact without a record
        assert weights.load(proven)
        return
    with pytest.raises(ZooError):
        weights.load(proven)


def test_an_older_artifact_loads(proven: Path) -> None:
    edit(proven, "parity.json", lambda c: c.pop("defaults"))
    loaded = weights.load(proven)
    assert loaded.parity is not None
    assert read_report(loaded.parity).defaults is None


def test_an_older_saved_state_loads(proven: Path) -> None:
    """Its ``weights`` are the fingerprint, which has not changed."""
    p = torch.nn.Parameter(torch.ones(3))
    loaded: Artifact = weights.load(proven)
    optimizer = ELO([p], weights=str(proven))
    p.grad = torch.ones(3)
    optimizer.step()
    state = optimizer.state_dict()
    assert state["param_groups"][0]["weights"] == loaded.fingerprint[:16]
    edit(proven, "parity.json", lambda c: c.pop("defaults"))
    ELO([torch.nn.Parameter(torch.ones(3))], weights=str(proven)).load_state_dict(state)


def test_verify_records_the_current_defaults(proven: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    from pylo_zoo.parity import targets

    edit(proven, "config.json", lambda c: c["defaults"].update(lr=0.125))

    def passed(converted: Artifact, source: Path, **how: Any) -> Report:
        from dataclasses import replace

        return replace(report_of(converted, 1e-7), defaults=dict(converted.defaults))

    monkeypatch.setattr(targets.parity, "verify", passed)
    assert run("verify", proven, "-q") == 0
    capsys.readouterr()
    assert weights.load(proven).defaults["lr"] == 0.125


def test_the_fingerprint_has_not_changed() -> None:
    assert convert("velo-sample").fingerprint == FINGERPRINT


FINGERPRINT = "1cd0574888fd655326f2293cbee01ece44180c841417ddc0d9dbf72a426d18c5"
"""The sample's fingerprint in every earlier version; saved states and published reports contain it."""
