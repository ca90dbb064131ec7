"""The Hub double behaves like the Hub for huggingface_hub."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import hub_client
import hub_double
import huggingface_hub
import pytest
from hub_client import httpx
from hub_double import TOKEN, HubDouble, User
from hub_files import FILES, WEIGHTS, commit
from huggingface_hub import CommitOperationDelete, HfApi, constants, errors
from huggingface_hub.utils import close_session, get_session

READER = "hf_sekretreader"
STRANGER = "hf_sekretstranger"


@pytest.fixture
def api(hub: HubDouble) -> HfApi:
    hub.users[READER] = User("bob", ("org",), role="read")
    hub.users[STRANGER] = User("eve")
    return HfApi()


# --- the client in this process ----------------------------------------------------------------------------------


def test_the_client_is_connected_to_the_double(hub: HubDouble) -> None:
    assert huggingface_hub.is_offline_mode() is False
    assert HfApi().endpoint == hub.url
    assert huggingface_hub.get_token() == TOKEN
    assert huggingface_hub.hf_hub_url("org/name", "x").startswith(hub.url)
    hub.create("org/name")
    assert huggingface_hub.model_info("org/name").sha == hub.repos["org/name"].head, "by the client's own HfApi too"
    assert str(hub.requests("GET", "/api/models/")[0]) == "GET /api/models/org/name"


def test_an_earlier_session_is_closed_and_the_settings_are_restored(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:

    before = get_session()
    offline, endpoint = constants.HF_HUB_OFFLINE, constants.ENDPOINT
    with hub_double.serving() as hub, monkeypatch.context() as patch:
        hub_client.connect(hub, patch, tmp_path)
        assert before.is_closed
        assert HfApi().whoami()["name"] == "alice"
    close_session()
    assert (constants.HF_HUB_OFFLINE, constants.ENDPOINT) == (offline, endpoint) != (False, hub.url)


def test_a_process_is_connected_by_its_environment(hub: HubDouble, tmp_path: Path) -> None:
    code = "import huggingface_hub as h; print(h.whoami()['name'], h.hf_hub_download('org/name', 'config.json'))"
    hub.create("org/name", FILES)
    env = hub.environment(tmp_path / "hf-home")
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True, timeout=60)
    name, path = done.stdout.split()
    assert name == "alice"
    assert Path(path).read_bytes() == FILES["config.json"]
    assert Path(path).is_relative_to(tmp_path)


# --- writing -----------------------------------------------------------------------------------------------------


def test_whoami(api: HfApi) -> None:
    me = api.whoami()
    assert (me["name"], [org["name"] for org in me["orgs"]]) == ("alice", ["org", "amoudgl"])
    assert me["auth"]["accessToken"]["role"] == "write"
    with pytest.raises(errors.HfHubHTTPError, match="Invalid user token") as caught:
        api.whoami(token="hf_unknown")
    assert caught.value.response.status_code == 401


def test_create_a_repository(hub: HubDouble, api: HfApi) -> None:
    url = api.create_repo("org/name", private=True)
    assert (url, url.repo_id) == (f"{hub.url}/org/name", "org/name")
    assert hub.repos["org/name"].private
    assert list(hub.repos["org/name"].files()) == [".gitattributes"]
    with pytest.raises(errors.HfHubHTTPError) as caught:
        api.create_repo("org/name")
    assert caught.value.response.status_code == 409
    assert api.create_repo("org/name", exist_ok=True) == url
    assert api.create_repo("mine").repo_id == "alice/mine"
    for token, name in ((TOKEN, "other/name"), (READER, "bob/name")):
        with pytest.raises(errors.HfHubHTTPError) as caught:
            api.create_repo(name, token=token)
        assert caught.value.response.status_code == 403
    api.delete_repo("org/name")
    assert not api.repo_exists("org/name")


def test_commit_and_read_again(hub: HubDouble, api: HfApi) -> None:
    repo = hub.create("org/name")
    first = repo.head
    commit_info = commit(api, parent_commit=first, commit_description="why")
    assert (repo.head, commit_info.oid) == (commit_info.oid, commit_info.oid)
    assert repo.files() == {".gitattributes": repo.files()[".gitattributes"], **FILES}
    assert hub.store == {hashlib.sha256(WEIGHTS).hexdigest(): WEIGHTS}
    last = repo.history()[0]
    assert (last.parent, last.title, last.message, last.author) == (first, "A message", "why", "alice")
    info = api.model_info("org/name", files_metadata=True)
    assert info.siblings
    of = {sibling.rfilename: sibling for sibling in info.siblings}
    weights = of["model.safetensors"]
    assert weights.lfs
    assert (weights.size, weights.lfs["sha256"]) == (len(WEIGHTS), hashlib.sha256(WEIGHTS).hexdigest())
    assert of["config.json"].lfs is None
    assert info.tags == ["pylo-zoo", "learned-optimizer", "base_model:org/base", "license:mit"]
    assert info.card_data
    assert info.card_data["license"] == "mit"
    assert [at.title for at in api.list_repo_commits("org/name")] == ["A message", "initial commit"]
    api.create_commit("org/name", [CommitOperationDelete("config.json")], commit_message="less")
    assert "config.json" not in repo.files()
    assert repo.files(commit_info.oid)["config.json"] == FILES["config.json"]
    with pytest.raises(errors.EntryNotFoundError):
        api.create_commit("org/name", [CommitOperationDelete("config.json")], commit_message="less")


def test_ids_equal_those_of_git(hub: HubDouble) -> None:
    blob = hub.create("org/name", {"a.txt": b"hello\n"}).tree()["a.txt"]
    assert blob.oid == "ce013625030ba8dba906f756967f9e9ca394464a", "like `echo hello | git hash-object --stdin`"


def test_unchanged_files_make_no_commit(hub: HubDouble, api: HfApi) -> None:
    repo = hub.create("org/name", FILES)
    assert commit(api).oid == repo.head
    assert len(repo.commits) == 1
    assert hub.requests("POST", "/commit/") == []
    changed = commit(api, {**FILES, "config.json": b"{}"})
    sent = hub.requests("POST", "/commit/")[0].body
    assert changed.oid == repo.head
    assert b"config.json" in sent
    assert b"README.md" not in sent


def test_a_stale_parent_is_refused(hub: HubDouble, api: HfApi) -> None:
    repo = hub.create("org/name")
    hub.on("POST", "/commit/", lambda request: repo.commit({"other.txt": b"sooner"}), times=1)
    before = repo.head
    with pytest.raises(errors.HfHubHTTPError, match="A commit has happened since") as caught:
        commit(api, parent_commit=before)
    assert caught.value.response.status_code == 412
    assert "config.json" not in repo.files()
    commit(api, parent_commit=repo.head)
    assert {"other.txt", "config.json"} <= set(repo.files())


def test_one_of_many_concurrent_commits_wins(hub: HubDouble, api: HfApi) -> None:
    repo = hub.create("org/name")
    before, outcomes = repo.head, []

    def publish(number: int) -> None:
        try:
            commit(api, {f"{number}.txt": b"x"}, parent_commit=before)
            outcomes.append(200)
        except errors.HfHubHTTPError as error:
            outcomes.append(error.response.status_code)

    threads = [threading.Thread(target=publish, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == [200, 412, 412, 412]
    assert len(repo.commits) == 2


@pytest.mark.parametrize("readme", ["---\na: [\n---\n", "---\nmodel-index: {}\n---\n", "---\n- a\n---\n"])
def test_bad_metadata_is_refused(readme: str, hub: HubDouble, api: HfApi) -> None:
    repo = hub.create("org/name")
    with pytest.raises(ValueError, match=r"Invalid metadata in README\.md"):
        commit(api, {"README.md": readme.encode()})
    assert len(repo.commits) == 1


def test_tags_and_branches(hub: HubDouble, api: HfApi) -> None:
    repo = hub.create("org/name", FILES)
    first = repo.head
    api.create_tag("org/name", tag="v1", tag_message="the first")
    api.create_branch("org/name", branch="dev", revision="v1")
    commit(api, {"config.json": b"{}"}, revision="dev")
    refs = api.list_repo_refs("org/name")
    assert [(ref.ref, ref.target_commit) for ref in refs.tags] == [("refs/tags/v1", first)]
    assert {ref.name: ref.target_commit for ref in refs.branches} == repo.branches
    assert repo.head == first != repo.branches["dev"]
    assert repo.files("dev")["config.json"] == b"{}"
    for again in (lambda: api.create_tag("org/name", tag="v1"), lambda: api.create_branch("org/name", branch="dev")):
        with pytest.raises(errors.HfHubHTTPError) as caught:
            again()
        assert caught.value.response.status_code == 409
    with pytest.raises(errors.BadRequestError):
        commit(api, {"config.json": b"{}"}, revision="v1")
    with pytest.raises(errors.RevisionNotFoundError):
        api.create_tag("org/name", tag="v2", revision="nowhere")
    api.delete_tag("org/name", tag="v1")
    api.delete_branch("org/name", branch="dev")
    with pytest.raises(errors.RevisionNotFoundError):
        api.delete_tag("org/name", tag="v1")
    with pytest.raises(errors.RevisionNotFoundError):
        api.model_info("org/name", revision="dev")


def test_a_pull_request(hub: HubDouble, api: HfApi) -> None:
    repo = hub.create("org/name", FILES)
    before = repo.head
    commit_info = commit(api, {"config.json": b"{}"}, create_pr=True, token=STRANGER)
    assert (commit_info.pr_num, commit_info.pr_revision) == (1, "refs/pr/1")
    assert repo.head == before
    assert repo.pulls[1].author == "eve"
    more = commit(api, {"new.txt": b"x"}, revision="refs/pr/1", parent_commit=commit_info.oid)
    assert repo.files("refs/pr/1") == {**FILES, "config.json": b"{}", "new.txt": b"x"}
    pulls = api.list_repo_refs("org/name", include_pull_requests=True).pull_requests
    assert pulls
    assert [(ref.ref, ref.target_commit) for ref in pulls] == [("refs/pr/1", more.oid)]
    repo.commit({"other.txt": b"y"})
    repo.merge(1)
    assert repo.files() == {**FILES, "config.json": b"{}", "new.txt": b"x", "other.txt": b"y"}


def test_write_permissions(hub: HubDouble, api: HfApi) -> None:
    repo = hub.create("org/name")
    for token, status in ((READER, 403), (STRANGER, 403), (False, 401), ("hf_unknown", 401)):
        with pytest.raises(errors.HfHubHTTPError) as caught:
            commit(api, {"a.txt": b"x"}, token=token)
        assert caught.value.response.status_code == status
    hub.users["hf_fine"] = User("bob", ("org",), role="fineGrained", scopes=("org",))
    commit(api, token="hf_fine")
    assert len(repo.commits) == 2


def test_a_commit_needs_its_large_files(hub: HubDouble, api: HfApi) -> None:
    repo = hub.create("org/name")
    hub.on("POST", "/commit/", lambda request: hub.store.clear())
    with pytest.raises(errors.BadRequestError, match=r"model.safetensors is not in the storage"):
        commit(api)
    assert len(repo.commits) == 1


# --- reading -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("private", "gated"), [(True, False), (False, True)])
def test_read_permissions(private: bool, gated: bool, hub: HubDouble, api: HfApi) -> None:
    repo = hub.create("org/name", FILES, private=private, gated=gated)
    error: Any = errors.RepositoryNotFoundError if private else errors.GatedRepoError
    for token, status in ((STRANGER, 404 if private else 403), (False, 401)):
        with pytest.raises(error) as caught:
            api.hf_hub_download("org/name", "config.json", token=token)
        assert caught.value.response.status_code == status
        if private:
            with pytest.raises(errors.RepositoryNotFoundError):
                api.model_info("org/name", token=token)
    assert Path(api.hf_hub_download("org/name", "config.json", token=READER)).read_bytes() == FILES["config.json"]
    if gated:
        repo.granted.add("eve")
        api.auth_check("org/name", token=STRANGER)


def test_missing_repositories_and_files(hub: HubDouble, api: HfApi) -> None:
    hub.create("org/name", FILES)
    with pytest.raises(errors.RepositoryNotFoundError):
        api.hf_hub_download("org/nothing", "config.json")
    with pytest.raises(errors.RevisionNotFoundError):
        api.hf_hub_download("org/name", "config.json", revision="v9")
    with pytest.raises(errors.RemoteEntryNotFoundError):
        api.hf_hub_download("org/name", "nothing.json")
    with pytest.raises(errors.HfHubHTTPError, match="The double has no answer to GET /api/models"):
        list(api.list_models())


@pytest.mark.parametrize("path", ["config.json", "model.safetensors", "sub/ö ä.txt"])
@pytest.mark.parametrize("rev", [None, "v1", "refs/pr/1", "id"])
def test_a_download(path: str, rev: str | None, hub: HubDouble, api: HfApi) -> None:
    files = {**FILES, "sub/ö ä.txt": b"text"}
    repo = hub.create("org/name", files)
    repo.tags["v1"] = repo.head
    repo.record({}, (), "main", "pull", "", "eve", as_pull=True)
    at = Path(api.hf_hub_download("org/name", path, revision=repo.head if rev == "id" else rev))
    assert at.read_bytes() == files[path]
    assert at.parents[path.count("/")].name == repo.resolve("main" if rev in (None, "id") else rev)
    assert at.is_relative_to(constants.HF_HUB_CACHE)
    large = hub.requests("GET", "^/[0-9a-f]{64}$")
    assert [request.origin for request in large] == (["cdn"] if path == "model.safetensors" else [])
    assert not any("authorization" in request.headers for request in large)


def test_a_snapshot_and_a_listing(hub: HubDouble, api: HfApi) -> None:
    repo = hub.create("org/name", {**FILES, "sub/x.txt": b"x"})
    folder = Path(api.snapshot_download("org/name"))
    assert {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()} == repo.files()
    assert {entry.path for entry in api.list_repo_tree("org/name")} == {*FILES, "sub"}
    assert {entry.path for entry in api.list_repo_tree("org/name", "sub")} == {"sub/x.txt"}
    result = {entry.path: entry for entry in api.get_paths_info("org/name", ["model.safetensors", "sub", "nothing"])}
    assert set(result) == {"model.safetensors", "sub"}
    weights = result["model.safetensors"]
    assert isinstance(weights, huggingface_hub.RepoFile)
    blob = repo.tree()["model.safetensors"]
    assert weights.lfs
    assert (weights.blob_id, weights.lfs.sha256, weights.lfs.pointer_size) == (blob.oid, blob.sha256, len(blob.pointer))


@pytest.mark.parametrize("path", ["config.json", "model.safetensors"])
def test_a_range(path: str, hub: HubDouble) -> None:
    hub.create("org/name", FILES)
    data = FILES[path]
    url = f"{hub.url}/org/name/resolve/main/{path}"
    for byte_range, status, body in (("2-", 206, data[2:]), ("2-4", 206, data[2:5]), (f"{len(data)}-", 416, b"")):
        got = httpx.get(url, headers={"Range": f"bytes={byte_range}"}, follow_redirects=True)
        assert (got.status_code, got.content) == (status, body)
    assert httpx.get(hub.cdn_url + "/" + hashlib.sha256(WEIGHTS).hexdigest()).status_code == 403, (
        "the address is not signed"
    )


def test_a_token_sent_to_the_storage_is_detected() -> None:
    with pytest.raises(AssertionError, match="A token went to the storage"), hub_double.serving() as hub:
        httpx.get(f"{hub.cdn_url}/x", headers={"Authorization": "Bearer x"})
