"""The model card, ``README.md`` of a published artifact: whose work it is, how to use it, and what proves it.

The same input gives the same bytes. Whatever comes from elsewhere, a name, a note, a licence, is shown and never
obeyed: the template escapes all that is not marked as Markdown here, and YAML is written by its own dumper.
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
from pylo_zoo.parity import markdown, phrases
from pylo_zoo.parity.report import Report
from pylo_zoo.publish import words

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
    """What a card says besides what the artifact and its report do.

    Attributes:
        repo_id: ``ORG/NAME`` on the Hub.
        license: of the weights, as an SPDX identifier, ``unknown``, ``other``, or a name of its own.
        license_stated: whether the publisher stated it, since the registry did not.
        entry: of the registry: whose work it is, and which paper describes it; None for a file that no entry names.
        verified: whether the proof was repeated, and passed, when this was published.
        files: the size in bytes of each file of the repository; only what is named here is linked to.
    """

    repo_id: str
    license: str
    license_stated: bool
    entry: Entry | None
    verified: bool
    files: Mapping[str, int] = field(default_factory=dict)


class Markdown(str):
    """Text that is Markdown already, and not escaped again."""

    __slots__ = ()


def render_card(made: Artifact, report: Report | None, about: About) -> str:
    """The card of ``made``: front matter for the Hub, then Markdown.

    Args:
        made: what is published.
        report: its report of parity; None without one.
        about: the rest.

    Raises:
        ZooError: ``report`` is on other weights, or the repository's name is none.
    """
    if not _REPO.fullmatch(about.repo_id):
        raise ZooError(f"{about.repo_id!r} is no name of a repository.", "It must be ORG/NAME.")
    if report is not None and report.fingerprint != made.fingerprint:
        raise ZooError(
            f"The report is not on {made.name} as it is (another fingerprint).",
            "Prove it again: `pylo-zoo verify DIR`.",
        )
    card = Card(made, report, about)
    environment = Environment(
        loader=PackageLoader("pylo_zoo.publish", ""),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    environment.filters["markdown"] = Markdown
    content = environment.get_template(TEMPLATE).render(card=card, about=about, made=made, report=report, code=code)
    return content + "\n"


def _shown(value: Any) -> str:
    return value if isinstance(value, Markdown) else markdown.escaped(str(value))


def code(text: str) -> Markdown:
    """``text`` as code; escaped instead where it has what could end the code."""
    return Markdown(f"`{text}`" if _CODE.fullmatch(text) and text.strip() == text else markdown.escaped(text))


def front_matter(made: Artifact, report: Report | None, about: About) -> dict[str, Any]:
    """What the Hub reads of a card."""
    paper = _arxiv(made, about)
    tags = ["learned-optimizer", "pytorch", "optimizer", LIBRARY, made.family, *([f"arxiv:{paper}"] if paper else [])]
    found: dict[str, Any] = {"library_name": LIBRARY, **words.license_fields(about.license), "tags": _unique(tags)}
    uris = [source.uri for source in about.entry.sources] if about.entry else [made.source.uri]
    bases = _unique(match[1] for uri in uris if (match := _ON_THE_HUB.match(uri)))
    if bases:
        found["base_model"] = bases[0] if len(bases) == 1 else bases
    if report is not None and report.checks:
        found["model-index"] = [{"name": _line(made.name), "results": [_result(report)]}]
    return found


def _result(report: Report) -> dict[str, Any]:
    """The parity figures as the Hub's evaluation results."""
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


def _arxiv(made: Artifact, about: About) -> str | None:
    if about.entry:
        return words.arxiv_number(about.entry.paper.arxiv) if about.entry.paper else None
    return words.arxiv_number(converters.get(made.family).paper)


def _line(text: str) -> str:
    return " ".join(phrases.plain(text).split())


def _unique(values: Any) -> list[str]:
    return list(dict.fromkeys(map(_line, values)))


