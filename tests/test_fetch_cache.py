"""The cache that processes share: damage, links, partial downloads, full and read-only disks, kills."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fault_server
import pytest
from fault_server import Files
from fetching import DATA, OTHER, PATH, SHA256, leftovers, pinned

from pylo_zoo.errors import ZooError
from pylo_zoo.fetch import (
    Access,
    fetch,
    store,
)
from pylo_zoo.fetch import part as part_module


def test_a_damaged_copy_is_fetched_again(server: Files, access: Access) -> None:
    path = pinned(server, access)
    path.write_bytes(OTHER)
    assert pinned(server, access) == path
    assert path.read_bytes() == DATA
    path.unlink()
    path.mkdir()
    assert pinned(server, access).read_bytes() == DATA


def test_a_folder_that_cannot_be_read_is_fetched_again(
    server: Files, access: Access, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = pinned(server, access)

    def locked_up(self: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", locked_up)
    assert pinned(server, access) == path
    assert len(server.log) == 2


@pytest.mark.parametrize("link", ["file", "folder", "dangling"])
def test_a_link_out_of_the_cache_is_not_followed(
    link: str, server: Files, access: Access, tmp_path: Path, zoo_home: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "theta.state").write_bytes(DATA if link == "file" else OTHER)
    folder = zoo_home / "sources" / SHA256
    folder.parent.mkdir()
    if link == "folder":
        folder.symlink_to(outside)
    else:
        folder.mkdir()
        (folder / "theta.state").symlink_to(outside / ("theta.state" if link == "file" else "absent"))
    before = {path: path.read_bytes() for path in outside.iterdir()}
    path = pinned(server, access)
    assert path.read_bytes() == DATA
    assert not path.is_symlink()
    assert not path.parent.is_symlink()
    assert {path: path.read_bytes() for path in outside.iterdir()} == before


def test_a_part_that_is_a_link_is_replaced(server: Files, access: Access, tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_bytes(b"precious")
    part = store.partial(f"http {server.url}{PATH}")
    part.symlink_to(target)
    part.with_name(part.name + ".json").write_text(json.dumps({"validator": fault_server.etag(DATA), "total": 8}))
    assert pinned(server, access).read_bytes() == DATA
    assert target.read_bytes() == b"precious"


@pytest.mark.parametrize("record", [None, "{", "[]", '{"validator": "", "total": 9}', '{"validator": "x", "total": 1}'])
def test_a_part_of_unknown_origin_is_not_used(record: str | None, server: Files, access: Access) -> None:
    part = store.partial(f"http {server.url}{PATH}")
    part.write_bytes(b"garbage")
    if record is not None:
        part.with_name(part.name + ".json").write_text(record)
    assert fetch(server.url + PATH, access=access).read_bytes() == DATA
    assert "Range" not in server.gets(PATH)[0]


def test_a_damaged_part_is_downloaded_again(server: Files, access: Access) -> None:
    part = store.partial(f"http {server.url}{PATH}")
    part.write_bytes(bytes(1000))
    record = {"validator": fault_server.etag(DATA), "total": len(DATA)}
    part.with_name(part.name + ".json").write_text(json.dumps(record))
    assert pinned(server, access).read_bytes() == DATA
    assert ["Range" in headers for headers in server.gets(PATH)] == [True, False]


def test_a_complete_part_is_not_requested_again(server: Files, access: Access) -> None:
    part = store.partial(f"http {server.url}{PATH}")
    part.write_bytes(DATA)
    record = {"validator": fault_server.etag(DATA), "total": len(DATA)}
    part.with_name(part.name + ".json").write_text(json.dumps(record))
    assert pinned(server, access).read_bytes() == DATA
    assert server.log == []


def test_a_full_disk(server: Files, access: Access, zoo_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, data: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(part_module.os, "write", full)
        with pytest.raises(ZooError, match="No space left on device") as caught:
            pinned(server, access)
    assert "free space" in caught.value.hint
    assert leftovers(zoo_home) == [], "the lock is released"
    assert pinned(server, access).read_bytes() == DATA


def test_a_cache_that_cannot_be_written(server: Files, access: Access, monkeypatch: pytest.MonkeyPatch) -> None:
    path = pinned(server, access)

    def read_only(*arguments: object, **keywords: object) -> int:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("pylo_zoo.fetch.store.FileLock.acquire", read_only)
    assert pinned(server, access) == path, "existing files stay readable"
    path_elsewhere = "/other"
    server.files[path_elsewhere] = OTHER
    with pytest.raises(ZooError, match="cannot be written: Read-only file system"):
        fetch(server.url + path_elsewhere, access=access)


def test_a_home_below_a_file(server: Files, access: Access, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PYLO_ZOO_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(ZooError, match="cannot be written"):
        pinned(server, access)


# --- several processes -------------------------------------------------------------------------------------------

CHILD = """
import sys
from pylo_zoo.fetch import Access, fetch
print(fetch(sys.argv[1], sha256=sys.argv[2] or None, access=Access(notify=lambda text: print(text, file=sys.stderr))))
"""


def child(url: str, sha256: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CHILD, url, sha256]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ))


@pytest.mark.parametrize("sha256", [SHA256, ""], ids=["pinned", "recorded"])
def test_two_processes_download_once(sha256: str, server: Files) -> None:
    server.plant(PATH, fault_server.slowly(1.5))
    processes = [child(server.url + PATH, sha256) for _ in range(2)]
    done = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], done
    (first, second) = (Path(out.strip()) for out, _ in done)
    assert first == second
    assert first.read_bytes() == DATA
    assert len(server.log) == 1


def test_the_next_process_resumes_a_killed_download(server: Files, access: Access, zoo_home: Path) -> None:
    server.plant(PATH, fault_server.slowly(20))
    process = child(server.url + PATH, SHA256)
    part = store.partial(f"http {server.url}{PATH}")
    end = time.monotonic() + 30
    while time.monotonic() < end and not (part.is_file() and part.stat().st_size):
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    assert [Path(left).suffix for left in leftovers(zoo_home)] == [".part", ".json"]
    count = part.stat().st_size
    assert pinned(server, access).read_bytes() == DATA
    assert server.gets(PATH)[1]["Range"] == f"bytes={count}-"
    assert leftovers(zoo_home) == []


def test_waiting_for_a_lock_times_out(server: Files, access: Access, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "LOCK_SECONDS", 0.2)
    messages: list[str] = []
    with store.locked(f"http {server.url}{PATH}"), ThreadPoolExecutor() as pool:
        waiting = pool.submit(pinned, server, dataclasses.replace(access, notify=messages.append))
        with pytest.raises(ZooError, match="Another process"):
            waiting.result(timeout=30)
    assert messages == ["Another process is fetching this file; waiting for it."]


def test_threads_share_downloads_like_processes(server: Files, access: Access) -> None:
    server.plant(PATH, fault_server.slowly(0.5))
    start = threading.Barrier(4)

    def run(number: int) -> Path:
        start.wait(10)
        return pinned(server, access)

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(run, range(4)))) == 1
    assert len(server.log) == 1
