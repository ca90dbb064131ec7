"""What can be published: refused before anything is sent, or the same bytes every time."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hub_double import TOKEN, HubDouble
from proofs import corrupted, random_weights
from publishing import FAMILY, REPO, light, plan, proven, words
from safetensors.numpy import load, save

from pylo_zoo import artifact, registry
from pylo_zoo.artifact import Artifact
from pylo_zoo.errors import ZooError
from pylo_zoo.hub.names import Repository
from pylo_zoo.parity.reading import read_report
from pylo_zoo.publish import PublishPlan, prepare, publish
from pylo_zoo.publish import plan as planning
from pylo_zoo.publish.plan import PUBLISHED, find_entry

pytest.importorskip("jax")


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """An artifact's directory, with its proof."""
    return proven(tmp_path)


def refused(here: Path, hub: HubDouble, **how: Any) -> str:
    """Why publishing is refused; nothing is sent and no directory changes."""
    before = {path.name: path.read_bytes() for path in here.iterdir() if path.is_file()}
    with pytest.raises(ZooError) as caught:
        publish(here, REPO, **{"license": "MIT", **how})
    assert hub.log == []
    assert before == {path.name: path.read_bytes() for path in here.iterdir() if path.is_file()}
    return words(caught.value)


def prepared(here: Path, **how: Any) -> PublishPlan:
    return prepare(here, Repository(REPO), **{"license": "MIT", **how})


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


# --- the proof ---------------------------------------------------------------------------------------------------


def test_published_files() -> None:
    assert list(plan().files) == list(PUBLISHED)
    assert plan().verified
    assert plan().left_out == ()
    assert "NOT VERIFIED" not in plan().files["README.md"].decode()
    assert json.loads(plan().files["config.json"])["source"]["license"] == "MIT"


def remove_proof(here: Path) -> None:
    (here / "parity.json").unlink()
    (here / "parity-vectors.safetensors").unlink()


def mark_as_failed(here: Path) -> None:
    def change(report: dict[str, Any]) -> None:
        report["leaves"] = {**report["leaves"], "differing": ["a"], "passed": False}
        report["status"] = "failed"

    edit_json(here / "parity.json", change)


def mark_as_not_run(here: Path) -> None:
    kept = ("schema_version", "name", "family", "source", "fingerprint", "leaves", "statements", "environment")
    report = json.loads((here / "parity.json").read_text())
    bare = {
        "checks": [],
        "quantities": [],
        "controls": [],
        "kernels": [],
        "settings": None,
        "explanation": None,
        "coverage": None,
    }
    more = {"status": "not_run", "reason": "JAX is missing", "vectors_sha256": None, "created": ""}
    (here / "parity.json").write_text(json.dumps({key: report[key] for key in kept} | bare | more))


def change_weights(here: Path) -> None:
    changed = corrupted(artifact.read(here), "controller.step_size.bias", 1.01)
    vectors = (here / "parity-vectors.safetensors").read_bytes()
    artifact.write(changed, here, force=True, extra_files={"parity-vectors.safetensors": vectors})


def another_version(here: Path) -> None:
    edit_json(here / "parity.json", lambda report: report["environment"].update({"pylo-zoo": "0.0.1"}))


def without_vectors(here: Path) -> None:
    (here / "parity-vectors.safetensors").unlink()


def other_vectors(here: Path) -> None:
    path = here / "parity-vectors.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")


def wrong_vectors(here: Path) -> None:
    """Valid vectors that match the report, but of a run that the installed code does not reproduce."""
    path = here / "parity-vectors.safetensors"
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        about = file.metadata()
    arrays = load(path.read_bytes())
    name = max(arrays, key=lambda each: arrays[each].size if np.issubdtype(arrays[each].dtype, np.floating) else 0)
    arrays[name] = arrays[name] * 1.5 + 1
    path.write_bytes(save(arrays, about))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    edit_json(here / "parity.json", lambda report: report.update(vectors_sha256=digest))


UNFIT: dict[str, tuple[Callable[[Path], None], str]] = {
    "no report": (remove_proof, "has no parity report"),
    "not run": (mark_as_not_run, "was not checked (JAX is missing)"),
    "other weights": (change_weights, "has changed since its parity check"),
    "another version": (another_version, "checked by another version of pylo-zoo"),
    "no vectors": (without_vectors, "is missing"),
    "other vectors": (other_vectors, "does not belong to its parity report"),
    "wrong vectors": (wrong_vectors, "does not reproduce its parity report"),
}


@pytest.mark.parametrize("kind", UNFIT)
def test_without_a_proof(kind: str, here: Path, hub: HubDouble) -> None:
    spoil, message = UNFIT[kind]
    spoil(here)
    error = refused(here, hub)
    assert message in error
    assert "--allow-unverified" in error


