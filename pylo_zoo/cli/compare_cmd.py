"""``pylo-zoo compare TASK --optimizers …``: several optimizers on one task, told as it is."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pylo_zoo.cli import complete, output
from pylo_zoo.errors import ZooError

if TYPE_CHECKING:
    from rich.console import Console

    from pylo_zoo.compare.plan import Wanted

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
            help="As of `pylo-zoo train`; or module:function, which returns one.",
            autocompletion=complete.tasks,
        ),
    ],
    optimizers: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="With commas between: adamw, sgd, muon, names of `pylo-zoo list`, artifacts' directories, hf://ORG/NAME.",
        ),
    ] = "adamw,muon,velo-sample",
    seeds: Annotated[
        int, typer.Option(min=1, max=output.MOST_SEEDS, metavar="N", help="Runs of each optimizer, with seeds from 0.")
    ] = 3,
    steps: Annotated[
        int | None,
        typer.Option(min=1, max=output.MOST_STEPS, metavar="N", help="Length of a run.  [default: the task's]"),
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="OPTION=VALUE", help="An option of the task; repeatable.")
    ] = None,
    tune: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help="Whose learning rate to search for; all or none.  [default: the baselines]"),
    ] = None,
    tune_steps: Annotated[
        int | None,
        typer.Option(
            min=1, max=output.MOST_STEPS, metavar="N", help="Length of a run of the search.  [default: --steps]"
        ),
    ] = None,
    lr: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=X", help="A learning rate, which is then not searched for; repeatable."),
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="constant, linear, cosine or wsd, but for optimizers that plan by themselves.  [default: cosine]",
        ),
    ] = None,
    device: Annotated[str, typer.Option(metavar="NAME", help="auto, cpu, cuda, cuda:1 …")] = "auto",
    threads: Annotated[int, typer.Option(min=1, max=output.MOST_THREADS, metavar="N", help="On the CPU.")] = 1,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="For runs and report.  [default: runs/compare-TASK]")
    ] = None,
    offline: output.Offline = False,
    json: output.Json = False,
    quiet: output.Quiet = False,
) -> None:
    """Compare optimizers on one task.

    All get the same weights and batches in each seed. Baselines are tuned first, at a cost that is counted; learned
    optimizers run as they are. Written are results.json, report.md, report.html and figures.

    Each run has a directory of its own: the same command again goes on where it was interrupted, and --seeds and
    --optimizers may grow.
    """
    from pylo_zoo.compare import plan, plots, report, running

    names = _names(optimizers)
    wanted = plan.Wanted(
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
    if tune == "all":  # but those whose learning rate is given
        wanted = dataclasses.replace(wanted, tune=[name for name in names if name not in wanted.lrs])
    plots.check()
    access = output.access(offline=offline, quiet=quiet)
    for name, address in ({} if access.is_offline else plan.downloads(wanted, access)).items():
        output.note(f"{name} is not in the cache; fetching {address}", quiet=quiet)
    comparison = plan.planned(wanted, access)
    place = out or Path("runs") / f"compare-{plan.slug(task)}"
    running.prepare(comparison, place)
    command = _command(wanted, tune, place)
    before = report.recorded(place)
    from pylo_zoo.cli.comparing import watching

    try:
        with watching(quiet=quiet) as watch:
            outcomes = running.run_all(comparison, place, watch)
    except KeyboardInterrupt:
        output.note(f"All that was done is kept in {place}. Go on with: {command}")
        raise
    if before and not any(each.made for each in outcomes):
        output.note(f"finished already: {place / report.PAGE}", quiet=quiet)
    found = report.results(
        comparison,
        outcomes,
        command=command,
        before=before,
        say=lambda: output.note("Measuring the memory of a step …", quiet=quiet),
    )
    report.write(found, outcomes, place)
    human = _verdict(found) if quiet else lambda console: _show(found, place, console)
    output.emit(found, human, json=json)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _options(settings: Sequence[str]) -> Mapping[str, Any]:
    from pylo_zoo.convert import parse_settings

    return parse_settings(settings)


def _rates(given: Sequence[str]) -> dict[str, float]:
    found = {}
    for each in given:
        name, _, value = each.rpartition("=")
        try:
            found[name] = float(value)
        except ValueError:
            name = ""
        if not name:
            raise ZooError(f"--lr {each!r} is no NAME=X.", "As in --lr adamw=0.01.")
    return found


def _command(wanted: Wanted, tune: str | None, out: Path) -> str:
    """The line that makes the same comparison."""
    words = ["pylo-zoo", "compare", wanted.task, "--optimizers", ",".join(wanted.optimizers)]
    words += ["--seeds", str(wanted.seeds)]
    options = {
        "--steps": wanted.steps,
        "--tune": tune,
        "--tune-steps": wanted.tune_steps,
        "--schedule": wanted.schedule,
    }
    for option, value in {**options, "--device": None if wanted.device == "auto" else wanted.device}.items():
        words += [] if value is None else [option, str(value)]
    words += [] if wanted.threads == 1 else ["--threads", str(wanted.threads)]
    for key, value in wanted.options.items():
        words += ["--set", f"{key}={value}"]
    for name, rate in wanted.lrs.items():
        words += ["--lr", f"{name}={rate:g}"]
    return shlex.join([*words, "--out", str(out)])


def _verdict(found: Mapping[str, Any]) -> str:
    from pylo_zoo.compare import words

    return output.printable(words.sentence(found["verdict"]))


def _show(found: Mapping[str, Any], place: Path, console: Console) -> None:
    from pylo_zoo.cli.comparing import table
    from pylo_zoo.compare import words

    console.print(_verdict(found), style="bold")
    if found["clock"]:
        console.print(output.printable(words.sentence(found["clock"])))
    console.print()
    console.print(table(found, console))
    console.print()
    loss = f"Losses: mean of the last {words.count(found['last'], 'step')}. {words.seeds_note(found)}"
    console.print(output.printable(loss))
    console.print(output.printable(f"On {words.on(found['machine'])}."))
    console.print(f"{place / 'report.html'}  and report.md, results.json, figures", soft_wrap=True)
