"""huggingface_hub under guard: our patience and messages, and no word of a server's taken for a path or a place.

Whatever is asked of the Hub goes through :func:`ask`. The client retries without bound where a server asks it to
wait, has no timeout for most calls, and makes file names of what answers say: the hooks below see every request and
every answer of ours first, and leave those of the rest of the process alone.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import sys
import time
import urllib.request
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urljoin, urlsplit

from pylo_zoo import __version__
from pylo_zoo.errors import ZooError
from pylo_zoo.fetch.errors import Conflict, FetchError, Forbidden, NotFound, Transient, Unavailable
from pylo_zoo.fetch.http import SLOWEST, TRANSIENT, retry_after, unreachable
from pylo_zoo.fetch.retry import Policy, retrying
from pylo_zoo.fetch.uris import HF_ENDPOINT, check_url, is_loopback, shown

Result = TypeVar("Result")

LIBRARY, VERSION = "pylo-zoo", __version__
"""How our requests are told from others of the same process, and from those of other libraries by the Hub."""

ETAG = re.compile(r'(W/)?"?(?!\.{1,2}"?$)[\w.:+=-]{1,200}"?', re.ASCII)
COMMIT = re.compile(r"[0-9a-f]{40}")
MAX_ANSWER_BYTES = 256 * 1024 * 1024
"""Of a file; the client would write an answer that never ends until the disk is full."""
MAX_TOLD_BYTES = 32 * 1024 * 1024
"""Of what the Hub tells of a repository, which the client reads into memory."""
NAMED = {"ETag": ETAG, "X-Linked-Etag": ETAG, "X-Repo-Commit": COMMIT}
"""The headers that the client makes paths of, and what they may be."""


@dataclass(frozen=True)
class Subject:
    """What a call is about, for messages.

    Attributes:
        uri: as the user knows it.
        repo: ``ORG/NAME``.
        revision, file: within the repository, or empty.
        writes: whether something is to be changed there.
    """

    uri: str
    repo: str
    revision: str = ""
    file: str = ""
    writes: bool = False


def endpoint() -> str:
    """The Hub that is asked: ``$HF_ENDPOINT``, which has to be https or this very machine, or the public one.

    Raises:
        FetchError: it is neither.
    """
    address = (os.environ.get("HF_ENDPOINT") or HF_ENDPOINT).rstrip("/")
    check_url(address)
    return address


def check_token(token: str | None) -> None:
    """Refuse a token that cannot be one, by default the one that the client would take; it is never shown.

    Raises:
        Forbidden: it is empty, or has signs that no token has.
    """
    from huggingface_hub import get_token

    token = get_token() if token is None else token
    if token is not None and not re.fullmatch(r"[!-~]+", token):
        what = "is empty" if not token.strip() else "has signs that no token has (blanks, line ends, accents)"
        raise Forbidden(f"The token for the Hub {what}.", "Check --token and HF_TOKEN, or run `hf auth login`.")


def ask(
    subject: Subject,
    action: Callable[[], Result],
    policy: Policy,
    *,
    offline: bool = False,
    bars: bool = False,
    token: str | None = None,
) -> Result:
    """The result of ``action``, which calls the client; called again while patience lasts.

    Args:
        subject: what it is about.
        action: the call; it has to give the client :data:`LIBRARY` and :data:`VERSION`.
        policy: patience, and the timeout of each request.
        offline: that the action asks nobody.
        bars: let the client show progress.
        token: that the action uses; by default the client's own.

    Raises:
        Unavailable: nobody answers, or only with faults.
        NotFound, Forbidden, Conflict, FetchError: what the answer is; nothing is gained by asking again.
        ZooError: the client's cache cannot be written.
    """

    handled = sys.exc_info()[1]  # what the caller is handling, which Python would make part of whatever happens here

    def attempt() -> Result:
        if not offline:
            check_token(token)
            _knock(policy)
            _guard(policy)
        try:
            with _reticent(bars):
                return action()
        except Exception as error:  # the client lets through whatever its HTTP library and its Xet library raise
            # Not "from error": its text may hold a signed address.
            raise _meaning(subject, list(_chain(error, handled)), offline=offline) from None

    return retrying(attempt, subject.uri, policy)


def _knock(policy: Policy) -> None:
    """Find out whether anybody is there; the client alone takes half a minute to say that nobody is.

    A proxy has its own idea of who is there, so that nothing is asked where one is configured.
    """
    parts = urlsplit(endpoint())
    if urllib.request.getproxies():
        return
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname or "", port), policy.timeout).close()
    except OSError as error:
        raise unreachable(error) from None


# --- the guard ---------------------------------------------------------------------------------------------------


class _Guard:
    """Two hooks of the client's session: one sees each request of ours before it goes, one each answer to it."""

    def __init__(self) -> None:
        self.timeout = Policy.timeout

    def request(self, request: Any) -> None:
        """Bound the wait, and let nothing go where it could be read on the way.

        Raises:
            FetchError: the address is not encrypted.
        """
        if not _ours(request):
            return
        request.extensions["timeout"] = dict.fromkeys(("connect", "read", "write", "pool"), self.timeout)
        _check_encrypted(str(request.url))

    def response(self, response: Any) -> None:
        """Refuse what would name a file outside the cache, bound the rest, and leave waiting to :func:`retrying`.

        Raises:
            Transient: the server is busy or out of order.
            FetchError: no Hub answers like this.
        """
        if not _ours(response.request):
            return
        if response.status_code in TRANSIENT:
            raise Transient(f"answered {response.status_code}", after=retry_after(response.headers.get("Retry-After")))
        if location := response.headers.get("Location"):
            # Where a PUT is sent on by a GET, that is not known for ours.
            _check_encrypted(urljoin(str(response.request.url), location))
        for name, allowed in NAMED.items():
            value = response.headers.get(name)
            if value is not None and not allowed.fullmatch(value):
                raise FetchError(
                    f"{shown(str(response.request.url))} was answered with the {name} {value[:80]!r}, as no Hub does.",
                    "Do not use this endpoint (HF_ENDPOINT).",
                )
        told = response.request.url.path.startswith("/api/")
        limit = MAX_TOLD_BYTES if told else MAX_ANSWER_BYTES
        response.stream = _bounded(response, limit, self.timeout)


