"""Shared by the Hub double's handlers: the caller, the response type and the route tables."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hub_git import Refusal, Repo, User

if TYPE_CHECKING:
    from hub_double import HubDouble, Request


@dataclass
class Answer:
    """A status, a body and headers."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


def json_answer(data: Any, status: int = 200, **headers: str) -> Answer:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(status, json.dumps(data).encode(), {"Content-Type": "application/json", **named})


def ranged(request: Request, data: bytes, headers: dict[str, str]) -> Answer:
    """A file, or the requested range of it."""
    headers = {"Accept-Ranges": "bytes", **headers}
    match = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
    if not match:
        return Answer(200, data, headers)
    start, end = int(match[1]), min(int(match[2] or len(data)), len(data) - 1)
    if start > end:
        return Answer(416, b"", {"Content-Range": f"bytes */{len(data)}"})
    return Answer(206, data[start : end + 1], {**headers, "Content-Range": f"bytes {start}-{end}/{len(data)}"})


def signed(hub: HubDouble, method: str, oid: str) -> str:
    return f"{hub.cdn_url}/{oid}?X-Amz-Signature={signature(method, oid)}"


def signature(method: str, oid: str) -> str:
    return "sekret" + hashlib.sha256(f"{method} {oid}".encode()).hexdigest()


MODEL = r"/api/models/(?P<repo>[^/]+/[^/]+)"
GIT = r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects"
Route = Callable[["Call"], Answer]
Routes = list[tuple[str, re.Pattern[str], Route]]


def router(routes: Routes) -> Callable[[str, str], Callable[[Route], Route]]:
    """A decorator that registers a function in ``routes`` for these methods and paths."""

    def route(methods: str, pattern: str) -> Callable[[Route], Route]:
        def add(function: Route) -> Route:
            routes.append((methods, re.compile(pattern), function))
            return function

        return add

    return route


@dataclass
class Call:
    """One request to the Hub, and its sender."""

    hub: HubDouble
    request: Request
    words: dict[str, str]  # matches of the path
    user: User | None

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.request.body)

    @property
    def signed_in(self) -> User:
        if self.user is None:
            raise Refusal(401, "Invalid username or password.")
        return self.user

    @property
    def repo(self) -> Repo:
        """The repository, if this user can read it."""
        repo = self.hub.repos.get(self.words["repo"])
        if repo is None or (repo.private and not (self.user and self.user.belongs(repo.namespace))):
            raise Refusal(404 if self.user else 401, "Repository not found", "RepoNotFound")
        return repo

    @property
    def writable(self) -> Repo:
        repo = self.repo
        if not self.signed_in.writes(repo.namespace):
            raise Refusal(403, f"You are not allowed to write to {repo.id} with this token.")
        return repo

    @property
    def open_to_pulls(self) -> Repo:
        """The repository, if this user can write to it or the request opens a pull request."""
        if self.request.query.get("create_pr") != "1" and not self.words.get("rev", "").startswith("refs/pr/"):
            return self.writable
        if self.signed_in.read_only:
            raise Refusal(403, "This token is read-only.")
        return self.repo
