"""``hf://ORG/NAME[@REVISION]``: a repository of models on the Hub, at a commit, branch, tag or pull request.

>>> Repository.parse("hf://org/my-velo@v1")
Repository(id='org/my-velo', revision='v1')
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from pylo_zoo.errors import ZooError

SCHEME = "hf://"
MAIN = "main"
FORM = (
    "It is ORG/NAME, or hf://ORG/NAME@REVISION with a commit (40 hex digits), branch or tag; names have letters, "
    "digits, and single - _ . between them, 96 signs at most."
)
_WORD = re.compile(r"(?!-)(?!.*(--|\.\.))[A-Za-z0-9._-]{1,96}(?<![-.])", re.ASCII)
"""What the Hub allows for an organisation, and for a repository."""
_REVISION = re.compile(r"(?!.*\.\.)[A-Za-z0-9_][\w.+-]*(/[\w.+-]+)*", re.ASCII)
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Repository:
    """A repository, and which state of it.

    Attributes:
        id: ``ORG/NAME``.
        revision: a commit (40 hex digits), branch, tag or ``refs/pr/N``; None for the main branch as it is.
    """

    id: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str, revision: str | None = None) -> Repository:
        """The repository that ``text`` names; ``revision`` is one said elsewhere.

        Raises:
            ZooError: it is no such name, or two revisions are given.
        """
        name, at, said = text.removeprefix(SCHEME).partition("@")
        if at and revision is not None and revision != said:
            raise ZooError(f"{text} names a revision, and {revision} is another.", "Give one of the two.")
        chosen = said if at else revision
        words = name.split("/")
        if len(words) != 2 or not all(map(_WORD.fullmatch, words)):
            pasted = re.fullmatch(r"https://[^/]+/([^/]+/[^/?#]+)(/.*)?", text)
            hint = f"Did you mean {pasted[1]}?" if pasted else FORM
            raise ZooError(f"{text[:200]!r} is no repository on the Hub.", hint)
        if chosen is not None and not is_revision(chosen):
            raise ZooError(f"{name!r}: {chosen[:100]!r} is no revision.", FORM)
        return cls(name, chosen)

    @property
    def uri(self) -> str:
        """As it is written, and stands in a lock file."""
        return f"{SCHEME}{self.id}" + (f"@{self.revision}" if self.revision else "")

    @property
    def commit(self) -> str | None:
        """The revision, if it is a commit, which nobody can move."""
        return self.revision if self.revision and COMMIT.fullmatch(self.revision) else None

    def at(self, commit: str) -> Repository:
        """The same repository at ``commit``."""
        return Repository(self.id, commit)


def is_revision(text: str) -> bool:
    """Whether a commit, branch or tag can be called ``text``."""
    return len(text) <= 250 and _REVISION.fullmatch(text) is not None


def is_repository(text: str) -> bool:
    """Whether ``text`` is an address of a repository, and not of a file in one."""
    return text.startswith(SCHEME) and text.removeprefix(SCHEME).partition("@")[0].count("/") == 1