def _bounded(response: Any, limit: int, timeout: float) -> Any:
    """The body of ``response``, as long as it is not too long and arrives at a bearable pace."""
    library = sys.modules[type(response).__module__.partition(".")[0]]  # httpx, or what has its name by now
    body = response.stream

    class Bounded(library.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            count, arrived, start = 0, 0, time.monotonic()
            for chunk in body:
                count, arrived = count + len(chunk), arrived + len(chunk)
                if count > limit:
                    raise FetchError(
                        f"{shown(str(response.request.url))} is larger than {limit:,} bytes, and was not kept.",
                        "Is it the right address?",
                    )
                if (now := time.monotonic()) - start > timeout:
                    if arrived < SLOWEST:
                        raise Transient(f"sent {arrived} bytes in {now - start:.0f} seconds")
                    start, arrived = now, 0
                yield chunk

        def __getattr__(self, name: str) -> Any:
            return getattr(body, name)

        def close(self) -> None:
            body.close()

    return Bounded()


_GUARD = _Guard()


def _check_encrypted(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme != "https" and not is_loopback(parts.hostname or ""):
        raise FetchError(f"{shown(url)} is not encrypted, and was not asked.", "Check HF_ENDPOINT.")


def _ours(request: Any) -> bool:
    # The bytes of a large file are put to a signed address, without the headers of the calls around it.
    return request.method == "PUT" or f"{LIBRARY}/" in request.headers.get("User-Agent", "")


def _guard(policy: Policy) -> None:
    """Have the session of the client under guard; it makes itself a new one now and then."""
    from huggingface_hub import get_session

    _GUARD.timeout = policy.timeout
    hooks = get_session().event_hooks
    for event, hook in (("request", _GUARD.request), ("response", _GUARD.response)):
        if hook not in hooks[event]:
            hooks[event].append(hook)


@contextmanager
def _reticent(bars: bool) -> Iterator[None]:
    """Without warnings, which print signed addresses, and without bars unless they are wanted."""
    from huggingface_hub import constants, utils

    verbosity = utils.logging.get_verbosity()
    hide = not bars and constants.HF_HUB_DISABLE_PROGRESS_BARS is None and not utils.are_progress_bars_disabled()
    utils.logging.set_verbosity_error()
    if hide:
        utils.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            # The client hands large files to its HTTP library in a way that this calls deprecated.
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        utils.logging.set_verbosity(verbosity)
        if hide:
            utils.enable_progress_bars()


# --- what an exception means -------------------------------------------------------------------------------------


def _meaning(subject: Subject, chain: Sequence[BaseException], *, offline: bool) -> Exception:
    """What the first of ``chain`` means; the others are its causes."""
    from huggingface_hub import errors

    error = chain[0]
    told = next((each for each in chain if isinstance(each, (Transient, ZooError))), None)
    if isinstance(told, (Transient, ZooError)):
        return told
    status = next((code for each in chain if (code := _status(each)) is not None), None)
    if any(isinstance(each, errors.GatedRepoError) for each in chain):
        return Forbidden(
            f"{subject.uri} is gated, and no token with access to it was given.",
            f"Accept its terms on the page of {subject.repo}, then set HF_TOKEN or run `hf auth login`.",
        )
    if any(isinstance(each, errors.RepositoryNotFoundError) for each in chain):
        hint = "Check the name; a private repository needs HF_TOKEN or `hf auth login`."
        return NotFound(f"{subject.uri}: there is no repository {subject.repo}, or not for you.", hint)
    if any(isinstance(each, errors.RevisionNotFoundError) for each in chain):
        return NotFound(f"{subject.uri}: {subject.repo} has no revision {subject.revision}.", "Check the revision.")
    if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
        return NotFound(f"{subject.uri}: {subject.repo} has no file {subject.file}.", "Check the name.")
    if offline or any(isinstance(each, errors.OfflineModeIsEnabled) for each in chain):
        return Unavailable(f"{subject.uri} is not in the cache, and offline mode is on.", "Go online.")
    if isinstance(error, errors.LocalTokenNotFoundError):
        return Forbidden(f"{subject.uri}: no token was given.", "Set HF_TOKEN, give --token, or run `hf auth login`.")
    if isinstance(error, errors.HFValidationError):
        return FetchError(f"{subject.uri} is no name on the Hub.", "Check the name.")
    if status in (401, 403) and any(_method(each) == "PUT" for each in chain):
        # Its addresses are signed for a while only.
        return Transient(f"was refused by the storage of large files ({status})")
    if status is not None:
        return _refused(subject, status)
    full = next((each for each in chain if getattr(each, "errno", None) in _DISK), None)
    if full is not None:
        return ZooError(
            f"huggingface_hub's cache cannot be written: {getattr(full, 'strerror', full)}.",
            "Check the permissions and the free space there, or set HF_HOME.",
        )
    local = isinstance(error, errors.LocalEntryNotFoundError)
    return Transient("cannot be reached" if local else f"broke off ({type(error).__name__})", unreachable=local)


_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)


def _refused(subject: Subject, status: int) -> Exception:
    if status in (401, 403):
        stale = "log in with `hf auth login`; a stale token is refused even where none is needed."
        if not subject.writes:
            return Forbidden(f"{subject.uri} may not be read ({status}).", f"Check HF_TOKEN, or {stale}")
        return Forbidden(
            f"{subject.uri} may not be written with this token ({status}).",
            f"It needs the right to write to {subject.repo.partition('/')[0]}. Check --token and HF_TOKEN, or {stale}",
        )
    if status == 404:
        return NotFound(f"{subject.uri} does not exist (404).", "Check the address.")
    if status in (409, 412):
        return Conflict(f"{subject.uri} has changed meanwhile ({status}).", "Look at what is there, and try again.")
    return FetchError(f"{subject.uri} answered {status}.", "Check the name, or try again later.")


def _chain(error: BaseException | None, end: BaseException | None) -> Iterator[BaseException]:
    while error is not None and error is not end:
        yield error
        error = error.__cause__ or error.__context__


def _method(error: BaseException) -> str | None:
    with suppress(AttributeError, RuntimeError):  # an answer need not know its request
        return error.response.request.method  # pyright: ignore[reportAttributeAccessIssue]
    return None


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)
