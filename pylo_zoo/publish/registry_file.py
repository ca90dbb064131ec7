"""Pins what was published in a ``registry.yaml``, and leaves every other line of it, comments too, as it is."""

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
from pylo_zoo.errors import ZooError
from pylo_zoo.fetch import store
from pylo_zoo.files import read_regular, write_file
from pylo_zoo.hub.names import Repository
from pylo_zoo.publish.plan import PublishPlan, is_of
from pylo_zoo.registry import Entry

PINNED: tuple[str, ...] = (artifact.CONFIG, artifact.WEIGHTS, artifact.PARITY, artifact.VECTORS)
"""The files whose hashes are pinned: what an artifact is. Its card may be written again."""
KEY = "artifact"


def check(path: Path, plan: PublishPlan) -> None:
    """Whether :func:`pin` will be able to do its work; worth asking before anything is sent.

    Raises:
        ZooError: the file cannot be read or written, is no registry, or has another entry of the name.
    """
    if not path.exists():
        raise ZooError(f"There is no {path}.", "Give a registry.yaml of your own with --registry.")
    if path.is_symlink() or not path.is_file():
        raise ZooError(f"{path} is no registry.", "Give a registry.yaml of your own with --registry.")
    if not (os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)):
        raise ZooError(f"{path} cannot be written.", "Check its permissions, or give another with --registry.")
    _changed(path, plan, "0" * 40, plan.hashes)


def pin(path: Path, plan: PublishPlan, commit: str, hashes: Mapping[str, str]) -> None:
    """Write the commit and the hashes of what was published into the registry at ``path``, in one step.

    The entry is the one of the checkpoint that was converted; without such a one, a new one named as the repository.

    Args:
        path: of the file.
        plan: what was published.
        commit: that holds it.
        hashes: sha256 by name.

    Raises:
        ZooError: as :func:`check`.
    """
    with store.locked(f"registry {path.resolve()}"):
        mode = path.stat().st_mode
        write_file(path, _changed(path, plan, commit, hashes))
        path.chmod(mode)


def _changed(path: Path, plan: PublishPlan, commit: str, hashes: Mapping[str, str]) -> bytes:
    """The registry at ``path`` with the pin in it, which reads as any other."""
    hint = "Give a registry.yaml of your own with --registry."
    try:
        text = read_regular(path, registry.MAX_BYTES, hint).decode()
    except UnicodeDecodeError as error:
        raise ZooError(f"{path} cannot be read: {error}.", hint) from error
    name, is_new = _place(_loaded(path, text), plan)
    pinned = {file: hashes[file] for file in PINNED if file in hashes}
    entry = {KEY: {"uri": plan.repo.at(commit).uri, "sha256": pinned}}
    changed = _appended(text, {name: {**_described(name, plan), **entry}}) if is_new else _replaced(text, name, entry)
    _loaded(path, changed)
    return changed.encode()


def _loaded(path: Path, text: str) -> Mapping[str, Entry]:
    """The entries of ``text``, which is what ``path`` holds or is to hold."""
    if all(not line.strip() or line.lstrip().startswith("#") for line in text.splitlines()):
        return {}
    with TemporaryDirectory() as directory:
        copy = Path(directory) / "registry.yaml"
        copy.write_bytes(text.encode())
        try:
            return registry.load_registry(copy)
        except ZooError as error:
            raise ZooError(f"{path} cannot hold the pin: {error.message}", error.hint) from None


def _place(entries: Mapping[str, Entry], plan: PublishPlan) -> tuple[str, bool]:
    """The name of the entry that gets the pin, and whether it is a new one."""
    for entry in entries.values():
        if is_of(entry, plan.artifact):
            return entry.name, False
    name = re.sub(r"[^a-z0-9]+", "-", plan.repo.id.partition("/")[2].lower()).strip("-")
    there = entries.get(name)
    if there is None:
        return name, True
    pinned = Repository.parse(there.artifact.uri).id if there.artifact else None
    if pinned != plan.repo.id or there.family != plan.artifact.family:
        raise ZooError(
            f"The registry has an entry {name} of another checkpoint.",
            "Publish under another name, or rename the entry.",
        )
    return name, False


def _described(name: str, plan: PublishPlan) -> dict[str, Any]:
    """A new entry, without its pin."""
    made = plan.artifact
    behavior = to_dict(made.behavior)
    return {
        "family": made.family,
        "summary": f"A {made.family} of its own, published as {name}.",
        "license": plan.license,
        "trained": plan.entry.trained if plan.entry else True,
        **({"behavior": behavior} if behavior else {}),
        "defaults": {key: float(value) for key, value in made.defaults.items()},
    }


# --- the text ----------------------------------------------------------------------------------------------------


def _appended(text: str, entry: Mapping[str, Any]) -> str:
    return _inserted(text.splitlines(keepends=True), ["", *_lines(entry)])


def _replaced(text: str, name: str, pin: Mapping[str, Any]) -> str:
    """``text`` with ``pin`` in its entry ``name``, in the place of the one that is there, or at the entry's end."""
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    old = next(value for key, value in root.value if key.value == name)
    if old.flow_style:
        raise ZooError(f"The registry's {name} is not written as a block.", "Write it one field a line.")
    source = text.splitlines(keepends=True)
    ends = {key.value: _end(key, value) for key, value in old.value}
    start = next((key.start_mark.line for key, _ in old.value if key.value == KEY), max(ends.values()))
    lines = _lines(pin, " " * old.value[0][0].start_mark.column)
    return _inserted(source[:start], lines, source[ends.get(KEY, start) :])


def _end(key: yaml.Node, value: yaml.Node) -> int:
    """The line after the last one of a field; a block's own mark stands farther on, at whatever comes next."""
    if isinstance(value, yaml.CollectionNode) and value.value and not value.flow_style:
        last = value.value[-1]
        return _end(*last) if isinstance(last, tuple) else _end(last, last)
    mark = value.end_mark  # of an alias, that of what it stands for, farther up
    return max(key.start_mark.line + 1, mark.line + (1 if mark.column else 0))


def _lines(values: Mapping[str, Any], indent: str = "") -> list[str]:
    dumped = yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True, width=10_000)
    return textwrap.indent(dumped, indent).splitlines()


def _inserted(before: list[str], lines: list[str], after: list[str] | None = None) -> str:
    """``lines`` between the others, with the file's own ends of lines."""
    end = "\r\n" if any(line.endswith("\r\n") for line in before) else "\n"
    head = "".join(before)
    if head and not head.endswith(("\n", "\r")):
        head += end
    return head + "".join(f"{line}{end}" for line in lines) + "".join(after or ())
