"""Recognizes files that were downloaded instead of a checkpoint: web pages, error messages, LFS pointers."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

HEAD = 4096
"""Number of leading bytes that identify a file."""
POINTERS = (
    (b"version https://git-lfs.github.com/spec/", "a Git LFS pointer"),
    (b"version https://hawser.github.com/spec/", "a Git LFS pointer"),
    (b"# xet version", "a Xet pointer"),
    (b"/annex/objects/", "a git-annex pointer"),
)
_PAGE = re.compile(
    r"(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)*<(?:!doctype\s+html|html|head|body|title|script)\b", re.I | re.S
)
_TITLE = re.compile(r"<title[^>]*>\s*(.*?)\s*</title>", re.I | re.S)
_CODE = re.compile(r"<Code>\s*(.*?)\s*</Code>", re.S)
_SHOWN = 60

DOWNLOAD = "Download the file itself, in a browser if that needs a sign-in."
OWN_FILE = "Pass the checkpoint's own file, such as theta.state."
DOCUMENT = "a JSON document"


@dataclass(frozen=True)
class Impostor:
    """Description of a file that is not a checkpoint, such as ``"a web page titled 'Sign in'"``, and a hint."""

    what: str
    hint: str = DOWNLOAD


def recognize(head: bytes, size: int, *, text: bool = True) -> Impostor | None:
    """Describe the file that begins with ``head``, or return None if it may be a checkpoint.

    Args:
        head: at least the first :data:`HEAD` bytes, or all of a shorter file.
        size: size of the whole file in bytes.
        text: whether text and JSON files are impostors. Pass False if a text file is expected.
    """
    if size == 0:
        return Impostor("an empty file", "Download or copy it again.")
    for beginning, what in POINTERS:
        if head.startswith(beginning):
            return Impostor(
                f"{what} ({size:,} bytes)", "Fetch the real file: run `git lfs pull` in the clone, or download it."
            )
    content = _decode(head[:HEAD])
    if content is None:
        return None
    if _PAGE.match(content):
        title = _TITLE.search(content)
        return Impostor(f"a web page titled {_quoted(title[1])}" if title else "a web page (HTML)")
    if content.startswith(("<?xml", "<Error")):
        code = _CODE.search(content)
        return Impostor(f"an XML error message, {_quoted(code[1])}" if code else "an XML document")
    if not text:
        return None
    if content.startswith(("{", "[")):
        what = _describe_json(content)
        return Impostor(what, OWN_FILE if what == DOCUMENT else DOWNLOAD)
    return Impostor(f"a text file that begins with {_quoted(content)}", OWN_FILE)


def _decode(head: bytes) -> str | None:
    """``head`` as text, without surrounding whitespace; None if it is binary."""
    encoding = "utf-16" if head.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    for cut in range(4):  # the last character may be incomplete
        try:
            text = head[: len(head) - cut].decode(encoding).strip()
        except UnicodeDecodeError:
            continue
        binary = any(not char.isprintable() and not char.isspace() for char in text)
        return None if binary or not text else text
    return None


def _describe_json(content: str) -> str:
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return DOCUMENT
    for key in ("error", "message", "detail"):
        message = document.get(key) if isinstance(document, dict) else None
        message = message.get("message") if isinstance(message, dict) else message
        if isinstance(message, str):
            return f"a JSON error message, {_quoted(message)}"
    return DOCUMENT


def _quoted(text: str) -> str:
    line = " ".join(text.split())
    return repr(line if len(line) <= _SHOWN else line[: _SHOWN - 1] + "…")
