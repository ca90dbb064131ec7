"""Files and directories are replaced atomically."""

from __future__ import annotations

import errno
import os
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from pylo_zoo import files
from pylo_zoo.errors import ZooError
from pylo_zoo.files import read_text, staged_directory, write_file


def test_reading_a_small_file_allocates_little(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("é" * 1000, encoding="utf-8")
    tracemalloc.start()
    try:
        assert read_text(path) == "é" * 1000
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def replace(target: Path, content: str) -> None:
    with staged_directory(target) as staging:
        for name in ("one", "two"):
            (staging / name).write_text(content)


@pytest.mark.parametrize("exchange", [True, False])
def test_a_directory_is_replaced_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool) -> None:
    if not exchange:
        monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    target = tmp_path / "target"
    for content in ("old", "new"):
        replace(target, content)
        assert {path.name: path.read_text() for path in target.iterdir()} == {"one": content, "two": content}
    with pytest.raises(TypeError):
        replace(target, 1)  # pyright: ignore[reportArgumentType]  (no text: writing it fails)
    assert (target / "one").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


@pytest.mark.skipif(not Path("/proc").exists(), reason="only Linux can exchange directories atomically")
def test_a_reader_never_sees_it_missing_or_mixed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    replace(target, "0")
    if not files._exchange(target, target):
        pytest.skip("this file system cannot exchange directories")
    missing: list[str] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            try:
                (target / "one").read_text()
            except FileNotFoundError as error:
                missing.append(str(error))

    reader = threading.Thread(target=read)
    reader.start()
    for content in range(50):
        replace(target, str(content))
    done.set()
    reader.join()
    assert missing == []


# --- directories that must stay in place -------------------------------------------------------------------------


def content(directory: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in directory.iterdir()}


def test_an_empty_directory_is_filled_and_stays_the_same_directory(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir(mode=0o750)
    before = target.stat()
    replace(target, "new")
    after = target.stat()
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)
    assert content(target) == {"one": "new", "two": "new"}


@pytest.mark.parametrize("below", [".", "inside"])
def test_the_working_directory_is_filled_and_not_deleted(
    below: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "target"
    (target / below).mkdir(parents=True)
    (target / "gone").write_text("old")
    monkeypatch.chdir(target / below)
    before = target.stat().st_ino
    with staged_directory(Path(".") if below == "." else Path("..")) as staging:
        (staging / "one").write_text("new")
    assert target.stat().st_ino == before
    assert content(target) == {"one": "new"}
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def busy(monkeypatch: pytest.MonkeyPatch, mount: Path) -> None:
    """Make renames of ``mount``, or to it, fail as for a mount point."""
    rename, replace = Path.rename, Path.replace

    def refusing(move: Callable[[Path, Path], Path]) -> Callable[[Path, Path], Path]:
        def attempt(self: Path, target: Path) -> Path:
            if mount in (self, target):
                raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
            return move(self, target)

        return attempt

    monkeypatch.setattr(Path, "rename", refusing(rename))
    monkeypatch.setattr(Path, "replace", refusing(replace))
    monkeypatch.setattr(files, "_exchange", lambda one, other: False)


@pytest.mark.parametrize("old", [{}, {"one": "old", "three": "old"}], ids=["empty", "full"])
@pytest.mark.parametrize("known", [True, False], ids=["detected as a mount", "detected when the rename fails"])
def test_a_mount_point_gets_the_files(
    old: dict[str, str], known: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "target"
    target.mkdir()
    for name, text in old.items():
        (target / name).write_text(text)
    busy(monkeypatch, target)
    monkeypatch.setattr(os.path, "ismount", lambda path: known and Path(path) == target)
    replace(target, "new")
    assert content(target) == {"one": "new", "two": "new"}
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


@pytest.mark.parametrize("step", range(1, 6))
def test_a_failed_move_into_a_directory_is_rolled_back(
    step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five files are moved: three old ones away, two new ones in."""
    target = tmp_path / "target"
    target.mkdir()
    old = {"one": "old", "three": "old", "two": "old"}
    for name, text in old.items():
        (target / name).write_text(text)
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == target)
    rename, moves = Path.rename, []

    def failing(self: Path, place: Path) -> Path:
        moves.append(self)
        if len(moves) == step:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return rename(self, place)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(ZooError, match="No space left"):
        replace(target, "new")
    assert content(target) == old


def test_the_last_file_is_absent_while_a_directory_is_incomplete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "target"
    target.mkdir()
    for name in ("a", "config", "z"):
        (target / name).write_text("old")
    monkeypatch.chdir(target)
    rename, recorded = Path.rename, []

    def watching(self: Path, place: Path) -> Path:
        moved = rename(self, place)
        recorded.append({path.name: path.read_text() for path in target.iterdir() if path.is_file()})
        return moved

    monkeypatch.setattr(Path, "rename", watching)
    with staged_directory(target, last="config") as staging:
        for name in ("a", "config", "z"):
            (staging / name).write_text("new")
    assert len(recorded) == 6
    assert all("config" not in each for each in recorded[:-1])
    assert recorded[-1] == {"a": "new", "config": "new", "z": "new"}


def test_a_file_that_is_a_mount_point_is_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "theta.state"
    target.write_bytes(b"old and longer")
    busy(monkeypatch, target)
    write_file(target, b"new")
    assert target.read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["theta.state"]


def test_a_directory_below_one_that_cannot_be_written_is_filled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``docker run --user``: the mount belongs to the user, its parent directory to root."""
    target = tmp_path / "target"
    target.mkdir()
    (target / "one").write_text("old")
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path and access(path, mode))
    before = target.stat().st_ino
    replace(target, "new")
    assert target.stat().st_ino == before
    assert content(target) == {"one": "new", "two": "new"}


def test_leftovers_inside_a_directory_are_removed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    for place in (target / ".target.new-0123abcd", target / ".target.old-0123abcd", tmp_path / ".target.new-0123abcd"):
        place.mkdir(parents=True)
        (place / "one").touch()
    (target / ".other.new-0123abcd").mkdir()
    files.sweep(target)
    assert sorted(path.name for path in tmp_path.rglob("*")) == [".other.new-0123abcd", "target"]
