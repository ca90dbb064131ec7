"""The model card: the Hub reads its front matter, users its body; untrusted text has no effect in either."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token
from parity_reports import HOSTILE, failing, hostile, not_run, passing

import pylo_zoo
from pylo_zoo import registry
from pylo_zoo.artifact import Artifact
from pylo_zoo.errors import ZooError
from pylo_zoo.publish import card_text
from pylo_zoo.publish.card import About, render_card
from pylo_zoo.report.phrases import plain
from pylo_zoo.report.records import Report

FILES = {"config.json": 10, "model.safetensors": 2000, "parity.json": 30, "parity.png": 4, "parity.html": 5}
VECTORS = {"parity-vectors.safetensors": 6}


@pytest.fixture(scope="module")
def artifact() -> Artifact:
    return pylo_zoo.load("velo-sample")


def about(**changes: Any) -> About:
    entry = changes.pop("entry", registry.get("velo-s"))
    usual = About("org/velo-s", "MIT", False, entry, True, {**FILES, **VECTORS})
    return dataclasses.replace(usual, **changes)


def on(report: Report, artifact: Artifact) -> Report:
    return dataclasses.replace(report, fingerprint=artifact.fingerprint)


def split_card(card: str) -> tuple[Mapping[str, Any], str]:
    """Front matter and body, split as the Hub's client does."""
    from huggingface_hub import ModelCard

    read = ModelCard(card)
    _, front, body = card.split("---\n", 2)
    assert read.text.strip() == body.strip()
    values = yaml.safe_load(front)
    assert isinstance(values, dict)
    return values, body


def tokens(body: str) -> list[Token]:
    """The body's tokens for a renderer that allows HTML, inline parts flattened."""
    result = MarkdownIt("commonmark", {"html": True}).enable("table").parse(body)
    return [inner for token in result for inner in [token, *(token.children or [])]]


# --- front matter ------------------------------------------------------------------------------------------------


def test_the_front_matter_has_the_fields_that_the_hub_expects(artifact: Artifact) -> None:
    from huggingface_hub import ModelCard

    report = on(passing(), artifact)
    card = render_card(artifact, report, about())
    front, _ = split_card(card)
    assert front["library_name"] == "pylo-zoo"
    assert front["license"] == "mit"
    assert front["base_model"] == "amoudgl/velo-s"
    assert "pipeline_tag" not in front
    assert {"learned-optimizer", "pytorch", "optimizer", "pylo-zoo", "velo", "arxiv:2211.09760"} == set(front["tags"])
    figures = {each.metric_name: each.metric_value for each in getattr(ModelCard(card).data, "eval_results")}  # noqa: B009
    worst = report.worst_step("float64")
    assert worst is not None
    assert figures["single step, float64: largest error, of the update"] == worst[1].error
    assert figures["leaves equal bit for bit, of 3"] == 3
    assert figures["planted faults that were caught, of 1"] == 1


def test_every_original_on_the_hub_is_a_base_model(artifact: Artifact) -> None:
    both, _ = split_card(render_card(artifact, None, about(entry=registry.get("velo-pylo"))))
    assert both["base_model"] == ["Pauljanson002/VeLO_RNN", "Pauljanson002/VeLO_MLP"]
    none, _ = split_card(render_card(artifact, None, about(entry=registry.get("velo-sample"))))
    assert "base_model" not in none
    assert "model-index" not in none
    source = dataclasses.replace(artifact.source, uri="hf://someone/theirs@abc/theta.state")
    own, _ = split_card(render_card(dataclasses.replace(artifact, source=source), None, about(entry=None)))
    assert own["base_model"] == "someone/theirs"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("MIT", {"license": "mit"}),
        ("Apache-2.0", {"license": "apache-2.0"}),
        ("GPL-3.0-or-later", {"license": "gpl-3.0"}),
        ("unknown", {"license": "unknown"}),
        ("other", {"license": "other"}),
        ("Our Lab's Licence: v2\n---", {"license": "other", "license_name": "our-lab-s-licence-v2"}),
        (HOSTILE, {"license": "other"}),
    ],
)
def test_the_license_is_an_identifier_of_the_hub(artifact: Artifact, name: str, expected: dict[str, str]) -> None:
    front, _ = split_card(render_card(artifact, None, about(license=name)))
    assert expected.items() <= front.items()
    assert re.fullmatch(r"[a-z0-9.-]+", front.get("license_name", "x"))


# --- body --------------------------------------------------------------------------------------------------------


def test_a_missing_proof_is_stated_first(artifact: Artifact) -> None:
    def first(report: Report | None, **changes: Any) -> str:
        _, body = split_card(render_card(artifact, report, about(**changes)))
        return body.strip().partition("\n")[0]

    assert first(on(passing(), artifact)).startswith("# ")
    for report in (None, on(failing(), artifact), on(not_run(), artifact)):
        assert first(report).startswith("> **⚠️ NOT VERIFIED.**")
        assert first(report, verified=False).startswith("> **⚠️ NOT VERIFIED.**")
    assert first(on(passing(), artifact), verified=False).startswith("> **⚠️ NOT VERIFIED.** Its publisher did not")


def test_a_report_of_other_weights_is_refused(artifact: Artifact) -> None:
    with pytest.raises(ZooError, match="fingerprint differs"):
        render_card(artifact, passing(), about())


@pytest.mark.parametrize("name", ["velo", "a/b/c", "../x", "a/b`", "a/b\n", "a /b", "ä/b", ""])
def test_an_invalid_repository_name_is_refused(artifact: Artifact, name: str) -> None:
    with pytest.raises(ZooError, match="not the name of a repository"):
        render_card(artifact, None, about(repo_id=name))


