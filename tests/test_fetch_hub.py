"""Hub files through the real huggingface_hub, in separate processes because the client reads its endpoint on import.

The double models the real Hub, which is unreachable here.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fault_server
import hub_double
import hub_faults
import pytest
from fault_server import Files
from fetching import DATA, OTHER, SHA256, leftovers
from hub_double import TOKEN, Fault, HubDouble
from trees import write_params, write_theta

from pylo_zoo import artifact
from pylo_zoo.fetch import lockfile

FILE = "theta.state"
PATH = f"/org/repo/resolve/main/{FILE}"
LARGE = "^/[0-9a-f]{64}$"  # the storage's path of a large file
URI = "hf://org/repo/theta.state"

CHILD = """
import sys
from dataclasses import replace
from pylo_zoo.errors import ZooError
from pylo_zoo.fetch import Access, Policy, fetch
waits = []
try:
    access = Access(policy=Policy(timeout=5, sleep=waits.append), update_lock="update" in sys.argv)
    if "notify" in sys.argv:
        access = replace(access, notify=lambda text: print(text, file=sys.stderr))
    print(fetch(sys.argv[1], sha256=sys.argv[2] or None, access=access))
except ZooError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""

CLI = """
import sys
from pathlib import Path
from pylo_zoo import registry
registry._default_path = lambda: Path(sys.argv[1])
from pylo_zoo.cli import main
main(sys.argv[2:])
"""


class Hub:
    """A Hub double, a plain file server, and the environment of a process that uses both."""

    def __init__(self, double: HubDouble, server: Files, home: Path, cwd: Path) -> None:
        self.double = double
        self.repo = double.repos["org/repo"]
        self.server = server
        self.home = home
        self.cwd = cwd
        self.env = double.environment(cwd / "hf-home", PYLO_ZOO_GCS_ENDPOINT=server.url)

    def python(self, code: str, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code, *arguments],
            env={**self.env, **env},
            cwd=self.cwd,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert "sekret" not in done.stdout + done.stderr
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def fetch(self, uri: str = URI, sha256: str = SHA256, *words: str, **env: str) -> Path:
        done = self.python(CHILD, uri, sha256, *words, **env)
        assert (done.returncode, done.stderr) == (0, "")
        return Path(done.stdout.strip())

    def refused(self, uri: str = URI, sha256: str = SHA256, *words: str, **env: str) -> str:
        done = self.python(CHILD, uri, sha256, *words, **env)
        assert (done.returncode, done.stdout) == (1, "")
        assert len(done.stderr.splitlines()) == 1, done.stderr
        return done.stderr


@pytest.fixture
def hub(tmp_path: Path, zoo_home: Path) -> Iterator[Hub]:
    with hub_double.serving() as double, fault_server.serving() as server:
        double.create("org/repo", {FILE: DATA})
        yield Hub(double, server, zoo_home, tmp_path)


@pytest.mark.parametrize("lfs", [False, True])
def test_a_file_is_downloaded_once(lfs: bool, hub: Hub) -> None:
    hub.repo.lfs = lfs
    hub.repo.commit({FILE: DATA})
    path = hub.fetch()
    assert path == hub.home / "sources" / SHA256 / "theta.state"
    assert path.read_bytes() == DATA
    count = len(hub.double.log)
    assert hub.fetch() == path
    assert len(hub.double.log) == count
    resolved = hub.double.requests(".*", f"^{PATH}$")
    assert {request.headers.get("authorization") for request in resolved} == {f"Bearer {TOKEN}"}
    elsewhere = [request for request in hub.double.log if request.origin == "cdn"]
    assert bool(elsewhere) == lfs
    assert not any("authorization" in request.headers for request in elsewhere)
    assert leftovers(hub.home) == []


def test_a_revision_in_either_spelling(hub: Hub) -> None:
    hub.repo.branches["v1"] = hub.repo.head
    hub.repo.commit({"sub/x.state": OTHER}, branch="v1")
    sha256 = hashlib.sha256(OTHER).hexdigest()
    assert hub.fetch("hf://org/repo/sub/x.state@v1", sha256).read_bytes() == OTHER
    assert hub.fetch("hf://org/repo@v1/sub/x.state", sha256).name == "x.state"


@pytest.mark.parametrize("honest", [True, False], ids=["another ETag", "the right ETag"])
def test_wrong_bytes_of_the_right_length_are_refused(honest: bool, hub: Hub) -> None:
    if honest:
        hub.repo.commit({FILE: OTHER})
    else:
        hub.double.plant("GET", LARGE, hub_faults.body(OTHER), times=2)
    error = hub.refused()
    assert f"sha256 {hashlib.sha256(OTHER).hexdigest()}, not {SHA256}" in error
    assert leftovers(hub.home) == []
    if honest:
        hub.repo.commit({FILE: DATA})
    assert hub.fetch().read_bytes() == DATA, "although the client's cache has the wrong bytes"


