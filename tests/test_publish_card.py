"""The model card: the Hub reads its front matter, people its body, and no stranger's word does anything in either."""

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
from pylo_zoo.parity.phrases import plain
from pylo_zoo.parity.report import Report
from pylo_zoo.publish import card_text
from pylo_zoo.publish.card import About, render_card

FILES = {"config.json": 10, "model.safetensors": 2000, "parity.json": 30, "parity.png": 4, "parity.html": 5}
VECTORS = {"parity-vectors.safetensors": 6}


@pytest.fixture(scope="module")
def made() -> Artifact:
    return pylo_zoo.load("velo-sample")


def about(**changes: Any) -> About:
    entry = changes.pop("entry", registry.get("velo-s"))
    usual = About("org/velo-s", "MIT", False, entry, True, {**FILES, **VECTORS})
    return dataclasses.replace(usual, **changes)


def on(report: Report, made: Artifact) -> Report:
    return dataclasses.replace(report, fingerprint=made.fingerprint)


def halves(card: str) -> tuple[Mapping[str, Any], str]:
    """Front matter and body, as the Hub's own client tells them apart."""
    from huggingface_hub import ModelCard

    read = ModelCard(card)
    _, front, body = card.split("---\n", 2)
    assert read.text.strip() == body.strip()
    values = yaml.safe_load(front)
    assert isinstance(values, dict)
    return values, body


def tokens(body: str) -> list[Token]:
    """The body as a renderer that obeys HTML takes it, inline parts unfolded."""
    found = MarkdownIt("commonmark", {"html": True}).enable("table").parse(body)
    return [inner for token in found for inner in [token, *(token.children or [])]]


# --- front matter ------------------------------------------------------------------------------------------------


def test_the_front_matter_says_what_the_hub_asks(made: Artifact) -> None:
    from huggingface_hub import ModelCard

    report = on(passing(), made)
    card = render_card(made, report, about())
    front, _ = halves(card)
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


def test_every_original_on_the_hub_is_a_base_model(made: Artifact) -> None:
    both, _ = halves(render_card(made, None, about(entry=registry.get("velo-pylo"))))
    assert both["base_model"] == ["Pauljanson002/VeLO_RNN", "Pauljanson002/VeLO_MLP"]
    none, _ = halves(render_card(made, None, about(entry=registry.get("velo-sample"))))
    assert "base_model" not in none
    assert "model-index" not in none
    source = dataclasses.replace(made.source, uri="hf://someone/theirs@abc/theta.state")
    own, _ = halves(render_card(dataclasses.replace(made, source=source), None, about(entry=None)))
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
def test_a_licence_is_one_that_the_hub_knows(made: Artifact, name: str, expected: dict[str, str]) -> None:
    front, _ = halves(render_card(made, None, about(license=name)))
    assert expected.items() <= front.items()
    assert re.fullmatch(r"[a-z0-9.-]+", front.get("license_name", "x"))


# --- body --------------------------------------------------------------------------------------------------------


def test_what_is_not_proven_is_said_before_anything_else(made: Artifact) -> None:
    def first(report: Report | None, **changes: Any) -> str:
        _, body = halves(render_card(made, report, about(**changes)))
        return body.strip().partition("\n")[0]

    assert first(on(passing(), made)).startswith("# ")
    for report in (None, on(failing(), made), on(not_run(), made)):
        assert first(report).startswith("> **⚠️ NOT VERIFIED.**")
        assert first(report, verified=False).startswith("> **⚠️ NOT VERIFIED.**")
    assert first(on(passing(), made), verified=False).startswith("> **⚠️ NOT VERIFIED.** Its publisher did not")


def test_a_report_on_other_weights_is_refused(made: Artifact) -> None:
    with pytest.raises(ZooError, match="fingerprint differs"):
        render_card(made, passing(), about())


