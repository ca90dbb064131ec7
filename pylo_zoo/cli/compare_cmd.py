"""``pylo-zoo compare TASK --optimizers …``: compare optimizers on one task."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pylo_zoo.cli import complete, output
from pylo_zoo.cli.training import LINE_SECONDS
from pylo_zoo.errors import UsageError, count

if TYPE_CHECKING:
    from rich.console import Console

    from pylo_zoo.experiments.compare.plan import CompareRequest
    from pylo_zoo.experiments.compare.report import Progress

EXAMPLES = """
pylo-zoo compare digits-mlp --optimizers adamw,muon,velo-sample
pylo-zoo compare chars --optimizers adamw,zoo/celo --steps 1000
pylo-zoo compare digits-vit --optimizers adamw,sgd --tune none --lr sgd=0.1
pylo-zoo compare mine:task --optimizers adamw,muon --seeds 5 --out runs/mine
"""


def compare(
    task: Annotated[
        str,
        typer.Argument(
            metavar="TASK",
            help="A task of `pylo-zoo train`, or module:function, where the function returns a task.",
            autocompletion=complete.tasks,
        ),
    ],
    optimizers: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="Optimizers, separated by commas: adamw, sgd, muon, names from `pylo-zoo list`, artifact directories, "
            "hf://ORG/NAME, random:FAMILY.",
        ),
    ] = "adamw,muon,velo-sample",
    seeds: Annotated[
        int, typer.Option(min=1, max=output.MAX_SEEDS, metavar="N", help="Runs per optimizer, with seeds 0 to N-1.")
    ] = 3,
    steps: Annotated[
        int | None,
        typer.Option(min=1, max=output.MAX_STEPS, metavar="N", help="Steps per run.  [default: the task's]"),
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="OPTION=VALUE", help="An option of the task; repeatable.")
    ] = None,
    tune: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Optimizers whose learning rate is tuned, or all, or none.  [default: the baselines]",
        ),
    ] = None,
    tune_steps: Annotated[
        int | None,
        typer.Option(min=1, max=output.MAX_STEPS, metavar="N", help="Steps per tuning run.  [default: --steps]"),
    ] = None,
    lr: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=X", help="A fixed learning rate, instead of tuning; repeatable."),
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Learning-rate schedule: constant, linear, cosine or wsd. Optimizers with their own schedule ignore "
            "it.  [default: cosine]",
        ),
    ] = None,
    device: Annotated[str, typer.Option(metavar="NAME", help="auto, cpu, cuda, cuda:1 …")] = "auto",
    threads: Annotated[int, typer.Option(min=1, max=output.MAX_THREADS, metavar="N", help="CPU threads.")] = 1,
    memory: Annotated[
        bool,
        typer.Option("--memory/--no-memory", help="Measure the peak memory of a step, in a new process per optimizer."),
    ] = True,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Directory of the runs and the report.  [default: runs/compare-TASK]", readable=False
        ),
    ] = None,
    offline: output.Offline = False,
    json: output.Json = False,
    quiet: output.Quiet = False,
) -> None:
    """Compare optimizers on one task.

    For each seed, all optimizers get the same initial weights and batches. The learning rates of baselines are tuned
    first, and the report counts that cost; learned optimizers run with their defaults. The results are results.json,
    report.md, report.html and figures.

    Each run has its own directory. Run the same command again to resume an interrupted comparison, or with more --seeds
    or --optimizers to extend it.
    """
    from pylo_zoo.experiments.compare import plan, plots, report, running
    from pylo_zoo.files import check_directory_target

    names = _names(optimizers)
    request = plan.CompareRequest(
        task,
        names,
        _options(settings or ()),
        seeds,
        steps,
        None if tune is None else names if tune == "all" else [] if tune == "none" else _names(tune),
        tune_steps,
        _rates(lr or ()),
        schedule,
        device,
        threads,
    )
    if tune == "all":  # except optimizers with a fixed learning rate
        request = dataclasses.replace(request, tune=[name for name in names if name not in request.lrs])
    plots.check()
    directory = out or Path("runs") / f"compare-{plan.slug(task)}"
    check_directory_target(directory)
    access = output.access(offline=offline, quiet=quiet)
    for name, address in ({} if access.is_offline else plan.downloads(request, access)).items():
        output.note(f"{name} is not in the cache; fetching {address}", quiet=quiet)
    with output.naming_option("--optimizers"):
        comparison = plan.plan_comparison(request, access)
    running.prepare(comparison, directory)
    command = _command(request, tune, directory, memory=memory)
    previous = report.recorded(directory)
    from pylo_zoo.cli.comparing import monitoring

    try:
        with monitoring(quiet=quiet, memory=memory) as monitor:
            outcomes = running.run_all(comparison, directory, monitor)
    except KeyboardInterrupt:
        output.note(f"The finished work is in {directory}. Resume with: {command}")
        raise
    if previous and not any(each.new_runs for each in outcomes):
        output.note(f"Already finished: {directory / report.PAGE}", quiet=quiet)
    with output.progress(quiet=quiet, every=LINE_SECONDS) as progress:
        results = report.results(
            comparison,
            outcomes,
            command=command,
            memory=memory,
            previous=previous,
            progress=_announcing(progress, quiet=quiet),
        )
    report.write(results, outcomes, directory)
    human = _verdict(results) if quiet else lambda console: _show(results, directory, console)
    output.emit(results, human, json=json)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _options(settings: Sequence[str]) -> Mapping[str, Any]:
    from pylo_zoo.convert import parse_settings

    return parse_settings(settings)


def _rates(settings: Sequence[str]) -> dict[str, float]:
    rates = {}
    for setting in settings:
        name, _, value = setting.rpartition("=")
        try:
            rates[name] = float(value)
        except ValueError:
            name = ""
        if not name:
            raise UsageError(f"--lr {setting!r} is not NAME=X.", "Write --lr adamw=0.01, for example.")
    return rates


def _announcing(progress: Progress, *, quiet: bool) -> Progress:
    """``progress``, with a note before the first measurement of memory."""

    def announce(what: str, done: int, total: int) -> None:
        if done == 0:
            number = count(total, "optimizer")
            output.note(f"Measuring the memory of a step of {number} (skip this with --no-memory) …", quiet=quiet)
        progress(what, done, total)

    return announce


def _command(request: CompareRequest, tune: str | None, out: Path, *, memory: bool = True) -> str:
    """The command line that repeats the comparison."""
    words = ["pylo-zoo", "compare", request.task, "--optimizers", ",".join(request.optimizers)]
    words += ["--seeds", str(request.seeds)]
    options = {
        "--steps": request.steps,
        "--tune": tune,
        "--tune-steps": request.tune_steps,
        "--schedule": request.schedule,
    }
    for option, value in {**options, "--device": None if request.device == "auto" else request.device}.items():
        words += [] if value is None else [option, str(value)]
    words += [] if request.threads == 1 else ["--threads", str(request.threads)]
    words += [] if memory else ["--no-memory"]
    for key, value in request.options.items():
        words += ["--set", f"{key}={value}"]
    for name, rate in request.lrs.items():
        words += ["--lr", f"{name}={rate:g}"]
    return shlex.join([*words, "--out", str(out)])


def _verdict(results: Mapping[str, Any]) -> str:
    from pylo_zoo.experiments.compare import words

    return output.printable(words.sentence(results["verdict"]))


def _show(results: Mapping[str, Any], directory: Path, console: Console) -> None:
    from pylo_zoo.cli.comparing import table
    from pylo_zoo.experiments.compare import words

    console.print(_verdict(results), style="bold")
    if results["clock"]:
        console.print(output.printable(words.sentence(results["clock"])))
    console.print()
    console.print(table(results, console))
    console.print()
    loss = f"Losses: mean of the last {count(results['last'], 'step')}. {words.seeds_note(results)}"
    console.print(output.printable(loss))
    console.print(output.printable(f"Machine: {words.describe_machine(results['machine'])}."))
    console.print(f"{directory / 'report.html'}  and report.md, results.json, figures", soft_wrap=True)
