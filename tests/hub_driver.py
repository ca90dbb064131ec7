"""A process that publishes and pulls in forked children, for tests that kill these children.

Importing takes seconds and forking does not, so the imports happen once. The process reads one JSON object per line:
``{"start": JOB}`` is answered with the child's process id, ``{"wait": ID}`` with the signal that ended the child (or 0)
and its output. As a script it takes the double's address: ``hub_driver.py URL``.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

HERE = Path(__file__)
IMPORTED = (
    "huggingface_hub.file_download",
    "huggingface_hub.hf_api",
    "hub_client",
    "hub_invariants",
    "jinja2",
    "pylo_zoo.publish.push",
    "pylo_zoo.weights",
)
"""Imported once, so that children need not import it."""


@dataclass(frozen=True)
class Job:
    """A child's job.

    Attributes:
        what: "publish" or "pull".
        home: ``PYLO_ZOO_HOME``; ``HOME-hf`` is huggingface_hub's cache and ``HOME.json`` the child's output.
        directory: the artifact to publish.
        dies_at: the number of the disk change before which the child kills itself; 0 for never.
        dies_on: the same by name: a regular expression of function and path.
    """

    what: str
    home: str
    directory: str = ""
    dies_at: int = 0
    dies_on: str = ""


class Driver:
    """A test's handle of the process."""

    def __init__(self, url: str) -> None:
        command = [sys.executable, "-W", "ignore", str(HERE), url]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def _request(self, **line: Any) -> Any:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(line) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def start(self, job: Job) -> int:
        """Start a child; return its process id."""
        return self._request(start=asdict(job))

    def wait(self, child: int) -> tuple[int, dict[str, Any]]:
        """Wait for a child; return its signal (or 0) and its output, empty if it was killed."""
        ended, output = self._request(wait=child)
        return ended, output

    def close(self) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


# --- the process -------------------------------------------------------------------------------------------------


def main(url: str) -> None:
    for module in IMPORTED:
        importlib.import_module(module)
    importlib.import_module("torch").set_num_threads(1)
    jobs: dict[int, Job] = {}
    for text in sys.stdin:
        line = json.loads(text)
        if "start" in line:
            job = Job(**line["start"])
            child = os.fork()
            if not child:
                os._exit(_child(url, job))
            jobs[child] = job
            answer: Any = child
        else:
            _, status = os.waitpid(line["wait"], 0)
            output_file = Path(jobs[line["wait"]].home + ".json")
            output = json.loads(output_file.read_text()) if output_file.exists() else {}
            output_file.unlink(missing_ok=True)
            answer = [os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0, output]
        print(json.dumps(answer), flush=True)


def _child(url: str, job: Job) -> int:
    import pytest
    from hub_client import connect
    from hub_double import TOKEN, HubDouble

    from pylo_zoo.errors import ZooError

    hub = type("Address", (), {"url": url, "sleeps": []})()
    connect(cast(HubDouble, hub), pytest.MonkeyPatch(), Path(f"{job.home}-hf"))
    os.environ["PYLO_ZOO_HOME"], os.environ["HF_TOKEN"] = job.home, TOKEN
    output: dict[str, Any] = {"messages": []}
    try:
        _kill_before_change(job)
        output |= {"publish": _publish, "pull": _pull}[job.what](job, output["messages"].append)
    except ZooError as error:
        output["error"] = error.message
    except BaseException as error:
        output["error"] = repr(error)
    Path(job.home + ".json").write_text(json.dumps(output))
    return 0


def _kill_before_change(job: Job) -> None:
    """Kill this process before a selected change to the disk."""
    count = 0

    def watch(holder: Any, name: str) -> None:
        true = getattr(holder, name)

        def watched(*arguments: Any, **named: Any) -> Any:
            nonlocal count
            count += 1
            if count == job.dies_at or (job.dies_on and re.search(job.dies_on, f"{name} {arguments[0]}")):
                os.kill(os.getpid(), signal.SIGKILL)
            return true(*arguments, **named)

        setattr(holder, name, watched)

    if job.dies_at or job.dies_on:
        for name in ("write", "replace", "rename", "fsync", "mkdir", "unlink", "rmdir"):
            watch(os, name)
        for holder, name in ((shutil, "copyfile"), (Path, "write_bytes"), (Path, "write_text")):
            watch(holder, name)


def _publish(job: Job, notify: Callable[[str], None]) -> dict[str, Any]:
    from hub_invariants import NAME, TAG

    from pylo_zoo.fetch import Access
    from pylo_zoo.hub import Repository
    from pylo_zoo.publish import push
    from pylo_zoo.publish.plan import prepare

    plan = prepare(job.directory, Repository(NAME), license="MIT", allow_unverified=True)
    done = push.send(plan, push.Options(tag=TAG), Access(progress=False, notify=notify))
    return {"commit": done.commit}


def _pull(job: Job, notify: Callable[[str], None]) -> dict[str, Any]:
    from hub_invariants import NAME

    from pylo_zoo import weights
    from pylo_zoo.fetch import Access

    checkout = weights.pull(f"hf://{NAME}", access=Access(progress=False, notify=notify))
    return {"commit": checkout.commit, "fetched": checkout.fetched}


if __name__ == "__main__":
    main(sys.argv[1])
