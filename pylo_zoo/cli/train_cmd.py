"""``pylo-zoo train TASK --optimizer NAME``: see tonight whether a learned optimizer helps."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pylo_zoo.cli import complete, output
from pylo_zoo.errors import ZooError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console

    from pylo_zoo.fetch import Access
    from pylo_zoo.train.loop import Result, Run
    from pylo_zoo.train.setup import Setup

EXAMPLES = """
pylo-zoo train digits-mlp --optimizer velo-sample
pylo-zoo train chars --optimizer zoo/celo --steps 1000 --seeds 3
pylo-zoo train digits-vit --optimizer adamw --lr 1e-3 --set width=64
pylo-zoo train mine:task --optimizer muon --out runs/mine
pylo-zoo train --resume runs/mine
"""


def train(
    task: Annotated[
        str | None,
        typer.Argument(
            metavar="TASK", help="See below; or module:function, which returns one.", autocompletion=complete.tasks
        ),
    ] = None,
    optimizer: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="adamw, sgd, muon, a name of `pylo-zoo list`, an artifact's directory, or hf://ORG/NAME.",
            autocompletion=complete.optimizers,
        ),
    ] = "adamw",
    own_task: Annotated[
        str | None, typer.Option("--task", metavar="MODULE:FUNCTION", help="A task of your own, in place of TASK.")
    ] = None,
    weights: Annotated[
        str | None, typer.Option(metavar="WEIGHTS", help="Where --optimizer is a family: its weights.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(max=output.MOST_STEPS, metavar="N", help="Length of the run.  [default: the task's]")
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(callback=output.finite, metavar="X", help="Peak learning rate.  [default: the optimizer's]"),
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="constant, linear, cosine or wsd.  [default: cosine, or constant where the optimizer plans itself]",
        ),
    ] = None,
    warmup: Annotated[float | None, typer.Option(callback=output.finite, metavar="X", help="Share of the run.")] = None,
    weight_decay: Annotated[
        float | None, typer.Option(callback=output.finite, metavar="X", help="[default: 0]")
    ] = None,
    seeds: Annotated[
        int, typer.Option(min=1, max=output.MOST_SEEDS, metavar="N", help="So many runs, of one seed after the other.")
    ] = 1,
    seed: Annotated[int, typer.Option(min=0, max=output.LARGEST_SEED, metavar="N", help="The first one.")] = 0,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="OPTION=VALUE", help="An option of the task; repeatable.")
    ] = None,
    device: Annotated[str, typer.Option(metavar="NAME", help="auto, cpu, cuda, cuda:1 …")] = "auto",
    threads: Annotated[int, typer.Option(min=1, max=output.MOST_THREADS, metavar="N", help="On the CPU.")] = 1,
    compile: Annotated[bool, typer.Option("--compile", help="torch.compile the model.")] = False,
    eval_every: Annotated[
        int, typer.Option(min=0, max=output.MOST_STEPS, metavar="N", help="Steps; 0 evaluates at the end alone.")
    ] = 0,
    save_every: Annotated[
        int, typer.Option(min=0, max=output.MOST_STEPS, metavar="N", help="Steps; 0 saves at the end alone.")
    ] = 100,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Directory of the run.  [default: runs/TASK-OPTIMIZER-seedN]")
    ] = None,
    resume: Annotated[Path | None, typer.Option(metavar="DIR", help="Go on with the run in DIR; without TASK.")] = None,
    offline: output.Offline = False,
    max_bytes: output.MaxBytes = None,
    json: output.Json = False,
    quiet: output.Quiet = False,
) -> None:
    """Train a small model, and see how an optimizer does.

    Tasks: digits-mlp, digits-cnn, digits-vit, chars, diabetes, quadratic; and torchvision, hub-text, which download.

    The run's directory has a line of JSON a step, a checkpoint and the result. A run that was cut off goes on from its
    last checkpoint as if nothing had been; Ctrl-C makes one.
    """
    from pylo_zoo.train.setup import Setup, of_directory

    access = output.access(offline=offline, quiet=quiet)
    if (resume is not None) + (task is not None) + (own_task is not None) != 1:
        raise typer.BadParameter("Give one of TASK, --task MODULE:FUNCTION and --resume DIR.")
    if resume is not None:
        given = {
            "--optimizer": optimizer != "adamw",
            "--set": bool(settings),
            "--threads": threads != 1,
            "--device": device != "auto",
            "--seed": seed > 0 or seeds > 1,
            **{"--weights": weights, "--steps": steps, "--lr": lr, "--schedule": schedule, "--out": out},
            **{"--warmup": warmup, "--weight-decay": weight_decay, "--compile": compile or None},
        }
        if changed := [name for name, value in given.items() if value is not None and value is not False]:
            raise typer.BadParameter(f"A run goes on as it was begun: --resume goes without {changed[0]}.")
        found = of_directory(resume)
        places = {resume: found}
    else:
        first = Setup(
            task or own_task or "",
            optimizer,
            _options(settings or ()),
            weights,
            lr,
            schedule,
            warmup,
            weight_decay,
            steps,
            seed,
            device,
            compile,
            eval_every,
            save_every,
            threads,
        )
        setups = [replace(first, seed=seed + i) for i in range(seeds)]
        places = {_place(out, each, several=seeds > 1): each for each in setups}
    if not access.is_offline:
        _announce(next(iter(places.values())), access, quiet)
    runs = [each.build(place, access) for place, each in places.items()]
    results = [_train(run, resumed=resume is not None, quiet=quiet) for run in runs]
    data = {"runs": [_data(run, result) for run, result in zip(runs, results, strict=True)]}
    human = "\n".join(str(run.out) for run in runs) if quiet else lambda console: _show(data["runs"], console)
    output.emit(data, human, json=json)
    if all(result.diverged for result in results):
        raise ZooError(results[0].diverged or "", runs[0].recipe.remedy)


def _options(settings: Sequence[str]) -> Mapping[str, Any]:
    from pylo_zoo.convert import parse_settings

    return parse_settings(settings)


def _place(out: Path | None, setup: Setup, *, several: bool) -> Path:
    if out is None:
        return Path("runs") / setup.name
    return out / f"seed{setup.seed}" if several else out


def _announce(setup: Setup, access: Access, quiet: bool) -> None:
    """Say what has to be fetched, before anything starts."""
    from pylo_zoo.train import recipes

    name = setup.weights or setup.optimizer
    if address := recipes.needs_download(name, access):
        output.note(f"{name} is not in the cache; fetching {address}", quiet=quiet)


def _train(run: Run, *, resumed: bool, quiet: bool) -> Result:
    from pylo_zoo.cli.training import beginning, watched
    from pylo_zoo.train.loop import train as train_run

    try:
        with watched(run, quiet=quiet) as listen:
            begun = lambda: output.note(beginning(run, resumed=resumed), quiet=quiet)  # noqa: E731
            return train_run(run, resume=resumed, listen=listen, begun=begun)
    except KeyboardInterrupt:
        output.note(f"Stopped after {run.step} steps. Go on with: pylo-zoo train --resume {run.out}")
        raise


def _data(run: Run, result: Result) -> dict[str, Any]:
    from pylo_zoo.train import setup
    from pylo_zoo.train.loop import summary

    return {
        "task": run.task.name,
        "optimizer": run.recipe.label,
        "seed": run.plan.seed,
        "directory": str(run.out),
        "plan": asdict(run.plan),
        "threads": setup.threads(),
        **summary(run, result),
    }


def _show(runs: Sequence[Mapping[str, Any]], console: Console) -> None:
    from rich.table import Table

    from pylo_zoo.cli.training import threads

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    names = list(runs[0]["evaluation"])
    for title in ("run", "loss", *names, "ms model", "ms optimizer"):
        table.add_column(title, justify="left" if title == "run" else "right")
    for run in runs:
        loss = "diverged" if run["diverged"] else f"{run['loss']:.4g}"
        held_out = [f"{run['evaluation'][name]:.4g}" if name in run["evaluation"] else "–" for name in names]
        times = [f"{run[each]:.3g}" if run[each] is not None else "–" for each in ("model_ms", "optimizer_ms")]
        table.add_row(f"{output.printable(run['optimizer'])}, seed {run['seed']}", loss, *held_out, *times)
    console.print(table)
    places = output.printable(", ".join(run["directory"] for run in runs))
    machine = output.printable(f"{runs[0]['plan']['device']}, {threads(runs[0]['threads'])}")
    over = f"The runs are over; they are in {places}." if len(runs) > 1 else f"The run is over; it is in {places}."
    console.print(f"\nLoss: mean of the last twentieth of the run. On {machine}.", soft_wrap=True)
    console.print(f"{over} A longer one is a new one: more --steps, another --out.", soft_wrap=True)
