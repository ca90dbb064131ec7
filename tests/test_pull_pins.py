"""Pulled artifacts stay the same: pins, the cache, and offline use."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import published
import pytest
from hub_double import HubDouble, Repo, User
from published import DOWNLOADED
from pulling import ID, URI, directory, publish_other_weights, sha256

import pylo_zoo
from pylo_zoo import weights
from pylo_zoo.errors import ZooError
from pylo_zoo.fetch import Access, FetchError, Forbidden, NotFound, Unavailable, lockfile

pytestmark = pytest.mark.usefixtures("in_an_empty_directory")


# --- pins --------------------------------------------------------------------------------------------------------


def test_a_moved_branch_is_ignored_until_accepted(
    repo: Repo, hub: HubDouble, access: Access, messages: list[str], zoo_home: Path
) -> None:
    first = repo.head
    weights.pull(ID, access=access)
    before = (zoo_home / "zoo.lock").read_bytes()
    second = publish_other_weights(repo)
    checkout = weights.pull(ID, access=access)
    assert (checkout.commit, checkout.newer, checkout.fetched) == (first, second, False)
    assert f"{URI} has moved to {second[:12]} since 20" in messages[-1]
    assert f"keeping {first[:12]}" in messages[-1]
    assert "--update-lock" in messages[-1]
    assert (zoo_home / "zoo.lock").read_bytes() == before
    count, message_count = len(hub.log), len(messages)
    old = pylo_zoo.load(URI, access=access)
    assert (len(hub.log), len(messages)) == (count, message_count), "loading sends no request and prints nothing"
    updating = dataclasses.replace(access, update_lock=True)
    assert weights.pull(ID, access=updating).commit == second
    assert pylo_zoo.load(URI).fingerprint != old.fingerprint
    assert lockfile.read_all(zoo_home / "zoo.lock").repositories[URI].commit == second


def test_a_tag_that_moves(repo: Repo, access: Access, messages: list[str]) -> None:
    first = repo.tags["v1"] = repo.head
    weights.pull(f"{ID}@v1", access=access)
    repo.tags["v1"] = publish_other_weights(repo)
    assert weights.pull(f"{ID}@v1", access=access).commit == first
    assert "has moved" in messages[-1]
    assert weights.pull(ID, access=access).commit == repo.head, "the main branch has a separate record"


@pytest.mark.parametrize("what", ["repository", "tag", "hidden"])
def test_a_deleted_repository_is_still_in_the_cache(
    what: str, repo: Repo, hub: HubDouble, access: Access, messages: list[str]
) -> None:
    first = repo.tags["v1"] = repo.head
    weights.pull(f"{ID}@v1", access=access)
    if what == "repository":
        del hub.repos[ID]
    elif what == "tag":
        del repo.tags["v1"]
    else:
        repo.private, hub.users[hub.TOKEN] = True, User("alice")
    checkout = weights.pull(f"{ID}@v1", access=access)
    assert (checkout.commit, checkout.newer) == (first, None)
    assert messages[-1].endswith(f"Using the recorded commit {first[:12]}.")


def test_a_commit_that_no_longer_exists_anywhere(repo: Repo, access: Access, zoo_home: Path) -> None:
    first = repo.head
    weights.pull(ID, access=access)
    repo.branches["main"] = publish_other_weights(repo)
    del repo.commits[first]
    for place in ("hub", "sources"):
        shutil.rmtree(zoo_home / place)
    for ask in (weights.pull, pylo_zoo.load):
        with pytest.raises(NotFound, match=f"has no revision {first}"):
            ask(URI, access=access)
    assert not (zoo_home / "hub").exists()


@pytest.mark.parametrize("name", DOWNLOADED)
def test_a_lock_file_with_other_hashes(name: str, repo: Repo, access: Access, zoo_home: Path) -> None:
    weights.pull(ID, access=access)
    lock = zoo_home / "zoo.lock"
    lock.write_text(lock.read_text().replace(sha256(repo.files()[name]), "0" * 64))
    for ask in (weights.pull, pylo_zoo.load):
        with pytest.raises(FetchError, match="tampered with" if name.endswith("tensors") else "not the expected"):
            ask(URI, access=access)
        with pytest.raises(Unavailable, match="missing or damaged in the cache"):
            ask(URI, access=dataclasses.replace(access, offline=True))


def test_a_lock_file_with_a_file_that_the_repository_lacks(repo: Repo, access: Access, zoo_home: Path) -> None:
    weights.pull(ID, access=access)
    pin = lockfile.read_all(zoo_home / "zoo.lock").repositories[URI]
    for files in ({**pin.files, "more.json": "0" * 64}, {"config.json": "0" * 64, "more.json": "0" * 64}):
        lockfile.record_repository(zoo_home / "zoo.lock", URI, dataclasses.replace(pin, files=files))
        with pytest.raises(FetchError, match=r"has no more\.json, but had one when it was recorded|not the expected"):
            pylo_zoo.load(URI, access=access)


def test_which_lock_file_applies(repo: Repo, access: Access, zoo_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def recorded(path: Path, **how: Path) -> bool:
        weights.pull(ID, access=dataclasses.replace(access, **how))
        return URI in lockfile.read_all(path).repositories

    assert recorded(zoo_home / "zoo.lock")
    Path("zoo.lock").write_bytes(lockfile.render_lock(lockfile.Lock()))
    assert recorded(Path("zoo.lock"))
    monkeypatch.setenv("PYLO_ZOO_LOCK", "named.lock")
    assert recorded(Path("named.lock"))
    assert recorded(Path("given.lock"), lock=Path("given.lock"))
    publish_other_weights(repo)
    assert weights.pull(ID, access=dataclasses.replace(access, lock=Path("fifth.lock"))).commit == repo.head
    assert weights.pull(ID, access=access).commit != repo.head


@pytest.mark.parametrize("text", ["{", '{"version": 1, "files": {}, "repositories": {"hf://org/elo": {}}}'])
def test_an_unreadable_lock_file(text: str, repo: Repo, hub: HubDouble, access: Access, zoo_home: Path) -> None:
    (zoo_home / "zoo.lock").write_text(text)
    for ask in (weights.pull, pylo_zoo.load):
        with pytest.raises(ZooError, match=r"zoo\.lock is not a lock file"):
            ask(URI, access=access)
    assert hub.log == []
    assert (zoo_home / "zoo.lock").read_text() == text


# --- the cache ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*DOWNLOADED, "SHA256SUMS"])
@pytest.mark.parametrize("how", ["a bit", "cut", "gone", "link", "directory"])
def test_a_damaged_copy_is_fetched_again_or_refused(
    how: str, name: str, repo: Repo, access: Access, zoo_home: Path, tmp_path: Path
) -> None:
    good = pylo_zoo.load(URI, access=access)
    folder = directory(zoo_home, repo.head)
    path, data = folder / name, (folder / name).read_bytes()
    path.unlink()
    if how == "a bit":
        path.write_bytes(data[:-2] + bytes([data[-2] ^ 1]) + data[-1:])
    elif how == "cut":
        path.write_bytes(data[:-1] if name != "SHA256SUMS" else data[:70])
    elif how == "link":
        elsewhere = tmp_path / "elsewhere"
        elsewhere.write_bytes(data)
        path.symlink_to(elsewhere)
    elif how == "directory":
        path.mkdir()
    with pytest.raises(Unavailable, match="missing or damaged in the cache"):
        pylo_zoo.load(URI, access=dataclasses.replace(access, offline=True))
    assert pylo_zoo.load(URI, access=access).fingerprint == good.fingerprint
    assert path.read_bytes() == data
    assert not path.is_symlink()
    pylo_zoo.load(URI, access=dataclasses.replace(access, offline=True))


def test_unlisted_files(repo: Repo, hub: HubDouble, access: Access, zoo_home: Path, tmp_path: Path) -> None:
    files = {name: data for name, data in published.files().items() if name != "parity.json"}
    repo.commit(files, delete=["parity.json"])
    folder = weights.pull(ID, access=access).directory
    (folder / "notes.txt").write_text("of no interest")
    count = len(hub.log)
    pylo_zoo.load(URI, access=access)
    assert len(hub.log) == count
    (folder / "parity.json").write_bytes(published.files()["parity.json"])
    (folder / "model.pt").write_bytes(b"cos\nsystem\n")
    with pytest.raises(Unavailable):
        pylo_zoo.load(URI, access=dataclasses.replace(access, offline=True))
    assert pylo_zoo.load(URI, access=access).parity is None
    assert not (folder / "model.pt").exists()
    weights.pull(ID, out=tmp_path / "out", access=access)
    assert sorted(published.tree(tmp_path / "out")) == sorted({*DOWNLOADED} - {"parity.json"})


@pytest.mark.parametrize("level", ["commit", "repository"])
def test_directories_that_are_links(level: str, repo: Repo, access: Access, zoo_home: Path, tmp_path: Path) -> None:
    folder = weights.pull(ID, access=access).directory
    place = folder if level == "commit" else folder.parent
    target = tmp_path / "elsewhere"
    shutil.move(place, target)
    place.symlink_to(target)
    before = published.tree(target)
    with pytest.raises(Unavailable):
        pylo_zoo.load(URI, access=dataclasses.replace(access, offline=True))
    pylo_zoo.load(URI, access=access)
    assert not place.is_symlink()
    assert published.tree(target) == before, "a link's target is not changed"


def test_a_listing_of_other_weights(repo: Repo, access: Access) -> None:
    """Weights and listing are both replaced; the lock file reveals it."""
    good = pylo_zoo.load(URI, access=access)
    folder = weights.pull(ID, access=access).directory
    other = published.files(scale=0.3)["model.safetensors"]
    listing = (folder / "SHA256SUMS").read_text()
    (folder / "SHA256SUMS").write_text(listing.replace(sha256(repo.files()["model.safetensors"]), sha256(other)))
    (folder / "model.safetensors").write_bytes(other)
    assert pylo_zoo.load(URI, access=access).fingerprint == good.fingerprint


# --- offline -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["argument", "environment"])
def test_offline(
    by: str, repo: Repo, hub: HubDouble, access: Access, messages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    online = access
    if by == "argument":
        access = dataclasses.replace(access, offline=True)
    else:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for ask in (weights.pull, pylo_zoo.load):
        with pytest.raises(Unavailable, match=r"is not recorded in .*, and offline mode is on"):
            ask(URI, access=access)
        with pytest.raises(Unavailable, match="missing or damaged in the cache"):
            ask(f"{URI}@{repo.head}", access=access)
    assert hub.log == []
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    first = repo.head
    weights.pull(ID, access=online)
    publish_other_weights(repo)
    if by == "environment":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    count = len(hub.log)
    assert weights.pull(ID, access=access).commit == first
    assert messages[-1] == f"Offline: using {URI} at the recorded commit {first[:12]}."
    message_count = len(messages)
    pylo_zoo.load(URI, access=access)
    pylo_zoo.load(f"{URI}@{first}", access=access)
    assert len(hub.log) == count
    assert len(messages) == message_count + 1, "a commit needs no acceptance"


def test_the_hub_is_down(repo: Repo, hub: HubDouble, access: Access, messages: list[str]) -> None:
    with hub.offline(), pytest.raises(Unavailable, match=r"cannot be reached .*, 3 times"):
        weights.pull(ID, access=access)
    first = repo.head
    weights.pull(ID, access=access)
    with hub.offline():
        assert weights.pull(ID, access=access).commit == first
        assert messages[-1].startswith(f"{URI} cannot be reached (Connection refused), 3 times.")
        assert messages[-1].endswith(f"Using the recorded commit {first[:12]}.")
        message_count = len(messages)
        assert pylo_zoo.load(URI, access=access).family == "elo"
        assert len(messages) == message_count, "no request was sent"
        with pytest.raises(Unavailable, match="cannot be reached"):
            weights.pull(ID, access=dataclasses.replace(access, update_lock=True))


# --- the origin in the proof -------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["name", "uri", "sha256"])
def test_an_origin_that_the_proof_does_not_mention(what: str, hub: HubDouble, access: Access) -> None:
    files = dict(published.files())
    config = json.loads(files["config.json"])
    (config if what == "name" else config["source"])[what] = "f" * 64
    hub.create(ID, {**files, "config.json": json.dumps(config).encode()})
    with pytest.raises(ZooError, match=f"its parity report belongs to the {what} "):
        weights.pull(ID, access=access)


@pytest.mark.parametrize("token", ["", "hf_a\nb", "hf_ünï", "two words"])
def test_an_invalid_token_is_reported_at_once(token: str, repo: Repo, hub: HubDouble, access: Access) -> None:
    with pytest.raises(Forbidden, match=r"The token for the Hub (is empty|contains spaces)") as error:
        weights.pull(ID, access=dataclasses.replace(access, token=token))
    assert hub.log == []
    assert token not in str(error.value) or not token


def test_a_loaded_artifact_is_shown_in_one_line(repo: Repo, access: Access) -> None:
    shown = repr(weights.load(URI, access=access))
    assert shown.startswith("<Artifact 'elo' (elo) from 'file:theta.state', sha256 ")
    assert len(shown) < 150
