"""A compiled library is loaded only if no other user could have written it."""

from __future__ import annotations

import os
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from pylo_zoo import kernels
from pylo_zoo.errors import ZooError
from pylo_zoo.kernels import cpu
from pylo_zoo.kernels.cpu import build, trust

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="Windows has no kernels"),
    pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler"),
]
as_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can change a file's owner"
)
ANOTHER = 12345
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A library that compiles quickly, and a process that has not loaded kernels yet."""
    sources = tmp_path / "sources"
    sources.mkdir()
    (sources / "kernels.cpp").write_text('extern "C" int answer() { return 42; }\n')
    monkeypatch.setattr(build, "SOURCES", sources)
    monkeypatch.setenv("PYLO_ZOO_KERNELS", str(tmp_path / "kernels"))
    monkeypatch.setattr(kernels, "_found", {})
    monkeypatch.setattr(kernels, "_told", set())
    cpu._library.cache_clear()
    yield
    cpu._library.cache_clear()


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A library that was compiled before."""
    build.load()
    (result,) = (tmp_path / "kernels").glob("*.so")
    return result


def folder_mode(mode: int) -> Callable[[Path], object]:
    return lambda library: library.parent.chmod(mode)


def give_away(path: Path) -> None:
    os.chown(path, ANOTHER, ANOTHER)


def give_away_in_a_sticky_directory(library: Path) -> None:
    library.parent.chmod(0o1777)
    give_away(library)


def replace_library_by(make: Callable[[Path], object]) -> Callable[[Path], object]:
    def replace(library: Path) -> None:
        library.rename(library.with_suffix(".kept"))
        make(library)

    return replace


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "a world-writable directory": (folder_mode(0o777), r"can be written by others \(mode 777\)"),
    "a group-writable directory": (folder_mode(0o775), r"can be written by others \(mode 775\)"),
    "a directory": (replace_library_by(Path.mkdir), "is not a regular file"),
    "a FIFO": (replace_library_by(os.mkfifo), "is not a regular file"),
    "a link": (replace_library_by(lambda p: p.symlink_to(p.with_suffix(".kept"))), "is not a regular file"),
    "a dangling link": (replace_library_by(lambda p: p.symlink_to("nowhere")), "is not a regular file"),
}
REFUSED_ROOT: dict[str, tuple[Callable[[Path], object], str]] = {
    "another user's directory": (lambda library: give_away(library.parent), "belongs to another user"),
    "another user's library": (give_away, "belongs to another user"),
    "another user's library in a directory like /tmp": (give_away_in_a_sticky_directory, "belongs to another user"),
}


def refused(library: Path, spoil: Callable[[Path], object], reason: str) -> None:
    spoil(library)
    with pytest.raises(ZooError, match=reason) as error:
        build.load()
    assert error.value.hint
    with pytest.raises(ZooError, match=reason):
        kernels.kernels_for("fused", CPU)
    with pytest.warns(UserWarning, match=reason):
        assert kernels.kernels_for("auto", CPU) is None


@pytest.mark.parametrize("case", REFUSED)
def test_a_library_that_others_can_write_is_not_loaded(case: str, library: Path) -> None:
    refused(library, *REFUSED[case])


@as_root
@pytest.mark.parametrize("case", REFUSED_ROOT)
def test_a_library_of_another_user_is_not_loaded(case: str, library: Path) -> None:
    refused(library, *REFUSED_ROOT[case])


@pytest.mark.parametrize("mode", [0o755, 0o700, 0o1777])
def test_a_users_own_directory_and_a_sticky_one_are_used(mode: int, library: Path) -> None:
    library.parent.chmod(mode)
    before = library.stat().st_mtime_ns
    assert build.load().answer() == 42
    assert library.stat().st_mtime_ns == before


def test_a_users_own_library_that_others_can_write_is_compiled_again(library: Path) -> None:
    content = library.read_bytes()
    library.unlink()  # this process has loaded it, so it must not be changed in place
    library.write_bytes(content)
    library.chmod(0o666)
    before = library.stat().st_ino
    assert build.load().answer() == 42
    assert library.stat().st_ino != before
    assert not stat.S_IMODE(library.stat().st_mode) & trust.OTHERS_WRITE


def test_new_directories_are_private_whatever_the_umask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "new" / "kernels"
    monkeypatch.setenv("PYLO_ZOO_KERNELS", str(folder))
    before = os.umask(0)
    try:
        build.load()
    finally:
        os.umask(before)
    modes = [stat.S_IMODE(place.stat().st_mode) for place in (folder.parent, folder, *folder.glob("*.so"))]
    assert modes == [0o700, 0o700, 0o644]


def test_a_file_instead_of_the_directory(tmp_path: Path) -> None:
    (tmp_path / "kernels").write_bytes(b"")
    with pytest.raises(ZooError, match="is not a directory"):
        build.load()


@pytest.mark.parametrize("source", ["int answer() { return 42; }", 'extern "C" void pylo_zoo_records(long *) {}'])
def test_a_library_without_a_function_falls_back_with_a_warning(source: str, tmp_path: Path) -> None:
    (tmp_path / "sources" / "kernels.cpp").write_text(f"{source}\n")
    with pytest.warns(UserWarning, match=r"lacks pylo_zoo_workspace: remove .*\.so and try again"):
        assert kernels.kernels_for("auto", CPU) is None
    with pytest.raises(ZooError, match="lacks pylo_zoo_workspace"):
        kernels.kernels_for("fused", CPU)
