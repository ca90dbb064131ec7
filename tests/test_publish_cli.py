"""``pylo-zoo publish``: exit status, output and help."""

from __future__ import annotations

import json
from pathlib import Path

import hub_faults
import pytest
from commands import Capture, refused, run
from hub_double import TOKEN, HubDouble, User
from proofs import random_weights
from publishing import REPO, holds, plan, proven, writes

from pylo_zoo import artifact

pytest.importorskip("jax")

WORDS = ("--repo-id", REPO, "--license", "MIT")


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def unproven(tmp_path: Path) -> Path:
    return artifact.write(random_weights("celo-adam")[0], tmp_path / "made", extra_files={"model.pt": b"a pickle"})


def test_a_publication(hub: HubDouble, tmp_path: Path, capsys: Capture) -> None:
    assert run("publish", proven(tmp_path), *WORDS, "--tag", "v1") == 0
    out, err = capsys.readouterr()
    repo = hub.repos[REPO]
    assert holds(repo, plan())
    lines = out.splitlines()
    assert lines[0].split() == ["file", "size", "sha256"]
    sizes = dict(line.split()[::3] for line in lines[1:8] if line.split()[-1] == "added")
    assert sizes.keys() == plan().files.keys()
    assert plan().hashes["model.safetensors"][:12] in out
    assert lines[8:] == [
        "",
        f"{REPO}: MIT, parity passed, public.",
        f"Published as {repo.head}; every file was read back and matches.",
        f"{hub.url}/{REPO}/tree/{repo.head}",
    ]
    assert err == ""
    assert all(len(line) <= 80 for line in lines[:10])


def test_further_messages(hub: HubDouble, unproven: Path, capsys: Capture, tmp_path: Path) -> None:
    words = ["publish", unproven, *WORDS, "--allow-unverified"]
    assert run(*words, "--private") == 0
    out = capsys.readouterr().out
    assert "model.pt is not uploaded." in out
    assert "UNVERIFIED (shown on its card), private." in out
    (tmp_path / "registry.yaml").write_text("# Ours.\n")
    assert run(*words, "--update-registry", "--registry", tmp_path / "registry.yaml") == 0
    out = capsys.readouterr().out
    assert "Everything was published already; nothing was sent." in out
    assert "Pinned in " in out
    assert (tmp_path / "registry.yaml").read_text().startswith("# Ours.\n\ntiny:\n")
    hub.repos[REPO].private = False
    assert "is public" in refused(capsys, *words, "--private")


def test_a_dry_run(hub: HubDouble, unproven: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["publish", unproven, *WORDS, "--allow-unverified", "--dry-run"]
    assert run(*words) == 0
    out = capsys.readouterr().out
    assert (
        "The repository would be created. Nothing was sent (--dry-run). Its card would be:\n\n---\nlibrary_name" in out
    )
    assert "NOT VERIFIED" in out
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert run(*words) == 0
    out, err = capsys.readouterr()
    assert "The repository was not looked up." in out
    assert "visibility unknown" in out
    assert "offline mode is on" in err
    assert writes(hub) == []


def test_json(hub: HubDouble, unproven: Path, capsys: Capture) -> None:
    words = ["publish", unproven, *WORDS, "--allow-unverified", "--json"]
    assert run(*words, "--dry-run") == 0
    planned = json.loads(capsys.readouterr().out)
    assert (planned["dry_run"], planned["commit"], planned["exists"]) == (True, None, False)
    assert planned["card"].startswith("---\n")
    assert run(*words) == 0
    result = json.loads(capsys.readouterr().out)
    repo = hub.repos[REPO]
    assert (result["repo_id"], result["commit"], result["created"]) == (REPO, repo.head, True)
    assert (result["verified"], result["license"], result["left_out"]) == (False, "MIT", ["model.pt"])
    assert result["files"] == planned["files"]
    there = {name: (blob.sha256, len(blob.data)) for name, blob in repo.tree().items() if name != ".gitattributes"}
    assert {each["name"]: (each["sha256"], each["bytes"]) for each in result["files"]} == there
    assert run(*words) == 0
    assert json.loads(capsys.readouterr().out)["unchanged"] is True


def test_quiet(hub: HubDouble, unproven: Path, capsys: Capture) -> None:
    words = ["publish", unproven, *WORDS, "--allow-unverified", "-q"]
    assert run(*words) == 0
    out, err = capsys.readouterr()
    assert (out, err) == (f"{hub.url}/{REPO}/tree/{hub.repos[REPO].head}\n", "")


def test_a_token(hub: HubDouble, unproven: Path, capsys: Capture) -> None:
    hub.users = {"hf_mine": User("bob", ("org",))}
    assert "this token has no write access (401)" in refused(capsys, "publish", unproven, *WORDS, "--allow-unverified")
    assert run("publish", unproven, *WORDS, "--allow-unverified", "--token", "hf_mine") == 0
    assert "hf_mine" not in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("words", "message", "status"),
    [
        ([], "no parity report", 1),
        (["--allow-unverified", "--license", "GPL 3"], "is not a license", 2),
        (["--allow-unverified", "--revision", "a" * 40], "--revision", 2),
        (["--allow-unverified", "--create-pr", "--tag", "v1"], "pull request", 2),
        (["--allow-unverified", "--update-registry", "--registry", "nowhere.yaml"], "nowhere.yaml does not exist", 1),
    ],
)
def test_failures(words: list[str], message: str, status: int, hub: HubDouble, unproven: Path, capsys: Capture) -> None:
    assert message in refused(capsys, "publish", unproven, *WORDS, *words, status=status)
    assert hub.log == []


@pytest.mark.parametrize("words", [[], ["zoo/celo"], ["zoo/celo", *WORDS, "--registry", "x.yaml"], ["--nonsense"]])
def test_wrong_usage(words: list[str], capsys: Capture) -> None:
    assert run("publish", *words) == 2
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("debug", ["0", "1"])
def test_no_secret_is_printed(
    debug: str, hub: HubDouble, unproven: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYLO_ZOO_DEBUG", debug)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.plant("PUT", ".", hub_faults.status(403, "Request has expired"), times=100)
    assert run("publish", unproven, *WORDS, "--allow-unverified") == 1
    out, err = capsys.readouterr()
    assert ("Traceback" in err) == (debug == "1")
    for secret in (TOKEN, "sekret", "X-Amz-Signature"):
        assert secret not in out + err


def test_help(capsys: Capture) -> None:
    assert run("publish", "--help") == 0
    out = capsys.readouterr().out
    for option in ("--repo-id", "--license", "--private", "--create-pr", "--tag", "--dry-run", "--token", "--json"):
        assert option in out
    assert "pylo-zoo publish zoo/celo --repo-id ORG/celo --dry-run" in out
    assert TOKEN not in out
