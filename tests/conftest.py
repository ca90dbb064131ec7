"""For every test: a cache separate from the user's, and a record of its error margins."""

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

from pylo_zoo.fetch import Access, Policy

# No test reaches for the network. huggingface_hub reads these when it is first imported.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HOME"] = str(Path(tempfile.gettempdir(), "pylo-zoo-tests-have-no-hf-home"))
# What is made before a test has a cache of its own, by fixtures of a wider scope, does not go to the user's either.
os.environ["PYLO_ZOO_HOME"] = tempfile.mkdtemp(prefix="pylo-zoo-test-home-")
# Compiling takes ten seconds: once for all tests, unless one has a directory of its own.
os.environ.setdefault("PYLO_ZOO_KERNELS", str(Path(__file__).parent.parent / "build" / "kernels"))
# So does XLA, a third of the time of a proof.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / "build" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
torch.set_num_threads(1)  # as many processes as cores run tests, and these tensors are too small to share out


LONGEST = ("test_readme", "test_parity", "test_kernels_gpu", "test_kernel_boundaries_gpu", "test_publish_faults")
"""Files that take minutes. They run first, so that no worker waits for another at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


@pytest.fixture(autouse=True)
def zoo_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this test's conversions keep their sources."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("PYLO_ZOO_HOME", str(home))
    monkeypatch.delenv("PYLO_ZOO_LOCK", raising=False)
    return home


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Files]:
    """A server on this machine with one file, and a process that may ask it."""
    monkeypatch.delenv("HF_HUB_OFFLINE")
    with fault_server.serving() as server:
        server.files[fetching.PATH] = fetching.DATA
        yield server


@pytest.fixture
def sleeps() -> list[float]:
    """The pauses that a download took, none of them in truth."""
    return []


@pytest.fixture
def access(sleeps: list[float]) -> Access:
    """Patience without waiting."""
    return Access(policy=Policy(timeout=5, sleep=sleeps.append))


@pytest.fixture
def hub(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubDouble]:
    """A double of the Hub, and huggingface_hub in this process pointed at it, with a token that may write."""
    from huggingface_hub.utils import close_session

    with hub_double.serving() as hub:
        hub_client.connect(hub, monkeypatch, tmp_path_factory.mktemp("hf-home"))
        try:
            yield hub
        finally:
            close_session()