@dataclass(frozen=True)
class Card:
    """What the template asks for: sentences and rows worked out of the three."""

    made: Artifact
    report: Report | None
    about: About

    @cached_property
    def family(self) -> converters.Family:
        """The family of the checkpoint."""
        return converters.get(self.made.family)

    @property
    def front(self) -> Markdown:
        """The front matter, as YAML."""
        values = front_matter(self.made, self.report, self.about)
        return Markdown(yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=10_000).strip())

    @property
    def repo(self) -> Markdown:
        """The repository, whose name :func:`render_card` has checked."""
        return Markdown(self.about.repo_id)

    @property
    def doubts(self) -> str | None:
        """Why nobody should take it for proven; None where it is."""
        if self.report is None:
            return (
                "It comes without any report of parity: nobody has shown that it computes what its original computes."
            )
        if self.report.status == "failed":
            return "Its proof of parity failed: it does not compute what its original computes. See below."
        if self.report.status == "not_run":
            return f"Whether it computes what its original computes was not tested ({self.report.reason})."
        return None if self.about.verified else "Its publisher did not repeat the proof when publishing it."

    @property
    def parameters(self) -> int:
        """Numbers that the network consists of."""
        return sum(tensor.numel() for tensor in self.made.state_dict().values())

    @property
    def use(self) -> Markdown:
        """The lines that train with it."""
        return Markdown("\n".join(usage.training(self.made.family, f"hf://{self.about.repo_id}")))

    @property
    def needs_loss(self) -> bool:
        """Whether each step has to be given the loss."""
        from pylo_zoo.optim import optimizer_class

        return optimizer_class(self.made.family).needs_loss

    @property
    def sources(self) -> list[tuple[str, str | None]]:
        """Address of each file of the original, and where a browser finds it."""
        uris = [each.uri for each in self.about.entry.sources] if self.about.entry else [self.made.source.uri]
        return [(uri, words.web_address(uri)) for uri in uris]

    @property
    def origin(self) -> str | None:
        """Who publishes the original; None where nobody says."""
        if self.about.entry:
            origin = self.about.entry.weights.origin
            return LIBRARY if origin == "this package" else origin
        scheme, _, rest = self.made.source.uri.partition("://")
        return rest.partition("/")[0] if scheme in ("hf", "gs", "https") and rest else None

    @property
    def arxiv(self) -> str | None:
        """The paper's number."""
        return _arxiv(self.made, self.about)

    @property
    def title(self) -> str | None:
        """The paper's title."""
        return self.about.entry.paper.title if self.about.entry and self.about.entry.paper else None

    @property
    def parity(self) -> Markdown:
        """The section about the report."""
        assert self.report is not None
        return Markdown(markdown.render_markdown(self.report).strip())

    @property
    def has(self) -> Mapping[str, bool]:
        """Which of the files about parity are in the repository."""
        names = {"plot": PLOT, "page": PAGE, "proof": PROOF, "vectors": VECTORS}
        return {word: name in self.about.files for word, name in names.items()}

    @property
    def hyperparameters(self) -> list[tuple[str, list[tuple[Markdown, Markdown]]]]:
        """Sections of names and values."""
        tensors = self.made.state_dict()
        learned = {name: tensors[name].flatten().tolist() for name in _LEARNED_DECAYS if name in tensors}
        sections = {
            "Architecture": config.to_dict(self.made.architecture),
            "Behaviour, which no shape says": config.to_dict(self.made.behavior),
            "Learned offsets of the decays": learned,
            "Defaults of the optimizer": dict(self.made.defaults),
        }
        return [
            (title, [(code(name), code(words.value(value))) for name, value in values.items()])
            for title, values in sections.items()
            if values
        ]

    @property
    def trained(self) -> bool | None:
        """Whether the weights were meta-trained; None where nobody says."""
        return self.about.entry.trained if self.about.entry else None

    @property
    def intended(self) -> str:
        """What it is for."""
        return words.INTENDED[self.trained]

    @property
    def limits(self) -> list[Markdown]:
        """What it needs, what it costs, and what nobody knows of it, a sentence or a few each."""
        return [Markdown(each) for each in self._limits()]

    def _limits(self) -> Iterator[str]:
        yield words.TRAINED[self.trained]
        if self.needs_loss:
            yield words.NEEDS_LOSS
        yield from words.OF_FAMILY.get(self.made.family, ())
        yield words.COST[self.made.family == "celo-adam"]
        if said := words.memory(config.to_dict(self.made.behavior)):
            yield said
        yield words.NOT_SHOWN

    @property
    def files(self) -> list[tuple[Markdown, str, str]]:
        """Name, size and purpose of each file."""
        drawn = (PAGE, PLOT)  # their sizes depend on what draws them, and the card must not
        sizes = {name: "–" if name in drawn else f"{size:,}" for name, size in sorted(self.about.files.items())}
        return [(code(name), size, words.FILES.get(name, "")) for name, size in sizes.items()]

    @property
    def citation(self) -> Markdown | None:
        """BibTeX of the paper; None without one."""
        return Markdown(words.bibtex(self.arxiv, self.title)) if self.arxiv else None
