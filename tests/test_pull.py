"""Pulling and loading artifacts from the Hub double: by every kind of name, with every pin, online and offline."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import published
import pytest
import torch
from commands import Capture, refused, run
from hub_double import HubDouble, Repo
from published import DOWNLOADED
from pulling import ID, STRANGER, URI, directory, publish_other_weights, sha256
from trees import write_theta

import pylo_zoo
from pylo_zoo import registry, weights
from pylo_zoo.errors import ZooError
from pylo_zoo.fetch import Access, FetchError, Forbidden, NotFound, lockfile
from pylo_zoo.optim import CELO2, VeLO, param_groups
from pylo_zoo.optim.contract import ZooOptimizer

pytestmark = pytest.mark.usefixtures("in_an_empty_directory")


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Sets the registry of this test to a text."""

    def become(text: str) -> None:
        path = tmp_path / "registry.yaml"
        path.write_text(text)
        monkeypatch.setattr(registry, "_default_path", lambda: path)
        registry._all_entries.cache_clear()
        registry._load.cache_clear()

    yield become
    registry._all_entries.cache_clear()
    registry._load.cache_clear()


# --- names -------------------------------------------------------------------------------------------------------


def test_the_first_pull(repo: Repo, zoo_home: Path, access: Access, messages: list[str]) -> None:
    checkout = weights.pull(ID, access=access)
    assert (checkout.commit, checkout.newer, checkout.fetched) == (repo.head, None, True)
    assert checkout.directory == directory(zoo_home, repo.head)
    assert sorted(path.name for path in checkout.directory.iterdir()) == sorted([*DOWNLOADED, "SHA256SUMS"])
    assert {name: repo.files()[name] for name in DOWNLOADED} == {
        name: (checkout.directory / name).read_bytes() for name in DOWNLOADED
    }
    assert checkout.files == {name: sha256(repo.files()[name]) for name in DOWNLOADED}
    assert messages == [f"{URI} is {repo.head[:12]}: recorded in {zoo_home / 'zoo.lock'}."]
    again = weights.pull(ID, access=access)
    assert (again.fetched, again.files, len(messages)) == (False, checkout.files, 1)


@pytest.mark.parametrize(
    ("name", "revision"),
    [
        ("{id}", None),
        ("{id}@{tag}", None),
        ("{id}", "{tag}"),
        ("hf://{id}", None),
        ("hf://{id}@{branch}", None),
        ("hf://{id}", "{branch}"),
        ("hf://{id}@{commit}", None),
        ("hf://{id}", "{commit}"),
        ("hf://{id}@refs/pr/1", "refs/pr/1"),
    ],
)
def test_every_spelling_of_a_repository(name: str, revision: str | None, repo: Repo, access: Access) -> None:
    first, main = repo.head, publish_other_weights(repo)
    repo.tags["v1"] = repo.branches["feature/x"] = first
    repo.record({}, [], "main", "A proposal", "", "eve", as_pull=True)
    words = {"id": ID, "tag": "v1", "branch": "feature/x", "commit": first}
    checkout = weights.pull(name.format(**words), revision=revision and revision.format(**words), access=access)
    newest = {"{id}": main, "hf://{id}": main, "hf://{id}@refs/pr/1": repo.pulls[1].head}
    assert checkout.commit == (newest.get(name, first) if revision in (None, "refs/pr/1") else first)


@pytest.mark.parametrize(
    ("name", "revision", "complaint"),
    [
        ("org/elo@v1", "v2", "names a revision other than v2"),
        ("org/elo/model.safetensors", None, "does not exist"),
        ("org/../elo", None, "is not the name of a repository on the Hub"),
        ("org/elo@", None, "'' is not a valid revision"),
        ("org/elo@../x", None, "'../x' is not a valid revision"),
        ("org/elo", "a..b", "'a..b' is not a valid revision"),
        ("hf://elo", None, "is not the name of a repository"),
        ("", None, "weights is ''"),
        ("nosuch", None, "Unknown checkpoint 'nosuch'"),
        ("celo", "v1", "celo is a registry entry, whose revision is fixed"),
    ],
)
def test_invalid_names(name: str, revision: str | None, complaint: str, hub: HubDouble, access: Access) -> None:
    with pytest.raises(ZooError, match=complaint):
        weights.pull(name, revision=revision, access=access)
    assert hub.log == []


