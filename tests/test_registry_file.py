"""Pins in a registry: what was published is written into it, and nothing else of it changes."""

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
    # that is no comment
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


def plan_of(made: Artifact, repo: str = "org/tiny") -> PublishPlan:
    files = dict.fromkeys(registry_file.PINNED, b"1")
    return PublishPlan(Repository(repo), files, made, None, None, "MIT", False, ())


@pytest.fixture
def theirs() -> PublishPlan:
    """What was converted from the file that the second entry has."""
    made = random_weights(FAMILY)[0]
    return plan_of(replace(made, source=replace(made.source, uri=URI)))


@pytest.fixture
def own() -> PublishPlan:
    """What no entry has."""
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
    """Read again; what was read of a path is kept for the life of a process."""
    copy = tmp_path / f"{len(list(tmp_path.iterdir()))}.yaml"
    copy.write_bytes(path.read_bytes())
    return registry.load_registry(copy)


# --- where it goes -----------------------------------------------------------------------------------------------


def test_into_the_entry_of_its_checkpoint(path: Path, theirs: PublishPlan, tmp_path: Path) -> None:
    after = "    # Another line.\n\n"
    assert pinned(path, theirs) == TEXT.replace(after, after + PIN)
    found = entries(path, tmp_path)["second"]
    assert found.artifact is not None
    assert found.artifact.uri == f"hf://org/tiny@{COMMIT}"
    assert found.artifact.sha256 == HASHES
    assert found.notes == "One line.\n# Another line.\n"


def test_in_the_place_of_an_old_pin(path: Path, theirs: PublishPlan) -> None:
    first = pinned(path, theirs)
    other = {name: f"{number}" * 64 for number, name in enumerate(registry_file.PINNED, 1)}
    second = pinned(path, theirs, other, "1" * 40)
    assert second != first
    assert [line for line in second.splitlines() if line not in first] == [
        f"    uri: hf://org/tiny@{'1' * 40}",
        *(f"      {name}: '{other[name]}'" for name in registry_file.PINNED),
    ]
    assert pinned(path, theirs) == first


def test_an_old_pin_in_the_middle(path: Path, theirs: PublishPlan) -> None:
    old = PIN.replace("'", "").replace("0" * 64, "a" * 64)
    moved = TEXT.replace("  license: unknown\n", old + "\n  # about the licence\n  license: unknown\n")
    path.write_text(moved)
    assert pinned(path, theirs) == moved.replace(old, PIN)


def test_a_new_entry(path: Path, own: PublishPlan, tmp_path: Path) -> None:
    text = pinned(path, own)
    assert text.startswith(TEXT + "\ntiny:\n  family: celo-adam\n")
    found = entries(path, tmp_path)["tiny"]
    assert (found.license, found.behavior) == ("MIT", own.artifact.behavior)
    assert dict(found.defaults) == dict(own.artifact.defaults)
    assert found.weights.uri == f"hf://org/tiny/model.safetensors@{COMMIT}"
    assert pinned(path, own) == text, "once"
    assert pinned(path, own, commit="1" * 40) == text.replace(COMMIT, "1" * 40, 1)


@pytest.mark.parametrize("family", converters.FAMILIES)
def test_a_new_entry_of_each_family(family: str, path: Path, tmp_path: Path) -> None:
    made = random_weights(family)[0]
    pinned(path, plan_of(made, f"org/My_{family}.v2"))
    found = entries(path, tmp_path)[f"my-{family}-v2"]
    assert (found.family, found.behavior, dict(found.defaults)) == (family, made.behavior, dict(made.defaults))


@pytest.mark.parametrize("text", ["", "\n", "# None yet.", "# None yet.\n\n# None at all."])
def test_the_first_entry(text: str, path: Path, own: PublishPlan, tmp_path: Path) -> None:
    path.write_text(text)
    assert pinned(path, own).startswith(text)
    assert set(entries(path, tmp_path)) == {"tiny"}


def test_a_name_that_yaml_takes_for_something_else(path: Path, tmp_path: Path) -> None:
    made = random_weights(FAMILY)[0]
    for name in ("123", "true", "null", "1e5", "0x1f"):
        pinned(path, plan_of(made, f"org/{name}"))
    assert {"123", "true", "null", "1e5", "0x1f"} <= set(entries(path, tmp_path))


def test_only_what_was_published_is_pinned(path: Path, theirs: PublishPlan, tmp_path: Path) -> None:
    few = {name: HASHES[name] for name in ("config.json", "model.safetensors")}
    pinned(path, theirs, {**few, "README.md": "1" * 64, "parity.png": "1" * 64})
    found = entries(path, tmp_path)["second"].artifact
    assert found is not None
    assert found.sha256 == few


# --- what stays --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["theirs", "own"])
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
    ids=["CRLF", "no last end", "blank lines", "BOM", "other letters", "deep", "no blank line", "at the end"],
)
def test_every_other_line_stays(which: str, change: Any, path: Path, request: pytest.FixtureRequest) -> None:
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
        made = random_weights(FAMILY)[0]
        source = replace(made.source, uri=entry.weights.uri, sha256=entry.weights.sha256 or "0" * 64)
        after = pinned(path, plan_of(replace(made, family=entry.family, source=source)))
        added = [line for line in after.splitlines() if line not in text.splitlines()]
        assert added == PIN.splitlines(), name
        found = entries(path, tmp_path)
        changed = {each: other for each, other in found.items() if other.artifact}
        assert changed.keys() == {name}
        assert replace(changed[name], artifact=None) == entry


