"""What the tests of the Hub double commit."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi

WEIGHTS = random.Random(0).randbytes(50_000)
CARD = b"---\nlicense: mit\nlibrary_name: pylo-zoo\ntags: [learned-optimizer]\nbase_model: org/base\n---\n# A model\n"
FILES = {"README.md": CARD, "config.json": b'{"a": 1}\n', "model.safetensors": WEIGHTS}


def commit(api: HfApi, files: Mapping[str, bytes] = FILES, message: str = "A message", **arguments: Any) -> CommitInfo:
    """Commit ``files`` to org/name."""
    operations = [CommitOperationAdd(path, data) for path, data in files.items()]
    return api.create_commit("org/name", operations=operations, commit_message=message, **arguments)
