"""Where a conversion gets its file and its fields: local files, the registry, the cache, and which source wins."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import Capture, run
from trees import SMALL, write_checkpoint, write_params, write_theta

from pylo_zoo import artifact, registry
from pylo_zoo import convert as library
from pylo_zoo.config import VeLOBehavior
from pylo_zoo.convert import cached_source, convert, parse_settings
from pylo_zoo.convert.sources import download_hint
from pylo_zoo.converters import FAMILIES
from pylo_zoo.errors import ZooError
from pylo_zoo.pipeline import build_artifact


@pytest.fixture(autouse=True)
def in_an_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def convert_to_directory(name: str, source: Path) -> artifact.Artifact:
    """Convert ``source`` into the directory ``out`` next to it, without parity."""
    return build_artifact(name, source=source, out="out", force=True, verify=False).artifact


# --- precedence of fields --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("write", "settings", "expected"),
    [
        (lambda directory: write_theta(directory, "velo"), {}, VeLOBehavior()),
        (lambda directory: write_theta(directory, "velo"), {"ff_mult": 1}, VeLOBehavior(ff_mult=1.0)),
        (write_params, {"use_bugged_loss_features": False, "param_inits": 3}, VeLOBehavior()),
        (write_params, {"ff_mult": 1.0}, VeLOBehavior(ff_mult=1.0)),
        (write_checkpoint, {}, VeLOBehavior(use_bugged_next_lstm_state=True, use_bugged_loss_features=True)),
        (
            write_checkpoint,
            {"use_bugged_next_lstm_state": True, "use_bugged_loss_features": False},
            VeLOBehavior(use_bugged_next_lstm_state=True),
        ),
    ],
)
def test_uncontradicted_settings_apply(
    write: Callable[[Path], Path], settings: dict[str, Any], expected: VeLOBehavior, tmp_path: Path
) -> None:
    assert convert("velo", source=write(tmp_path), settings=settings).behavior == expected


def test_fields_missing_from_a_gin_file_get_googles_defaults(tmp_path: Path) -> None:
    path = write_params(tmp_path, gin="HyperV2.lstm_hidden_size = 5\nHyperV2.param_inits = 3\n")
    assert convert("velo", source=path).behavior == VeLOBehavior(use_bugged_loss_features=True)


def test_settings_are_yaml() -> None:
    pairs = ["a=1e-3", "b=true", "c=[0.9, 1e-2]", "d=relu", "a=0.001", "e="]
    assert parse_settings(pairs) == {"a": 0.001, "b": True, "c": [0.9, 0.01], "d": "relu", "e": None}
    for pairs in (["a=1", "a=2"], ["a=[1"], ["=1"], ["a=!!python/object:os.system x"]):
        with pytest.raises(ZooError):
            parse_settings(pairs)


@pytest.mark.parametrize("entry", registry.load_registry().values(), ids=lambda entry: entry.name)
def test_the_download_hint_is_not_shortened(entry: registry.Entry) -> None:
    if entry.weights.path is None:
        hint = ZooError("", download_hint(entry)).hint
        assert "…" not in hint
        assert f"--source {'DIRECTORY' if entry.name == 'velo-pylo' else entry.weights.filename}" in hint


# --- the registry ------------------------------------------------------------------------------------------------


@pytest.fixture
def pinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> registry.Entry:
    """The entry "celo2-base", as if a synthetic checkpoint in ``tmp_path`` were the published one."""
    path = write_theta(tmp_path, "celo2-base")
    entry = registry.get("celo2-base")
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    source = dataclasses.replace(entry.weights, bytes=path.stat().st_size, sha256=sha256)
    behavior = dataclasses.replace(entry.behavior, exp_mult=0.25)
    size = SMALL["celo2-base"]
    entry = dataclasses.replace(
        entry, sources=(source,), behavior=behavior, architecture=size, license="MIT", defaults={"lr": 0.5}
    )
    entries = {**registry.load_registry(), "celo2-base": entry}
    monkeypatch.setattr(registry, "load_registry", lambda path=None: entries)
    return entry


def test_a_registered_file_is_recognized(pinned: registry.Entry) -> None:
    converted = convert("celo2-base", source="theta.state")
    assert (converted.name, converted.source.uri, converted.source.license) == (
        "celo2-base",
        pinned.weights.uri,
        "MIT",
    )
    assert converted.behavior == pinned.behavior
    assert converted.defaults["lr"] == 0.5
    with pytest.raises(ZooError, match=r"exp_mult is 0\.5 in .*, but 0\.25 in the registry entry celo2-base"):
        convert("celo2-base", source="theta.state", settings={"exp_mult": 0.5})
    assert library.inspect("theta.state").matched == "celo2-base"


def test_a_registered_file_is_not_recognized_as_another_family(pinned: registry.Entry) -> None:
    converted = convert("celo2", source="theta.state")
    assert (converted.name, converted.source.uri, converted.source.license) == (
        "celo2",
        "file:theta.state",
        "unknown",
    )
    assert converted.behavior == FAMILIES["celo2"].behavior()


def test_a_registry_name_finds_the_cached_file_again(pinned: registry.Entry, tmp_path: Path) -> None:
    first = convert_to_directory("celo2-base", tmp_path / "theta.state")
    (tmp_path / "theta.state").unlink()
    assert convert("celo2-base").fingerprint == first.fingerprint
    with pytest.raises(ZooError, match=r"exp_mult is 0\.5 in .*, but 0\.25 in the registry entry celo2-base"):
        convert("celo2-base", settings={"exp_mult": 0.5})


def test_a_complete_cache_may_be_read_only(
    pinned: registry.Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = convert_to_directory("celo2-base", tmp_path / "theta.state")

    def read_only(*arguments: object, **keywords: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("pylo_zoo.fetch.store.FileLock.acquire", read_only)
    assert convert("celo2-base").fingerprint == first.fingerprint


def test_the_sample_in_the_package_converts(capsys: Capture) -> None:
    assert run("convert", "velo-sample", "--no-verify", "-q") == 0
    converted = artifact.read("zoo/velo-sample")
    assert (converted.family, converted.behavior) == (
        "velo",
        registry.get("velo-sample").behavior,
    )
    assert converted.source.uri.startswith("package://")


def test_a_file_that_does_not_match_its_pin_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = registry.get("velo-sample")
    source = dataclasses.replace(entry.weights, sha256="0" * 64)
    entries = {"velo-sample": dataclasses.replace(entry, sources=(source,))}
    monkeypatch.setattr(registry, "load_registry", lambda path=None: entries)
    with pytest.raises(ZooError, match=f"sha256 [0-9a-f]{{64}}, not {'0' * 64}"):
        convert("velo-sample")


# --- the cache ---------------------------------------------------------------------------------------------------


def test_the_source_is_kept_by_its_hash(tmp_path: Path, zoo_home: Path) -> None:
    path = write_params(tmp_path)
    sha256 = convert("velo", source=path).source.sha256
    assert cached_source(sha256) is None  # in memory, nothing is written
    convert_to_directory("velo", path)
    kept = cached_source(sha256)
    assert kept is not None
    assert kept == zoo_home / "sources" / sha256 / "params"
    assert kept.read_bytes() == path.read_bytes()
    assert kept.with_name("config.gin").read_bytes() == (tmp_path / "config.gin").read_bytes()
    convert_to_directory("velo", kept)
    (tmp_path / "config.gin").unlink()
    convert_to_directory("velo", path)
    assert [entry.name for entry in kept.parent.iterdir()] == ["params"]


def test_a_damaged_copy_is_replaced(tmp_path: Path) -> None:
    path = write_theta(tmp_path, "elo")
    sha256 = convert_to_directory("elo", path).source.sha256
    kept = cached_source(sha256)
    assert kept is not None
    kept.write_bytes(b"spoilt")
    assert cached_source(sha256) is None
    convert_to_directory("elo", path)
    assert cached_source(sha256) == kept


@pytest.mark.parametrize("sha256", ["", "0" * 64, "../../../etc/passwd", "F" * 64])
def test_sources_that_were_not_kept_are_not_found(sha256: str) -> None:
    assert cached_source(sha256) is None


def test_a_cache_that_cannot_be_written_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_theta(tmp_path, "elo")
    monkeypatch.setenv("PYLO_ZOO_HOME", str(path / "below-a-file"))
    with pytest.raises(ZooError, match="cannot be written"):
        convert_to_directory("elo", path)
    assert not (tmp_path / "out").exists()


def test_an_artifact_is_not_a_source(tmp_path: Path) -> None:
    convert_to_directory("elo", write_theta(tmp_path, "elo"))
    with pytest.raises(ZooError, match="is an artifact, not a checkpoint"):
        convert("elo", source="out")


def test_a_misspelled_field_or_family_is_detected(tmp_path: Path) -> None:
    path = write_theta(tmp_path, "celo")
    with pytest.raises(ZooError, match="Did you mean 'lstm_hidden_size'"):
        convert("celo", source=path, settings={"lstm_hiden_size": 5})
    with pytest.raises(ZooError, match="Did you mean 'celo-adam'"):
        convert("Celo_Adam", source=path)
