"""One file of the Hub, by huggingface_hub itself: its cache, its token, its endpoint."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from pylo_zoo.fetch.client import LIBRARY, VERSION, Subject, ask, endpoint
from pylo_zoo.fetch.retry import Policy
from pylo_zoo.fetch.uris import Location


def download(
    where: Location, policy: Policy, *, offline: bool, again: bool, bars: bool, token: str | None = None
) -> Path:
    """Bring the file into huggingface_hub's own cache; its path there.

    The client's own check is not enough: the caller must compare the bytes with a hash.

    Args:
        where: a location of the kind "hub".
        policy: patience.
        offline: look into the cache alone.
        again: do not take the cache's word for it.
        bars: let the client show progress.
        token: by default the environment's, or the client's own.

    Raises:
        FetchError: it is unavailable.
        ZooError: the client's cache cannot be written.
    """
    import huggingface_hub

    def take() -> Path:
        return Path(
            huggingface_hub.hf_hub_download(
                where.repo,
                where.file,
                revision=where.revision,
                endpoint=endpoint(),
                token=token,
                etag_timeout=policy.timeout,
                local_files_only=offline,
                force_download=again,
                library_name=LIBRARY,
                library_version=VERSION,
            )
        )

    subject = Subject(where.uri, where.repo, where.revision, where.file)
    return ask(subject, take, policy, offline=offline, bars=bars, token=token)


def kept(where: Location) -> Path | None:
    """The file as the client has it in its cache, or None."""
    import huggingface_hub

    found = huggingface_hub.try_to_load_from_cache(where.repo, where.file, revision=where.revision)
    return Path(found) if isinstance(found, str) else None


def remove(where: Location) -> None:
    """Remove the file from the client's cache, its bytes too, so that the client downloads it again."""
    pointer = kept(where)
    if pointer is not None:
        with suppress(OSError):
            pointer.resolve().unlink()
            pointer.unlink(missing_ok=True)


def forget(pointer: Path) -> None:
    """Make the client look again where ``pointer``, which it returned, leads to wrong bytes.

    A forced download renews the bytes, but a pointer that exists is kept, whatever it points to.
    """
    with suppress(OSError):
        pointer.unlink()
