"""Convert docstrings to Markdown: roles, pages and citations become links, examples become code blocks.

The options that all optimizers share replace ``**options`` in signatures and the line for them in docstrings.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from griffe import Docstring, Extension, Function, Object, Parameter, ParameterKind
from markdown.extensions.toc import slugify

from pylo_zoo.optim.options import DEFAULTS, SharedOptions, expand_docs

ROLE = re.compile(r":(?:class|func|meth|mod|data|attr|exc|obj):`(~?)([\w.]+)`")
LITERAL = re.compile(r"``(.+?)``", re.DOTALL)
SHARED = re.compile(r"^(?P<indent> +)(?P<names>\w+(?:, \w+)+)(?P<rest>: .*(?:\n(?P=indent) +.*)*)", re.MULTILINE)
SECTION = re.compile(r"^(Args|Attributes):\n(?:(?: +.*)?(?:\n|\Z))+", re.MULTILINE)
SPEC = re.compile(r"\bSPEC\b(?:\s+§(\d+))?|`?`?docs/spec\.md`?`?\s+§(\d+)")
"""A citation of docs/spec.md: ``SPEC``, ``SPEC §1`` or ``docs/spec.md §1``."""
HEADINGS = re.findall(
    r"^## (§(\d+) .+)$", Path(__file__).with_name("spec.md").read_text(encoding="utf-8"), re.MULTILINE
)
ANCHORS = {number: slugify(heading, "-") for heading, number in HEADINGS}
"""The anchor of each section of docs/spec.md, by number."""
PAGE = re.compile(r"`?`?docs/([\w-]+)\.md`?`?")
"""The path of a page in a docstring."""
EXAMPLE = re.compile(r"^>>> .*(?:\n(?!$).+)*(?:\n\n>>> .*(?:\n(?!$).+)*)*", re.MULTILINE)


def link(role: re.Match[str], owner: Object) -> str:
    """An optional link; a target without a page stays code."""
    short, target = role.groups()
    try:
        path = owner.resolve(target)
    except Exception:  # griffe raises several kinds of errors for an unknown name
        path = target
    return (
        f'<autoref identifier="{path}" optional><code>{target.rpartition(".")[2] if short else target}</code></autoref>'
    )


def split_shared(match: re.Match[str]) -> str:
    """Split ``a, b: text`` into an entry for ``a`` and one for ``b``."""
    names = match["names"].split(", ")
    return "\n".join(f"{match['indent']}{name}{match['rest']}" for name in names)


def cite(match: re.Match[str]) -> str:
    """A citation as a link to the section on the page of the mathematics."""
    number = match[1] or match[2]
    return f"[spec §{number}](../../spec.md#{ANCHORS[number]})" if number else "[spec](../../spec.md)"


def markdown(text: str, owner: Object) -> str:
    """A docstring as the site's Markdown."""
    text = SPEC.sub(cite, text)
    text = PAGE.sub(r"[\1](../../\1.md)", text)
    text = SECTION.sub(lambda section: SHARED.sub(split_shared, section[0]), text)
    text = ROLE.sub(lambda role: link(role, owner), text)
    text = LITERAL.sub(lambda literal: f"`{' '.join(literal[1].split())}`", text)
    return EXAMPLE.sub(lambda example: f"```pycon\n{example[0]}\n```", text)


def expand_options(function: Function) -> None:
    """Replace ``**options: Unpack[SharedOptions]`` in a signature."""
    for parameter in list(function.parameters):
        if "SharedOptions" in str(parameter.annotation) and parameter.kind is ParameterKind.var_keyword:
            del function.parameters[parameter.name]
            for name, default in DEFAULTS.items():
                kind: Any = ParameterKind.keyword_only
                option = Parameter(name, annotation=type(default).__name__, kind=kind, default=repr(default))
                function.parameters.add(option)


class Docstrings(Extension):
    """Rewrite the docstring of every object after the package is loaded."""

    def on_package(self, *, pkg: Any, **kwargs: Any) -> None:
        """Rewrite the docstrings of ``pkg`` if it is pylo_zoo."""
        if pkg.name == "pylo_zoo":
            self._rewrite(pkg)

    def _rewrite(self, owner: Object) -> None:
        if isinstance(owner, Function):
            expand_options(owner)
        if isinstance(owner.docstring, Docstring):
            text = expand_docs(owner.docstring.value, SharedOptions.__doc__ or "")
            owner.docstring.value = markdown(text, owner)
        for member in list(owner.members.values()):
            if not member.is_alias:
                self._rewrite(member)  # pyright: ignore[reportArgumentType]
