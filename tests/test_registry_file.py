"""Pins in a registry file: a published artifact is written into it, and nothing else changes."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hub_double import HubDouble
from proofs import random_weights

from pylo_zoo import artifact, converters, registry, weights
from pylo_zoo.artifact import Artifact
from pylo_zoo.errors import ZooError
from pylo_zoo.fetch import Access, Policy
from pylo_zoo.hub.names import Repository
from pylo_zoo.publish import Options, PublishPlan, publish, registry_file
from pylo_zoo.publish.push import send

FAMILY = "celo-adam"
COMMIT = "0" * 40
HASHES = dict.fromkeys(registry_file.PINNED, "0" * 64)
URI = "hf://org/theirs/theta.state"

TEXT = """\
# A registry.

first:   # the first one
  family: celo-adam
  summary: >-
    A summary
    # that is not a comment
  license: MIT
  trained: true
  sources:
    - {uri: "hf://org/first/theta.state"}   # by hand

# About the second one.
second:
  family: celo-adam
  summary: Theirs.
  license: unknown
  trained: true
  sources:
    - uri: hf://org/theirs/theta.state
      format: flax-msgpack
  # a comment within

  notes: |
    One line.
    # Another line.

# About the third one.
third: {family: celo, summary: C, license: MIT, trained: true, sources: [{uri: "hf://a/b/c", format: npz}]}
# The end.
""".replace('theta.state"}', 'theta.state", format: flax-msgpack}')
PIN = f"""\
  artifact:
    uri: hf://org/tiny@{COMMIT}
    sha256:
{"".join(f"      {name}: '{'0' * 64}'{chr(10)}" for name in registry_file.PINNED)}"""


def plan_of(subject: Artifact, repo: str = "org/tiny") -> PublishPlan:
    files = dict.fromkeys(registry_file.PINNED, b"1")
    return PublishPlan(Repository(repo), files, subject, None, None, "MIT", False, ())


@pytest.fixture
def second_plan() -> PublishPlan:
    """An artifact converted from the second entry's file."""
    random_artifact = random_weights(FAMILY)[0]
    return plan_of(replace(random_artifact, source=replace(random_artifact.source, uri=URI)))


@pytest.fixture
def unlisted_plan() -> PublishPlan:
    """An artifact converted from a file that no entry has."""
    return plan_of(random_weights(FAMILY)[0])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "registry.yaml"
    path.write_bytes(TEXT.encode())
    return path


def pinned(path: Path, plan: PublishPlan, hashes: Mapping[str, str] = HASHES, commit: str = COMMIT) -> str:
    registry_file.check(path, plan)
    registry_file.pin(path, plan, commit, hashes)
    return path.read_bytes().decode()


def refused(path: Path, plan: PublishPlan) -> str:
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(ZooError) as caught:
        registry_file.check(path, plan)
    assert before == (path.read_bytes() if path.is_file() else None)
    return f"{caught.value.message} {caught.value.hint}"


def entries(path: Path, tmp_path: Path) -> Mapping[str, registry.Entry]:
    """Read the file again; a path is otherwise read once per process."""
    copy = tmp_path / f"{len(list(tmp_path.iterdir()))}.yaml"
    copy.write_bytes(path.read_bytes())
    return registry.load_registry(copy)


# --- where a pin goes --------------------------------------------------------------------------------------------


def test_into_the_entry_of_its_checkpoint(path: Path, second_plan: PublishPlan, tmp_path: Path) -> None:
    after = "    # Another line.\n\n"
    assert pinned(path, second_plan) == TEXT.replace(after, after + PIN)
    entry = entries(path, tmp_path)["second"]
    assert entry.artifact is not None
    assert entry.artifact.uri == f"hf://org/tiny@{COMMIT}"
    assert entry.artifact.sha256 == HASHES
    assert entry.notes == "One line.\n# Another line.\n"


def test_an_old_pin_is_replaced(path: Path, second_plan: PublishPlan) -> None:
    first = pinned(path, second_plan)
    other = {name: f"{number}" * 64 for number, name in enumerate(registry_file.PINNED, 1)}
    second = pinned(path, second_plan, other, "1" * 40)
    assert second != first
    assert [line for line in second.splitlines() if line not in first] == [
        f"    uri: hf://org/tiny@{'1' * 40}",
        *(f"      {name}: '{other[name]}'" for name in registry_file.PINNED),
    ]
    assert pinned(path, second_plan) == first


def test_an_old_pin_in_the_middle_is_replaced(path: Path, second_plan: PublishPlan) -> None:
    old = PIN.replace("'", "").replace("0" * 64, "a" * 64)
    moved = TEXT.replace("  license: unknown\n", old + "\n  # about the license\n  license: unknown\n")
    path.write_text(moved)
    assert pinned(path, second_plan) == moved.replace(old, PIN)


