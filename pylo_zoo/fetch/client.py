"""Calls huggingface_hub with our own retries, timeouts, limits and error messages.

Every call to the Hub goes through :func:`call_hub`. The client retries without limit if a server sends ``Retry-After``,
has no timeout for most calls, and builds file names from response headers. The hooks below check each of our requests
and responses first. They ignore those of other libraries in the process.
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
from pylo_zoo.fetch.http import MIN_BYTES_PER_TIMEOUT, TRANSIENT, retry_after, unreachable
from pylo_zoo.fetch.retry import Policy, retrying
from pylo_zoo.fetch.uris import HF_ENDPOINT, check_url, is_loopback, redacted

Result = TypeVar("Result")

LIBRARY, VERSION = "pylo-zoo", __version__
"""Identify our requests, for the hooks below and for the Hub."""

ETAG = re.compile(r'(W/)?"?(?!\.{1,2}"?$)[\w.:+=-]{1,200}"?', re.ASCII)
COMMIT = re.compile(r"[0-9a-f]{40}")
MAX_ANSWER_BYTES = 256 * 1024 * 1024
"""Size limit of a file. The client would write an endless response until the disk is full."""
MAX_API_BYTES = 32 * 1024 * 1024
"""Size limit of an API response, which the client reads into memory."""
PATH_HEADERS = {"ETag": ETAG, "X-Linked-Etag": ETAG, "X-Repo-Commit": COMMIT}
"""The headers that the client uses in paths, and their allowed values."""


@dataclass(frozen=True)
class Subject:
    """The target of a call, for error messages.

    Attributes:
        uri: the address that the user gave.
        repo: ``ORG/NAME``.
        revision, file: within the repository, or empty.
        writes: whether the call changes the repository.
    """

    uri: str
    repo: str
    revision: str = ""
    file: str = ""
    writes: bool = False


def endpoint() -> str:
    """The address of the Hub: ``$HF_ENDPOINT``, or the public one.

    Raises:
        FetchError: it is neither https nor this machine.
    """
    address = (os.environ.get("HF_ENDPOINT") or HF_ENDPOINT).rstrip("/")
    check_url(address)
    return address


def check_token(token: str | None) -> None:
    """Check the form of ``token``, by default the token that the client would use. Messages never contain it.

    Raises:
        Forbidden: the token is empty, or contains characters that no token has.
    """
    from huggingface_hub import get_token

    token = get_token() if token is None else token
    if token is not None and not re.fullmatch(r"[!-~]+", token):
        what = "is empty" if not token.strip() else "contains spaces, line ends or non-ASCII characters"
        raise Forbidden(f"The token for the Hub {what}.", "Check --token and HF_TOKEN, or run `hf auth login`.")


def call_hub(
    subject: Subject,
    action: Callable[[], Result],
    policy: Policy,
    *,
    offline: bool = False,
    bars: bool = False,
    token: str | None = None,
) -> Result:
    """Return the result of ``action``, which calls the client; retry transient failures.

    Args:
        subject: the target, for error messages.
        action: the call. It must pass :data:`LIBRARY` and :data:`VERSION` to the client.
        policy: retries, and the timeout of each request.
        offline: the action makes no request.
        bars: let the client show progress bars.
        token: the token that the action uses; by default the client's stored token.

    Raises:
        Unavailable: the server does not answer, or answers only with server errors.
        NotFound, Forbidden, Conflict, FetchError: the server rejects the request; a retry would not help.
        ZooError: the client's cache cannot be written.
    """

    handled = sys.exc_info()[1]  # Python adds the caller's current exception to the context of new ones

    def attempt() -> Result:
        if not offline:
            check_token(token)
            _check_reachable(policy)
            _install_hooks(policy)
        try:
            with _quiet_client(bars):
                return action()
        except Exception as error:  # also exceptions of its HTTP and Xet libraries
            # Not "from error": its text may contain a signed address.
            raise _translate(subject, list(_chain(error, handled)), offline=offline) from None

    return retrying(attempt, subject.uri, policy)


def _check_reachable(policy: Policy) -> None:
    """Try to connect to the endpoint, because the client needs half a minute to report an unreachable one.

    With a proxy nothing is tried: the proxy makes the connection.

    Raises:
        Transient: the connection failed.
    """
    parts = urlsplit(endpoint())
    if urllib.request.getproxies():
        return
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname or "", port), policy.timeout).close()
    except OSError as error:
        raise unreachable(error, parts.geturl()) from None


# --- hooks -------------------------------------------------------------------------------------------------------


class _Hooks:
    """Two hooks of the client's session, which check our requests and their responses."""

    def __init__(self) -> None:
        self.timeout = Policy.timeout

    def request(self, request: Any) -> None:
        """Set the timeouts, and reject unencrypted addresses.

        Raises:
            FetchError: the address is not encrypted.
        """
        if not _is_ours(request):
            return
        request.extensions["timeout"] = dict.fromkeys(("connect", "read", "write", "pool"), self.timeout)
        _check_encrypted(str(request.url))

    def response(self, response: Any) -> None:
        """Reject dangerous headers, limit the body, and leave retries to :func:`retrying`.

        Raises:
            Transient: the server is busy or out of order.
            FetchError: a header could name a path outside the cache, or redirects to an unencrypted address.
        """
        if not _is_ours(response.request):
            return
        if response.status_code in TRANSIENT:
            raise Transient(f"answered {response.status_code}", after=retry_after(response.headers.get("Retry-After")))
        if location := response.headers.get("Location"):
            # Checked here, because the request hook does not recognize the GET that follows a redirected PUT.
            _check_encrypted(urljoin(str(response.request.url), location))
        for name, allowed in PATH_HEADERS.items():
            value = response.headers.get(name)
            if value is not None and not allowed.fullmatch(value):
                raise FetchError(
                    f"{redacted(str(response.request.url))} answered with the invalid {name} {value[:80]!r}.",
                    "Do not use this endpoint (HF_ENDPOINT).",
                )
        is_api = response.request.url.path.startswith("/api/")
        limit = MAX_API_BYTES if is_api else MAX_ANSWER_BYTES
        response.stream = _bounded(response, limit, self.timeout)


