"""The Hub double's data: users, and in-memory repositories with git semantics.

Ids look real to a client: a blob's id is git's, a commit's id is a hash of its content. Nothing here is random or reads
the clock, so the same steps give the same ids in every run.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from functools import cached_property
from typing import Any

import yaml

LARGE = 10 * 2**20
COMMIT = re.compile(r"[0-9a-f]{40}")
ATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n*.png filter=lfs diff=lfs merge=lfs -text\n"


class Refusal(Exception):
    """An error response: a status, a message, and the code that the client looks for."""

    def __init__(self, status: int, message: str, code: str | None = None, **body: Any) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.body = {"error": message, **body}
        self.headers: dict[str, str] = {}


@dataclass(frozen=True)
class User:
    """A token's owner and role: "read", "write", or "fineGrained", which writes to its ``scopes``."""

    name: str
    orgs: tuple[str, ...] = ()
    role: str = "write"
    scopes: tuple[str, ...] = ()

    def belongs(self, namespace: str) -> bool:
        return namespace == self.name or namespace in self.orgs

    def writes(self, namespace: str) -> bool:
        return self.belongs(namespace) and (
            self.role == "write" or (self.role == "fineGrained" and namespace in self.scopes)
        )

    @property
    def read_only(self) -> bool:
        return self.role == "read" or (self.role == "fineGrained" and not self.scopes)


@dataclass(frozen=True)
class Blob:
    """A file: stored in git, or in the large file storage, in which case git holds a pointer to it."""

    data: bytes = field(repr=False)
    lfs: bool = False

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @cached_property
    def pointer(self) -> bytes:
        lines = ("version https://git-lfs.github.com/spec/v1", f"oid sha256:{self.sha256}", f"size {len(self.data)}")
        return "".join(f"{line}\n" for line in lines).encode()

    @cached_property
    def oid(self) -> str:
        """Git's id of the file."""
        stored = self.pointer if self.lfs else self.data
        return hashlib.sha1(b"blob %d\0" % len(stored) + stored, usedforsecurity=False).hexdigest()

    @property
    def etag(self) -> str:
        return f'"{self.sha256 if self.lfs else self.oid}"'


def is_large(path: str, size: int, sample: bytes) -> bool:
    """Whether the Hub requires the large file storage for a file."""
    return size > 0 and (path.endswith((".safetensors", ".png")) or size > LARGE or not _is_text(sample))


def _is_text(sample: bytes) -> bool:
    try:
        text = sample.decode()
    except UnicodeDecodeError as error:
        if error.start < len(sample) - 3:  # the sample may end within a character
            return False
        text = sample[: error.start].decode()
    return "\0" not in text


@dataclass(frozen=True)
class Commit:
    """A state of the files, and its origin."""

    id: str
    parent: str | None
    title: str
    message: str
    author: str
    date: datetime
    tree: Mapping[str, Blob] = field(repr=False)


@dataclass
class Pull:
    """A pull request, whose branch is ``refs/pr/NUMBER``."""

    number: int
    title: str
    author: str
    base: str
    head: str
    merged: bool = False