def test_a_new_entry(path: Path, unlisted_plan: PublishPlan, tmp_path: Path) -> None:
    text = pinned(path, unlisted_plan)
    assert text.startswith(TEXT + "\ntiny:\n  family: celo-adam\n")
    result = entries(path, tmp_path)["tiny"]
    assert (result.license, result.behavior) == ("MIT", unlisted_plan.artifact.behavior)
    assert dict(result.defaults) == dict(unlisted_plan.artifact.defaults)
    assert result.weights.uri == f"hf://org/tiny/model.safetensors@{COMMIT}"
    assert pinned(path, unlisted_plan) == text, "once"
    assert pinned(path, unlisted_plan, commit="1" * 40) == text.replace(COMMIT, "1" * 40, 1)


@pytest.mark.parametrize("family", converters.FAMILIES)
def test_a_new_entry_of_each_family(family: str, path: Path, tmp_path: Path) -> None:
    random_artifact = random_weights(family)[0]
    pinned(path, plan_of(random_artifact, f"org/My_{family}.v2"))
    result = entries(path, tmp_path)[f"my-{family}-v2"]
    assert (result.family, result.behavior, dict(result.defaults)) == (
        family,
        random_artifact.behavior,
        dict(random_artifact.defaults),
    )


@pytest.mark.parametrize("text", ["", "\n", "# None yet.", "# None yet.\n\n# None at all."])
def test_the_first_entry(text: str, path: Path, unlisted_plan: PublishPlan, tmp_path: Path) -> None:
    path.write_text(text)
    assert pinned(path, unlisted_plan).startswith(text)
    assert set(entries(path, tmp_path)) == {"tiny"}


def test_a_name_that_yaml_would_parse_as_another_type(path: Path, tmp_path: Path) -> None:
    random_artifact = random_weights(FAMILY)[0]
    for name in ("123", "true", "null", "1e5", "0x1f"):
        pinned(path, plan_of(random_artifact, f"org/{name}"))
    assert {"123", "true", "null", "1e5", "0x1f"} <= set(entries(path, tmp_path))


def test_only_what_was_published_is_pinned(path: Path, second_plan: PublishPlan, tmp_path: Path) -> None:
    few = {name: HASHES[name] for name in ("config.json", "model.safetensors")}
    pinned(path, second_plan, {**few, "README.md": "1" * 64, "parity.png": "1" * 64})
    result = entries(path, tmp_path)["second"].artifact
    assert result is not None
    assert result.sha256 == few


# --- what is kept ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["second_plan", "unlisted_plan"])
@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.rstrip("\n"),
        lambda text: text + "\n\n   \n",
        lambda text: "\ufeff" + text,
        lambda text: text.replace("A registry", "Ein Verzeichnis für Ähnliches, 登録\u2028# 簿"),
        lambda text: text.replace("\n  ", "\n      "),
        lambda text: text.replace("    # Another line.\n\n", "    # Another line.\n"),
        lambda text: text[: text.index("# About the third")],
    ],
    ids=["CRLF", "no final newline", "blank lines", "BOM", "non-ASCII", "deep", "no blank line", "at the end"],
)
def test_every_other_line_is_kept(which: str, change: Any, path: Path, request: pytest.FixtureRequest) -> None:
    before = change(TEXT)
    path.write_bytes(before.encode())
    plan: PublishPlan = request.getfixturevalue(which)
    after = pinned(path, plan)
    lines, rest = before.splitlines(), iter(after.splitlines())
    assert all(line in rest for line in lines), "the same lines, in the same order"
    assert ("\r\n" in before) == ("\r\n" in after)
    assert after.count("\r\n") in (0, after.count("\n"))
    old, new = yaml.safe_load(before), yaml.safe_load(after)
    for name, fields in old.items():
        assert fields == {key: value for key, value in new[name].items() if key != "artifact"}


def test_the_registry_of_this_project(path: Path, tmp_path: Path) -> None:
    text = (Path(__file__).parent.parent / "registry.yaml").read_text(encoding="utf-8")
    for name in ("velo-sample", "velo-s", "velo-pylo", [*registry.load_registry()][-1]):
        entry = registry.get(name)
        path.write_text(text, encoding="utf-8")
        random_artifact = random_weights(FAMILY)[0]
        source = replace(random_artifact.source, uri=entry.weights.uri, sha256=entry.weights.sha256 or "0" * 64)
        after = pinned(path, plan_of(replace(random_artifact, family=entry.family, source=source)))
        added = [line for line in after.splitlines() if line not in text.splitlines()]
        assert added == PIN.splitlines(), name
        result = entries(path, tmp_path)
        changed = {each: other for each, other in result.items() if other.artifact}
        assert changed.keys() == {name}
        assert replace(changed[name], artifact=None) == entry


def test_the_file_mode_is_kept(path: Path, second_plan: PublishPlan) -> None:
    path.chmod(0o640)
    pinned(path, second_plan)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert [each.name for each in path.parent.iterdir()] == ["registry.yaml"]


