"""Downloads, verifies and caches files from https addresses, GCS buckets, the Hub or a local disk: :func:`fetch`.

>>> parse("hf://amoudgl/celo/theta.state").url
'https://huggingface.co/amoudgl/celo/resolve/main/theta.state'
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from pylo_zoo import impostors, limits
from pylo_zoo.errors import ZooError, count
from pylo_zoo.fetch import http, hub, lockfile, progress, store
from pylo_zoo.fetch.errors import Conflict, FetchError, Forbidden, NotFound, Unavailable
from pylo_zoo.fetch.lockfile import Pin
from pylo_zoo.fetch.part import Part
from pylo_zoo.fetch.retry import Policy, retrying
from pylo_zoo.fetch.uris import Location, is_uri, manual_download, parse

__all__ = [
    "Access",
    "Conflict",
    "FetchError",
    "Forbidden",
    "Location",
    "NotFound",
    "Policy",
    "Unavailable",
    "fetch",
    "from_cache",
    "is_cached",
    "is_uri",
    "manual_download",
    "parse",
]

UPDATE = "--update-lock (in Python, load(…, access=Access(update_lock=True)))"


@dataclass(frozen=True)
class Access:
    """Options for fetching files. The command line creates one and passes it down to :func:`fetch`.

    Attributes:
        progress: show a progress bar if stderr is a terminal and ``HF_HUB_DISABLE_PROGRESS_BARS`` is not set.
        offline: use only caches. ``HF_HUB_OFFLINE=1`` does the same.
        lock: the lock file; see :func:`pylo_zoo.fetch.lockfile.location` for the default.
        update_lock: fetch files without a known hash again and record their current hash.
        notify: receives messages for the user.
        policy: retries and timeouts.
        token: for the Hub; by default ``$HF_TOKEN``, or the token that ``hf auth login`` stored.
    """

    progress: bool = True
    offline: bool = False
    lock: Path | None = None
    update_lock: bool = False
    notify: Callable[[str], None] = field(default=lambda message: None)
    policy: Policy = field(default_factory=Policy)
    token: str | None = field(default=None, repr=False)

    @property
    def is_offline(self) -> bool:
        """Whether requests are forbidden, by ``offline`` or ``HF_HUB_OFFLINE``."""
        return self.offline or progress.is_env_true("HF_HUB_OFFLINE")


def fetch(
    uri: str,
    *,
    sha256: str | None = None,
    bytes: int | None = None,
    limit: int | None = None,
    record: bool = True,
    check: Callable[[Path], object] | None = None,
    access: Access | None = None,
) -> Path:
    """Return the path of the verified file in the cache; download the file if necessary.

    A cached file with a known hash is not downloaded again. Without ``sha256``, the hash comes from the lock file. A
    file that the lock file does not list is recorded there.

    Args:
        uri: ``https://…``, ``gs://BUCKET/PATH``, ``hf://ORG/REPO/FILE[@REV]`` or a path.
        sha256: the required hash.
        bytes: the required length.
        limit: the maximum length; by default :func:`pylo_zoo.limits.max_bytes`.
        record: whether to use the lock file; False if the caller verifies the file itself.
        check: reads a file that was fetched without ``sha256``, and raises a ZooError to reject it. A rejected file is
            neither recorded nor cached. By default, web pages, pointers and other :mod:`~pylo_zoo.impostors` are
            rejected.
        access: how to fetch.

    Returns:
        A regular file below ``$PYLO_ZOO_HOME/sources/SHA256``.

    Raises:
        NotFound: the server does not have the file.
        Unavailable: the server cannot be reached, or offline mode is on.
        FetchError: the file is too large, has changed, has another hash or length, or ``check`` rejects it.
        ZooError: the cache or the lock file cannot be used.
    """
    access = access or Access()
    limit = limits.max_bytes() if limit is None else limit
    location = parse(uri) if record else replace(parse(uri), recorded=False)
    if location.note:
        access.notify(location.note)
    check = check or _check_impostor
    if cached := _cached(location, sha256, bytes, access):
        if sha256 is None:
            _check_cached(cached, location, check, access)
        return cached
    key = f"{location.kind} {location.url}"
    with store.locked(key, access.notify):
        if cached := _cached(location, sha256, bytes, access):  # another process was first
            if sha256 is None:
                _check_cached(cached, location, check, access)
            return cached
        recorded = _recorded(location, sha256, access)
        part = Part(store.partial(key), limit if bytes is None else min(limit, bytes))
        try:
            _complete(part, location, sha256 or (recorded.sha256 if recorded else None), bytes, access)
        except Unavailable as error:
            hint = manual_download(location.url, "pass it with --source FILE")
            raise Unavailable(error.message, hint) from None
        _check(part, location, sha256, bytes, recorded)
        digest, length = part.sha256, part.count
        path = store.move_in(part.path, digest, location.name)
        part.discard()
        if sha256 is None:
            _check_fetched(path, location, check, access)
        if sha256 is None and location.recorded and recorded is None:
            lock = lockfile.location(access.lock)
            lockfile.record(lock, location.uri, digest, length)
            access.notify(f"{location.uri} had no known hash: recorded sha256 {digest[:12]}… in {lock}.")
    return path


def is_cached(uri: str, sha256: str | None, access: Access) -> bool:
    """Whether :func:`fetch` would return ``uri`` from the cache without a request."""
    return _cached(parse(uri), sha256, None, access) is not None


def _check_impostor(path: Path) -> None:
    """Reject a web page, a pointer or an error message."""
    with path.open("rb") as file:
        head = file.read(impostors.HEAD)
    if impostor := impostors.recognize(head, path.stat().st_size, text=False):
        raise FetchError(f"{path.name} is {impostor.what}.", impostor.hint)


def _check_fetched(path: Path, location: Location, check: Callable[[Path], object], access: Access) -> None:
    """Remove a downloaded file that ``check`` rejects, also from the cache of huggingface_hub.

    Raises:
        FetchError: ``check`` rejects the file.
    """
    try:
        check(path)
    except ZooError as error:
        store.remove(path)
        if location.kind == "hub" and not access.is_offline:
            hub.remove(location)
        raise FetchError(f"{location.uri} was not kept: {error.message}", error.hint) from None


def _check_cached(path: Path, location: Location, check: Callable[[Path], object], access: Access) -> None:
    """Check a file from the cache. The error explains how to replace the file.

    Raises:
        FetchError: ``check`` rejects the file.
    """
    try:
        check(path)
    except ZooError as error:
        raise from_cache(error, location.uri, lockfile.location(access.lock)) from None


def from_cache(error: ZooError, uri: str, lock: Path) -> FetchError:
    """``error`` about a cached file that ``lock`` records for ``uri``, with a hint to replace that file."""
    return FetchError(
        f"{error.message} The file is in the cache, and {lock} records it as {uri}.",
        f"Fetch it again with {UPDATE}.",
    )


def _cached(location: Location, sha256: str | None, bytes: int | None, access: Access) -> Path | None:
    """The cached file, if its hash is known and its length is ``bytes``."""
    recorded = _recorded(location, sha256, access)
    known = sha256 or (recorded.sha256 if recorded else None)
    cached = store.find_cached(known) if known else None
    return cached if cached and bytes in (None, cached.stat().st_size) else None


def _recorded(location: Location, sha256: str | None, access: Access) -> Pin | None:
    """The pin in the lock file; None if the caller gives a hash or the pin is to be replaced."""
    if sha256 is not None or access.update_lock or not location.recorded:
        return None
    return lockfile.read(lockfile.location(access.lock)).get(location.uri)


def _complete(part: Part, location: Location, sha256: str | None, expected: int | None, access: Access) -> None:
    """Bring all bytes of the file into ``part``. A resumed download with a wrong hash is repeated from the start."""
    offline = access.is_offline
    if location.kind == "local":
        part.fill(Path(location.url))
    elif location.kind == "hub":
        _from_hub(part, location, sha256, expected, access)
    elif offline:
        raise Unavailable(
            f"{location.uri} is not in the cache, and offline mode is on.",
            "Turn offline mode off (--offline, HF_HUB_OFFLINE).",
        )
    else:
        resumed = part.resumed
        _from_web(part, location, expected, access)
        if resumed and sha256 not in (None, part.sha256):
            part.discard()
            _from_web(part, location, expected, access)


def _from_web(part: Part, location: Location, expected: int | None, access: Access) -> None:
    policy = access.policy
    with progress.bar(location.name, progress.is_bar_enabled(access.progress)) as update:
        retrying(lambda: http.download(location.url, part, expected, policy, update), location.uri, policy)


def _from_hub(part: Part, location: Location, sha256: str | None, expected: int | None, access: Access) -> None:
    """Copy the client's file into ``part``. If it is not the expected one, download it once more."""
    offline, bars = access.is_offline, progress.is_bar_enabled(access.progress)

    def download(force: bool, offline: bool) -> Path:
        path = hub.download(location, access.policy, offline=offline, force=force, bars=bars, token=access.token)
        part.fill(path)
        return path

    try:
        path = download(access.update_lock and not offline, offline)
    except Unavailable as error:
        if offline:
            raise
        try:
            path = download(force=False, offline=True)
        except FetchError:
            raise error from None
        access.notify(f"{error.message} Using the copy in huggingface_hub's cache.")
    if (sha256 not in (None, part.sha256) or expected not in (None, part.count)) and not offline:
        hub.remove_pointer(path)
        download(force=True, offline=False)


