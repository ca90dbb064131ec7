"""A proven artifact that the publishing tests share, and checks of a publication."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
from hub_double import TOKEN, HubDouble, Repo, Request
from hub_git import Commit
from proofs import proof, random_weights

from pylo_zoo import artifact
from pylo_zoo.errors import ZooError
from pylo_zoo.fetch import Access, Policy
from pylo_zoo.hub.names import Repository
from pylo_zoo.publish import Options, Published, PublishPlan, prepare
from pylo_zoo.publish.push import MARK, _Push, send

FAMILY = "celo-adam"
"""The family whose proof is fastest."""
REPO = "org/tiny"
WRITING = r"^/api/(?!whoami|validate|.*/paths-info)|\.git/info/lfs|^/[0-9a-f]{64}$"


@functools.cache
def _proven() -> Path:
    random_artifact, _ = random_weights(FAMILY)
    directory = Path(mkdtemp(prefix="pylo-zoo-test-")) / FAMILY
    artifact.write(random_artifact, directory)
    report = proof(FAMILY)
    artifact.write_parity(directory, report.to_dict(), report.vectors)
    return directory


def proven(place: Path) -> Path:
    """A copy of the artifact with its proof, in ``place``."""
    return Path(shutil.copytree(_proven(), place / FAMILY))


@functools.cache
def plan() -> PublishPlan:
    """The artifact's publish plan."""
    return prepare(_proven(), Repository(REPO), license="MIT")


@functools.cache
def light() -> PublishPlan:
    """The plan without its larger files, which needs fewer requests."""
    kept = ("model.safetensors", "config.json", "README.md")
    return replace(plan(), files={name: plan().files[name] for name in kept})


def other(number: int, like: PublishPlan | None = None) -> PublishPlan:
    """A plan with other content."""
    like = like or light()
    card = like.files["README.md"] + f"\nNumber {number}.\n".encode()
    return replace(like, files={**like.files, "README.md": card})


def published(repo: Repo, rev: str = "main") -> list[Commit]:
    """The commits that publish something, newest first."""
    return [commit for commit in repo.history(rev) if MARK in commit.message]


def holds(repo: Repo, plan: PublishPlan, rev: str = "main") -> bool:
    """Whether the repository has all files of a plan and no others of ours."""
    there: Mapping[str, bytes] = {name: data for name, data in repo.files(rev).items() if name in artifact.OWN_FILES}
    return there == dict(plan.files)


def writes(hub: HubDouble) -> list[Request]:
    """The requests so far that change something."""
    return hub.requests("POST|PUT|DELETE|PATCH", WRITING)


def words(error: ZooError) -> str:
    """All text that a user sees of an error; it must contain no secret."""
    text = f"{error.message} {error.hint} {error!r} {error.__cause__!r}"
    assert TOKEN not in text
    assert "sekret" not in text.lower()
    assert "X-Amz" not in text
    return text


class Publisher:
    """A publisher that records its messages and the pauses that it requested."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.sleeps: list[float] = []
        self.policy = Policy(timeout=5, sleep=self.sleeps.append)

    @property
    def access(self) -> Access:
        return Access(policy=self.policy, notify=self.messages.append)

    def send(self, what: PublishPlan | None = None, **options: Any) -> Published:
        return send(what or light(), Options(**options), self.access)

    def dry(self, what: PublishPlan | None = None, **options: Any) -> Published:
        return _Push(what or light(), Options(**options), self.access).dry()

    def refused(self, kind: type[ZooError], what: PublishPlan | None = None, **options: Any) -> str:
        with pytest.raises(ZooError) as caught:
            self.send(what, **options)
        assert caught.type is kind
        return words(caught.value)


def watched_publisher(hub: HubDouble) -> Iterator[Publisher]:
    """A publisher whose token must appear nowhere but in headers."""
    publisher = Publisher()
    yield publisher
    assert "sekret" not in " ".join(publisher.messages)
    assert not any(TOKEN.encode() in request.body for request in hub.log), "no token in a file or a message"
