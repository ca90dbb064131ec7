"""YAML that somebody else wrote: its plain subset, at a cost that the text's length bounds.

An alias repeats what its anchor holds, so that a text of 300 bytes can stand for gigabytes, or contain itself. The
nodes are counted as they would expand before any value exists.
"""

from __future__ import annotations

from typing import Any

import yaml

MAX_CHARACTERS = 1024 * 1024
MAX_NODES = 100_000
MAX_DEPTH = 32
MAX_DIGITS = 400
"""Digits of a whole number: more than a float's largest has."""


class NotPlain(ValueError):
    """The text is not YAML, or not the plain subset; the message is the end of a sentence."""


def load(text: str) -> Any:
    """The value of ``text``: mappings, lists, texts, numbers, true, false, null and dates.

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
        _measure(node)
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise NotPlain(" ".join(str(error).split())) from error
    except RecursionError as error:
        raise NotPlain("it is nested too deeply") from error
    except NotPlain:
        raise
    except (ValueError, ArithmeticError, LookupError, TypeError, AttributeError) as error:  # PyYAML's own, unchecked
        raise NotPlain(f"it holds a malformed value ({error})") from error
    finally:
        if loader is not None:
            loader.dispose()


def _measure(root: yaml.Node) -> None:
    """Refuse a tree that is too deep, or has too many nodes once its aliases are written out."""
    waiting, count = [(root, 0)], 0
    while waiting:
        node, depth = waiting.pop()
        count += 1
        if depth > MAX_DEPTH:
            raise NotPlain(f"it is nested more than {MAX_DEPTH} levels deep, or contains itself")
        if count > MAX_NODES:
            raise NotPlain(f"it has more than {MAX_NODES:,} values, with its aliases written out")
        if isinstance(node, yaml.MappingNode):
            waiting += [(each, depth + 1) for pair in node.value for each in pair]
        elif isinstance(node, yaml.SequenceNode):
            waiting += [(each, depth + 1) for each in node.value]
        elif node.tag.endswith(":int") and len(node.value) > MAX_DIGITS:
            raise NotPlain(f"it has a number of {len(node.value):,} digits")


class _Loader(yaml.SafeLoader):
    """PyYAML's safe subset, in which a repeated key is an error and not a silent overwrite."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """``node`` as a dict with plain keys."""
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key is not a plain value", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} stands twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _refuse_tag(loader: yaml.SafeLoader, node: yaml.Node) -> Any:
    raise yaml.constructor.ConstructorError(None, None, f"it uses the tag {node.tag}", node.start_mark)


for _tag in ("binary", "set", "omap", "pairs"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _refuse_tag)


__all__ = ["MAX_CHARACTERS", "MAX_DEPTH", "MAX_DIGITS", "MAX_NODES", "NotPlain", "load"]
