"""The documentation site builds without warnings, loads nothing from elsewhere, and agrees with the code."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import families_docs
import pytest
import torch
import torch.distributed
from hub_double import HubDouble
from test_readme import ELSEWHERE, blocks
from torch.multiprocessing.spawn import spawn

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
sys.path.insert(0, str(DOCS))

hooks: Any = importlib.import_module("hooks")  # mkdocs finds it by its path

PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(DOCS.glob("*.md")), *sorted((ROOT / "tests").rglob("*.md"))]
LOADING = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "audio": "src"}
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(<?([^)>\s]+)>?\)")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site. Warnings are errors; a page that the navigation lacks is a warning.

    Not with ``--quiet``, which hides warnings from ``--strict`` too.
    """
    built = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(built)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not re.search(r"^(?!INFO)", done.stderr.strip(), re.MULTILINE), done.stderr
    return built


class Loads(HTMLParser):
    """Collects what a browser loads to show a page, and the page's links."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        result = {name: value or "" for name, value in attrs}
        self.anchors |= {result[name] for name in ("id", "name") if name in result}
        if tag in LOADING and LOADING[tag] in result:
            self.loaded.append(result[LOADING[tag]])
        if tag == "link" and result.get("rel") not in ("canonical", "next", "prev", "edit"):
            self.loaded.append(result["href"])
        if tag == "a" and "href" in result:
            self.links.append(result["href"])


def parsed(page: Path) -> Loads:
    parser = Loads()
    parser.feed(page.read_text(encoding="utf-8"))
    return parser


# --- the site -----------------------------------------------------------------------------------------------------


def test_the_site_loads_nothing_from_the_network(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 25
    for page in pages:
        elsewhere = [address for address in parsed(page).loaded if urlsplit(address).netloc]
        assert not elsewhere, f"{page.relative_to(site)} loads {elsewhere}"
    for style in site.rglob("*.css"):
        addresses = re.findall(r"(?:url\(|@import\s+)['\"]?((?:https?:)?//[^'\")]+)", style.read_text(encoding="utf-8"))
        assert not addresses, f"{style.relative_to(site)} loads {addresses}"


def test_links_within_the_site_resolve(site: Path) -> None:
    result = {page: parsed(page) for page in site.rglob("*.html")}
    broken = []
    for page, content in result.items():
        for href in content.links:
            parts = urlsplit(href)
            if parts.scheme or parts.netloc or page.name == "404.html":
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            target = target / "index.html" if target.is_dir() else target
            anchors = result[target].anchors if target in result else set()
            if not target.exists() or (parts.fragment and unquote(parts.fragment) not in anchors):
                broken.append(f"{page.relative_to(site)}: {href}")
    assert not broken


def test_docstrings_leave_no_foreign_markup(site: Path) -> None:
    for page in (site / "reference" / "api").rglob("*.html"):
        text = re.sub(r"<[^>]+>", "", page.read_text(encoding="utf-8"))
        assert not re.findall(r":(?:class|func|meth|mod|data|attr|exc):", text), page
        assert "``" not in text, page
        assert "&gt;&gt;&gt; <p>" not in text, page
        assert not re.search(r"\bSPEC\b", text), page  # neither a page of the site nor a file of the repository
        assert not re.findall(r"docs/[\w-]+\.md", text), page


def test_every_page_and_every_command_exists(site: Path) -> None:
    from pylo_zoo.cli import COMMANDS

    page = (site / "reference" / "cli" / "index.html").read_text(encoding="utf-8")
    for name in COMMANDS:
        assert f'id="pylo-zoo-{name}"' in page
    for name in hooks.API:
        assert (site / "reference" / "api" / name / "index.html").is_file()
    optim = (site / "reference" / "api" / "optim" / "index.html").read_text(encoding="utf-8")
    for name in hooks.exported("optim"):
        assert f'id="pylo_zoo.optim.{name}"' in optim


# --- the pages ----------------------------------------------------------------------------------------------------


def slugs(page: Path) -> set[str]:
    """The anchors of a page's headings, as forges and the site generate them."""
    results: set[str] = set()
    for heading in re.findall(r"^#+ +(.+?)\s*$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        results.add(re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", text).strip()))
    return results


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_and_anchors_resolve(page: Path) -> None:
    broken = []
    for target in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        parts = urlsplit(target)
        if parts.scheme:
            continue
        path = (page.parent / unquote(parts.path)).resolve() if parts.path else page
        if "reference" in Path(parts.path).parts[:1] and page.parent == DOCS:  # generated pages, checked above
            continue
        if not path.exists() or (parts.fragment and parts.fragment not in slugs(path)):
            broken.append(target)
    assert not broken


