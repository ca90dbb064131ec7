"""docs/security.md is tested: each line that claims a defense names tests, here or elsewhere."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import hub_faults
import numpy as np
import published
import pytest
from commands import Capture, run
from hub_double import TOKEN, HubDouble
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays
from trees import write_theta

import pylo_zoo
from pylo_zoo import artifact, weights
from pylo_zoo.convert import convert
from pylo_zoo.errors import ZooError
from pylo_zoo.fetch import Access, FetchError
from pylo_zoo.parity.targets import replay_target, verify_target

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "security.md"
ID, URI = "org/elo", "hf://org/elo"
ESCAPES = "\x1b]0;evil\x07\x1b[31m\u202e\n[red]x[/]"

DEFENSES: dict[str, str] = {
    # a malicious checkpoint
    "code in a pickle": """test_pull_checkpoints.test_a_repository_without_a_checkpoint
        test_pull_checkpoints.test_a_pickle_with_another_suffix test_pickles.test_no_code_runs
        test_pickles.test_anything_else_is_refused test_pickles.test_a_mutated_pickle_is_read_or_refused
        test_hostile_config.test_formats_that_can_contain_code_are_refused_before_decoding""",
    "a file that claims to be larger": """test_formats.test_anything_else_is_refused
        test_formats.test_a_file_beyond_the_cap_is_refused test_npz.test_anything_else_is_refused
        test_pickles.test_a_small_file_for_which_numpy_would_allocate_gigabytes
        test_pull_faults.test_a_listing_that_contradicts_the_bytes test_security.test_hostile_weights
        test_security.test_hostile_texts""",
    "a small file that demands": """test_hostile_files.test_a_torch_file_of_many_views
        test_hostile_files.test_a_small_file_with_large_allocations_is_refused_before_allocating
        test_hostile_files.test_a_legal_flax_file_takes_three_times_its_size_at_most
        test_orbax.test_declared_sizes_are_bounded_before_reading""",
    "a pipe, a socket": """
        test_regular_files.test_any_other_kind_of_file_is_one_error test_regular_files.test_the_helper
        test_regular_files.test_a_directory_of_orbax_or_pylo_must_hold_only_files test_regular_files.test_commands""",
    "a `config.json` with sizes": """test_hostile_config.test_a_size_beyond_what_the_weights_hold_is_refused
        test_hostile_config.test_sizes_that_together_exceed_memory_are_refused
        test_hostile_config.test_iterations_are_bounded test_hostile_config.test_a_layout_is_bounded""",
    "damaged or malformed files": """test_hostile_files.test_a_hostile_file_is_one_error
        test_hostile_files.test_bytes_are_flipped_cut_copied_and_inserted test_hostile_files.test_any_msgpack
        test_hostile_files.test_torch_files_of_any_shape test_hostile_files.test_any_safetensors
        test_hostile_config.test_any_value_of_a_config_is_read_or_refused""",
    "a `config.json` with unknown": """test_security.test_hostile_texts
        test_artifact.test_an_invalid_config_is_refused""",
    "tensors missing": "test_security.test_hostile_weights test_artifact.test_invalid_weights_are_refused",
    "a proof of other weights": """test_security.test_hostile_texts
        test_parity_reading.test_contradicting_reports_are_refused""",
    "`defaults` (the learning rate": """
        test_defaults_recorded.test_an_edited_default_is_refused_with_a_remedy""",
    "YAML whose aliases": "test_malformed.test_settings test_malformed.test_registries",
    "a damaged file of recorded vectors": "test_replay_file.test_a_damaged_file_is_refused",
    "texts that a terminal": """test_security.test_escapes_in_untrusted_text_are_neutralized
        test_cli_words.test_escapes_in_file_names_are_neutralized
        test_parity_render.test_untrusted_text_is_escaped_in_the_page
        test_publish_card.test_untrusted_text_is_escaped_in_the_card""",
    "weights that train badly on purpose": "",
    "`parity.json` written by hand": """test_security.test_hostile_texts
        test_security.test_verify_downloads_and_checks_the_original""",
    # a server, or an attacker on the network
    "other bytes of the right length": """test_pull_faults.test_other_bytes_of_the_right_length
        test_pull_pins.test_a_damaged_copy_is_fetched_again_or_refused""",
    "a branch or tag that is moved": """test_pull_pins.test_a_moved_branch_is_ignored_until_accepted
        test_pull_pins.test_a_tag_that_moves test_pull_checkpoints.test_a_branch_that_moves""",
    "a commit whose files change": """test_pull_pins.test_a_lock_file_with_other_hashes
        test_security.test_a_commit_cannot_change""",
    "answers that name places": """test_pull_faults.test_headers_with_paths
        test_pull_faults.test_names_that_lead_elsewhere""",
    "redirects to an unencrypted address": "test_pull_faults.test_a_redirect_to_an_unencrypted_address",
    "a server that never ends": """test_pull_faults.test_an_endless_answer test_pull_faults.test_an_answer_that_drips
        test_pull_faults.test_silence_is_bounded test_pull_faults.test_a_server_that_requests_hours_of_waiting
        test_pull_faults.test_a_server_that_keeps_failing""",
    "the first use of something unpinned": "",
    "a hostile endpoint": """test_security.test_an_endpoint_must_be_encrypted
        test_security.test_addresses_in_an_artifact_cause_no_request""",
    # the user's secrets
    "A token is taken from": "test_security.test_the_token_is_nowhere_afterwards",
    "It goes to the configured endpoint": """test_pull_faults.test_a_redirect_elsewhere_carries_no_token
        test_security.test_the_token_is_sent_only_to_the_endpoint""",
    "Signed addresses, queries": "test_security.test_tracebacks_have_no_secrets",
    "`publish` refuses a directory": "test_security.test_a_directory_with_a_token_is_not_published",
    "An artifact names its source": "test_artifact.test_no_local_path_is_recorded",
}
"""The beginning of a line of the page, and its tests; no test if the page calls it not defended."""


def functions(module: str) -> set[str]:
    """The tests in a module; none if it does not exist."""
    path = TESTS / f"{module}.py"
    tree = ast.parse(path.read_text(encoding="utf-8")) if path.is_file() else ast.Module([], [])
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def claims() -> list[str]:
    """The lines of the page's tables and lists."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if re.match(r"\| (?!danger|---)", line)]
    return [line[2:] for line in [*rows, *(line for line in lines if line.startswith("- "))]]


