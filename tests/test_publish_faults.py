"""Publishing to a Hub that fails at each call in turn: it succeeds or reports why, and the next run succeeds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import hub_faults
import pytest
from hub_double import Exchange, HubDouble
from publishing import REPO, Publisher, holds, light, plan, published, watched_publisher, words

from pylo_zoo.fetch import FetchError, Unavailable
from pylo_zoo.publish import PublishPlan

pytest.importorskip("jax")


@pytest.fixture
def publisher(hub: HubDouble) -> Iterator[Publisher]:
    yield from watched_publisher(hub)


CALLS = {
    "whoami": ("GET", "/whoami-v2$"),
    "look": ("GET", f"/api/models/{REPO}$"),
    "create": ("POST", "/repos/create$"),
    "refs": ("GET", "/refs$"),
    "branch": ("POST", "/branch/"),
    "read branch": ("GET", "/revision/next$"),
    "validate": ("POST", "/validate-yaml$"),
    "preupload": ("POST", "/preupload/"),
    "batch": ("POST", "/objects/batch$"),
    "upload": ("PUT", "^/[0-9a-f]{64}$"),
    "verify": ("POST", "/objects/verify$"),
    "commit": ("POST", "/commit/"),
    "read history": ("GET", "/revision/[0-9a-f]{40}$"),
    "head": ("HEAD", "/resolve/"),
    "small file": ("GET", "/resolve/"),
    "large file": ("GET", "^/[0-9a-f]{64}$"),
    "tag": ("POST", "/tag/"),
}
FAULTS = {
    "429": hub_faults.status(429, Retry_After="7"),
    "reset": hub_faults.reset,
    "lost": hub_faults.lost,
    "applied, then 500": hub_faults.both(hub_faults.applied, hub_faults.status(500)),
    "truncated": hub_faults.truncated(1),
}
OPTIONS: dict[str, Any] = {"branch": "next", "tag": "v1"}


def complete(hub: HubDouble, what: PublishPlan) -> None:
    repo = hub.repos[REPO]
    assert holds(repo, what, "next")
    assert len(published(repo, "next")) == 1
    assert repo.tags == {"v1": repo.branches["next"]}


def test_the_table_lists_all_calls(hub: HubDouble, publisher: Publisher) -> None:
    publisher.send(**OPTIONS)
    strange = [str(each) for each in hub.log if not any(each.like(*call) for call in CALLS.values())]
    assert strange == []
    assert [name for name, call in CALLS.items() if not hub.requests(*call)] == []


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("call", CALLS)
def test_a_temporary_fault(call: str, fault: str, hub: HubDouble, publisher: Publisher) -> None:
    hub.plant(*CALLS[call], FAULTS[fault])
    publisher.send(**OPTIONS)
    complete(hub, light())
    if fault == "429":
        assert max([*publisher.sleeps, *hub.sleeps]) >= 7


@pytest.mark.parametrize("call", [call for call in CALLS if call != "verify"])  # what was uploaded is still there
def test_a_permanent_fault(call: str, hub: HubDouble, publisher: Publisher) -> None:
    hub.plant(*CALLS[call], hub_faults.status(503), times=100)
    error = publisher.refused(Unavailable, **OPTIONS)
    assert "answered 503" in error
    for repo in hub.repos.values():
        heads = list(repo.branches)
        assert all(not published(repo, head) or holds(repo, light(), head) for head in heads), "complete or absent"
        assert not repo.tags
    hub._planted.clear()
    publisher.send(**OPTIONS)
    complete(hub, light())


@pytest.mark.parametrize("call", ["whoami", "create", "preupload", "upload", "commit", "large file", "tag"])
def test_a_server_that_requests_an_hour(call: str, hub: HubDouble, publisher: Publisher) -> None:
    hub.plant(*CALLS[call], hub_faults.status(429, Retry_After="3600"))
    error = publisher.refused(Unavailable, **OPTIONS)
    assert "requests a wait of 3,600 seconds" in error
    assert max([0.0, *publisher.sleeps, *hub.sleeps]) < 60
    publisher.send(**OPTIONS)
    complete(hub, light())


@pytest.mark.parametrize("call", ["look", "create", "batch", "upload", "commit", "head", "large file", "tag"])
def test_a_silent_server(call: str, hub: HubDouble, publisher: Publisher) -> None:
    publisher.policy = replace(publisher.policy, timeout=0.2)
    hub.plant(*CALLS[call], hub_faults.silent(30))
    publisher.send(**OPTIONS)
    complete(hub, light())


def test_a_commit_that_is_never_answered(hub: HubDouble, publisher: Publisher) -> None:
    hub.plant("POST", "/commit/", hub_faults.lost)
    hub.plant("GET", "/commits/", hub_faults.status(503), times=100)
    assert "answered 503" in publisher.refused(Unavailable)
    hub._planted.clear()
    assert publisher.send().unchanged
    assert len(published(hub.repos[REPO])) == 1


def test_the_first_error_is_reported(hub: HubDouble, publisher: Publisher) -> None:
    hub.plant("POST", "/commit/", hub_faults.status(429, Retry_After="3600"))
    hub.plant("GET", "/commits/", hub_faults.status(503), times=100)
    assert "requests a wait of 3,600 seconds" in publisher.refused(Unavailable)


def passed(exchange: Exchange) -> None:
    """No fault."""


def test_a_fault_after_a_conflict_is_not_mistaken_for_one(hub: HubDouble, publisher: Publisher) -> None:
    hub.plant("POST", "/tag/", hub_faults.lost)
    hub.plant("GET", "/refs", passed, passed, hub_faults.status(503))
    hub.plant("POST", "/commit/", hub_faults.both(hub_faults.applied, hub_faults.status(412)))
    hub.plant("GET", "/commits/", hub_faults.status(503))
    result = publisher.send(tag="v1")
    assert hub._planted == [each for each in hub._planted if not each.times], "every fault was used"
    assert hub.repos[REPO].tags == {"v1": result.commit}
    assert len(published(hub.repos[REPO])) == 1


@pytest.mark.parametrize(("call", "name"), [("large file", "model.safetensors"), ("small file", "config.json")])
def test_the_hub_stores_other_bytes(call: str, name: str, hub: HubDouble, publisher: Publisher, tmp_path: Path) -> None:
    registry = tmp_path / "registry.yaml"
    registry.write_text("# none yet\n")
    hub.plant(*CALLS[call], hub_faults.wrong_bytes)
    error = publisher.refused(FetchError, tag="v1", registry=registry)
    repo = hub.repos[REPO]
    assert f"was published, but {name} has sha256" in error
    assert repo.tags == {}
    assert registry.read_text() == "# none yet\n"
    again = publisher.send(tag="v1", registry=registry)
    assert again.unchanged
    assert repo.tags == {"v1": again.commit}
    assert str(again.commit) in registry.read_text()
    assert len(published(repo)) == 1


def test_the_hub_loses_a_file(hub: HubDouble, publisher: Publisher) -> None:
    gone = hub_faults.changed_json(lambda answer: answer["siblings"].pop())
    hub.plant(*CALLS["read history"], gone)
    assert "was published, but model.safetensors is missing" in publisher.refused(FetchError)


@pytest.mark.parametrize("seed", range(4))
def test_random_faults(seed: int, hub: HubDouble, publisher: Publisher) -> None:
    hub.chaos = hub_faults.Chaos(seed, rate=0.4, total=4)
    publisher.send(plan(), **OPTIONS)
    assert len(hub.chaos.struck) == 4
    complete(hub, plan())


@pytest.mark.parametrize("seed", [2, 3])
def test_a_rerun_succeeds(seed: int, hub: HubDouble, publisher: Publisher) -> None:
    hub.chaos = hub_faults.Chaos(seed, rate=0.6, most=6)
    for _ in range(40):
        try:
            publisher.send(**OPTIONS)
            break
        except Unavailable as error:
            words(error)
            repo = hub.repos.get(REPO)
            assert repo is None or not published(repo, "main")
            assert repo is None or "next" not in repo.branches or len(published(repo, "next")) <= 1
    complete(hub, light())