def test_a_damaged_copy_in_the_clients_cache_is_fetched_again(hub: Hub) -> None:
    path = hub.fetch()
    path.unlink()
    blobs = list((hub.cwd / "hf-home").rglob("blobs/*"))
    assert len(blobs) == 1
    blobs[0].write_bytes(OTHER)
    assert hub.fetch().read_bytes() == DATA


def test_offline_uses_only_the_caches(hub: Hub) -> None:
    error = hub.refused(HF_HUB_OFFLINE="1")
    assert error.startswith("Unavailable: ")
    assert "offline mode is on" in error
    for way in (f"{hub.double.url}{PATH}", "--source"):
        assert way in error
    assert hub.double.log == []
    hub.fetch().unlink()
    count = len(hub.double.log)
    assert hub.fetch(HF_HUB_OFFLINE="1").read_bytes() == DATA, "from the client's own cache"
    assert len(hub.double.log) == count


def test_an_unreachable_hub(hub: Hub) -> None:
    unreachable = "http://127.0.0.1:9"
    assert "cannot be reached (Connection refused), 3 times" in hub.refused(HF_ENDPOINT=unreachable)
    hub.fetch().unlink()
    done = hub.python(CHILD, URI, SHA256, "notify", HF_ENDPOINT=unreachable)
    assert (done.returncode, Path(done.stdout.strip()).read_bytes()) == (0, DATA)
    assert "Using the copy in huggingface_hub's cache" in done.stderr


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (hub_faults.status(404, X_Error_Code="RepoNotFound"), "NotFound: .*the repository org/repo does not exist"),
        (hub_faults.status(401, X_Error_Code="RepoNotFound"), "NotFound: .*the repository org/repo does not exist"),
        (hub_faults.status(404, X_Error_Code="RevisionNotFound"), "NotFound: .*no revision main"),
        (hub_faults.status(404, X_Error_Code="EntryNotFound"), "NotFound: .*no file theta.state"),
        (hub_faults.status(403, X_Error_Code="GatedRepo"), "Forbidden: .*is gated"),
        (hub_faults.status(401), "Forbidden: .*access denied .401"),
        (hub_faults.status(403), "Forbidden: .*access denied .403"),
    ],
)
def test_errors_of_the_hub(fault: Fault, message: str, hub: Hub) -> None:
    hub.double.plant("HEAD|GET", f"^{PATH}$", fault, times=9)
    error = hub.refused()
    assert re.match(message, error), error


@pytest.mark.parametrize(
    ("method", "path", "lfs"),
    [("HEAD", PATH, True), ("GET", LARGE, True), ("GET", PATH, False)],
    ids=["HEAD", "storage", "GET"],
)
@pytest.mark.parametrize(
    "fault",
    [hub_faults.status(503), hub_faults.status(429, Retry_After="0"), hub_faults.cut(50_000)],
    ids=["503", "429", "reset"],
)
def test_a_retry_succeeds(fault: Fault, method: str, path: str, lfs: bool, hub: Hub) -> None:
    hub.repo.lfs = lfs
    hub.repo.commit({FILE: DATA})
    hub.double.plant(method, path, fault)
    assert hub.fetch().read_bytes() == DATA


def test_a_change_is_refused_until_it_is_accepted(hub: Hub) -> None:
    lock = hub.home / "zoo.lock"
    recorded = hub.fetch(sha256="")
    assert lockfile.read(lock)[URI].sha256 == SHA256
    hub.repo.commit({FILE: OTHER})
    assert hub.fetch(sha256="") == recorded, "the cache has the recorded file, so no request is sent"
    recorded.unlink()
    error = hub.refused(sha256="")
    assert "has changed since 20" in error
    assert "--update-lock" in error
    assert hub.fetch(URI, "", "update").read_bytes() == OTHER
    assert hub.fetch(sha256="").read_bytes() == OTHER


# --- the command line --------------------------------------------------------------------------------------------

ENTRIES = """
celo:
  family: celo
  summary: A double.
  license: MIT
  trained: false
  sources: [{uri: "hf://amoudgl/celo/theta.state", format: flax-msgpack, sha256: %s}]
velo:
  family: velo
  summary: A double.
  license: MIT
  trained: false
  sources:
    - {uri: "gs://gresearch/velo/params", format: flax-params}
    - {uri: "gs://gresearch/velo/config.gin", format: gin}
  behavior: {ff_mult: 100.0}
"""


@pytest.fixture
def registry(hub: Hub, tmp_path: Path) -> Path:
    """A registry whose files are published on the doubles."""
    celo = write_theta(tmp_path, "celo")
    params = write_params(tmp_path)
    hub.double.create("amoudgl/celo", {FILE: celo.read_bytes()})
    hub.server.files |= {
        "/gresearch/velo/params": params.read_bytes(),
        "/gresearch/velo/config.gin": (tmp_path / "config.gin").read_bytes(),
    }
    path = tmp_path / "registry.yaml"
    path.write_text(ENTRIES % hashlib.sha256(celo.read_bytes()).hexdigest())
    for file in (celo, params, tmp_path / "config.gin"):
        file.unlink()
    return path


