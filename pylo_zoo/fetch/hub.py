"""One file of the Hub, by huggingface_hub itself: its cache, its token, its endpoint; our patience and messages."""

from __future__ import annotations

import errno
import socket
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pylo_zoo.errors import ZooError
from pylo_zoo.fetch.errors import FetchError, Forbidden, NotFound, Transient, Unavailable
from pylo_zoo.fetch.http import TRANSIENT, retry_after, unreachable
from pylo_zoo.fetch.retry import Policy
from pylo_zoo.fetch.uris import Location


def download(where: Location, policy: Policy, *, offline: bool, again: bool, bars: bool) -> Path:
    """One attempt to bring the file into huggingface_hub's own cache; its path there.

    What the client believes of the bytes is not enough: whoever calls has to compare them with a hash.

    Args:
        where: a location of the kind "hub".
        policy: its timeout holds for the first answer.
        offline: look into the cache alone.
        again: do not take the cache's word for it.
        bars: let the client show progress.

    Raises:
        Transient: worth another attempt.
        FetchError: not worth one.
        ZooError: the client's cache cannot be written.
    """
    import huggingface_hub

    if not offline:
        _knock(where, policy)
    try:
        with _reticent(bars):
            return Path(
                huggingface_hub.hf_hub_download(
                    where.repo,
                    where.file,
                    revision=where.revision,
                    etag_timeout=policy.timeout,
                    local_files_only=offline,
                    force_download=again,
                )
            )
    except Exception as error:  # the client lets through whatever its HTTP library and its Xet library raise
        # Not "from error": its text may hold a signed address.
        raise _meaning(where, error, offline=offline) from None


def forget(pointer: Path) -> None:
    """Make the client look again where ``pointer``, which it returned, leads to wrong bytes.

    A forced download renews the bytes, but a pointer that exists is kept, whatever it points to.
    """
    with suppress(OSError):
        pointer.unlink()


def _knock(where: Location, policy: Policy) -> None:
    """Find out whether anybody is there; the client alone takes half a minute to say that nobody is.

    A proxy has its own idea of who is there, so that nothing is asked where one is configured.
    """
    if urllib.request.getproxies():
        return
    parts = urlsplit(where.url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname or "", port), policy.timeout).close()
    except OSError as error:
        raise unreachable(error) from None


def _meaning(where: Location, error: Exception, *, offline: bool) -> Exception:
    from huggingface_hub import errors

    chain = list(_chain(error))
    status = next((code for each in chain if (code := _status(each)) is not None), None)
    if any(isinstance(each, errors.GatedRepoError) for each in chain):
        return Forbidden(
            f"{where.uri} is gated, and no token with access to it was given.",
            f"Accept its terms on the page of {where.repo}, then set HF_TOKEN or run `hf auth login`.",
        )
    if any(isinstance(each, errors.RepositoryNotFoundError) for each in chain):
        hint = "Check the name; a private repository needs HF_TOKEN or `hf auth login`."
        return NotFound(f"{where.uri}: there is no repository {where.repo}, or not for you.", hint)
    if any(isinstance(each, errors.RevisionNotFoundError) for each in chain):
        return NotFound(f"{where.uri}: {where.repo} has no revision {where.revision}.", "Check the revision.")
    if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
        return NotFound(f"{where.uri}: {where.repo} has no file {where.file}.", "Check the name.")
    if offline or any(isinstance(each, errors.OfflineModeIsEnabled) for each in chain):
        return Unavailable(f"{where.uri} is not in the cache, and offline mode is on.", "Go online.")
    if isinstance(error, errors.HFValidationError):
        return FetchError(f"{where.uri} is no file on the Hub.", "Check the name.")
    if status is not None:
        return _refused(where, status, chain)
    full = next((each for each in chain if getattr(each, "errno", None) in _DISK), None)
    if full is not None:
        return ZooError(
            f"huggingface_hub's cache cannot be written: {getattr(full, 'strerror', full)}.",
            "Check the permissions and the free space there, or set HF_HOME.",
        )
    local = isinstance(error, errors.LocalEntryNotFoundError)
    return Transient("cannot be reached" if local else f"broke off ({type(error).__name__})", unreachable=local)


_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)


def _refused(where: Location, status: int, chain: list[BaseException]) -> Exception:
    from huggingface_hub import errors

    if status in TRANSIENT:
        after = next((value for each in chain if (value := _retry_after(each)) is not None), None)
        gave_up = isinstance(chain[0], errors.LocalEntryNotFoundError)  # recent clients have tried for long by then
        return Transient(f"answered {status}", after=after, unreachable=gave_up)
    if status in (401, 403):
        hint = "Check HF_TOKEN, or log in with `hf auth login`; a stale token is refused even where none is needed."
        return Forbidden(f"{where.uri} may not be read ({status}).", hint)
    if status == 404:
        return NotFound(f"{where.uri} does not exist (404).", "Check the address.")
    return FetchError(f"{where.uri} answered {status}.", "Download it by hand.")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _retry_after(error: BaseException) -> float | None:
    headers: Any = getattr(getattr(error, "response", None), "headers", None)
    return retry_after(headers.get("Retry-After")) if headers is not None else None


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
        yield
    finally:
        utils.logging.set_verbosity(verbosity)
        if hide:
            utils.enable_progress_bars()