@pytest.mark.parametrize("kind", UNFIT)
def test_without_a_proof_but_allowed(kind: str, here: Path) -> None:
    UNFIT[kind][0](here)
    result = prepared(here, allow_unverified=True)
    assert not result.verified
    text = result.files["README.md"].decode().split("---\n", 2)[2]
    first = next(line for line in text.splitlines() if line.startswith(">"))
    assert "NOT VERIFIED" in first
    assert text.index(first) < 200, "before anything else"
    assert result.files.keys() >= {"model.safetensors", "config.json", "README.md"}
    proof = {"parity.json"} if kind == "not run" else set()
    assert result.files.keys() & {"parity.json", "parity-vectors.safetensors", "parity.html", "parity.png"} == proof
    assert set(result.left_out) == {path.name for path in here.iterdir()} - result.files.keys()


def test_a_report_without_a_run_must_match_the_weights(here: Path) -> None:
    mark_as_not_run(here)
    report = (here / "parity.json").read_bytes()
    change_weights(here)
    (here / "parity.json").write_bytes(report)
    assert "parity.json" not in prepared(here, allow_unverified=True).files


@pytest.mark.parametrize("allowed", [False, True])
def test_a_failed_proof_is_never_published(allowed: bool, here: Path, hub: HubDouble) -> None:
    mark_as_failed(here)
    said = refused(here, hub, allow_unverified=allowed)
    assert "its parity check failed" in said
    assert "is never published" in said


