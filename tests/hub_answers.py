"""Responses of the Hub double: storage through signed addresses, and the Hub through route tables."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING
from urllib.parse import unquote

import hub_reading
import hub_writing
from hub_calls import Answer, Call, json_answer, ranged, signature
from hub_git import Refusal

if TYPE_CHECKING:
    from hub_double import HubDouble, Request


def answer(hub: HubDouble, request: Request) -> Answer:
    """Apply a whole request or nothing, and return the response."""
    with hub.lock:
        try:
            return _storage(hub, request) if request.origin == "cdn" else _hub(hub, request)
        except Refusal as error:
            headers = {"X-Error-Message": str(error), **error.headers}
            return json_answer(
                error.body, error.status, **headers, **({"X-Error-Code": error.code} if error.code else {})
            )


def _hub(hub: HubDouble, request: Request) -> Answer:
    token = request.headers.get("authorization", "").removeprefix("Bearer ")
    if token and token not in hub.users:
        raise Refusal(401, "Invalid credentials in Authorization header")
    for methods, pattern, function in (*hub_writing.ROUTES, *hub_reading.ROUTES):
        match = pattern.fullmatch(request.path)
        if match and request.method in methods.split():
            words = {name: unquote(word) for name, word in match.groupdict().items() if word is not None}
            return function(Call(hub, request, words, hub.users.get(token)))
    raise Refusal(501, f"The double has no answer to {request}.")


def _storage(hub: HubDouble, request: Request) -> Answer:
    oid = request.path.lstrip("/")
    method = "GET" if request.method == "HEAD" else request.method
    if "authorization" in request.headers:
        return Answer(400, b"Only one way of authorization is allowed.")
    if request.query.get("X-Amz-Signature") != signature(method, oid):
        return Answer(403, b"The signature does not match.")
    if method == "PUT":
        if hashlib.sha256(request.body).hexdigest() != oid:
            return Answer(400, b"The content is not what was announced.")
        hub.store[oid] = request.body
        return Answer(200, b"", {"ETag": f'"{oid}"'})
    if method != "GET" or oid not in hub.store:
        return Answer(404, b"No such key.")
    return ranged(request, hub.store[oid], {"ETag": f'"{oid}"'})
