"""Files and directories are replaced whole."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from pylo_zoo import files
from pylo_zoo.files import staged_directory


def replace(target: Path, content: str) -> None:
    with staged_directory(target) as staging:
        for name in ("one", "two"):
            (staging / name).write_text(content)


@pytest.mark.parametrize("exchange", [True, False])
def test_a_directory_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool) -> None:
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


@pytest.mark.skipif(not Path("/proc").exists(), reason="directories change places in one step on Linux only")
def test_a_reader_never_sees_it_missing_or_mixed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    replace(target, "0")
    if not files._exchange(target, target):
        pytest.skip("this file system cannot swap two directories")
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
