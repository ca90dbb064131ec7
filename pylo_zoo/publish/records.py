"""The options and the result of publishing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pylo_zoo.publish.plan import PublishPlan

Change = Literal["added", "changed", "same", "deleted"]


@dataclass(frozen=True)
class Options:
    """Options for publishing.

    Attributes:
        private: create the repository as a private one.
        create_pr: open a pull request with the commit.
        branch: the branch to commit to, created if it is missing; by default the main branch.
        tag: a tag for the commit.
        message: the title of the commit.
        exist_ok: whether to publish a new version into a repository with other content.
        registry: the ``registry.yaml`` that gets a pin of the commit, or None.
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
    """The result of publishing, or of a dry run.

    Attributes:
        plan: the published files.
        changes: how each file changes, by name.
        url: the web page of the commit or pull request.
        commit: the commit with the files; None for a dry run.
        created: whether this run created the repository.
        pull_request: the address of the pull request, or None.
        exists: whether the repository existed before; None if the Hub could not be reached.
        private: whether the repository is private; None if unknown.
        sent: whether this run made the commit.
    """

    plan: PublishPlan
    changes: Mapping[str, Change]
    url: str
    commit: str | None = None
    created: bool = False
    pull_request: str | None = None
    exists: bool | None = None
    private: bool | None = None
    sent: bool = False

    @property
    def unchanged(self) -> bool:
        """Whether the Hub already had all files."""
        return set(self.changes.values()) <= {"same"}
