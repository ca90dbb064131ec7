"""Invariants that hold after every attempt to publish or pull, whatever failed."""

from __future__ import annotations

import hashlib
import os
import traceback
from collections.abc import Mapping
from pathlib import Path

import pytest
from hub_double import TOKEN, HubDouble, Repo
from trees import synthetic_artifact

from pylo_zoo import artifact
from pylo_zoo.errors import ZooError
from pylo_zoo.fetch import lockfile, store
from pylo_zoo.hub import Repository
from pylo_zoo.hub.pull import DOWNLOADED, LISTING
from pylo_zoo.leftovers import left_behind
from pylo_zoo.publish.plan import PUBLISHED, PublishPlan, prepare
from pylo_zoo.publish.push import MARK

NAME, TAG = "org/name", "v1"
SECRETS = (TOKEN, "sekret")  # the latter is in every signed address of the double


def small_plan(directory: Path) -> PublishPlan:
    """A publication of a few kilobytes: one large file, which uses the storage, and two small ones."""
    with pytest.MonkeyPatch.context() as patch:  # fixtures call this before a test has its own cache
        patch.setenv("PYLO_ZOO_HOME", str(directory.parent / "home"))
        artifact.write(synthetic_artifact("elo"), directory)
        return prepare(directory, Repository(NAME), license="MIT", allow_unverified=True)


def hashes(files: Mapping[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}


def check_published(hub: HubDouble, plan: PublishPlan) -> None:
    """No commit holds only part of the plan, none is duplicated, and a tag refers to all of it."""
    repo = hub.repos.get(plan.repo.id)
    if repo is None:
        return
    for commit in repo.commits:
        ours = {name: data for name, data in repo.files(commit).items() if name in PUBLISHED}
        assert ours in ({}, dict(plan.files)), f"{commit} holds only a part: {[*ours]}"
    marked = [commit.title for commit in repo.commits.values() if MARK in commit.message]
    assert len(marked) <= 1, "published twice"
    assert set(repo.tags) <= {TAG}
    for commit in repo.tags.values():
        assert repo.files(commit).items() >= dict(plan.files).items(), "a tag refers to something else"


def check_pulled(home: Path, repo: Repo, *, killed: bool = False) -> None:
    """Every file in the cache is complete and correct, or absent, and the lock file agrees.

    Args:
        home: ``$PYLO_ZOO_HOME``.
        repo: the repository that was pulled.
        killed: whether hidden files may remain that the next run must remove.
    """

    def listed(folder: Path) -> set[str]:
        names = os.listdir(folder) if folder.is_dir() else []
        return {name for name in names if not (killed and left_behind(name))}

    def right(commit: str) -> dict[str, bytes]:
        return {name: data for name, data in repo.files(commit).items() if name in DOWNLOADED}

    assert listed(home) <= {"hub", "sources", "zoo.lock"}
    for commit in listed(home / "hub" / repo.id.replace("/", "--")):
        folder = home / "hub" / repo.id.replace("/", "--") / commit
        cached = {name: (folder / name).read_bytes() for name in os.listdir(folder)}
        listing = "".join(f"{sha256}  {name}\n" for name, sha256 in hashes(cached).items() if name != LISTING)
        assert sorted(cached.pop(LISTING).decode().splitlines()) == sorted(listing.splitlines())
        assert cached == right(commit), f"{commit} is not what was published: {[*cached]}"
    lock = lockfile.read_all(home / "zoo.lock")
    assert not lock.files
    for uri, pin in lock.repositories.items():
        assert uri == f"hf://{repo.id}" or uri.startswith(f"hf://{repo.id}@")
        assert pin.files == hashes(right(pin.commit))
    for path in (home / "sources").glob("[0-9a-f]*/*"):
        assert store.digest(path) == path.parent.name, f"{path} does not match its directory's hash"


def check_complete(home: Path, repo: Repo) -> None:
    """A successful pull left all of its files and nothing else."""
    check_pulled(home, repo)
    (pin,) = lockfile.read_all(home / "zoo.lock").repositories.values()
    assert (home / "hub" / repo.id.replace("/", "--") / pin.commit).is_dir()
    assert not list((home / "sources" / ".partial").glob("*.json")), "leftovers that a later run would resume"


def check_error(error: ZooError) -> None:
    """Error and hint are one line each; neither they nor the traceback contain a secret."""
    assert error.message
    assert error.hint
    assert len(error.message.splitlines()) == len(error.hint.splitlines()) == 1
    check_silence(error.message, error.hint, *traceback.format_exception(error))


def check_silence(*output: str) -> None:
    assert not [line for line in output if any(secret in line for secret in SECRETS)], "a secret was printed"
