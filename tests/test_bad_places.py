"""Unreadable, unwritable, full, looping and closed places, and processes that are killed on the way."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import Capture, digests, passing, refused, run
from trees import write_theta

from pylo_zoo import artifact
from pylo_zoo.convert import cached_source
from pylo_zoo.leftovers import left_behind

PROGRAM = (sys.executable, "-c", "from pylo_zoo.cli import main; main()")
as_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root and Windows ignore a file's mode"
)


@pytest.fixture(autouse=True)
def in_an_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def artifact_directory(capsys: Capture, tmp_path: Path) -> Path:
    """An artifact's directory."""
    assert run("convert", "elo", "--source", write_theta(tmp_path, "elo"), "--no-verify", "-q") == 0
    capsys.readouterr()
    return Path("zoo/elo")


def refusing(monkeypatch: pytest.MonkeyPatch, what: str, number: int, below: Path) -> None:
    """Make ``Path.what`` and ``os.what`` fail for ``below`` and paths under it."""

    def refusing_one(real: Callable[..., Any]) -> Callable[..., Any]:
        def refuse(path: Any, *arguments: Any, **options: Any) -> Any:
            if isinstance(path, (str, Path)) and Path(path).absolute().is_relative_to(below.absolute()):
                raise OSError(number, os.strerror(number), str(path))
            return real(path, *arguments, **options)

        return refuse

    for module in (Path, os):
        monkeypatch.setattr(module, what, refusing_one(getattr(module, what)))


# --- permissions -------------------------------------------------------------------------------------------------


@as_root
def test_a_source_without_read_permission(capsys: Capture, tmp_path: Path) -> None:
    write_theta(tmp_path, "elo").chmod(0)
    assert "Permission denied" in refused(capsys, "convert", "elo", "--source", "theta.state")


