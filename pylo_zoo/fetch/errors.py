"""What can go wrong while fetching, each kind on its own where a caller acts on it."""

from __future__ import annotations

from pylo_zoo.errors import ZooError


class FetchError(ZooError):
    """A file could not be fetched, or is not the file that was wanted."""


class NotFound(FetchError):
    """The server answers, and has no such file, revision or repository."""


class Forbidden(FetchError):
    """The server answers, and does not let this user read the file."""


class Conflict(FetchError):
    """The server answers that somebody else has been there first."""


class Unavailable(FetchError):
    """The server does not answer, or only with errors, or may not be asked (offline).

    ``after`` is the seconds that it asked to wait the last time, or None.
    """

    def __init__(self, message: str, hint: str, after: float | None = None) -> None:
        super().__init__(message, hint)
        self.after = after


class Transient(Exception):
    """Something that may be gone at the next attempt.

    Args:
        what: the fault, as half a sentence: ``answered 503``.
        after: the seconds that the server asks to wait, or None.
        unreachable: nothing answered at all, or after long tries only, so that fewer attempts are worth while.
    """

    def __init__(self, what: str, *, after: float | None = None, unreachable: bool = False) -> None:
        super().__init__(what)
        self.what = what
        self.after = after
        self.unreachable = unreachable
