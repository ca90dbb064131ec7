"""Web pages, pointers and error messages instead of a checkpoint: named in the error, never recorded, never kept."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import refused
from fault_server import Files
from hub_double import HubDouble
from trees import encode, nested, synthetic_artifact, theta

import pylo_zoo
from pylo_zoo import artifact, formats, impostors, registry, weights
from pylo_zoo.convert import convert
from pylo_zoo.errors import ZooError
from pylo_zoo.fetch import Access, FetchError, lockfile, parse

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"1" * 64 + b"\nsize 149216\n"
IMPOSTORS = {
    "page": (
        b"\n<!DOCTYPE html>\n<html><head><title>Sign in\n - Hub</title></head></html>",
        "web page titled 'Sign in - Hub'",
    ),
    "bare page": (b"<html><body>503</body></html>", "web page (HTML)"),
    "commented page": (b"\xef\xbb\xbf<!-- served by x --><HTML>", "web page (HTML)"),
    "wide page": ("\ufeff<!doctype html><title>Anmeldung</title>".encode("utf-16-le"), "web page titled 'Anmeldung'"),
    "lfs": (POINTER, "a Git LFS pointer (131 bytes)"),
    "xet": (b"# xet version 0\nfilesize = 9\nhash = 'ab'\n", "a Xet pointer"),
    "annex": (b"/annex/objects/SHA256E-s9--ab\n", "a git-annex pointer"),
    "bucket": (
        b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
        "an XML error message, 'AccessDenied'",
    ),
    "api": (b'{"error": "Repository not found"}', "a JSON error message, 'Repository not found'"),
    "api's": (b'{"error": {"message": "No such object"}}', "a JSON error message, 'No such object'"),
    "json": (b'[{"a": 1}]', "a JSON document"),
    "text": (b"404: Not Found", "a text file that begins with '404: Not Found'"),
}
CHECKPOINT = encode(nested(theta("celo", scale=0.1)))
NO_FILE = ("empty", (b"", "empty"))


@pytest.fixture(autouse=True)
def in_an_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(params=[*IMPOSTORS.items(), NO_FILE], ids=lambda item: item[0])
def impostor(request: pytest.FixtureRequest) -> tuple[bytes, str]:
    """The bytes, and the error's name for them."""
    return request.param[1]


def full_text(error: pytest.ExceptionInfo[ZooError]) -> str:
    return f"{error.value.message} {error.value.hint}"


# --- from the disk -----------------------------------------------------------------------------------------------


def test_an_impostor_file_is_identified(impostor: tuple[bytes, str], capsys: pytest.CaptureFixture[str]) -> None:
    data, what = impostor
    for name in ("theta.state", "x.npz", "x.pickle", "x.safetensors", "params"):
        Path(name).write_bytes(data)
        with pytest.raises(ZooError) as error:
            formats.read(name)
        assert f"{name} is " in error.value.message
        assert what in error.value.message
        assert len(full_text(error)) < 250
    Path("config.gin").unlink(missing_ok=True)
    assert what in refused(capsys, "inspect", "theta.state")
    assert what in refused(capsys, "convert", "celo", "--source", "theta.state", "--out", "out")
    assert not Path("out").exists()


def test_an_artifact_in_a_clone_without_lfs(impostor: tuple[bytes, str]) -> None:
    data, what = impostor
    for name in (artifact.WEIGHTS, artifact.CONFIG):
        place = Path(f"zoo-{name}")
        artifact.write(synthetic_artifact("celo"), place)
        (place / name).write_bytes(data)
        with pytest.raises(ZooError) as error:
            weights.load(place)
        if name == artifact.WEIGHTS or not data.startswith((b"{", b"[", b"404")):
            assert what in error.value.message


@pytest.mark.parametrize("name", ["model.safetensors", "deep/model.safetensors", "d/7f0a", "_METADATA"])
def test_a_directory_of_pointers(name: str) -> None:
    path = Path("cloned", name)
    path.parent.mkdir(parents=True)
    path.write_bytes(POINTER)
    with pytest.raises(ZooError, match=rf"cloned/{name} is a Git LFS pointer") as error:
        formats.read("cloned")
    assert "git lfs pull" in error.value.hint


@pytest.mark.parametrize("data", [IMPOSTORS["page"][0], POINTER], ids=["page", "pointer"])
def test_an_impostor_gin_file_is_identified(data: bytes) -> None:
    Path("params").write_bytes(encode({"params": nested(theta("velo")), "gen_id": "5620", "step": 1}))
    Path("config.gin").write_bytes(data)
    with pytest.raises(ZooError, match=r"config\.gin is a .*, not a gin configuration"):
        convert("velo", source="params")


@pytest.mark.parametrize(
    "data",
    [b"\x00" * 64, bytes(range(256)), b"\x93NUMPY", b"PK\x03\x04", CHECKPOINT, b"   \n", b"\xc3"],
)
def test_binary_files_are_not_impostors(data: bytes) -> None:
    assert impostors.recognize(data, len(data)) is None


