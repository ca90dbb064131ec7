"""Every file from elsewhere comes through :func:`fetch`: https, a bucket, the Hub or the disk; verified and cached.

>>> parse("hf://amoudgl/celo/theta.state").url
'https://huggingface.co/amoudgl/celo/resolve/main/theta.state'
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from pylo_zoo import impostors, limits
from pylo_zoo.errors import ZooError
from pylo_zoo.fetch import http, hub, lockfile, progress, store
from pylo_zoo.fetch.errors import Conflict, FetchError, Forbidden, NotFound, Unavailable
from pylo_zoo.fetch.lockfile import Pin
from pylo_zoo.fetch.part import Part
from pylo_zoo.fetch.retry import Policy, retrying
from pylo_zoo.fetch.uris import Location, is_uri, parse, three_ways

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
    "parse",
    "three_ways",
]

UPDATE = "--update-lock (in Python, load(…, access=Access(update_lock=True)))"


@dataclass(frozen=True)
class Access:
    """How files are fetched; one such record goes from the command line down to :func:`fetch`.

    Attributes:
        progress: show a bar, where stderr is a terminal and ``HF_HUB_DISABLE_PROGRESS_BARS`` does not forbid it.
        offline: use caches alone. ``HF_HUB_OFFLINE=1`` means the same.
        lock: the lock file; by default as :func:`pylo_zoo.fetch.lockfile.location` finds it.
        update_lock: fetch files without a known hash again, and record what they are now.
        say: hears what somebody at the command line should know.
        policy: patience with servers.
        token: of the Hub; by default ``$HF_TOKEN``, or what ``hf auth login`` stored.
    """

    progress: bool = True
    offline: bool = False
    lock: Path | None = None
    update_lock: bool = False
    say: Callable[[str], None] = field(default=lambda message: None)
    policy: Policy = field(default_factory=Policy)
    token: str | None = field(default=None, repr=False)

    @property
    def is_offline(self) -> bool:
        """Whether nobody may be asked."""
        return self.offline or progress.switched_on("HF_HUB_OFFLINE")


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
    """The file that ``uri`` names, verified, in the cache.

    A file with a known hash that the cache holds is not asked for again. One without gets its hash from the lock file,
    or, the first time, is recorded there.

    Args:
        uri: ``https://…``, ``gs://BUCKET/PATH``, ``hf://ORG/REPO/FILE[@REV]`` or a path.
        sha256: what the file has to hash to.
        bytes: the length that it has to have.
        limit: the length that it must not exceed; by default :func:`pylo_zoo.limits.max_bytes`.
        record: whether a lock file may say what it is; not where the caller knows of a better authority.
        check: reads a file whose hash only the lock file knows, or nobody, and raises a ZooError for what it is not.
            Only a file that it lets pass is recorded and stays in the cache. By default, web pages, pointers and other
            :mod:`~pylo_zoo.impostors` are refused.
        access: how to fetch.

    Returns:
        A regular file below ``$PYLO_ZOO_HOME/sources/SHA256``.

    Raises:
        NotFound: the server has no such file.
        Unavailable: it cannot be reached, or must not be.
        FetchError: it is refused: too large, changed, not what the hash says, or not what ``check`` accepts.
        ZooError: the cache or the lock file cannot be used.
    """
    access = access or Access()
    limit = limits.max_bytes() if limit is None else limit
    where = parse(uri) if record else replace(parse(uri), recorded=False)
    if where.note:
        access.say(where.note)
    check = check or _check_impostor
    if found := _cached(where, sha256, bytes, access):
        if sha256 is None:
            _check_cached(found, where, check, access)
        return found
    key = f"{where.kind} {where.url}"
    with store.locked(key, access.say):
        if found := _cached(where, sha256, bytes, access):  # another process was first
            if sha256 is None:
                _check_cached(found, where, check, access)
            return found
        recorded = _recorded(where, sha256, access)
        part = Part(store.partial(key), limit if bytes is None else min(limit, bytes))
        try:
            _complete(part, where, sha256 or (recorded.sha256 if recorded else None), bytes, access)
        except Unavailable as error:
            raise Unavailable(error.message, three_ways(where.uri, where.url, "give it with --source FILE")) from None
        _check(part, where, sha256, bytes, recorded)
        digest, length = part.sha256, part.count
        path = store.place(part.path, digest, where.name)
        part.discard()
        if sha256 is None:
            _check_fetched(path, where, check, access)
        if sha256 is None and where.recorded and recorded is None:
            lock = lockfile.location(access.lock)
            lockfile.record(lock, where.uri, digest, length)
            access.say(f"No hash of {where.uri} was known: recorded sha256 {digest[:12]}… in {lock}.")
    return path


def is_cached(uri: str, sha256: str | None, access: Access) -> bool:
    """Whether :func:`fetch` would ask nobody for ``uri``."""
    return _cached(parse(uri), sha256, None, access) is not None


def _check_impostor(path: Path) -> None:
    """Refuse a file that no caller can want: a web page, a pointer, an error message."""
    with path.open("rb") as file:
        head = file.read(impostors.HEAD)
    if impostor := impostors.recognize(head, path.stat().st_size, text=False):
        raise FetchError(f"{path.name} is {impostor.what}.", impostor.hint)


def _check_fetched(path: Path, where: Location, check: Callable[[Path], object], access: Access) -> None:
    """Remove a new file that ``check`` refuses, from the cache of huggingface_hub too, so that nothing remembers it.

    Raises:
        FetchError: ``check`` refuses it.
    """
    try:
        check(path)
    except ZooError as error:
        store.remove(path)
        if where.kind == "hub" and not access.is_offline:
            hub.remove(where)
        raise FetchError(f"{where.uri} was not kept: {error.message}", error.hint) from None


def _check_cached(path: Path, where: Location, check: Callable[[Path], object], access: Access) -> None:
    """Say that a file came from the cache, if ``check`` refuses it, and how to replace it.

    Raises:
        FetchError: ``check`` refuses it.
    """
    try:
        check(path)
    except ZooError as error:
        raise from_cache(error, where.uri, lockfile.location(access.lock)) from None


def from_cache(error: ZooError, uri: str, lock: Path) -> FetchError:
    """``error``, which is about a cached file that ``lock`` records for ``uri``, with the way to replace that file."""
    return FetchError(
        f"{error.message} It came from the cache, since {lock} records it as {uri}.",
        f"Fetch it again with {UPDATE}.",
    )


def _cached(where: Location, sha256: str | None, bytes: int | None, access: Access) -> Path | None:
    """The copy in the cache, where a hash is known; one of another length than the caller's is none."""
    recorded = _recorded(where, sha256, access)
    known = sha256 or (recorded.sha256 if recorded else None)
    found = store.find_cached(known) if known else None
    return found if found and bytes in (None, found.stat().st_size) else None