def test_each_line_of_the_page_has_its_tests() -> None:
    for claim in claims():
        keys = [key for key in DEFENSES if claim.startswith(key)]
        assert len(keys) == 1, claim
        undefended = "**not defended" in claim
        assert undefended == (not DEFENSES[keys[0]]), claim
    assert len(claims()) == len(DEFENSES)
    for word in " ".join(DEFENSES.values()).split():
        module, _, name = word.partition(".")
        assert name in functions(module), f"{word} does not exist"


@pytest.fixture(autouse=True)
def in_an_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# --- malicious published artifacts ---------------------------------------------------------------------------------


def as_json(name: str, change: Callable[[dict[str, Any]], object]) -> Callable[[dict[str, bytes]], object]:
    """Changes a JSON file of an artifact."""

    def spoil(files: dict[str, bytes]) -> None:
        content = json.loads(files[name])
        change(content)
        files[name] = json.dumps(content).encode()

    return spoil


def as_text(name: str, old: str, new: str) -> Callable[[dict[str, bytes]], object]:
    def spoil(files: dict[str, bytes]) -> None:
        assert old.encode() in files[name]
        files[name] = files[name].replace(old.encode(), new.encode(), 1)

    return spoil


def file(name: str, data: bytes) -> Callable[[dict[str, bytes]], object]:
    return lambda files: files.update({name: data})


