"""The one exception that the package raises for bad input."""

from __future__ import annotations


class ZooError(ValueError):
    """Bad input, or a request that cannot be met.

    Args:
        message: what was wrong, in one sentence.
        hint: what the user can do about it, in one sentence.

    The command line prints the two as an ``Error:`` and a ``Hint:`` line and exits with status 1.
    """

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}"
