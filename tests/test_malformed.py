"""Malformed input of every command: exit status 1 or 2, one short error line, and never "a bug in pylo-zoo"."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import Capture, report_of, run
from trees import write_theta

from pylo_zoo import artifact, cli, registry
from pylo_zoo.convert import convert, export
from pylo_zoo.errors import MAX_LENGTH, QUOTED, ZooError, quoted
from pylo_zoo.experiments.train.setup import read_setup
from pylo_zoo.fetch import lockfile
from pylo_zoo.pipeline import build_artifact
from pylo_zoo.report.reading import read_report

DIGITS = "9" * 400
HUGE = 10**400
LONG = "x" * 100_000
ESCAPES = "\x1b]0;evil\x07\x1b[31m"
VALUES: dict[str, Any] = {
    "null": None,
    "number": 5,
    "negative": -1,
    "text": "x",
    "list": [],
    "nested": [[[[[[[[[[[[[[1]]]]]]]]]]]]]],
    "object": {},
    "infinite": float("inf"),
    "nan": float("nan"),
    "huge": HUGE,
    "true": True,
    "long": LONG,
    "surrogate": "\ud800",
    "escapes": ESCAPES,
    "texts": ["x"] * 3,
}
ALLOWED = 500


@pytest.fixture(autouse=True)
def in_an_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run_and_check(capsys: Capture, *argv: object, fails: bool = False) -> str:
    """Run a command; return its output, which must be a short error if the command fails."""
    status = run(*argv)
    out, err = capsys.readouterr()
    assert status in ((1, 2) if fails else (0, 1, 2)), err
    assert "bug in pylo-zoo" not in err, err
    assert "Traceback" not in err
    errors = [line for line in err.splitlines() if line.startswith("Error")]
    assert len(errors) == (status != 0), err
    assert all(len(line) <= ALLOWED for line in err.splitlines()), max(map(len, err.splitlines()))
    assert not {sign for sign in out + err if not sign.isprintable()} - {"\n"}
    return err


def refusal(read: Callable[[Any], object], path: Any) -> str:
    """The error that reading raises, empty without one. Any other exception fails the test."""
    try:
        read(path)
    except ZooError as error:
        return str(error)
    return ""


# --- the helper ------------------------------------------------------------------------------------------------------


def bomb(width: int = 10, depth: int = 40) -> Any:
    value: Any = "lol"
    for _ in range(depth):
        value = [value] * width
    return value


def recursive() -> Any:
    value: list[Any] = [1]
    value.append(value)
    return value


class RaisesInRepr:
    def __repr__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    "value",
    [*VALUES.values(), 10**10_000, bomb(), recursive(), RaisesInRepr(), b"\xff" * 9999, {"a": bomb()}],
    ids=type,
)
def test_a_quoted_value_is_short_and_printable(value: Any) -> None:
    text = quoted(value)
    assert text.isprintable()
    assert 0 < len(text) <= QUOTED


def test_short_values_are_quoted_as_python_writes_them() -> None:
    values = [None, True, 5, -1.5, "x", [], {}, [0.9, 0.99], (1, 2), {"a": [1]}]
    assert [quoted(value) for value in values] == [repr(value) for value in values]


@pytest.mark.parametrize("text", [LONG, ESCAPES * 500, "a\nb", "\u202e", "\ud800" * 400])
def test_an_error_is_one_short_printable_line_for_python_too(text: str) -> None:
    error = ZooError(f"{text} ends here.", text)
    for line in (error.message, error.hint):
        assert line.isprintable()
        assert len(line) <= MAX_LENGTH
    assert error.message.endswith("ends here.")
    assert str(error) == f"{error.message} {error.hint}"


# --- config.json and parity.json -------------------------------------------------------------------------------------


def paths(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every field; of a list only the first entry."""
    if at:
        yield at
    if isinstance(value, dict):
        for key, each in value.items():
            yield from paths(each, (*at, key))
    elif isinstance(value, list) and value:
        yield from paths(value[0], (*at, 0))