CONFIG, PROOF = artifact.CONFIG, artifact.PARITY
OTHER_WEIGHTS = published.files(scale=0.2)[PROOF]
TEXTS: dict[str, tuple[Callable[[dict[str, bytes]], object], str]] = {
    "unknown key": (as_json(CONFIG, lambda c: c.update(run="rm")), "unknown field 'run'"),
    "duplicate key": (as_text(CONFIG, '"family"', '"family": "velo", "family"'), "the same key twice"),
    "NaN": (as_json(CONFIG, lambda c: c["behavior"].update(exp_mult=float("nan"))), "exp_mult is nan|NaN"),
    "infinity": (as_json(CONFIG, lambda c: c["defaults"].update(lr=float("inf"))), "lr is inf|Infinity"),
    "NaN as a size": (as_json(CONFIG, lambda c: c["source"].update(bytes=float("nan"))), "bytes is nan|NaN"),
    "another type": (as_json(CONFIG, lambda c: c.update(family=["elo"])), "family is"),
    "another family": (as_json(CONFIG, lambda c: c.update(family="adam")), "family 'adam'"),
    "enormous sizes": (as_json(CONFIG, lambda c: c["architecture"].update(hidden_size=10**12)), "hidden_size is 1000"),
    "nested": (
        as_text(CONFIG, '"layout": {', '"layout": {"x": ' + "[" * 50_000 + "]" * 50_000 + ","),
        "cannot be read",
    ),
    "an enormous text": (file(CONFIG, b'{"format_version": 1}' + b" " * 17 * 2**20), "more than 4,194,304"),
    "later version": (as_json(CONFIG, lambda c: c.update(format_version=2)), "format_version 2"),
    "proof that failed": (as_json(PROOF, lambda p: p.update(status="failed")), "failed its parity check"),
    "proof of other weights": (file(PROOF, OTHER_WEIGHTS), "has changed since its parity check"),
    "proof that is nested": (file(PROOF, b"[" * 100_000), "cannot be read"),
    "proof that is enormous": (file(PROOF, b"{" + b" " * 17 * 2**20 + b"}"), "more than 4,194,304"),
    "proof that is a list": (file(PROOF, b"[]"), "not a JSON object"),
    "proof with an additional field": (as_json(PROOF, lambda p: p.update(comment="good")), "comment"),
    "proof that contradicts itself": (
        as_json(PROOF, lambda p: p["checks"][0]["errors"].update({k: {**v, "value": 1.0} for k, v in _errors(p)})),
        "parity.json",
    ),
    "status of another type": (as_json(PROOF, lambda p: p.update(status=["passed"])), "status"),
}


