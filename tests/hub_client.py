"""Connects huggingface_hub in this process to the double.

The client reads its settings on first import, and tests/conftest.py makes it read "offline". This module therefore sets
them where the client stores them. The places depend on its version; tests/test_hub_double.py shows that they work.
"""

from __future__ import annotations

import time
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hub_double import TOKEN, HubDouble

httpx: Any = import_module("httpx2" if find_spec("httpx2") else "httpx")
"""The HTTP library of the installed huggingface_hub: httpx2 since its release 2."""


class Clock:
    """A ``time`` module that records pauses instead of sleeping."""

    def __init__(self, sleeps: list[float]) -> None:
        self.sleeps = sleeps

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


def connect(hub: HubDouble, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """Connect huggingface_hub to ``hub`` until the test ends; its pauses are recorded in ``hub.sleeps``."""
    from huggingface_hub import constants, file_download, hf_api
    from huggingface_hub.utils import _http

    settings = {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_DISABLE_TELEMETRY": True,
        "HF_HOME": str(home),
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_ASSETS_CACHE": str(home / "assets"),
        "HF_XET_CACHE": str(home / "xet"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
    }
    for name, value in settings.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(hf_api.api, "endpoint", hub.url)  # used by huggingface_hub.create_repo etc.
    clock = Clock(hub.sleeps)
    for module in (_http, file_download, hf_api):
        monkeypatch.setattr(module, "time", clock)
    environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_CACHE", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    _http.close_session()  # otherwise a connection of an earlier test could be reused