def test_pull_into_a_directory_and_load_from_it(repo: Repo, access: Access, tmp_path: Path) -> None:
    out = tmp_path / "zoo" / "elo"
    checkout = weights.pull(ID, out=out, access=access)
    assert checkout.directory == out
    assert sorted(path.name for path in out.iterdir()) == sorted(DOWNLOADED)
    before, count = published.tree(out), len(repo.commits)
    with pytest.raises(ZooError, match="already exists"):
        weights.pull(ID, out=out, access=access)
    (out / "parity.json").unlink()
    weights.pull(ID, out=out, force=True, access=access)
    assert (published.tree(out), len(repo.commits)) == (before, count)
    local = weights.pull(str(out), access=access)
    assert (local.directory, local.commit, local.files) == (out, None, checkout.files)
    assert weights.pull(str(out), out=tmp_path / "copy", access=access).files == checkout.files


@pytest.mark.parametrize("force", [False, True])
def test_a_directory_with_other_files_is_not_changed(
    force: bool, repo: Repo, hub: HubDouble, access: Access, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years")
    with pytest.raises(ZooError, match=r"holds files that are not part of an artifact: thesis\.tex"):
        weights.pull(ID, out=tmp_path / "mine", force=force, access=access)
    assert hub.log == []


def test_a_registry_entry_with_a_published_artifact(
    repo: Repo, hub: HubDouble, zoo: Callable[[str], None], access: Access, messages: list[str]
) -> None:
    hashes = {name: sha256(data) for name, data in repo.files().items() if name.startswith(("c", "m", "parity"))}
    pins = {name: hashes[name] for name in DOWNLOADED if name in hashes}
    about = f"pinned: {{family: elo, summary: A., license: MIT, trained: true, artifact: {{uri: '{URI}@{repo.head}', "
    zoo(f"{about}sha256: {json.dumps(pins)}}}}}")
    first = repo.head
    publish_other_weights(repo)
    assert weights.pull("pinned", access=access).commit == first
    count = len(hub.log)
    assert pylo_zoo.load("pinned").fingerprint == weights.pull("pinned", access=access).artifact.fingerprint
    assert len(hub.log) == count, "a commit is already resolved"
    zoo(f"{about}sha256: {json.dumps({**pins, 'config.json': 'a' * 64})}}}}}")
    with pytest.raises(FetchError, match=r"the lock file and the registry have different sha256 of config\.json"):
        weights.pull("pinned", access=access)
    lockfile.location().unlink()
    with pytest.raises(FetchError, match="is not the expected file: sha256"):
        weights.pull("pinned", access=access)
    assert all("moved" not in line for line in messages)


def test_a_registry_entry_with_only_a_checkpoint(
    hub: HubDouble, zoo: Callable[[str], None], access: Access, tmp_path: Path, messages: list[str]
) -> None:
    data = write_theta(tmp_path, "elo", scale=0.1).read_bytes()
    hub.create("amoudgl/elo", {"theta.state": data})
    entry = "{family: elo, summary: A., license: MIT, trained: true, sources: [{uri: 'hf://amoudgl/elo/theta.state', "
    zoo(f"mine: {entry}format: flax-msgpack, sha256: {sha256(data)}}}]}}")
    checkout = weights.pull("mine", access=access)
    assert (checkout.commit, checkout.artifact.name, checkout.artifact.source.license) == (None, "mine", "MIT")
    count = len(hub.log)
    assert weights.pull("hf://amoudgl/elo", access=access).directory == checkout.directory, "from the registry"
    assert messages[-1] == "hf://amoudgl/elo is the registry entry mine; converting it."
    assert len(hub.log) == count
    offline = dataclasses.replace(access, offline=True)
    assert weights.pull("mine", out=tmp_path / "out", access=offline).files == checkout.files


@pytest.mark.parametrize("family", ["velo", "celo2"])
def test_an_optimizer_by_address(family: str, hub: HubDouble) -> None:
    classes: dict[str, Callable[..., ZooOptimizer]] = {"velo": functools.partial(VeLO, num_steps=10), "celo2": CELO2}
    repo = hub.create("org/theirs", published.files(family))
    model = torch.nn.Linear(3, 2)
    optimizer = classes.pop(family)(param_groups(model), weights=f"hf://org/theirs@{repo.head}")
    loss = model(torch.ones(1, 3)).sum()
    loss.backward()
    optimizer.step(loss=loss)
    assert pylo_zoo.load("hf://org/theirs").family == family
    (other,) = classes.values()
    with pytest.raises(ZooError, match="cannot run"):
        other(param_groups(model), weights="hf://org/theirs")


def test_read_permissions(hub: HubDouble, repo: Repo, access: Access) -> None:
    closed = hub.create("org/closed", published.files(), private=True)
    hub.create("org/gated", published.files(), gated=True)
    stranger = dataclasses.replace(access, token=STRANGER)
    with pytest.raises(NotFound, match="the repository org/closed does not exist or is private") as error:
        pylo_zoo.load("hf://org/closed", access=stranger)
    assert "HF_TOKEN" in error.value.hint
    with pytest.raises(Forbidden, match="is gated") as error:
        pylo_zoo.load("hf://org/gated", access=stranger)
    assert "Accept its terms on the page of org/gated" in error.value.hint
    with pytest.raises(Forbidden, match=r"access denied \(401"):
        pylo_zoo.load(URI, access=dataclasses.replace(access, token="hf_sekretwrong"))
    for name in ("closed", "gated"):
        assert pylo_zoo.load(f"hf://org/{name}", access=access).family == "elo", "by HF_TOKEN"
    assert pylo_zoo.load(f"hf://org/closed@{closed.head}", access=stranger).family == "elo", (
        "the cache needs no request"
    )
    assert f"Bearer {STRANGER}" in {request.headers.get("authorization") for request in hub.log}


# --- the command line --------------------------------------------------------------------------------------------


def test_the_output_of_the_command(
    repo: Repo, capsys: Capture, zoo_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run("pull", ID) == 0
    out, err = capsys.readouterr()
    place = directory(zoo_home, repo.head)
    assert out.splitlines() == [
        f"elo (elo) at {repo.head[:12]}: pulled, 5 files verified.",
        "  parity   passed before it was published",
        "  license  unknown",
        "  from     file:theta.state",
        f"  in       {place}",
    ]
    assert err == f"{URI} is {repo.head[:12]}: recorded in {zoo_home / 'zoo.lock'}.\n"
    assert run("pull", ID) == 0
    assert "in the cache, 5 files verified" in capsys.readouterr().out
    assert run("pull", ID, "-q") == 0
    assert capsys.readouterr() == (f"{place}\n", ""), "one line, whatever its length"
    assert run("pull", ID, "--json", "--offline") == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {
        "directory": str(place),
        "name": "elo",
        "family": "elo",
        "license": "unknown",
        "commit": repo.head,
        "newer": None,
        "parity": "passed",
        "source": {"uri": "file:theta.state", "sha256": pylo_zoo.load(place).source.sha256},
        "files": {name: sha256(repo.files()[name]) for name in DOWNLOADED},
        "fetched": False,
    }
    assert err == f"Offline: using {URI} at the recorded commit {repo.head[:12]}.\n"
    assert run("pull", place) == 0
    assert capsys.readouterr().out.startswith("elo (elo): a local directory, 5 files verified.\n")


def test_the_output_of_the_command_for_a_checkpoint(hub: HubDouble, capsys: Capture, tmp_path: Path) -> None:
    hub.create("org/theirs", {"theta.state": write_theta(tmp_path, "elo", scale=0.1).read_bytes()})
    assert run("pull", "org/theirs") == 0
    out, err = capsys.readouterr()
    assert out.startswith("elo (elo): converted locally, 2 files verified.\n")
    assert "parity   not checked; run `pylo-zoo verify hf://org/theirs`\n" in out
    assert "its parity was not checked" in err


def test_exit_statuses(repo: Repo, hub: HubDouble, capsys: Capture, tmp_path: Path) -> None:
    assert "no revision v9" in refused(capsys, "pull", f"{ID}@v9")
    assert "the repository org/nosuch does not exist" in refused(capsys, "pull", "org/nosuch", "-q")
    assert "offline mode is on" in refused(capsys, "pull", ID, "--offline", "--json")
    assert "access denied (401)" in refused(capsys, "pull", ID, "--token", "hf_sekretwrong")
    assert run("pull") == run("pull", ID, "--nosuch") == run("pull", ID, ID) == 2
    capsys.readouterr()
    out, lock = tmp_path / "out", tmp_path / "own.lock"
    assert run("pull", ID, "--revision", "main", "--out", out, "--lock", lock, "-q") == 0
    assert capsys.readouterr() == (f"{out}\n", "")
    assert list(lockfile.read_all(lock).repositories) == [f"{URI}@main"]
    assert "already exists" in refused(capsys, "pull", ID, "--out", out)
    second = publish_other_weights(repo)
    assert run("pull", ID, "--revision", "main", "--out", out, "-f", "--lock", lock, "--update-lock", "--json") == 0
    assert json.loads(capsys.readouterr().out)["commit"] == second
    assert out.is_dir()


@pytest.mark.parametrize("word", ["-h", "--help"])
def test_help(word: str, capsys: Capture) -> None:
    assert run("pull", word) == 0
    out = capsys.readouterr().out
    for option in ("--revision", "--out", "--force", "--token", "--offline", "--lock", "--update-lock", "--json", "-q"):
        assert option in out
    assert all(len(line) <= 80 for line in out.splitlines())
