"""README.md is executable: this file runs what it tells a newcomer to type.

Every ``bash`` block runs, line by line in one shell, in a copy of the repository; of a ``console`` block only the lines
after ``$``. Lines that fetch or install (`git clone`, `cd`, `pip install`) are skipped, and a `make` target must only
exist, since CI runs those. ``python`` blocks run too. Other info strings (``text``, ``sh``) are ignored.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
SKIPPED = ("git clone", "cd ", "pip install", "make", "#")
ELSEWHERE = shutil.ignore_patterns(
    ".git", ".venv*", "zoo", "site", "build", "dist", "*.egg-info", "__pycache__", ".*_cache"
)

pytestmark = pytest.mark.skipif(not README.is_file(), reason="README.md does not exist")


def blocks(text: str, *languages: str) -> list[str]:
    """The contents of the fenced blocks whose info string is one of ``languages``."""
    fence = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
    return [body for language, body in fence.findall(text) if language in languages]


def commands(text: str) -> list[list[str]]:
    """The commands in each block, continued lines joined."""
    shell = [body.replace("\\\n", " ").splitlines() for body in blocks(text, "bash")]
    console = [
        [line[2:] for line in body.replace("\\\n", " ").splitlines() if line.startswith("$ ")]
        for body in blocks(text, "console")
    ]
    return [[line.removeprefix("$ ").strip() for line in lines if line.strip()] for lines in (*shell, *console)]


def readme() -> str:
    return README.read_text(encoding="utf-8")


def test_commands_run(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    shutil.copytree(ROOT, tree, ignore=ELSEWHERE, symlinks=True)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    for lines in commands(readme()):
        script = "\n".join(line for line in lines if not line.startswith(SKIPPED))
        done = subprocess.run(
            ["bash", "-euxo", "pipefail", "-c", script],
            cwd=tree,
            env=os.environ | {"PATH": path},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    used = {
        target
        for lines in commands(readme())
        for line in lines
        if line.startswith("make ")
        for target in line.partition("#")[0].split()[1:]
    }
    assert used <= targets


@pytest.mark.parametrize("code", blocks(readme(), "python") if README.is_file() else [])
def test_python_runs(code: str) -> None:
    exec(compile(code, "README.md", "exec"), {})


def test_blocks_are_parsed() -> None:
    shell = "```bash\nmake demo  # two\npylo-zoo convert celo \\\n  --out x\n```\n"
    console = "```console\n$ pylo-zoo list\nname\n```\n"
    other = "```sh\nno\n```\n"
    assert commands(shell + other + console) == [
        ["make demo  # two", "pylo-zoo convert celo    --out x"],
        ["pylo-zoo list"],
    ]
