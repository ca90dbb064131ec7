"""Downloads one file over https with the standard library: resumable, with limits on size, time and redirects."""

from __future__ import annotations

import http.client
import re
import socket
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urljoin, urlsplit

from pylo_zoo import __version__
from pylo_zoo.errors import count
from pylo_zoo.fetch.errors import FetchError, Forbidden, NotFound, Transient
from pylo_zoo.fetch.part import Part
from pylo_zoo.fetch.retry import Policy
from pylo_zoo.fetch.store import CHUNK
from pylo_zoo.fetch.uris import check_url, is_loopback, redacted

MAX_REDIRECTS = 5
MIN_BYTES_PER_TIMEOUT = 1024
"""Bytes that must arrive within each timeout; it stops a server that sends slowly forever."""
TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
REDIRECTED = (301, 302, 303, 307, 308)
CHANGED = "changed during the download"
WRONG_FILE = (
    "The publisher replaced it, or it was altered on the way: compare it with the publisher's page, or pass a trusted "
    "file with --source."
)
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


def download(
    url: str, part: Part, expected: int | None, policy: Policy, progress: Callable[[int, int | None], None]
) -> None:
    """Make one attempt to complete ``part`` with the file at ``url``.

    Args:
        url: https, or http to this machine.
        part: the bytes so far; the rest is appended.
        expected: the required length of the file, or None.
        policy: its timeout applies to every wait.
        progress: called with the bytes so far and the total length, or None if the length is unknown.

    Raises:
        Transient: another attempt may succeed; the bytes so far are kept.
        FetchError: another attempt would fail too.
    """
    if part.complete:
        return
    headers = {"Accept-Encoding": "identity", "User-Agent": f"pylo-zoo/{__version__}"}
    if part.count:
        headers |= {"Range": f"bytes={part.count}-", "If-Range": part.validator}
    with _open(url, headers, policy, part) as response:
        total = _begin(response, part, url, expected)
        with part.writing() as write:
            for chunk in _chunks(response, policy):
                write(chunk)
                progress(part.count, total)
    if total is not None and part.count != total:
        if part.count > total:
            part.discard()
        raise Transient(f"sent {part.count:,} of {total:,} bytes")


def _begin(response: http.client.HTTPResponse, part: Part, url: str, expected: int | None) -> int | None:
    """Prepare ``part`` for the body of ``response``. Returns the file's length, or None if the server omits it."""
    if (encoding := response.headers.get("Content-Encoding", "identity")) != "identity":
        raise FetchError(f"{redacted(url)} has the Content-Encoding {encoding!r}.", "Download it by hand.")
    validator, length = _validator(response), response.headers.get("Content-Length")
    if response.status == 206:
        match = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
        same = match and int(match[1]) == part.count and int(match[3]) == part.total and validator == part.validator
        if not same:  # the file changed, and the server ignores If-Range
            part.discard()
            raise Transient(CHANGED)
        return part.total
    total = int(length) if length is not None and length.isascii() and length.isdigit() else None
    if total is None and "chunked" not in response.headers.get("Transfer-Encoding", "").lower():
        if expected is None:
            raise FetchError(f"{redacted(url)}: the server does not send the file's length.", "Download it by hand.")
        total = expected
    if expected is not None and total not in (None, expected):
        part.discard()
        raise FetchError(f"{redacted(url)} has {count(total, 'byte')}, not {expected:,}.", WRONG_FILE)
    if total is not None and total > part.limit:
        part.discard()
        raise FetchError(f"{redacted(url)} has {count(total, 'byte')}, more than {part.limit:,}.", "Check the address.")
    part.restart(validator, total)
    return total


def _validator(response: http.client.HTTPResponse) -> str:
    """The strong ETag of this version of the file, or an empty string."""
    etag = response.headers.get("ETag", "")
    return "" if etag.startswith("W/") or not etag.isascii() or not etag.isprintable() else etag