def test_convert_celo_end_to_end(hub: Hub, registry: Path) -> None:
    done = hub.python(CLI, str(registry), "convert", "celo", "--no-verify", "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == "Warning: parity was not checked: --no-verify.\n"
    values = json.loads(done.stdout)
    assert (values["name"], values["source"]["uri"]) == ("celo", "hf://amoudgl/celo/theta.state")
    assert artifact.read(hub.cwd / "zoo" / "celo").family == "celo"
    assert not (hub.home / "zoo.lock").exists()
    done = hub.python(CLI, str(registry), "convert", "celo", "--no-verify", "--offline", "-q", "--out", "again")
    assert (done.returncode, done.stdout, done.stderr) == (0, "again\n", "")


def test_loading_by_name_is_silent(hub: Hub, registry: Path) -> None:
    code = CLI.replace("from pylo_zoo.cli import main", "import pylo_zoo").replace(
        "main(sys.argv[2:])", "print(pylo_zoo.load(sys.argv[2]).family)"
    )
    done = hub.python(code, str(registry), "celo")
    assert (done.returncode, done.stdout, done.stderr) == (0, "celo\n", "")


def test_convert_velo_fetches_and_records_the_gin_file_too(hub: Hub, registry: Path) -> None:
    done = hub.python(CLI, str(registry), "convert", "velo", "--no-verify")
    assert done.returncode == 0, done.stderr
    notes = [line for line in done.stderr.splitlines() if "recorded" in line]
    assert len(notes) == 2
    pins = lockfile.read(hub.home / "zoo.lock")
    assert set(pins) == {"gs://gresearch/velo/params", "gs://gresearch/velo/config.gin"}
    folder = hub.home / "sources" / pins["gs://gresearch/velo/params"].sha256
    assert sorted(path.name for path in folder.iterdir()) == ["config.gin", "params"]
    loaded = artifact.read(hub.cwd / "zoo" / "velo")
    assert loaded.source.uri == "gs://gresearch/velo/params"
    assert loaded.behavior.use_bugged_loss_features is False, "as its gin file says"
    # a change of either file is refused once the cache no longer has it
    hub.server.files["/gresearch/velo/config.gin"] += b"\n"
    again = ("convert", "velo", "--no-verify", "--force", "-q")
    assert hub.python(CLI, str(registry), *again).returncode == 0, "the cache still has the recorded file"
    for path in (hub.home / "sources").rglob("config.gin"):
        path.unlink()
    done = hub.python(CLI, str(registry), *again)
    error, hint = done.stderr.splitlines()
    assert error.startswith("Error: gs://gresearch/velo/config.gin has changed since 20")
    assert "--update-lock" in hint
    assert hub.python(CLI, str(registry), *again, "--update-lock").returncode == 0
    assert lockfile.read(hub.home / "zoo.lock") != pins
    assert hub.python(CLI, str(registry), *again, "--offline").returncode == 0


def test_an_address_as_source(hub: Hub, registry: Path) -> None:
    for source in ("gs://gresearch/velo/params", f"{hub.server.url}/gresearch/velo/params?X=sekret"):
        done = hub.python(CLI, str(registry), "convert", "velo", "--source", source, "--no-verify", "--force", "-q")
        assert done.returncode == 0, done.stderr
        loaded = artifact.read(hub.cwd / "zoo" / "velo")
        assert loaded.source.uri == source.partition("?")[0]
        assert loaded.behavior.use_bugged_loss_features is False, "the gin file was fetched too"
    del hub.server.files["/gresearch/velo/config.gin"]
    words = ("--source", f"{hub.server.url}/gresearch/velo/params", "--no-verify", "--out", "bare", "--update-lock")
    done = hub.python(CLI, str(registry), "convert", "velo", *words)
    assert done.returncode == 0, done.stderr
    assert "has no config.gin" in done.stderr
    assert [path.name for path in (hub.home / "sources" / loaded.source.sha256).iterdir()] == ["params"]


def test_an_unreachable_hub_is_a_two_line_error(hub: Hub, registry: Path) -> None:
    done = hub.python(CLI, str(registry), "convert", "velo", PYLO_ZOO_GCS_ENDPOINT="http://127.0.0.1:9")
    error, hint = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (1, "")
    assert error.startswith("Error: gs://gresearch/velo/params cannot be reached")
    for way in (
        "http://127.0.0.1:9/gresearch/velo/params; config.gin next to it, into one directory",
        "`pylo-zoo convert velo --source params --out zoo/velo`",
    ):
        assert way in hint
    assert not (hub.cwd / "zoo").exists()
