"""Faults for the chaos tests: a broken or hostile Hub, a full disk, concurrent writers."""

from __future__ import annotations

import errno
import os
import random
import shutil
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import hub_faults
import pytest
from hub_double import Exchange, Fault
from hub_faults import HOSTILE_NAMES

GONE = "http://evil.invalid/x"
"""An address that must never be contacted."""


def lying(exchange: Exchange) -> None:
    """The correct answer with wrong facts in the repository's description."""
    if not exchange.answer.headers.get("Content-Type", "").endswith("json"):
        return hub_faults.headers(X_Repo_Commit="0" * 40, ETag='"0"', X_Linked_Etag='"0"')(exchange)

    def change(answer: Any) -> None:
        chance = random.Random(str(exchange.request) + str(len(exchange.hub.log)))
        if not isinstance(answer, dict):
            return
        if "siblings" not in answer:
            answer.clear()
        elif chance.random() < 0.3:
            answer["sha"] = chance.choice(["0" * 40, "../../evil", None])
        else:
            each = chance.choice(answer["siblings"])
            sizes: list[dict[str, Any]] = [{"size": size} for size in (10**18, -1, None, 3)]
            lies = [*sizes, {"blobId": "../x"}, {"blobId": "0" * 40}]
            each |= chance.choice([*lies, {"lfs": {"sha256": "0" * 64, "size": each["size"], "pointerSize": 1}}])

    hub_faults.changed_json(change)(exchange)


def strange_names(exchange: Exchange) -> None:
    """The correct answer with additional files whose paths lead elsewhere."""

    def change(answer: Any) -> None:
        if isinstance(answer, dict) and "siblings" in answer:
            answer["siblings"] += [{"rfilename": name, "size": 1, "blobId": "0" * 40} for name in HOSTILE_NAMES]

    if exchange.answer.headers.get("Content-Type", "").endswith("json"):
        hub_faults.changed_json(change)(exchange)


def elsewhere(exchange: Exchange) -> None:
    """Redirect to a local address that does not exist; the request is not executed."""
    hub_faults.redirect(f"{exchange.hub.cdn_url}/elsewhere")(exchange)


def others(exchange: Exchange) -> None:
    """Another user commits just before the request; the answer is correct."""
    for repo in exchange.hub.repos.values():
        repo.commit({f"notes-{len(repo.commits)}.txt": b"theirs\n"}, title="Something else")


def _first_time(name: str) -> Fault:
    """An error that blames the token or the name although both are right."""
    codes = {"401": (401, ""), "403": (403, ""), "404": (404, "RepoNotFound"), "409": (409, ""), "412": (412, "")}
    status, code = codes[name]
    return hub_faults.status(status, **({"X_Error_Code": code} if code else {}))


PASSING: dict[str, Fault] = {
    **hub_faults.TRANSIENT,
    "applied, then 500": hub_faults.both(hub_faults.applied, hub_faults.status(500)),
    "reset within the request": hub_faults.reset_midway(10),
    "truncated": hub_faults.truncated(1),
    "silent": hub_faults.silent(0.0),
    "strange names": strange_names,
    "others": others,
}
"""Faults that retrying alone can overcome."""
ALL: dict[str, Fault] = {
    **PASSING,
    "wrong bytes": hub_faults.wrong_bytes,
    "lying": lying,
    "hostile headers": hub_faults.headers(X_Repo_Commit="../../x", ETag='"../../../evil"', X_Linked_Etag='"../x"'),
    "redirect": elsewhere,
    "redirect, unencrypted": hub_faults.redirect(GONE),
    "not JSON": hub_faults.not_json,
    "empty": hub_faults.empty,
    "wait an hour": hub_faults.status(429, Retry_After="3600"),
    **{name: _first_time(name) for name in ("401", "403", "404", "409", "412")},
}


class Disk:
    """A disk that is sometimes full for the writes of this process within :meth:`full`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.struck: Counter[str] = Counter()
        self._chance, self._rate, self._left = random.Random(0), 0.0, 0
        for name in ("write", "replace", "rename", "fsync", "mkdir"):
            self._watch(monkeypatch, os, name)
        for holder, name in ((shutil, "copyfile"), (Path, "write_bytes"), (Path, "write_text")):
            self._watch(monkeypatch, holder, name)
        self._watch_client(monkeypatch)

    def _watch(self, monkeypatch: pytest.MonkeyPatch, holder: Any, name: str) -> None:
        true: Callable[..., Any] = getattr(holder, name)

        def watched(*arguments: Any, **named: Any) -> Any:
            self._strike(name)
            return true(*arguments, **named)

        monkeypatch.setattr(holder, name, watched)

    def _watch_client(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Hook the bytes that huggingface_hub writes into its cache."""
        from huggingface_hub import file_download

        true = file_download.http_get
        strike = self._strike

        class Full:
            def __init__(self, file: Any) -> None:
                self._file = file

            def write(self, data: bytes) -> int:
                self._file.write(data[:1])
                strike("the client's download")
                return 1 + self._file.write(data[1:])

            def __getattr__(self, name: str) -> Any:
                return getattr(self._file, name)

        def http_get(url: str, temp_file: Any, **named: Any) -> None:
            true(url, cast(Any, Full(temp_file)), **named)

        monkeypatch.setattr(file_download, "http_get", http_get)

    def _strike(self, what: str) -> None:
        rate = self._rate / 10 if what == "mkdir" else self._rate  # mkdir is called far more often
        if self._left and self._chance.random() < rate:
            self._left -= 1
            self.struck[what] += 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    @contextmanager
    def full(self, seed: int, rate: float, total: int) -> Iterator[None]:
        """Make this share of the writes fail, at most ``total`` of them; ``seed`` selects which."""
        self._chance, self._rate, self._left = random.Random(seed), rate, total
        try:
            yield
        finally:
            self._left = 0


def block_other_hosts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Block DNS lookups of other hosts; return the list of attempted ones, which tests expect to be empty."""
    true, attempted = socket.getaddrinfo, []

    def getaddrinfo(host: Any, *arguments: Any, **named: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else str(host)
        if name not in ("127.0.0.1", "localhost"):
            attempted.append(name)
            raise socket.gaierror(socket.EAI_NONAME, "the tests have no network")
        return true(host, *arguments, **named)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return attempted