@pytest.mark.parametrize("command", [("inspect",), ("convert", "elo", "--source")])
def test_an_unreadable_source(
    command: tuple[str, ...], capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_theta(tmp_path, "elo")
    refusing(monkeypatch, "open", errno.EACCES, path)
    error = refused(capsys, *command, path)
    assert "theta.state cannot be read: Permission denied" in error
    assert "permissions" in error


def test_a_folder_without_search_permission(capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_theta(tmp_path, "elo")
    refusing(monkeypatch, "stat", errno.EACCES, path)
    assert "theta.state cannot be read" in refused(capsys, "inspect", path)


def test_an_unwritable_output_folder(capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_theta(tmp_path, "elo")
    refusing(monkeypatch, "mkdir", errno.EACCES, tmp_path / "closed")
    error = refused(capsys, "convert", "elo", "--source", path, "--out", "closed/elo", "--no-verify")
    assert "closed/elo cannot be written: Permission denied" in error
    assert "another place" in error
    assert [entry.name for entry in tmp_path.iterdir()] == ["theta.state"]


def test_a_file_where_the_output_folder_should_be(capsys: Capture, tmp_path: Path) -> None:
    path = write_theta(tmp_path, "elo")
    Path("file").write_text("mine")
    assert "file/elo" in refused(capsys, "convert", "elo", "--source", path, "--out", "file/elo", "--no-verify")
    assert Path("file").read_text() == "mine"


def test_an_unwritable_cache_error_names_the_variable(
    capsys: Capture, tmp_path: Path, zoo_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_theta(tmp_path, "elo")
    refusing(monkeypatch, "mkdir", errno.EROFS, zoo_home)
    error = refused(capsys, "convert", "elo", "--source", path, "--no-verify")
    assert "Read-only file system" in error
    assert "PYLO_ZOO_HOME" in error
    assert not Path("zoo").exists()


def test_a_cache_that_is_a_file(capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYLO_ZOO_HOME", str(write_theta(tmp_path, "elo")))
    assert "PYLO_ZOO_HOME" in refused(capsys, "convert", "elo", "--source", "theta.state", "--no-verify")


# --- a full disk -------------------------------------------------------------------------------------------------


class FullDisk:
    """A disk that refuses the ``at``-th write or sync and all later ones."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, what: str, at: int) -> None:
        self.calls, self.at = 0, at
        owner: Any = Path if what == "write_bytes" else os
        real = getattr(owner, what)

        def counted(*arguments: Any) -> Any:
            self.calls += 1
            if self.calls >= self.at:
                if what == "write_bytes":
                    real(arguments[0], arguments[1][: len(arguments[1]) // 2])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*arguments)

        monkeypatch.setattr(owner, what, counted)


def fill(what: str, command: Callable[[], None], check_unchanged: Callable[[], None]) -> int:
    """Run ``command`` on disks that fill up later and later until it succeeds; return the number of failures."""
    for at in range(1, 30):
        with pytest.MonkeyPatch.context() as patch:
            disk = FullDisk(patch, what, at)
            command()
        if disk.calls < at:
            return at - 1
        check_unchanged()
    raise AssertionError("the command never succeeded")


def until_it_works(capsys: Capture, *words: object) -> Callable[[], None]:
    def command() -> None:
        status = run(*words)
        out, err = capsys.readouterr()
        if status == 0:
            return
        assert status == 1
        assert out == ""
        error, hint = err.splitlines()
        assert "No space left on device" in error
        assert "free space" in hint

    return command


@pytest.mark.parametrize(("what", "times"), [("write_bytes", 5), ("fsync", 9)])
def test_convert_on_a_full_disk(capsys: Capture, tmp_path: Path, zoo_home: Path, what: str, times: int) -> None:
    path = write_theta(tmp_path, "elo")
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()

    def check_unchanged() -> None:
        assert not list(Path("zoo").glob("**/*")) or artifact.read("zoo/elo")
        folder = zoo_home / "sources" / sha256
        assert not folder.exists() or not list(folder.iterdir()) or cached_source(sha256)
        assert [path for path in [*tmp_path.rglob("*"), *zoo_home.rglob("*")] if left_behind(path.name)] == []
        shutil.rmtree(folder, ignore_errors=True)  # so every run writes it

    words = ["convert", "elo", "--source", path, "--no-verify", "-q", "--format", "pt", "--force"]
    assert fill(what, until_it_works(capsys, *words), check_unchanged) >= times


@pytest.mark.parametrize("what", ["write_bytes", "fsync"])
def test_export_on_a_full_disk(artifact_directory: Path, capsys: Capture, what: str) -> None:
    Path("out.state").write_text("old")

    def check_unchanged() -> None:
        assert Path("out.state").read_bytes() in (b"old", Path("theta.state").read_bytes())
        assert sorted(path.name for path in Path().iterdir()) == ["out.state", "theta.state", "zoo"]

    words = ["export", artifact_directory, "--out", "out.state", "--force"]
    assert fill(what, until_it_works(capsys, *words), check_unchanged) >= 1


@pytest.mark.parametrize("what", ["write_bytes", "fsync"])
def test_verify_on_a_full_disk(
    artifact_directory: Path, capsys: Capture, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    passing(monkeypatch)

    def check_unchanged() -> None:
        assert json.loads((artifact_directory / artifact.PARITY).read_text())["status"] in ("not_run", "passed")
        assert sorted(digests(artifact_directory)) == ["config.json", "model.safetensors", "parity.json"]

    assert fill(what, until_it_works(capsys, "verify", artifact_directory), check_unchanged) >= 1


# --- SIGKILL -----------------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from pathlib import Path
from pylo_zoo import files
from pylo_zoo.cli import main

owner, name, at = sys.argv[1], sys.argv[2], int(sys.argv[3])
place = {"files": files, "Path": Path}[owner]
real, calls = getattr(place, name), 0

def counted(*arguments, **options):
    global calls
    calls += 1
    if calls == at:
        if name == "write_bytes":
            real(arguments[0], arguments[1][: len(arguments[1]) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments, **options)

setattr(place, name, counted)
if sys.argv[4] == "renames":
    files._exchange = lambda one, other: False
main(sys.argv[5:])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is unavailable")
@pytest.mark.parametrize(
    ("owner", "name", "at", "how"),
    [
        ("Path", "write_bytes", 1, "exchange"),
        ("Path", "write_bytes", 3, "exchange"),
        ("files", "sync", 2, "exchange"),
        ("files", "_replace", 1, "exchange"),
        ("files", "_exchange", 1, "exchange"),
        ("Path", "rename", 2, "renames"),
        ("Path", "rename", 3, "renames"),
    ],
)
def test_a_killed_conversion_leaves_the_old_artifact_or_none(
    artifact_directory: Path, capsys: Capture, tmp_path: Path, owner: str, name: str, at: int, how: str
) -> None:
    before = digests(artifact_directory)
    write_theta(tmp_path, "elo", seed=1)
    words = ["convert", "elo", "--source", "theta.state", "--no-verify", "--force", "-q"]
    if owner == "files" or name == "rename":  # so only the artifact's directory is replaced
        assert run(*words[:4], "--out", "other", *words[4:]) == 0
    done = subprocess.run([sys.executable, "-c", KILLED, owner, name, str(at), how, *words], check=False)
    assert done.returncode == -9
    assert not artifact_directory.exists() or digests(artifact_directory) == before
    assert run(*words) == 0
    assert capsys.readouterr().err == ""
    assert digests(artifact_directory) != before
    assert artifact.read(artifact_directory)


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is unavailable")
def test_leftovers_of_a_killed_verify_do_no_harm(artifact_directory: Path, capsys: Capture) -> None:
    code = "import sys; from pathlib import Path; from pylo_zoo import artifact; artifact.write_parity(sys.argv[1], {})"
    kill = "import os; from pylo_zoo import files; files.sync = lambda path: os.kill(os.getpid(), 9); "
    assert subprocess.run([sys.executable, "-c", kill + code, str(artifact_directory)], check=False).returncode == -9
    assert any(left_behind(path.name) for path in artifact_directory.iterdir())
    assert artifact.read(artifact_directory)
    assert run("convert", "elo", "--source", "theta.state", "--no-verify", "-q", "--force") == 0
    assert sorted(digests(artifact_directory)) == ["config.json", "model.safetensors", "parity.json"]
    assert not any(map(left_behind, [".notes.new", "model.new-01234567", "mine.txt"]))


# --- links and concurrent writers ----------------------------------------------------------------------------------


def test_out_as_a_link_replaces_its_target(capsys: Capture, tmp_path: Path) -> None:
    path = write_theta(tmp_path, "elo")
    Path("real").mkdir()
    Path("link").symlink_to("real")
    assert run("convert", "elo", "--source", path, "--out", "link", "--no-verify", "-q") == 0
    assert Path("link").is_symlink()
    assert artifact.read("real")
    Path("dangling").symlink_to("deeper/new")
    assert run("convert", "elo", "--source", path, "--out", "dangling", "--no-verify", "-q") == 0
    assert artifact.read("deeper/new")


def test_out_as_a_loop(capsys: Capture, tmp_path: Path, artifact_directory: Path) -> None:
    Path("a").symlink_to("b")
    Path("b").symlink_to("a")
    for out in ("a", "a/elo"):
        words = ["convert", "elo", "--source", "theta.state", "--out", out, "--no-verify", "--force"]
        assert "symbolic links" in refused(capsys, *words)
    assert "symbolic links" in refused(capsys, "export", artifact_directory, "--out", "a", "--force")
    refused(capsys, "inspect", "a")
    assert Path("a").is_symlink()


def test_out_with_dots(tmp_path: Path) -> None:
    path = write_theta(tmp_path, "elo")
    Path("one/two").mkdir(parents=True)
    assert run("convert", "elo", "--source", path, "--out", "one/two/../../three", "--no-verify", "-q") == 0
    assert artifact.read("three")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["one", "theta.state", "three"]


def test_a_name_that_the_file_system_rejects(capsys: Capture, tmp_path: Path) -> None:
    error = refused(capsys, "convert", "elo", "--source", write_theta(tmp_path, "elo"), "--out", "x" * 300)
    assert "name too long" in error
    assert "bug" not in error
    assert "bug" not in refused(capsys, "inspect", "x" * 300)


def test_two_processes_replace_the_same_artifact(tmp_path: Path) -> None:
    sources = []
    for seed in range(2):
        (tmp_path / str(seed)).mkdir()
        sources.append(write_theta(tmp_path / str(seed), "elo", seed))
    words = ["convert", "elo", "--no-verify", "-q", "--force", "--out", "both", "--source"]
    for _ in range(3):
        running = [subprocess.Popen([*PROGRAM, *words, str(path)], stderr=subprocess.PIPE) for path in sources]
        assert [(process.communicate()[1], process.returncode) for process in running] == [(b"", 0)] * 2
        assert artifact.read("both").source.sha256 in {
            hashlib.sha256(path.read_bytes()).hexdigest() for path in sources
        }
        assert not [path for path in tmp_path.iterdir() if left_behind(path.name)]
