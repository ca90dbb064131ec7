"""A thousand random faults: after each attempt, all of the data or none of it exists, locally and on the Hub.

The faults are in tests/hub_misfortunes.py and the same in every run; the invariants are in tests/hub_invariants.py.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hub_faults
import hub_invariants as invariants
import pytest
from hub_client import connect
from hub_double import HubDouble
from hub_faults import Chaos
from hub_invariants import NAME, TAG
from hub_misfortunes import ALL, GONE, PASSING, Disk, block_other_hosts

from pylo_zoo import weights
from pylo_zoo.errors import ZooError
from pylo_zoo.fetch import Access, FetchError, Policy, store
from pylo_zoo.publish import Options, push
from pylo_zoo.publish.plan import PublishPlan

PUBLICATIONS, PULLS = range(60), range(72)
"""Seeds."""
MORE = 5
"""The slow tests run this many times more."""
ATTEMPTS = 80
RATES = (0.08, 0.2, 0.45)
REQUESTS = {
    "publish": (
        "GET /api/whoami-v2",
        "POST /api/repos/create",
        "POST /api/validate-yaml",
        "GET /api/models/org/name",
        "GET /api/models/org/name/refs",
        "GET /api/models/org/name/revision/COMMIT",
        "GET /api/models/org/name/commits/main",
        "POST /api/models/org/name/preupload/main",
        "POST /org/name.git/info/lfs/objects/batch",
        "PUT /SHA256",
        "POST /org/name.git/info/lfs/objects/verify",
        "POST /api/models/org/name/commit/main",
        "POST /api/models/org/name/tag/COMMIT",
        "HEAD /org/name/resolve/COMMIT/model.safetensors",
        "GET /SHA256",
        "GET /org/name/resolve/COMMIT/README.md",
    ),
    "pull": (
        "GET /api/models/org/name",
        "GET /api/models/org/name/revision/v1",
        "GET /api/models/org/name/revision/COMMIT",
        "HEAD /org/name/resolve/COMMIT/config.json",
        "GET /org/name/resolve/COMMIT/config.json",
        "HEAD /org/name/resolve/COMMIT/model.safetensors",
        "GET /SHA256",
    ),
}
"""Every kind of request that publishing and pulling send."""


def kind(request: str) -> str:
    return re.sub("/[0-9a-f]{40}", "/COMMIT", re.sub("/[0-9a-f]{64}", "/SHA256", request))


@dataclass
class ChaosRun:
    """The double, a plan, and counts of the faults so far.

    Attributes:
        hub: the double.
        disk: the disk that fills up.
        plan: the plan to publish.
        here: a directory for the caches.
        faults: number of hits by kind of fault.
        requests: number of hits by kind of request.
        errors: number of failed attempts by exception.
    """

    hub: HubDouble
    disk: Disk
    plan: PublishPlan
    here: Path
    faults: Counter[str] = field(default_factory=Counter)
    requests: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    messages: list[str] = field(default_factory=list)

    @property
    def access(self) -> Access:
        policy = Policy(attempts=3, unreachable=2, timeout=5, sleep=lambda seconds: None)
        return Access(progress=False, policy=policy, notify=self.messages.append)

    def until_it_succeeds(self, seed: int, attempt: Callable[[], Any], check: Callable[[], None]) -> None:
        """Call ``attempt`` until no fault remains or none interfered; call ``check`` after each attempt."""
        last, kinds = None, PASSING if seed % 4 == 0 else ALL
        chaos = self.hub.chaos = Chaos(seed, RATES[seed % 3], most=2 + seed % 2, total=20, kinds=kinds)
        try:
            with self.disk.full(seed, 0.03, 5):
                for _ in range(ATTEMPTS):
                    try:
                        attempt()
                        return
                    except ZooError as error:
                        invariants.check_error(error)
                        last = error
                        self.errors[type(error).__name__] += 1
                    finally:
                        check()
            raise AssertionError(f"seed {seed}: {ATTEMPTS} attempts were not enough: {last}")
        finally:
            self.hub.chaos = None
            invariants.check_silence(*self.messages)
            for method, path, name in chaos.struck:
                self.faults[name] += 1
                self.requests[kind(f"{method} {path}")] += 1

    def publish(self, seed: int) -> None:
        """Publish once, to a new repository or to one that has other content."""
        self.hub.repos.clear()
        self.hub.store.clear()
        if seed % 5 == 0:
            self.hub.create(NAME)
        options = Options(tag=TAG, exist_ok=True)
        self.until_it_succeeds(
            seed,
            lambda: push.send(self.plan, options, self.access),
            lambda: invariants.check_published(self.hub, self.plan),
        )
        repo = self.hub.repos[NAME]
        assert repo.files().items() >= dict(self.plan.files).items()
        assert set(repo.tags) == {TAG}

    def pull(self, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """Pull once into empty caches, then load from there without requesting a file."""
        self.hub.repos.clear()
        repo = self.hub.create(NAME)
        repo.commit(self.plan.files)
        repo.tags[TAG] = repo.head
        home = self.here / f"{seed}"
        monkeypatch.setenv("PYLO_ZOO_HOME", str(home))
        connect(self.hub, monkeypatch, self.here / f"hf-{seed}")
        uri = f"hf://{NAME}" + (f"@{TAG}" if seed % 2 else "")
        self.until_it_succeeds(
            seed, lambda: weights.pull(uri, access=self.access), lambda: invariants.check_pulled(home, repo)
        )
        invariants.check_complete(home, repo)
        count = len(self.hub.log)
        assert not weights.pull(uri, access=self.access).fetched
        assert {str(request).split("/")[1] for request in self.hub.log[count:]} == {"api"}


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> PublishPlan:
    return invariants.small_plan(tmp_path_factory.mktemp("artifact") / "elo")


@pytest.fixture
def chaos_run(hub: HubDouble, plan: PublishPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ChaosRun]:
    monkeypatch.chdir(tmp_path)
    contacted = block_other_hosts(monkeypatch)
    chaos_run = ChaosRun(hub, Disk(monkeypatch), plan, tmp_path)
    yield chaos_run
    assert not contacted, "other hosts were contacted"
    print(
        f"{chaos_run.faults.total()} faults: {chaos_run.faults}; full disk: {chaos_run.disk.struck}; {chaos_run.errors}"
    )


def check_coverage(chaos_run: ChaosRun, what: str, least: int) -> None:
    """Every kind of fault and request was hit often enough."""
    assert chaos_run.faults.total() + chaos_run.disk.struck.total() >= least
    assert chaos_run.faults.keys() == ALL.keys()
    assert set(REQUESTS[what]) <= chaos_run.requests.keys()
    assert chaos_run.errors.keys() >= {"Unavailable", "Forbidden", "NotFound", "FetchError", "ZooError"}


def test_publishing(chaos_run: ChaosRun) -> None:
    for seed in PUBLICATIONS:
        chaos_run.publish(seed)
    check_coverage(chaos_run, "publish", 500)
    assert "Conflict" in chaos_run.errors


def test_pulling(chaos_run: ChaosRun, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in PULLS:
        chaos_run.pull(seed, monkeypatch)
    check_coverage(chaos_run, "pull", 500)


def test_a_tag_on_the_same_content_below_commits_of_others(chaos_run: ChaosRun) -> None:
    """The state after a run that was killed right after it set the tag."""
    options = Options(tag=TAG, exist_ok=True)
    first = push.send(chaos_run.plan, options, chaos_run.access)
    repo = chaos_run.hub.repos[NAME]
    repo.commit({"notes.txt": b"theirs\n"})
    again = push.send(chaos_run.plan, options, chaos_run.access)
    assert again.unchanged
    assert repo.tags == {TAG: first.commit}


def test_wrong_bytes_that_the_client_keeps_are_fetched_again(chaos_run: ChaosRun) -> None:
    """The client has no hash to check a small file, and would return the wrong bytes forever."""
    repo = chaos_run.hub.create(NAME)
    repo.commit(chaos_run.plan.files)
    chaos_run.hub.plant("GET", "/resolve/.*/README.md", hub_faults.wrong_bytes)
    chaos_run.hub.plant("HEAD", "/resolve/.*/README.md", hub_faults.headers(ETag='"0"'))
    assert weights.pull(f"hf://{NAME}", access=chaos_run.access).fetched
    invariants.check_complete(store.home(), repo)


def test_an_upload_is_not_redirected_to_an_unencrypted_address(chaos_run: ChaosRun) -> None:
    """The client turns the PUT into a GET, which no longer carries our marker."""
    chaos_run.hub.plant("PUT", ".", hub_faults.redirect(GONE))
    with pytest.raises(FetchError, match="not encrypted"):
        push.send(chaos_run.plan, Options(), chaos_run.access)


@pytest.mark.slow
def test_publishing_with_many_seeds(chaos_run: ChaosRun) -> None:
    for seed in range(PUBLICATIONS.stop, (1 + MORE) * PUBLICATIONS.stop):
        chaos_run.publish(seed)


@pytest.mark.slow
def test_pulling_with_many_seeds(chaos_run: ChaosRun, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(PULLS.stop, (1 + MORE) * PULLS.stop):
        chaos_run.pull(seed, monkeypatch)
