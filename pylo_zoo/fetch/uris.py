"""Where a file is: ``https://…``, ``gs://BUCKET/PATH``, ``hf://ORG/REPO/FILE[@REV]``, or a local path."""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from pylo_zoo.fetch.errors import FetchError

GCS_ENDPOINT = "https://storage.googleapis.com"
HF_ENDPOINT = "https://huggingface.co"
FORMS = "Pass https://HOST/PATH, gs://BUCKET/PATH, hf://ORG/REPO/FILE[@REV], or a local path."
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_HUB_WORD = re.compile(r"[\w.-]+", re.ASCII)
_NAME_LENGTH = 100


@dataclass(frozen=True)
class Location:
    """A parsed address.

    Attributes:
        uri: the address that the user or the registry gives, without possible secrets.
        kind: ``"http"``, ``"hub"`` or ``"local"``.
        url: the download address, also for a browser; for a local file, its path.
        name: a file name that is safe for file systems and terminals.
        recorded: whether the URI always names the same file, so a lock file can record it.
        repo, revision, file: set for the Hub, otherwise empty.
        note: how the user's address was changed; empty if it was not.
    """

    uri: str
    kind: str
    url: str
    name: str
    recorded: bool = True
    repo: str = ""
    revision: str = ""
    file: str = ""
    note: str = ""


def is_uri(text: str) -> bool:
    """Whether ``text`` is an address, not a path."""
    return _SCHEME.match(text) is not None


def parse(text: str) -> Location:
    """Parse an address or a path.

    Raises:
        FetchError: the address is malformed, or its scheme is unknown.
    """
    if not is_uri(text):
        return Location(text, "local", str(Path(text)), safe_name(Path(text).name), recorded=False)
    scheme, _, rest = text.partition("://")
    if scheme in ("https", "http"):
        return _web(text)
    if scheme not in ("gs", "hf"):
        raise FetchError(f"{redacted(text)} cannot be fetched: {scheme}:// is unknown.", FORMS)
    if not rest.isprintable() or any(sign in rest for sign in "\\?#%"):
        raise FetchError(f"{redacted(text)!r} is not a valid address: it contains an invalid character.", FORMS)
    segments = rest.split("/")
    if {"", ".", ".."} & set(segments) or len(segments) < (2 if scheme == "gs" else 3):
        raise FetchError(f"{text} does not name a file.", FORMS)
    return _hub(text, segments) if scheme == "hf" else _bucket(text, segments)


def _web(text: str) -> Location:
    check_url(text)
    url = direct_url(text)
    parts = urlsplit(url)
    note = "" if url == text else f"{redacted(text)} is a web page about a file; fetching {redacted(url)}."
    return Location(redacted(url), "http", url, safe_name(unquote(parts.path)), recorded=not parts.query, note=note)


def direct_url(url: str) -> str:
    """Turn the address of a file's web page on the Hub, GitHub or GitLab into that of the file.

    >>> direct_url("https://huggingface.co/ORG/REPO/blob/main/theta.state")
    'https://huggingface.co/ORG/REPO/resolve/main/theta.state'

    Raises:
        FetchError: ``url`` is the page of a repository or directory.
    """
    parts = urlsplit(url)
    host, segments = parts.netloc.lower(), parts.path.strip("/").split("/")
    hub = host in _hub_hosts()
    if not hub and host not in ("github.com", "www.github.com", "gitlab.com"):
        return url
    start = 3 if hub and segments[0] in ("datasets", "spaces", "models") else 2  # ORG/REPO precedes the kind of page
    rest = segments[start + 1 :] if segments[start : start + 1] == ["-"] else segments[start:]  # GitLab adds a dash
    kind = rest[0] if rest else ""
    if kind in ("", "tree") or (kind in ("blob", "resolve", "raw") and len(rest) < 3):
        repo = "/".join(segments[:start])
        hint = f"Pass hf://{repo} for the repository." if hub and len(segments) >= 2 else "Pass the address of a file."
        raise FetchError(f"{redacted(url)} is a page that lists files, not a file.", hint)
    if kind != "blob" and not (hub and kind == "raw"):  # for a large file, the Hub's raw/ returns the LFS pointer
        return url
    before = segments[: len(segments) - len(rest)]
    path = "/".join(["", *before, "resolve" if hub else "raw", *rest[1:]])
    return urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))


def _hub_hosts() -> set[str]:
    endpoints = (HF_ENDPOINT, os.environ.get("HF_ENDPOINT") or HF_ENDPOINT)
    return {"hf.co", "www.huggingface.co", *(urlsplit(each).netloc.lower() for each in endpoints)}


def _bucket(text: str, segments: list[str]) -> Location:
    endpoint = os.environ.get("PYLO_ZOO_GCS_ENDPOINT") or GCS_ENDPOINT
    check_url(endpoint)
    url = "/".join([endpoint.rstrip("/"), *map(quote, segments)])
    return Location(text, "http", url, safe_name(segments[-1]))


def _hub(text: str, segments: list[str]) -> Location:
    org, repo, *path = segments
    repo, at, revision = repo.partition("@")
    if "@" in path[-1]:
        if at:
            raise FetchError(f"{text} names two revisions.", FORMS)
        path[-1], at, revision = path[-1].partition("@")
    if not all(_HUB_WORD.fullmatch(word) for word in (org, repo, *path)) or bool(at) != bool(revision):
        raise FetchError(f"{text} is not a valid address of a file on the Hub.", FORMS)
    if revision and not _HUB_WORD.fullmatch(revision):
        raise FetchError(f"{text}: {revision!r} is not a valid revision.", "Pass a tag, a branch or a commit.")
    revision = revision or "main"
    endpoint = (os.environ.get("HF_ENDPOINT") or HF_ENDPOINT).rstrip("/")
    url = f"{redacted(endpoint)}/{org}/{repo}/resolve/{revision}/{'/'.join(path)}"
    return Location(text, "hub", url, safe_name(path[-1]), repo=f"{org}/{repo}", revision=revision, file="/".join(path))


def check_url(url: str) -> None:
    """Check that ``url`` is ``https://``, or ``http://`` to this machine.

    Raises:
        FetchError: it is not, it is malformed, or it contains a user name, password or fragment.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise FetchError(f"{redacted(url)} is not a valid address: {error}.", FORMS) from None
    if not host or not url.isascii() or not url.isprintable() or " " in url:
        raise FetchError(f"{redacted(url)!r} is not a valid address.", FORMS)
    if "@" in parts.netloc or parts.fragment:
        raise FetchError(
            f"{redacted(url)}: the address contains a user name, password or fragment.", "Remove it from the address."
        )
    if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(host)):
        raise FetchError(
            f"{redacted(url)} is not fetched: {parts.scheme}:// is not encrypted.",
            "Pass its https:// address, or download it by hand and pass the file.",
        )


def manual_download(files: str, command: str) -> str:
    """The hint for an unreachable server: how to use files that were downloaded in another way."""
    return f"Download by hand {files}, then {command}."


def is_loopback(host: str) -> bool:
    """Whether ``host`` is this machine."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def redacted(url: str) -> str:
    """``url`` without its user name, password, query and fragment, which may be secrets."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return url.partition("?")[0].rpartition("@")[2]
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def safe_name(path: str) -> str:
    """The last component of ``path`` as a safe file name."""
    name = re.sub(r"[^A-Za-z0-9._-]", "_", re.split(r"[/\\]", path)[-1])[-_NAME_LENGTH:]
    return name.strip(".-") or "file"