@dataclass
class Repo:
    """A repository: ``branches``, ``tags`` and ``pulls`` refer to ``commits``, which are in order of creation."""

    id: str
    lock: Any = field(default_factory=threading.RLock, repr=False)
    private: bool = False
    gated: bool = False
    granted: set[str] = field(default_factory=set)  # users with access to a gated repository
    lfs: bool | None = None  # storage of later files; None decides by name and content
    extra_siblings: list[str] = field(default_factory=list)  # names that are listed although no such file exists
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    pulls: dict[int, Pull] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)
    store: dict[str, bytes] = field(default_factory=dict, repr=False)  # the Hub's large file storage

    @property
    def namespace(self) -> str:
        return self.id.partition("/")[0]

    @property
    def head(self) -> str:
        """The id of the latest commit on main."""
        return self.branches["main"]

    def resolve(self, rev: str = "main") -> str:
        """The commit of a branch, tag, pull request or id."""
        with self.lock:
            pull = re.fullmatch(r"refs/pr/(\d+)", rev)
            if pull and int(pull[1]) in self.pulls:
                return self.pulls[int(pull[1])].head
            branch, tag = rev.removeprefix("refs/heads/"), rev.removeprefix("refs/tags/")
            result = self.branches.get(branch) or self.tags.get(tag) or (rev if rev in self.commits else None)
            if result is None:
                raise Refusal(404, f"Invalid rev id: {rev}", "RevisionNotFound")
            return result

    def tree(self, rev: str = "main") -> Mapping[str, Blob]:
        with self.lock:
            return self.commits[self.resolve(rev)].tree

    def files(self, rev: str = "main") -> dict[str, bytes]:
        """The files of a checkout, with the content of large files."""
        return {path: blob.data for path, blob in self.tree(rev).items()}

    def history(self, rev: str = "main") -> list[Commit]:
        """The commits that led to ``rev``, newest first."""
        with self.lock:
            here: str | None = self.resolve(rev)
            results = []
            while here is not None:
                results.append(self.commits[here])
                here = results[-1].parent
            return results

    def blob(self, path: str, data: bytes) -> Blob:
        """Store a file as this repository does."""
        blob = Blob(data, is_large(path, len(data), data) if self.lfs is None else self.lfs)
        if blob.lfs:
            self.store[blob.sha256] = data
        return blob

    def commit(
        self,
        files: Mapping[str, bytes],
        delete: Iterable[str] = (),
        title: str = "A commit",
        branch: str = "main",
        message: str = "",
        author: str = "somebody",
    ) -> str:
        """Commit as another client would, without a request; return the commit's id."""
        with self.lock:
            blobs = {path: self.blob(path, data) for path, data in files.items()}
            return self.record(blobs, delete, branch, title, message, author)

    def record(
        self,
        blobs: Mapping[str, Blob],
        delete: Iterable[str],
        rev: str,
        title: str,
        message: str,
        author: str,
        *,
        parent: str | None = None,
        as_pull: bool = False,
    ) -> str:
        """Add one commit to a branch or pull request, or open a new pull request; apply all of it or nothing.

        Args:
            blobs: the files to write.
            delete: the files to delete, and the folders if the name ends with a slash.
            rev: the branch or pull request.
            title: the first line of the commit message.
            message: the rest of it.
            author: a user's name.
            parent: refuse if ``rev`` refers to another commit.
            as_pull: leave ``rev`` unchanged and open a pull request.
        """
        with self.lock:
            base = self.resolve(rev) if self.commits else None
            if parent is not None and parent != base:
                raise Refusal(412, "A commit has happened since. Please refresh and try again.")
            tree = dict(self.commits[base].tree) if base else {}
            for path in delete:
                gone = [name for name in tree if name == path or (path.endswith("/") and name.startswith(path))]
                if not gone:
                    raise Refusal(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
                for name in gone:
                    del tree[name]
            tree = dict(sorted((tree | dict(blobs)).items()))
            commit_id = self._commit(base, title, message, author, tree)
            self._lead(rev, commit_id, as_pull, Pull(len(self.pulls) + 1, title, author, base or "", commit_id))
            return commit_id

    def _commit(self, base: str | None, title: str, message: str, author: str, tree: Mapping[str, Blob]) -> str:
        date = datetime(2026, 1, 1, tzinfo=timezone.utc) + timedelta(seconds=len(self.commits))
        listing = [(path, blob.oid) for path, blob in tree.items()]
        content = repr((self.id, base, title, message, author, date, listing)).encode()
        commit_id = hashlib.sha1(content, usedforsecurity=False).hexdigest()
        self.commits[commit_id] = Commit(commit_id, base, title, message, author, date, tree)
        return commit_id

    def _lead(self, rev: str, commit_id: str, as_pull: bool, pull: Pull) -> None:
        onto = re.fullmatch(r"refs/pr/(\d+)", rev)
        if as_pull:
            self.pulls[pull.number] = pull
        elif onto:
            self.pulls[int(onto[1])].head = commit_id
        elif rev.removeprefix("refs/heads/") in self.branches or not self.branches:
            self.branches[rev.removeprefix("refs/heads/")] = commit_id
        else:
            del self.commits[commit_id]
            raise Refusal(400, f"{rev} is not a branch.")

    def merge(self, number: int) -> str:
        """Merge a pull request into main, as the owner does on the Hub's website."""
        with self.lock:
            pull = self.pulls[number]
            before, after = self.commits[pull.base].tree if pull.base else {}, self.commits[pull.head].tree
            changed = {path: blob for path, blob in after.items() if before.get(path) != blob}
            pull.merged = True
            return self.record(changed, set(before) - set(after), "main", pull.title, "", pull.author)


def front_matter(readme: str) -> dict[str, Any]:
    """The metadata of a model card, empty if it has none.

    Raises:
        Refusal: the Hub would reject it.
    """
    match = re.match(r"(?s)\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(\r?\n|$)", readme)
    if not match:
        return {}
    try:
        data = yaml.safe_load(match[1])
    except yaml.YAMLError as error:
        raise _invalid(f"YAML: {' '.join(str(error).split())}") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise _invalid("the metadata must be an object")
    if not isinstance(data.get("model-index", []), list):
        raise _invalid('"model-index" must be an array')
    return data


def _invalid(message: str) -> Refusal:
    return Refusal(400, "Invalid metadata in README.md.", errors=[{"message": message}], warnings=[])