def test_weights_that_change_during_the_replay(here: Path, hub: HubDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    true = planning.replay

    def slow(checked: Artifact) -> Any:
        result = true(checked)
        change_weights(here)
        return result

    monkeypatch.setattr(planning, "replay", slow)
    with pytest.raises(ZooError, match="changed while it was read"):
        prepared(here)


# --- the directory -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["notes.txt", ".env", ".git", "theta.state", "model.safetensors.bak", "config.json~"])
def test_an_unknown_file(name: str, here: Path, hub: HubDouble) -> None:
    (here / name).write_text("HF_TOKEN=1")
    said = refused(here, hub)
    assert f"contains files that do not belong to an artifact: {name}" in said
    assert "nothing was sent" in said


def test_a_subdirectory(here: Path, hub: HubDouble) -> None:
    (here / "old").mkdir()
    assert "contains files that do not belong to an artifact: old" in refused(here, hub)


def test_a_file_that_is_not_regular(here: Path, hub: HubDouble, tmp_path: Path) -> None:
    weights = here / "model.safetensors"
    weights.rename(tmp_path / "elsewhere")
    weights.symlink_to(tmp_path / "elsewhere")
    assert "model.safetensors is not a regular file" in refused(here, hub)
    weights.unlink()
    weights.mkdir()
    assert "model.safetensors is not a regular file" in refused(here, hub)
    weights.rmdir()
    os.mkfifo(weights)
    assert "model.safetensors is not a regular file" in refused(here, hub)


@pytest.mark.usefixtures("quick")
def test_files_that_are_not_published(here: Path) -> None:
    (here / "model.pt").write_bytes(b"a pickle")
    (here / "parity.html").write_text("an old one")
    (here / "README.md").write_text("an old one")
    (here / ".model.safetensors.new-0123abcd").write_text("left behind by a process that was killed")
    found = prepared(here)
    assert found.left_out == ("README.md", "model.pt")
    assert found.files.keys() == plan().files.keys()
    assert found.files["README.md"] != b"an old one" != found.files["parity.html"]


# --- secrets -----------------------------------------------------------------------------------------------------

SECRETS = {
    "a Hugging Face token": "hf_" + "aB3" * 10,
    "a GitHub token": "ghp_" + "aB3" * 12,
    "a GitLab token": "glpat-" + "aB3_" * 6,
    "an AWS key": "AKIA" + "A1B2" * 4,
    "a Google key": "AIza" + "aB3-x" * 7,
    "a Slack token": "xoxb-" + "12345-abcde",
    "a W&B or other API key": "api_key: " + "0123456789abcdef" * 2,
    "a key of an AI service": "sk-" + "aB3x" * 6,
    "a private key": "-----BEGIN OPENSSH PRIVATE KEY-----",
    "a signed address": "https://a.b/c?x=1&X-Amz-Signature=" + "0a1b" * 8,
    "a bearer's authorization": "Authorization: Bearer " + "aB3." * 8,
    "a password in an address": "https://somebody:swordfish@a.b/c",
    "the token that you use": TOKEN,
    "a path of your home directory": "~/zoo/theta.state",
}


def in_config(here: Path, secret: str) -> None:
    edit_json(here / "config.json", lambda config: config.update(name=secret))


def in_source(here: Path, secret: str) -> None:
    edit_json(here / "config.json", lambda config: config["source"].update(uri=secret))


def in_parity(here: Path, secret: str) -> None:
    edit_json(here / "parity.json", lambda report: report.update(name=secret))


def in_weights(here: Path, secret: str) -> None:
    path = here / "model.safetensors"
    path.write_bytes(save(load(path.read_bytes()), {"format": "pt", "from": secret}))


def in_vectors(here: Path, secret: str) -> None:
    path = here / "parity-vectors.safetensors"
    path.write_bytes(save(load(path.read_bytes()), {"about": secret}))


PLACES: dict[str, tuple[str, Callable[[Path, str], None]]] = {
    "name": ("config.json", in_config),
    "address": ("config.json", in_source),
    "report": ("parity.json", in_parity),
    "weights": ("model.safetensors", in_weights),
    "vectors": ("parity-vectors.safetensors", in_vectors),
}


@pytest.mark.parametrize("what", SECRETS)
@pytest.mark.parametrize("place", PLACES)
def test_a_secret(what: str, place: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: Path("/home/somebody"))
    secret = SECRETS[what].replace("~", "/home/somebody")
    name, plant = PLACES[place]
    plant(here, secret)
    with pytest.raises(ZooError) as caught:
        prepared(here, token=TOKEN)
    error = caught.value.message + caught.value.hint
    assert f"{name} has {what}" in error
    assert secret not in error


@pytest.mark.usefixtures("quick")
def test_a_secret_that_only_the_card_contains(here: Path, hub: HubDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning.card, "render_card", lambda *_: SECRETS["an AWS key"])
    assert "README.md has an AWS key" in refused(here, hub)


def test_a_secret_is_reported_first(here: Path, hub: HubDouble) -> None:
    in_config(here, SECRETS["a GitHub token"])
    remove_proof(here)
    said = refused(here, hub, license=None)
    assert "config.json has a GitHub token" in said
    assert SECRETS["a GitHub token"] not in said


# --- the license -------------------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the replay and the plot, which take a second."""
    monkeypatch.setattr(planning, "replay", lambda checked: read_report(checked.parity))
    monkeypatch.setattr(planning.plot, "parity_png", lambda report: b"a picture")


def set_license(here: Path, text: str) -> None:
    edit_json(here / "config.json", lambda config: config["source"].update(license=text))


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("license_text", ["unknown", "", "  ", "Unknown"])
def test_an_unstated_license(license_text: str, here: Path, hub: HubDouble) -> None:
    set_license(here, license_text)
    error = refused(here, hub, license=None)
    assert "The license of these weights is unknown" in error
    assert "--license" in error
    assert prepared(here, license="CC-BY-4.0").license == "CC-BY-4.0"


@pytest.mark.parametrize("said", ["unknown", "UNKNOWN", "", "x", "MIT\nlicense: other", "-MIT", "M I T", "a" * 65])
def test_an_invalid_license(said: str, here: Path, hub: HubDouble) -> None:
    assert "is not a license" in refused(here, hub, license=said)


@pytest.mark.usefixtures("quick")
def test_a_license_cannot_contradict_the_artifact(here: Path, hub: HubDouble) -> None:
    set_license(here, "Apache-2.0")
    assert "are under Apache-2.0, but --license says MIT" in refused(here, hub)
    found = prepared(here, license="apache-2.0")
    assert found.license == "Apache-2.0"
    assert b"\nlicense: apache-2.0\n" in found.files["README.md"]
    assert prepared(here, license=None).files == found.files


@pytest.mark.usefixtures("quick")
def test_the_license_from_the_registry(here: Path, hub: HubDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = replace(registry.get("celo"), family=FAMILY, license="Apache-2.0")
    source = replace(entry.sources[0], sha256=random_weights(FAMILY)[0].source.sha256)
    monkeypatch.setattr(registry, "load_registry", lambda: {"mine": replace(entry, sources=(source,))})
    set_license(here, "MIT")
    assert "are under Apache-2.0" in refused(here, hub)
    result = prepared(here, license=None)
    assert result.license == "Apache-2.0"
    assert result.entry is not None


def test_the_origin_of_the_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    made = random_weights(FAMILY)[0]
    entry = replace(registry.get("celo"), family=FAMILY)
    source = replace(entry.sources[0], uri="hf://org/theirs/theta.state", sha256=None)
    of_it = replace(made, source=replace(made.source, uri=source.uri))

    def found(made: Artifact, sha256: str | None, family: str = FAMILY) -> bool:
        there = replace(entry, family=family, sources=(replace(source, sha256=sha256),))
        monkeypatch.setattr(registry, "load_registry", lambda: {"theirs": there})
        return find_entry(made) is not None

    assert found(of_it, None), "by its address"
    assert not found(made, None)
    assert found(made, made.source.sha256), "by its hash, from any address"
    assert not found(of_it, "0" * 64), "an address is not enough if the entry has a hash"
    assert not found(of_it, None, "velo")


# --- determinism -------------------------------------------------------------------------------------------------


def test_the_same_bytes_each_time(here: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    again = prepared(proven(elsewhere))
    assert again.files == plan().files
    assert again.digest == plan().digest
    assert str(tmp_path).encode() not in b"".join(again.files.values())


def test_a_later_proof_does_not_change_the_card(here: Path) -> None:
    path = here / "parity.json"
    path.write_bytes(path.read_bytes().replace(b'"created": "20', b'"created": "21'))
    later = prepared(here)
    assert later.files["parity.json"] != plan().files["parity.json"]
    assert later.files["README.md"] == plan().files["README.md"]


def test_the_digest_is_of_names_and_contents() -> None:
    renamed = replace(light(), files={f"x{name}": data for name, data in light().files.items()})
    assert len({light().digest, renamed.digest, plan().digest}) == 3
    assert replace(light(), files=dict(reversed([*light().files.items()]))).digest == light().digest
