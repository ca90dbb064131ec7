"""Publishing and pulling in processes that are killed: at each request, between two disk changes, at any time.

After each kill, all of the data or none of it exists (tests/hub_invariants.py), and the next run finishes the job.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import hub_double
import hub_faults
import hub_invariants as invariants
import pytest
from hub_double import HubDouble
from hub_driver import Driver, Job
from hub_invariants import NAME, TAG

from pylo_zoo.leftovers import left_behind
from pylo_zoo.publish.plan import PublishPlan

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked")

LARGE = "^/[0-9a-f]{64}$"
PUBLISHING = (
    ("GET", "/whoami-v2"),
    ("GET", "^/api/models/org/name$"),
    ("POST", "/repos/create"),
    ("GET", "/refs"),
    ("POST", "/preupload/"),
    ("POST", "/objects/batch"),
    ("PUT", LARGE),
    ("POST", "/objects/verify"),
    ("POST", "/commit/"),
    ("HEAD", "/resolve/"),
    ("GET", LARGE),
    ("POST", "/tag/"),
)
PULLING = (("GET", "^/api/models/"), ("HEAD", "/resolve/"), ("GET", "/resolve/.*/config.json"), ("GET", LARGE))
BEFORE_AND_AFTER = pytest.mark.parametrize("when", ["before", "after"])
MOMENTS = random.Random(0).sample(range(1, 90), 7)
"""The disk changes before which a pull is killed; it makes about a hundred."""
CHANGES = (
    r"rename .*\.incomplete",
    r"replace .*\.part$",
    r"mkdir .*\.new-",
    r"copyfile .*model\.safetensors",
    r"write_text .*SHA256SUMS",
    r"fsync",
    r"rename .*\.new-",
    r"write_bytes .*zoo\.lock",
    r"replace .*zoo\.lock",
)
"""The same by name, in order."""


@pytest.fixture(scope="module")
def serving() -> Iterator[HubDouble]:
    with hub_double.serving() as hub:
        yield hub


@pytest.fixture(scope="module")
def driver(serving: HubDouble) -> Iterator[Driver]:
    driver = Driver(serving.url)
    yield driver
    driver.close()


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> PublishPlan:
    return invariants.small_plan(tmp_path_factory.mktemp("artifact") / "elo")


@pytest.fixture
def hub(serving: HubDouble) -> HubDouble:
    """The module's double, emptied; the driver knows its address."""
    serving.repos.clear()
    serving.store.clear()
    serving.log.clear()
    serving._hooks.clear()
    serving._planted.clear()
    return serving


@pytest.fixture
def publishing(plan: PublishPlan, tmp_path: Path) -> Job:
    assert plan.artifact.path is not None
    return Job("publish", str(tmp_path / "home"), str(plan.artifact.path))


@pytest.fixture
def pulling(tmp_path: Path) -> Job:
    return Job("pull", str(tmp_path / "home"))


def published(hub: HubDouble, plan: PublishPlan) -> hub_double.Repo:
    """A repository to pull from."""
    repo = hub.create(NAME)
    repo.commit(plan.files)
    return repo


def killed_at(hub: HubDouble, driver: Driver, job: Job, method: str, pattern: str, when: str) -> None:
    """Run the job in a child that is killed at its first matching request."""
    known, child = threading.Event(), 0

    def kill(request: Any) -> None:
        known.wait()
        os.kill(child, signal.SIGKILL)

    hub.on(method, pattern, kill, when=when, times=1)
    child = driver.start(job)
    known.set()
    assert driver.wait(child) == (signal.SIGKILL, {})


def run_job(driver: Driver, job: Job) -> dict[str, Any]:
    """Run the job to its end."""
    ended, output = driver.wait(driver.start(job))
    assert ended == 0
    assert "error" not in output, output
    return output


def finish_publishing(hub: HubDouble, driver: Driver, job: Job, plan: PublishPlan) -> None:
    invariants.check_published(hub, plan)
    output = run_job(driver, job)
    invariants.check_published(hub, plan)
    repo = hub.repos[NAME]
    assert output["commit"] == repo.head == repo.tags[TAG]
    assert repo.files().items() >= dict(plan.files).items()


def finish_pulling(hub: HubDouble, driver: Driver, job: Job) -> None:
    home, repo = Path(job.home), hub.repos[NAME]
    invariants.check_pulled(home, repo, killed=True)
    output = run_job(driver, job)
    assert output["commit"] == repo.head
    invariants.check_complete(home, repo)
    left = [path for path in home.rglob("*") if left_behind(path.name)]
    assert not left, "leftovers of the killed process remain"


