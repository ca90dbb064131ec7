"""Calls to the Hub through huggingface_hub, with results checked and returned as our own records."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from pylo_zoo import limits
from pylo_zoo.fetch import Access, FetchError, Unavailable
from pylo_zoo.fetch.client import LIBRARY, VERSION, Subject, call_hub, endpoint
from pylo_zoo.fetch.errors import Transient
from pylo_zoo.files import read_regular
from pylo_zoo.hub.names import COMMIT, MAIN, Repository

Result = TypeVar("Result")
_SHA1, _SHA256 = re.compile(r"[0-9a-f]{40}"), re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class RemoteFile:
    """The Hub's description of a file.

    Attributes:
        size: in bytes.
        sha256: of a file in LFS or Xet storage; None for a file stored in git.
        blob: git's hash of the file, or of the LFS pointer; None if the Hub omits it.
    """

    size: int
    sha256: str | None
    blob: str | None


@dataclass(frozen=True)
class Snapshot:
    """A repository and its files at one commit."""

    repo: Repository
    commit: str
    files: Mapping[str, RemoteFile]
    private: bool = False


@dataclass(frozen=True)
class Refs:
    """Commits by branch, by tag, and by pull request (``refs/pr/N``)."""

    branches: Mapping[str, str]
    tags: Mapping[str, str]
    pulls: Mapping[str, str]


@dataclass(frozen=True)
class Commit:
    """One commit of a repository's history."""

    id: str
    title: str
    message: str


class Hub:
    """The Hub, as ``access`` reaches it. Every method raises the errors of :func:`pylo_zoo.fetch.client.call_hub`."""

    def __init__(self, access: Access) -> None:
        from huggingface_hub import HfApi

        self.endpoint = endpoint()
        self.access = access
        self.api = HfApi(endpoint=self.endpoint, token=access.token, library_name=LIBRARY, library_version=VERSION)

    def url(self, repo: Repository) -> str:
        """The web page of ``repo``."""
        return f"{self.endpoint}/{repo.id}" + (f"/tree/{repo.revision}" if repo.revision else "")

    def snapshot(self, repo: Repository) -> Snapshot:
        """The current commit and files of ``repo``."""

        def call() -> Snapshot:
            timeout = self.access.policy.timeout
            info = self.api.model_info(repo.id, revision=repo.revision, files_metadata=True, timeout=timeout)
            return _snapshot(repo, info)

        return self._run(repo, call)

    def read(self, repo: Repository, name: str) -> bytes:
        """Download the file ``name`` without using a cache."""
        import huggingface_hub

        def call() -> bytes:
            with TemporaryDirectory() as cache:
                path = huggingface_hub.hf_hub_download(
                    repo.id,
                    name,
                    revision=repo.revision,
                    cache_dir=cache,
                    endpoint=self.endpoint,
                    token=self.access.token,
                    etag_timeout=self.access.policy.timeout,
                    library_name=LIBRARY,
                    library_version=VERSION,
                )
                return read_regular(Path(path), limits.max_bytes())

        return self._run(repo, call)

    def refs(self, repo: Repository) -> Refs:
        """The branches, tags and pull requests of ``repo``."""

        def call() -> Refs:
            listed = self.api.list_repo_refs(repo.id, include_pull_requests=True)
            by_name = [
                {each.ref if refs is listed.pull_requests else each.name: each.target_commit for each in refs or ()}
                for refs in (listed.branches, listed.tags, listed.pull_requests)
            ]
            return Refs(*by_name)

        return self._run(repo, call)

    def history(self, repo: Repository) -> list[Commit]:
        """The commits up to the revision, newest first."""

        def call() -> list[Commit]:
            commits = self.api.list_repo_commits(repo.id, revision=repo.revision)
            return [Commit(each.commit_id, each.title, each.message) for each in commits]

        return self._run(repo, call)

    def whoami(self, repo: Repository) -> str:
        """The user name of the token."""
        return str(self._run(repo, lambda: self.api.whoami()["name"], writes=True))

    def create(self, repo: Repository, *, private: bool) -> None:
        """Create the repository.

        Raises:
            Conflict: the repository exists.
        """
        self._run(repo, lambda: self.api.create_repo(repo.id, private=private), writes=True)

    def branch(self, repo: Repository, name: str) -> None:
        """Create the branch ``name`` from the main branch, unless it exists."""
        self._run(repo, lambda: self.api.create_branch(repo.id, branch=name, exist_ok=True), writes=True)

    def tag(self, repo: Repository, name: str, commit: str, message: str) -> None:
        """Create the tag ``name``.

        Raises:
            Conflict: the tag exists.
        """

        def call() -> None:
            self.api.create_tag(repo.id, tag=name, revision=commit, tag_message=message)

        self._run(repo, call, writes=True)

    def commit(
        self,
        repo: Repository,
        add: Mapping[str, bytes],
        delete: Sequence[str],
        *,
        title: str,
        message: str,
        parent: str,
        create_pr: bool = False,
    ) -> tuple[str, str | None]:
        """Make one atomic commit if the head is still ``parent``.

        It is not retried, because a commit may succeed although its response is lost.

        Returns:
            The new commit, and the address of the pull request if ``create_pr`` is true.

        Raises:
            Conflict: the head is no longer ``parent``.
        """
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        def call() -> tuple[str, str | None]:
            operations = [
                *(CommitOperationAdd(path_in_repo=name, path_or_fileobj=data) for name, data in add.items()),
                *(CommitOperationDelete(path_in_repo=name) for name in delete),
            ]
            info = self.api.create_commit(
                repo.id,
                operations,
                commit_message=title,
                commit_description=message,
                revision=repo.revision or MAIN,
                parent_commit=parent,
                create_pr=create_pr,
                num_threads=1,
            )
            return info.oid, info.pr_url

        return self._run(repo, call, writes=True, once=True)

    def _run(self, repo: Repository, call: Callable[[], Result], *, writes: bool = False, once: bool = False) -> Result:
        if self.access.is_offline:
            raise Unavailable(
                f"{repo.uri} cannot be reached: offline mode is on.",
                "Turn offline mode off (--offline, HF_HUB_OFFLINE).",
            )
        subject = Subject(repo.uri, repo.id, repo.revision or MAIN, writes=writes)
        policy = self.access.policy
        if once:
            policy = replace(policy, attempts=1, unreachable=1)
        return call_hub(subject, call, policy, token=self.access.token)


def _snapshot(repo: Repository, info: Any) -> Snapshot:
    """Convert the client's ``info``; invalid values raise an error."""
    commit = info.sha
    if not isinstance(commit, str) or not COMMIT.fullmatch(commit):
        raise Transient("answered without a valid commit")
    if repo.commit not in (None, commit):
        raise FetchError(
            f"The Hub answered {repo.uri} with another commit, {commit}.", "Do not use this endpoint (HF_ENDPOINT)."
        )
    files = {}
    for each in info.siblings or ():
        sha256 = each.lfs.sha256 if each.lfs else None
        size = each.lfs.size if each.lfs else each.size
        blob = each.blob_id
        is_valid = (
            isinstance(each.rfilename, str)
            and isinstance(size, int)
            and size >= 0
            and (sha256 is None or _SHA256.fullmatch(sha256))
            and (blob is None or _SHA1.fullmatch(blob))
        )
        if not is_valid:
            raise Transient("answered with an invalid description of a file")
        files[each.rfilename] = RemoteFile(size, sha256, blob)
    return Snapshot(repo, commit, files, bool(info.private))