def _recorded(where: Location, sha256: str | None, access: Access) -> Pin | None:
    """What the lock file says, where nobody else does and it is not to be replaced."""
    if sha256 is not None or access.update_lock or not where.recorded:
        return None
    return lockfile.read(lockfile.location(access.lock)).get(where.uri)


def _complete(part: Part, where: Location, sha256: str | None, expected: int | None, access: Access) -> None:
    """Have all bytes of the file in ``part``; twice where the first time was not all of one piece."""
    offline = access.is_offline
    if where.kind == "local":
        part.fill(Path(where.url))
    elif where.kind == "hub":
        _from_hub(part, where, sha256, expected, access)
    elif offline:
        raise Unavailable(f"{where.uri} is not in the cache, and offline mode is on.", "Go online.")
    else:
        resumed = part.resumed
        _from_web(part, where, expected, access)
        if resumed and sha256 not in (None, part.sha256):
            part.discard()
            _from_web(part, where, expected, access)


def _from_web(part: Part, where: Location, expected: int | None, access: Access) -> None:
    with progress.bar(where.name, progress.wanted(access.progress)) as seen:
        retrying(lambda: http.download(where.url, part, expected, access.policy, seen), where.uri, access.policy)


def _from_hub(part: Part, where: Location, sha256: str | None, expected: int | None, access: Access) -> None:
    """Take the client's file; where it is not what it should be, ask once more past the client's cache."""
    offline, bars = access.is_offline, progress.wanted(access.progress)

    def take(again: bool, offline: bool) -> Path:
        path = hub.download(where, access.policy, offline=offline, again=again, bars=bars, token=access.token)
        part.fill(path)
        return path

    try:
        path = take(access.update_lock and not offline, offline)
    except Unavailable as error:
        if offline:
            raise
        try:
            path = take(again=False, offline=True)
        except FetchError:
            raise error from None
        access.say(f"{error.message} Using the copy that huggingface_hub keeps.")
    if (sha256 not in (None, part.sha256) or expected not in (None, part.count)) and not offline:
        hub.forget(path)
        take(again=True, offline=False)


def _check(part: Part, where: Location, sha256: str | None, bytes: int | None, recorded: Pin | None) -> None:
    """Refuse, and remove, a file that is not the one that was wanted.

    Raises:
        FetchError: so it is.
    """
    found, length = part.sha256, part.count
    what = _named(part, where)
    if length == 0:
        part.discard()
        raise FetchError(f"{where.uri} is empty.", http.WRONG_FILE)
    if recorded is not None and (found, length) != (recorded.sha256, recorded.bytes):
        part.discard()
        raise FetchError(
            f"{where.uri} has changed since {recorded.date}: it has sha256 {found} ({length:,} bytes"
            f"{what and ', ' + what}), and the lock file has {recorded.sha256} ({recorded.bytes:,} bytes).",
            f"Accept it with {UPDATE} if you expect that, or if the recorded one was a web page or a pointer; "
            "otherwise ask its publisher.",
        )
    wrong = [
        f"{what} {is_}, not {wanted}"
        for what, is_, wanted in (("size", length, bytes), ("sha256", found, sha256))
        if wanted is not None and is_ != wanted
    ]
    if wrong:
        part.discard()
        raise FetchError(
            f"{where.uri} is {what and what + ', '}not the file that it should be: {', '.join(wrong)}.", http.WRONG_FILE
        )


def _named(part: Part, where: Location) -> str:
    """Describe ``part`` as ``"a web page titled 'Sign in'"`` and the like; empty if it may be the file at ``where``."""
    is_text = where.uri.partition("@")[0].endswith((".json", ".gin", ".md"))
    with part.path.open("rb") as file:
        impostor = impostors.recognize(file.read(impostors.HEAD), part.count, text=not is_text)
    return impostor.what if impostor else ""
