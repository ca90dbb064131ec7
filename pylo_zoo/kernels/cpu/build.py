"""The CPU kernels as a shared library: compiled for this machine once, and kept in ``$PYLO_ZOO_KERNELS``, by
default ``$PYLO_ZOO_HOME/kernels``.

A library is named after what it is made of: sources, flags, the machine's instruction set, and ``$CXX`` where it is
set. ``$PYLO_ZOO_KERNEL_FLAGS`` adds flags, such as ``-fsanitize=address`` to look for wrong addresses; they are part of
the name as well. To find one takes no compiler and writes nothing. It ends in the SHA-256 of what precedes, so that a
damaged one is seen before it is loaded, and built again. A library that another user can have written is not loaded
(:mod:`pylo_zoo.kernels.cpu.trust`).
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from pylo_zoo.errors import ZooError
from pylo_zoo.fetch.store import ANOTHER_CACHE, home
from pylo_zoo.files import explained, sweep, write_file
from pylo_zoo.kernels.cpu import trust

SOURCES = Path(__file__).parent
COMPILERS = ("c++", "g++", "clang++")
FLAGS = ("-std=c++17", "-O3", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast")
"""No ``-ffast-math``: NaN has to come through."""
COMPILE_SECONDS = 300
DIGEST = hashlib.sha256().digest_size
NATIVE = {"x86_64": "-march=native", "amd64": "-march=native", "aarch64": "-mcpu=native", "arm64": "-mcpu=native"}
INSTALL = "Install a C++ compiler, such as g++ or clang++, or name one in CXX."

_log = logging.getLogger("pylo_zoo")


class CannotBuild(ZooError):
    """There can be no kernels on this machine."""


def load() -> ctypes.CDLL:
    """The library, from the cache or new; the log of ``pylo_zoo`` says when one is compiled.

    Raises:
        ZooError: it cannot be built, kept or loaded.
    """
    native = NATIVE.get(platform.machine().lower())
    if native is None or sys.platform == "win32":
        machine = f"{sys.platform} on {platform.machine()}"
        raise CannotBuild(f"There are no CPU kernels for {machine}.", "They are for Linux and macOS, x86-64 and ARM.")
    flags = (*FLAGS, native, *_words("PYLO_ZOO_KERNEL_FLAGS"))
    folder = Path(os.path.realpath(os.environ.get("PYLO_ZOO_KERNELS") or home() / "kernels"))
    path = folder / f"{_digest(flags)}.so"
    with explained(path, ANOTHER_CACHE):
        if folder.exists():
            trust.check_folder(folder)
        if not _is_whole(path):
            _build(path, flags)
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        hint = f"Install what it names, or remove {path} and try again."
        raise CannotBuild(f"The CPU kernels cannot be loaded: {error}.", hint) from error


def _build(path: Path, flags: Sequence[str]) -> None:
    """Compile the library ``path``, unless another process does or did."""
    compiler = _compiler()
    trust.make_private(path.parent)
    trust.check_folder(path.parent)
    with _alone(path):
        sweep(path, alone=True)
        if not _is_whole(path):
            _log.warning(
                "compiling the CPU kernels for this machine, once (about ten seconds); they are kept in %s", path.parent
            )
            library = _compiled(compiler, flags)
            write_file(path, library + hashlib.sha256(library).digest(), ANOTHER_CACHE, mode=trust.LIBRARY)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keep other processes from compiling the library ``path`` at the same time."""
    lock = path.with_suffix(".lock")
    try:
        with FileLock(lock, timeout=2 * COMPILE_SECONDS):
            yield
    except Timeout as error:
        hint = f"Wait for the process that holds it, or remove {lock}."
        raise CannotBuild(f"{lock} is held by another process.", hint) from error


def _words(variable: str) -> list[str]:
    """The words of an environment variable; none if it is not set."""
    value = os.environ.get(variable, "")
    try:
        return shlex.split(value)
    except ValueError as error:
        raise CannotBuild(f"{variable} is {value!r}, which cannot be read: {error}.", INSTALL) from error


def _named() -> list[str]:
    """The words of ``$CXX``."""
    return _words("CXX")


def _compiler() -> list[str]:
    """The command that compiles: ``$CXX``, else the first that there is."""
    named = _named()
    if named:
        if shutil.which(named[0]) is None:
            raise CannotBuild(f"There is no compiler {named[0]!r}, which CXX names.", INSTALL)
        return named
    for name in COMPILERS:
        if shutil.which(name) is not None:
            return [name]
    raise CannotBuild("There is no C++ compiler.", INSTALL)


def _digest(flags: Sequence[str]) -> str:
    made_of = hashlib.sha256(repr((_named(), flags, _instruction_set())).encode())
    for path in sorted(SOURCES.glob("*.[ch]*")):
        made_of.update(path.name.encode() + path.read_bytes())
    return made_of.hexdigest()[:32]


def _instruction_set() -> str:
    """What tells machines apart that share a home."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(errors="replace").splitlines() if cpuinfo.exists() else []
    names = ("model name", "flags", "Features", "CPU implementer", "CPU part")
    return "\n".join([platform.machine(), platform.processor(), *sorted({x for x in lines if x.startswith(names)})])


def _is_whole(path: Path) -> bool:
    if not trust.check_library(path):
        return False
    data = path.read_bytes()
    return len(data) > DIGEST and hashlib.sha256(data[:-DIGEST]).digest() == data[-DIGEST:]


def _compiled(compiler: Sequence[str], flags: Sequence[str]) -> bytes:
    """The library's bytes; on one thread where the compiler has no OpenMP."""
    said = ""
    with tempfile.TemporaryDirectory(prefix="pylo-zoo-kernels-") as folder:
        target = Path(folder, "kernels.so")
        for parallel in (["-fopenmp"], []):
            command = [*compiler, *flags, *parallel, str(SOURCES / "kernels.cpp"), "-o", str(target)]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_SECONDS, check=False)
            except (OSError, subprocess.SubprocessError) as error:
                raise CannotBuild(f"The compiler {shlex.join(compiler)} does not run: {error}.", INSTALL) from error
            if done.returncode == 0 and target.is_file():
                return target.read_bytes()
            said = next((x for x in done.stderr.splitlines() if "error" in x), f"exit status {done.returncode}")
    raise CannotBuild(f"{shlex.join(compiler)} does not compile the CPU kernels: {said.strip()}.", INSTALL)
