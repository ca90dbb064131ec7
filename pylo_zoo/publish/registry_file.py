"""Pins what was published in a ``registry.yaml``, and leaves every other line of it, comments too, as it is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml

from pylo_zoo import artifact, registry
from pylo_zoo.artifact import Artifact
from pylo_zoo.config import to_dict
from pylo_zoo.errors import ZooError
from pylo_zoo.files import write_file
from pylo_zoo.hub.names import Repository
from pylo_zoo.registry import Entry

PINNED = (artifact.CONFIG, artifact.WEIGHTS, artifact.PARITY, artifact.VECTORS)
"""The files whose hashes are pinned: what an artifact is. Its card may be written anew."""
KEY = "artifact"


def check(path: Path, made: Artifact, entry: Entry | None, repo: Repository) -> None:
    """Whether :func:`pin` will be able to do its work; worth asking before anything is sent.

    Raises:
        ZooError: the file cannot be read or written, is no registry, or has another entry of the name.
    """
    if path.is_symlink() or not path.is_file():
        raise ZooError(f"{path} is no registry.", "Give a registry.yaml of your own with --registry.")
    pretended: dict[str, str] = dict.fromkeys(PINNED, "0" * 64)
    text = changed(path.read_text(encoding="utf-8"), made, entry, repo.at("0" * 40), pretended, made.source.license)
    _validate(path, text)


def pin(
    path: Path, made: Artifact, entry: Entry | None, repo: Repository, hashes: Mapping[str, str], license: str
) -> None:
    """Write the commit and the hashes of what was published into the registry at ``path``, in one step.

    Args:
        path: of the file.
        made: what was published.
        entry: of the checkpoint that it was converted from; None makes a new entry, named as the repository.
        repo: where it was published, at its commit.
        hashes: sha256 by name.
        license: for a new entry.

    Raises:
        ZooError: as :func:`check`.
    """
    text = changed(path.read_text(encoding="utf-8"), made, entry, repo, hashes, license)
    _validate(path, text)
    write_file(path, text.encode())


def changed(
    text: str, made: Artifact, entry: Entry | None, repo: Repository, hashes: Mapping[str, str], license: str
) -> str:
    """``text``, a registry, with the pin in it."""
    name = entry.name if entry else re.sub(r"[^a-z0-9]+", "-", repo.id.partition("/")[2].lower()).strip("-")
    lines = [
        f"  {KEY}:",
        f"    uri: {repo.uri}",
        "    sha256:",
        *(f"      {file}: {hashes[file]}" for file in PINNED if file in hashes),
    ]
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise ZooError(f"The registry is not valid YAML: {' '.join(str(error).split())}.", "Correct it.") from error
    top = {key.value: value for key, value in root.value} if isinstance(root, yaml.MappingNode) else {}
    if name not in top:
        return _appended(text, name, made, license, lines)
    old = top[name]
    if not isinstance(old, yaml.MappingNode) or old.flow_style:
        raise ZooError(f"The registry's {name} is not written as a block.", "Write it one field a line.")
    fields = {key.value: (key, value) for key, value in old.value}
    if entry is None and KEY not in fields:
        raise ZooError(
            f"The registry has an entry {name} of another checkpoint.",
            "Publish under another name, or rename the entry.",
        )
    source = text.splitlines()
    if KEY in fields:
        key, value = fields[KEY]
        start, end = key.start_mark.line, _end(source, value)
    else:
        start = end = max(_end(source, value) for _, value in fields.values())
    return "\n".join([*source[:start], *lines, *source[end:]]) + "\n"


def _end(source: list[str], node: yaml.Node) -> int:
    """The line after the last one of ``node``; a block's mark stands behind the blank lines and comments after it."""
    line = node.end_mark.line + (1 if node.end_mark.column else 0)
    while line > node.start_mark.line + 1 and _is_empty(source[line - 1]):
        line -= 1
    return line


def _is_empty(line: str) -> bool:
    return not line.strip() or line.lstrip().startswith("#")


def _appended(text: str, name: str, made: Artifact, license: str, pin: list[str]) -> str:
    """``text`` with a new entry at its end."""
    behavior = to_dict(made.behavior)
    body = {
        "family": made.family,
        "summary": f"A {made.family} of its own, published as {name}.",
        "license": license,
        "trained": True,
        **({"behavior": behavior} if behavior else {}),
        "defaults": {key: float(value) for key, value in made.defaults.items()},
    }
    dumped = yaml.safe_dump(body, sort_keys=False, allow_unicode=True, width=110).splitlines()
    return "\n".join([text.rstrip(), "", f"{name}:", *(f"  {line}" for line in dumped), *pin]) + "\n"


def _validate(path: Path, text: str) -> None:
    """Have the changed registry read as any other before it takes the place of the old one."""
    with TemporaryDirectory() as directory:
        copy = Path(directory) / path.name
        copy.write_text(text, encoding="utf-8")
        try:
            registry.load_registry(copy)
        except ZooError as error:
            raise ZooError(f"{path} would not be a registry any more: {error.message}", error.hint) from error
