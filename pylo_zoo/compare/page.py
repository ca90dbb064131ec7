"""A comparison as one HTML page that needs nothing else: no script, no font, no picture from anywhere."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from pylo_zoo.compare import words
from pylo_zoo.parity.phrases import plain

TEMPLATE = "comparison.html.j2"


def render_page(found: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    """``found`` and its ``pictures``, PNG by file name, as a page; the colours and letters are those of parity's."""
    environment = Environment(
        loader=ChoiceLoader([PackageLoader("pylo_zoo.compare", ""), PackageLoader("pylo_zoo.parity", "")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_clean,
    )
    head = words.head(found)
    rows = [[words.parts(cell) for cell in words.row(each, found)] for each in found["optimizers"]]
    images = {
        words.CAPTIONS[name]: f"data:image/png;base64,{base64.b64encode(data).decode()}"
        for name, data in pictures.items()
    }
    content = environment.get_template(TEMPLATE).render(
        found=found,
        head=head,
        rows=rows,
        images=images,
        verdict=words.sentence(found["verdict"]),
        clock=words.sentence(found["clock"] or ""),
        seeds_note=words.seeds_note(found),
        setting=words.setting(found),
        made=words.made(found),
        tunings=[each for each in found["optimizers"] if each["tuning"]],
        figure=words.figure,
    )
    return content + "\n"


def _clean(value: Any) -> Any:
    return plain(value) if isinstance(value, str) and not hasattr(value, "__html__") else value
