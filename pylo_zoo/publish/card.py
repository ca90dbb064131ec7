"""Renders the model card, the ``README.md`` of a published artifact: authors, usage, parity and limits.

The same input gives the same bytes. Names, notes and licenses from other people cannot inject Markdown or YAML: the
template escapes every value that is not marked as :class:`Markdown`, and a YAML dumper writes the front matter.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from pylo_zoo import config, converters, usage
from pylo_zoo.errors import ZooError
from pylo_zoo.publish import card_text
from pylo_zoo.report import markdown, phrases
from pylo_zoo.report.records import Report

if TYPE_CHECKING:
    from pylo_zoo.artifact import Artifact
    from pylo_zoo.registry import Entry

TEMPLATE = "card.md.j2"
PLOT, PAGE, PROOF, VECTORS = "parity.png", "parity.html", "parity.json", "parity-vectors.safetensors"
LIBRARY = "pylo-zoo"
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_ON_THE_HUB = re.compile(r"hf://([\w.-]+/[\w.-]+)[/@]", re.ASCII)
_CODE = re.compile(r"[\w ./:@=,()+-]+", re.ASCII)
_LEARNED_DECAYS = ("momentum_decays", "rms_decays", "adafactor_decays")


@dataclass(frozen=True)
class About:
    """The facts for a card that are neither in the artifact nor in its report.

    Attributes:
        repo_id: ``ORG/NAME`` on the Hub.
        license: of the weights: an SPDX identifier, ``unknown``, ``other``, or another name.
        license_stated: whether the license comes from the publisher, not from the registry.
        entry: the registry entry of the checkpoint, or None.
        verified: whether the parity check was repeated before publishing, and passed.
        files: the size in bytes of each published file. The card links only to these.
    """

    repo_id: str
    license: str
    license_stated: bool
    entry: Entry | None
    verified: bool
    files: Mapping[str, int] = field(default_factory=dict)


class Markdown(str):
    """Text that is already Markdown, so it is not escaped."""

    __slots__ = ()


def render_card(artifact: Artifact, report: Report | None, about: About) -> str:
    """Render the card of ``artifact``: YAML front matter for the Hub, then Markdown.

    Args:
        artifact: the published artifact.
        report: its parity report, or None.
        about: further facts.

    Raises:
        ZooError: ``report`` is about other weights, or the name of the repository is invalid.
    """
    if not _REPO.fullmatch(about.repo_id):
        raise ZooError(f"{about.repo_id!r} is not the name of a repository.", "Pass ORG/NAME.")
    if report is not None and report.fingerprint != artifact.fingerprint:
        raise ZooError(
            f"The parity report of {artifact.name} is about other weights: its fingerprint differs.",
            "Run `pylo-zoo verify DIR` again.",
        )
    card = Card(artifact, report, about)
    environment = Environment(
        loader=PackageLoader("pylo_zoo.publish", ""),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_escape,
    )
    environment.filters["markdown"] = Markdown
    template = environment.get_template(TEMPLATE)
    return template.render(card=card, about=about, artifact=artifact, report=report, code=code) + "\n"


def _escape(value: Any) -> str:
    return value if isinstance(value, Markdown) else markdown.escaped(str(value))


def code(text: str) -> Markdown:
    """``text`` as Markdown code; escaped text instead if it contains characters that could end the code."""
    return Markdown(f"`{text}`" if _CODE.fullmatch(text) and text.strip() == text else markdown.escaped(text))


def front_matter(artifact: Artifact, report: Report | None, about: About) -> dict[str, Any]:
    """The front matter, which the Hub reads."""
    paper = _arxiv(artifact, about)
    tags = ["learned-optimizer", "pytorch", "optimizer", LIBRARY, artifact.family]
    tags += [f"arxiv:{paper}"] if paper else []
    license = card_text.license_fields(about.license)
    fields: dict[str, Any] = {"library_name": LIBRARY, **license, "tags": _unique_lines(tags)}
    uris = [source.uri for source in about.entry.sources] if about.entry else [artifact.source.uri]
    bases = _unique_lines(match[1] for uri in uris if (match := _ON_THE_HUB.match(uri)))
    if bases:
        fields["base_model"] = bases[0] if len(bases) == 1 else bases
    if report is not None and report.checks:
        fields["model-index"] = [{"name": _single_line(artifact.name), "results": [_result(report)]}]
    return fields


def _result(report: Report) -> dict[str, Any]:
    """The parity figures in the form of the Hub's evaluation results."""
    metrics = [
        {
            "type": "max-relative-error",
            "name": f"{row.label}, {row.dtype}: largest error, {phrases.UNITS[row.level]}",
            "value": row.error.error if math.isfinite(row.error.error) else "infinite",
        }
        for row in phrases.rows(report)
    ]
    counts = [("leaves-equal", "leaves equal bit for bit", phrases.equal_leaves(report), report.leaves.compared)]
    if report.controls:
        caught = phrases.caught(report), phrases.applicable(report)
        counts.append(("faults-caught", "planted faults that were caught", *caught))
    metrics += [{"type": kind, "name": f"{name}, of {of}", "value": count} for kind, name, count, of in counts]
    return {
        "task": {"type": "optimizer-parity", "name": f"Parity with the JAX original: {report.status}"},
        "dataset": {"type": "pylo-zoo-verify", "name": "pylo-zoo verify: shapes, gradients, layouts and options"},
        "metrics": metrics,
    }


