"""``pylo-zoo train TASK --optimizer NAME``: train a small model with an optimizer."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pylo_zoo.cli import complete, output
from pylo_zoo.errors import ZooError, count

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console

    from pylo_zoo.experiments.train.loop import Result, Run
    from pylo_zoo.experiments.train.setup import Setup
    from pylo_zoo.fetch import Access

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
            metavar="TASK",
            help="A name from the list above, or module:function, where the function returns a task.",
            autocompletion=complete.tasks,
        ),
    ] = None,
    optimizer: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="adamw, sgd, muon, a name from `pylo-zoo list`, an artifact directory, hf://ORG/NAME, or "
            "random:FAMILY.",
            autocompletion=complete.optimizers,
        ),
    ] = "adamw",
    own_task: Annotated[
        str | None, typer.Option("--task", metavar="MODULE:FUNCTION", help="Your own task, instead of TASK.")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="WEIGHTS",
            help="Weights, if --optimizer is a family: a name, a directory, hf://ORG/NAME, or random:FAMILY.",
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(max=output.MAX_STEPS, metavar="N", help="Length of the run.  [default: the task's]")
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(callback=output.finite, metavar="X", help="Peak learning rate.  [default: the optimizer's]"),
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Learning-rate schedule: constant, linear, cosine or wsd.  [default: cosine, or constant if the "
            "optimizer has its own schedule]",
        ),
    ] = None,
    warmup: Annotated[
        float | None, typer.Option(callback=output.finite, metavar="X", help="Warmup, as a fraction of the run.")
    ] = None,
    weight_decay: Annotated[
        float | None, typer.Option(callback=output.finite, metavar="X", help="Weight decay.  [default: 0]")
    ] = None,
    seeds: Annotated[
        int,
        typer.Option(min=1, max=output.MAX_SEEDS, metavar="N", help="Number of runs, each with the next seed."),
    ] = 1,
    seed: Annotated[int, typer.Option(min=0, max=output.MAX_SEED, metavar="N", help="Seed of the first run.")] = 0,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="OPTION=VALUE", help="An option of the task; repeatable.")
    ] = None,
    device: Annotated[str, typer.Option(metavar="NAME", help="auto, cpu, cuda, cuda:1 …")] = "auto",
    threads: Annotated[int, typer.Option(min=1, max=output.MAX_THREADS, metavar="N", help="CPU threads.")] = 1,
    compile: Annotated[bool, typer.Option("--compile", help="torch.compile the model.")] = False,
    eval_every: Annotated[
        int,
        typer.Option(
            min=0, max=output.MAX_STEPS, metavar="N", help="Steps between evaluations; 0 evaluates only at the end."
        ),
    ] = 0,
    save_every: Annotated[
        int,
        typer.Option(
            min=0, max=output.MAX_STEPS, metavar="N", help="Steps between checkpoints; 0 saves only at the end."
        ),
    ] = 100,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Directory of the run.  [default: runs/TASK-OPTIMIZER-seedN]", readable=False),
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Resume the run in DIR. It replaces TASK.", readable=False)
    ] = None,
    offline: output.Offline = False,
    max_bytes: output.MaxBytes = None,
    json: output.Json = False,
    quiet: output.Quiet = False,
) -> None:
    """Train a small model with an optimizer.

    Tasks: digits-mlp, digits-cnn, digits-vit, chars, diabetes and quadratic; torchvision and hub-text download their
    data.

    The directory of the run holds the metrics (one line of JSON per step), the last checkpoint and the result. Ctrl-C
    saves a checkpoint. --resume continues an interrupted run from its last checkpoint, with the same losses as an
    uninterrupted run.
    """
    from pylo_zoo.experiments.train.setup import Setup, read_setup
    from pylo_zoo.files import check_directory_target

    access = output.access(offline=offline, quiet=quiet)
    if (resume is not None) + (task is not None) + (own_task is not None) != 1:
        raise typer.BadParameter("Pass a TASK, --task MODULE:FUNCTION or --resume DIR.")
    if resume is not None:
        options = {
            "--optimizer": optimizer != "adamw",
            "--set": bool(settings),
            "--threads": threads != 1,
            "--device": device != "auto",
            "--seed": seed > 0 or seeds > 1,
            **{"--weights": weights, "--steps": steps, "--lr": lr, "--schedule": schedule, "--out": out},
            **{"--warmup": warmup, "--weight-decay": weight_decay, "--compile": compile or None},
        }
        if changed := [name for name, value in options.items() if value is not None and value is not False]:
            raise typer.BadParameter(f"--resume keeps the settings of the run: leave out {changed[0]}.")
        setups = {resume: read_setup(resume)}
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
        seeded = [replace(first, seed=seed + i) for i in range(seeds)]
        setups = {_directory(out, each, several=seeds > 1): each for each in seeded}
        for directory in setups:
            check_directory_target(directory)
    if not access.is_offline:
        _announce_download(next(iter(setups.values())), access, quiet)
    with output.naming_option("--weights" if weights else "--optimizer"):
        runs = [each.build(directory, access) for directory, each in setups.items()]
    results = [_train(run, resumed=resume is not None, quiet=quiet) for run in runs]
    data = {"runs": [_data(run, result) for run, result in zip(runs, results, strict=True)]}
    human = "\n".join(str(run.out) for run in runs) if quiet else lambda console: _show(data["runs"], console)
    output.emit(data, human, json=json)
    if all(result.diverged for result in results):
        raise ZooError(results[0].diverged or "", runs[0].recipe.remedy)


def _options(settings: Sequence[str]) -> Mapping[str, Any]:
    from pylo_zoo.convert import parse_settings

    return parse_settings(settings)


def _directory(out: Path | None, setup: Setup, *, several: bool) -> Path:
    if out is None:
        return Path("runs") / setup.name
    return out / f"seed{setup.seed}" if several else out


def _announce_download(setup: Setup, access: Access, quiet: bool) -> None:
    """Print the address of weights that must be downloaded."""
    from pylo_zoo.experiments.train import recipes

    name = setup.weights or setup.optimizer
    if address := recipes.needs_download(name, access):
        output.note(f"{name} is not in the cache; fetching {address}", quiet=quiet)


def _train(run: Run, *, resumed: bool, quiet: bool) -> Result:
    from pylo_zoo.cli.training import describe_start, showing_progress
    from pylo_zoo.experiments.train.loop import train as train_run

    try:
        with showing_progress(run, quiet=quiet) as on_step:
            return train_run(
                run,
                resume=resumed,
                on_step=on_step,
                on_start=lambda: output.note(
                    describe_start(run, resumed=resumed), quiet=quiet or run.step >= run.plan.steps
                ),
            )
    except KeyboardInterrupt:
        output.note(f"Stopped after {count(run.step, 'step')}. Resume with: pylo-zoo train --resume {run.out}")
        raise SystemExit(output.INTERRUPTED) from None  # without the command line's own line


def _data(run: Run, result: Result) -> dict[str, Any]:
    from pylo_zoo.experiments.train import setup
    from pylo_zoo.experiments.train.loop import summary

    return {
        "task": run.task.name,
        "optimizer": run.recipe.label,
        "seed": run.plan.seed,
        "directory": str(run.out),
        "plan": asdict(run.plan),
        "threads": setup.threads(),
        **summary(result, run.step),
    }


def _show(runs: Sequence[Mapping[str, Any]], console: Console) -> None:
    from rich.table import Table

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
    machine = output.printable(f"{runs[0]['plan']['device']}, {count(runs[0]['threads'], 'thread')}")
    finished = "The runs are finished" if len(runs) > 1 else "The run is finished"
    console.print(f"\nLoss: mean over the last 5% of the run. Ran on {machine}.", soft_wrap=True)
    longer = "" if all(run["diverged"] for run in runs) else " To train longer, start a new run with more --steps."
    console.print(f"{finished}; see {places}.{longer}", soft_wrap=True)
