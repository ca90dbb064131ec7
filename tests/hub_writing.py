"""Write routes of the Hub double: repositories, uploads, commits, tags and branches."""

from __future__ import annotations

import base64
import json
import re
from typing import Any

from hub_calls import GIT, MODEL, Answer, Call, Routes, json_answer, router, signed
from hub_git import Blob, Refusal, front_matter, is_large

ROUTES: Routes = []
route = router(ROUTES)


@route("GET", "/api/whoami-v2")
def _whoami(call: Call) -> Answer:
    user = call.signed_in
    token: dict[str, Any] = {"displayName": "a token", "role": user.role}
    if user.role == "fineGrained":
        entities = [{"entity": {"name": name}, "permissions": ["repo.write"]} for name in user.scopes]
        token["fineGrained"] = {"canReadGatedRepos": True, "global": [], "scoped": entities}
    orgs = [{"type": "org", "name": name, "fullname": name, "roleInOrg": "write"} for name in user.orgs]
    auth = {"type": "access_token", "accessToken": token}
    return json_answer({"type": "user", "name": user.name, "fullname": user.name, "orgs": orgs, "auth": auth})


def _repo_name(call: Call) -> str:
    payload = call.json
    namespace = payload.get("organization") or call.signed_in.name
    if payload.get("type", "model") != "model":
        raise Refusal(400, "The double supports only models.")
    if not re.fullmatch(r"[\w.-]{1,96}", payload["name"]):
        raise Refusal(400, "Invalid name")
    if not call.signed_in.writes(namespace):
        raise Refusal(403, f'You don\'t have the rights to create a model under the namespace "{namespace}"')
    return f"{namespace}/{payload['name']}"


@route("POST", "/api/repos/create")
def _create(call: Call) -> Answer:
    name = _repo_name(call)
    url = f"{call.hub.url}/{name}"
    if name in call.hub.repos:
        raise Refusal(409, "You already created this model repo", url=url)
    call.hub.create(name, private=call.json.get("visibility") == "private")
    return json_answer({"url": url, "name": name})


@route("DELETE", "/api/repos/delete")
def _delete(call: Call) -> Answer:
    name = _repo_name(call)
    if call.hub.repos.pop(name, None) is None:
        raise Refusal(404, "Repository not found", "RepoNotFound")
    return Answer(200, b"OK")


@route("PUT", rf"{MODEL}/settings")
def _settings(call: Call) -> Answer:
    repo, payload = call.writable, call.json
    repo.private = payload.get("private", repo.private)
    if "visibility" in payload:
        repo.private = payload["visibility"] == "private"
    repo.gated = bool(payload.get("gated", repo.gated))
    return json_answer({"private": repo.private, "gated": repo.gated})


@route("POST", "/api/validate-yaml")
def _validate(call: Call) -> Answer:
    data = front_matter(call.json["content"])
    warnings = [] if data else [{"message": "empty or missing yaml metadata in repo card"}]
    return json_answer({"errors": [], "warnings": warnings})


@route("POST", rf"{MODEL}/preupload/(?P<rev>[^/]+)")
def _preupload(call: Call) -> Answer:
    repo = call.open_to_pulls
    tree = repo.tree(call.words["rev"])

    def info(file: dict[str, Any]) -> dict[str, Any]:
        large = is_large(file["path"], file["size"], base64.b64decode(file["sample"]))
        existing = tree.get(file["path"])
        oid = {} if existing is None else {"oid": existing.sha256 if existing.lfs else existing.oid}
        mode = "lfs" if (large if repo.lfs is None else repo.lfs) else "regular"
        return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, **oid}

    return json_answer({"files": [info(file) for file in call.json["files"]]})