def _bounded(response: Any, limit: int, timeout: float) -> Any:
    """The body of ``response``, which raises an error if it is too large or too slow."""
    library = sys.modules[type(response).__module__.partition(".")[0]]  # httpx, or its successor in the client
    body = response.stream

    class Bounded(library.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            count, arrived, start = 0, 0, time.monotonic()
            for chunk in body:
                count, arrived = count + len(chunk), arrived + len(chunk)
                if count > limit:
                    raise FetchError(
                        f"{redacted(str(response.request.url))} is larger than {limit:,} bytes.",
                        "Check the address.",
                    )
                if (now := time.monotonic()) - start > timeout:
                    if arrived < MIN_BYTES_PER_TIMEOUT:
                        raise Transient(f"sent {arrived} bytes in {now - start:.0f} seconds")
                    start, arrived = now, 0
                yield chunk

        def __getattr__(self, name: str) -> Any:
            return getattr(body, name)

        def close(self) -> None:
            body.close()

    return Bounded()


_HOOKS = _Hooks()


def _check_encrypted(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme != "https" and not is_loopback(parts.hostname or ""):
        raise FetchError(f"{redacted(url)} is not encrypted, so no request was sent.", "Check HF_ENDPOINT.")


def _is_ours(request: Any) -> bool:
    # Uploads of large files go to signed addresses, without our User-Agent.
    return request.method == "PUT" or f"{LIBRARY}/" in request.headers.get("User-Agent", "")


def _install_hooks(policy: Policy) -> None:
    """Add the hooks to the client's session. The client replaces that session now and then."""
    from huggingface_hub import get_session

    _HOOKS.timeout = policy.timeout
    hooks = get_session().event_hooks
    for event, hook in (("request", _HOOKS.request), ("response", _HOOKS.response)):
        if hook not in hooks[event]:
            hooks[event].append(hook)


@contextmanager
def _quiet_client(bars: bool) -> Iterator[None]:
    """Silence the client's warnings, which print signed addresses, and its bars unless ``bars`` is true."""
    from huggingface_hub import constants, utils

    verbosity = utils.logging.get_verbosity()
    hide = not bars and constants.HF_HUB_DISABLE_PROGRESS_BARS is None and not utils.are_progress_bars_disabled()
    utils.logging.set_verbosity_error()
    if hide:
        utils.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            # The client uploads large files through a deprecated function of its HTTP library.
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        utils.logging.set_verbosity(verbosity)
        if hide:
            utils.enable_progress_bars()


# --- translating exceptions --------------------------------------------------------------------------------------


def _translate(subject: Subject, chain: Sequence[BaseException], *, offline: bool) -> Exception:
    """Our exception for the first of ``chain``, whose other members are its causes."""
    from huggingface_hub import errors

    error = chain[0]
    ours = next((each for each in chain if isinstance(each, (Transient, ZooError))), None)
    if isinstance(ours, (Transient, ZooError)):
        return ours
    status = next((code for each in chain if (code := _status(each)) is not None), None)
    if any(isinstance(each, errors.GatedRepoError) for each in chain):
        return Forbidden(
            f"{subject.uri} is gated, and no token with access to it was given.",
            f"Accept its terms on the page of {subject.repo}, then set HF_TOKEN or run `hf auth login`.",
        )
    if any(isinstance(each, errors.RepositoryNotFoundError) for each in chain):
        hint = "Check the name, or set HF_TOKEN for a private repository."
        return NotFound(f"{subject.uri}: the repository {subject.repo} does not exist or is private.", hint)
    if any(isinstance(each, errors.RevisionNotFoundError) for each in chain):
        return NotFound(f"{subject.uri}: {subject.repo} has no revision {subject.revision}.", "Check the revision.")
    if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
        return NotFound(f"{subject.uri}: {subject.repo} has no file {subject.file}.", "Check the name.")
    if offline or any(isinstance(each, errors.OfflineModeIsEnabled) for each in chain):
        return Unavailable(
            f"{subject.uri} is not in the cache, and offline mode is on.",
            "Turn offline mode off (--offline, HF_HUB_OFFLINE).",
        )
    if isinstance(error, errors.LocalTokenNotFoundError):
        return Forbidden(f"{subject.uri}: no token was given.", "Set HF_TOKEN, pass --token, or run `hf auth login`.")
    if isinstance(error, errors.HFValidationError):
        return FetchError(f"{subject.uri} is not a valid name on the Hub.", "Check the name.")
    if status in (401, 403) and any(_method(each) == "PUT" for each in chain):
        # The signatures of upload addresses expire.
        return Transient(f"was rejected by the storage of large files ({status})")
    if status is not None:
        return _error_for_status(subject, status)
    full = next((each for each in chain if getattr(each, "errno", None) in _DISK), None)
    if full is not None:
        return ZooError(
            f"huggingface_hub's cache cannot be written: {getattr(full, 'strerror', full)}.",
            "Check the permissions and the free space there, or set HF_HOME.",
        )
    local = isinstance(error, errors.LocalEntryNotFoundError)
    return Transient("cannot be reached" if local else f"failed ({type(error).__name__})", unreachable=local)


_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)


def _error_for_status(subject: Subject, status: int) -> Exception:
    if status in (401, 403):
        if not subject.writes:
            hint = "Check HF_TOKEN or run `hf auth login`: the Hub rejects an expired token even for public files."
            return Forbidden(f"{subject.uri}: access denied ({status}).", hint)
        owner = subject.repo.partition("/")[0]
        hint = f"Pass a token with write access to {owner} in --token or HF_TOKEN, or run `hf auth login`."
        return Forbidden(f"{subject.uri}: this token has no write access ({status}).", hint)
    if status == 404:
        return NotFound(f"{subject.uri} does not exist (404).", "Check the address.")
    if status in (409, 412):
        return Conflict(f"{subject.uri} changed during the request ({status}).", "Check its content, then try again.")
    return FetchError(f"{subject.uri} answered {status}.", "Check the name, or try again later.")


def _chain(error: BaseException | None, end: BaseException | None) -> Iterator[BaseException]:
    while error is not None and error is not end:
        yield error
        error = error.__cause__ or error.__context__


def _method(error: BaseException) -> str | None:
    with suppress(AttributeError, RuntimeError):  # a response may have no request
        return error.response.request.method  # pyright: ignore[reportAttributeAccessIssue]
    return None


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)
