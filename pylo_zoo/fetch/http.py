"""One file over https, by the standard library: resumed, bounded, and never from a place that was not asked for."""

from __future__ import annotations

import http.client
import re
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urljoin, urlsplit

from pylo_zoo import __version__
from pylo_zoo.fetch.errors import FetchError, Forbidden, NotFound, Transient
from pylo_zoo.fetch.part import Part
from pylo_zoo.fetch.retry import Policy
from pylo_zoo.fetch.store import CHUNK
from pylo_zoo.fetch.uris import check_url, is_loopback, shown

REDIRECTS = 5
SLOWEST = 1024
"""Bytes that have to arrive within the timeout, so that a server cannot drip forever."""
TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
REDIRECTED = (301, 302, 303, 307, 308)
CHANGED = "changed during the download"
WRONG_FILE = (
    "The publisher has replaced it, or something on the way has altered it; compare with the publisher's page, or give "
    "a file that you trust with --source."
)
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


def download(
    url: str, part: Part, expected: int | None, policy: Policy, seen: Callable[[int, int | None], None]
) -> None:
    """One attempt to complete ``part`` with the file at ``url``.

    Args:
        url: https, or http to this machine.
        part: what there is, and where the rest goes.
        expected: the length that the file has to have, or None.
        policy: its timeout holds for every wait.
        seen: hears the bytes so far, and the length where it is known.

    Raises:
        Transient: worth another attempt; what has arrived is kept.
        FetchError: not worth one.
    """
    if part.complete:
        return
    headers = {"Accept-Encoding": "identity", "User-Agent": f"pylo-zoo/{__version__}"}
    if part.count:
        headers |= {"Range": f"bytes={part.count}-", "If-Range": part.validator}
    with _opened(url, headers, policy, part) as response:
        total = _begin(response, part, url, expected)
        with part.writing() as write:
            for chunk in _chunks(response, policy):
                write(chunk)
                seen(part.count, total)
    if total is not None and part.count != total:
        if part.count > total:
            part.discard()
        raise Transient(f"sent {part.count:,} of {total:,} bytes")


def _begin(response: http.client.HTTPResponse, part: Part, url: str, expected: int | None) -> int | None:
    """Bring ``part`` to where the body of ``response`` begins; the whole file's length, or None where nobody says."""
    if (encoding := response.headers.get("Content-Encoding", "identity")) != "identity":
        raise FetchError(f"{shown(url)} is sent as {encoding!r}, which was not asked for.", "Download it by hand.")
    validator, length = _validator(response), response.headers.get("Content-Length")
    if response.status == 206:
        found = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
        same = found and int(found[1]) == part.count and int(found[3]) == part.total and validator == part.validator
        if not same:  # the file has changed, and the server does not know If-Range
            part.discard()
            raise Transient(CHANGED)
        return part.total
    total = int(length) if length is not None and length.isascii() and length.isdigit() else None
    if total is None and "chunked" not in response.headers.get("Transfer-Encoding", "").lower():
        if expected is None:
            raise FetchError(f"{shown(url)}: the server does not say how long it is.", "Download it by hand.")
        total = expected
    if expected is not None and total not in (None, expected):
        part.discard()
        raise FetchError(f"{shown(url)} has {total:,} bytes, not {expected:,}.", WRONG_FILE)
    if total is not None and total > part.limit:
        part.discard()
        raise FetchError(f"{shown(url)} has {total:,} bytes, more than {part.limit:,}.", "Is it the right address?")
    part.restart(validator, total)
    return total


def _validator(response: http.client.HTTPResponse) -> str:
    """What tells this version of the file from another: a strong ETag, or nothing."""
    etag = response.headers.get("ETag", "")
    return "" if etag.startswith("W/") or not etag.isascii() or not etag.isprintable() else etag


def _chunks(response: http.client.HTTPResponse, policy: Policy) -> Iterator[bytes]:
    """The body as it arrives, as long as it does."""
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
            if arrived < SLOWEST:
                raise Transient(f"sent {arrived} bytes in {now - start:.0f} seconds")
            start, arrived = now, 0


@contextmanager
def _opened(url: str, headers: dict[str, str], policy: Policy, part: Part) -> Iterator[http.client.HTTPResponse]:
    """The answer to a GET, redirects followed where they lead to https, or from this machine to itself."""
    for _ in range(REDIRECTS + 1):
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
                f"{shown(url)} redirects to {shown(target)}, which is not encrypted.", "Download the file by hand."
            )
        url = target
    raise FetchError(f"{shown(url)} redirects more than {REDIRECTS} times.", "Download the file by hand.")


def _answer(url: str, headers: dict[str, str], policy: Policy) -> http.client.HTTPResponse | str:
    """The answer of one server, or the address that it points to."""
    local = is_loopback(urlsplit(url).hostname or "")  # no proxy can know this machine's own servers
    opener = urllib.request.build_opener(_NoRedirect, *([urllib.request.ProxyHandler({})] if local else []))
    try:
        return opener.open(urllib.request.Request(url, headers=headers), timeout=policy.timeout)
    except urllib.error.HTTPError as error:
        with error:
            if error.code in REDIRECTED and (target := error.headers.get("Location")):
                return target
            raise _refused(url, error) from None
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise FetchError(
                f"{shown(url)}: the server's certificate is not valid: {error.reason.verify_message}.",
                "Check the date, and a proxy's certificates (SSL_CERT_FILE).",
            ) from None
        raise unreachable(error.reason) from None
    except (OSError, http.client.HTTPException) as error:
        raise _broken(error) from None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Redirects are followed by :func:`_opened`, which looks where they lead."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> None:
        return None


class _NoSuchRange(Exception):
    """The file has become shorter than what is there of it."""


def _refused(url: str, error: urllib.error.HTTPError) -> Exception:
    """What an error status means."""
    if error.code == 416:
        return _NoSuchRange()
    if error.code in TRANSIENT:
        return Transient(f"answered {error.code}", after=retry_after(error.headers.get("Retry-After")))
    if error.code in (404, 410):
        return NotFound(f"{shown(url)} does not exist ({error.code}).", "Check the address.")
    if error.code in (401, 403):
        return Forbidden(
            f"{shown(url)} may not be read ({error.code}).", "Download it by hand with the rights you have."
        )
    return FetchError(f"{shown(url)} answered {error.code}.", "Download it by hand.")


def unreachable(reason: object) -> Transient:
    """The fault that no connection could be made, for ``reason``."""
    if isinstance(reason, socket.gaierror):
        return Transient("has a host that cannot be found (no network?)", unreachable=True)
    if isinstance(reason, TimeoutError):
        return Transient("did not answer in time", unreachable=True)
    what = reason.strerror if isinstance(reason, OSError) and reason.strerror else type(reason).__name__
    return Transient(f"cannot be reached ({what})", unreachable=True)


def _broken(error: Exception) -> Transient:
    if isinstance(error, TimeoutError):
        return Transient("went silent")
    return Transient(f"broke off ({type(error).__name__})")


def retry_after(value: str | None) -> float | None:
    """The seconds of a ``Retry-After`` header, which gives them or a date."""
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
