"""Reads Google's operative gin configurations, with bindings ``Scope/Class.field = value``.

Values are Python literals, which may span lines, and references (``@name``, ``%macro``), which stay opaque. Nothing is
evaluated, imported or included.
"""

from __future__ import annotations

import ast
import io
import json
import re
import tokenize
from collections.abc import Iterator, Mapping
from typing import Any

from pylo_zoo.errors import ZooError

NAME = re.compile(r"(?:(?P<scope>\w+(?:/\w+)*)/)?(?P<selector>\w+(?:\.\w+)*)")
IGNORED_TOKENS = {tokenize.COMMENT, tokenize.NL, tokenize.ENCODING, tokenize.ENDMARKER, tokenize.DEDENT}


class Reference(str):
    """An unresolved gin reference, such as ``@HyperV2()``."""


def parse(data: bytes) -> dict[str, Any]:
    """Parse a gin file into ``{"Scope/Class.field": value}``, in file order.

    Raises:
        ZooError: a statement is not supported, or two statements bind a name to different values.
    """
    config: dict[str, Any] = {}
    for line, tokens in _statements(data):
        if tokens[0] in ("import", "from"):
            continue
        if len(tokens) < 3 or "=" not in tokens:
            raise _error(line, "not a binding")
        equals = tokens.index("=")
        name, value = "".join(tokens[:equals]), _value(line, tokens[equals + 1 :])
        if not NAME.fullmatch(name):
            raise _error(line, f"{name!r} is not a name")
        if name in config and config[name] != value:
            raise _error(line, f"{name} is bound to two different values")
        config[name] = value
    return config


def bindings(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The bindings of the class ``name`` in ``config``: ``{field: value}``.

    A binding in a scope has precedence over one without. The name of the scope is ignored (Google's contain a random
    id).

    Raises:
        ZooError: two scopes bind a field to different values.
    """
    plain: dict[str, Any] = {}
    scoped: dict[str, Any] = {}
    for key, value in config.items():
        match = NAME.fullmatch(key)
        *path, field = match["selector"].split(".") if match else (key,)
        if not match or not path or path[-1] != name:
            continue
        bound = scoped if match["scope"] else plain
        if field in bound and bound[field] != value:
            raise ZooError(
                f"config.gin: scopes give {name}.{field} different values ({bound[field]!r} and {value!r}).",
                f"Keep only the bindings of {name} that belong to this checkpoint.",
            )
        bound[field] = value
    return {**plain, **scoped}


def _statements(data: bytes) -> Iterator[tuple[int, list[str]]]:
    """First line and tokens of each statement. Python's tokenizer handles brackets, strings and continuations."""
    line, tokens = 0, []
    try:
        for token in tokenize.generate_tokens(io.StringIO(data.decode("utf-8")).readline):
            if token.type in (tokenize.INDENT, tokenize.ERRORTOKEN):
                raise _error(token.start[0], "unexpected indentation or character")
            if token.type == tokenize.NEWLINE:
                yield line, tokens
                tokens = []
            elif token.type not in IGNORED_TOKENS:
                line = line if tokens else token.start[0]
                tokens.append(token.string)
    except (tokenize.TokenError, SyntaxError, UnicodeDecodeError) as error:
        raise _error(line, "a statement is incomplete or not UTF-8") from error


def _value(line: int, tokens: list[str]) -> Any:
    if "@" in tokens or "%" in tokens:
        return Reference("".join(tokens))
    try:
        value = ast.literal_eval(" ".join(tokens))
        json.dumps(value, allow_nan=False)
        return value
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
        raise _error(line, f"{' '.join(tokens)[:40]!r} is not a plain literal") from error


def _error(line: int, what: str) -> ZooError:
    return ZooError(f"config.gin, line {line}: {what}.", "Use the original config.gin from Google's bucket.")
