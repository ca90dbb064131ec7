"""The registry file is complete and agrees with the tables; an invalid one is refused with place and reason."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import pytest
import yaml
from golden_data import CHECKPOINTS

from pylo_zoo import converters, registry
from pylo_zoo.convert import cache
from pylo_zoo.errors import ZooError, did_you_mean
from pylo_zoo.fetch import parse

ENTRIES = registry.load_registry()

GOOD: dict[str, Any] = {
    "family": "velo",
    "summary": "A VeLO.",
    "license": "unknown",
    "trained": True,
    "sources": [{"uri": "hf://org/repo/theta.state", "format": "flax-msgpack"}],
}


def write(path: Path, document: Any) -> Path:
    path = path / "registry.yaml"
    path.write_text(document if isinstance(document, str) else yaml.safe_dump(document), encoding="utf-8")
    return path


def test_every_published_checkpoint_is_listed() -> None:
    velo = {"velo", "velo-s", "velo-4000", "velo-pylo", "velo-sample"}
    no_config = {"aug11_aug4_trunc10per_avg", "aug11_aug4_trunc10per_last"}
    others = {"celo", "celo-adam", "celo2", "celo2-base", "celo2-pylo", "elo", "elo-celo2", "adafac-mlp", "mulo"}
    assert set(ENTRIES) >= velo | no_config | others
    assert {entry.family for entry in ENTRIES.values()} == set(converters.FAMILIES)


def test_only_the_sample_is_untrained_and_it_ships() -> None:
    assert [entry.name for entry in ENTRIES.values() if not entry.trained] == ["velo-sample"]
    for source in registry.get("velo-sample").sources:
        assert source.path is not None
        assert source.path.is_file()


def test_an_entry_states_what_its_files_lack() -> None:
    assert registry.get("velo").behavior.ff_mult == 100.0
    assert registry.get("velo-s").behavior.ff_mult == 1.0
    assert registry.get("aug11_aug4_trunc10per_avg").behavior.use_bugged_next_lstm_state
    assert not registry.get("velo").behavior.use_bugged_next_lstm_state
    learned = registry.get("mulo").learned_decays
    assert learned is not None
    assert learned.rms == (0.01079706,)
    assert registry.get("elo-celo2").defaults == {
        "lr": 0.001,
        "weight_decay": 0.1,
        "clip_norm": 1.0,
        "adam_lr_mult": 1.0,
    }


def test_sizes() -> None:
    assert registry.get("celo").bytes == 149_216
    assert registry.get("velo").bytes == 9_282_564, "config.gin is not counted"
    assert registry.get("velo-pylo").bytes == 9_119_908 + 164_296, "both repositories"
    assert registry.get("velo-s").bytes is None


@pytest.mark.parametrize("name", ["celo", "celo-adam"])
def test_pins_match_the_real_files(name: str) -> None:
    content = (CHECKPOINTS / name / "theta.state").read_bytes()
    weights = registry.get(name).weights
    assert (len(content), hashlib.sha256(content).hexdigest()) == (weights.bytes, weights.sha256)


@pytest.mark.parametrize(
    ("uri", "filename", "origin"),
    [
        ("hf://org/repo/sub/theta.state", "theta.state", "org"),
        ("hf://org/repo/theta.state@v1", "theta.state", "org"),
        ("hf://org/repo@v1/theta.state", "theta.state", "org"),
        ("gs://bucket/dir/params", "params", "bucket"),
        ("https://example.org/dir/theta.state", "theta.state", "example.org"),
    ],
)
def test_allowed_sources(uri: str, filename: str, origin: str, tmp_path: Path) -> None:
    sources = [{"uri": uri, "format": "flax-msgpack"}]
    weights = registry.load_registry(write(tmp_path, {"mine": GOOD | {"sources": sources}}))["mine"].weights
    assert (weights.filename, weights.origin) == (filename, origin)
    assert parse(uri).name == filename, "accepted sources can be fetched"


def test_entries_are_frozen() -> None:
    entry = registry.get("celo")
    with pytest.raises(dataclasses.FrozenInstanceError):
        entry.license = "other"  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(TypeError):
        entry.defaults["lr"] = 2.0  # pyright: ignore[reportIndexIssue]
    with pytest.raises(TypeError):
        ENTRIES["mine"] = entry  # pyright: ignore[reportIndexIssue]


def test_a_misspelled_name_gets_a_suggestion() -> None:
    with pytest.raises(ZooError, match=r"Unknown checkpoint 'cello'.*Did you mean 'celo'\?"):
        registry.get("cello")
    with pytest.raises(ZooError) as caught:
        registry.get("zzzzzz")
    assert "Did you mean" not in caught.value.hint


@pytest.mark.parametrize(
    ("name", "known", "hint"),
    [
        ("CELO_Adam", ["celo", "celo-adam"], "Did you mean 'celo-adam'? More."),
        ("exp-mlt", ["Exp_Mult", "lr"], "Did you mean 'Exp_Mult'? More."),
        ("zzzz", ["celo"], "More."),
        ("", [], "More."),
    ],
)
def test_suggestions_ignore_case_and_hyphens(name: str, known: list[str], hint: str) -> None:
    assert did_you_mean(name, known, "More.") == hint
    assert did_you_mean(name, known) == hint.removesuffix("More.").rstrip()


def test_a_minimal_entry(tmp_path: Path) -> None:
    entry = registry.load_registry(write(tmp_path, {"mine": GOOD}))["mine"]
    assert (entry.weights.origin, entry.weights.filename, entry.weights.path) == ("org", "theta.state", None)
    assert (entry.architecture, entry.paper, dict(entry.defaults)) == (None, None, {})
    assert entry.behavior.ff_mult == 100.0


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"famly": "velo"}, "mine: unknown field 'famly'"),
        ({"family": "adam"}, "mine: family 'adam' is unknown"),
        ({"family": 3}, "mine: family is 3"),
        ({"summary": None}, "mine: summary is None"),
        ({"trained": "yes"}, "mine: trained is 'yes'"),
        ({"sources": []}, r"mine: sources is \[\]"),
        ({"sources": ["theta.state"]}, r"mine: sources\[0\] is 'theta.state'"),
        ({"architecture": {"lstm_hidden_size": 64}}, "mine: architecture: .* missing"),
        ({"behavior": {"ff_mul": 1}}, "mine: behavior: unknown field 'ff_mul'"),
        ({"behavior": {"ff_mult": "big"}}, r"mine: behavior\.ff_mult is 'big'"),
        ({"behavior": 3}, "mine: behavior is 3"),
        ({"defaults": {"clip_norm": 1.0}}, "mine: defaults: unknown field 'clip_norm'"),
        ({"defaults": {"lr": "1e-3"}}, r"mine: defaults\.lr is '1e-3'"),
        ({"defaults": {"lr": float("nan")}}, r"mine: defaults\.lr is nan"),
        ({"defaults": {"lr": True}}, r"mine: defaults\.lr is True"),
        ({"learned_decays": {"rms": [0.1]}}, "mine: learned_decays: velo has no learned decays"),
        ({"family": "mulo", "learned_decays": {"rms": [0.1]}}, "mine: learned_decays: momentum, adafactor missing"),
        ({"paper": {"arxiv": "VeLO", "title": "VeLO"}}, r"mine: paper\.arxiv is 'VeLO'"),
        ({"paper": {"arxiv": 2211.0976, "title": "VeLO"}}, r"mine: paper\.arxiv is 2211.0976"),
    ],
)
def test_a_wrong_entry_is_refused(tmp_path: Path, change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ZooError, match=complaint):
        registry.load_registry(write(tmp_path, {"mine": GOOD | change}))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"sha256": "abc"}, r"mine: sources\[0\]\.sha256 is 'abc'"),
        ({"sha256": "A" * 64}, r"mine: sources\[0\]\.sha256 is 'A+'"),
        ({"bytes": -1}, r"mine: sources\[0\]\.bytes is -1"),
        ({"format": "gguf"}, r"mine: sources\[0\]\.format is 'gguf'"),
        ({"format": "gin"}, r"mine: sources\[0\] is gin"),
        ({"size": 3}, r"mine: sources\[0\]: unknown field 'size'"),
        *(
            ({"uri": uri}, r"mine: sources\[0\]\.uri is ")
            for uri in (
                "theta.state",
                "http://example.org/theta.state",
                "file:///theta.state",
                "hf://org/theta.state",
                "hf://org/repo/../theta.state",
                "hf://org/repo@v1/theta.state@v2",
                "https://example.org",
                "https://user@example.org/theta.state",
                "https://example.org/theta.state?token=x",
                "package://../secret",
                "gs://bucket",
            )
        ),
    ],
)
def test_a_wrong_source_is_refused(tmp_path: Path, change: dict[str, Any], complaint: str) -> None:
    entry = GOOD | {"sources": [GOOD["sources"][0] | change]}
    with pytest.raises(ZooError, match=complaint):
        registry.load_registry(write(tmp_path, {"mine": entry}))


@pytest.mark.parametrize("format", sorted(set(cache.NAMES) - {"orbax"}))
def test_every_file_format_is_accepted(tmp_path: Path, format: str) -> None:
    """orbax is a directory, which a source's address cannot name."""
    entry = GOOD | {"sources": [GOOD["sources"][0] | {"format": format}]}
    assert registry.load_registry(write(tmp_path, {"mine": entry}))["mine"].weights.format == format


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("celo: 1\ncelo: 2", "not valid YAML: the key 'celo' is repeated"),
        ("celo: {family: velo, family: celo}", "not valid YAML: the key 'family' is repeated"),
        ("celo: !!python/object/apply:os.getcwd []", "not valid YAML"),
        ("celo: [", "not valid YAML"),
        ("- celo", "registry.yaml is "),
        ("Bad Name: {}", "registry.yaml: Bad Name is not a valid name"),
        ("3: {}", "registry.yaml: 3 is not a valid name"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(ZooError, match=complaint):
        registry.load_registry(write(tmp_path, text))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ZooError, match="Cannot read the registry"):
        registry.load_registry(tmp_path / "none.yaml")


def test_the_page_of_the_zoo_is_current() -> None:
    import zoo_docs

    assert zoo_docs.PAGE.read_text(encoding="utf-8") == zoo_docs.render_page(), "Run: python tests/zoo_docs.py"
