"""Places that refuse: unreadable, unwritable, full, looping, or closed; and processes that are killed on the way."""

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
from pylo_zoo.files import left_behind

PROGRAM = (sys.executable, "-c", "from pylo_zoo.cli import main; main()")
as_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root, and Windows, pass over a file's mode"
)


@pytest.fixture(autouse=True)
def in_an_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def made(capsys: Capture, tmp_path: Path) -> Path:
    """An artifact's directory."""
    assert run("convert", "elo", "--source", write_theta(tmp_path, "elo"), "--no-verify", "-q") == 0
    capsys.readouterr()
    return Path("zoo/elo")


def refusing(monkeypatch: pytest.MonkeyPatch, what: str, number: int, below: Path) -> None:
    """Let ``Path.what`` and ``os.what`` fail for paths at and below ``below``."""

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
def test_an_unreadable_source_by_its_mode(capsys: Capture, tmp_path: Path) -> None:
    write_theta(tmp_path, "elo").chmod(0)
    assert "Permission denied" in refused(capsys, "convert", "elo", "--source", "theta.state")


@pytest.mark.parametrize("command", [("inspect",), ("convert", "elo", "--source")])
def test_an_unreadable_source(
    command: tuple[str, ...], capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_theta(tmp_path, "elo")
    refusing(monkeypatch, "open", errno.EACCES, path)
    said = refused(capsys, *command, path)
    assert "theta.state cannot be read: Permission denied" in said
    assert "permissions" in said


def test_a_folder_that_may_not_be_entered(capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_theta(tmp_path, "elo")
    refusing(monkeypatch, "stat", errno.EACCES, path)
    assert "theta.state cannot be read" in refused(capsys, "inspect", path)


def test_an_unwritable_output_folder(capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_theta(tmp_path, "elo")
    refusing(monkeypatch, "mkdir", errno.EACCES, tmp_path / "closed")
    said = refused(capsys, "convert", "elo", "--source", path, "--out", "closed/elo", "--no-verify")
    assert "closed/elo cannot be written: Permission denied" in said
    assert "another place" in said
    assert [entry.name for entry in tmp_path.iterdir()] == ["theta.state"]


def test_a_file_where_the_output_folder_should_be(capsys: Capture, tmp_path: Path) -> None:
    path = write_theta(tmp_path, "elo")
    Path("file").write_text("mine")
    assert "file/elo" in refused(capsys, "convert", "elo", "--source", path, "--out", "file/elo", "--no-verify")
    assert Path("file").read_text() == "mine"


def test_an_unwritable_cache_is_named_by_its_variable(
    capsys: Capture, tmp_path: Path, zoo_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_theta(tmp_path, "elo")
    refusing(monkeypatch, "mkdir", errno.EROFS, zoo_home)
    said = refused(capsys, "convert", "elo", "--source", path, "--no-verify")
    assert "Read-only file system" in said
    assert "PYLO_ZOO_HOME" in said
    assert not Path("zoo").exists()


def test_a_cache_that_is_a_file(capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYLO_ZOO_HOME", str(write_theta(tmp_path, "elo")))
    assert "PYLO_ZOO_HOME" in refused(capsys, "convert", "elo", "--source", "theta.state", "--no-verify")


# --- a full disk -------------------------------------------------------------------------------------------------


class FullDisk:
    """A disk that refuses the ``at``-th write, or the ``at``-th sync, and all that follow."""

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


def fill(what: str, command: Callable[[], None], unharmed: Callable[[], None]) -> int:
    """Run ``command`` on disks that are full earlier and later, until one has room; how many had none."""
    for at in range(1, 30):
        with pytest.MonkeyPatch.context() as patch:
            disk = FullDisk(patch, what, at)
            command()
        if disk.calls < at:
            return at - 1
        unharmed()
    raise AssertionError("it never ends")


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

    def unharmed() -> None:
        assert not list(Path("zoo").glob("**/*")) or artifact.read("zoo/elo")
        folder = zoo_home / "sources" / sha256
        assert not folder.exists() or not list(folder.iterdir()) or cached_source(sha256)
        assert [path for path in [*tmp_path.rglob("*"), *zoo_home.rglob("*")] if left_behind(path.name)] == []
        shutil.rmtree(folder, ignore_errors=True)  # so that every run writes it

    words = ["convert", "elo", "--source", path, "--no-verify", "-q", "--format", "pt", "--force"]
    assert fill(what, until_it_works(capsys, *words), unharmed) >= times


@pytest.mark.parametrize("what", ["write_bytes", "fsync"])
def test_export_on_a_full_disk(made: Path, capsys: Capture, what: str) -> None:
    Path("out.state").write_text("old")

    def unharmed() -> None:
        assert Path("out.state").read_bytes() in (b"old", Path("theta.state").read_bytes())
        assert sorted(path.name for path in Path().iterdir()) == ["out.state", "theta.state", "zoo"]

    words = ["export", made, "--out", "out.state", "--force"]
    assert fill(what, until_it_works(capsys, *words), unharmed) >= 1


@pytest.mark.parametrize("what", ["write_bytes", "fsync"])
def test_verify_on_a_full_disk(made: Path, capsys: Capture, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    passing(monkeypatch)

    def unharmed() -> None:
        assert json.loads((made / artifact.PARITY).read_text())["status"] in ("not_run", "passed")
        assert sorted(digests(made)) == ["config.json", "model.safetensors", "parity.json"]

    assert fill(what, until_it_works(capsys, "verify", made), unharmed) >= 1


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


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
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
    made: Path, capsys: Capture, tmp_path: Path, owner: str, name: str, at: int, how: str
) -> None:
    before = digests(made)
    write_theta(tmp_path, "elo", seed=1)
    words = ["convert", "elo", "--source", "theta.state", "--no-verify", "--force", "-q"]
    if owner == "files" or name == "rename":  # so that only the artifact's own directory is replaced
        assert run(*words[:4], "--out", "other", *words[4:]) == 0
    done = subprocess.run([sys.executable, "-c", KILLED, owner, name, str(at), how, *words], check=False)
    assert done.returncode == -9
    assert not made.exists() or digests(made) == before
    assert run(*words) == 0
    assert capsys.readouterr().err == ""
    assert digests(made) != before
    assert artifact.read(made)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_what_a_killed_verify_leaves_is_in_nobodys_way(made: Path, capsys: Capture) -> None:
    code = "import sys; from pathlib import Path; from pylo_zoo import artifact; artifact.write_parity(sys.argv[1], {})"
    kill = "import os; from pylo_zoo import files; files.sync = lambda path: os.kill(os.getpid(), 9); "
    assert subprocess.run([sys.executable, "-c", kill + code, str(made)], check=False).returncode == -9
    assert any(left_behind(path.name) for path in made.iterdir())
    assert artifact.read(made)
    assert run("convert", "elo", "--source", "theta.state", "--no-verify", "-q", "--force") == 0
    assert sorted(digests(made)) == ["config.json", "model.safetensors", "parity.json"]
    assert not any(map(left_behind, [".notes.new", "model.new-01234567", "mine.txt"]))


# --- links, and others at work -------------------------------------------------------------------------------------


def test_out_as_a_link_replaces_what_it_points_to(capsys: Capture, tmp_path: Path) -> None:
    path = write_theta(tmp_path, "elo")
    Path("real").mkdir()
    Path("link").symlink_to("real")
    assert run("convert", "elo", "--source", path, "--out", "link", "--no-verify", "-q") == 0
    assert Path("link").is_symlink()
    assert artifact.read("real")
    Path("dangling").symlink_to("deeper/new")
    assert run("convert", "elo", "--source", path, "--out", "dangling", "--no-verify", "-q") == 0
    assert artifact.read("deeper/new")


def test_out_as_a_loop(capsys: Capture, tmp_path: Path, made: Path) -> None:
    Path("a").symlink_to("b")
    Path("b").symlink_to("a")
    for out in ("a", "a/elo"):
        words = ["convert", "elo", "--source", "theta.state", "--out", out, "--no-verify", "--force"]
        assert "symbolic links" in refused(capsys, *words)
    assert "symbolic links" in refused(capsys, "export", made, "--out", "a", "--force")
    refused(capsys, "inspect", "a")
    assert Path("a").is_symlink()


def test_out_with_dots(tmp_path: Path) -> None:
    path = write_theta(tmp_path, "elo")
    Path("one/two").mkdir(parents=True)
    assert run("convert", "elo", "--source", path, "--out", "one/two/../../three", "--no-verify", "-q") == 0
    assert artifact.read("three")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["one", "theta.state", "three"]


def test_a_name_that_no_file_system_takes(capsys: Capture, tmp_path: Path) -> None:
    said = refused(capsys, "convert", "elo", "--source", write_theta(tmp_path, "elo"), "--out", "x" * 300)
    assert "name too long" in said
    assert "bug" not in said
    assert "bug" not in refused(capsys, "inspect", "x" * 300)


def test_two_processes_replace_one_artifact(tmp_path: Path) -> None:
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
