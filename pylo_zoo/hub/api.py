"""What is asked of the Hub, call by call, as records of our own: huggingface_hub, checked."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from pylo_zoo import limits
from pylo_zoo.fetch import Access, FetchError, Unavailable
from pylo_zoo.fetch.client import LIBRARY, VERSION, Subject, ask, endpoint
from pylo_zoo.fetch.errors import Transient
from pylo_zoo.files import read_regular
from pylo_zoo.hub.names import COMMIT, MAIN, Repository

Result = TypeVar("Result")
_SHA1, _SHA256 = re.compile(r"[0-9a-f]{40}"), re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class RemoteFile:
    """A file as the Hub describes it.

    Attributes:
        size: in bytes.
        sha256: of a large file; None for one that lies in git itself.
        blob: the hash by which git knows it (of a large file, of the pointer to it), or None where nobody says.
    """

    size: int
    sha256: str | None
    blob: str | None


@dataclass(frozen=True)
class Snapshot:
    """A repository at one commit."""

    repo: Repository
    commit: str
    files: Mapping[str, RemoteFile]
    private: bool = False


@dataclass(frozen=True)
class Refs:
    """Commits by the name of a branch, of a tag, and of a pull request's head (``refs/pr/N``)."""

    branches: Mapping[str, str]
    tags: Mapping[str, str]
    pulls: Mapping[str, str]


@dataclass(frozen=True)
class Commit:
    """One commit of a history."""

    id: str
    title: str
    message: str


class Hub:
    """The Hub that ``access`` leads to. Every method raises what :func:`pylo_zoo.fetch.client.ask` raises."""

    def __init__(self, access: Access) -> None:
        from huggingface_hub import HfApi

        self.endpoint = endpoint()
        self.access = access
        self.api = HfApi(endpoint=self.endpoint, token=access.token, library_name=LIBRARY, library_version=VERSION)

    def url(self, repo: Repository) -> str:
        """The page of ``repo``."""
        return f"{self.endpoint}/{repo.id}" + (f"/tree/{repo.revision}" if repo.revision else "")

    def look(self, repo: Repository) -> Snapshot:
        """What is in ``repo``."""

        def call() -> Snapshot:
            timeout = self.access.policy.timeout
            info = self.api.model_info(repo.id, revision=repo.revision, files_metadata=True, timeout=timeout)
            return _snapshot(repo, info)

        return self._ask(repo, call)

    def read(self, repo: Repository, name: str) -> bytes:
        """The file ``name``, downloaded again, without any cache."""
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

        return self._ask(repo, call)

    def refs(self, repo: Repository) -> Refs:
        """Branches, tags and pull requests."""

        def call() -> Refs:
            found = self.api.list_repo_refs(repo.id, include_pull_requests=True)
            by_name = [
                {each.ref if refs is found.pull_requests else each.name: each.target_commit for each in refs or ()}
                for refs in (found.branches, found.tags, found.pull_requests)
            ]
            return Refs(*by_name)

        return self._ask(repo, call)

    def history(self, repo: Repository) -> list[Commit]:
        """The commits up to the revision, the last one first."""

        def call() -> list[Commit]:
            found = self.api.list_repo_commits(repo.id, revision=repo.revision)
            return [Commit(each.commit_id, each.title, each.message) for each in found]

        return self._ask(repo, call)

    def whoami(self, repo: Repository) -> str:
        """The name that the token belongs to."""
        return str(self._ask(repo, lambda: self.api.whoami()["name"], writes=True))

    def create(self, repo: Repository, *, private: bool) -> None:
        """Make the repository.

        Raises:
            Conflict: there is one.
        """
        self._ask(repo, lambda: self.api.create_repo(repo.id, private=private), writes=True)

    def branch(self, repo: Repository, name: str) -> None:
        """Make the branch ``name``, from the main one, unless it is there."""
        self._ask(repo, lambda: self.api.create_branch(repo.id, branch=name, exist_ok=True), writes=True)

    def tag(self, repo: Repository, name: str, commit: str, message: str) -> None:
        """Make the tag ``name``.

        Raises:
            Conflict: there is one.
        """

        def call() -> None:
            self.api.create_tag(repo.id, tag=name, revision=commit, tag_message=message)

        self._ask(repo, call, writes=True)

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
        """Commit, all of it or nothing, if the head is still ``parent``; once, since the answer may get lost.

        Returns:
            The new commit, and the address of the pull request where one was asked for.

        Raises:
            Conflict: the head is another one by now.
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

        return self._ask(repo, call, writes=True, once=True)

    def _ask(self, repo: Repository, call: Callable[[], Result], *, writes: bool = False, once: bool = False) -> Result:
        if self.access.is_offline:
            raise Unavailable(f"{repo.uri} cannot be asked: offline mode is on.", "Go online.")
        subject = Subject(repo.uri, repo.id, repo.revision or MAIN, writes=writes)
        policy = self.access.policy
        if once:
            policy = replace(policy, attempts=1, unreachable=1)
        return ask(subject, call, policy, token=self.access.token)


def _snapshot(repo: Repository, info: Any) -> Snapshot:
    """``info`` of the client as our own record, or a fault where no Hub would say such a thing."""
    commit = info.sha
    if not isinstance(commit, str) or not COMMIT.fullmatch(commit):
        raise Transient("was described without a commit")
    if repo.commit not in (None, commit):
        raise FetchError(
            f"{repo.uri} was answered with the commit {commit}.", "Do not use this endpoint (HF_ENDPOINT)."
        )
    files = {}
    for each in info.siblings or ():
        sha256 = each.lfs.sha256 if each.lfs else None
        size = each.lfs.size if each.lfs else each.size
        blob = each.blob_id
        right = (
            isinstance(each.rfilename, str)
            and isinstance(size, int)
            and size >= 0
            and (sha256 is None or _SHA256.fullmatch(sha256))
            and (blob is None or _SHA1.fullmatch(blob))
        )
        if not right:
            raise Transient("was described with a file that can be none")
        files[each.rfilename] = RemoteFile(size, sha256, blob)
    return Snapshot(repo, commit, files, bool(info.private))
