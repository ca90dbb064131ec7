"""What model cards say in words: needs and limits, licences, files, citations."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pylo_zoo.parity.phrases import plain

TRAINED: Mapping[bool | None, str] = {
    True: "It was meta-trained by its authors, on tasks that are mostly smaller and shorter than those it may be used "
    "on. How far that carries is for a run to show: compare it with a tuned AdamW on your own task first.",
    False: "Its weights were set by hand and never trained. It is a sample, which shows and tests the machinery; judge "
    "no learned optimizer by it, and use it for no training that matters.",
    None: "It is in no registry: who trained it, on what, and how well it does, is for its publisher to say.",
}
INTENDED: Mapping[bool | None, str] = {
    True: "For research on learned optimizers, and for training where a rule without tuning is worth its cost.",
    False: "To see how pylo-zoo works, and to test what is built on it.",
    None: "For research on learned optimizers.",
}
NEEDS_LOSS = (
    "It reads the training loss at every step (`opt.step(loss)`, `opt.step(closure)`, or `opt.set_loss(loss)` before a "
    "bare `opt.step()`), and has to know the length of the run (`num_steps`) beforehand, since it plans by the "
    "fraction that is done. A loss of another scale, or noisier than it has seen, steers it otherwise."
)
OF_FAMILY: Mapping[str, tuple[str, ...]] = {
    "celo2": (
        "Its rule is for matrices and convolutions; embeddings, the output head, norms and biases take AdamW with a "
        "learning rate of `lr * adam_lr_mult`. Both are yours to tune, with a schedule, as for any optimizer.",
    ),
    "celo2-base": ("Its rule takes every parameter. The learning rate is yours to tune, with a schedule.",),
    "elo-celo2": (
        "Its rule is for matrices and convolutions, and AdamW takes the rest; it clips gradients by their global norm.",
    ),
    "elo": ("The learning rate is yours to tune, with a schedule.",),
    "adafac-mlp": ("It reads neither the loss nor the length of the run, and so cannot anneal by itself.",),
    "mulo": (
        "It divides the steps of matrices by their width multiplier, which it reads of `mup`'s shapes, or of a group's "
        "`width_mult`. Without one, every parameter counts as of the base width.",
    ),
}
COST = {
    False: "It runs a small network over every parameter, in plain torch: a step takes far longer than one of fused "
    "AdamW, on CPUs a few hundred times as long. That pays only where steps are dear or tuning is.",
    True: "It runs a small network once a tensor, so that a step costs little more than a plain Adam's in torch.",
}
NOT_SHOWN = (
    "Parity says that the torch port computes what the original computes. It does not say that the optimizer trains "
    "well, on this task or any."
)
FILES = {
    "README.md": "this card",
    "config.json": "sizes, behaviour, defaults, and the source with its sha256",
    "model.safetensors": "the weights in float32, and what an exact export needs",
    "model.pt": "the same weights, as torch.save writes them",
    "parity.json": "the report of parity, for programs",
    "parity-vectors.safetensors": "what the original computed, for a replay without JAX",
    "parity.html": "the report of parity, every figure of it, as a page",
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
"""The words that the Hub takes for ``license``, of those that open licences and this project use."""
_SUFFIX = re.compile(r"-(only|or-later)$")
_ARXIV = re.compile(r"\d{4}\.\d{4,5}")
_PATH = re.compile(r"[\w./-]+", re.ASCII)


def license_fields(name: str) -> dict[str, str]:
    """``license`` as the Hub has it; one that it does not know is ``other``, with its name beside."""
    known = _SUFFIX.sub("", name.strip().lower())
    if known in HUB_LICENSES:
        return {"license": known}
    slug = re.sub(r"[^a-z0-9.]+", "-", plain(name).lower()).strip("-")[:80]
    return {"license": "other", **({"license_name": slug} if slug else {})}


def web_address(uri: str) -> str | None:
    """Where a browser finds the file at ``uri``; None for what is on no server, or no plain address."""
    scheme, _, rest = uri.partition("://")
    path, _, revision = rest.partition("@")
    if scheme == "hf" and _PATH.fullmatch(path) and path.count("/") >= 2 and (not revision or "/" not in revision):
        org, repo, file = path.split("/", 2)
        if not revision or _PATH.fullmatch(revision):
            return f"https://huggingface.co/{org}/{repo}/blob/{revision or 'main'}/{file}"
    if scheme == "gs" and _PATH.fullmatch(rest):
        return f"https://storage.googleapis.com/{rest}"
    return uri if scheme == "https" and _PATH.fullmatch(rest) else None


def value(found: Any) -> str:
    """A hyperparameter as text."""
    if isinstance(found, bool):
        return str(found).lower()
    if isinstance(found, (list, tuple)):
        return ", ".join(map(value, found))
    return f"{found:.9g}" if isinstance(found, float) else str(found)


def memory(behavior: Mapping[str, Any]) -> str:
    """How much state a parameter has, worked out of its decays; empty for a family without such."""
    kinds = ("initial_momentum_decays", "initial_rms_decays")
    planes = sum(len(decays) for kind in kinds if isinstance(decays := behavior.get(kind), (list, tuple)))
    if not planes:
        return ""
    rows = ", and row and column sums" if behavior.get("initial_adafactor_decays") else ""
    return f"Its state is {planes} float32 numbers a parameter{rows}; Adam's is 2."


def arxiv_number(text: str | None) -> str | None:
    """``text``, if it is such a number."""
    return text if text and _ARXIV.fullmatch(text) else None


def bibtex(arxiv: str, title: str | None) -> str:
    """The paper as BibTeX, which arXiv's own page completes with the authors."""
    said = " ".join(re.sub(r"[{}\\`%$&#_~^]", " ", plain(title or "")).split())
    year = int(arxiv[:2]) + 2000
    fields = [*([f"  title         = {{{{{said}}}}},"] if said else []), f"  year          = {{{year}}},"]
    fields += [f"  eprint        = {{{arxiv}}},", "  archivePrefix = {arXiv},"]
    return "\n".join([f"@misc{{arxiv-{arxiv},", *fields, f"  url           = {{https://arxiv.org/abs/{arxiv}}}", "}"])
