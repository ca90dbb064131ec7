"""``--out`` as a mount point, the working directory, or an existing empty directory, for every command that has it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import Capture, refused, run
from trees import write_theta

from pylo_zoo import artifact, convert, parity, pipeline, weights
from pylo_zoo.experiments import bench
from pylo_zoo.experiments.compare import plan
from pylo_zoo.experiments.train.setup import Setup

IN_MOUNTS = """
import subprocess, sys
from pathlib import Path
from pylo_zoo import cli

def mount(*words):
    subprocess.run(["mount", *words], check=True)

def run(*argv):
    try:
        cli.main([str(word) for word in argv])
    except SystemExit as end:
        assert not end.code, argv

place = Path(sys.argv[1])
for kind, options in (("tmpfs", ["-t", "tmpfs", "tmpfs"]), ("bind", ["--bind", str(place / "beneath")])):
    out = place / kind
    mount(*options, str(out))
    for force in ([], ["--force"]):
        run("convert", "celo2", "--source", place / "theta.state", "--out", out, "--no-verify", *force, "-q")
        assert sorted(path.name for path in out.iterdir()) == ["config.json", "model.safetensors", "parity.json"]
    run("pull", place / "bind-source", "--out", out, "--force", "-q")
    run("train", "quadratic", "--optimizer", "sgd", "--steps", "2", "--out", place / f"{kind}-run", "-q")
file = place / "file.state"
mount("--bind", str(place / "beneath.state"), str(file))
run("export", out, "--out", file, "--force", "-q")
assert file.read_bytes() == (place / "theta.state").read_bytes()
print("done")
"""


def may_mount() -> bool:
    """Whether this process can create mounts."""
    if sys.platform != "linux" or shutil.which("unshare") is None:
        return False
    words = ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return subprocess.run(words, capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not may_mount(), reason="cannot mount; test_files.py simulates a mount point")
def test_mount_points(tmp_path: Path) -> None:
    write_theta(tmp_path, "celo2", scale=0.1)
    for name in ("tmpfs", "bind", "beneath"):
        (tmp_path / name).mkdir()
    for name in ("file.state", "beneath.state"):
        (tmp_path / name).touch()
    assert (
        run("convert", "celo2", "--source", tmp_path / "theta.state", "--out", tmp_path / "bind-source", "--no-verify")
        == 0
    )
    command = ["unshare", "--mount", sys.executable, "-c", IN_MOUNTS, str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (ended.stdout.splitlines()[-1:], ended.stderr) == (["done"], "")


def test_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_theta(tmp_path, "celo2", scale=0.1)
    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.chdir(out)
    before = out.stat().st_ino
    for force in ([], ["--force"]):
        assert run("convert", "celo2", "--source", source, "--out", ".", "--no-verify", *force) == 0
        assert out.stat().st_ino == before  # a shell in it must not end up in a deleted directory
    assert artifact.read(Path(".")).family == "celo2"
    copy = tmp_path / "copy"
    copy.mkdir()
    monkeypatch.chdir(copy)
    before = copy.stat().st_ino
    assert run("pull", "../out", "--out", ".") == 0
    assert copy.stat().st_ino == before
    assert json.loads(Path("config.json").read_text())["family"] == "celo2"


def test_a_directory_that_was_deleted_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_theta(tmp_path, "celo2", scale=0.1)
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert run("convert", "celo2", "--source", source, "--out", "out", "--no-verify") == 1
    err = capsys.readouterr().err
    assert "Error: out cannot be written: no file can be created in . (No such file or directory)." in err


BAD_PLACES = {"afile/sub": "afile is not a directory", "/proc/x": "cannot be written"}
WORK = (
    (pipeline, "convert_checkpoint"),
    (parity, "verify"),
    (convert, "export"),
    (Setup, "build"),
    (plan, "plan_comparison"),
    (bench, "bench"),
    (weights, "_find"),
)
"""What takes long in a command, or fetches."""
COMMANDS = {
    "convert": ("convert", "elo", "--source", "theta.state"),
    "export": ("export", "zoo/elo"),
    "train": ("train", "quadratic", "--steps", 1),
    "compare": ("compare", "quadratic", "--steps", 1),
    "bench": ("bench", "--shapes", "tiny"),
    "pull": ("pull", "zoo/elo"),
}


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
@pytest.mark.parametrize("place", BAD_PLACES)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_place_is_checked_before_the_work(
    command: str, place: str, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("convert", "elo", "--source", write_theta(tmp_path, "elo"), "--no-verify", "-q") == 0
    Path("afile").write_text("mine")
    capsys.readouterr()
    for owner, name in WORK:
        monkeypatch.setattr(owner, name, lambda *_, **__: pytest.fail("the work began"))
    error = refused(capsys, *COMMANDS[command], "--out", place)
    assert BAD_PLACES[place] in error
    assert Path("afile").read_text() == "mine"