def replaced(content: Any, at: tuple[Any, ...], value: Any) -> Any:
    """A copy of ``content`` with another value in one place."""
    copy = json.loads(json.dumps(content))
    node = copy
    for key in at[:-1]:
        node = node[key]
    node[at[-1]] = value
    return copy


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact whose ``source.layout`` and ``parity.json`` have every field."""
    from parity_reports import failing, passing

    folder = tmp_path_factory.mktemp("whole")
    converted = build_artifact("elo", source=write_theta(folder, "elo"), out=folder / "a", verify=False).artifact
    report = {**passing(converted.name).to_dict(), "source": report_of(converted, 0).to_dict()["source"]}
    report |= {"fingerprint": converted.fingerprint, "explanation": failing().to_dict()["explanation"]}
    artifact.write_parity(folder / "a", {**report, "defaults": dict(converted.defaults)})
    config = json.loads((folder / "a" / "config.json").read_text())
    config["source"]["layout"] |= {
        "cast": {"to": "float32", "from": ["a"]},
        "nonfinite": ["a"],
        "ignored": ["a"],
        "supplied": {"rms_decays": [0.1]},
        "keys": ["params", "gen_id", "step"],
        "header": {"gen_id": "x", "step": {"ext": 1, "dtype": "int32", "value": 3}},
        "files": ["a"],
    }
    (folder / "a" / "config.json").write_text(json.dumps(config))
    return folder / "a"


def fields(name: str) -> list[tuple[Any, ...]]:
    """The fields of the file ``name`` of an artifact like :func:`whole`, in order; known before one exists."""
    if name == "parity.json":
        from parity_reports import failing, passing

        report = {**passing().to_dict(), "defaults": {"lr": 1.0}, "explanation": failing().to_dict()["explanation"]}
        return list(paths(report))
    converted = convert("velo-sample").config()
    layout = ("container", "leaves", "keys", "header", "files", "exact", "cast", "nonfinite", "ignored", "supplied")
    inner = [("cast", "to"), ("cast", "from"), ("cast", "from", 0), ("header", "step"), ("header", "step", "ext")]
    inner += [("header", "step", "dtype"), ("header", "step", "value"), ("supplied", "rms_decays"), ("leaves", 0)]
    inner += [("leaves", 0, 0), ("nonfinite", 0), ("supplied", "rms_decays", 0), ("keys", 0), ("files", 0)]
    plain = [key for key in converted["source"] if key != "layout"]
    result = [(key,) for key in converted] + [("source", key) for key in (*plain, "layout")]
    result += [("source", "layout", key) for key in layout] + [("source", "layout", *key) for key in inner]
    result += [("architecture", "hidden_size"), ("architecture", "hidden_layers"), ("behavior", "exp_mult")]
    result += [("behavior", "initial_momentum_decays"), ("behavior", "initial_momentum_decays", 0), ("defaults", "lr")]
    return [*result, ("converter", "version")]


def write_spoiled(whole: Path, tmp_path: Path, name: str, at: tuple[Any, ...], value: Any) -> Path:
    folder = tmp_path / "a"
    folder.mkdir()
    for path in whole.iterdir():
        content = json.loads(path.read_text()) if path.name == name else None
        data = path.read_bytes() if content is None else json.dumps(replaced(content, at, value)).encode()
        (folder / path.name).write_bytes(data)
    return folder


PLACES = [pytest.param(at, id=".".join(map(str, at))) for at in fields("config.json")]
REPORT_PLACES = [pytest.param(at, id=".".join(map(str, at))) for at in fields("parity.json")]


def export_artifact(folder: Path) -> bytes:
    return export(artifact.read(folder))


@pytest.mark.parametrize("at", PLACES)
def test_every_field_of_a_config_with_every_wrong_value(
    at: tuple[Any, ...], whole: Path, capsys: Capture, tmp_path: Path
) -> None:
    folder = write_spoiled(whole, tmp_path, "config.json", at, None)
    content = json.loads((whole / "config.json").read_text())
    for label, value in VALUES.items():
        (folder / "config.json").write_text(json.dumps(replaced(content, at, value)))
        assert refusal(export_artifact, folder).isprintable(), label
    for label in ("number", "long"):
        (folder / "config.json").write_text(json.dumps(replaced(content, at, VALUES[label])))
        run_and_check(capsys, "info", folder)


@pytest.mark.parametrize("at", REPORT_PLACES)
def test_every_field_of_a_report_with_every_wrong_value(at: tuple[Any, ...], whole: Path) -> None:
    content = json.loads((whole / "parity.json").read_text())
    for label, value in VALUES.items():
        text = json.dumps(replaced(content, at, value))
        error = refusal(lambda text: str(read_report(json.loads(text)).to_dict()), text)
        assert error.isprintable(), label
        assert len(error) <= 2 * MAX_LENGTH, label


@pytest.mark.parametrize("at", [("status",), ("leaves",), ("source",), ("name",), ("fingerprint",), ("checks",)])
def test_commands_with_a_wrong_report(at: tuple[Any, ...], whole: Path, capsys: Capture, tmp_path: Path) -> None:
    folder = write_spoiled(whole, tmp_path, "parity.json", at, None)
    content = json.loads((whole / "parity.json").read_text())
    for label in ("null", "number", "huge", "long", "list"):
        (folder / "parity.json").write_text(json.dumps(replaced(content, at, VALUES[label])))
        run_and_check(capsys, "info", folder)
        run_and_check(capsys, "pull", folder, "--out", "copy", "--force", "-q")


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (5, " is 5"),
        ("x", " is 'x'"),
        ([], " is []"),
        (True, " is True"),
        ({"to": "float32"}, ": from missing"),
        ({"to": 1, "from": ["a"]}, ".to is 1"),
        ({"to": "float32", "from": ["a", 2]}, ".from[1] is 2"),
    ],
)
def test_a_cast_of_a_wrong_type_is_named(
    value: Any, problem: str, whole: Path, capsys: Capture, tmp_path: Path
) -> None:
    folder = write_spoiled(whole, tmp_path, "config.json", ("source", "layout", "cast"), value)
    error = run_and_check(capsys, "export", folder, "--out", "x", fails=True)
    assert f"config.json: source.layout.cast{problem}" in error


# --- YAML ------------------------------------------------------------------------------------------------------------

LAUGHS = "[&a [x,x,x,x,x,x,x,x,x]," + "".join(
    f"&{b} [*{a},*{a},*{a},*{a},*{a},*{a},*{a},*{a},*{a}]," for a, b in zip("abcdefghi", "bcdefghij", strict=True)
)
YAML: dict[str, str] = {
    "recursive list": "&a [1,*a]",
    "recursive mapping": "&a {b: *a}",
    "recursive key": "&a {*a : 1}",
    "billion laughs": f"{LAUGHS}*j]",
    "billion laughs as a key": f"{{? {LAUGHS}*j] : 1}}",
    "merged laughs": "[&a {b: 1}, "
    + "".join(f"&{b} {{<<: [*{a}, *{a}], {b}: 1}}," for a, b in zip("abcdefgh", "bcdefghi", strict=True))
    + "*i]",
    "merge of a number": "{<<: 1}",
    "merge of itself": "&a {<<: *a}",
    "unknown alias": "*unknown",
    "deep": "[" * 1_000,
    "deep and closed": "[" * 500 + "]" * 500,
    "400 digits": DIGITS,
    "400 digits in a list": f"[{DIGITS}, 1, 2]",
    "5000 digits": "9" * 5_000,
    "5000 hexadecimal digits": "0x" + "f" * 5_000,
    "infinite": ".inf",
    "nan": "[.nan, .nan, .nan]",
    "1e400": "1e400",
    "a date": "2020-01-01",
    "an impossible date": "2020-13-45",
    "an impossible time": "2020-01-01 99:99:99",
    "a set": "!!set {a, b}",
    "ordered": "!!omap [a: 1]",
    "binary": "!!binary Zm9v",
    "damaged binary": "!!binary \u00e9",
    "python": "!!python/object/apply:os.getcwd []",
    "an unknown tag": "!x 1",
    "int of a text": "!!int x",
    "float of a list": "!!float [1]",
    "bool of a text": "!!bool x",
    "sexagesimal": "1:99:99",
    "keys that are not strings": "{1: 2, null: 3, 2020-01-01: 4}",
    "a key that is a list": "{[1]: 2}",
    "two documents": "1\n--- 2",
    "directive": "%YAML 9.9\n--- 1",
    "nothing": "",
    "a tab": "\t",
    "a control character": "\x1b[31m",
    "a surrogate": '"\\ud800"',
    "not UTF-8": "\udcff",
    "long": LONG,
    "very long": "x" * 2_000_000,
}


@pytest.mark.parametrize("case", YAML)
def test_settings(case: str, capsys: Capture, tmp_path: Path) -> None:
    source = write_theta(tmp_path, "elo")
    for field in ("exp_mult", "rms_decays", "unknown"):
        words = ["convert", "elo", "--source", source, "--no-verify", "--set", f"{field}={YAML[case]}"]
        run_and_check(capsys, *words, fails=True)


@pytest.mark.parametrize("case", YAML)
def test_options_of_a_task(case: str, capsys: Capture) -> None:
    words = ["train", "quadratic", "--steps", "1", "--set", f"size={YAML[case]}", "--out", "run"]
    run_and_check(capsys, *words, fails=True)


@pytest.mark.parametrize("case", [case for case in YAML if case not in ("nothing", "not UTF-8")])
def test_registries(case: str, tmp_path: Path) -> None:
    for place in ("{}", "celo: {}", "celo: {{family: {}}}", "celo: {{behavior: {}}}"):
        path = tmp_path / f"{len(place)}.yaml"
        path.write_text(place.format(YAML[case]), encoding="utf-8", errors="surrogatepass")
        with pytest.raises(ZooError) as error:
            registry.load_registry(path)
        assert len(str(error.value)) <= 2 * MAX_LENGTH


ENTRY: dict[str, Any] = {
    "family": "elo",
    "summary": "text",
    "license": "MIT",
    "trained": True,
    "notes": "text",
    "sources": [{"uri": "hf://a/b/c", "format": "flax-msgpack", "bytes": 3, "sha256": "a" * 64}],
    "architecture": {"hidden_size": 4, "hidden_layers": 2},
    "behavior": {"exp_mult": 0.1, "initial_momentum_decays": [0.9, 0.99, 0.999]},
    "paper": {"arxiv": "2501.12670", "title": "text"},
    "defaults": {"lr": 1.0},
    "artifact": {
        "uri": f"hf://a/b@{'a' * 40}",
        "sha256": {"config.json": "a" * 64, "model.safetensors": "b" * 64},
    },
}


@pytest.mark.parametrize("at", list(paths(ENTRY)), ids=lambda at: ".".join(map(str, at)))
def test_every_field_of_a_registry(at: tuple[Any, ...], tmp_path: Path) -> None:
    path = tmp_path / "registry.yaml"
    for label, value in VALUES.items():
        path.write_text(
            json.dumps({"mine": replaced(ENTRY, at, value)}).replace("NaN", ".nan").replace("Infinity", ".inf")
        )
        registry._load.cache_clear()
        error = refusal(registry.load_registry, path)
        assert error.isprintable(), label
        assert len(error) <= 2 * MAX_LENGTH, label


def test_a_number_beyond_float32_is_not_a_decay(capsys: Capture, tmp_path: Path) -> None:
    words = ["convert", "adafac-mlp", "--source", write_theta(tmp_path, "elo"), "--no-verify"]
    run_and_check(capsys, *words, "--set", "rms_decays=[1e39]", fails=True)


# --- an untrusted registry -------------------------------------------------------------------------------------------


def test_escapes_in_a_registry_are_neutralized(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = json.dumps(f"{ESCAPES} words\nmore\u202e")
    path = tmp_path / "registry.yaml"
    entry = {**ENTRY, "paper": {"arxiv": "2501.12670", "title": "TEXT"}, "summary": "TEXT", "license": "TEXT"}
    entry = {**entry, "notes": "TEXT"}
    path.write_text(json.dumps({"mine": entry}).replace('"TEXT"', words))
    entries = registry.load_registry(path)
    monkeypatch.setattr(registry, "load_registry", lambda path=None: entries)
    for argv in (["list"], ["list", "-q"], ["list", "--json"], ["info", "mine"], ["info", "mine", "--json"]):
        run_and_check(capsys, *argv)
    run("info", "mine", "--json")
    shown = json.loads(capsys.readouterr().out)
    assert shown["summary"] == json.loads(words), "JSON escapes the exact text"


# --- zoo.lock --------------------------------------------------------------------------------------------------------

LOCK = {
    "version": lockfile.VERSION,
    "files": {"hf://a/b/c": {"sha256": "a" * 64, "bytes": 3, "date": "2026-01-01"}},
    "repositories": {"hf://a/b": {"commit": "a" * 40, "files": {"config.json": "a" * 64}, "date": "2026-01-01"}},
}


@pytest.mark.parametrize("at", list(paths(LOCK)), ids=lambda at: ".".join(map(str, at)))
def test_every_field_of_a_lock_file(at: tuple[Any, ...], tmp_path: Path) -> None:
    path = tmp_path / "zoo.lock"
    for value in VALUES.values():
        path.write_text(json.dumps(replaced(LOCK, at, value)))
        assert refusal(lockfile.read_all, path).isprintable()


# --- run.json ---------------------------------------------------------------------------------------------------------


def test_every_field_of_a_run(capsys: Capture, tmp_path: Path) -> None:
    run_and_check(capsys, "train", "quadratic", "--set", "size=4", "--steps", "2", "--out", "run", "-q")
    path = Path("run", "run.json")
    content = json.loads(path.read_text())
    for at in paths(content):
        for value in VALUES.values():
            path.write_text(json.dumps(replaced(content, at, value)))
            assert refusal(read_setup, Path("run")).isprintable()
        if at[0] == "asked" or len(at) == 1:
            for label in ("text",):
                path.write_text(json.dumps(replaced(content, at, VALUES[label])))
                run_and_check(capsys, "train", "--resume", "run", "-q")


# --- the command line ------------------------------------------------------------------------------------------------

COMMANDS: dict[str, list[str]] = {
    "list": [],
    "info": ["velo-sample"],
    "inspect": ["theta.state"],
    "convert": ["elo", "--source", "theta.state", "--no-verify"],
    "export": ["a"],
    "verify": ["a", "--replay"],
    "pull": ["a"],
    "publish": ["a", "--repo-id", "org/name", "--dry-run"],
    "train": ["quadratic"],
    "compare": ["quadratic"],
    "bench": [],
}


def options() -> Iterator[tuple[str, str]]:
    """Every option that takes a value, by command."""
    from typer.main import get_command

    group: Any = get_command(cli.app)
    for name, command in group.commands.items():
        for parameter in command.params:
            if parameter.opts[0].startswith("-") and not getattr(parameter, "is_flag", False):
                yield name, next(option for option in parameter.opts if option.startswith("--"))


def test_every_command_is_covered() -> None:
    assert COMMANDS.keys() == cli.COMMANDS.keys()


WORDS = [
    DIGITS,
    f"-{DIGITS}",
    "1e400",
    "nan",
    "",
    "\udcff",
    "a\udcff/b",
    ESCAPES,
    LONG,
    "hf://",
    "hf://\udcff",
    "=",
    ",",
]
FREE = {"--set", "--title", "--summary", "--license", "--message", "--token"}


@pytest.mark.parametrize(("command", "option"), list(options()), ids=lambda each: each)
def test_every_option_of_every_command_with_every_malformed_word(
    command: str, option: str, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pylo_zoo.experiments.train.loop.train", stop)
    monkeypatch.setattr("pylo_zoo.experiments.compare.running.run_all", stop)
    monkeypatch.setattr("pylo_zoo.experiments.bench.bench", stop)
    write_theta(tmp_path, "elo")
    assert run("convert", "elo", "--source", "theta.state", "--no-verify", "--out", "a") == 0
    capsys.readouterr()
    for word in WORDS:
        run_and_check(capsys, command, *COMMANDS[command], f"{option}={word}")


def stop(*arguments: Any, **options: Any) -> Any:
    raise ZooError("The test stops here.", "It is about what comes before.")


@pytest.mark.parametrize("command", [command for command in COMMANDS if command not in ("list", "bench")])
def test_every_argument_of_every_command_with_every_malformed_word(command: str, capsys: Capture) -> None:
    for word in WORDS:
        rest = ["--repo-id", "org/name", "--dry-run"] if command == "publish" else []
        run_and_check(capsys, command, *rest, "--", word, fails=True)