def _arxiv(artifact: Artifact, about: About) -> str | None:
    if about.entry:
        return card_text.arxiv_number(about.entry.paper.arxiv) if about.entry.paper else None
    return card_text.arxiv_number(converters.get(artifact.family).paper)


def _single_line(text: str) -> str:
    return " ".join(phrases.plain(text).split())


def _unique_lines(values: Any) -> list[str]:
    return list(dict.fromkeys(map(_single_line, values)))


@dataclass(frozen=True)
class Card:
    """The texts and table rows that the template inserts."""

    artifact: Artifact
    report: Report | None
    about: About

    @cached_property
    def family(self) -> converters.Family:
        """The family of the checkpoint."""
        return converters.get(self.artifact.family)

    @property
    def front(self) -> Markdown:
        """The front matter, as YAML."""
        values = front_matter(self.artifact, self.report, self.about)
        return Markdown(yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=10_000).strip())

    @property
    def repo(self) -> Markdown:
        """The name of the repository, which :func:`render_card` has checked."""
        return Markdown(self.about.repo_id)

    @property
    def doubts(self) -> str | None:
        """Why parity is not verified; None if it is."""
        if self.report is None:
            return "It has no parity report: whether it computes what the original computes is unknown."
        if self.report.status == "failed":
            return "Its parity check failed: it does not compute what the original computes. See below."
        if self.report.status == "not_run":
            return f"Whether it computes what the original computes was not checked ({self.report.reason})."
        return None if self.about.verified else "Its publisher did not repeat the parity check before publishing."

    @property
    def parameters(self) -> int:
        """The number of weights of the network."""
        return sum(tensor.numel() for tensor in self.artifact.state_dict().values())

    @property
    def use(self) -> Markdown:
        """Python code that trains with it."""
        return Markdown("\n".join(usage.training(self.artifact.family, f"hf://{self.about.repo_id}")))

    @property
    def needs_loss(self) -> bool:
        """Whether each step requires the loss."""
        from pylo_zoo.optim import optimizer_class

        return optimizer_class(self.artifact.family).needs_loss

    @property
    def sources(self) -> list[tuple[str, str | None]]:
        """The address of each original file, and its address for a browser."""
        uris = [each.uri for each in self.about.entry.sources] if self.about.entry else [self.artifact.source.uri]
        return [(uri, card_text.web_address(uri)) for uri in uris]

    @property
    def origin(self) -> str | None:
        """The publisher of the original, or None if unknown."""
        if self.about.entry:
            origin = self.about.entry.weights.origin
            return LIBRARY if origin == "this package" else origin
        scheme, _, rest = self.artifact.source.uri.partition("://")
        return rest.partition("/")[0] if scheme in ("hf", "gs", "https") and rest else None

    @property
    def arxiv(self) -> str | None:
        """The paper's arXiv number."""
        return _arxiv(self.artifact, self.about)

    @property
    def title(self) -> str | None:
        """The paper's title."""
        return self.about.entry.paper.title if self.about.entry and self.about.entry.paper else None

    @property
    def parity(self) -> Markdown:
        """The parity report as Markdown."""
        assert self.report is not None
        return Markdown(markdown.render_markdown(self.report).strip())

    @property
    def has(self) -> Mapping[str, bool]:
        """Which of the parity files are published."""
        names = {"plot": PLOT, "page": PAGE, "proof": PROOF, "vectors": VECTORS}
        return {word: name in self.about.files for word, name in names.items()}

    @property
    def hyperparameters(self) -> list[tuple[str, list[tuple[Markdown, Markdown]]]]:
        """Sections of (name, value) rows."""
        tensors = self.artifact.state_dict()
        learned = {name: tensors[name].flatten().tolist() for name in _LEARNED_DECAYS if name in tensors}
        sections = {
            "Architecture": config.to_dict(self.artifact.architecture),
            "Behavior": config.to_dict(self.artifact.behavior),
            "Learned offsets of the decays": learned,
            "Optimizer defaults": dict(self.artifact.defaults),
        }
        return [
            (title, [(code(name), code(card_text.format_value(value))) for name, value in values.items()])
            for title, values in sections.items()
            if values
        ]

    @property
    def trained(self) -> bool | None:
        """Whether the weights were meta-trained; None if unknown."""
        return self.about.entry.trained if self.about.entry else None

    @property
    def intended(self) -> str:
        """The intended use."""
        return card_text.INTENDED[self.trained]

    @property
    def limits(self) -> list[Markdown]:
        """Its requirements, costs and limits, one list item each."""
        return [Markdown(each) for each in self._limits()]

    def _limits(self) -> Iterator[str]:
        yield card_text.TRAINED[self.trained]
        if self.needs_loss:
            yield card_text.NEEDS_LOSS
        family = converters.get(self.artifact.family)
        yield from family.advice
        yield card_text.COST[family.per_element]
        if size := card_text.state_size(config.to_dict(self.artifact.behavior)):
            yield size
        yield card_text.NOT_SHOWN

    @property
    def files(self) -> list[tuple[Markdown, str, str]]:
        """Name, size and purpose of each file."""
        drawn = (PAGE, PLOT)  # their sizes depend on library versions; the card must not
        sizes = {name: "–" if name in drawn else f"{size:,}" for name, size in sorted(self.about.files.items())}
        return [(code(name), size, card_text.FILES.get(name, "")) for name, size in sizes.items()]

    @property
    def citation(self) -> Markdown | None:
        """BibTeX of the paper, or None."""
        return Markdown(card_text.bibtex(self.arxiv, self.title)) if self.arxiv else None
