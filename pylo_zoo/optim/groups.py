"""Parameter groups for a model: which layout and which rule each parameter has, and why.

A pattern is a parameter's name, a name with wildcards (``*``, ``?``), or a module's name, which means all that is in
it. It may use any name of a shared parameter, and a frozen one's. Where several match, the one with most characters
that are no wildcards wins.

The output head goes to AdamW by default; tied to an embedding, it goes there anyway. CELO2's published recipe (arXiv
2602.19142, README of github.com/amoudgl/celo2) gives AdamW what has "embed" in its name, and in the language-model code
that it builds on (github.com/martin-marek/batch-size) the untied head is called ``token_embed_out``. Muon's author
recommends the same. What CELO2 was meta-trained on, perceptrons with every matrix under the learned rule, is
``head="learned"``.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pylo_zoo.errors import ZooError
from pylo_zoo.ops.layout import LAYOUTS
from pylo_zoo.optim.contract import RULES, Group
from pylo_zoo.optim.mulo import infshape_width
from pylo_zoo.optim.recognize import VECTORS, Owner, Trait, output_heads, owners, recognize
from pylo_zoo.optim.route_table import Route, Routes

Patterns = str | Sequence[str]


def param_groups(
    model: nn.Module,
    groups: Iterable[Any] | None = None,
    *,
    adamw: Patterns = (),
    learned: Patterns = (),
    layouts: Mapping[str, str] | None = None,
    head: str = "adamw",
    options: Mapping[str, Mapping[str, Any]] | None = None,
    decay_vectors: bool = True,
    **defaults: Any,
) -> list[Group]:
    """Sort a model's parameters into groups with ``layout`` and ``rule`` (SPEC §1, §6).

    ``print(routes(model, …))``, with the same arguments, shows what it decides and why.

    A pattern is a parameter's name, a name with wildcards (``*``, ``?``), or a module's name, which means all that is
    in it. Where several match, the one with most characters that are no wildcards wins.

    Args:
        model: parameters that need no gradient are left out; a shared parameter counts once, and as an embedding if
            it is one anywhere.
        groups: your own groups, as ``torch.optim`` takes them: parameters, ``(name, parameter)`` pairs or dicts.
            Each is split as its parameters need and keeps its options; a ``layout`` or ``rule`` that it sets stands.
            Parameters in none of them are left out. None takes all parameters.
        adamw: patterns of parameters to give to AdamW in any case.
        learned: the same for the learned rule; ``"*"`` gives it all, as CELO2-base wants.
        layouts: layouts by pattern, such as ``{"experts": "torch-stacked"}``.
        head: rule of the output head: "adamw", or "learned" to treat it as any other matrix.
        options: further options by pattern, such as ``{"head": {"lr": 1e-4}}``; they win over ``defaults``, over your
            groups' and over ``decay_vectors``.
        decay_vectors: False sets ``weight_decay`` to 0 for biases, norms and other vectors. It cannot reach an
            ``adam_weight_decay`` given to the optimizer: give that here.
        defaults: options of every group, such as ``weight_decay=0.1``; your groups' own win.

    Returns:
        Groups for any optimizer of this package, with ``width_mult`` where the parameters carry ``infshape`` of the
        ``mup`` package, and with ``param_names``: torch 2.6 and newer then want names in groups added later, too.
        Optimizers without an AdamW path ignore ``rule``.

    Raises:
        ZooError: a pattern matches no parameter, a value is unknown, or a group holds what is not the model's.
    """
    found = routes(
        model,
        groups,
        adamw=adamw,
        learned=learned,
        layouts=layouts,
        head=head,
        options=options,
        decay_vectors=decay_vectors,
        **defaults,
    )
    parameters = dict(model.named_parameters())
    made: list[tuple[Route, Group]] = []
    for route in sorted(found, key=lambda route: route.group):
        group = next((group for first, group in made if _same_group(first, route)), None)
        if group is None:
            group = {"params": [], "param_names": [], "layout": route.layout, "rule": route.rule, **route.options}
            if route.kind == "stack":  # for Muon: each matrix alone
                group = {"conv_mode": "batched", "normalize_spatial": False, **group}
            made.append((route, group))
        group["params"].append(parameters[route.name])
        group["param_names"].append(route.name)
    return [group for _, group in made]


def routes(
    model: nn.Module,
    groups: Iterable[Any] | None = None,
    *,
    adamw: Patterns = (),
    learned: Patterns = (),
    layouts: Mapping[str, str] | None = None,
    head: str = "adamw",
    options: Mapping[str, Mapping[str, Any]] | None = None,
    decay_vectors: bool = True,
    **defaults: Any,
) -> Routes:
    """What :func:`param_groups` decides for each parameter, in the model's order, with the reason."""
    members = _members(model)
    rules = {"adamw": _listed(adamw), "learned": _listed(learned)}
    layouts, options = layouts or {}, options or {}
    for pattern in (*rules["adamw"], *rules["learned"], *layouts, *options):
        _check_pattern(pattern, members)
    for what, value, allowed in (("head", head, RULES), *(("layout", each, LAYOUTS) for each in layouts.values())):
        _require(value in allowed, f"{what} is {value!r}.", f"Use one of {', '.join(allowed)}.")
    both = set(rules["adamw"]) & set(rules["learned"])
    _require(not both, f"{sorted(both)} stand in adamw= and in learned=.", "Keep each in one of them.")

    for said in (defaults, *options.values()):
        wrong = [key for key in ("params", "param_names", "layout", "rule") if key in said]
        _require(not wrong, f"{wrong} are no options.", "Say layouts={pattern: layout}, adamw= and learned= instead.")

    heads = output_heads(model)
    chosen = _chosen(groups, members)
    taken = [member for member in members if member.parameter.requires_grad and id(member.parameter) in chosen]
    found = []
    for member in taken:
        index, own = chosen[id(member.parameter)]
        trait = _overruled(_trait(member, heads, head), member, rules, layouts, own)
        said = {**defaults, **{key: value for key, value in own.items() if key not in ("layout", "rule")}}
        if not decay_vectors and trait.kind in VECTORS:
            said |= {key: 0.0 for key in ("weight_decay", *said) if key.endswith("weight_decay")}
        for pattern in _matching(options, member.names):
            said |= options[pattern]
        name, *tied = member.names
        shape = tuple(member.parameter.shape)
        found.append(Route(name, shape, trait.layout, trait.rule, trait.reason, trait.kind, tuple(tied), said, index))
    frozen = [member.names[0] for member in members if not member.parameter.requires_grad]
    return Routes(_with_widths(found, taken), frozen)


