"""Only regular files are read: a pipe never blocks, a device never fills memory, and a size is checked first."""

from __future__ import annotations

import os
import signal
import socket
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import published
import pytest
from commands import Capture, refused
from trees import write_params, write_theta

from pylo_zoo import artifact, formats, limits, registry
from pylo_zoo.compat import weights as compat
from pylo_zoo.errors import ZooError
from pylo_zoo.experiments import tasks
from pylo_zoo.experiments.bench import report as bench
from pylo_zoo.experiments.train import recipes, setup
from pylo_zoo.experiments.train.loop import CHECKPOINT, RUN, Run, TrainPlan, train
from pylo_zoo.fetch import fetch, lockfile, store
from pylo_zoo.files import open_regular, read_regular, read_text
from pylo_zoo.parity import vectors

SECONDS = 60
"""Seconds after which a blocking read fails its test instead of hanging the whole run."""
ALLOWED = 4 * 1024 * 1024


@pytest.fixture(autouse=True)
def alarm() -> Iterator[None]:
    def ring(*_: object) -> None:
        raise AssertionError(f"the read still blocks after {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


# --- kinds of files ----------------------------------------------------------------------------------------------


def fifo(path: Path) -> None:
    os.mkfifo(path)


def zero(path: Path) -> None:
    path.symlink_to("/dev/zero")


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(3 * 2**30)


def directory(path: Path) -> None:
    path.mkdir()


def dangling(path: Path) -> None:
    path.symlink_to(path.with_name("nothing"))


def bound_socket(path: Path) -> None:
    server = socket.socket(socket.AF_UNIX)
    cwd = Path.cwd()
    try:
        os.chdir(path.parent)  # the name of a socket has at most 108 bytes
        server.bind(path.name)
    finally:
        os.chdir(cwd)
        server.close()


KINDS: dict[str, tuple[Callable[[Path], None], str]] = {
    "a named pipe": (fifo, "named pipe"),
    "a link to /dev/zero": (zero, "device"),
    "a sparse file of 3 GB": (sparse, "larger than"),
    "a directory": (directory, "directory"),
    "a dangling link": (dangling, "exist"),
    "a socket": (bound_socket, "socket"),
}
PIPES = ("a named pipe", "a link to /dev/zero")
"""Kinds whose error differs from place to place; the tests check that nothing blocks or fills memory."""


def put(kind: str, path: Path) -> str:
    make, complaint = KINDS[kind]
    if path.is_symlink() or path.is_file():
        path.unlink()
    path.parent.mkdir(parents=True, exist_ok=True)
    make(path)
    return complaint


def bounded_refusal(action: Callable[[], object]) -> ZooError:
    tracemalloc.start()
    try:
        with pytest.raises(ZooError) as error:
            action()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < ALLOWED
    assert error.value.hint
    return error.value


# --- the helper --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_helper(kind: str, tmp_path: Path) -> None:
    complaint = put(kind, tmp_path / "x")
    error = bounded_refusal(lambda: read_regular(tmp_path / "x", 1000))
    assert complaint in error.message
    if kind != "a sparse file of 3 GB":
        with pytest.raises(OSError, match=r"not a regular file|No such|socket"):
            open_regular(tmp_path / "x")
    with pytest.raises(OSError):  # noqa: PT011  (the six kinds have no word in common)
        read_text(tmp_path / "x")


@pytest.mark.parametrize("size", [0, 1, 999, 1000])
def test_a_regular_file_is_read_up_to_the_limit(size: int, tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(bytes(size))
    assert read_regular(path, 1000) == bytes(size)
    (tmp_path / "link").symlink_to(path)
    assert read_regular(tmp_path / "link", 1000) == bytes(size)
    if size:
        with pytest.raises(ZooError, match=f"larger than {size - 1:,} bytes: it has {size:,}"):
            read_regular(path, size - 1)


def test_a_missing_file_and_one_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZooError, match="does not exist"):
        read_regular(tmp_path / "x", 1)
    with pytest.raises(ZooError, match="not valid"):
        read_regular(tmp_path / "x\0y", 1)
    (tmp_path / "x").write_bytes(b"x")

    def denied(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(ZooError, match="cannot be read: Permission denied"):
        read_regular(tmp_path / "x", 1)


def test_no_descriptor_stays_open(tmp_path: Path) -> None:
    put("a named pipe", tmp_path / "x")
    before = len(os.listdir("/dev/fd"))
    for _ in range(20):
        with pytest.raises(OSError, match="named pipe"):
            open_regular(tmp_path / "x")
    assert len(os.listdir("/dev/fd")) == before


# --- every place that reads a file -------------------------------------------------------------------------------


def write_artifact(path: Path) -> Path:
    path.mkdir(exist_ok=True)
    for name, data in published.files().items():
        (path / name).write_bytes(data)
    return path


def of_artifact(name: str) -> Callable[[Path], tuple[Path, Callable[[], object]]]:
    return lambda root: (write_artifact(root / "a") / name, lambda: artifact.read(root / "a"))


def checkpoint(root: Path) -> tuple[Path, Callable[[], object]]:
    return root / "theta.state", lambda: formats.read(root / "theta.state")


def gin(root: Path) -> tuple[Path, Callable[[], object]]:
    params = write_params(root)
    return root / "config.gin", lambda: formats.read(params)


def replay(root: Path) -> tuple[Path, Callable[[], object]]:
    path = root / artifact.VECTORS
    return path, lambda: vectors.unpack(path)


def locked(root: Path) -> tuple[Path, Callable[[], object]]:
    return root / "zoo.lock", lambda: lockfile.read_all(root / "zoo.lock")


def own_registry(root: Path) -> tuple[Path, Callable[[], object]]:
    return root / "registry.yaml", lambda: registry.load_registry(root / "registry.yaml")


def local(root: Path) -> tuple[Path, Callable[[], object]]:
    return root / "x.state", lambda: fetch(str(root / "x.state"))


def run(root: Path) -> tuple[Path, Callable[[], object]]:
    return root / RUN, lambda: setup.read_setup(root)


def saved_run(root: Path) -> tuple[Path, Callable[[], object]]:
    def new() -> Run:
        recipe = recipes.find_recipe("sgd")
        return Run(tasks.make("quadratic", {"size": 2}), recipe, TrainPlan(2, save_every=1), root / "run")

    train(new())
    return root / "run" / CHECKPOINT, lambda: new().resume()


def figures(root: Path) -> tuple[Path, Callable[[], object]]:
    return root / "bench.json", lambda: bench.read(root / "bench.json")


def meta_training(root: Path) -> tuple[Path, Callable[[], object]]:
    return root / "x.pth", lambda: compat.load_meta_training(root / "x.pth")


PLACES: dict[str, Callable[[Path], tuple[Path, Callable[[], object]]]] = {
    "an artifact's weights": of_artifact(artifact.WEIGHTS),
    "an artifact's config": of_artifact(artifact.CONFIG),
    "an artifact's proof": of_artifact(artifact.PARITY),
    "an artifact's vectors": replay,
    "a checkpoint": checkpoint,
    "a gin file": gin,
    "a lock file": locked,
    "a registry": own_registry,
    "a local address": local,
    "a run": run,
    "figures of bench": figures,
    "a file of meta-training": meta_training,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", PLACES)
def test_any_other_kind_of_file_is_one_error(place: str, kind: str, tmp_path: Path) -> None:
    if (place, kind) == ("a lock file", "a dangling link"):
        pytest.skip("the first pin creates the lock file")
    path, action = PLACES[place](tmp_path)
    complaint = put(kind, path)
    if (place, kind) == ("a checkpoint", "a directory"):
        complaint = "is a directory"
    error = bounded_refusal(action)
    if kind in PIPES:
        assert complaint in error.message


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_resumes_only_from_a_regular_file(kind: str, tmp_path: Path) -> None:
    path, resume = saved_run(tmp_path)
    complaint = put(kind, path)
    with pytest.raises(ZooError, match=r"checkpoint\.pt cannot be read: ") as error:
        resume()
    assert kind not in PIPES or complaint in error.value.message


@pytest.mark.parametrize("kind", ["a named pipe", "a link to /dev/zero", "a socket"])
@pytest.mark.parametrize("name", ["a/0", "a/.zarray", "d/more"])
def test_a_directory_of_orbax_or_pylo_must_hold_only_files(name: str, kind: str, tmp_path: Path) -> None:
    """The directory is refused before orbax, which would block on a pipe, reads it."""
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "_METADATA").write_text("{}")
    put(kind, tmp_path / "saved" / name)
    error = bounded_refusal(lambda: formats.read(tmp_path / "saved"))
    assert "neither a file nor a directory" in error.message or "symbolic link" in error.message


def test_a_lock_of_the_cache_that_is_a_pipe(zoo_home: Path) -> None:
    with store.locked("key"):
        pass
    (path,) = (zoo_home / "sources" / ".locks").iterdir()
    put("a named pipe", path)
    with pytest.raises(ZooError, match="not a regular file"), store.locked("key"):
        pass


@pytest.mark.parametrize("kind", PIPES)
def test_a_partial_download_that_is_not_a_file_is_replaced(kind: str, tmp_path: Path, zoo_home: Path) -> None:
    source = write_theta(tmp_path, "elo")
    path = store.partial(f"local {source}")
    for each in (path, path.with_name(path.name + ".json")):
        put(kind, each)
    assert fetch(str(source)).read_bytes() == source.read_bytes()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("command", ["info", "export", "verify", "train"])
def test_commands(command: str, kind: str, tmp_path: Path, capsys: Capture) -> None:
    path = write_artifact(tmp_path / "a")
    complaint = put(kind, path / artifact.WEIGHTS)
    words: dict[str, tuple[Any, ...]] = {
        "info": ("info", path),
        "export": ("export", path, "--out", tmp_path / "x"),
        "verify": ("verify", path),
        "train": ("train", "--optimizer", path, "--task", "quadratic", "--steps", "1"),
    }
    assert complaint in refused(capsys, *words[command])
    assert not (tmp_path / "x").exists()


def test_max_bytes_is_an_option_of_the_commands_that_read(tmp_path: Path, capsys: Capture) -> None:
    path, source = write_artifact(tmp_path / "a"), write_theta(tmp_path, "elo")
    for words in (
        ("inspect", source),
        ("convert", "elo", "--source", source, "--out", tmp_path / "out"),
        ("info", path),
        ("export", path, "--out", tmp_path / "x"),
        ("verify", path),
        ("pull", path),
        ("publish", path, "--repo-id", "org/x", "--dry-run"),
        ("train", "--optimizer", path, "--task", "quadratic", "--steps", "1"),
    ):
        assert "larger than 100 bytes" in refused(capsys, *words, "--max-bytes", "100")
    assert limits.max_bytes() == limits.DEFAULT_MAX_BYTES  # the option ends with its command
