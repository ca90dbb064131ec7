"""How docstrings become Markdown: roles and pages become links, examples blocks, shared texts one an argument."""

from __future__ import annotations

import re
from typing import Any

from griffe import Docstring, Extension, Object

ROLE = re.compile(r":(?:class|func|meth|mod|data|attr|exc|obj):`(~?)([\w.]+)`")
LITERAL = re.compile(r"``(.+?)``", re.DOTALL)
SHARED = re.compile(r"^(?P<indent> +)(?P<names>\w+(?:, \w+)+)(?P<rest>: .*(?:\n(?P=indent) +.*)*)", re.MULTILINE)
SECTION = re.compile(r"^(Args|Attributes):\n(?:(?: +.*)?(?:\n|\Z))+", re.MULTILINE)
SPEC = re.compile(r"(?:[;,]\s+|\s*(\())SPEC\b[^()]*\)")
"""Sections of the specification that the code follows, which has no page here: ``(SPEC §1)``, ``(…; SPEC §1)``."""
PAGE = re.compile(r"`?`?docs/([\w-]+)\.md`?`?")
"""A page of the site, as the code names it."""
EXAMPLE = re.compile(r"^>>> .*(?:\n(?!$).+)*(?:\n\n>>> .*(?:\n(?!$).+)*)*", re.MULTILINE)


def link(role: re.Match[str], owner: Object) -> str:
    """An optional link: what has no page of its own stays code."""
    short, target = role.groups()
    try:
        path = owner.resolve(target)
    except Exception:  # griffe has several errors for a name that it does not know
        path = target
    return (
        f'<autoref identifier="{path}" optional><code>{target.rpartition(".")[2] if short else target}</code></autoref>'
    )


def shared(match: re.Match[str]) -> str:
    """``a, b: text`` as an entry for ``a`` and one for ``b``."""
    names = match["names"].split(", ")
    return "\n".join(f"{match['indent']}{name}{match['rest']}" for name in names)


def markdown(text: str, owner: Object) -> str:
    """A docstring as the site's Markdown."""
    text = SPEC.sub(lambda spec: "" if spec[1] else ")", text)
    text = PAGE.sub(r"[\1](../../\1.md)", text)
    text = SECTION.sub(lambda section: SHARED.sub(shared, section[0]), text)
    text = ROLE.sub(lambda role: link(role, owner), text)
    text = LITERAL.sub(lambda literal: f"`{' '.join(literal[1].split())}`", text)
    return EXAMPLE.sub(lambda example: f"```pycon\n{example[0]}\n```", text)


class Docstrings(Extension):
    """Rewrites the docstring of every object once the package is loaded."""

    def on_package(self, *, pkg: Any, **kwargs: Any) -> None:
        """Walk the package that was loaded."""
        if pkg.name == "pylo_zoo":
            self._rewrite(pkg)

    def _rewrite(self, owner: Object) -> None:
        if isinstance(owner.docstring, Docstring):
            owner.docstring.value = markdown(owner.docstring.value, owner)
        for member in list(owner.members.values()):
            if not member.is_alias:
                self._rewrite(member)  # pyright: ignore[reportArgumentType]