@route("POST", rf"{GIT}/batch")
def _batch(call: Call) -> Answer:
    if call.repo and call.signed_in.read_only:
        raise Refusal(403, "This token is read-only.")

    def actions(oid: str) -> dict[str, Any]:
        if oid in call.hub.store:
            return {}
        verify = f"{call.hub.url}/{call.words['repo']}.git/info/lfs/objects/verify"
        return {"actions": {"upload": {"href": signed(call.hub, "PUT", oid)}, "verify": {"href": verify}}}

    objects = call.json["objects"]
    return json_answer({"transfer": "basic", "objects": [{**each, **actions(each["oid"])} for each in objects]})


@route("POST", rf"{GIT}/verify")
def _verify(call: Call) -> Answer:
    existing = call.repo and call.signed_in and call.hub.store.get(call.json["oid"])
    if existing is None or len(existing) != call.json["size"]:
        raise Refusal(404, "The object is not in the storage.")
    return json_answer({})


@route("POST", rf"{MODEL}/commit/(?P<rev>[^/]+)")
def _commit(call: Call) -> Answer:
    repo, as_pull = call.open_to_pulls, call.request.query.get("create_pr") == "1"
    lines = [json.loads(line) for line in call.request.body.splitlines()]
    header = next(line["value"] for line in lines if line["key"] == "header")
    blobs = {line["value"]["path"]: _blob(call, line) for line in lines if line["key"] in ("file", "lfsFile")}
    if "README.md" in blobs:
        front_matter(blobs["README.md"].data.decode())
    folders = [line["value"]["path"].rstrip("/") + "/" for line in lines if line["key"] == "deletedFolder"]
    deleted = [line["value"]["path"] for line in lines if line["key"] == "deletedFile"] + folders
    commit_id = repo.record(
        blobs,
        deleted,
        call.words["rev"],
        header["summary"],
        header.get("description", ""),
        call.signed_in.name,
        parent=header.get("parentCommit"),
        as_pull=as_pull,
    )
    answer = {"success": True, "commitOid": commit_id, "commitUrl": f"{call.hub.url}/{repo.id}/commit/{commit_id}"}
    if as_pull:
        answer["pullRequestUrl"] = f"{call.hub.url}/{repo.id}/discussions/{max(repo.pulls)}"
    return json_answer(answer)


def _blob(call: Call, line: dict[str, Any]) -> Blob:
    value = line["value"]
    parts = value["path"].split("/")
    if not all(parts) or {".", "..", ".git"} & set(parts):
        raise Refusal(400, f"Invalid path: {value['path']}")
    if line["key"] == "lfsFile":
        data = call.hub.store.get(value["oid"])
        if data is None or len(data) != value.get("size", len(data)):
            raise Refusal(400, f"The object of {value['path']} is not in the storage.")
        return Blob(data, lfs=True)
    data = base64.b64decode(value["content"])
    if is_large(value["path"], len(data), data) and call.repo.lfs is None:
        raise Refusal(400, f"Your push was rejected: {value['path']} belongs into the large file storage.")
    return Blob(data)


@route("POST", rf"{MODEL}/(?P<kind>tag|branch)/(?P<rev>[^/]+)")
def _add_ref(call: Call) -> Answer:
    repo, rev, payload = call.writable, call.words["rev"], json.loads(call.request.body or b"{}")
    tag = call.words["kind"] == "tag"
    refs, name = (repo.tags, payload["tag"]) if tag else (repo.branches, rev)
    target = repo.resolve(rev if tag else payload.get("startingPoint", "main"))
    if name in refs:
        raise Refusal(409, f"Reference already exists: {name}")
    refs[name] = target
    return json_answer({})


@route("DELETE", rf"{MODEL}/(?P<kind>tag|branch)/(?P<rev>[^/]+)")
def _drop_ref(call: Call) -> Answer:
    repo, rev = call.writable, call.words["rev"]
    refs = repo.tags if call.words["kind"] == "tag" else repo.branches
    if rev == "main":
        raise Refusal(403, "main cannot be deleted")
    if refs.pop(rev, None) is None:
        raise Refusal(404, f"Invalid rev id: {rev}", "RevisionNotFound")
    return json_answer({})