def _errors(proof: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return list(proof["checks"][0]["errors"].items())


def refused(hub: HubDouble, files: dict[str, bytes], access: Access, complaint: str) -> None:
    hub.create(ID, files)
    for _ in range(2):
        with pytest.raises(ZooError, match=complaint) as error:
            weights.pull(ID, access=access)
        assert error.value.hint


@pytest.mark.parametrize("case", TEXTS)
def test_hostile_texts(case: str, hub: HubDouble, access: Access) -> None:
    files = dict(published.files())
    spoil, complaint = TEXTS[case]
    spoil(files)
    refused(hub, files, access, complaint)


def tensors(change: Callable[[dict[str, np.ndarray]], object]) -> bytes:
    arrays = load_arrays(published.files()[artifact.WEIGHTS])
    change(arrays)
    return save_arrays(arrays)


def header(change: Callable[[dict[str, Any]], object]) -> bytes:
    """The weights under another header."""
    data = published.files()[artifact.WEIGHTS]
    length = int.from_bytes(data[:8], "little")
    fields = json.loads(data[8 : 8 + length])
    change(fields)
    text = json.dumps(fields).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def first(fields: dict[str, Any]) -> dict[str, Any]:
    return next(value for name, value in fields.items() if name != "__metadata__")


WEIGHTS: dict[str, bytes] = {
    "missing": tensors(lambda a: a.popitem()),
    "extra": tensors(lambda a: a.update(x=np.zeros(1, np.float32))),
    "another shape": tensors(lambda a: a.update({k: v.reshape(*v.shape, 1) for k, v in a.items()})),
    "float64": tensors(lambda a: a.update({k: v.astype(np.float64) for k, v in a.items()})),
    "NaN": tensors(lambda a: a.update({k: np.full_like(v, np.nan) for k, v in a.items()})),
    "infinite": tensors(lambda a: a.update({k: np.full_like(v, np.inf) for k, v in a.items()})),
    "a header beyond the file": (2**60).to_bytes(8, "little") + b"{}",
    "a header of gigabytes": (90 * 10**6).to_bytes(8, "little") + b"{" + b" " * 100,
    "offsets beyond the file": header(lambda h: first(h).update(data_offsets=[0, 2**40])),
    "a shape of gigabytes": header(lambda h: first(h).update(shape=[2**20, 2**20])),
    "negative": header(lambda h: first(h).update(shape=[-1])),
    "not safetensors": b"cos\nsystem\n(S'x'\ntR.",
    "cut": published.files()[artifact.WEIGHTS][:-1],
}


@pytest.mark.parametrize("case", WEIGHTS)
def test_hostile_weights(case: str, hub: HubDouble, access: Access, zoo_home: Path) -> None:
    refused(hub, {**published.files(), artifact.WEIGHTS: WEIGHTS[case]}, access, r"model\.safetensors")
    assert not list((zoo_home / "hub").glob("*/[!.]*"))
    assert not (zoo_home / "zoo.lock").exists()


def test_a_proof_of_another_version_is_ignored(hub: HubDouble, access: Access) -> None:
    files = dict(published.files())
    as_json(PROOF, lambda p: p.update(schema_version=99, more=[1]))(files)
    hub.create(ID, files)
    messages: list[str] = []
    checkout = weights.pull(ID, access=replace(access, notify=messages.append))
    assert checkout.artifact.parity is None
    assert messages[-1] == f"Ignoring the parity report of {URI}: another version of pylo-zoo wrote it."


def test_escapes_in_untrusted_text_are_neutralized(hub: HubDouble, capsys: Capture) -> None:
    files = dict(published.files())

    def spoil(content: dict[str, Any]) -> None:
        content["name"] = ESCAPES
        content["source"] |= {"uri": f"hf://{ESCAPES}", "license": ESCAPES}

    as_json(CONFIG, spoil)(files)
    hub.create(ID, {**files, artifact.CARD: f"# {ESCAPES}".encode()})
    hub.create("org/other", {f"{ESCAPES}.bin": b"x", "a.bin": b"x"})
    for words in (["pull", ID], ["pull", ID, "--json"], ["pull", "org/other"], ["pull", ID, "--out", "out"]):
        run(*words)
        shown = "".join(capsys.readouterr())
        assert not {sign for sign in shown if not sign.isprintable()} - {"\n"}, words
    assert "\\x1b[31m" in shown
    assert "[red]" in shown


# --- immutability and requests -------------------------------------------------------------------------------------


def test_a_commit_cannot_change(hub: HubDouble, access: Access, zoo_home: Path) -> None:
    """The same commit with other files is refused by the lock file and by a registry's pin."""
    repo = hub.create(ID, published.files())
    weights.pull(ID, access=access)
    head = repo.commits[repo.head]
    other = {name: repo.blob(name, data) for name, data in published.files(scale=0.2).items()}
    repo.commits[repo.head] = dataclasses.replace(head, tree=other)
    for path in (zoo_home / "hub", zoo_home / "sources"):
        path.rename(zoo_home / f"lost-{path.name}")
    with pytest.raises(FetchError, match="not the file with the recorded sha256"):
        pylo_zoo.load(URI, access=access)
    assert not (zoo_home / "hub").exists()


@pytest.mark.parametrize("address", ["http://hub.example", "ftp://127.0.0.1", "hub.example", "https://a:b@hub.example"])
def test_an_endpoint_must_be_encrypted(
    address: str, hub: HubDouble, access: Access, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", address)
    with pytest.raises(FetchError):
        weights.pull(ID, access=access)
    assert hub.log == []


@pytest.mark.parametrize(
    "uri",
    ["https://localhost:{port}/x", "http://127.0.0.1:{port}/x", "file:/etc/passwd", "/etc/passwd", "ftp://x/y", "x"],
)
def test_addresses_in_an_artifact_cause_no_request(
    uri: str, hub: HubDouble, access: Access, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = dict(published.files())
    for name in (CONFIG, "parity.json"):
        as_json(name, lambda c: c["source"].update(uri=uri.format(port=hub.url.rpartition(":")[2])))(files)
    hub.create(ID, files)
    weights.pull(ID, access=access)
    count = len(hub.log)
    with pytest.raises(ZooError, match="is not available") as error:
        verify_target(URI, access=access)
    assert error.value.hint == "Pass it with --source FILE."
    assert len(hub.log) == count


def test_verify_downloads_and_checks_the_original(hub: HubDouble, access: Access, tmp_path: Path) -> None:
    """``verify`` downloads the original from the place on the Hub that the artifact names, and its hash must match."""
    converted = convert("elo", source=write_theta(tmp_path, "elo", scale=0.1))
    files = dict(published.files())
    as_json(CONFIG, lambda c: c["source"].update(uri="hf://org/theirs/theta.state"))(files)
    hub.create(ID, files)
    data = (tmp_path / "theta.state").read_bytes()
    hub.create("org/theirs", {"theta.state": data[:-1] + bytes([data[-1] ^ 1])})
    with pytest.raises(FetchError, match=f"is not the expected file: sha256 .*, not {converted.source.sha256}"):
        verify_target(URI, access=access)
    with pytest.raises(ZooError, match="vectors"):
        replay_target(URI, access=access)


# --- secrets -------------------------------------------------------------------------------------------------------


def test_the_token_is_sent_only_to_the_endpoint(hub: HubDouble, access: Access) -> None:
    hub.create(ID, published.files())
    weights.pull(ID, access=replace(access, token=TOKEN))
    brought = {request.origin for request in hub.log if TOKEN in str(request.headers)}
    assert (brought, {request.origin for request in hub.log}) == ({"hub"}, {"hub", "cdn"})
    assert TOKEN not in repr(replace(access, token=TOKEN))


PULLS = """
import os, sys
from pylo_zoo import cli
from pylo_zoo.fetch import retry
retry.Policy.__init__.__defaults__ = (*retry.Policy.__init__.__defaults__[:-2], 2.0, lambda seconds: None)
for words in sys.argv[1:]:
    try:
        cli.main(words.split())
    except SystemExit as end:
        print("status", end.code)
"""


def test_the_token_is_nowhere_afterwards(hub: HubDouble, tmp_path: Path) -> None:
    """The same holds for signed addresses: neither printed, nor in a traceback, nor in a file."""
    hub.create(ID, published.files())
    hub.create("org/closed", published.files(), private=True)
    hub.create("org/broken", published.files())
    hub.create("org/cut", published.files(scale=0.3))
    hub.plant("GET", "/org/broken/", hub_faults.wrong_bytes, times=99)
    large = published.files(scale=0.3)[artifact.WEIGHTS]
    hub.plant("GET", f"/{hashlib.sha256(large).hexdigest()}", hub_faults.status(403), times=99)
    env = hub.environment(tmp_path / "hf-home", PYLO_ZOO_HOME=str(tmp_path / "home"), PYLO_ZOO_DEBUG="1")
    del env["HF_TOKEN"]
    token = f"--token {TOKEN}"
    words = [f"pull {name} {token}" for name in (ID, "org/closed", "org/broken", "org/cut", "org/nosuch", f"{ID}@v9")]
    words += [f"pull {ID} {token} --json --out out", "pull org/closed --token hf_sekretwrong"]
    done = subprocess.run(
        [sys.executable, "-c", PULLS, *words], env=env, capture_output=True, text=True, timeout=120, check=False
    )
    shown = done.stdout + done.stderr
    assert re.findall(r"^status (.)", done.stdout, re.MULTILINE) == ["0", "0", "1", "1", "1", "1", "0", "0"], shown
    assert "Traceback" in done.stderr
    assert "sekret" not in shown
    assert "X-Amz" not in shown
    written = published.tree(tmp_path)
    assert any(name.startswith("hf-home") for name in written)
    assert [name for name, data in written.items() if b"sekret" in data or b"X-Amz" in data] == []


def test_tracebacks_have_no_secrets(hub: HubDouble, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYLO_ZOO_DEBUG", "1")
    hub.create(ID, published.files())
    hub.plant("GET", "^/[0-9a-f]{64}$", hub_faults.status(400), times=99)
    assert run("pull", ID) == 1
    shown = "".join(capsys.readouterr())
    assert "Traceback" in shown
    assert "sekret" not in shown
    assert "Amz" not in shown


def test_a_directory_with_a_token_is_not_published(hub: HubDouble, capsys: Capture, tmp_path: Path) -> None:
    files = dict(published.files())
    as_json(CONFIG, lambda c: c.update(name=f"mine {TOKEN}"))(files)
    (tmp_path / "made").mkdir()
    for name, data in files.items():
        (tmp_path / "made" / name).write_bytes(data)
    words = ("--repo-id", "org/made", "--license", "MIT", "--allow-unverified")
    assert run("publish", tmp_path / "made", *words) == 1
    assert TOKEN not in "".join(capsys.readouterr())
    assert hub.requests("POST|PUT", ".") == []


# --- this machine --------------------------------------------------------------------------------------------------


def test_the_pages_statements_about_this_machine() -> None:
    """Its sentences and their tests."""
    text = PAGE.read_text(encoding="utf-8")
    for sentence, (module, name) in {
        "moved into place complete": ("test_pull_machine", "test_a_disk_that_fails"),
        "leaves a hidden file": ("test_pull_machine", "test_leftovers_of_a_killed_process"),
        "except what the lock file and the registry pin": ("test_pull_pins", "test_a_listing_of_other_weights"),
        "Symbolic links": ("test_pull_pins", "test_directories_that_are_links"),
        "Several processes may share it": ("test_pull_machine", "test_processes_share_a_cache"),
    }.items():
        assert sentence in text
        assert name in functions(module)