# --- from the web ------------------------------------------------------------------------------------------------


def entry_of(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the registry's celo refer to ``uri``, with unknown hash and size."""
    entry = registry.get("celo")
    source = dataclasses.replace(entry.weights, uri=uri, sha256=None, bytes=None)
    small = dataclasses.replace(entry, sources=(source,), architecture=None)
    entries = {**registry.load_registry(), "celo": small}
    monkeypatch.setattr(registry, "load_registry", lambda path=None: entries)


Get = Callable[[Access], object]


@pytest.fixture(params=["https", "gs", "registry", "weights", "pull"])
def route(request: pytest.FixtureRequest, server: Files, monkeypatch: pytest.MonkeyPatch) -> Get:
    """A way to get the checkpoint at /bucket/theta.state."""
    uri = f"{server.url}/bucket/theta.state"
    monkeypatch.setenv("PYLO_ZOO_GCS_ENDPOINT", server.url)
    entry_of("gs://bucket/theta.state", monkeypatch)
    return {
        "https": lambda access: convert("celo", source=uri, access=access),
        "gs": lambda access: convert("celo", source="gs://bucket/theta.state", access=access),
        "registry": lambda access: convert("celo", access=access),
        "weights": lambda access: pylo_zoo.load("celo", access=access),
        "pull": lambda access: weights.pull("celo", access=access),
    }[request.param]


def files_of(home: Path) -> list[str]:
    return [path.name for path in home.rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_a_server_sends_an_impostor(
    impostor: tuple[bytes, str], route: Get, server: Files, access: Access, zoo_home: Path
) -> None:
    data, what = impostor
    server.files["/bucket/theta.state"] = data
    for again in (access, dataclasses.replace(access, update_lock=True)):
        with pytest.raises(FetchError) as error:
            route(again)
        assert what in error.value.message
        assert "theta.state" in error.value.message
    assert files_of(zoo_home) == []
    server.files["/bucket/theta.state"] = CHECKPOINT
    route(access)
    (pin,) = lockfile.read(zoo_home / "zoo.lock").values()
    assert pin.sha256 == hashlib.sha256(CHECKPOINT).hexdigest()


def test_bytes_of_unknown_format_are_not_recorded(route: Get, server: Files, access: Access, zoo_home: Path) -> None:
    for data in (b"\x00" * 64, CHECKPOINT[:-9], b"PK\x03\x04" + bytes(99), encode({"a": {}})):
        server.files["/bucket/theta.state"] = data
        with pytest.raises(FetchError, match="was not kept"):
            route(access)
    assert files_of(zoo_home) == []


def test_a_page_does_not_replace_what_was_recorded(route: Get, server: Files, access: Access, zoo_home: Path) -> None:
    server.files["/bucket/theta.state"] = CHECKPOINT
    route(access)
    before = (zoo_home / "zoo.lock").read_bytes()
    server.files["/bucket/theta.state"] = IMPOSTORS["page"][0]
    with pytest.raises(FetchError, match="web page titled"):
        route(dataclasses.replace(access, update_lock=True))
    assert (zoo_home / "zoo.lock").read_bytes() == before
    route(access)


def old_pin(home: Path, uri: str, data: bytes, *, cached: bool) -> None:
    """A lock file entry as older versions wrote it for any downloaded bytes."""
    sha256 = hashlib.sha256(data).hexdigest()
    lockfile.record(home / "zoo.lock", uri, sha256, len(data))
    if cached:
        place = home / "sources" / sha256
        place.mkdir(parents=True)
        (place / "theta.state").write_bytes(data)


@pytest.mark.parametrize("cached", [True, False])
def test_a_page_that_an_older_version_recorded(cached: bool, server: Files, access: Access, zoo_home: Path) -> None:
    uri = f"{server.url}/bucket/theta.state"
    old_pin(zoo_home, uri, IMPOSTORS["page"][0], cached=cached)
    server.files["/bucket/theta.state"] = CHECKPOINT
    with pytest.raises(FetchError) as error:
        convert("celo", source=uri, access=access)
    if cached:
        assert "web page titled 'Sign in - Hub'" in error.value.message
        assert "The file is in the cache" in error.value.message
    else:
        assert "has changed since" in error.value.message
        assert "the recorded file was a web page or a pointer" in error.value.hint
    assert "--update-lock" in error.value.hint
    convert("celo", source=uri, access=dataclasses.replace(access, update_lock=True))
    convert("celo", source=uri, access=access)


@pytest.mark.parametrize("data", [IMPOSTORS["page"][0], POINTER], ids=["page", "pointer"])
def test_a_page_instead_of_a_file_with_a_known_hash(data: bytes, server: Files, access: Access) -> None:
    server.files["/theta.state"] = data
    from pylo_zoo.fetch import fetch

    with pytest.raises(FetchError, match=r"is a .*, not the expected file: sha256"):
        fetch(f"{server.url}/theta.state", sha256="0" * 64, access=access)


def test_a_page_instead_of_the_gin_file(server: Files, access: Access, zoo_home: Path) -> None:
    server.files["/dir/params"] = encode({"params": nested(theta("velo")), "gen_id": "5620", "step": 1})
    server.files["/dir/config.gin"] = IMPOSTORS["page"][0]
    with pytest.raises(FetchError, match=r"config\.gin was not kept: config\.gin is a web page"):
        convert("velo", source=f"{server.url}/dir/params", access=access)
    assert set(lockfile.read(zoo_home / "zoo.lock")) == {f"{server.url}/dir/params"}


# --- from the Hub ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["weights", "pull", "source"])
@pytest.mark.parametrize("name", ["page", "lfs", "api", "text"])
def test_the_hub_has_an_impostor(name: str, how: str, hub: HubDouble, access: Access, zoo_home: Path) -> None:
    data, what = IMPOSTORS[name]
    repo = hub.create("org/theirs", {"theta.state": data})
    get: Get = {
        "weights": lambda access: pylo_zoo.load("hf://org/theirs", access=access),
        "pull": lambda access: weights.pull("org/theirs", access=access),
        "source": lambda access: convert("celo", source="hf://org/theirs/theta.state", access=access),
    }[how]
    with pytest.raises(ZooError) as error:
        get(access)
    assert what in error.value.message
    assert files_of(zoo_home) == []
    repo.commit({"theta.state": CHECKPOINT})
    get(access)
    assert (zoo_home / "zoo.lock").exists()


def test_a_repository_that_an_older_version_recorded(hub: HubDouble, access: Access, zoo_home: Path) -> None:
    page = IMPOSTORS["page"][0]
    repo = hub.create("org/theirs", {"theta.state": page})
    pin = lockfile.RepositoryPin(repo.head, {"theta.state": hashlib.sha256(page).hexdigest()}, lockfile.today())
    lockfile.record_repository(zoo_home / "zoo.lock", "hf://org/theirs", pin)
    with pytest.raises(FetchError, match=r"web page .* is in the cache") as error:
        pylo_zoo.load("hf://org/theirs", access=access)
    assert "--update-lock" in error.value.hint
    repo.commit({"theta.state": CHECKPOINT})
    pylo_zoo.load("hf://org/theirs", access=dataclasses.replace(access, update_lock=True))


# --- addresses of pages ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("page", "file"),
    [
        ("https://huggingface.co/o/r/blob/main/theta.state", "https://huggingface.co/o/r/resolve/main/theta.state"),
        ("https://huggingface.co/o/r/raw/v1/a/b.state", "https://huggingface.co/o/r/resolve/v1/a/b.state"),
        ("https://hf.co/datasets/o/r/blob/main/x", "https://hf.co/datasets/o/r/resolve/main/x"),
        ("https://github.com/o/r/blob/main/a/theta.state", "https://github.com/o/r/raw/main/a/theta.state"),
        ("https://gitlab.com/o/r/-/blob/main/params", "https://gitlab.com/o/r/-/raw/main/params"),
    ],
)
def test_the_page_of_a_file_is_converted_to_the_files_address(page: str, file: str) -> None:
    where = parse(page)
    assert (where.url, where.uri, where.recorded) == (file, file, True)
    assert where.note == f"{page} is a web page about a file; fetching {file}."


@pytest.mark.parametrize(
    "url",
    [
        "https://huggingface.co/o/r/resolve/main/theta.state",
        "https://github.com/o/r/raw/main/params",
        "https://github.com/o/r/releases/download/v1/theta.state",
        "https://example.org/o/r/blob/main/theta.state",
    ],
)
def test_other_addresses_are_unchanged(url: str) -> None:
    where = parse(url)
    assert (where.url, where.note) == (url, "")


@pytest.mark.parametrize(
    "url", ["https://huggingface.co/o/r", "https://huggingface.co/o/r/tree/main/dir", "https://github.com/o/r/tree/v1"]
)
def test_the_page_of_a_directory_is_refused(url: str) -> None:
    with pytest.raises(FetchError, match="is a page that lists files, not a file"):
        parse(url)


def test_a_page_of_the_hub_is_fetched_as_the_file(
    server: Files, access: Access, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    server.files["/o/r/blob/main/theta.state"] = IMPOSTORS["page"][0]
    server.files["/o/r/resolve/main/theta.state"] = CHECKPOINT
    messages: list[str] = []
    page = f"{server.url}/o/r/blob/main/theta.state"
    converted = convert("celo", source=page, access=dataclasses.replace(access, notify=messages.append))
    assert converted.source.uri == page.replace("blob", "resolve")
    assert messages[0].endswith(f"fetching {converted.source.uri}.")


@pytest.mark.parametrize("address", ["https://huggingface.co/o/r", "https://huggingface.co/o/r/blob/main/theta.state"])
def test_weights_rejects_the_address_of_a_page(address: str) -> None:
    with pytest.raises(ZooError) as error:
        pylo_zoo.load(address)
    assert "hf://https" not in full_text(error)
    assert "hf://ORG/NAME" in error.value.hint
