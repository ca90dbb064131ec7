"""What every test gets: a cache of its own instead of the user's."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
import torch

# No test reaches for the network. huggingface_hub reads these when it is first imported.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HOME"] = str(Path(tempfile.gettempdir(), "pylo-zoo-tests-have-no-hf-home"))
torch.set_num_threads(1)  # as many processes as cores run tests, and these tensors are too small to share out


@pytest.fixture(autouse=True)
def zoo_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this test's conversions keep their sources."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("PYLO_ZOO_HOME", str(home))
    monkeypatch.delenv("PYLO_ZOO_LOCK", raising=False)
    return home
