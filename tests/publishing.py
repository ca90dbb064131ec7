"""A proven artifact that several tests publish, made once a process, and what a publication has to be like."""

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
"""The one that is proven fastest."""
REPO = "org/tiny"
WRITING = r"^/api/(?!whoami|validate|.*/paths-info)|\.git/info/lfs|^/[0-9a-f]{64}$"


@functools.cache
def _proven() -> Path:
    made, _ = random_weights(FAMILY)
    here = Path(mkdtemp(prefix="pylo-zoo-test-")) / FAMILY
    artifact.write(made, here)
    report = proof(FAMILY)
    artifact.write_parity(here, report.to_dict(), report.vectors)
    return here


def proven(place: Path) -> Path:
    """A copy of the artifact with its proof, below ``place``."""
    return Path(shutil.copytree(_proven(), place / FAMILY))


@functools.cache
def plan() -> PublishPlan:
    """What is published of it."""
    return prepare(_proven(), Repository(REPO), license="MIT")


@functools.cache
def light() -> PublishPlan:
    """The same without its larger files, which takes fewer requests."""
    kept = ("model.safetensors", "config.json", "README.md")
    return replace(plan(), files={name: plan().files[name] for name in kept})


def other(number: int, like: PublishPlan | None = None) -> PublishPlan:
    """A plan with another content."""
    like = like or light()
    card = like.files["README.md"] + f"\nNumber {number}.\n".encode()
    return replace(like, files={**like.files, "README.md": card})


def published(repo: Repo, rev: str = "main") -> list[Commit]:
    """The commits that publish something, the last one first."""
    return [commit for commit in repo.history(rev) if MARK in commit.message]


def holds(repo: Repo, plan: PublishPlan, rev: str = "main") -> bool:
    """Whether the repository has all of a plan, and nothing of ours besides."""
    there: Mapping[str, bytes] = {name: data for name, data in repo.files(rev).items() if name in artifact.OWN_FILES}
    return there == dict(plan.files)


def writes(hub: HubDouble) -> list[Request]:
    """The requests so far that ask for something to be changed."""
    return hub.requests("POST|PUT|DELETE|PATCH", WRITING)


def words(error: ZooError) -> str:
    """All that a person reads of it, which has no secret."""
    said = f"{error.message} {error.hint} {error!r} {error.__cause__!r}"
    assert TOKEN not in said
    assert "sekret" not in said.lower()
    assert "X-Amz" not in said
    return said


class Publisher:
    """Somebody who publishes; what was said to him, and what he would have waited."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.sleeps: list[float] = []
        self.policy = Policy(timeout=5, sleep=self.sleeps.append)

    @property
    def access(self) -> Access:
        return Access(policy=self.policy, say=self.said.append)

    def send(self, what: PublishPlan | None = None, **options: Any) -> Published:
        return send(what or light(), Options(**options), self.access)

    def dry(self, what: PublishPlan | None = None, **options: Any) -> Published:
        return _Push(what or light(), Options(**options), self.access).dry()

    def refused(self, kind: type[ZooError], what: PublishPlan | None = None, **options: Any) -> str:
        with pytest.raises(ZooError) as caught:
            self.send(what, **options)
        assert caught.type is kind
        return words(caught.value)


def watched(hub: HubDouble) -> Iterator[Publisher]:
    """Somebody who publishes, and whose token goes nowhere but into headers."""
    publisher = Publisher()
    yield publisher
    assert "sekret" not in " ".join(publisher.said)
    assert not any(TOKEN.encode() in request.body for request in hub.log), "no token in a file or a message"