def _with_widths(found: list[Route], taken: Sequence[Member]) -> list[Route]:
    """The routes with ``width_mult`` from ``infshape``, unless some have neither: MuLO will say what is wrong then."""
    widths = [
        (route.options if "width_mult" in route.options else {"width_mult": infshape_width(member.parameter)})[
            "width_mult"
        ]
        for route, member in zip(found, taken, strict=True)
    ]
    if None in widths:
        return found
    return [
        replace(route, options={**route.options, "width_mult": width})
        for route, width in zip(found, widths, strict=True)
    ]


class Member(NamedTuple):
    """One parameter of the model and the places where it stands."""

    parameter: nn.Parameter
    owners: list[Owner]

    @property
    def names(self) -> list[str]:
        """Its names; the first is that of ``model.named_parameters()``."""
        return [owner.name for owner in self.owners]


def _members(model: nn.Module) -> list[Member]:
    _require(
        isinstance(model, nn.Module),
        f"param_groups needs the model, and got {type(model).__name__}.",
        "Pass the nn.Module first, since its modules say what each parameter is, and groups of your own as groups=.",
    )
    found: dict[int, Member] = {}
    for owner, parameter in owners(model):
        _require(
            not isinstance(parameter, nn.parameter.UninitializedParameter),
            f"{owner.name} has no shape yet.",
            "Run the lazy model once before sorting its parameters.",
        )
        found.setdefault(id(parameter), Member(parameter, [])).owners.append(owner)
    return list(found.values())


def _trait(member: Member, heads: set[int], head: str) -> Trait:
    """What the parameter is; of the places of a shared one, an embedding decides, else a table, else the first."""
    shape = tuple(member.parameter.shape)
    traits = [recognize(owner, shape, id(owner.module) in heads) for owner in member.owners]
    trait = min(traits, key=lambda trait: {"embedding": 0, "table": 1}.get(trait.kind, 2))
    return trait._replace(rule=head) if trait.kind == "head" else trait


