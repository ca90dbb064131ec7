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
FORMS = "Known forms: https://HOST/PATH, gs://BUCKET/PATH, hf://ORG/REPO/FILE[@REV], and local paths."
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_HUB_WORD = re.compile(r"[\w.-]+", re.ASCII)
_NAME_LENGTH = 100


@dataclass(frozen=True)
class Location:
    """A parsed address.

    Attributes:
        uri: as the user or the registry writes it, without what may be a secret.
        kind: ``"http"``, ``"hub"`` or ``"local"``.
        url: where the file can be downloaded, by hand too; the path of a local file.
        name: a file name without anything that a file system or a terminal could misread.
        recorded: whether the URI names one file for good, so that a lock file may hold it.
        repo, revision, file: of the Hub; empty elsewhere.
        note: what was changed in the address that the user gave; empty if nothing was.
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
    """Whether ``text`` is an address, as against a path."""
    return _SCHEME.match(text) is not None


def parse(text: str) -> Location:
    """The location that ``text`` names.

    Raises:
        FetchError: it is malformed, hostile, or of a kind that is not fetched.
    """
    if not is_uri(text):
        return Location(text, "local", str(Path(text)), safe_name(Path(text).name), recorded=False)
    scheme, _, rest = text.partition("://")
    if scheme in ("https", "http"):
        return _web(text)
    if scheme not in ("gs", "hf"):
        raise FetchError(f"{shown(text)} cannot be fetched: {scheme}:// is unknown.", FORMS)
    if not rest.isprintable() or any(sign in rest for sign in "\\?#%"):
        raise FetchError(f"{shown(text)!r} is no address: it has signs that no name here has.", FORMS)
    segments = rest.split("/")
    if {"", ".", ".."} & set(segments) or len(segments) < (2 if scheme == "gs" else 3):
        raise FetchError(f"{text} is no address of a file.", FORMS)
    return _hub(text, segments) if scheme == "hf" else _bucket(text, segments)


def _web(text: str) -> Location:
    check_url(text)
    url = direct(text)
    parts = urlsplit(url)
    note = "" if url == text else f"{shown(text)} is the page of a file; fetching {shown(url)}."
    return Location(shown(url), "http", url, safe_name(unquote(parts.path)), recorded=not parts.query, note=note)


def direct(url: str) -> str:
    """The address of the file itself, if ``url`` is that of its page on the Hub, GitHub or GitLab.

    >>> direct("https://huggingface.co/ORG/REPO/blob/main/theta.state")
    'https://huggingface.co/ORG/REPO/resolve/main/theta.state'

    Raises:
        FetchError: it is the page of a repository or directory.
    """
    parts = urlsplit(url)
    host, segments = parts.netloc.lower(), parts.path.strip("/").split("/")
    hub = host in _hub_hosts()
    if not hub and host not in ("github.com", "www.github.com", "gitlab.com"):
        return url
    start = 3 if hub and segments[0] in ("datasets", "spaces", "models") else 2  # ORG/REPO before the kind of page
    rest = segments[start + 1 :] if segments[start : start + 1] == ["-"] else segments[start:]  # GitLab's dash
    kind = rest[0] if rest else ""
    if kind in ("", "tree") or (kind in ("blob", "resolve", "raw") and len(rest) < 3):
        repo = "/".join(segments[:start])
        hint = f"hf://{repo} is the repository." if hub and len(segments) >= 2 else "Give the address of a file."
        raise FetchError(f"{shown(url)} is a page that lists files, not a file.", hint)
    if kind != "blob" and not (hub and kind == "raw"):  # the Hub's raw/ is the pointer of a large file
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
        raise FetchError(f"{text} is no file on the Hub.", FORMS)
    if revision and not _HUB_WORD.fullmatch(revision):
        raise FetchError(f"{text}: {revision!r} is no revision.", "Give a tag, a branch or a commit.")
    revision = revision or "main"
    endpoint = (os.environ.get("HF_ENDPOINT") or HF_ENDPOINT).rstrip("/")
    url = f"{shown(endpoint)}/{org}/{repo}/resolve/{revision}/{'/'.join(path)}"
    return Location(text, "hub", url, safe_name(path[-1]), repo=f"{org}/{repo}", revision=revision, file="/".join(path))


def check_url(url: str) -> None:
    """Refuse what is not ``https://``, or ``http://`` to this very machine.

    Raises:
        FetchError: so it is, or it is malformed or carries a password.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise FetchError(f"{shown(url)} is no address: {error}.", FORMS) from None
    if not host or not url.isascii() or not url.isprintable() or " " in url:
        raise FetchError(f"{shown(url)!r} is no address.", FORMS)
    if "@" in parts.netloc or parts.fragment:
        raise FetchError(
            f"{shown(url)}: a name, password or fragment in an address is not used.", "Give the plain address."
        )
    if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(host)):
        raise FetchError(
            f"{shown(url)} is not fetched: {parts.scheme}:// is neither encrypted nor signed.",
            "Give its https:// address, or download it by hand and give the file.",
        )


def three_ways(uri: str, files: str, command: str) -> str:
    """What to do where ``uri`` cannot be reached: by hand, a copied cache, a mirror."""
    mirror = {"hf": "name a mirror in HF_ENDPOINT", "gs": "name a mirror in PYLO_ZOO_GCS_ENDPOINT"}
    last = mirror.get(uri.partition("://")[0], "name a proxy in HTTPS_PROXY")
    return (
        f"Three ways: download by hand {files}, then {command}; copy another machine's cache and set PYLO_ZOO_HOME to "
        f"it; or {last}."
    )


def is_loopback(host: str) -> bool:
    """Whether ``host`` is this very machine."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def shown(url: str) -> str:
    """``url`` without user, password, query and fragment, any of which may be a secret."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return url.partition("?")[0].rpartition("@")[2]
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def safe_name(path: str) -> str:
    """The last part of ``path`` as a name that is harmless as a file, whatever a publisher called it."""
    name = re.sub(r"[^A-Za-z0-9._-]", "_", re.split(r"[/\\]", path)[-1])[-_NAME_LENGTH:]
    return name.strip(".-") or "file"
