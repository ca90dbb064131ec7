"""The CPU kernels under AddressSanitizer, in a separate process: mutated steps, and every tile and unit boundary."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pylo_zoo.errors import ZooError
from pylo_zoo.kernels.cpu import build

HERE = Path(__file__).parent

FLAGS = "-fsanitize=address -O1 --param asan-stack=0 --param asan-instrumentation-with-call-threshold=0"
"""Only tensor memory is instrumented: with the stack too, compiling takes minutes."""

WRONG_ADDRESS = """
import ctypes
import torch
from pylo_zoo.kernels.cpu import build
from pylo_zoo.kernels.cpu.records import ADAM

library = build.load()
tensors = [torch.zeros(64) for _ in range(4)]
size = 64 + {excess}
record = ADAM.pack(*(x.data_ptr() for x in tensors), size, *[0.5] * 9, 0)
library.pylo_zoo_adam(record, ctypes.c_int64(1), None, 1)
print("passed")
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment of a process whose kernels are built with AddressSanitizer; skips if the compiler lacks it."""
    compiler = os.environ.get("CXX") or next((each for each in ("c++", "g++") if shutil.which(each)), None)
    if compiler is None:
        pytest.skip("no C++ compiler")
    preloaded = []
    for name in ("libasan.so", "libstdc++.so.6"):  # the former must find the library that throws exceptions
        run = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=False)
        library = Path(run.stdout.strip())
        if run.returncode or not library.is_absolute() or not library.exists():
            pytest.skip(f"{compiler} has no AddressSanitizer ({name})")
        preloaded.append(str(library.resolve()))
    return {
        **os.environ,
        "PYLO_ZOO_KERNELS": str(tmp_path_factory.mktemp("kernels")),
        "PYLO_ZOO_KERNEL_FLAGS": FLAGS,
        "LD_PRELOAD": " ".join(preloaded),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python's own leaks
        "OMP_NUM_THREADS": "1",
    }


def run(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, cwd=HERE, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_wrong_size_is_detected(environment: dict[str, str]) -> None:
    """The sanitizer works: an access one element past a tensor's end is reported."""
    sound = run(environment, "-c", WRONG_ADDRESS.format(excess=0))
    assert sound.stdout.strip() == "passed", sound.stderr
    wrong = run(environment, "-c", WRONG_ADDRESS.format(excess=1))
    assert "passed" not in wrong.stdout
    assert "AddressSanitizer: heap-buffer-overflow" in wrong.stderr


@pytest.mark.slow
def test_mutated_steps_stay_within_their_memory(environment: dict[str, str]) -> None:
    fuzzed = run(environment, "state_fuzz.py", "--steps", "1000", "--seed", "7", "--fused")
    assert fuzzed.returncode == 0, fuzzed.stdout[-2000:] + fuzzed.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize("file", ["test_kernel_boundaries.py", "test_kernels_lstm.py"])
def test_every_boundary_stays_within_its_memory(environment: dict[str, str], file: str) -> None:
    """The sizes of these files, with the memory around each tensor instrumented."""
    tests = ("-m", "pytest", "-q", "-x", "-n", "0", "-p", "no:cacheprovider", file)
    checked = run(environment, *tests)
    assert checked.returncode == 0, checked.stdout[-2000:] + checked.stderr[-2000:]


def test_flags_select_another_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not any(map(shutil.which, build.COMPILERS)):
        pytest.skip("no C++ compiler")
    (tmp_path / "kernels.cpp").write_text('extern "C" int answer() { return ANSWER; }\n')
    monkeypatch.setattr(build, "SOURCES", tmp_path)
    monkeypatch.setenv("PYLO_ZOO_KERNELS", str(tmp_path / "built"))
    for answer in (1, 2, 1):
        monkeypatch.setenv("PYLO_ZOO_KERNEL_FLAGS", f"-DANSWER={answer}")
        assert build.load().answer() == answer
    assert len(list((tmp_path / "built").glob("*.so"))) == 2


def test_invalid_flags_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYLO_ZOO_KERNEL_FLAGS", '-DA="')
    with pytest.raises(ZooError, match="PYLO_ZOO_KERNEL_FLAGS is"):
        build.load()
