"""The CPU kernels as a shared library, compiled once per machine and cached.

The cache directory is ``$PYLO_ZOO_KERNELS``, by default ``$PYLO_ZOO_HOME/kernels``. A library's name is a hash of its
sources, its flags, the machine's instruction set and ``$CXX``. ``$PYLO_ZOO_KERNEL_FLAGS`` adds flags, such as
``-fsanitize=address``. Using a cached library needs no compiler and writes nothing.

A library ends with the SHA-256 of its content, so a damaged one is detected and rebuilt before it is loaded. A library
that another user could have written is not loaded (:mod:`pylo_zoo.kernels.cpu.trust`).
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
from pylo_zoo.files import translate_os_errors, write_file
from pylo_zoo.kernels.cpu import trust
from pylo_zoo.leftovers import sweep

SOURCES = Path(__file__).parent
COMPILERS = ("c++", "g++", "clang++")
FLAGS = ("-std=c++17", "-O3", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast")
"""No ``-ffast-math``, because NaN must propagate."""
COMPILE_SECONDS = 300
DIGEST = hashlib.sha256().digest_size
NATIVE = {"x86_64": "-march=native", "amd64": "-march=native", "aarch64": "-mcpu=native", "arm64": "-mcpu=native"}
INSTALL = "Install a C++ compiler such as g++ or clang++, or set CXX to one."

_log = logging.getLogger("pylo_zoo")


class CannotBuild(ZooError):
    """The kernels cannot be built on this machine."""


def load() -> ctypes.CDLL:
    """Load the library, and compile it first if it is not cached. Compiling is logged as a warning of ``pylo_zoo``.

    Raises:
        ZooError: it cannot be built, stored or loaded.
    """
    native = NATIVE.get(platform.machine().lower())
    if native is None or sys.platform == "win32":
        machine = f"{sys.platform} on {platform.machine()}"
        raise CannotBuild(f"The CPU kernels do not support {machine}.", "Use Linux or macOS on x86-64 or ARM.")
    flags = (*FLAGS, native, *_words("PYLO_ZOO_KERNEL_FLAGS"))
    folder = Path(os.path.realpath(os.environ.get("PYLO_ZOO_KERNELS") or home() / "kernels"))
    path = folder / f"{_digest(flags)}.so"
    with translate_os_errors(path, ANOTHER_CACHE):
        if folder.exists():
            trust.check_folder(folder)
        if not _is_whole(path):
            _build(path, flags)
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        hint = f"Install the missing library, or remove {path} and try again."
        raise CannotBuild(f"The CPU kernels cannot be loaded: {error}.", hint) from error


def _build(path: Path, flags: Sequence[str]) -> None:
    """Compile the library ``path`` unless another process has compiled it meanwhile."""
    compiler = _compiler()
    trust.make_private(path.parent)
    trust.check_folder(path.parent)
    with _alone(path):
        sweep(path, exclusive=True)
        if not _is_whole(path):
            _log.warning("compiling the CPU kernels for this machine, once (about ten seconds), into %s", path.parent)
            library = _compiled(compiler, flags)
            write_file(path, library + hashlib.sha256(library).digest(), ANOTHER_CACHE, mode=trust.LIBRARY)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Lock ``path`` so that only one process compiles it."""
    lock = path.with_suffix(".lock")
    try:
        with FileLock(lock, timeout=2 * COMPILE_SECONDS):
            yield
    except Timeout as error:
        hint = f"Wait for that process, or remove {lock}."
        raise CannotBuild(f"Another process holds {lock}.", hint) from error


def _words(variable: str) -> list[str]:
    """The words of an environment variable. An unset one has no words."""
    value = os.environ.get(variable, "")
    try:
        return shlex.split(value)
    except ValueError as error:
        raise CannotBuild(
            f"{variable} is {value!r}, which cannot be parsed: {error}.", f"Correct {variable}."
        ) from error


def _compiler() -> list[str]:
    """The compiler's command: ``$CXX``, or the first of :data:`COMPILERS` that is installed."""
    command = _words("CXX")
    if command:
        if shutil.which(command[0]) is None:
            raise CannotBuild(f"CXX is {command[0]!r}, which is not installed.", INSTALL)
        return command
    for name in COMPILERS:
        if shutil.which(name) is not None:
            return [name]
    raise CannotBuild("No C++ compiler was found.", INSTALL)


def _digest(flags: Sequence[str]) -> str:
    digest = hashlib.sha256(repr((_words("CXX"), flags, _instruction_set())).encode())
    for path in sorted(SOURCES.glob("*.[ch]*")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:32]


def _instruction_set() -> str:
    """A description of the processor, which distinguishes machines that share a home directory."""
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
    """Compile the library and return its bytes. Without OpenMP in the compiler, it is single-threaded."""
    reason = ""
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
            reason = next((x for x in done.stderr.splitlines() if "error" in x), f"exit status {done.returncode}")
    raise CannotBuild(f"{shlex.join(compiler)} does not compile the CPU kernels: {reason.strip()}.", INSTALL)
