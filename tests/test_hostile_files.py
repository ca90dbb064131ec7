"""Hostile checkpoints: memory is bounded before it is allocated, and each fault is one ZooError."""

from __future__ import annotations

import pickle
import sys
import tracemalloc
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import hostile_bytes as craft
import numpy as np
import pytest
from hostile import read, refusal
from hypothesis import given, settings
from hypothesis import strategies as st
from trees import encode, nested, theta

from pylo_zoo import formats, limits
from pylo_zoo.errors import ZooError, quoted

MIB = craft.MIB
LIMIT = 2 * MIB
"""The limit in the amplification tests: the inputs request at least ten times as much."""
FIXED = MIB
"""Memory that reading takes for any file: tables, objects, an error. Values are widened in blocks of 64 kB."""


def peak(action: Callable[[], object]) -> int:
    """The peak memory that ``action`` allocates, numpy's included."""
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


# --- amplification -----------------------------------------------------------------------------------------------

AMPLIFIED: dict[str, Callable[[], bytes]] = {
    "pt: views of one storage": lambda: craft.torch_file(40, LIMIT // 8),
    "pt: a view of stride 0": lambda: craft.torch_file(40, LIMIT // 4, [LIMIT // 4], [0]),
    "pt: an axis of stride 0": lambda: craft.torch_file(40, LIMIT // 8, [8, LIMIT // 64], [0, 1]),
    "pt: bfloat16, widened": lambda: craft.torch_file(3, LIMIT // 4, kind="BFloat16"),
    "pickle: shared bytes": lambda: craft.memoized(20, MIB),
    "pickle: shared bytes, Fortran order": lambda: craft.memoized(20, MIB, order="F"),
    "pickle: shared text": lambda: craft.memoized(20, MIB, latin1=True),
    "flax: fp8, widened": lambda: craft.flax("float8_e5m2", MIB // 2, 3),
    "flax: bfloat16, widened": lambda: craft.flax("bfloat16", MIB // 2, 3),
    "npz: a zip bomb": lambda: craft.archive({"a.npy": craft.npy(np.zeros(5 * MIB, "f4"))}, zipfile.ZIP_DEFLATED),
    "npz: many bombs": lambda: craft.archive(
        {f"a{i}.npy": craft.npy(np.zeros(MIB // 16, "f4")) for i in range(90)}, zipfile.ZIP_DEFLATED
    ),
    "npz: overlapping members": lambda: craft.overlapping(99, MIB // 4),
    "safetensors: tensors that share bytes": lambda: craft.aliased(20, MIB),
}


@pytest.mark.parametrize("case", AMPLIFIED)
def test_a_small_file_with_large_allocations_is_refused_before_allocating(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = AMPLIFIED[case]()
    monkeypatch.setenv(limits.VARIABLE, str(LIMIT))
    assert len(data) <= LIMIT
    (tmp_path / "x").write_bytes(data)

    def refused() -> None:
        with pytest.raises(ZooError) as error:
            formats.read(tmp_path / "x")
        assert len(str(error.value)) < 400

    assert peak(refused) < len(data) + 2.5 * LIMIT + FIXED  # the file, its unpacked content, and the arrays so far


def test_a_torch_file_of_many_views(tmp_path: Path) -> None:
    """1,900 views of 60 MiB in a file of 70 kB: 111 GiB."""
    data = craft.torch_file(1_900, 15 * MIB)
    assert len(data) < 200_000
    (tmp_path / "x.pt").write_bytes(data)

    def refused() -> None:
        with pytest.raises(ZooError, match="its arrays have more than 67,108,864 bytes") as error:
            formats.read(tmp_path / "x.pt")
        assert "--max-bytes" in error.value.hint

    assert peak(refused) < 2.5 * limits.DEFAULT_MAX_BYTES


def test_shared_arrays_count_at_each_occurrence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leaf = np.zeros(1000, np.float32)
    data = pickle.dumps({f"k{i}": leaf for i in range(3)})
    monkeypatch.setenv(limits.VARIABLE, "12000")
    assert len(read(tmp_path, data).leaves) == 3
    monkeypatch.setenv(limits.VARIABLE, "11999")
    with pytest.raises(ZooError, match="have more than 11,999"):
        read(tmp_path, data)


@pytest.mark.parametrize("arrays", [1, 16])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_a_legal_flax_file_takes_three_times_its_size_at_most(dtype: str, arrays: int, tmp_path: Path) -> None:
    data = craft.flax(dtype, 4 * MIB // arrays, arrays)
    (tmp_path / "x").write_bytes(data)
    assert peak(lambda: formats.read(tmp_path / "x")) < 3 * len(data) + FIXED


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
def test_fp8_is_widened_exactly(dtype: str, tmp_path: Path) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    result = read(tmp_path, craft.flax(dtype, 256)).leaves["a0",]
    expected = np.arange(256, dtype=np.uint8).view(getattr(ml_dtypes, dtype)).astype(np.float32)
    assert result.dtype == np.float16
    np.testing.assert_array_equal(result.astype(np.float32), expected)
    np.testing.assert_array_equal(np.signbit(result), np.signbit(expected))


# --- one error, and no other exception ---------------------------------------------------------------------------

TWO = {"a.npy": craft.npy(np.ones(3, np.float32)), "b.npy": craft.npy(np.ones(2, np.float32))}
HOSTILE: dict[str, tuple[bytes, str]] = {
    "pt: 65 axes": (craft.torch_file(1, 4, [1] * 65, [1] * 65), "65 axes"),
    "pt: 9 axes": (craft.torch_file(1, 4, [1] * 9, [1] * 9), "9 axes"),
    "pt: 64 axes": (craft.torch_file(1, 4, [1] * 64, [1] * 64), "64 axes"),
    "pt: an offset beyond the storage": (craft.torch_file(1, 4, [1], [1], start=2**62), "larger than its storage"),
    "pt: a stride beyond the storage": (craft.torch_file(1, 4, [2], [2**62]), "larger than its storage"),
    "pt: sizes whose product overflows": (craft.torch_file(1, 4, [2**62, 4], [0, 0]), "larger than its storage"),
    "flax: nested 17 deep": (craft.flax_deep(17), "nested too deeply"),
    "flax: nested 500 deep": (craft.flax_deep(500), "nested too deeply"),
    "flax: nested a million deep": (b"\x81\xa1a" * 1_000_000, "nested too deeply"),
    "flax: 9 axes": (craft.pack({"a": craft.flax_array([1] * 9)}), "9 axes"),
    "flax: 64 axes": (craft.pack({"a": craft.flax_array([1] * 64)}), "64 axes"),
    "flax: a size beyond numbers": (craft.pack({"a": craft.flax_array([2**63])}), "instead of"),
    "flax: an array in chunks": (craft.flax_chunked(2**40), "__msgpack_chunked_array__ contains bool"),
    "flax: an array inside an array's shape": (
        craft.pack({"a": craft.flax_array([craft.flax_array([1])])}),
        "another extension",
    ),
    "flax: 10,000 numbers": (craft.pack({f"k{i}": i for i in range(10_000)}), "k0 contains int"),
    "flax: many maps": (
        craft.pack({f"k{i}": {f"k{j}": 0 for j in range(200)} for i in range(200)}),
        "more than 40,000 values",
    ),
    "flax: a text of 2,000": (craft.pack({"k" * 2000: 0}), "a string of 2,000 bytes"),
    "flax: bytes as a leaf": (craft.pack({"a": bytes(5000)}), "contains memoryview"),
    "pickle: a key of a million": (
        b"\x80\x04}" + craft.text("k" * 1_000_000) + b"Ns.",
        "has 1,000,000 characters",
    ),
    "npz: 9 axes": (
        craft.archive({"a.npy": craft.npy(np.ones((1,) * 9, np.float32))}),
        "an unknown header",
    ),
    "npz: data before its directory": (craft.between_members(craft.archive(TWO), b"hidden"), "data between"),
    "npz: an archive after its end": (craft.archive(TWO) + craft.archive(TWO), "data between"),
    "npz: data before an archive": (craft.archive(TWO)[:40] + craft.archive(TWO), "data between"),
    "safetensors: 9 axes": (
        craft.safetensors({"a": {"dtype": "F32", "shape": [1] * 9, "data_offsets": [0, 4]}}, bytes(4)),
        "9 axes",
    ),
    "safetensors: a header of 3 MB": (craft.safetensors({"a": "x" * 3_000_000}, b""), "a header of 3,000,00"),
    "safetensors: a dtype that numpy lacks": (
        craft.safetensors({"a": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}, bytes(1)),
        "",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_is_one_error(case: str, tmp_path: Path) -> None:
    data, complaint = HOSTILE[case]
    error = refusal(tmp_path, data)
    assert complaint in error.message
    assert len(error.message) < 400


def test_the_stride_of_a_size_1_axis_is_ignored(tmp_path: Path) -> None:
    """torch also reads such a file: a stride of 2^62 has no effect on a single value."""
    source = read(tmp_path, craft.torch_file(1, 4, [1, 4], [2**62, 1]))
    assert source.leaves["k0",].tolist() == [[0, 0, 0, 0]]


# --- the limit ---------------------------------------------------------------------------------------------------


def test_the_limit_is_set_by_variable_argument_or_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(nested(theta("elo")))
    (tmp_path / "x").write_bytes(data)
    assert limits.max_bytes() == limits.DEFAULT_MAX_BYTES == 64 * MIB
    monkeypatch.setenv(limits.VARIABLE, str(len(data) - 1))
    with pytest.raises(ZooError, match="larger than") as error:
        formats.read(tmp_path / "x")
    assert limits.VARIABLE in error.value.hint
    assert "--max-bytes" in error.value.hint
    assert formats.read(tmp_path / "x", max_bytes=len(data)).bytes == len(data)
    with limits.allow(len(data)):
        assert formats.read(tmp_path / "x").bytes == len(data)
    assert limits.max_bytes() == len(data) - 1


@pytest.mark.parametrize("text", ["0", "-1", "1e9", "64M", str(2**63), "9" * 400, "9" * 5000, "١٢٣"])
def test_a_limit_that_is_not_a_number_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(limits.VARIABLE, text)
    with pytest.raises(ZooError, match=limits.VARIABLE) as error:
        limits.max_bytes()
    assert "from 1 to 9223372036854775807" in error.value.hint
    assert len(str(error.value)) < 200


@pytest.mark.parametrize("digits", [41, 309, 310, 400, 5000])
def test_a_long_number_is_quoted_by_its_digits(digits: int) -> None:
    for number in (10 ** (digits - 1), 10**digits - 1, -(10**digits - 1)):
        assert quoted(number) == f"a number of {digits:,} digits"


def test_the_largest_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(limits.VARIABLE, str(limits.MAX_LIMIT))
    assert limits.max_bytes() == limits.MAX_LIMIT
    with limits.allow(limits.MAX_LIMIT):
        assert limits.max_bytes() == limits.MAX_LIMIT


@pytest.mark.parametrize("value", [0, -1, True, 1.5, "1", 2**63, 10**400, 10**5000, -(10**5000)], ids=quoted)
def test_an_argument_that_is_not_a_number_is_refused(value: Any) -> None:
    with pytest.raises(ZooError, match="max_bytes is"), limits.allow(value):
        pass


def test_the_largest_published_checkpoint_fits_with_its_moments() -> None:
    published = 9_282_507
    assert 6 * published <= limits.DEFAULT_MAX_BYTES  # weights and two moments in float64, each with a float32 copy


# --- mutations: read or refused, in bounded memory, without running code -----------------------------------------

WATCHED = frozenset({"os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "pickle.find_class"})
RAN: list[str] = []
"""Audit events that indicate that a file ran code."""


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if event in WATCHED:
        RAN.append(event)


@pytest.fixture(scope="module")
def audit() -> None:
    sys.addaudithook(_audit)  # it cannot be removed, but it only records events


def read_or_refused(directory: Path, data: bytes) -> None:
    (directory / "mutated").write_bytes(data)
    RAN.clear()

    def either() -> None:
        with suppress(ZooError):
            formats.read(directory / "mutated")

    # A copy of the file, its unpacked content, its arrays, and texts and objects of at most its size.
    assert peak(either) < 8 * len(data) + 3 * LIMIT + 4 * MIB
    assert RAN == []


edges = st.sampled_from([0, 1, 2, 3, 8, 9, 64, 65, 127, 128, 255, 256, 2**31 - 1, 2**31, 2**32, 2**62, 2**63 - 1, -1])
sizes = st.one_of(st.integers(-2, 20), edges)


@pytest.mark.usefixtures("audit")
@settings(max_examples=80, derandomize=True, deadline=None)
@given(
    st.integers(1, 3),
    st.sampled_from([0, 1, 5, 4096]),
    st.lists(sizes, max_size=10),
    st.lists(sizes, max_size=10),
    st.sampled_from(["Float", "BFloat16", "Double"]),
    sizes,
)
def test_torch_files_of_any_shape(
    tmp_path_factory: pytest.TempPathFactory,
    tensors: int,
    count: int,
    shape: list[int],
    strides: list[int],
    kind: str,
    start: int,
) -> None:
    strides = (strides + [1] * len(shape))[: len(shape)] if count % 2 else strides
    data = craft.torch_file(tensors, count, shape, strides, kind=kind, start=start)
    read_or_refused(tmp_path_factory.getbasetemp(), data)


atoms = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(), st.text(max_size=5), st.binary(max_size=9)
)
payloads = st.one_of(
    st.binary(max_size=20),
    st.tuples(
        st.lists(st.one_of(sizes, atoms), max_size=10),
        st.sampled_from(["float32", "bfloat16", "float8_e5m2", "int8", "object", "f4", ""]),
        st.binary(max_size=16),
    ).map(craft.pack),
)
extensions = st.builds(craft.msgpack.ExtType, st.sampled_from([1, 1, 1, 3, 2, 77]), payloads)
trees = st.recursive(
    st.one_of(atoms, extensions),
    lambda children: st.one_of(
        st.dictionaries(st.one_of(st.text(max_size=4), st.sampled_from(["params", "gen_id", "step"])), children),
        st.lists(children, max_size=3),
    ),
    max_leaves=12,
)


@pytest.mark.usefixtures("audit")
@settings(max_examples=100, derandomize=True, deadline=None)
@given(trees, st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=2), st.integers(0, 2))
def test_any_msgpack(
    tmp_path_factory: pytest.TempPathFactory, tree: Any, changes: list[tuple[int, int]], cut: int
) -> None:
    data = bytearray(craft.pack({"params": tree, "gen_id": "", "step": 1} if cut else {"a": tree}))
    for at, byte in changes:
        data[at % len(data)] = byte
    read_or_refused(tmp_path_factory.getbasetemp(), bytes(data[: len(data) - cut + 1]))


@pytest.mark.usefixtures("audit")
@settings(max_examples=80, derandomize=True, deadline=None)
@given(
    st.dictionaries(
        st.text(max_size=3),
        st.fixed_dictionaries(
            {
                "dtype": st.sampled_from(["F32", "F64", "BF16", "F8_E4M3", "I8", "F4", "C64", "x"]),
                "shape": st.lists(sizes, max_size=10),
                "data_offsets": st.lists(st.one_of(st.integers(0, 16), edges), min_size=1, max_size=3),
            }
        ),
        max_size=3,
    ),
    st.integers(0, 24),
)
def test_any_safetensors(tmp_path_factory: pytest.TempPathFactory, entries: dict[str, Any], content: int) -> None:
    read_or_refused(tmp_path_factory.getbasetemp(), craft.safetensors(entries, bytes(content)))


PICKLE = craft.memoized(3, 256, code="f4")
NPZ = craft.archive(TWO)
PT = craft.torch_file(2, 16)
FLAX = encode({"params": nested(theta("adafac-mlp")), "gen_id": "x", "step": np.int64(7)})
SAFE = craft.safetensors({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, bytes(8))
SEEDS = {"pickle": PICKLE, "npz": NPZ, "pt": PT, "flax": FLAX, "safetensors": SAFE}
INTERESTING = [b"\xff", b"\x00", b"\x7f", b"\x80", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\0", b"9" * 8]


@pytest.mark.usefixtures("audit")
@pytest.mark.parametrize("seed", SEEDS)
def test_bytes_are_flipped_cut_copied_and_inserted(seed: str, tmp_path: Path) -> None:
    """200 mutations per format, with fixed seeds."""
    random = np.random.default_rng(list(seed.encode()))
    original = SEEDS[seed]
    for _ in range(200):
        data = bytearray(original)
        for _ in range(random.integers(1, 4)):
            at, other = random.integers(0, len(data), 2)
            match random.integers(0, 5):
                case 0:
                    data[at] ^= 1 << random.integers(0, 8)
                case 1:
                    value = INTERESTING[random.integers(0, len(INTERESTING))]
                    data[at : at + len(value)] = value
                case 2:
                    data[at:at] = data[other : other + random.integers(1, 60)]
                case 3:
                    del data[at : at + random.integers(1, 20)]
                case _:
                    data = data[: max(1, at)]
        read_or_refused(tmp_path, bytes(data))


def test_a_torch_file_reads_as_torch_reads_it(tmp_path: Path) -> None:
    """The seed of the mutations is a valid file."""
    torch = pytest.importorskip("torch")
    (tmp_path / "x.pt").write_bytes(PT)
    expected = torch.load(tmp_path / "x.pt", weights_only=True)
    ours = formats.read(tmp_path / "x.pt")
    assert {name: value.tolist() for name, value in expected.items()} == {
        "/".join(path): leaf.tolist() for path, leaf in ours.leaves.items()
    }


def test_every_seed_is_legal(tmp_path: Path) -> None:
    assert {seed: read(tmp_path, data).format for seed, data in SEEDS.items()} == {
        "pickle": "pickle",
        "npz": "npz",
        "pt": "pylo-torch",
        "flax": "flax-params",
        "safetensors": "pylo-safetensors",
    }
