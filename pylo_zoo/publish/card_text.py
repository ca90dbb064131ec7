"""The texts of model cards: intended use, limits, licenses, files and citations."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pylo_zoo.report.phrases import plain

TRAINED: Mapping[bool | None, str] = {
    True: "Its authors meta-trained it, mostly on tasks that are smaller and shorter than common training runs. "
    "Compare it with a tuned AdamW on your own task before you rely on it.",
    False: "Its weights were set by hand and never trained. It is a sample for demonstrations and tests: do not use it "
    "for training that matters, or to judge learned optimizers.",
    None: "It has no registry entry: ask its publisher who trained it, on which tasks, and how well it trains.",
}
INTENDED: Mapping[bool | None, str] = {
    True: "For research on learned optimizers, and for training if an optimizer without tuning is worth its cost.",
    False: "For demonstrations of pylo-zoo, and for tests of code that uses it.",
    None: "For research on learned optimizers.",
}
NEEDS_LOSS = (
    "It reads the training loss at every step (`opt.step(loss)`, `opt.step(closure)`, or `opt.set_loss(loss)` before "
    "`opt.step()`). It needs the length of the run (`num_steps`) in advance, because its updates depend on the "
    "completed fraction of the run. A loss with another scale or more noise than in meta-training changes its behavior."
)
COST = {  # by Family.per_element
    True: "It runs a small network for every parameter element, so a step takes much longer than one of fused AdamW: "
    "with torch operations on CPUs, a few hundred times as long. It pays off only if steps or tuning are expensive.",
    False: "It runs a small network once per tensor, so a step costs little more than Adam's in torch.",
}
NOT_SHOWN = (
    "Parity means that the torch port computes what the original computes. It does not mean that the optimizer trains "
    "well, on this or any other task."
)
FILES = {
    "README.md": "this card",
    "config.json": "sizes, behavior, defaults, and the source with its sha256",
    "model.safetensors": "the weights in float32, and the data for an exact export",
    "model.pt": "the same weights in the format of torch.save",
    "parity.json": "the parity report, machine-readable",
    "parity-vectors.safetensors": "values computed by the original, for a replay without JAX",
    "parity.html": "the complete parity report as a web page",
    "parity.png": "the plot above",
}
_LICENSES = (
    "afl-3.0 agpl-3.0 apache-2.0 artistic-2.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 cc cc0-1.0 "
    "cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 "
    "cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cdla-permissive-1.0 "
    "cdla-permissive-2.0 cdla-sharing-1.0 ecl-2.0 epl-1.0 epl-2.0 eupl-1.1 gfdl gpl gpl-2.0 gpl-3.0 isc lgpl lgpl-2.1 "
    "lgpl-3.0 mit mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 openrail osl-3.0 pddl postgresql unlicense wtfpl zlib "
    "unknown other"
)
HUB_LICENSES = frozenset(_LICENSES.split())
"""Values that the Hub accepts for ``license``: the open licenses, and those that this project uses."""
_SUFFIX = re.compile(r"-(only|or-later)$")
_ARXIV = re.compile(r"\d{4}\.\d{4,5}")
_PATH = re.compile(r"[\w./-]+", re.ASCII)


def license_fields(name: str) -> dict[str, str]:
    """The Hub's ``license`` field; a license that the Hub does not list becomes ``other`` with ``license_name``."""
    known = _SUFFIX.sub("", name.strip().lower())
    if known in HUB_LICENSES:
        return {"license": known}
    slug = re.sub(r"[^a-z0-9.]+", "-", plain(name).lower()).strip("-")[:80]
    return {"license": "other", **({"license_name": slug} if slug else {})}


def web_address(uri: str) -> str | None:
    """The address of ``uri`` for a browser; None if ``uri`` is not on a server, or contains unsafe characters."""
    scheme, _, rest = uri.partition("://")
    path, _, revision = rest.partition("@")
    if scheme == "hf" and _PATH.fullmatch(path) and path.count("/") >= 2 and (not revision or "/" not in revision):
        org, repo, file = path.split("/", 2)
        if not revision or _PATH.fullmatch(revision):
            return f"https://huggingface.co/{org}/{repo}/blob/{revision or 'main'}/{file}"
    if scheme == "gs" and _PATH.fullmatch(rest):
        return f"https://storage.googleapis.com/{rest}"
    return uri if scheme == "https" and _PATH.fullmatch(rest) else None


def format_value(value: Any) -> str:
    """A hyperparameter as text."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return ", ".join(map(format_value, value))
    return f"{value:.9g}" if isinstance(value, float) else str(value)


def state_size(behavior: Mapping[str, Any]) -> str:
    """The state per parameter element, derived from the decays; empty for a family without decays."""
    kinds = ("initial_momentum_decays", "initial_rms_decays")
    planes = sum(len(decays) for kind in kinds if isinstance(decays := behavior.get(kind), (list, tuple)))
    if not planes:
        return ""
    rows = ", plus row and column sums" if behavior.get("initial_adafactor_decays") else ""
    return f"Its state has {planes} float32 values per parameter element{rows}; Adam's has 2."


def arxiv_number(text: str | None) -> str | None:
    """``text`` if it is an arXiv number, otherwise None."""
    return text if text and _ARXIV.fullmatch(text) else None


def bibtex(arxiv: str, title: str | None) -> str:
    """The paper as BibTeX, without authors."""
    clean_title = " ".join(re.sub(r"[{}\\`%$&#_~^]", " ", plain(title or "")).split())
    year = int(arxiv[:2]) + 2000
    fields = [*([f"  title         = {{{{{clean_title}}}}},"] if clean_title else []), f"  year          = {{{year}}},"]
    fields += [f"  eprint        = {{{arxiv}}},", "  archivePrefix = {arXiv},"]
    return "\n".join([f"@misc{{arxiv-{arxiv},", *fields, f"  url           = {{https://arxiv.org/abs/{arxiv}}}", "}"])