@pytest.mark.parametrize("name", registry.load_registry())
def test_every_entrys_card_names_authors_and_usage(artifact: Artifact, name: str) -> None:
    """The same weights for every entry: only the registry's text differs."""
    entry = registry.get(name)
    family = dataclasses.replace(artifact, name=name)
    card = render_card(
        family, on(passing(), artifact), about(entry=entry, license=entry.license, repo_id=f"org/{name}")
    )
    _, body = split_card(card)
    (code,) = re.findall(r"```python\n(.*?)```", body, re.DOTALL)
    assert f'weights="hf://org/{name}")' in code
    compile(code, name, "exec")
    assert f"pylo-zoo verify hf://org/{name} --replay" in body
    assert ("**Unknown.**" in body) == (entry.license == "unknown")
    assert ("set by hand" in body) == (not entry.trained)
    assert (entry.paper is not None) == ("```bibtex" in body)
    for source in entry.sources:
        assert source.uri in body
    links = {str(token.attrs["href"]) for token in tokens(body) if token.type == "link_open"}
    hosts = ("https://huggingface.co/", "https://storage.googleapis.com/", "https://arxiv.org/")
    assert all(link.startswith(hosts) or link in FILES for link in links)


def test_only_existing_files_are_linked(artifact: Artifact) -> None:
    report = on(passing(), artifact)
    whole, bare = render_card(artifact, report, about()), render_card(artifact, report, about(files={"config.json": 1}))
    for name in ("](parity.png)", "](parity.html)", "](parity.json)", "--replay"):
        assert name in whole
        assert name not in bare


def test_learned_decays_are_shown(artifact: Artifact) -> None:
    import torch

    tensors = {**artifact.tensors, "momentum_decays": torch.tensor([0.25, -0.5, 0.0])}
    body = render_card(dataclasses.replace(artifact, tensors=tensors), None, about())
    assert "| `momentum_decays` | `0.25, -0.5, 0` |" in body


# --- untrusted text ----------------------------------------------------------------------------------------------


def untrusted_card(artifact: Artifact, text: str) -> str:
    """A card in which every external text is ``text``."""
    entry = registry.get("velo-s")
    entry = dataclasses.replace(
        entry, summary=text, notes=text, license=text, paper=registry.Paper("2211.09760", title=text)
    )
    source = dataclasses.replace(artifact.source, uri=text, format=text, license=text)
    other = dataclasses.replace(
        artifact, name=text, source=source, converter=dataclasses.replace(artifact.converter, version=text)
    )
    return render_card(other, on(hostile(text), other), about(entry=entry, license=text, files={text: 1, **FILES}))


ATTACKS = [
    HOSTILE,
    "---\nlicense: mit\n---\n# Passed\n",
    "```\n\n# Passed\n\n```",
    "` | ![x](https://evil.example/x.png) | `",
    "x | y |\n| --- |\n\n[a](javascript:alert(1)) <a href=x>b</a> https://evil.example www.evil.example",
    "{{ 7 * 7 }}{% raw %} $x$ [^1] :smile: @everyone",
]


@pytest.mark.parametrize("text", ATTACKS)
def test_untrusted_text_is_escaped_in_the_card(artifact: Artifact, text: str) -> None:
    card = untrusted_card(artifact, text)
    card.encode("utf-8")
    front, body = split_card(card)
    assert set(front) <= {"library_name", "license", "license_name", "tags", "base_model", "model-index"}
    assert front["model-index"][0]["name"] == " ".join(plain(text).split())
    result, calm = tokens(body), tokens(split_card(untrusted_card(artifact, "calm"))[1])
    kinds = ("heading_open", "fence", "table_open", "tr_open", "td_open", "image", "link_open", "html_block", "hr")
    for kind in (*kinds, "blockquote_open", "bullet_list_open", "list_item_open", "code_block"):
        assert [token.type for token in result].count(kind) == [token.type for token in calm].count(kind), kind
    assert {token.content for token in result if token.type == "html_inline"} == {"<sub>", "</sub>"}
    bare = re.sub(r"```.*?```", "", body, flags=re.DOTALL)  # in code, an address is not a link
    assert not re.search(r"https?://evil|www\.evil", bare)
    heading = next(token for token in result if token.type == "inline" and token.content.endswith(": VeLO for PyTorch"))
    shown = "".join(token.content for token in heading.children or [])
    assert shown == f"{' '.join(plain(text).split())}: VeLO for PyTorch"


def test_the_card_is_deterministic(artifact: Artifact, tmp_path: Path) -> None:
    report = on(passing(), artifact)
    moved = dataclasses.replace(artifact, path=tmp_path)
    backwards = about(files=dict(reversed([*about().files.items()])))
    assert render_card(artifact, report, about()) == render_card(moved, report, backwards)
    assert str(Path.home()) not in render_card(artifact, report, about())


@pytest.mark.parametrize(
    ("uri", "address"),
    [
        ("hf://a/b/c/d.state", "https://huggingface.co/a/b/blob/main/c/d.state"),
        ("hf://a/b/c.state@v1", "https://huggingface.co/a/b/blob/v1/c.state"),
        ("gs://bucket/x/params", "https://storage.googleapis.com/bucket/x/params"),
        ("https://example.org/x", "https://example.org/x"),
        ("https://example.org/x>y", None),
        ("https://example.org/x?token=1", None),
        ("javascript://x/y", None),
        ("hf://a/b/c](x)", None),
        ("theta.state", None),
    ],
)
def test_addresses_for_browsers_are_plain(uri: str, address: str | None) -> None:
    assert card_text.web_address(uri) == address


def test_a_title_cannot_close_the_bibtex_braces() -> None:
    text = card_text.bibtex("2211.09760", "A {title}} with\n``` and \\input{x}")
    assert text.count("{") == text.count("}")
    assert "`" not in text
    assert "\\" not in text
