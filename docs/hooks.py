"""Generated parts of the site: the command line's help, the Python reference, links to files of the repository.

mkdocs calls the functions named ``on_…`` at each build (mkdocs.yml).
"""

from __future__ import annotations

import ast
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "pylo_zoo"
API: dict[str, tuple[str, ...]] = {
    "pylo_zoo": ("",),
    "optim": ("optim", "optim.contract", "optim.lstm_controlled"),
    "weights": ("weights",),
    "artifact": ("artifact",),
    "registry": ("registry",),
    "convert": ("convert",),
    "parity": ("parity",),
    "fetch": ("fetch",),
    "hub": ("hub",),
    "publish": ("publish",),
    "tasks": ("experiments.tasks",),
    "train": tuple(f"experiments.train{module}" for module in ("", ".loop", ".recipes", ".schedules")),
    "ops": (
        "ops",
        "ops.layout",
        "ops.accumulators",
        "ops.features",
        "ops.conditioning",
        "ops.gradients",
        "ops.mlp",
        "ops.adam",
        "ops.muon",
        "ops.orthogonalize",
        "ops.iteration",
        "ops.precision",
        "ops.product",
        "ops.trace",
    ),
}
"""Pages of the Python reference, with the modules of ``pylo_zoo`` on each."""

BASES = {"optim.contract": ["ZooOptimizer"], "optim.lstm_controlled": ["LSTMControlledOptimizer"]}
"""Modules of which the reference shows only the class that other docstrings refer to."""

log = logging.getLogger("mkdocs.hooks.pylo_zoo")


# --- events of mkdocs ---------------------------------------------------------------------------------------------


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages."""
    files.append(File.generated(config, "reference/cli.md", content=command_line()))
    for page, modules in API.items():
        files.append(File.generated(config, f"reference/api/{page}.md", content=reference(page, modules)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turn links that leave docs/ into links to the repository, or into the path if ``repo_url`` is not set."""

    def target(match: re.Match[str]) -> str:
        text, path = match.groups()
        if not (ROOT / "docs" / path).exists():
            log.warning("%s links to %s, which does not exist.", page.file.src_uri, path)
        inside = (ROOT / "docs" / path).resolve().relative_to(ROOT.resolve()).as_posix()
        address = (config["repo_url"] or "").rstrip("/")
        if address:
            return f"[{text}]({address}/blob/main/{inside})"
        return f"`{inside}`" if text.strip("`") in (inside, Path(inside).name) else f"{text} (`{inside}`)"

    return re.sub(r"\[([^\]]+)\]\((\.\./[^)#]+)\)", target, markdown)


# --- the command line ---------------------------------------------------------------------------------------------


def command_line() -> str:
    """The page with the help of every command, as a terminal of 80 columns shows it."""
    parts = [
        "# Command line",
        "The output of `--help`. Every command accepts `--json`. Results go to stdout, "
        "everything else to stderr. `PYLO_ZOO_DEBUG=1` adds the traceback of a failure. See also "
        "[exit status](../troubleshooting.md#exit-status) and [the environment variables]"
        "(../sources.md#environment-variables) of the cache, the lock file and the Hub.",
    ]
    for name, text in helps().items():
        parts += [f"## {name}", f"```text\n{text}\n```"]
    return "\n\n".join(parts) + "\n"


def helps() -> dict[str, str]:
    """The help text of the program and of each command, by command line."""
    import typer.main

    from pylo_zoo.cli import app

    saved = {name: os.environ.get(name) for name in ("COLUMNS", "TERMINAL_WIDTH")}
    os.environ |= dict.fromkeys(saved, "80")
    try:
        group: Any = typer.main.get_command(app)
        with group.make_context("pylo-zoo", ["list"], resilient_parsing=True) as context:
            texts = {"pylo-zoo": group.get_help(context)}
            for name, command in group.commands.items():
                with command.make_context(name, [], parent=context, resilient_parsing=True) as inner:
                    texts[f"pylo-zoo {name}"] = command.get_help(inner)
    finally:
        for name, value in saved.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    return {name: "\n".join(line.rstrip() for line in text.strip().splitlines()) for name, text in texts.items()}


# --- the Python reference -----------------------------------------------------------------------------------------


def reference(page: str, modules: tuple[str, ...]) -> str:
    """A page of the reference: its module, and one section per submodule."""
    parts = [f"# {dotted(modules[0])}"]
    for number, module in enumerate(modules):
        if number:
            parts.append(f"## {dotted(module)}")
        options = [f"heading_level: {3 if number else 2}"]
        if members := exported(module):
            options.append(f"members: [{', '.join(members)}]")
        elif len(modules) > 1 and not number:
            options.append("members: false")
        parts.append("\n".join([f"::: {dotted(module)}", "    options:", *(f"      {option}" for option in options)]))
    return "\n\n".join(parts) + "\n"


def dotted(module: str) -> str:
    """The dotted name: ``optim`` becomes ``pylo_zoo.optim``."""
    return f"pylo_zoo.{module}" if module else "pylo_zoo"


def source(module: str) -> Path:
    """The file of a module."""
    path = PACKAGE.joinpath(*module.split(".")) if module else PACKAGE
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def exported(module: str) -> list[str]:
    """The public names in ``__all__``, in its order; empty if the module has no ``__all__``.

    A function with the name of a submodule (``optim.muon``) is omitted, because griffe cannot distinguish the two. The
    reference shows it where it is defined.
    """
    if module in BASES:
        return BASES[module]
    for node in ast.parse(source(module).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and any(isinstance(to, ast.Name) and to.id == "__all__" for to in node.targets):
            names = ast.literal_eval(node.value)
            return [n for n in names if not n.startswith("_") and not source(module).with_name(f"{n}.py").is_file()]
    return []


def public_modules() -> Iterator[str]:
    """The dotted name of every module in the reference."""
    for modules in API.values():
        yield from map(dotted, modules)
