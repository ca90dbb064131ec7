"""Adds the pin of a published artifact to a ``registry.yaml``. All other lines, including comments, stay unchanged."""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from pylo_zoo import artifact, registry
from pylo_zoo.config import to_dict
from pylo_zoo.errors import ZooError, reason
from pylo_zoo.fetch import store
from pylo_zoo.files import read_regular, write_file
from pylo_zoo.hub.names import Repository
from pylo_zoo.publish.plan import PublishPlan, is_entry_of
from pylo_zoo.registry import Entry

PINNED: tuple[str, ...] = (artifact.CONFIG, artifact.WEIGHTS, artifact.PARITY, artifact.VECTORS)
"""The files whose hashes are pinned. The card is not, because it may be rewritten."""
KEY = "artifact"
HINT = "Pass your own registry.yaml with --registry."


def check(path: Path, plan: PublishPlan) -> None:
    """Check that :func:`pin` will succeed, before anything is sent.

    Raises:
        ZooError: the file cannot be read or written, is not a registry, or has another entry of the same name.
    """
    if not path.exists():
        raise ZooError(f"{path} does not exist.", HINT)
    if path.is_symlink() or not path.is_file():
        raise ZooError(f"{path} is not a registry file.", HINT)
    if not (os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)):
        raise ZooError(f"{path} cannot be written.", "Check its permissions, or pass another file with --registry.")
    _changed(path, plan, "0" * 40, plan.hashes)


def pin(path: Path, plan: PublishPlan, commit: str, hashes: Mapping[str, str]) -> None:
    """Write the commit and the hashes of the published files into the registry at ``path``, in one step.

    The pin goes into the entry of the converted checkpoint, or into a new entry with the name of the repository.

    Args:
        path: the registry file.
        plan: the published files.
        commit: the commit with the files.
        hashes: sha256 by file name.

    Raises:
        ZooError: see :func:`check`.
    """
    with store.locked(f"registry {path.resolve()}"):
        mode = path.stat().st_mode
        write_file(path, _changed(path, plan, commit, hashes))
        path.chmod(mode)


def _changed(path: Path, plan: PublishPlan, commit: str, hashes: Mapping[str, str]) -> bytes:
    """The content of the registry at ``path`` with the pin, checked to be a valid registry."""
    try:
        text = read_regular(path, registry.MAX_BYTES, HINT).decode()
    except UnicodeDecodeError as error:
        raise ZooError(f"{path} cannot be read: {reason(error)}.", HINT) from error
    name, is_new = _choose_entry(_parse(path, text), plan)
    pinned = {file: hashes[file] for file in PINNED if file in hashes}
    entry = {KEY: {"uri": plan.repo.at(commit).uri, "sha256": pinned}}
    changed = _appended(text, {name: {**_new_entry(name, plan), **entry}}) if is_new else _replaced(text, name, entry)
    _parse(path, changed)
    return changed.encode()


def _parse(path: Path, text: str) -> Mapping[str, Entry]:
    """The entries of ``text``, the current or future content of ``path``."""
    if all(not line.strip() or line.lstrip().startswith("#") for line in text.splitlines()):
        return {}
    with TemporaryDirectory() as directory:
        copy = Path(directory) / "registry.yaml"
        copy.write_bytes(text.encode())
        try:
            return registry.load_registry(copy)
        except ZooError as error:
            raise ZooError(f"{path} cannot hold the pin: {error.message}", error.hint) from None


def _choose_entry(entries: Mapping[str, Entry], plan: PublishPlan) -> tuple[str, bool]:
    """The name of the entry that gets the pin, and whether it is new."""
    for entry in entries.values():
        if is_entry_of(entry, plan.artifact):
            return entry.name, False
    name = re.sub(r"[^a-z0-9]+", "-", plan.repo.id.partition("/")[2].lower()).strip("-")
    existing = entries.get(name)
    if existing is None:
        return name, True
    pinned = Repository.parse(existing.artifact.uri).id if existing.artifact else None
    if pinned != plan.repo.id or existing.family != plan.artifact.family:
        raise ZooError(
            f"The registry's entry {name} belongs to another checkpoint.",
            "Publish under another name, or rename the entry.",
        )
    return name, False


def _new_entry(name: str, plan: PublishPlan) -> dict[str, Any]:
    """A new entry, without its pin."""
    behavior = to_dict(plan.artifact.behavior)
    return {
        "family": plan.artifact.family,
        "summary": f"An optimizer of the family {plan.artifact.family}, published as {name}.",
        "license": plan.license,
        "trained": plan.entry.trained if plan.entry else True,
        **({"behavior": behavior} if behavior else {}),
        "defaults": {key: float(value) for key, value in plan.artifact.defaults.items()},
    }


# --- editing the text --------------------------------------------------------------------------------------------


def _appended(text: str, entry: Mapping[str, Any]) -> str:
    return _inserted(text.splitlines(keepends=True), ["", *_lines(entry)])


def _replaced(text: str, name: str, pin: Mapping[str, Any]) -> str:
    """``text`` with ``pin`` in its entry ``name``: it replaces an older pin, or is added at the end of the entry."""
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    old = next(value for key, value in root.value if key.value == name)
    if old.flow_style:
        raise ZooError(f"The registry's entry {name} is not written as a block.", "Write each field on its own line.")
    source = text.splitlines(keepends=True)
    ends = {key.value: _end(key, value) for key, value in old.value}
    start = next((key.start_mark.line for key, _ in old.value if key.value == KEY), max(ends.values()))
    lines = _lines(pin, " " * old.value[0][0].start_mark.column)
    return _inserted(source[:start], lines, source[ends.get(KEY, start) :])


def _end(key: yaml.Node, value: yaml.Node) -> int:
    """The line after the last line of a field. The end mark of a block points further down, to the next token."""
    if isinstance(value, yaml.CollectionNode) and value.value and not value.flow_style:
        last = value.value[-1]
        return _end(*last) if isinstance(last, tuple) else _end(last, last)
    mark = value.end_mark  # the mark of an alias is that of its anchor, further up
    return max(key.start_mark.line + 1, mark.line + (1 if mark.column else 0))


def _lines(values: Mapping[str, Any], indent: str = "") -> list[str]:
    dumped = yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True, width=10_000)
    return textwrap.indent(dumped, indent).splitlines()


def _inserted(before: list[str], lines: list[str], after: list[str] | None = None) -> str:
    """Insert ``lines``, with the line ends that the file uses."""
    end = "\r\n" if any(line.endswith("\r\n") for line in before) else "\n"
    head = "".join(before)
    if head and not head.endswith(("\n", "\r")):
        head += end
    return head + "".join(f"{line}{end}" for line in lines) + "".join(after or ())
