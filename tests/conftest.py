"""What every test gets: a cache of its own instead of the user's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)  # as many processes as cores run tests, and these tensors are too small to share out


@pytest.fixture(autouse=True)
def zoo_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this test's conversions keep their sources."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("PYLO_ZOO_HOME", str(home))
    return home
