"""The report of a comparison as one HTML page, without scripts and external files."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from pylo_zoo.experiments.compare import words
from pylo_zoo.report.phrases import plain

TEMPLATE = "comparison.html.j2"


def render_page(results: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    """``results`` and ``pictures``, which are PNG by file name, as a page in the style of parity reports."""
    environment = Environment(
        loader=ChoiceLoader([PackageLoader("pylo_zoo.experiments.compare", ""), PackageLoader("pylo_zoo.report", "")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_clean,
    )
    head = words.head(results)
    rows = [[words.parts(cell) for cell in words.row(each, results)] for each in results["optimizers"]]
    images = {
        words.CAPTIONS[name]: f"data:image/png;base64,{base64.b64encode(data).decode()}"
        for name, data in pictures.items()
    }
    content = environment.get_template(TEMPLATE).render(
        results=results,
        head=head,
        rows=rows,
        images=images,
        verdict=words.sentence(results["verdict"]),
        clock=words.sentence(results["clock"] or ""),
        seeds_note=words.seeds_note(results),
        setting=words.setting(results),
        provenance=words.provenance(results),
        tunings=[each for each in results["optimizers"] if each["tuning"]],
        rounded=words.rounded,
    )
    return content + "\n"


def _clean(value: Any) -> Any:
    return plain(value) if isinstance(value, str) and not hasattr(value, "__html__") else value
