"""Artifacts on the Hub: :mod:`~pylo_zoo.hub.api` lists repositories, :func:`pull` downloads and verifies artifacts.

``pylo_zoo.load("hf://ORG/NAME")`` and ``pylo-zoo pull`` call :func:`pull`.
"""

from __future__ import annotations

from pylo_zoo.hub.api import Hub, Snapshot
from pylo_zoo.hub.names import Repository, is_repository
from pylo_zoo.hub.pull import NotAnArtifact, Pulled, cached, is_pulled, pull

__all__ = ["Hub", "NotAnArtifact", "Pulled", "Repository", "Snapshot", "cached", "is_pulled", "is_repository", "pull"]
