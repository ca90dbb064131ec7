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
from pylo_zoo.publish import PublishPlan, prepare, publish
from pylo_zoo.publish import plan as planning
from pylo_zoo.publish.plan import PUBLISHED, find_entry
from pylo_zoo.report.reading import read_report

pytest.importorskip("jax")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """An artifact's directory, with its proof."""
    return proven(tmp_path)


def refused(directory: Path, hub: HubDouble, **how: Any) -> str:
    """Why publishing is refused; nothing is sent and no directory changes."""
    before = {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}
    with pytest.raises(ZooError) as caught:
        publish(directory, REPO, **{"license": "MIT", **how})
    assert hub.log == []
    assert before == {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}
    return words(caught.value)


def prepared(directory: Path, **how: Any) -> PublishPlan:
    return prepare(directory, Repository(REPO), **{"license": "MIT", **how})


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


def remove_proof(directory: Path) -> None:
    (directory / "parity.json").unlink()
    (directory / "parity-vectors.safetensors").unlink()


def mark_as_failed(directory: Path) -> None:
    def change(report: dict[str, Any]) -> None:
        report["leaves"] = {**report["leaves"], "differing": ["a"], "passed": False}
        report["status"] = "failed"

    edit_json(directory / "parity.json", change)


def mark_as_not_run(directory: Path) -> None:
    kept = ("schema_version", "name", "family", "source", "fingerprint", "leaves", "statements", "environment")
    report = json.loads((directory / "parity.json").read_text())
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
    (directory / "parity.json").write_text(json.dumps({key: report[key] for key in kept} | bare | more))


def change_weights(directory: Path) -> None:
    changed = corrupted(artifact.read(directory), "controller.step_size.bias", 1.01)
    vectors = (directory / "parity-vectors.safetensors").read_bytes()
    artifact.write(changed, directory, force=True, extra_files={"parity-vectors.safetensors": vectors})


def another_version(directory: Path) -> None:
    edit_json(directory / "parity.json", lambda report: report["environment"].update({"pylo-zoo": "0.0.1"}))


def without_vectors(directory: Path) -> None:
    (directory / "parity-vectors.safetensors").unlink()


def other_vectors(directory: Path) -> None:
    path = directory / "parity-vectors.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")


def wrong_vectors(directory: Path) -> None:
    """Valid vectors that match the report, but of a run that the installed code does not reproduce."""
    path = directory / "parity-vectors.safetensors"
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        about = file.metadata()
    arrays = load(path.read_bytes())
    name = max(arrays, key=lambda each: arrays[each].size if np.issubdtype(arrays[each].dtype, np.floating) else 0)
    arrays[name] = arrays[name] * 1.5 + 1
    path.write_bytes(save(arrays, about))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    edit_json(directory / "parity.json", lambda report: report.update(vectors_sha256=digest))


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
def test_without_a_proof(kind: str, directory: Path, hub: HubDouble) -> None:
    spoil, message = UNFIT[kind]
    spoil(directory)
    error = refused(directory, hub)
    assert message in error
    assert "--allow-unverified" in error


@pytest.mark.parametrize("kind", UNFIT)
def test_without_a_proof_but_allowed(kind: str, directory: Path) -> None:
    UNFIT[kind][0](directory)
    result = prepared(directory, allow_unverified=True)
    assert not result.verified
    text = result.files["README.md"].decode().split("---\n", 2)[2]
    first = next(line for line in text.splitlines() if line.startswith(">"))
    assert "NOT VERIFIED" in first
    assert text.index(first) < 200, "before anything else"
    assert result.files.keys() >= {"model.safetensors", "config.json", "README.md"}
    proof = {"parity.json"} if kind == "not run" else set()
    assert result.files.keys() & {"parity.json", "parity-vectors.safetensors", "parity.html", "parity.png"} == proof
    assert set(result.left_out) == {path.name for path in directory.iterdir()} - result.files.keys()


def test_a_report_without_a_run_must_match_the_weights(directory: Path) -> None:
    mark_as_not_run(directory)
    report = (directory / "parity.json").read_bytes()
    change_weights(directory)
    (directory / "parity.json").write_bytes(report)
    assert "parity.json" not in prepared(directory, allow_unverified=True).files


