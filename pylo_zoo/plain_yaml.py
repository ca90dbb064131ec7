"""Reads a plain subset of YAML from untrusted text, at a cost bounded by the length of the text.

An alias repeats the content of its anchor, so 300 bytes can expand to gigabytes or contain themselves. The expanded
nodes are counted before any value is built.
"""

from __future__ import annotations

from typing import Any

import yaml

MAX_CHARACTERS = 1024 * 1024
MAX_NODES = 100_000
MAX_DEPTH = 32
MAX_DIGITS = 400
"""Digits of an integer. The largest float has 309."""


class NotPlain(ValueError):
    """The text is not YAML, or not in the plain subset. The message is a clause such as "it has …"."""


def load(text: str) -> Any:
    """Parse ``text`` into mappings, lists, strings, numbers, true, false, null and dates.

    Raises:
        NotPlain: the text is not YAML, repeats a key, uses a tag, is too large or too deep, or contains itself.
    """
    if len(text) > MAX_CHARACTERS:
        raise NotPlain(f"it has more than {MAX_CHARACTERS:,} characters")
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check_size(node)
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise NotPlain(" ".join(str(error).split())) from error
    except RecursionError as error:
        raise NotPlain("it is nested too deeply") from error
    except NotPlain:
        raise
    except (ValueError, ArithmeticError, LookupError, TypeError, AttributeError) as error:  # raised inside PyYAML
        raise NotPlain(f"it has a malformed value ({error})") from error
    finally:
        if loader is not None:
            loader.dispose()


def _check_size(root: yaml.Node) -> None:
    """Reject a tree that is too deep, or that has too many nodes after its aliases are expanded."""
    pending, count = [(root, 0)], 0
    while pending:
        node, depth = pending.pop()
        count += 1
        if depth > MAX_DEPTH:
            raise NotPlain(f"it is nested more than {MAX_DEPTH} levels deep, or contains itself")
        if count > MAX_NODES:
            raise NotPlain(f"it has more than {MAX_NODES:,} values after its aliases are expanded")
        if isinstance(node, yaml.MappingNode):
            pending += [(each, depth + 1) for pair in node.value for each in pair]
        elif isinstance(node, yaml.SequenceNode):
            pending += [(each, depth + 1) for each in node.value]
        elif node.tag.endswith(":int") and len(node.value) > MAX_DIGITS:
            raise NotPlain(f"it has a number of {len(node.value):,} digits")


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, except that a repeated key is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a dict with scalar, unique keys from ``node``."""
        keys: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key is not a scalar", key.start_mark)
            if key.value in keys:
                problem = f"the key {key.value!r} is repeated"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            keys.add(key.value)
        return super().construct_mapping(node, deep)


def _refuse_tag(loader: yaml.SafeLoader, node: yaml.Node) -> Any:
    raise yaml.constructor.ConstructorError(None, None, f"it uses the tag {node.tag}", node.start_mark)


for _tag in ("binary", "set", "omap", "pairs"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _refuse_tag)


__all__ = ["MAX_CHARACTERS", "MAX_DEPTH", "MAX_DIGITS", "MAX_NODES", "NotPlain", "load"]
