"""How something is to be published, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pylo_zoo.publish.plan import PublishPlan

Step = Literal["added", "changed", "same", "deleted"]


@dataclass(frozen=True)
class Options:
    """How to publish.

    Attributes:
        private: make a new repository private.
        create_pr: propose the commit as a pull request.
        branch: to commit to, made where it is missing; by default the main one.
        tag: to set on the commit.
        message: the commit's title.
        exist_ok: whether a repository that holds something else already may get a new version.
        registry: the ``registry.yaml`` to pin the result in, or None.
    """

    private: bool = False
    create_pr: bool = False
    branch: str | None = None
    tag: str | None = None
    message: str | None = None
    exist_ok: bool = False
    registry: Path | None = None


@dataclass(frozen=True)
class Published:
    """What came of it.

    Attributes:
        plan: what was to be published.
        changes: each file, and what becomes or became of it.
        url: the page of what is published.
        commit: that holds it; None of a dry run.
        created: whether the repository was made for it.
        pull_request: its address, where one was asked for.
        exists: whether the repository was there before; None where nobody could be asked.
        private: whether the repository is private; None where that is not known.
        sent: whether this very run made the commit.
    """

    plan: PublishPlan
    changes: Mapping[str, Step]
    url: str
    commit: str | None = None
    created: bool = False
    pull_request: str | None = None
    exists: bool | None = None
    private: bool | None = None
    sent: bool = False

    @property
    def unchanged(self) -> bool:
        """Whether everything was there already."""
        return set(self.changes.values()) <= {"same"}
