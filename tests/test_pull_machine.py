"""Pulling on a machine with faults: its disk, its permissions, other processes."""

from __future__ import annotations

import builtins
import dataclasses
import errno
import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import hub_faults
import pytest
from hub_double import HubDouble, Repo
from pulling import ID, REQUESTS, STORAGE, URI, is_whole, nothing_half, refused

import pylo_zoo
from pylo_zoo import weights
from pylo_zoo.errors import ZooError
from pylo_zoo.fetch import Access, NotFound, Policy, lockfile

pytestmark = pytest.mark.usefixtures("in_an_empty_directory")


@pytest.fixture
def access() -> Access:
    return Access(policy=Policy(timeout=0.5, sleep=lambda seconds: None))


# --- this machine ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("place", ["hub", "sources", "client", "out", "lock"])
def test_a_disk_that_fails(
    place: str,
    number: int,
    repo: Repo,
    access: Access,
    zoo_home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root = {
        "hub": zoo_home / "hub",
        "sources": zoo_home / "sources",
        "client": Path(os.environ["HF_HOME"]),
        "out": tmp_path / "out",
        "lock": zoo_home / "zoo.lock",
    }[place]
    real = os.open, os.mkdir
    armed = [True]

    def hit(path: Any) -> None:
        name = os.fspath(path) if isinstance(path, (str, os.PathLike)) else ""
        staged = place in ("lock", "out") and f".{root.name}." in name
        if armed[0] and not name.endswith(".lock") and (staged or Path(name).is_relative_to(root)):
            raise OSError(number, os.strerror(number), name)

    def mkdir(path: Any, *rest: Any, **more: Any) -> None:
        hit(path)
        real[1](path, *rest, **more)

    opened = io.open

    def open_(path: Any, mode: str = "r", *rest: Any, **more: Any) -> Any:
        if set(mode) & set("wax+"):
            hit(path)
        return opened(path, mode, *rest, **more)

    monkeypatch.setattr(os, "mkdir", mkdir)
    monkeypatch.setattr(io, "open", open_)
    monkeypatch.setattr(builtins, "open", open_)
    with pytest.raises(ZooError) as error:
        weights.pull(ID, out=tmp_path / "out" if place == "out" else None, access=access)
    assert os.strerror(number) in error.value.message
    armed[0] = False
    assert not (tmp_path / "out").exists()
    assert nothing_half(zoo_home)
    weights.pull(ID, access=access)
    assert is_whole(zoo_home, repo)


def test_a_complete_cache_may_be_read_only(
    repo: Repo, access: Access, zoo_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout = weights.pull(ID, access=access)

    def full(*anything: object, **options: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    for name in ("mkdir", "touch", "write_bytes", "write_text", "rename", "replace", "unlink"):
        monkeypatch.setattr(Path, name, full)
    monkeypatch.setattr(os, "mkdir", full)
    assert weights.pull(ID, access=access).files == checkout.files
    assert pylo_zoo.load(URI, access=access).fingerprint == checkout.artifact.fingerprint


def test_threads_share_a_cache(repo: Repo, hub: HubDouble, access: Access, zoo_home: Path) -> None:
    results: list[Any] = []
    patient = dataclasses.replace(access, policy=dataclasses.replace(access.policy, timeout=20))

    def work() -> None:
        try:
            results.append(weights.pull(ID, access=patient).files)
        except Exception as error:  # shown if the assertion fails
            results.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == [results[0]] * 4
    assert len(hub.requests("GET", STORAGE)) == 2, "weights and vectors are downloaded once"
    assert is_whole(zoo_home, repo)


def test_processes_share_a_cache(repo: Repo, hub: HubDouble, tmp_path: Path, zoo_home: Path) -> None:
    code = "import sys; from pylo_zoo.cli import main; main(['pull', 'org/elo', '--json'])"
    env = hub.environment(tmp_path / "hf-home", PYLO_ZOO_HOME=str(zoo_home))
    children = [
        subprocess.Popen(
            [sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    done = [child.communicate(timeout=60) for child in children]
    assert [child.returncode for child in children] == [0, 0], done
    assert len({json.dumps(json.loads(out)["files"]) for out, _ in done}) == 1
    assert len(hub.requests("GET", STORAGE)) == 2
    assert is_whole(zoo_home, repo)


def test_leftovers_of_a_killed_process(repo: Repo, access: Access, zoo_home: Path) -> None:
    place = zoo_home / "hub" / "org--elo"
    left = place / f".{repo.head}.new-0123abcd"
    left.mkdir(parents=True)
    (left / "config.json").write_text("{")
    other = place / f".{'1' * 40}.new-0123abcd"
    other.mkdir()
    weights.pull(ID, access=access)
    assert is_whole(zoo_home, repo)
    assert sorted(path.name for path in place.iterdir()) == sorted([repo.head, other.name])


def test_nothing_is_recorded_before_everything_is_complete(
    repo: Repo, hub: HubDouble, access: Access, zoo_home: Path
) -> None:
    hub.plant(*REQUESTS["card GET"], hub_faults.status(404, X_Error_Code="EntryNotFound"), times=9)
    refused(access, NotFound)
    assert not (zoo_home / "zoo.lock").exists()
    hub._planted.clear()
    weights.pull(ID, access=access)
    assert lockfile.read_all(zoo_home / "zoo.lock").repositories[URI].commit == repo.head
