"""The Hub double fails as planted, and how huggingface_hub reacts."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Any

import hub_double
import hub_faults
import huggingface_hub
import pytest
from hub_client import httpx
from hub_double import Exchange, Fault, HubDouble
from hub_faults import Chaos
from hub_files import FILES, WEIGHTS, commit
from huggingface_hub import HfApi, errors

LARGE = "^/[0-9a-f]{64}$"  # the storage's path of a large file


def test_a_lost_answer_to_a_commit(hub: HubDouble) -> None:
    repo = hub.create("org/name")
    before = repo.head
    hub.plant("POST", "/commit/", hub_faults.lost)
    with pytest.raises(httpx.TransportError):
        commit(HfApi(), parent_commit=before)
    assert HfApi().list_repo_commits("org/name")[0].commit_id == repo.head != before
    assert commit(HfApi(), parent_commit=before).oid == repo.head, "every fault was used"


@pytest.mark.parametrize("fault", [hub_faults.reset, hub_faults.status(500), hub_faults.silent(0.05)])
def test_a_commit_that_was_not_made(fault: Fault, hub: HubDouble) -> None:
    repo = hub.create("org/name")
    hub.plant("POST", "/commit/", fault)
    with pytest.raises((httpx.TransportError, errors.HfHubHTTPError)):
        commit(HfApi())
    assert len(repo.commits) == 1


def test_hooks_see_the_repository_before_and_after_a_commit(hub: HubDouble) -> None:
    repo = hub.create("org/name")
    recorded: list[int] = []
    hub.on("POST", "/commit/", lambda request: recorded.append(len(repo.commits)))
    hub.on("POST", "/commit/", lambda request: recorded.append(len(repo.commits)), when="after")
    hub.plant("POST", "/commit/", hub_faults.both(hub_faults.applied, hub_faults.status(500)))
    with pytest.raises(errors.HfHubHTTPError):
        commit(HfApi())
    assert recorded == [1, 2]


@pytest.mark.parametrize(
    "fault",
    [
        hub_faults.reset,
        hub_faults.reset_midway(10_000),
        hub_faults.lost,
        hub_faults.status(503),
        hub_faults.silent(0.05),
    ],
    ids=["reset", "midway", "lost", "503", "silent"],
)
def test_an_upload_is_tried_again(fault: Fault, hub: HubDouble) -> None:
    repo = hub.create("org/name")
    hub.plant("PUT", ".", fault, times=2)
    commit(HfApi())
    assert repo.files()["model.safetensors"] == WEIGHTS
    assert len(hub.requests("PUT", ".")) == 3
    assert hub.sleeps == [1, 2]


def test_an_upload_of_something_else_is_refused(hub: HubDouble) -> None:
    repo = hub.create("org/name")

    def damaged(exchange: Exchange) -> None:
        exchange.read()
        exchange.request.body = exchange.request.body[:-1] + b"x"

    hub.plant("PUT", ".", damaged)
    with pytest.raises(RuntimeError, match=r"model\.safetensors"):
        commit(HfApi())
    assert len(repo.commits) == 1


def test_retry_after_determines_the_pause(hub: HubDouble) -> None:
    hub.create("org/name")
    hub.plant("POST", "/preupload/", hub_faults.status(429, Retry_After="7"))
    commit(HfApi())
    assert hub.sleeps == [8]


@pytest.mark.parametrize(
    ("fault", "arrives"),
    [
        (hub_faults.truncated(20_000), True),
        (hub_faults.stalled(0.05, 20_000), True),
        (hub_faults.both(hub_faults.range_ignored, hub_faults.delayed(0.01)), True),
        (hub_faults.wrong_bytes, False),
    ],
    ids=["truncated", "stalled", "range ignored", "wrong bytes"],
)
def test_a_download_that_fails(fault: Fault, arrives: bool, hub: HubDouble) -> None:
    hub.create("org/name", FILES)
    hub.plant("GET", LARGE, fault)
    got = Path(HfApi().hf_hub_download("org/name", "model.safetensors")).read_bytes()
    assert len(got) == len(WEIGHTS)
    assert (got == WEIGHTS) == arrives, "the client does not check the hash"


def test_a_download_cut_by_a_reset(hub: HubDouble) -> None:
    hub.create("org/name", FILES)
    hub.plant("GET", LARGE, hub_faults.cut(20_000))
    with pytest.raises(httpx.ReadError):
        HfApi().hf_hub_download("org/name", "model.safetensors")


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (hub_faults.not_json, ValueError),
        (hub_faults.empty, ValueError),
        (hub_faults.changed_json(lambda answer: answer.pop("id")), KeyError),
        (hub_faults.status(404, X_Error_Code="RevisionNotFound"), errors.RevisionNotFoundError),
    ],
)
def test_malformed_answers(fault: Fault, error: Any, hub: HubDouble) -> None:
    hub.create("org/name", FILES)
    hub.plant("GET", "^/api/models/", fault)
    with pytest.raises(error):
        HfApi().model_info("org/name")
    assert HfApi().model_info("org/name").id == "org/name"


def test_hostile_names_and_headers_arrive(hub: HubDouble) -> None:
    repo = hub.create("org/name", FILES)
    repo.extra_siblings += hub_faults.HOSTILE_NAMES
    assert set(HfApi().list_repo_files("org/name")) == {*FILES, *hub_faults.HOSTILE_NAMES}
    hostile = {"X_Repo_Commit": "../../x", "ETag": '"../../../evil"', "X_Linked_Etag": ""}
    hub.plant("HEAD", "/resolve/", hub_faults.headers(**hostile))
    metadata = huggingface_hub.get_hf_file_metadata(huggingface_hub.hf_hub_url("org/name", "model.safetensors"))
    assert (metadata.commit_hash, metadata.etag) == ("../../x", "../../../evil")


def test_a_redirect_to_another_origin_brings_no_token(hub: HubDouble) -> None:
    hub.create("org/name", FILES)
    hub.plant("GET", "^/api/models/", hub_faults.redirect(f"{hub.cdn_url}/elsewhere"))
    with pytest.raises(errors.HfHubHTTPError):
        HfApi().model_info("org/name")
    assert [request.origin for request in hub.requests("GET", "/elsewhere")] == ["cdn"]
    assert hub.leaks == []


def test_an_interrupted_request_is_not_executed(hub: HubDouble) -> None:
    hub.create("org/name")
    host, _, port = hub.url.removeprefix("http://").partition(":")
    head = "POST /api/models/org/name/commit/main HTTP/1.1\r\n"
    chunked = "Transfer-Encoding: chunked\r\n\r\n"
    for rest in ("Content-Length: 9999\r\n\r\n{", chunked, f"{chunked}5\r\n{{"):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall((head + rest).encode())
    commit(HfApi())
    assert len(hub.repos["org/name"].commits) == 2
    assert hub.errors == []


def test_an_error_in_a_hook_is_reported() -> None:
    def broken_hook() -> None:
        with hub_double.serving() as hub:
            hub.on("GET", "/x", lambda request: 1 // 0)
            with pytest.raises(httpx.TransportError):
                httpx.get(f"{hub.url}/x")

    with pytest.raises(ZeroDivisionError):
        broken_hook()


def test_the_hub_is_unreachable_for_a_while(hub: HubDouble) -> None:
    hub.create("org/name", FILES)
    path = HfApi().hf_hub_download("org/name", "config.json")
    with hub.offline():
        count = len(hub.log)
        with pytest.raises(httpx.ConnectError):
            HfApi().model_info("org/name")
        assert HfApi().hf_hub_download("org/name", "config.json") == path
        assert len(hub.log) == count
    assert HfApi().model_info("org/name").id == "org/name"
    with hub.offline("cdn"), pytest.raises(httpx.ConnectError):
        HfApi().hf_hub_download("org/name", "model.safetensors")


# --- random faults -----------------------------------------------------------------------------------------------


def publish(hub: HubDouble) -> None:
    """Publish, and retry everything until it succeeds."""
    api = HfApi()
    while True:
        try:
            api.create_repo("org/name", exist_ok=True)
            commit(api)
            api.create_tag("org/name", tag="v1", exist_ok=True)
            break
        except (httpx.TransportError, errors.HfHubHTTPError, RuntimeError):
            assert len(hub.log) < 500


def test_chaos_is_deterministic_and_eventually_lets_a_client_through(hub: HubDouble) -> None:
    struck = []
    for seed in (1, 1, 2):
        hub.repos.clear()
        hub.store.clear()
        hub.chaos = Chaos(seed, rate=0.6)
        publish(hub)
        assert hub.repos["org/name"].files().items() >= FILES.items()
        assert "v1" in hub.repos["org/name"].tags
        struck.append(hub.chaos.struck)
    assert struck[0] == struck[1] != struck[2]
    assert len({name for _, _, name in struck[0] + struck[2]}) >= 4


def test_chaos_respects_its_limits(hub: HubDouble) -> None:
    def outcomes(chaos: Chaos, count: int = 12) -> str:
        return "".join("." if chaos.strike(request) is None else "x" for request in [one] * count)

    one = hub_double.Request("GET", "/x", {}, {}, "hub")
    assert outcomes(Chaos(0, rate=1.0, most=2)) == "xx." * 4
    assert outcomes(Chaos(0, rate=1.0, most=5, total=3)) == "xxx" + "." * 9
    assert outcomes(Chaos(0, rate=0.0)) == "." * 12
    assert outcomes(Chaos(0, rate=1.0, spared="^/x")) == "." * 12
    assert re.fullmatch(r"(?!.*xxx)[x.]+", outcomes(Chaos(3, rate=0.5), 100))
