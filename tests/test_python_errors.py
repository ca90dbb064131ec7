"""Errors of ``weights=`` in Python: one traceback, and a hint that does not mention the command line."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from trees import encode, nested, theta

import pylo_zoo
from pylo_zoo.convert import convert
from pylo_zoo.errors import ZooError
from pylo_zoo.optim import VeLO


def velo(weights: object) -> VeLO:
    return VeLO([torch.nn.Parameter(torch.zeros(3))], num_steps=10, weights=weights)  # pyright: ignore[reportArgumentType]


def damaged(directory: Path, name: str, data: bytes) -> Path:
    (directory / name).write_bytes(data)
    return directory / name


THETA = encode(nested(theta("elo")))
CASES: dict[str, Callable[[Path], object]] = {
    "velo offline": lambda here: velo("velo"),
    "velo-pylo offline": lambda here: velo("velo-pylo"),
    "a repository offline": lambda here: velo("hf://org/name"),
    "an unknown name": lambda here: velo("vello"),
    "a missing directory": lambda here: velo("zoo/velo"),
    "an address": lambda here: velo("https://huggingface.co/o/r"),
    "a directory without an artifact": lambda here: velo(here),
    "nothing": lambda here: velo(""),
    "another family": lambda here: convert("velo", source=damaged(here, "theta.state", THETA)),
    "a cut msgpack": lambda here: convert("elo", source=damaged(here, "theta.state", THETA[:-9])),
    "a bad msgpack": lambda here: convert("elo", source=damaged(here, "theta.state", encode({"nn": {}}))),
    "a bad npz": lambda here: convert("elo", source=damaged(here, "x.npz", b"PK\x03\x04" + bytes(99))),
    "a bad pickle": lambda here: convert("elo", source=damaged(here, "x.pickle", b"\x80\x04N.")),
    "a bad safetensors": lambda here: convert("elo", source=damaged(here, "x", b"\x02" + bytes(7) + b"{}")),
}


@pytest.fixture(params=CASES)
def error(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ZooError:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ZooError) as caught:
        CASES[request.param](tmp_path)
    return caught.value


def test_one_traceback(error: ZooError) -> None:
    chain, cause = [], error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    while cause is not None:
        chain.append(cause)
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    assert not [each for each in chain if isinstance(each, ZooError)], "the same error twice"
    printed = "".join(traceback.format_exception(error))
    assert printed.count("Traceback (most recent call last)") == 1 + len(chain)


@pytest.mark.parametrize("name", ["velo", "velo-pylo", "celo"])
def test_the_hint_offline_fits_python(name: str) -> None:
    with pytest.raises(ZooError) as caught:
        pylo_zoo.load(name)
    assert caught.value.message.startswith(f"The weights '{name}' are not here: ")
    assert "weights='DIR'" in caught.value.hint
    assert "--" not in caught.value.hint.replace("--out DIR", "")
    assert len(caught.value.hint) < 120
