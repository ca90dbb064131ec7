"""Parameter groups for a model: each parameter's layout and rule, with the reason.

Patterns may use any name of a shared parameter, and names of frozen parameters.

The output head uses AdamW by default. CELO2's published recipe (arXiv 2602.19142, README of github.com/amoudgl/celo2)
uses AdamW for parameters with "embed" in their name, and the language-model code that it builds on
(github.com/martin-marek/batch-size) calls the untied head ``token_embed_out``. Muon's author recommends the same. Use
``head="learned"`` for CELO2's meta-training setup: perceptrons with every matrix under the learned rule.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pylo_zoo.errors import ZooError, did_you_mean
from pylo_zoo.ops.layout import LAYOUTS
from pylo_zoo.optim.checks import require
from pylo_zoo.optim.contract import Group
from pylo_zoo.optim.group_options import RULES
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

    ``print(routes(model, …))`` with the same arguments shows the decisions and the reasons.

    A pattern is a parameter's name, a name with wildcards (``*``, ``?``), or a module's name for all parameters inside.
    If several patterns match, the one with the most non-wildcard characters wins.

    Args:
        model: parameters without ``requires_grad`` are left out. A shared parameter appears once, as an embedding if
            any of its modules is one.
        groups: your own groups, as ``torch.optim`` accepts them: parameters, ``(name, parameter)`` pairs or dicts. They
            are split as needed and keep their options, including ``layout`` and ``rule``. Parameters in no group are
            left out. None selects all parameters.
        adamw: patterns of parameters that always use AdamW.
        learned: patterns of parameters that always use the learned rule; ``"*"`` for CELO2-base.
        layouts: layouts by pattern, such as ``{"experts": "torch-stacked"}``.
        head: rule of the output head: "adamw", or "learned" to treat it like other matrices.
        options: more options by pattern, such as ``{"head": {"lr": 1e-4}}``. They override ``defaults``, your groups'
            options and ``decay_vectors``.
        decay_vectors: False sets ``weight_decay`` to 0 for biases, norms and other vectors. To apply it to
            ``adam_weight_decay`` as well, pass that option here instead of to the optimizer.
        defaults: options of every group, such as ``weight_decay=0.1``. Options of your groups override them.

    Returns:
        Groups for any optimizer of this package. They have ``param_names``, which :mod:`torch.optim` requires of groups
        added later and this package's optimizers do not, and ``width_mult`` if all parameters have ``infshape`` of the
        ``mup`` package. Optimizers without AdamW ignore ``rule``.

    Raises:
        ZooError: a pattern matches no parameter, a value is unknown, or a group has a parameter of another model.
    """
    decided = routes(
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
    result: list[tuple[Route, Group]] = []
    for route in sorted(decided, key=lambda route: route.group):
        group = next((group for first, group in result if _same_group(first, route)), None)
        if group is None:
            group = {"params": [], "param_names": [], "layout": route.layout, "rule": route.rule, **route.options}
            if route.kind == "stack":  # Muon updates each matrix separately
                group = {"conv_mode": "batched", "normalize_spatial": False, **group}
            result.append((route, group))
        group["params"].append(parameters[route.name])
        group["param_names"].append(route.name)
    return [group for _, group in result]


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
    """The layout and rule that :func:`param_groups` gives each parameter, in the model's order, with the reason."""
    members = _model_parameters(model)
    rules = {"adamw": _as_list(adamw), "learned": _as_list(learned)}
    layouts, options = layouts or {}, options or {}
    for pattern in (*rules["adamw"], *rules["learned"], *layouts, *options):
        _check_pattern(pattern, members)
    for name, value, allowed in (("head", head, RULES), *(("layout", each, LAYOUTS) for each in layouts.values())):
        require(value in allowed, f"{name} is {value!r}.", f"Use one of {', '.join(allowed)}.")
    both = set(rules["adamw"]) & set(rules["learned"])
    require(not both, f"{sorted(both)} are in adamw= and in learned=.", "Keep each in one of them.")

    for group_options in (defaults, *options.values()):
        wrong = [key for key in ("params", "param_names", "layout", "rule") if key in group_options]
        require(not wrong, f"{wrong} are not group options here.", "Use layouts=, adamw= or learned=.")

    heads = output_heads(model)
    selected = _user_groups(groups, members)
    trained = [member for member in members if member.parameter.requires_grad and id(member.parameter) in selected]
    result = []
    for member in trained:
        index, own = selected[id(member.parameter)]
        trait = _apply_user_choices(_trait(member, heads, head), member, rules, layouts, own)
        merged = {**defaults, **{key: value for key, value in own.items() if key not in ("layout", "rule")}}
        if not decay_vectors and trait.kind in VECTORS:
            merged |= {key: 0.0 for key in ("weight_decay", *merged) if key.endswith("weight_decay")}
        for pattern in _matching(options, member.names):
            merged |= options[pattern]
        name, *tied = member.names
        shape = tuple(member.parameter.shape)
        result.append(
            Route(name, shape, trait.layout, trait.rule, trait.reason, trait.kind, tuple(tied), merged, index)
        )
    frozen = [member.names[0] for member in members if not member.parameter.requires_grad]
    return Routes(_with_widths(result, trained), frozen)


def _with_widths(decided: list[Route], members: Sequence[ModelParameter]) -> list[Route]:
    """The routes with ``width_mult`` from ``infshape``; unchanged if a parameter has no width (MuLO reports that)."""
    widths = [
        route.options["width_mult"] if "width_mult" in route.options else infshape_width(member.parameter)
        for route, member in zip(decided, members, strict=True)
    ]
    if None in widths:
        return decided
    return [
        replace(route, options={**route.options, "width_mult": width})
        for route, width in zip(decided, widths, strict=True)
    ]


class ModelParameter(NamedTuple):
    """A parameter and all modules that register it."""

    parameter: nn.Parameter
    owners: list[Owner]

    @property
    def names(self) -> list[str]:
        """All names of the parameter; the first is the one in ``model.named_parameters()``."""
        return [owner.name for owner in self.owners]


def _model_parameters(model: nn.Module) -> list[ModelParameter]:
    require(
        isinstance(model, nn.Module),
        f"param_groups needs the model, but got a {type(model).__name__}.",
        "Pass the nn.Module first, and your own groups as groups=.",
    )
    members: dict[int, ModelParameter] = {}
    for owner, parameter in owners(model):
        require(
            not isinstance(parameter, nn.parameter.UninitializedParameter),
            f"{owner.name} has no shape yet: it belongs to a lazy module.",
            "Run the model once on a batch before you build the groups.",
        )
        members.setdefault(id(parameter), ModelParameter(parameter, [])).owners.append(owner)
    return list(members.values())


def _trait(member: ModelParameter, heads: set[int], head: str) -> Trait:
    """The trait of a parameter. For a shared one, an embedding has priority, then a table, then the first owner."""
    shape = tuple(member.parameter.shape)
    traits = [recognize(owner, shape, id(owner.module) in heads) for owner in member.owners]
    trait = min(traits, key=lambda trait: {"embedding": 0, "table": 1}.get(trait.kind, 2))
    return trait._replace(rule=head) if trait.kind == "head" else trait


def _apply_user_choices(
    trait: Trait, member: ModelParameter, rules: Mapping[str, list[str]], layouts: Mapping[str, str], own: Group
) -> Trait:
    """The trait with the user's layout and rule: from a pattern, else from the group."""
    layout, reason = trait.layout, trait.reason
    named = _matching(layouts, member.names)
    if named or "layout" in own:
        layout = layouts[named[-1]] if named else own["layout"]
        reason = f"{trait.kind}, layout by " + (f"layouts[{named[-1]!r}]" if named else "its group")
    matches = [(pattern, rule) for rule in RULES for pattern in _matching(rules[rule], member.names)]
    rule = trait.rule
    if matches:
        pattern, rule = max(matches, key=lambda match: _specificity(match[0]))
        reason = f"named by {rule}={pattern!r}: {reason}"
    elif "rule" in own:
        rule, reason = own["rule"], f"rule by its group: {reason}"
    return Trait(trait.kind, layout, rule, reason)


# --- patterns --------------------------------------------------------------------------------------------------------


def _as_list(patterns: Patterns) -> list[str]:
    return [patterns] if isinstance(patterns, str) else list(patterns)


def _matching(patterns: Iterable[str], names: Sequence[str]) -> list[str]:
    """The patterns that match one of a parameter's names, from the least to the most specific."""
    return sorted((pattern for pattern in patterns if any(_matches(pattern, name) for name in names)), key=_specificity)


def _matches(pattern: str, name: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")


def _specificity(pattern: str) -> int:
    return sum(character not in "*?" for character in pattern)


def _check_pattern(pattern: str, members: Sequence[ModelParameter]) -> None:
    names = [name for member in members for name in member.names]
    if any(_matches(pattern, name) for name in names):
        return
    parts = [name.split(".") for name in names]
    known = {".".join(each[:end]) for each in parts for end in range(1, len(each) + 1)}
    hint = did_you_mean(pattern.strip("*?."), sorted(known), "Names are those of model.named_parameters().")
    raise ZooError(f"No parameter matches {pattern!r}.", hint)


# --- the user's groups -----------------------------------------------------------------------------------------------


def _user_groups(groups: Iterable[Any] | None, members: Sequence[ModelParameter]) -> dict[int, tuple[int, Group]]:
    """Map the ``id`` of each selected parameter to the index and the options of the user's group that contains it."""
    if groups is None:
        return {id(member.parameter): (0, {}) for member in members}
    user_groups = list(groups)
    if not any(isinstance(each, Mapping) for each in user_groups):
        user_groups = [{"params": user_groups}]
    model_parameters = {id(member.parameter) for member in members}
    selected: dict[int, tuple[int, Group]] = {}
    for index, group in enumerate(user_groups):
        require(
            isinstance(group, Mapping) and "params" in group,
            f"Group {index} is not a parameter group.",
            'Pass either parameters or dicts with "params", not both.',
        )
        params = [group["params"]] if isinstance(group["params"], Tensor) else list(group["params"])
        require(
            bool(params) or not isinstance(group["params"], Iterator),
            f"Group {index} holds an exhausted iterator.",
            "Pass a list: an iterator such as model.parameters() works only once.",
        )
        own = {key: value for key, value in group.items() if key not in ("params", "param_names")}
        for each in params:
            p = each[1] if isinstance(each, tuple) else each
            require(
                id(p) in model_parameters,
                f"Group {index} holds something that is not a parameter of the model: {_describe(p)}.",
                "Pass the model that the parameters belong to.",
            )
            require(id(p) not in selected, f"A parameter of {_describe(p)} is in two groups.", "Keep it in one.")
            selected[id(p)] = index, own
    return selected


def _describe(p: Any) -> str:
    return f"shape {tuple(p.shape)}" if isinstance(p, Tensor) else repr(p)


def _same_group(one: Route, other: Route) -> bool:
    def criteria(route: Route) -> tuple[Any, ...]:
        return route.group, route.layout, route.rule, route.kind == "stack", route.options.keys()

    if criteria(one) != criteria(other):
        return False
    return all(_same(value, other.options[key]) for key, value in one.options.items())


def _same(one: Any, other: Any) -> bool:
    return one is other or (not isinstance(one, torch.Tensor) and not isinstance(other, torch.Tensor) and one == other)
