"""Errors of ``weights=`` in Python: one traceback, and a hint that does not mention the command line."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pylo_files
import pytest
import torch
from trees import encode, nested, synthetic_artifact, theta

import pylo_zoo
from pylo_zoo import artifact, formats
from pylo_zoo.artifact import Artifact
from pylo_zoo.convert import convert, export, export_file
from pylo_zoo.errors import ZooError
from pylo_zoo.optim import VeLO
from pylo_zoo.pipeline import ParityError


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


def elo(directory: Path, change: Callable[[np.ndarray], np.ndarray] = lambda leaf: leaf) -> Path:
    """A theta.state of ELO with ``change`` applied to every leaf."""
    leaves = {path: change(leaf) for path, leaf in theta("elo").items()}
    return damaged(directory, "theta.state", encode(nested(leaves)))


def written(directory: Path) -> Path:
    return artifact.write(synthetic_artifact("elo"), directory / "elo")


def not_exact() -> Artifact:
    made = synthetic_artifact("elo")
    return replace(made, source=replace(made.source, layout={**made.source.layout, "exact": False}))


HINTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "an artifact exists": (lambda here: artifact.write(synthetic_artifact("elo"), written(here)), "force=True"),
    "a file exists": (lambda here: export_file(written(here), damaged(here, "x", b"")), "force=True"),
    "an inexact export": (lambda here: export(not_exact()), "theta=True"),
    "float64": (lambda here: convert("elo", source=elo(here, np.float64)), "ConversionPolicy(cast='float32')"),
    "NaN": (
        lambda here: convert("elo", source=elo(here, lambda leaf: leaf * np.nan)),
        "ConversionPolicy(nonfinite=True)",
    ),
    "too large": (lambda here: formats.read(elo(here), max_bytes=8), "max_bytes=N"),
    "no decays": (lambda here: convert("mulo", source=pylo_files.write(here, "mulo", theta("mulo"))), "settings"),
}
"""What fails, and the Python argument that its hint names."""


@pytest.mark.parametrize("case", HINTS)
def test_a_hint_with_an_option_names_the_argument_too(case: str, tmp_path: Path) -> None:
    fails, argument = HINTS[case]
    with pytest.raises(ZooError) as caught:
        fails(tmp_path)
    assert "--" in caught.value.hint
    assert argument in caught.value.hint


def test_a_failed_parity_names_the_argument_too() -> None:
    assert "verify=False" in ParityError("elo", None).hint  # pyright: ignore[reportArgumentType]


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
    assert caught.value.message.startswith(f"The weights '{name}' are not cached: ")
    assert "weights='DIR'" in caught.value.hint
    assert "--" not in caught.value.hint.replace("--out DIR", "")
    assert len(caught.value.hint) < 120
