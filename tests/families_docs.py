"""Writes the facts of each family into docs/families.md: ``python tests/families_docs.py``.

It replaces the text between the markers; the rest of the page is written by hand.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import torch

import pylo_zoo.optim as optim
from pylo_zoo import converters
from pylo_zoo.artifact import Artifact, Converter, SourceRecord
from pylo_zoo.config import to_dict
from pylo_zoo.optim.base import LearnedOptimizer
from pylo_zoo.registry import load_registry

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "families.md"
CLASSES = ("VeLO", "Celo", "CeloAdam", "CELO2", "ELO_CELO2", "ELO", "AdafacLO", "MuLO", "Muon")
FAMILY_OF = {"AdafacLO": "adafac-mlp", "MuLO": "mulo"}
"""The family that the page shows for a class that runs several; by default the first one."""
MATRIX, VECTOR = (48, 64), (64,)
LARGE = 1024
MARKS = re.compile(r"(<!-- (\w+): written by tests/families_docs\.py -->\n)(.*?)(<!-- end of \2 -->)", re.DOTALL)


def family_of(name: str) -> str | None:
    """The family whose released network the page shows for the class; None for Muon, which has no network."""
    cls = getattr(optim, name)
    return FAMILY_OF.get(name) or (cls.families[0] if issubclass(cls, LearnedOptimizer) else None)


def released(family: str, seed: int = 0) -> Artifact:
    """Random weights in the released sizes."""
    entry = converters.get(family)
    behavior = entry.behavior()
    random = torch.Generator().manual_seed(seed)
    shapes = {key: tensor.shape for key, tensor in entry.build(entry.released, behavior).state_dict().items()}
    return Artifact(
        family=family,
        name=family,
        architecture=entry.released,
        behavior=behavior,
        defaults={key: value for key, value in entry.defaults.items() if value is not None},
        source=SourceRecord("file:random", "0" * 64, 1, "unknown", "flax-msgpack"),
        converter=Converter("0"),
        tensors={key: 0.01 * torch.randn(shape, generator=random) for key, shape in shapes.items()},
    )


def state_of(name: str, artifact: Artifact | None, shape: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """The state of a parameter of ``shape`` after one step."""
    cls: Any = getattr(optim, name)
    arguments: dict[str, Any] = {} if artifact is None else {"weights": artifact}
    if "num_steps" in inspect.signature(cls).parameters:
        arguments["num_steps"] = 10
    p = torch.nn.Parameter(torch.ones(shape))
    p.grad = torch.ones(shape)
    opt = cls([p], **arguments)
    opt.step(lambda: 1.0)
    return dict(opt.state[p])


def signature(name: str) -> str:
    """The constructor, one argument per line."""
    parameters = list(inspect.signature(getattr(optim, name)).parameters.values())
    lines = [f"    {p.name}," if p.default is p.empty else f"    {p.name}={_shown(p.default)}," for p in parameters]
    lines.insert(sum(p.kind is not p.KEYWORD_ONLY for p in parameters), "    *,")
    return "\n".join([f"{name}(", *lines, ")"])


def _shown(value: Any) -> str:
    return repr(value).replace("'", '"')


def facts(name: str) -> str:
    """The block of one class."""
    cls: Any = getattr(optim, name)
    family = family_of(name)
    artifact = None if family is None else released(family)
    rows = [("needs", _needs(cls))]
    if family is not None:
        entries = [f"`{e.name}`" for e in load_registry(ROOT / "registry.yaml").values() if e.family in cls.families]
        rows.append(("checkpoints", f"{', '.join(entries)} ([the zoo](zoo.md))"))
        rows.append(("its network", _network(family)))
    rows += [("state per parameter", _state(name, artifact)), ("memory", _memory(name, artifact))]
    if family is not None:
        stated = converters.get(family).defaults
        rows.append(("an artifact may set", ", ".join(f"`{key}={value}`" for key, value in stated.items())))
        rows.append(("released behavior", _behavior(family)))
    table = "\n".join(f"| {key} | {value} |" for key, value in rows)
    return f"```text\n{signature(name)}\n```\n\n| | `{name}` |\n| --- | --- |\n{table}\n"


def _needs(cls: Any) -> str:
    loss = "the training loss at every step, and `num_steps`" if getattr(cls, "needs_loss", False) else "no loss"
    weights = "weights" if issubclass(cls, LearnedOptimizer) else "no weights"
    return f"{weights}; {loss}"


def _network(family: str) -> str:
    entry = converters.get(family)
    sizes = ", ".join(f"`{key}={value}`" for key, value in to_dict(entry.released).items())
    count = sum(t.numel() for t in entry.build(entry.released, entry.behavior()).state_dict().values())
    return f"{count:,} numbers ({sizes})"


def _behavior(family: str) -> str:
    values = to_dict(converters.get(family).behavior())
    return "<br>".join(f"`{key}={_shown(value)}`" for key, value in values.items())


def _state(name: str, artifact: Artifact | None) -> str:
    def list_state(shape: tuple[int, ...]) -> str:
        entries = {key: list(tensor.shape) for key, tensor in state_of(name, artifact, shape).items()}
        return ", ".join(f"`{key} {shape}`" if shape else f"`{key}`" for key, shape in entries.items())

    return f"of a matrix {list(MATRIX)}: {list_state(MATRIX)}<br>of a vector {list(VECTOR)}: {list_state(VECTOR)}"


def _memory(name: str, artifact: Artifact | None) -> str:
    numbers = sum(t.numel() for t in state_of(name, artifact, (LARGE, LARGE)).values())
    planes = round(numbers / LARGE**2, 1)
    return f"{4 * planes:g} bytes of state per parameter, in a matrix of {LARGE:,} × {LARGE:,}"


def overview() -> str:
    """One line per class."""
    lines = ["| optimizer | in one line | loss, `num_steps` | bytes of state per parameter | paper |"]
    lines.append("| --- | --- | :-: | ---: | --- |")
    for name in CLASSES:
        cls: Any = getattr(optim, name)
        family = family_of(name)
        artifact = None if family is None else released(family)
        number = None if family is None else converters.get(family).paper
        paper = f"[{number}](https://arxiv.org/abs/{number})" if number else "–"
        loss = "yes" if getattr(cls, "needs_loss", False) else "–"
        memory = _memory(name, artifact).split()[0]
        anchor = name.lower()
        lines.append(f"| [`{name}`](#{anchor}) | {ONE_LINE[name]} | {loss} | {memory} | {paper} |")
    return "\n".join(lines) + "\n"


ONE_LINE = {
    "VeLO": "a per-tensor LSTM generates the network that steps each parameter",
    "Celo": "VeLO's two levels; the LSTM sees only the run's progress and loss",
    "CeloAdam": "Adam with step sizes chosen by Celo's LSTM",
    "CELO2": "a small network for matrices, with orthogonalized steps; AdamW for the rest",
    "ELO_CELO2": "CELO2's rule under ELO's recipe",
    "ELO": "a small per-parameter network with fixed decays",
    "AdafacLO": "a small per-parameter network over Adafactor's accumulators (small_fc_lopt)",
    "MuLO": "AdafacLO under μP: steps are divided by the width multiplier",
    "Muon": "orthogonalized momentum for matrices, AdamW for the rest; nothing learned",
}


def update_page(page: str) -> str:
    """The page with the current facts."""

    def block(match: re.Match[str]) -> str:
        name = match[2]
        return f"{match[1]}\n{overview() if name == 'overview' else facts(name)}\n{match[4]}"

    return MARKS.sub(block, page)


if __name__ == "__main__":
    PAGE.write_text(update_page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