def _overruled(
    trait: Trait, member: Member, rules: Mapping[str, list[str]], layouts: Mapping[str, str], own: Group
) -> Trait:
    """The trait with what the user says about it: by pattern, else in a group."""
    layout, reason = trait.layout, trait.reason
    named = _matching(layouts, member.names)
    if named or "layout" in own:
        layout = layouts[named[-1]] if named else own["layout"]
        reason = f"{trait.kind}, layout by " + (f"layouts[{named[-1]!r}]" if named else "its group")
    matches = [(pattern, rule) for rule in RULES for pattern in _matching(rules[rule], member.names)]
    rule = trait.rule
    if matches:
        pattern, rule = max(matches, key=lambda match: _weight(match[0]))
        reason = f"named by {rule}={pattern!r}: {reason}"
    elif "rule" in own:
        rule, reason = own["rule"], f"rule by its group: {reason}"
    return Trait(trait.kind, layout, rule, reason)


# --- patterns --------------------------------------------------------------------------------------------------------


def _listed(patterns: Patterns) -> list[str]:
    return [patterns] if isinstance(patterns, str) else list(patterns)


def _matching(patterns: Iterable[str], names: Sequence[str]) -> list[str]:
    """The patterns that match one of a parameter's names, from the least to the most specific."""
    return sorted((pattern for pattern in patterns if any(_matches(pattern, name) for name in names)), key=_weight)


def _matches(pattern: str, name: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")


def _weight(pattern: str) -> int:
    return sum(character not in "*?" for character in pattern)


def _check_pattern(pattern: str, members: Sequence[Member]) -> None:
    names = [name for member in members for name in member.names]
    if any(_matches(pattern, name) for name in names):
        return
    parts = [name.split(".") for name in names]
    known = {".".join(each[:end]) for each in parts for end in range(1, len(each) + 1)}
    bare = pattern.strip("*?.")
    near = difflib.get_close_matches(bare, sorted(known), n=1)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    raise ZooError(f"No parameter is called {pattern!r}.", f"{hint}Names are those of model.named_parameters().")


# --- the user's groups -----------------------------------------------------------------------------------------------


def _chosen(groups: Iterable[Any] | None, members: Sequence[Member]) -> dict[int, tuple[int, Group]]:
    """``id`` of each parameter that takes part, to the number and the options of the user's group that holds it."""
    if groups is None:
        return {id(member.parameter): (0, {}) for member in members}
    given = list(groups)
    if not any(isinstance(each, Mapping) for each in given):
        given = [{"params": given}]
    mine = {id(member.parameter) for member in members}
    chosen: dict[int, tuple[int, Group]] = {}
    for index, group in enumerate(given):
        _require(
            isinstance(group, Mapping) and "params" in group,
            f"Group {index} is no parameter group.",
            'Give parameters alone, or dicts with "params" alone.',
        )
        params = [group["params"]] if isinstance(group["params"], Tensor) else list(group["params"])
        _require(
            bool(params) or not isinstance(group["params"], Iterator),
            f"Group {index} holds an iterator with nothing left.",
            "An iterator such as model.parameters() serves once: make it a list.",
        )
        own = {key: value for key, value in group.items() if key not in ("params", "param_names")}
        for each in params:
            p = each[1] if isinstance(each, tuple) else each
            _require(
                id(p) in mine,
                f"Group {index} holds what is no parameter of the model: {_described(p)}.",
                "Pass the model that the parameters belong to.",
            )
            _require(id(p) not in chosen, f"A parameter of {_described(p)} stands in two groups.", "Keep it in one.")
            chosen[id(p)] = index, own
    return chosen


def _described(p: Any) -> str:
    return f"shape {tuple(p.shape)}" if isinstance(p, Tensor) else repr(p)


def _same_group(one: Route, other: Route) -> bool:
    def what(route: Route) -> tuple[Any, ...]:
        return route.group, route.layout, route.rule, route.kind == "stack", route.options.keys()

    if what(one) != what(other):
        return False
    return all(_same(value, other.options[key]) for key, value in one.options.items())


def _same(one: Any, other: Any) -> bool:
    return one is other or (not isinstance(one, torch.Tensor) and not isinstance(other, torch.Tensor) and one == other)


def _require(condition: bool, message: str, hint: str) -> None:
    if not condition:
        raise ZooError(message, hint)
