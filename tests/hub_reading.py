"""Read routes of the Hub double: repositories, their history and trees, and the files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any
from urllib.parse import parse_qs

from hub_calls import MODEL, Answer, Call, Routes, json_answer, ranged, router, signed
from hub_git import Blob, Commit, Refusal, Repo, front_matter

ROUTES: Routes = []
route = router(ROUTES)


def _lfs(blob: Blob, name: str) -> dict[str, Any]:
    if not blob.lfs:
        return {}
    return {"lfs": {name: blob.sha256, "size": len(blob.data), "pointerSize": len(blob.pointer)}}


@route("GET", rf"{MODEL}(/revision/(?P<rev>[^/]+))?")
def _info(call: Call) -> Answer:
    repo = call.repo
    sha = repo.resolve(call.words.get("rev", "main"))
    last = repo.commits[sha]
    try:
        readme = last.tree.get("README.md")
        card = front_matter(readme.data.decode()) if readme else {}
    except Refusal:
        card = {}
    siblings: list[dict[str, Any]] = [{"rfilename": path} for path in [*last.tree, *repo.extra_siblings]]
    if call.request.query.get("blobs"):
        for sibling, blob in zip(siblings, last.tree.values(), strict=False):
            sibling |= {"size": len(blob.data), "blobId": blob.oid, **_lfs(blob, "sha256")}
        for sibling in siblings[len(last.tree) :]:
            sibling |= {"size": 1, "blobId": "0" * 40}
    base = card.get("base_model", [])
    labels = [f"base_model:{name}" for name in ([base] if isinstance(base, str) else base)]
    labels += [f"license:{card['license']}"] if "license" in card else []
    about = {
        "id": repo.id,
        "modelId": repo.id,
        "author": repo.namespace,
        "sha": sha,
        "private": repo.private,
        "gated": "auto" if repo.gated else False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": [*([card["library_name"]] if "library_name" in card else []), *card.get("tags", []), *labels],
        "createdAt": _stamp(next(iter(repo.commits.values()))),
        "lastModified": _stamp(last),
        "siblings": siblings,
    }
    for key, value in (("cardData", card), ("library_name", card.get("library_name"))):
        about |= {key: value} if value else {}
    return json_answer(json.loads(json.dumps({**about, "model-index": card.get("model-index")}, default=str)))


def _stamp(commit: Commit) -> str:
    return commit.date.strftime("%Y-%m-%dT%H:%M:%S.000Z")


@route("GET", rf"{MODEL}/auth-check(?P<write>/write)?")
def _auth_check(call: Call) -> Answer:
    _let_in(call, call.writable if call.words.get("write") else call.repo)
    return json_answer({})


@route("GET", rf"{MODEL}/refs")
def _refs(call: Call) -> Answer:
    repo = call.repo

    def listed(refs: Iterable[tuple[str, str]], prefix: str) -> list[dict[str, str]]:
        return [{"name": name, "ref": prefix + name, "targetCommit": commit} for name, commit in refs]

    answer = {"branches": listed(repo.branches.items(), "refs/heads/"), "tags": listed(repo.tags.items(), "refs/tags/")}
    if call.request.query.get("include_prs"):
        answer["pullRequests"] = listed(((str(n), pull.head) for n, pull in repo.pulls.items()), "refs/pr/")
    return json_answer({**answer, "converts": []})


@route("GET", rf"{MODEL}/commits/(?P<rev>[^/]+)")
def _commits(call: Call) -> Answer:
    result = call.repo.history(call.words["rev"])
    answer = [
        {"id": at.id, "title": at.title, "message": at.message, "date": _stamp(at), "authors": [{"user": at.author}]}
        for at in result
    ]
    return json_answer(answer, X_Total_Count=str(len(answer)))


def _entries(repo: Repo, rev: str) -> dict[str, dict[str, Any]]:
    """A listing's facts about every file and folder."""
    entries = {}
    for path, blob in repo.tree(rev).items():
        entries[path] = {"type": "file", "path": path, "size": len(blob.data), "oid": blob.oid, **_lfs(blob, "oid")}
        parts = path.split("/")
        for folder in ("/".join(parts[:i]) for i in range(1, len(parts))):
            oid = hashlib.sha1(folder.encode(), usedforsecurity=False).hexdigest()
            entries[folder] = {"type": "directory", "path": folder, "size": 0, "oid": oid}
    for path in repo.extra_siblings:
        entries[path] = {"type": "file", "path": path, "size": 1, "oid": "0" * 40}
    return entries


@route("GET", rf"{MODEL}/tree/(?P<rev>[^/]+)(/(?P<path>.+))?")
def _tree(call: Call) -> Answer:
    entries = _entries(call.repo, call.words["rev"])
    folder = call.words.get("path", "").rstrip("/")
    if folder and folder not in entries:
        raise Refusal(404, f"{folder} does not exist", "EntryNotFound")
    inside = [each for path, each in entries.items() if not folder or path.startswith(f"{folder}/")]
    if call.request.query.get("recursive", "false").lower() not in ("true", "1"):
        inside = [each for each in inside if "/" not in each["path"].removeprefix(f"{folder}/" if folder else "")]
    return json_answer(inside)


@route("POST", rf"{MODEL}/paths-info/(?P<rev>[^/]+)")
def _paths_info(call: Call) -> Answer:
    if "json" in call.request.headers.get("content-type", ""):
        paths = call.json["paths"]
    else:
        paths = parse_qs(call.request.body.decode()).get("paths", [])
    entries = _entries(call.repo, call.words["rev"])
    return json_answer([entries[path] for path in paths if path in entries])


def _let_in(call: Call, repo: Repo) -> None:
    names = repo.granted | {repo.namespace}
    if repo.gated and not (call.user and (call.user.name in names or repo.namespace in call.user.orgs)):
        raise Refusal(403 if call.user else 401, f"Access to model {repo.id} is restricted.", "GatedRepo")


@route("GET HEAD", r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<rev>[^/]+)/(?P<path>.+)")
def _resolve(call: Call) -> Answer:
    repo = call.repo
    _let_in(call, repo)
    at = repo.resolve(call.words["rev"])
    blob = repo.commits[at].tree.get(call.words["path"])
    if blob is None:
        error = Refusal(404, "Entry not found", "EntryNotFound")
        error.headers = {"X-Repo-Commit": at}
        raise error
    headers = {"X-Repo-Commit": at, "ETag": blob.etag}
    if not blob.lfs:
        return ranged(call.request, blob.data, headers)
    linked = {"X-Linked-Etag": blob.etag, "X-Linked-Size": str(len(blob.data))}
    return Answer(302, b"", {**headers, **linked, "Location": signed(call.hub, "GET", blob.sha256)})