@pytest.mark.parametrize("allowed", [False, True])
def test_a_failed_proof_is_never_published(allowed: bool, directory: Path, hub: HubDouble) -> None:
    mark_as_failed(directory)
    error = refused(directory, hub, allow_unverified=allowed)
    assert "its parity check failed" in error
    assert "is never published" in error


def test_weights_that_change_during_the_replay(
    directory: Path, hub: HubDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = planning.replay

    def slow(checked: Artifact) -> Any:
        result = true(checked)
        change_weights(directory)
        return result

    monkeypatch.setattr(planning, "replay", slow)
    with pytest.raises(ZooError, match="changed while it was read"):
        prepared(directory)


# --- the directory -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["notes.txt", ".env", ".git", "theta.state", "model.safetensors.bak", "config.json~"])
def test_an_unknown_file(name: str, directory: Path, hub: HubDouble) -> None:
    (directory / name).write_text("HF_TOKEN=1")
    error = refused(directory, hub)
    assert f"contains files that do not belong to an artifact: {name}" in error
    assert "nothing was sent" in error


def test_a_subdirectory(directory: Path, hub: HubDouble) -> None:
    (directory / "old").mkdir()
    assert "contains files that do not belong to an artifact: old" in refused(directory, hub)


def test_a_file_that_is_not_regular(directory: Path, hub: HubDouble, tmp_path: Path) -> None:
    weights = directory / "model.safetensors"
    weights.rename(tmp_path / "elsewhere")
    weights.symlink_to(tmp_path / "elsewhere")
    assert "model.safetensors is not a regular file" in refused(directory, hub)
    weights.unlink()
    weights.mkdir()
    assert "model.safetensors is not a regular file" in refused(directory, hub)
    weights.rmdir()
    os.mkfifo(weights)
    assert "model.safetensors is not a regular file" in refused(directory, hub)


@pytest.mark.usefixtures("quick")
def test_files_that_are_not_published(directory: Path) -> None:
    (directory / "model.pt").write_bytes(b"a pickle")
    (directory / "parity.html").write_text("an old one")
    (directory / "README.md").write_text("an old one")
    (directory / ".model.safetensors.new-0123abcd").write_text("left behind by a process that was killed")
    result = prepared(directory)
    assert result.left_out == ("README.md", "model.pt")
    assert result.files.keys() == plan().files.keys()
    assert result.files["README.md"] != b"an old one" != result.files["parity.html"]


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


def in_config(directory: Path, secret: str) -> None:
    edit_json(directory / "config.json", lambda config: config.update(name=secret))


def in_source(directory: Path, secret: str) -> None:
    edit_json(directory / "config.json", lambda config: config["source"].update(uri=secret))


def in_parity(directory: Path, secret: str) -> None:
    edit_json(directory / "parity.json", lambda report: report.update(name=secret))


def in_weights(directory: Path, secret: str) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(save(load(path.read_bytes()), {"format": "pt", "from": secret}))


def in_vectors(directory: Path, secret: str) -> None:
    path = directory / "parity-vectors.safetensors"
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
def test_a_secret(what: str, place: str, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: Path("/home/somebody"))
    secret = SECRETS[what].replace("~", "/home/somebody")
    name, plant = PLACES[place]
    plant(directory, secret)
    with pytest.raises(ZooError) as caught:
        prepared(directory, token=TOKEN)
    error = caught.value.message + caught.value.hint
    assert f"{name} has {what}" in error
    assert secret not in error


@pytest.mark.usefixtures("quick")
def test_a_secret_that_only_the_card_contains(directory: Path, hub: HubDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning.card, "render_card", lambda *_: SECRETS["an AWS key"])
    assert "README.md has an AWS key" in refused(directory, hub)


def test_a_secret_is_reported_first(directory: Path, hub: HubDouble) -> None:
    in_config(directory, SECRETS["a GitHub token"])
    remove_proof(directory)
    error = refused(directory, hub, license=None)
    assert "config.json has a GitHub token" in error
    assert SECRETS["a GitHub token"] not in error


# --- the license -------------------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the replay and the plot, which take a second."""
    monkeypatch.setattr(planning, "replay", lambda checked: read_report(checked.parity))
    monkeypatch.setattr(planning.plot, "parity_png", lambda report: b"a picture")


def set_license(directory: Path, text: str) -> None:
    edit_json(directory / "config.json", lambda config: config["source"].update(license=text))


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("license_text", ["unknown", "", "  ", "Unknown"])
def test_an_unstated_license(license_text: str, directory: Path, hub: HubDouble) -> None:
    set_license(directory, license_text)
    error = refused(directory, hub, license=None)
    assert "The license of these weights is unknown" in error
    assert "--license" in error
    assert prepared(directory, license="CC-BY-4.0").license == "CC-BY-4.0"


@pytest.mark.parametrize(
    "license_text", ["unknown", "UNKNOWN", "", "x", "MIT\nlicense: other", "-MIT", "M I T", "a" * 65]
)
def test_an_invalid_license(license_text: str, directory: Path, hub: HubDouble) -> None:
    assert "is not a license" in refused(directory, hub, license=license_text)


@pytest.mark.usefixtures("quick")
def test_a_license_cannot_contradict_the_artifact(directory: Path, hub: HubDouble) -> None:
    set_license(directory, "Apache-2.0")
    assert "are under Apache-2.0, but --license says MIT" in refused(directory, hub)
    result = prepared(directory, license="apache-2.0")
    assert result.license == "Apache-2.0"
    assert b"\nlicense: apache-2.0\n" in result.files["README.md"]
    assert prepared(directory, license=None).files == result.files


@pytest.mark.usefixtures("quick")
def test_the_license_from_the_registry(directory: Path, hub: HubDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = replace(registry.get("celo"), family=FAMILY, license="Apache-2.0")
    source = replace(entry.sources[0], sha256=random_weights(FAMILY)[0].source.sha256)
    monkeypatch.setattr(registry, "load_registry", lambda: {"mine": replace(entry, sources=(source,))})
    set_license(directory, "MIT")
    assert "are under Apache-2.0" in refused(directory, hub)
    result = prepared(directory, license=None)
    assert result.license == "Apache-2.0"
    assert result.entry is not None


def test_the_origin_of_the_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    random_artifact = random_weights(FAMILY)[0]
    entry = replace(registry.get("celo"), family=FAMILY)
    source = replace(entry.sources[0], uri="hf://org/theirs/theta.state", sha256=None)
    of_it = replace(random_artifact, source=replace(random_artifact.source, uri=source.uri))

    def is_registered(random_artifact: Artifact, sha256: str | None, family: str = FAMILY) -> bool:
        there = replace(entry, family=family, sources=(replace(source, sha256=sha256),))
        monkeypatch.setattr(registry, "load_registry", lambda: {"theirs": there})
        return find_entry(random_artifact) is not None

    assert is_registered(of_it, None), "by its address"
    assert not is_registered(random_artifact, None)
    assert is_registered(random_artifact, random_artifact.source.sha256), "by its hash, from any address"
    assert not is_registered(of_it, "0" * 64), "an address is not enough if the entry has a hash"
    assert not is_registered(of_it, None, "velo")


# --- determinism -------------------------------------------------------------------------------------------------


def test_the_same_bytes_each_time(directory: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    again = prepared(proven(elsewhere))
    assert again.files == plan().files
    assert again.digest == plan().digest
    assert str(tmp_path).encode() not in b"".join(again.files.values())


def test_a_later_proof_does_not_change_the_card(directory: Path) -> None:
    path = directory / "parity.json"
    path.write_bytes(path.read_bytes().replace(b'"created": "20', b'"created": "21'))
    later = prepared(directory)
    assert later.files["parity.json"] != plan().files["parity.json"]
    assert later.files["README.md"] == plan().files["README.md"]


def test_the_digest_is_of_names_and_contents() -> None:
    renamed = replace(light(), files={f"x{name}": data for name, data in light().files.items()})
    assert len({light().digest, renamed.digest, plan().digest}) == 3
    assert replace(light(), files=dict(reversed([*light().files.items()]))).digest == light().digest
