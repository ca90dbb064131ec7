"""Finds secrets that must not be published: tokens, keys, signed addresses, passwords, paths of this machine."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

PATTERNS: Mapping[str, re.Pattern[bytes]] = {
    "a Hugging Face token": re.compile(rb"\b(hf|api_org)_[A-Za-z0-9]{20,}"),
    "a GitHub token": re.compile(rb"\b(gh[pousr]_[A-Za-z0-9]{30,}|github_pat_[A-Za-z0-9_]{30,})"),
    "a GitLab token": re.compile(rb"\bglpat-[A-Za-z0-9_-]{20,}"),
    "an AWS key": re.compile(rb"\b(AKIA|ASIA)[A-Z0-9]{16}\b"),
    "a Google key": re.compile(rb"\bAIza[A-Za-z0-9_-]{35}"),
    "a Slack token": re.compile(rb"\bxox[abprs]-[A-Za-z0-9-]{10,}"),
    "a W&B or other API key": re.compile(
        rb"(?i)\b(api[_-]?key|secret[_-]?key|access[_-]?token|auth[_-]?token|password|passwd)\b"
        rb"[\"']?\s*[:=]\s*[\"']?[A-Za-z0-9/+_-]{16,}"
    ),
    "a key of an AI service": re.compile(rb"\bsk-[A-Za-z0-9_-]{20,}"),
    "a private key": re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY"),
    "a signed address": re.compile(rb"(?i)[?&](x-amz-signature|x-goog-signature|signature|sig)=[A-Za-z0-9%/+_-]{16,}"),
    "a bearer's authorization": re.compile(rb"(?i)\bbearer\s+[A-Za-z0-9._~+/-]{20,}"),
    "a password in an address": re.compile(rb"\b[a-z][a-z0-9+.-]*://[^/\s:@\"']+:[^/\s:@\"']+@"),
}


def find_secrets(files: Mapping[str, bytes], token: str | None = None) -> Iterator[str]:
    """Yield a description ``FILE has WHAT`` of each secret in ``files``, without the secret itself.

    Args:
        files: content by name.
        token: the token in use, which is searched for literally.
    """
    home = str(Path.home()).encode()
    for name, data in files.items():
        for what, pattern in PATTERNS.items():
            if pattern.search(data):
                yield f"{name} has {what}"
        if token and token.encode() in data:
            yield f"{name} has the token that you use"
        if len(home) > 2 and home + b"/" in data:
            yield f"{name} has a path of your home directory"
