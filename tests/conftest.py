"""Shared fixtures: each test gets its own cache, and its error margins are recorded."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import fault_server
import fetching
import hub_client
import hub_double
import pytest
import torch
from fault_server import Files
from hub_double import HubDouble
from margins_report import (  # noqa: F401 - pytest finds its hooks by name
    pytest_addoption,
    pytest_configure,
    pytest_runtest_makereport,
    pytest_sessionfinish,
    pytest_terminal_summary,
)
from pulling import repo  # noqa: F401 - a fixture

from pylo_zoo.fetch import Access, Policy

# No test uses the network. huggingface_hub reads these variables when it is first imported.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HOME"] = str(Path(tempfile.gettempdir(), "pylo-zoo-tests-have-no-hf-home"))
# Session- and module-scoped fixtures run before a test has its own cache; they must not use the user's cache either.
os.environ["PYLO_ZOO_HOME"] = tempfile.mkdtemp(prefix="pylo-zoo-test-home-")
# Compiling takes ten seconds, so all tests share one build directory.
os.environ.setdefault("PYLO_ZOO_KERNELS", str(Path(__file__).parent.parent / "build" / "kernels"))
# XLA programs take a third of the time of a proof, so tests share them too.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / "build" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
torch.set_num_threads(1)  # one test process per core, and these tensors are too small to parallelize


SLOW_FILES = ("test_readme", "test_parity", "test_kernels_gpu", "test_kernel_boundaries_gpu", "test_publish_faults")
"""Files that take minutes. They run first, so no worker waits for another one at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: SLOW_FILES.index(item.path.stem) if item.path.stem in SLOW_FILES else len(SLOW_FILES))


@pytest.fixture(autouse=True)
def zoo_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``PYLO_ZOO_HOME`` of this test, without a lock file from the environment."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("PYLO_ZOO_HOME", str(home))
    monkeypatch.delenv("PYLO_ZOO_LOCK", raising=False)
    return home


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Files]:
    """A local server with one file; the process may contact it."""
    monkeypatch.delenv("HF_HUB_OFFLINE")
    with fault_server.serving() as server:
        server.files[fetching.PATH] = fetching.DATA
        yield server


@pytest.fixture
def sleeps() -> list[float]:
    """Pauses that a download requested, in seconds. None of them is slept."""
    return []


@pytest.fixture
def messages() -> list[str]:
    """Messages that ``access`` printed for the user."""
    return []


@pytest.fixture
def access(sleeps: list[float], messages: list[str]) -> Access:
    """Access with a short timeout that records its pauses and messages instead of sleeping and printing."""
    return Access(policy=Policy(timeout=5, sleep=sleeps.append), notify=messages.append)


@pytest.fixture
def in_an_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def hub(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubDouble]:
    """A double of the Hub that huggingface_hub in this process connects to, with a token that can write."""
    from huggingface_hub.utils import close_session

    with hub_double.serving() as hub:
        hub_client.connect(hub, monkeypatch, tmp_path_factory.mktemp("hf-home"))
        try:
            yield hub
        finally:
            close_session()
