"""Downloads one file from the Hub with huggingface_hub, into that client's own cache."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from pylo_zoo.fetch.client import LIBRARY, VERSION, Subject, call_hub, endpoint
from pylo_zoo.fetch.retry import Policy
from pylo_zoo.fetch.uris import Location


def download(
    location: Location, policy: Policy, *, offline: bool, force: bool, bars: bool, token: str | None = None
) -> Path:
    """Download the file into huggingface_hub's own cache and return its path there.

    The client does not check hashes: the caller must.

    Args:
        location: of kind "hub".
        policy: retries and timeouts.
        offline: use only the client's cache.
        force: download the file even if the client has it in its cache.
        bars: let the client show progress bars.
        token: by default ``$HF_TOKEN``, or the client's stored token.

    Raises:
        FetchError: the file is unavailable.
        ZooError: the client's cache cannot be written.
    """
    import huggingface_hub

    def call() -> Path:
        return Path(
            huggingface_hub.hf_hub_download(
                location.repo,
                location.file,
                revision=location.revision,
                endpoint=endpoint(),
                token=token,
                etag_timeout=policy.timeout,
                local_files_only=offline,
                force_download=force,
                library_name=LIBRARY,
                library_version=VERSION,
            )
        )

    subject = Subject(location.uri, location.repo, location.revision, location.file)
    return call_hub(subject, call, policy, offline=offline, bars=bars, token=token)


def cached_path(location: Location) -> Path | None:
    """The path of the file in the client's cache, or None."""
    import huggingface_hub

    path = huggingface_hub.try_to_load_from_cache(location.repo, location.file, revision=location.revision)
    return Path(path) if isinstance(path, str) else None


def remove(location: Location) -> None:
    """Remove the pointer and the bytes of the file from the client's cache, so the client downloads it again."""
    pointer = cached_path(location)
    if pointer is not None:
        with suppress(OSError):
            pointer.resolve().unlink()
            pointer.unlink(missing_ok=True)


def remove_pointer(pointer: Path) -> None:
    """Remove ``pointer``, a path in the client's cache that leads to wrong bytes.

    A forced download replaces the bytes, but the client keeps an existing pointer even if it leads elsewhere.
    """
    with suppress(OSError):
        pointer.unlink()
