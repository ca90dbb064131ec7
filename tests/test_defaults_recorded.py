"""The defaults of a proven artifact cannot change unseen; artifacts and states of before still load."""

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
from pylo_zoo.convert import convert, make
from pylo_zoo.errors import ZooError
from pylo_zoo.optim import ELO
from pylo_zoo.parity.report import Report
from pylo_zoo.publish import plan


@pytest.fixture
def proven(tmp_path: Path) -> Path:
    """An artifact with a report that passed."""
    made = make("elo", source=write_theta(tmp_path, "elo"), out=tmp_path / "a", verify=False).artifact
    report = {**report_of(made, 1e-7).to_dict(), "defaults": dict(made.defaults)}
    artifact.write_parity(tmp_path / "a", report)
    return tmp_path / "a"


def edit(folder: Path, name: str, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads((folder / name).read_text())
    change(content)
    (folder / name).write_text(json.dumps(content))


def test_the_report_records_the_defaults(tmp_path: Path) -> None:
    made = make("elo", source=write_theta(tmp_path, "elo"), out=tmp_path / "a", verify=False).artifact
    recorded = json.loads((tmp_path / "a" / "parity.json").read_text())["defaults"]
    assert recorded == dict(made.defaults) != {}
    assert Report.from_dict(json.loads((tmp_path / "a" / "parity.json").read_text())).defaults == recorded


def test_an_untouched_artifact_loads(proven: Path) -> None:
    assert weights.load(proven).changed_default() is None


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "another rate": (lambda c: c["defaults"].update(lr=0.125), r"the default lr was [\d.e-]+ and is 0\.125"),
    "a rate that is gone": (lambda c: c["defaults"].pop("lr"), r"the default lr was [\d.e-]+ and is None"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_default_that_was_edited_is_refused_with_what_to_do(case: str, proven: Path, capsys: Capture) -> None:
    change, reason = CHANGES[case]
    edit(proven, "config.json", change)
    with pytest.raises(ZooError, match=reason) as error:
        ELO([torch.nn.Parameter(torch.ones(3))], weights=str(proven))
    assert error.value.hint == f"Check it again with `pylo-zoo verify {proven}`."
    refused(capsys, "info", proven)
    refused(capsys, "train", "quadratic", "--optimizer", proven, "--steps", "1", "--out", proven.parent / "run")
    made = artifact.read(proven)
    assert made.parity is not None
    fault = plan._fault(made, proven, Report.from_dict(made.parity))
    assert fault is not None
    assert fault.startswith("its default lr was ")


@pytest.mark.parametrize("value", [5, [], "x", None, {"lr": "x"}, {}])
def test_a_record_that_is_none_is_not_taken_for_agreement(value: Any, proven: Path) -> None:
    edit(proven, "parity.json", lambda c: c.update(defaults=value))
    if value is None:  # as without one
        assert weights.load(proven)
        return
    with pytest.raises(ZooError):
        weights.load(proven)


def test_an_artifact_of_before_loads(proven: Path) -> None:
    edit(proven, "parity.json", lambda c: c.pop("defaults"))
    made = weights.load(proven)
    assert made.parity is not None
    assert Report.from_dict(made.parity).defaults is None


def test_a_saved_state_of_before_loads(proven: Path) -> None:
    """Its ``weights`` are the fingerprint, which is what it was."""
    p = torch.nn.Parameter(torch.ones(3))
    made: Artifact = weights.load(proven)
    optimizer = ELO([p], weights=str(proven))
    p.grad = torch.ones(3)
    optimizer.step()
    state = optimizer.state_dict()
    assert state["param_groups"][0]["weights"] == made.fingerprint[:16]
    edit(proven, "parity.json", lambda c: c.pop("defaults"))
    ELO([torch.nn.Parameter(torch.ones(3))], weights=str(proven)).load_state_dict(state)


def test_verify_records_what_is_there_now(proven: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    from pylo_zoo.parity import targets

    edit(proven, "config.json", lambda c: c["defaults"].update(lr=0.125))

    def passed(made: Artifact, source: Path, **how: Any) -> Report:
        from dataclasses import replace

        return replace(report_of(made, 1e-7), defaults=dict(made.defaults))

    monkeypatch.setattr(targets.parity, "verify", passed)
    assert run("verify", proven, "-q") == 0
    capsys.readouterr()
    assert weights.load(proven).defaults["lr"] == 0.125


def test_the_fingerprint_is_what_it_was() -> None:
    assert convert("velo-sample").fingerprint == FINGERPRINT


FINGERPRINT = "1cd0574888fd655326f2293cbee01ece44180c841417ddc0d9dbf72a426d18c5"
"""Of the sample, as every earlier version computed it: saved states and published reports hold it."""