def _chunks(response: http.client.HTTPResponse, policy: Policy) -> Iterator[bytes]:
    """Yield the body in chunks.

    Raises:
        Transient: the connection broke, or fewer than :data:`MIN_BYTES_PER_TIMEOUT` bytes arrived within a timeout.
    """
    start, arrived = time.monotonic(), 0
    while True:
        try:
            chunk = response.read1(CHUNK)
        except (OSError, http.client.HTTPException) as error:
            raise _broken(error) from None
        if not chunk:
            return
        yield chunk
        arrived += len(chunk)
        if (now := time.monotonic()) - start > policy.timeout:
            if arrived < MIN_BYTES_PER_TIMEOUT:
                raise Transient(f"sent {count(arrived, 'byte')} in {now - start:.0f} seconds")
            start, arrived = now, 0


@contextmanager
def _open(url: str, headers: dict[str, str], policy: Policy, part: Part) -> Iterator[http.client.HTTPResponse]:
    """Yield the response to a GET. Redirects are followed to https only, or from this machine to itself."""
    for _ in range(MAX_REDIRECTS + 1):
        check_url(url)
        try:
            answer = _answer(url, headers, policy)
        except _NoSuchRange:
            part.discard()
            raise Transient(CHANGED) from None
        if not isinstance(answer, str):
            with answer:
                yield answer
            return
        target = urljoin(url, answer)
        if urlsplit(target).scheme != "https" and not is_loopback(urlsplit(url).hostname or ""):
            raise FetchError(
                f"{redacted(url)} redirects to {redacted(target)}, which is not encrypted.",
                "Download the file by hand.",
            )
        url = target
    raise FetchError(f"{redacted(url)} redirects more than {MAX_REDIRECTS} times.", "Download the file by hand.")


def _answer(url: str, headers: dict[str, str], policy: Policy) -> http.client.HTTPResponse | str:
    """The response of one server, or the address that it redirects to."""
    local = is_loopback(urlsplit(url).hostname or "")  # a proxy cannot reach this machine's own servers
    opener = urllib.request.build_opener(_NoRedirect, *([urllib.request.ProxyHandler({})] if local else []))
    try:
        return opener.open(urllib.request.Request(url, headers=headers), timeout=policy.timeout)
    except urllib.error.HTTPError as error:
        with error:
            if error.code in REDIRECTED and (target := error.headers.get("Location")):
                return target
            raise _error_for_status(url, error) from None
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise FetchError(
                f"{redacted(url)}: the server's certificate is not valid: {error.reason.verify_message}.",
                "Check this machine's date, or set SSL_CERT_FILE to your proxy's certificates.",
            ) from None
        raise unreachable(error.reason, url) from None
    except (OSError, http.client.HTTPException) as error:
        raise _broken(error) from None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Redirects are followed by :func:`_open`, which checks their targets."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> None:
        return None


class _NoSuchRange(Exception):
    """The file is now shorter than the bytes already downloaded."""


def _error_for_status(url: str, error: urllib.error.HTTPError) -> Exception:
    """The exception for an error status."""
    if error.code == 416:
        return _NoSuchRange()
    if error.code in TRANSIENT:
        return Transient(f"answered {error.code}", after=retry_after(error.headers.get("Retry-After")))
    if error.code in (404, 410):
        return NotFound(f"{redacted(url)} does not exist ({error.code}).", "Check the address.")
    if error.code in (401, 403):
        hint = "Download it by hand with an account that has access."
        return Forbidden(f"{redacted(url)}: access denied ({error.code}).", hint)
    return FetchError(f"{redacted(url)} answered {error.code}.", "Download it by hand.")


def unreachable(reason: object, url: str) -> Transient:
    """The failure to connect to the host of ``url``, for ``reason``."""
    if isinstance(reason, socket.gaierror):
        host = urllib.parse.urlsplit(url).hostname or "the host"
        return Transient("did not resolve", host=host, unreachable=True)
    if isinstance(reason, TimeoutError):
        return Transient("did not answer in time", unreachable=True)
    what = reason.strerror if isinstance(reason, OSError) and reason.strerror else type(reason).__name__
    return Transient(f"cannot be reached ({what})", unreachable=True)


def _broken(error: Exception) -> Transient:
    if isinstance(error, TimeoutError):
        return Transient("sent no data for too long")
    return Transient(f"lost the connection ({type(error).__name__})")


def retry_after(value: str | None) -> float | None:
    """The seconds in a ``Retry-After`` header, which holds a number or a date."""
    if not value:
        return None
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return None
    date = date if date.tzinfo else date.replace(tzinfo=timezone.utc)
    return max((date - datetime.now(timezone.utc)).total_seconds(), 0.0)
