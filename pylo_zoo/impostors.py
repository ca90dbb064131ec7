"""Files that people and programs download in place of a checkpoint: web pages, error messages, pointers, nothing."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

HEAD = 4096
"""Bytes from the beginning of a file that tell what it is."""
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

DOWNLOAD = "Download the file itself, by hand if that needs a sign-in."


@dataclass(frozen=True)
class Impostor:
    """What a file is in place of a checkpoint, as ``"a web page titled 'Sign in'"``, and what a user can do."""

    what: str
    hint: str = DOWNLOAD


def recognise(head: bytes, size: int, *, text: bool = True) -> Impostor | None:
    """What a file is that begins with ``head`` and has ``size`` bytes; None if it may be a checkpoint.

    Args:
        head: at least the first :data:`HEAD` bytes, or all of a shorter file.
        size: of the whole file.
        text: whether text files and JSON are impostors; they are not if the file should be a text.
    """
    if size == 0:
        return Impostor("an empty file", "Download or copy it again.")
    for beginning, what in POINTERS:
        if head.startswith(beginning):
            return Impostor(
                f"{what} ({size:,} bytes)", "Fetch what it points to: `git lfs pull` in a clone, or download the file."
            )
    words = _text(head[:HEAD])
    if words is None:
        return None
    if _PAGE.match(words):
        title = _TITLE.search(words)
        return Impostor(f"a web page titled {_quoted(title[1])}" if title else "a web page (HTML)")
    if words.startswith(("<?xml", "<Error")):
        code = _CODE.search(words)
        return Impostor(f"an XML error message, {_quoted(code[1])}" if code else "an XML document")
    if not text:
        return None
    if words.startswith(("{", "[")):
        return Impostor(_described_json(words))
    return Impostor(f"a text file that begins with {_quoted(words)}")


def _text(head: bytes) -> str | None:
    """``head`` as text without blanks before it; None if it is binary."""
    encoding = "utf-16" if head.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    for cut in range(4):  # the last character may be incomplete
        try:
            words = head[: len(head) - cut].decode(encoding).strip()
        except UnicodeDecodeError:
            continue
        binary = any(not sign.isprintable() and not sign.isspace() for sign in words)
        return None if binary or not words else words
    return None


def _described_json(words: str) -> str:
    try:
        document = json.loads(words)
    except (ValueError, RecursionError):
        return "a JSON document"
    for key in ("error", "message", "detail"):
        said = document.get(key) if isinstance(document, dict) else None
        said = said.get("message") if isinstance(said, dict) else said
        if isinstance(said, str):
            return f"a JSON error message, {_quoted(said)}"
    return "a JSON document"


def _quoted(words: str) -> str:
    line = " ".join(words.split())
    return repr(line if len(line) <= _SHOWN else line[: _SHOWN - 1] + "…")