def test_two_concurrent_writers(path: Path, tmp_path: Path) -> None:
    random_artifact = random_weights(FAMILY)[0]
    plans = [plan_of(random_artifact, f"org/n{number}") for number in range(8)]
    threads = [threading.Thread(target=registry_file.pin, args=(path, each, COMMIT, HASHES)) for each in plans]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {f"n{number}" for number in range(8)} <= set(entries(path, tmp_path))


# --- what is refused ---------------------------------------------------------------------------------------------


def test_an_entry_of_another_checkpoint(path: Path) -> None:
    random_artifact = random_weights(FAMILY)[0]
    assert "entry first belongs to another checkpoint" in refused(path, plan_of(random_artifact, "org/first"))
    path.write_text(TEXT + "\nmine:\n  family: celo-adam\n  summary: M\n  license: MIT\n  trained: true\n" + PIN)
    assert "entry mine belongs to another checkpoint" in refused(path, plan_of(random_artifact, "org/mine")), (
        "another repository"
    )
    path.write_text(path.read_text().replace("org/tiny", "org/mine"))
    registry_file.check(path, plan_of(random_artifact, "org/mine"))
    other = random_weights("celo")[0]
    assert "entry mine belongs to another checkpoint" in refused(path, plan_of(other, "org/mine")), "another family"


def test_an_entry_in_one_line(path: Path) -> None:
    random_artifact = random_weights("celo")[0]
    assert "third is not written as a block" in refused(
        path, plan_of(replace(random_artifact, source=replace(random_artifact.source, uri="hf://a/b/c")))
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [", "not valid YAML"),
        (b"- 1\n", "must be a mapping"),
        (b"a: 1\n", "must be a mapping"),
        (b"a:\n  family: no\n", "cannot hold the pin"),
        (b"\xff\xfe", "cannot be read"),
        (TEXT.encode() + b"...\n", "not valid YAML"),
    ],
)
def test_an_invalid_registry(content: bytes, message: str, path: Path, unlisted_plan: PublishPlan) -> None:
    path.write_bytes(content)
    assert message in refused(path, unlisted_plan)


def test_a_missing_or_unwritable_file(
    path: Path, unlisted_plan: PublishPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "does not exist" in refused(tmp_path / "none.yaml", unlisted_plan)
    assert "is not a registry file" in refused(tmp_path, unlisted_plan)
    link = tmp_path / "link.yaml"
    link.symlink_to(path)
    assert "is not a registry file" in refused(link, unlisted_plan)
    monkeypatch.setattr(os, "access", lambda place, mode: place != path)
    assert "cannot be written" in refused(path, unlisted_plan)
    monkeypatch.setattr(os, "access", lambda place, mode: place != path.parent)
    assert "cannot be written" in refused(path, unlisted_plan)


# --- with publish ------------------------------------------------------------------------------------------------


def unproven(place: Path) -> Path:
    return artifact.write(random_weights(FAMILY)[0], place / "made", force=True)


def publishing(place: Path, path: Path) -> Any:
    access = Access(policy=Policy(timeout=5, sleep=lambda seconds: None))
    options = Options(registry=path)
    return publish(unproven(place), "org/tiny", license="MIT", allow_unverified=True, options=options, access=access)


def test_an_invalid_registry_is_refused_before_anything_is_sent(hub: HubDouble, path: Path, tmp_path: Path) -> None:
    path.write_text("a: [")
    with pytest.raises(ZooError, match="not valid YAML"):
        publishing(tmp_path, path)
    assert hub.log == []


def test_a_pinned_artifact_loads_by_name(
    hub: HubDouble, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = publishing(tmp_path, path)
    known = entries(path, tmp_path)
    assert known["tiny"].artifact is not None
    assert known["tiny"].artifact.uri == f"hf://org/tiny@{result.commit}"
    monkeypatch.setattr(registry, "load_registry", lambda: known)
    hub.repos["org/tiny"].commit({"README.md": b"Edited since.\n"})
    assert weights.load("tiny").fingerprint == random_weights(FAMILY)[0].fingerprint


def test_a_registry_that_changes_while_publishing(hub: HubDouble, path: Path, tmp_path: Path) -> None:
    hub.on("POST", "/commit/", lambda request: path.write_text("a: ["), times=1)
    with pytest.raises(ZooError, match=r"Published as [0-9a-f]{40}, but not pinned: .* not valid YAML"):
        publishing(tmp_path, path)
    path.write_text("")
    hub.log.clear()
    result = publishing(tmp_path, path)
    assert result.unchanged
    assert not hub.requests("POST", "/commit/")
    assert str(result.commit) in path.read_text()


def test_send_also_pins(hub: HubDouble, path: Path, second_plan: PublishPlan) -> None:
    card = b"---\nlicense: mit\n---\n# It\n"
    send(replace(second_plan, files={**second_plan.files, "README.md": card}), Options(registry=path), Access())
    assert "artifact:" in path.read_text()
