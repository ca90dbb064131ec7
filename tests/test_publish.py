"""Publishing to the Hub double with the real client: one commit that is verified, or an error and no partial state."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import hub_faults
import pytest
import yaml
from hub_double import TOKEN, HubDouble, User
from publishing import REPO, Publisher, holds, light, other, plan, proven, published, watched_publisher, words, writes

from pylo_zoo.errors import ZooError
from pylo_zoo.fetch import Access, Conflict, Forbidden, Unavailable
from pylo_zoo.publish import Options, Published, PublishPlan, publish
from pylo_zoo.publish.push import MARK, send

pytest.importorskip("jax")


@pytest.fixture
def publisher(hub: HubDouble) -> Iterator[Publisher]:
    yield from watched_publisher(hub)


# --- outcomes ----------------------------------------------------------------------------------------------------


def test_the_first_publication(hub: HubDouble, publisher: Publisher) -> None:
    result = publisher.send(plan(), tag="v1")
    repo = hub.repos[REPO]
    assert holds(repo, plan())
    assert len(plan().files) == 7
    first, mine = reversed(repo.history())
    assert (mine.parent, mine.id) == (first.id, result.commit)
    assert (mine.title, mine.message) == ("Publish celo-adam with pylo-zoo", f"{MARK}{plan().digest}")
    assert repo.tags == {"v1": result.commit}
    assert result.url == f"{hub.url}/{REPO}/tree/{result.commit}"
    assert (result.created, result.exists, result.private, result.unchanged) == (True, False, False, False)
    assert set(result.changes.values()) == {"added"}
    assert {name: blob.sha256 for name, blob in repo.tree().items() if name != ".gitattributes"} == plan().hashes
    front = yaml.safe_load(repo.files()["README.md"].split(b"---\n")[1])
    assert (front["license"], front["library_name"]) == ("mit", "pylo-zoo")
    assert "model-index" in front
    assert len(hub.requests("POST", "/commit/")) == 1
    assert publisher.messages == publisher.sleeps == []


def test_a_directory(hub: HubDouble, publisher: Publisher, tmp_path: Path) -> None:
    result = publish(proven(tmp_path), REPO, license="MIT", access=publisher.access)
    assert holds(hub.repos[REPO], plan())
    assert result.plan.digest == plan().digest


def test_the_second_run_sends_nothing(hub: HubDouble, publisher: Publisher) -> None:
    first = publisher.send(plan(), tag="v1")
    hub.log.clear()
    again = publisher.send(plan(), tag="v1")
    assert again.unchanged
    assert (again.commit, again.url, again.created) == (first.commit, first.url, False)
    assert writes(hub) == []
    assert hub.repos[REPO].tags == {"v1": first.commit}


def test_a_repeated_proof_is_not_a_new_version(hub: HubDouble, publisher: Publisher) -> None:
    publisher.send(plan())
    later = plan().files["parity.json"].replace(b'"created": "20', b'"created": "21')
    drawn = {"parity.json": later, "parity.png": b"another library", "parity.html": b"another library"}
    assert later != plan().files["parity.json"]
    hub.log.clear()
    again = publisher.send(replace(plan(), files={**plan().files, **drawn}))
    assert again.unchanged
    assert writes(hub) == []
    changed = replace(plan(), files={**plan().files, "parity.json": later.replace(b"passed", b"PASSED")})
    assert "--exist-ok" in publisher.refused(ZooError, changed)


def test_private(hub: HubDouble, publisher: Publisher) -> None:
    assert publisher.send(private=True).private is True
    assert hub.repos[REPO].private
    assert publisher.messages == []
    hub.create("org/open")
    open_plan = replace(light(), repo=replace(light().repo, id="org/open"))
    assert "org/open is public" in publisher.refused(ZooError, open_plan, private=True)
    assert len(hub.repos["org/open"].commits) == 1


def test_a_branch_and_a_tag_of_one_name_are_refused(hub: HubDouble, publisher: Publisher) -> None:
    publisher.send(tag="v1")
    assert "already has a tag v1" in publisher.refused(ZooError, other(1), branch="v1", exist_ok=True)
    hub.repos[REPO].branches["dev"] = hub.repos[REPO].head
    assert "already has a branch dev" in publisher.refused(ZooError, other(1), tag="dev", exist_ok=True)
    assert hub.repos[REPO].branches.keys() == {"main", "dev"}


def test_a_pull_request_is_opened_once(hub: HubDouble, publisher: Publisher) -> None:
    publisher.send()
    repo = hub.repos[REPO]
    proposed = publisher.send(other(1), create_pr=True)
    assert proposed.url == proposed.pull_request == f"{hub.url}/{REPO}/discussions/1"
    assert holds(repo, other(1), "refs/pr/1")
    assert holds(repo, light())
    assert publisher.send(other(1), create_pr=True).pull_request == proposed.pull_request
    assert len(repo.pulls) == 1
    assert publisher.send(other(2), create_pr=True).url.endswith("/discussions/2")
    hub.plant("POST", "/commit/", hub_faults.lost)
    assert publisher.send(other(3), create_pr=True).url.endswith("/discussions/3")
    assert len(repo.pulls) == 3


def test_a_merged_pull_request_is_not_reused(hub: HubDouble, publisher: Publisher) -> None:
    publisher.send()
    repo = hub.repos[REPO]
    publisher.send(other(1), create_pr=True)
    repo.merge(1)
    assert publisher.send(other(1), create_pr=True).unchanged
    repo.commit({"README.md": b"Edited on its page.\n"})
    assert publisher.send(other(1), create_pr=True).url.endswith("/discussions/2")


def test_a_branch(hub: HubDouble, publisher: Publisher) -> None:
    publisher.send(revision_of := other(0))
    repo = hub.repos[REPO]
    result = publisher.send(other(1), branch="next", exist_ok=True, tag="v2")
    assert repo.branches["next"] == result.commit == repo.tags["v2"]
    assert holds(repo, other(1), "next")
    assert holds(repo, revision_of)
    result = publisher.send(other(2), branch="next", exist_ok=True)
    assert [commit.id for commit in published(repo, "next")][:1] == [result.commit]
    hub.log.clear()
    assert publisher.send(other(2), branch="next").unchanged
    assert writes(hub) == []
    assert publisher.send(other(2), branch="main", exist_ok=True).commit == repo.head


def test_a_branch_of_a_new_repository(hub: HubDouble, publisher: Publisher) -> None:
    result = publisher.send(branch="next")
    assert result.created
    assert not published(hub.repos[REPO])
    assert holds(hub.repos[REPO], light(), "next")


def test_a_refused_plan_creates_nothing(hub: HubDouble, publisher: Publisher) -> None:
    repo = hub.create(REPO, {"theirs.bin": b"1"})
    repo.tags["v1"] = repo.head
    assert "theirs.bin" in publisher.refused(ZooError, branch="next")
    assert "already has a tag v1 on" in publisher.refused(ZooError, branch="next", tag="v1", exist_ok=True)
    assert writes(hub) == []


def test_an_existing_tag(hub: HubDouble, publisher: Publisher) -> None:
    result = publisher.send(tag="v1")
    assert publisher.send(tag="v1").commit == result.commit
    hub.log.clear()
    error = publisher.refused(ZooError, other(1), tag="v1", exist_ok=True)
    assert f"already has a tag v1 on {str(result.commit)[:12]}" in error
    assert writes(hub) == []
    later = publisher.send(other(1), tag="v2", exist_ok=True)
    assert hub.repos[REPO].tags == {"v1": result.commit, "v2": later.commit}


def test_a_concurrently_created_tag(hub: HubDouble, publisher: Publisher) -> None:
    repo = hub.create(REPO)
    hub.on("POST", "/tag/", lambda request: repo.tags.setdefault("v1", repo.history()[-1].id))
    error = publisher.refused(ZooError, tag="v1")
    assert f"Published as {repo.head}, but the tag v1 is on" in error
    assert publisher.send(tag="v2").commit == repo.head


def test_a_new_version(hub: HubDouble, publisher: Publisher) -> None:
    publisher.send(plan())
    repo = hub.repos[REPO]
    repo.commit({"notes.txt": b"theirs", "model.pt": b"theirs, too"})
    assert "exists and has other content" in publisher.refused(ZooError, other(1))
    result = publisher.send(other(1), exist_ok=True, message="Second")
    gone = {"parity.json", "parity-vectors.safetensors", "parity.html", "parity.png"}
    assert {name for name, what in result.changes.items() if what == "deleted"} == gone
    assert {name for name, what in result.changes.items() if what == "same"} == {"model.safetensors", "config.json"}
    assert repo.files().keys() == {*light().files, ".gitattributes", "notes.txt", "model.pt"}
    assert repo.history()[0].title == "Second"


def test_an_empty_repository_is_filled(hub: HubDouble, publisher: Publisher) -> None:
    hub.create(REPO, {".gitattributes": b"", "README.md": b"# Soon\n"})
    assert not publisher.send().created
    assert holds(hub.repos[REPO], light())


@pytest.mark.parametrize(
    ("repo_id", "options", "message"),
    [
        ("org/tiny@v1", Options(), "names a revision"),
        ("tiny", Options(), "not the name of a repository"),
        (REPO, Options(branch="a" * 40), "--revision"),
        (REPO, Options(branch="refs/pr/1"), "--revision"),
        (REPO, Options(branch="a b"), "not a valid name"),
        (REPO, Options(tag="0" * 40), "--tag"),
        (REPO, Options(tag="../x"), "not a valid name"),
        (REPO, Options(create_pr=True, tag="v1"), "pull request"),
        (REPO, Options(create_pr=True, branch="next"), "pull request"),
        (REPO, Options(create_pr=True, registry=Path("registry.yaml")), "--update-registry"),
        (REPO, Options(message=f"with {TOKEN}"), "--commit-message has the token that you use"),
        (REPO, Options(message="hf_" + "a" * 30), "--commit-message has a Hugging Face token"),
    ],
)
def test_invalid_options(repo_id: str, options: Options, message: str, hub: HubDouble, tmp_path: Path) -> None:
    with pytest.raises(ZooError) as caught:
        publish(tmp_path, repo_id, options=options)
    assert message in words(caught.value)
    assert hub.log == []


# --- dry runs ----------------------------------------------------------------------------------------------------


def test_a_dry_run(hub: HubDouble, publisher: Publisher) -> None:
    result = publisher.dry(plan(), private=True)
    assert set(result.changes.values()) == {"added"}
    assert (result.exists, result.private, result.commit) == (False, True, None)
    assert hub.repos == {}
    publisher.send(plan())
    hub.log.clear()
    result = publisher.dry(other(1), exist_ok=True)
    assert (result.exists, result.private) == (True, False)
    assert result.changes["README.md"] == "changed"
    assert result.changes["parity.json"] == "deleted"
    assert publisher.dry(plan()).unchanged
    with pytest.raises(ZooError, match="exist"):
        publisher.dry(other(1))
    assert {request.method for request in hub.log} <= {"GET", "HEAD"}


def test_a_dry_run_without_a_network(hub: HubDouble, publisher: Publisher, monkeypatch: pytest.MonkeyPatch) -> None:
    with hub.offline():
        assert publisher.dry().exists is None
    hub.plant("GET", "/refs", hub_faults.status(503), times=5)
    hub.create(REPO)
    assert publisher.dry(tag="v1").exists is None
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert publisher.dry().exists is None
    assert ["content of the repository is unknown" in message for message in publisher.messages] == [True] * 3
    assert "offline mode is on" in publisher.messages[2]
    assert writes(hub) == []


# --- permissions -------------------------------------------------------------------------------------------------


def test_without_a_network(hub: HubDouble, publisher: Publisher, monkeypatch: pytest.MonkeyPatch) -> None:
    with hub.offline():
        assert "cannot be reached" in publisher.refused(Unavailable)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "offline mode" in publisher.refused(Unavailable)
    assert hub.log == []


def test_without_a_token(hub: HubDouble, publisher: Publisher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    assert "no token was given" in publisher.refused(Forbidden)
    assert hub.log == []


@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize(
    ("user", "status"),
    [
        (None, "401"),
        (User("alice", ("org",), role="read"), "403"),
        (User("alice", ("org",), role="fineGrained"), "403"),
        (User("alice", ("elsewhere",)), "403"),
    ],
    ids=["wrong token", "reads", "fine-grained", "another's"],
)
def test_a_token_without_permission(
    user: User | None, status: str, exists: bool, hub: HubDouble, publisher: Publisher
) -> None:
    if exists:
        hub.create(REPO)
    hub.users.clear()
    hub.users.update({TOKEN: user} if user else {})
    error = publisher.refused(Forbidden)
    assert status in error
    assert "this token has no write access" in error
    assert "HF_TOKEN" in error
    assert not any(published(repo) for repo in hub.repos.values())
    hub.users[TOKEN] = User("alice", ("org",))
    publisher.send()
    assert holds(hub.repos[REPO], light())


def test_a_private_repository_of_another_user(hub: HubDouble, publisher: Publisher) -> None:
    hub.create("bob/secret", private=True)
    elsewhere = replace(light(), repo=replace(light().repo, id="bob/secret"))
    assert "this token has no write access" in publisher.refused(Forbidden, elsewhere)
    assert len(hub.repos["bob/secret"].commits) == 1


def test_an_explicit_token(hub: HubDouble) -> None:
    hub.users["hf_anothersecretofmine"] = User("bob", ("team",))
    there = replace(light(), repo=replace(light().repo, id="team/tiny"))
    send(there, Options(), Access(token="hf_anothersecretofmine"))
    assert hub.repos["team/tiny"].history()[0].author == "bob"


# --- concurrent writers ------------------------------------------------------------------------------------------


def test_a_concurrently_created_repository(hub: HubDouble, publisher: Publisher) -> None:
    hub.on("POST", "/repos/create", lambda request: hub.create(REPO), times=1)
    assert not publisher.send().created
    assert "was created by another process" in publisher.messages[0]
    assert holds(hub.repos[REPO], light())


def test_a_concurrently_created_public_repository_gets_nothing_private(hub: HubDouble, publisher: Publisher) -> None:
    hub.on("POST", "/repos/create", lambda request: hub.create(REPO), times=1)
    assert "is public" in publisher.refused(ZooError, private=True)
    assert len(hub.repos[REPO].commits) == 1


def test_a_concurrently_filled_repository(hub: HubDouble, publisher: Publisher) -> None:
    hub.on("POST", "/repos/create", lambda request: hub.create(REPO, {"theirs.bin": b"1"}), times=1)
    assert "theirs.bin" in publisher.refused(ZooError)
    assert hub.repos[REPO].files() == {"theirs.bin": b"1"}


def test_a_concurrent_commit(hub: HubDouble, publisher: Publisher) -> None:
    repo = hub.create(REPO)
    hub.on("POST", "/commit/", lambda request: repo.commit({"theirs.bin": b"1"}, title="Mine first"), times=1)
    error = publisher.refused(Conflict)
    assert f"{repo.head[:12]}, 'Mine first'" in error
    assert "run this again" in error
    assert repo.files().keys() == {".gitattributes", "theirs.bin"}
    publisher.send(exist_ok=True)
    assert holds(repo, light())
    assert repo.files()["theirs.bin"] == b"1"


def publish_concurrently(plans: list[PublishPlan], exist_ok: bool = False) -> list[Published | ZooError]:
    """Publish each plan in a separate thread; return the outcomes."""
    start = threading.Barrier(len(plans))

    def one(mine: PublishPlan) -> Published | ZooError:
        start.wait()
        try:
            return send(mine, Options(exist_ok=exist_ok), Publisher().access)
        except ZooError as error:
            return error

    with ThreadPoolExecutor(len(plans)) as pool:
        return list(pool.map(one, plans))


def test_eight_concurrent_publications_of_different_contents(hub: HubDouble) -> None:
    repo = hub.create(REPO)
    met = threading.Barrier(8)
    hub.on("POST", "/commit/", lambda request: met.wait(timeout=20), times=8)
    plans = [other(number) for number in range(8)]
    result = publish_concurrently(plans)
    (winner,) = [each for each in result if isinstance(each, Published)]
    losers = [each for each in result if isinstance(each, ZooError)]
    assert {type(each) for each in losers} == {Conflict}
    assert all(f"{repo.head[:12]}, 'Publish celo-adam" in words(each) for each in losers)
    assert [commit.id for commit in published(repo)] == [winner.commit] == [repo.head]
    assert holds(repo, winner.plan)
    for mine in plans:
        Publisher().send(mine, exist_ok=True)
    assert len(published(repo)) == 8 + (winner.plan is not plans[0]), "a second run of each loser publishes on top"


def test_eight_concurrent_publications_create_the_repository(hub: HubDouble) -> None:
    met = threading.Barrier(8)
    hub.on("POST", "/repos/create", lambda request: met.wait(timeout=20), times=8)
    result = publish_concurrently([other(number) for number in range(8)])
    winners = [each for each in result if isinstance(each, Published)]
    assert len(winners) == 1, result
    repo = hub.repos[REPO]
    assert [commit.id for commit in published(repo)] == [winners[0].commit]
    assert holds(repo, winners[0].plan)
    assert all(str(each) and words(each) for each in result if isinstance(each, ZooError))


def test_eight_concurrent_publications_of_the_same_content(hub: HubDouble) -> None:
    repo = hub.create(REPO)
    met = threading.Barrier(8)
    hub.on("POST", "/commit/", lambda request: met.wait(timeout=20), times=8)
    result = publish_concurrently([light()] * 8)
    assert [each.commit for each in result if isinstance(each, Published)] == [repo.head] * 8
    assert len(published(repo)) == 1
