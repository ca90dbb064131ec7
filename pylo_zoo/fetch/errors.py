"""The errors of fetching. Each kind that a caller handles differently is a class."""

from __future__ import annotations

from pylo_zoo.errors import ZooError


class FetchError(ZooError):
    """A file could not be fetched, or its content is not what the caller expects."""


class NotFound(FetchError):
    """The server answers that the file, revision or repository does not exist."""


class Forbidden(FetchError):
    """The server denies this user access to the file."""


class Conflict(FetchError):
    """The server answers that another user made a conflicting change first."""


class Unavailable(FetchError):
    """The server does not answer, answers only with server errors, or offline mode forbids the request.

    ``after`` is the number of seconds in the server's last ``Retry-After``, or None.
    """

    def __init__(self, message: str, hint: str, after: float | None = None) -> None:
        super().__init__(message, hint)
        self.after = after


class Transient(Exception):
    """A failure that a retry may fix.

    Args:
        what: the failure, without a subject: ``answered 503``.
        host: the subject, if the host and not the file failed.
        after: the seconds in the server's ``Retry-After``, or None.
        unreachable: the server did not answer, so fewer attempts are made.
    """

    def __init__(
        self, what: str, *, host: str | None = None, after: float | None = None, unreachable: bool = False
    ) -> None:
        super().__init__(what)
        self.what = what
        self.host = host
        self.after = after
        self.unreachable = unreachable
