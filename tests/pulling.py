"""Shared by the tests of pulling: names and paths."""

from __future__ import annotations

import hashlib
from pathlib import Path

import published
import pytest
from fetching import leftovers
from hub_double import HubDouble, Repo, User

from pylo_zoo import weights
from pylo_zoo.errors import ZooError
from pylo_zoo.fetch import Access
from pylo_zoo.leftovers import left_behind

ID, URI = "org/elo", "hf://org/elo"
STRANGER = "hf_sekretstranger"


@pytest.fixture
def repo(hub: HubDouble) -> Repo:
    """A published artifact, and a user ``eve`` without access to private repositories."""
    hub.users[STRANGER] = User("eve")
    return hub.create(ID, published.files())


INFO = r"^/api/models/org/elo$"
TREE = r"^/api/models/org/elo/revision/"
STORAGE = r"^/[0-9a-f]{64}$"


def request_to(method: str, name: str) -> tuple[str, str]:
    return method, rf"/resolve/[0-9a-f]{{40}}/{name}$"


REQUESTS: dict[str, tuple[str, str]] = {
    "info": ("GET", INFO),
    "revision": ("GET", TREE),
    "config HEAD": request_to("HEAD", "config.json"),
    "config GET": request_to("GET", "config.json"),
    "weights HEAD": request_to("HEAD", "model.safetensors"),
    "weights GET": ("GET", STORAGE),
    "proof HEAD": request_to("HEAD", "parity.json"),
    "proof GET": request_to("GET", "parity.json"),
    "card HEAD": request_to("HEAD", "README.md"),
    "card GET": request_to("GET", "README.md"),
}
"""Every kind of request of a first pull."""
BODIES = [name for name in REQUESTS if not name.endswith("HEAD")]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def publish_other_weights(repo: Repo) -> str:
    """Publish other weights on the main branch; return the commit."""
    return repo.commit(published.files(scale=0.2))


def directory(home: Path, commit: str) -> Path:
    return home / "hub" / "org--elo" / commit


def is_whole(home: Path, repo: Repo) -> bool:
    """Whether the cache has the published artifact and no partial files."""
    checkout = weights.pull(ID, access=Access(offline=True))
    same = all((checkout.directory / name).read_bytes() == repo.files()[name] for name in published.DOWNLOADED)
    return same and nothing_half(home)


def nothing_half(home: Path) -> bool:
    """Whether the cache holds only whole files, whole artifacts, locks and the lock file."""
    artifacts = [path for path in (home / "hub").glob("*/*") if not left_behind(path.name)]
    complete = all((path / "SHA256SUMS").is_file() and len(path.name) == 40 for path in artifacts)
    return complete and all(name == "zoo.lock" or name.startswith("hub/") for name in leftovers(home))


def refused(access: Access, *kinds: type[ZooError], name: str = ID) -> ZooError:
    with pytest.raises(kinds or ZooError) as error:
        weights.pull(name, access=access)
    assert error.value.hint
    assert "sekret" not in str(error.value)
    return error.value