def _check(part: Part, location: Location, sha256: str | None, bytes: int | None, recorded: Pin | None) -> None:
    """Check the downloaded file, and remove it if it is not the expected one.

    Raises:
        FetchError: the file is empty, has changed since it was recorded, or has another length or hash.
    """
    digest, length = part.sha256, part.count
    what = _describe_impostor(part, location)
    if length == 0:
        part.discard()
        raise FetchError(f"{location.uri} is empty.", http.WRONG_FILE)
    if recorded is not None and (digest, length) != (recorded.sha256, recorded.bytes):
        part.discard()
        raise FetchError(
            f"{location.uri} has changed since {recorded.date}: its sha256 is {digest} ({count(length, 'byte')}"
            f"{what and ', ' + what}), and the lock file has {recorded.sha256} ({count(recorded.bytes, 'byte')}).",
            f"Ask its publisher; if it is expected, or the recorded file was a web page or a pointer, use {UPDATE}.",
        )
    wrong = [
        f"{name} {actual}, not {expected}"
        for name, actual, expected in (("size", length, bytes), ("sha256", digest, sha256))
        if expected is not None and actual != expected
    ]
    if wrong:
        part.discard()
        raise FetchError(
            f"{location.uri} is {what and what + ', '}not the expected file: {', '.join(wrong)}.", http.WRONG_FILE
        )


def _describe_impostor(part: Part, location: Location) -> str:
    """Describe an impostor, such as ``"a web page titled 'Sign in'"``; empty if ``part`` may be the expected file."""
    is_text = location.uri.partition("@")[0].endswith((".json", ".gin", ".md"))
    with part.path.open("rb") as file:
        impostor = impostors.recognize(file.read(impostors.HEAD), part.count, text=not is_text)
    return impostor.what if impostor else ""