def test_its_mode_stays(path: Path, theirs: PublishPlan) -> None:
    path.chmod(0o640)
    pinned(path, theirs)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert [each.name for each in path.parent.iterdir()] == ["registry.yaml"]


def test_two_at_once(path: Path, tmp_path: Path) -> None:
    made = random_weights(FAMILY)[0]
    plans = [plan_of(made, f"org/n{number}") for number in range(8)]
    threads = [threading.Thread(target=registry_file.pin, args=(path, each, COMMIT, HASHES)) for each in plans]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {f"n{number}" for number in range(8)} <= set(entries(path, tmp_path))


# --- what is refused ---------------------------------------------------------------------------------------------


def test_an_entry_of_another_checkpoint(path: Path) -> None:
    made = random_weights(FAMILY)[0]
    assert "entry first belongs to another checkpoint" in refused(path, plan_of(made, "org/first"))
    path.write_text(TEXT + "\nmine:\n  family: celo-adam\n  summary: M\n  license: MIT\n  trained: true\n" + PIN)
    assert "entry mine belongs to another checkpoint" in refused(path, plan_of(made, "org/mine")), "another repository"
    path.write_text(path.read_text().replace("org/tiny", "org/mine"))
    registry_file.check(path, plan_of(made, "org/mine"))
    other = random_weights("celo")[0]
    assert "entry mine belongs to another checkpoint" in refused(path, plan_of(other, "org/mine")), "another family"


def test_an_entry_in_one_line(path: Path) -> None:
    made = random_weights("celo")[0]
    assert "third is not written as a block" in refused(
        path, plan_of(replace(made, source=replace(made.source, uri="hf://a/b/c")))
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a: [", "not valid YAML"),
        (b"- 1\n", "must be a mapping"),
        (b"a: 1\n", "must be a mapping"),
        (b"a:\n  family: no\n", "cannot hold the pin"),
        (b"\xff\xfe", "cannot be read"),
        (TEXT.encode() + b"...\n", "not valid YAML"),
    ],
)
def test_what_is_no_registry(content: bytes, said: str, path: Path, own: PublishPlan) -> None:
    path.write_bytes(content)
    assert said in refused(path, own)


def test_a_file_that_is_not_there_or_not_ones_own(
    path: Path, own: PublishPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "does not exist" in refused(tmp_path / "none.yaml", own)
    assert "is not a registry file" in refused(tmp_path, own)
    link = tmp_path / "link.yaml"
    link.symlink_to(path)
    assert "is not a registry file" in refused(link, own)
    monkeypatch.setattr(os, "access", lambda place, mode: place != path)
    assert "cannot be written" in refused(path, own)
    monkeypatch.setattr(os, "access", lambda place, mode: place != path.parent)
    assert "cannot be written" in refused(path, own)


# --- all of it ---------------------------------------------------------------------------------------------------


def unproven(place: Path) -> Path:
    return artifact.write(random_weights(FAMILY)[0], place / "made", force=True)


def publishing(place: Path, path: Path) -> Any:
    access = Access(policy=Policy(timeout=5, sleep=lambda seconds: None))
    options = Options(registry=path)
    return publish(unproven(place), "org/tiny", license="MIT", allow_unverified=True, options=options, access=access)


def test_it_is_refused_before_anything_is_sent(hub: HubDouble, path: Path, tmp_path: Path) -> None:
    path.write_text("a: [")
    with pytest.raises(ZooError, match="not valid YAML"):
        publishing(tmp_path, path)
    assert hub.log == []


def test_what_was_pinned_loads_by_its_name(
    hub: HubDouble, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = publishing(tmp_path, path)
    known = entries(path, tmp_path)
    assert known["tiny"].artifact is not None
    assert known["tiny"].artifact.uri == f"hf://org/tiny@{found.commit}"
    monkeypatch.setattr(registry, "load_registry", lambda: known)
    hub.repos["org/tiny"].commit({"README.md": b"Edited since.\n"})
    assert weights.load("tiny").fingerprint == random_weights(FAMILY)[0].fingerprint


def test_a_registry_that_changes_meanwhile(hub: HubDouble, path: Path, tmp_path: Path) -> None:
    hub.on("POST", "/commit/", lambda request: path.write_text("a: ["), times=1)
    with pytest.raises(ZooError, match=r"Published as [0-9a-f]{40}, but not pinned: .* not valid YAML"):
        publishing(tmp_path, path)
    path.write_text("")
    hub.log.clear()
    found = publishing(tmp_path, path)
    assert found.unchanged
    assert not hub.requests("POST", "/commit/")
    assert str(found.commit) in path.read_text()


def test_send_alone_pins_too(hub: HubDouble, path: Path, theirs: PublishPlan) -> None:
    card = b"---\nlicense: mit\n---\n# It\n"
    send(replace(theirs, files={**theirs.files, "README.md": card}), Options(registry=path), Access())
    assert "artifact:" in path.read_text()
