"""The next writer removes what a killed process left; files of a running process are kept."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import run
from trees import write_theta

from pylo_zoo.files import staged_directory, write_file
from pylo_zoo.leftovers import is_empty, left_behind, sweep, sweep_folder

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL and no flock")

WRITE = """
import os, sys
from pathlib import Path
from pylo_zoo import files
target, point = Path(sys.argv[1]), sys.argv[2]
def die(*arguments, **options): os.kill(os.getpid(), 9)
def wait(*arguments, **options): print("waiting", flush=True); sys.stdin.read()
act = wait if point == "runs" else die
if point in ("runs", "sync"): files.sync = act
if point == "replace": files._replace = die; Path.replace = die
if point == "between":
    files._exchange = lambda one, other: False
    real, calls = Path.rename, []
    def rename(self, to):
        calls.append(1)
        if len(calls) == 3: die()  # the new directory was not moved in, the old one is aside
        return real(self, to)
    Path.rename = rename
if target.suffix:
    files.write_file(target, b"new")
else:
    with files.staged_directory(target) as staging:
        (staging / "one").write_text("new")
"""


def begin(target: Path, point: str) -> subprocess.Popen[str]:
    """A process that writes ``target`` and dies, or waits, at ``point``."""
    command = [sys.executable, "-c", WRITE, str(target), point]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def kill_at(target: Path, point: str) -> None:
    process = begin(target, point)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def replace(target: Path) -> None:
    if target.suffix:
        write_file(target, b"mine")
    else:
        with staged_directory(target) as staging:
            (staging / "one").write_text("mine")


def leftovers(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if left_behind(name)]


@pytest.mark.parametrize("point", ["sync", "replace"])
@pytest.mark.parametrize("name", ["artifact", "file.json"])
def test_the_next_writer_removes_what_a_killed_one_left(tmp_path: Path, name: str, point: str) -> None:
    kill_at(tmp_path / name, point)
    (result,) = leftovers(tmp_path)
    other = tmp_path / f".other{result.removeprefix(f'.{name}')}"
    other.mkdir()
    replace(tmp_path / name)
    assert leftovers(tmp_path) == [other.name], "only leftovers of this target are removed"


@pytest.mark.parametrize("name", ["artifact", "file.json"])
def test_files_of_a_running_process_are_kept(tmp_path: Path, name: str) -> None:
    running = begin(tmp_path / name, "runs")
    assert running.stdout is not None
    assert running.stdout.readline() == "waiting\n"
    replace(tmp_path / name)
    assert len(leftovers(tmp_path)) == 1
    running.kill()
    running.communicate()
    replace(tmp_path / name)
    assert leftovers(tmp_path) == []


def test_a_directory_that_was_set_aside_is_restored(tmp_path: Path) -> None:
    target = tmp_path / "artifact"
    replace(target)
    kill_at(target, "between")
    assert not target.exists()
    sweep(target)
    assert (target / "one").read_text() == "mine"
    assert leftovers(tmp_path) == []


def test_without_file_locks_nothing_is_removed_unless_the_caller_holds_a_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pylo_zoo.leftovers.fcntl", None)
    (tmp_path / ".x.new-01234567").mkdir()
    replace(tmp_path / "x")
    assert len(leftovers(tmp_path)) == 1
    sweep(tmp_path / "x", exclusive=True)
    assert leftovers(tmp_path) == []


def test_a_sweep_between_making_and_locking_is_survived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, real = tmp_path / "artifact", Path.mkdir
    swept: list[Path] = []

    def mkdir(self: Path, *arguments: Any, **options: Any) -> None:
        real(self, *arguments, **options)
        if left_behind(self.name) and not swept:
            swept.append(self)
            self.rmdir()

    monkeypatch.setattr(Path, "mkdir", mkdir)
    replace(target)
    assert swept
    assert (target / "one").read_text() == "mine"


@pytest.mark.parametrize("plant", [lambda p: p.symlink_to("/etc"), os.mkfifo], ids=["link", "fifo"])
def test_planted_names_are_not_followed(tmp_path: Path, plant: Callable[[Path], object]) -> None:
    plant(tmp_path / ".artifact.new-01234567")
    replace(tmp_path / "artifact")
    assert Path("/etc/passwd").exists()


def test_a_directory_with_only_leftovers_counts_as_empty(tmp_path: Path) -> None:
    (tmp_path / ".run.json.new-01234567").write_bytes(b"{")
    assert is_empty(tmp_path)
    sweep_folder(tmp_path)
    assert os.listdir(tmp_path) == []
    (tmp_path / "x").touch()
    assert not is_empty(tmp_path)


COMMANDS: dict[str, tuple[list[str], str]] = {
    "convert": (["convert", "elo", "--source", "theta.state", "--no-verify", "--out", "made/a", "--force"], "made"),
    "export": (["export", "a", "--out", "made/theta.state", "--force"], "made"),
    "pull": (["pull", "a", "--out", "made/b", "--force"], "made"),
    "train": (["train", "quadratic", "--set", "size=4", "--steps", "2", "--out", "made/run"], "made/run"),
}
KILL = """
import os
from pylo_zoo import files
from pylo_zoo.cli import main
files.sync = lambda path: os.kill(os.getpid(), 9)
main()
"""


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_removes_what_its_killed_predecessor_left(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_theta(tmp_path, "elo")
    if command in ("export", "pull"):
        assert run("convert", "elo", "--source", "theta.state", "--no-verify", "--out", "a") == 0
    words, folder = COMMANDS[command]
    if command == "convert":  # its cache is written first, and this is about the last step
        assert run(*words) == 0
    end = subprocess.run([sys.executable, "-c", KILL, *words], capture_output=True, text=True, check=False)
    assert end.returncode == -signal.SIGKILL, end.stderr
    assert leftovers(Path(folder))
    assert run(*words) == 0
    assert leftovers(Path(folder)) == []
