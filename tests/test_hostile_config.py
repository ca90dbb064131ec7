"""Sizes, layers and the source layout in ``config.json`` are bounded before they are used."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hostile_bytes as craft
import numpy as np
import pytest
from commands import Capture, refused
from trees import SMALL, encode, synthetic_artifact, write_params

from pylo_zoo import artifact, formats, limits, weights
from pylo_zoo.config import CELO2Behavior, parse
from pylo_zoo.convert import convert, export
from pylo_zoo.converters import FAMILIES
from pylo_zoo.converters.base import MAX_LAYERS, net_shapes
from pylo_zoo.errors import ZooError
from pylo_zoo.fetch import Access
from pylo_zoo.hub.checkpoint import Checkpoint

ALLOWED = 8 * 1024 * 1024


def bounded(action: Callable[[], object]) -> ZooError | None:
    """The error that ``action`` raises, or None; its memory is bounded."""
    tracemalloc.start()
    try:
        action()
    except ZooError as error:
        return error
    else:
        return None
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < ALLOWED


# --- architecture and behavior -----------------------------------------------------------------------------------

FIELDS = [(family, field.name) for family in SMALL for field in dataclasses.fields(SMALL[family])]


@pytest.mark.parametrize("value", [1 << 16, 10**9, 10**30])
@pytest.mark.parametrize(("family", "field"), FIELDS)
def test_a_size_beyond_what_the_weights_hold_is_refused(
    family: str, field: str, value: int, tmp_path: Path, capsys: Capture
) -> None:
    path = artifact.write(synthetic_artifact(family), tmp_path / "a")
    config = json.loads((path / artifact.CONFIG).read_text())
    config["architecture"][field] = value
    (path / artifact.CONFIG).write_text(json.dumps(config))
    error = bounded(lambda: artifact.read(path))
    assert error is not None
    assert field in error.message
    assert str(value)[:10] in error.message.replace(",", "")
    assert field in refused(capsys, "info", path)


@pytest.mark.parametrize("family", SMALL)
def test_sizes_that_together_exceed_memory_are_refused(family: str) -> None:
    """Each size alone is within its bound. A network with vectors only stays within memory."""
    big = {field.name: MAX_LAYERS if "layers" in field.name else 1 << 16 for field in dataclasses.fields(SMALL[family])}
    architecture = type(SMALL[family])(**big)
    error = bounded(lambda: net_shapes(FAMILIES[family], architecture))
    if error is None:
        assert 4 * sum(map(math.prod, net_shapes(FAMILIES[family], architecture).values())) <= limits.DEFAULT_MAX_BYTES
        return
    assert f"over {limits.DEFAULT_MAX_BYTES:,}" in error.message


def test_published_architectures_are_within_the_bounds() -> None:
    for family in FAMILIES.values():
        assert net_shapes(family, family.released)


def test_iterations_are_bounded() -> None:
    assert parse(CELO2Behavior, {"ns_iters": 100}, "behavior").ns_iters == 100
    with pytest.raises(ZooError, match="ns_iters is 101"):
        parse(CELO2Behavior, {"ns_iters": 101}, "behavior")


# --- the source layout -------------------------------------------------------------------------------------------


def header(**changes: Any) -> Callable[[dict[str, Any]], object]:
    return lambda layout: layout["header"].update(step={"ext": 1, "dtype": "int64", "value": 5, **changes})


LAYOUTS: dict[str, Callable[[dict[str, Any]], object]] = {
    "texts of a gigabyte": header(dtype="S1000000000", value=[""] * 5),
    "a text of a gigabyte": header(dtype="S1000000000", value=""),
    "unicode": header(dtype="U500000000", value=""),
    "a subarray": header(dtype="(30000,30000)i8"),
    "void": header(dtype="V1000000000"),
    "an object": header(dtype="O"),
    "a float": header(dtype="float64"),
    "a list of numbers": header(value=[1, 2]),
    "a list in a list": header(value=[[1], [2, 3]]),
    "a boolean": header(value=True),
    "a number beyond its dtype": header(value=2**63),
    "a negative number of an unsigned dtype": header(dtype="uint8", value=-1),
    "another extension": header(ext=2),
    "an extension beyond a byte": header(ext=10**6),
    "another field": header(more=1),
    "a long text": lambda layout: layout["header"].update(gen_id="x" * 10_000),
    "a number beyond msgpack": lambda layout: layout["header"].update(step=2**64),
    "a list as a field": lambda layout: layout["header"].update(step=[1]),
    "a float as a field": lambda layout: layout["header"].update(step=1.5),
    "a leaf 10,000 deep": lambda layout: layout["leaves"].append(["x"] * 10_000),
    "a leaf that is a text": lambda layout: layout["leaves"].append("abc"),
    "a leaf of numbers": lambda layout: layout["leaves"].append([1, 2]),
    "leaves that are a number": lambda layout: layout.update(leaves=10**9),
    "keys that are a number": lambda layout: layout.update(keys=10**9),
    "keys of lists": lambda layout: layout.update(keys=[["params"]]),
    "a header that is a list": lambda layout: layout.update(header=[1]),
}


@pytest.fixture(scope="module")
def params(tmp_path_factory: pytest.TempPathFactory) -> artifact.Artifact:
    return convert("velo", source=write_params(tmp_path_factory.mktemp("params")))


@pytest.mark.parametrize("case", LAYOUTS)
def test_a_layout_is_bounded(case: str, params: artifact.Artifact, tmp_path: Path, capsys: Capture) -> None:
    path = artifact.write(params, tmp_path / "a")
    config = json.loads((path / artifact.CONFIG).read_text())
    LAYOUTS[case](config["source"]["layout"])
    (path / artifact.CONFIG).write_text(json.dumps(config))
    assert bounded(lambda: export(artifact.read(path))) is not None
    assert len(refused(capsys, "export", path, "--out", tmp_path / "x")) < 700
    assert not (tmp_path / "x").exists()


def test_an_untouched_layout_exports(params: artifact.Artifact, tmp_path: Path) -> None:
    write_params(tmp_path)
    assert export(params) == (tmp_path / "params").read_bytes()


# --- mutations ---------------------------------------------------------------------------------------------------

VALUES: list[Any] = [None, True, -1, 0, 1, 255, 2**31, 2**63, 10**30, 1e308, "", "x" * 2000, [], [[]], {}, {"a": 1}]
VALUES += ["S1000000000", "float64", ["a"] * 50, [10**9] * 3]


def scalars(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [path, *(result for key, child in items for result in scalars(child, (*path, key)))] if path or items else []


def test_any_value_of_a_config_is_read_or_refused(params: artifact.Artifact, tmp_path: Path) -> None:
    """Every value of the config except leaf names, replaced by values of every kind, 150 times with fixed seeds."""
    path = artifact.write(params, tmp_path / "a")
    original = json.loads((path / artifact.CONFIG).read_text())
    places = [place for place in scalars(original) if place and "leaves" not in place[:-1]]
    random = np.random.default_rng(15)

    def used() -> None:
        loaded = artifact.read(path)
        loaded.fingerprint  # noqa: B018
        export(loaded)

    for _ in range(150):
        config = copy.deepcopy(original)
        *parents, last = places[random.integers(len(places))]
        node = config
        for key in parents:
            node = node[key]
        node[last] = VALUES[random.integers(len(VALUES))]
        (path / artifact.CONFIG).write_text(json.dumps(config))
        bounded(used)


# --- checkpoints in a repository ---------------------------------------------------------------------------------

CODE = {
    "pickle": craft.memoized(1, 256),
    "pylo-torch": craft.torch_file(1, 64),
    "a bomb": craft.torch_file(1_900, 1 << 20),
}


@pytest.mark.parametrize("case", CODE)
def test_formats_that_can_contain_code_are_refused_before_decoding(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "theta.state").write_bytes(CODE[case])
    for name in ("read", "load", "detect"):
        monkeypatch.setattr(formats, name, lambda *_, **__: pytest.fail("the file was decoded"))
    result = Checkpoint("hf://org/x/theta.state@main", tmp_path / "theta.state")
    with pytest.raises(ZooError, match="does not open unless you name it"):
        weights._convert_checkpoint(result, Access())


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (CODE["pickle"], "pickle"),
        (CODE["pylo-torch"], "pylo-torch"),
        (craft.archive({"a.npy": craft.npy(np.ones(3))}), None),
        (encode({"a": np.ones(3, np.float32)}), None),
        (craft.safetensors({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)), None),
        (formats.OLD_TORCH + b"x", "pickle"),
        (b"", None),
    ],
)
def test_formats_are_detected_from_the_first_bytes(data: bytes, expected: str | None, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(data)
    assert formats.code_format(tmp_path / "x") == expected