def test_the_families_page_is_current() -> None:
    page = families_docs.PAGE.read_text(encoding="utf-8")
    assert page == families_docs.update_page(page), "Run: python tests/families_docs.py"
    assert {*families_docs.CLASSES, "overview"} == {match[1] for match in families_docs.MARKS.findall(page)}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the repository."""
    shutil.copytree(ROOT, tmp_path / "tree", ignore=ELSEWHERE, symlinks=True)
    return tmp_path / "tree"


@pytest.mark.slow
def test_the_quickstart_runs(tree: Path, hub: HubDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (DOCS / "quickstart.md").read_text(encoding="utf-8").replace("ORG/", "org/")
    monkeypatch.chdir(tree)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    namespace: dict[str, Any] = {}
    for language, code in re.findall(r"^```(python|bash)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        if language == "python":
            exec(compile(code, "quickstart.md", "exec"), namespace)
            continue
        done = subprocess.run(
            ["bash", "-euxo", "pipefail", "-c", code],
            env={**hub.environment(tmp_path / "hf"), **os.environ, "HF_HUB_OFFLINE": "0", "PATH": path},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"


def test_the_home_page_runs() -> None:
    for code in blocks((DOCS / "index.md").read_text(encoding="utf-8"), "python"):
        exec(compile(code, "index.md", "exec"), {})


def _replica(rank: int, code: str, directory: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{directory}/meeting", rank=rank, world_size=2)
    namespace: dict[str, Any] = {}
    exec(compile(code, "distributed.md", "exec"), namespace)
    model = namespace["train"](rank, 2, steps=20)
    torch.save(torch.cat([p.detach().flatten() for p in model.parameters()]), f"{directory}/{rank}.pt")
    del model
    namespace.clear()  # the wrapped model before its group: in the other order the process sometimes aborted
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_replicas_stay_equal(tmp_path: Path) -> None:
    (code,) = blocks((DOCS / "distributed.md").read_text(encoding="utf-8"), "python")
    spawn(_replica, (code, str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert torch.equal(first, second)


# --- the messages -------------------------------------------------------------------------------------------------

TORCHS = ("got mixed torch.Tensor and DTensor",)
"""Messages on the page that come from other software."""


def texts() -> set[str]:
    """Every text in the code, with ``…`` for inserted values, and the next text in the same call."""
    results: set[str] = set()
    for path in (ROOT / "pylo_zoo").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            own = [_text(argument) for argument in node.args] if isinstance(node, ast.Call) else []
            results |= {*own, *(f"{one} {other}" for one, other in pairwise(own))}
            if isinstance(node, ast.expr):
                results.add(_text(node))
    return {text for text in results if text}


def _text(node: ast.AST) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.IfExp):
        return "…"
    if isinstance(node, ast.JoinedStr):
        return re.sub(
            "…+", "…", "".join(_text(part) if isinstance(part, ast.Constant) else "…" for part in node.values)
        )
    return ""


def test_messages_on_the_page_exist_in_the_code() -> None:
    messages = [line for block in blocks(troubleshooting(), "text") for line in block.splitlines()]
    known = texts()
    assert len(messages) > 30
    missing = [line for line in messages if line not in TORCHS and not any(_same(line, text) for text in known)]
    assert not missing


def _same(line: str, text: str) -> bool:
    """Whether ``line`` is ``text`` or its beginning; the page may spell out what the code inserts."""
    pattern = ".*".join(map(re.escape, text.split("…")))
    return text.startswith(line) or (len(text.replace("…", "")) > 15 and re.fullmatch(pattern, line) is not None)


def troubleshooting() -> str:
    return (DOCS / "troubleshooting.md").read_text(encoding="utf-8")


# --- docstrings ---------------------------------------------------------------------------------------------------


def public(module: Any) -> dict[str, Any]:
    """The public classes, functions and methods of a reference page's module, by dotted name."""
    names = getattr(module, "__all__", None) or [
        name for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__
    ]
    result: dict[str, Any] = {module.__name__: module}
    for name in names:
        value = getattr(module, name)
        if name.startswith("_") or not (inspect.isclass(value) or inspect.isfunction(value)):
            continue
        result[f"{module.__name__}.{name}"] = value
        fields = {field.name for field in dataclasses.fields(value)} if dataclasses.is_dataclass(value) else set()
        for member in set(vars(value)) - fields if inspect.isclass(value) else ():
            defined = inspect.getattr_static(value, member)
            if not member.startswith("_") and isinstance(defined, (property, classmethod, staticmethod)):
                result[f"{module.__name__}.{name}.{member}"] = getattr(value, member)
            elif not member.startswith("_") and inspect.isfunction(defined):
                result[f"{module.__name__}.{name}.{member}"] = defined
    return result


@pytest.mark.parametrize("name", list(hooks.public_modules()))
def test_public_names_have_docstrings(name: str) -> None:
    """A method may inherit the docstring of its base."""
    bare = [path for path, value in public(importlib.import_module(name)).items() if not inspect.getdoc(value)]
    inherited = {path for path in bare if _documented_above(importlib.import_module(name), path)}
    assert set(bare) <= inherited


def _documented_above(module: Any, path: str) -> bool:
    owner, _, member = path.removeprefix(f"{module.__name__}.").partition(".")
    return bool(member) and any(
        inspect.getdoc(vars(base)[member]) for base in getattr(module, owner).__mro__[1:] if member in vars(base)
    )