@pytest.mark.parametrize("name", ["velo", "a/b/c", "../x", "a/b`", "a/b\n", "a /b", "ä/b", ""])
def test_what_names_no_repository_is_refused(made: Artifact, name: str) -> None:
    with pytest.raises(ZooError, match="not the name of a repository"):
        render_card(made, None, about(repo_id=name))


@pytest.mark.parametrize("name", registry.load_registry())
def test_the_card_of_every_entry_says_whose_it_is_and_how_to_use_it(made: Artifact, name: str) -> None:
    """With one artifact's weights for all: what differs is what the registry says."""
    entry = registry.get(name)
    family = dataclasses.replace(made, name=name)
    card = render_card(family, on(passing(), made), about(entry=entry, license=entry.license, repo_id=f"org/{name}"))
    _, body = halves(card)
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


def test_only_files_that_are_there_are_linked_to(made: Artifact) -> None:
    report = on(passing(), made)
    whole, bare = render_card(made, report, about()), render_card(made, report, about(files={"config.json": 1}))
    for name in ("](parity.png)", "](parity.html)", "](parity.json)", "--replay"):
        assert name in whole
        assert name not in bare


def test_the_weights_own_learned_decays_are_shown(made: Artifact) -> None:
    import torch

    tensors = {**made.tensors, "momentum_decays": torch.tensor([0.25, -0.5, 0.0])}
    body = render_card(dataclasses.replace(made, tensors=tensors), None, about())
    assert "| `momentum_decays` | `0.25, -0.5, 0` |" in body


# --- strangers ---------------------------------------------------------------------------------------------------


def strange(made: Artifact, text: str) -> str:
    """A card in which every word from outside is ``text``."""
    entry = registry.get("velo-s")
    entry = dataclasses.replace(
        entry, summary=text, notes=text, license=text, paper=registry.Paper("2211.09760", title=text)
    )
    source = dataclasses.replace(made.source, uri=text, format=text, license=text)
    other = dataclasses.replace(
        made, name=text, source=source, converter=dataclasses.replace(made.converter, version=text)
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
def test_what_strangers_wrote_is_text_in_the_card(made: Artifact, text: str) -> None:
    card = strange(made, text)
    card.encode("utf-8")
    front, body = halves(card)
    assert set(front) <= {"library_name", "license", "license_name", "tags", "base_model", "model-index"}
    assert front["model-index"][0]["name"] == " ".join(plain(text).split())
    found, calm = tokens(body), tokens(halves(strange(made, "calm"))[1])
    kinds = ("heading_open", "fence", "table_open", "tr_open", "td_open", "image", "link_open", "html_block", "hr")
    for kind in (*kinds, "blockquote_open", "bullet_list_open", "list_item_open", "code_block"):
        assert [token.type for token in found].count(kind) == [token.type for token in calm].count(kind), kind
    assert {token.content for token in found if token.type == "html_inline"} == {"<sub>", "</sub>"}
    bare = re.sub(r"```.*?```", "", body, flags=re.DOTALL)  # in code, an address is no link
    assert not re.search(r"https?://evil|www\.evil", bare)
    heading = next(token for token in found if token.type == "inline" and token.content.endswith(": VeLO for PyTorch"))
    shown = "".join(token.content for token in heading.children or [])
    assert shown == f"{' '.join(plain(text).split())}: VeLO for PyTorch"


def test_the_same_in_the_same_out(made: Artifact, tmp_path: Path) -> None:
    report = on(passing(), made)
    moved = dataclasses.replace(made, path=tmp_path)
    backwards = about(files=dict(reversed([*about().files.items()])))
    assert render_card(made, report, about()) == render_card(moved, report, backwards)
    assert str(Path.home()) not in render_card(made, report, about())


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
def test_an_address_for_browsers_is_plain(uri: str, address: str | None) -> None:
    assert card_text.web_address(uri) == address


def test_a_title_cannot_end_its_braces() -> None:
    text = card_text.bibtex("2211.09760", "A {title}} with\n``` and \\input{x}")
    assert text.count("{") == text.count("}")
    assert "`" not in text
    assert "\\" not in text
