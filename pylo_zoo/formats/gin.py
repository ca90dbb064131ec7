"""Google's operative gin configurations: ``Scope/Class.field = value``, one binding a statement.

Only what such files contain is read: Python literals, which may span lines, and references (``@name``, ``%macro``),
which stay opaque. Nothing is evaluated, imported or included.
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
    """Gin's text of a value that refers to something else, such as ``@HyperV2()``; never resolved."""


def parse(data: bytes) -> dict[str, Any]:
    """Read a gin file into ``{"Scope/Class.field": value}``, in the file's order.

    Raises:
        ZooError: a statement is not understood, or two bind one name to different values.
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
            raise _error(line, f"{name} is bound twice, to different values")
        config[name] = value
    return config


def bindings(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What ``config`` binds for the class ``name``: ``{field: value}``.

    A binding within a scope goes before one without. The scope's own name does not matter (Google's hold a random id),
    but two scopes that disagree are an error.

    Raises:
        ZooError: two scopes bind one field to different values.
    """
    plain: dict[str, Any] = {}
    scoped: dict[str, Any] = {}
    for key, value in config.items():
        match = NAME.fullmatch(key)
        *path, field = match["selector"].split(".") if match else (key,)
        if not match or not path or path[-1] != name:
            continue
        found = scoped if match["scope"] else plain
        if field in found and found[field] != value:
            raise ZooError(
                f"config.gin: scopes give {name}.{field} different values ({found[field]!r} and {value!r}).",
                f"Keep only the bindings of {name} that this checkpoint was trained with.",
            )
        found[field] = value
    return {**plain, **scoped}


def _statements(data: bytes) -> Iterator[tuple[int, list[str]]]:
    """First line and tokens of each statement; Python's own tokenizer knows brackets, strings and continuations."""
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
        raise _error(line, "the text ends or breaks off within a statement") from error


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
    return ZooError(f"config.gin, line {line}: {what}.", "Give the file as Google's bucket holds it, beside params.")
