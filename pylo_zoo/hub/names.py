"""Parses ``hf://ORG/NAME[@REVISION]``: a model repository on the Hub, at a commit, branch, tag or pull request.

>>> Repository.parse("hf://org/my-velo@v1")
Repository(id='org/my-velo', revision='v1')
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from pylo_zoo.errors import UsageError

SCHEME = "hf://"
MAIN = "main"
FORM = "Pass ORG/NAME, or hf://ORG/NAME@REVISION with a branch, a tag or a commit (40 hex digits)."
_WORD = re.compile(r"(?!-)(?!.*(--|\.\.))[A-Za-z0-9._-]{1,96}(?<![-.])", re.ASCII)
"""A valid name of an organization or repository on the Hub."""
_REVISION = re.compile(r"(?!.*\.\.)[A-Za-z0-9_][\w.+-]*(/[\w.+-]+)*", re.ASCII)
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Repository:
    """A repository at a revision.

    Attributes:
        id: ``ORG/NAME``.
        revision: a commit (40 hex digits), branch, tag or ``refs/pr/N``; None for the main branch.
    """

    id: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str, revision: str | None = None) -> Repository:
        """Parse ``text``. ``revision`` is a revision that was given separately.

        Raises:
            ZooError: ``text`` is not the name of a repository, or the two revisions differ.
        """
        name, at, own = text.removeprefix(SCHEME).partition("@")
        if at and revision is not None and revision != own:
            raise UsageError(f"{text} names a revision other than {revision}.", "Pass only one of them.")
        chosen = own if at else revision
        if not is_repository_name(name):
            pasted = re.fullmatch(r"https://[^/]+/([^/]+/[^/?#]+)(/.*)?", text)
            hint = f"Did you mean {pasted[1]}?" if pasted else FORM
            raise UsageError(f"{text[:200]!r} is not the name of a repository on the Hub.", hint)
        if chosen is not None and not is_revision(chosen):
            raise UsageError(f"{name!r}: {chosen[:100]!r} is not a valid revision.", FORM)
        return cls(name, chosen)

    @property
    def uri(self) -> str:
        """The address as users write it and lock files store it."""
        return f"{SCHEME}{self.id}" + (f"@{self.revision}" if self.revision else "")

    @property
    def commit(self) -> str | None:
        """The revision if it is a commit, which cannot change; otherwise None."""
        return self.revision if self.revision and COMMIT.fullmatch(self.revision) else None

    def at(self, commit: str) -> Repository:
        """The same repository at ``commit``."""
        return Repository(self.id, commit)


def is_revision(text: str) -> bool:
    """Whether ``text`` is a valid name of a commit, branch or tag."""
    return len(text) <= 250 and _REVISION.fullmatch(text) is not None


def is_repository_name(text: str) -> bool:
    """Whether ``text`` is a valid ``ORG/NAME``."""
    words = text.split("/")
    return len(words) == 2 and all(map(_WORD.fullmatch, words))


def is_repository(text: str) -> bool:
    """Whether ``text`` is the address of a repository, not of a file in a repository."""
    return text.startswith(SCHEME) and text.removeprefix(SCHEME).partition("@")[0].count("/") == 1