# --- killed at a request -----------------------------------------------------------------------------------------


@BEFORE_AND_AFTER
@pytest.mark.parametrize(("method", "pattern"), PUBLISHING)
def test_publishing(
    hub: HubDouble, driver: Driver, publishing: Job, plan: PublishPlan, method: str, pattern: str, when: str
) -> None:
    killed_at(hub, driver, publishing, method, pattern, when)
    finish_publishing(hub, driver, publishing, plan)


@BEFORE_AND_AFTER
@pytest.mark.parametrize(("method", "pattern"), PULLING)
def test_pulling(
    hub: HubDouble, driver: Driver, pulling: Job, plan: PublishPlan, method: str, pattern: str, when: str
) -> None:
    published(hub, plan)
    killed_at(hub, driver, pulling, method, pattern, when)
    finish_pulling(hub, driver, pulling)


# --- killed at another moment ------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_pull_between_two_changes_to_the_disk(
    hub: HubDouble, driver: Driver, pulling: Job, plan: PublishPlan, moment: int
) -> None:
    published(hub, plan)
    assert driver.wait(driver.start(replace(pulling, dies_at=moment))) == (signal.SIGKILL, {})
    finish_pulling(hub, driver, pulling)


@pytest.mark.parametrize("change", CHANGES)
def test_a_pull_before_this_change(
    hub: HubDouble, driver: Driver, pulling: Job, plan: PublishPlan, change: str
) -> None:
    published(hub, plan)
    assert driver.wait(driver.start(replace(pulling, dies_on=change))) == (signal.SIGKILL, {})
    finish_pulling(hub, driver, pulling)


def test_at_any_time(hub: HubDouble, driver: Driver, publishing: Job, pulling: Job, plan: PublishPlan) -> None:
    chance = random.Random(1)
    for job in (publishing, replace(pulling, home=pulling.home + "-2")):
        start = time.perf_counter()
        run_job(driver, replace(job, home=job.home + "-whole"))
        whole = time.perf_counter() - start
        if job is publishing:
            hub.repos.clear()
        for _ in range(4):
            child = driver.start(job)
            time.sleep(min(chance.random() * whole, 0.5))
            os.kill(child, signal.SIGKILL)
            driver.wait(child)
            if job is publishing:
                invariants.check_published(hub, plan)
            else:
                invariants.check_pulled(Path(job.home), hub.repos[NAME], killed=True)
        if job is publishing:
            finish_publishing(hub, driver, job, plan)
        else:
            finish_pulling(hub, driver, job)


# --- two at once -------------------------------------------------------------------------------------------------


def test_two_pulls_at_once_download_once(hub: HubDouble, driver: Driver, pulling: Job, plan: PublishPlan) -> None:
    repo = published(hub, plan)
    hub.plant("GET", LARGE, hub_faults.delayed(0.3))
    jobs = [pulling, pulling]
    both = [driver.start(job) for job in jobs]
    outputs = [driver.wait(child)[1] for child in both]
    assert len(hub.requests("GET", LARGE)) == 1
    assert not [each for each in outputs if "error" in each]
    invariants.check_complete(Path(pulling.home), repo)


def test_a_pull_killed_while_holding_the_lock_does_not_block_others(
    hub: HubDouble, driver: Driver, pulling: Job, plan: PublishPlan
) -> None:
    repo = published(hub, plan)
    first_is_there, go_on = threading.Event(), threading.Event()

    def hold(request: Any) -> None:
        first_is_there.set()
        go_on.wait(10)

    hub.on("GET", LARGE, hold, times=1)
    first = driver.start(pulling)
    assert first_is_there.wait(10)
    second = driver.start(pulling)
    deadline = time.monotonic() + 10
    while len(hub.requests("GET", "^/api/models/org/name$")) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(first, signal.SIGKILL)
    assert driver.wait(first)[0] == signal.SIGKILL
    go_on.set()
    ended, output = driver.wait(second)
    assert (ended, output.get("error")) == (0, None)  # a lock that stays held is an error after LOCK_SECONDS
    assert len(hub.requests("GET", LARGE)) == 2, "the second process downloads what the killed one did not"
    invariants.check_complete(Path(pulling.home), repo)
