"""The optimizers inside other libraries' training loops: each run equals a plain loop, bit for bit."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pylo_zoo.errors import ZooError
from pylo_zoo.integrations.micro_batches import find_optimizer
from pylo_zoo.optim import CELO2, ELO, Celo, CeloAdam, Muon, VeLO, create_optimizer, param_groups
from pylo_zoo.optim.contract import ZooOptimizer

STEPS, PARTS, BATCH = 6, 2, 3
"""Optimizer steps, micro-batches per step, and rows per micro-batch."""


class Net(nn.Module):
    """A model in the style of transformers: it returns a dict with the loss."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(11, 4)
        self.norm = nn.LayerNorm(4)
        self.layer = nn.Linear(4, 4)
        self.head = nn.Linear(4, 1)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        hidden = torch.relu(self.layer(self.norm(self.embedding(x))))
        return {"loss": (self.head(hidden).squeeze(-1) - labels).square().mean()}


def rows() -> list[dict[str, Tensor]]:
    source = torch.Generator().manual_seed(1)
    count = STEPS * PARTS * BATCH
    x, y = torch.randint(11, (count,), generator=source), torch.randn(count, generator=source)
    return [{"x": x[k], "labels": y[k]} for k in range(count)]


def micro_batches() -> Iterator[dict[str, Tensor]]:
    data = rows()
    for start in range(0, len(data), BATCH):
        part = data[start : start + BATCH]
        yield {name: torch.stack([row[name] for row in part]) for name in part[0]}


CASES: dict[str, tuple[type[ZooOptimizer], dict[str, Any]]] = {
    "VeLO": (VeLO, {"weights": "velo-sample"}),
    "Celo": (Celo, {"weights": "random:celo"}),
    "CeloAdam": (CeloAdam, {"weights": "random:celo-adam"}),
    "CELO2": (CELO2, {"weights": "random:celo2", "lr": 0.01}),
    "ELO": (ELO, {"weights": "random:elo"}),
    "Muon": (Muon, {"lr": 0.01}),
}
every_case = pytest.mark.parametrize("name", CASES)


def plain_loop(name: str) -> tuple[Net, ZooOptimizer]:
    """The model and optimizer after a plain loop, with the mean loss of each step's micro-batches."""
    cls, options = CASES[name]
    net, batches = Net(), micro_batches()
    optimizer = create_optimizer(cls, net, num_steps=STEPS, **options)
    for _ in range(STEPS):
        total = torch.zeros(())
        for _ in range(PARTS):
            loss = net(**next(batches))["loss"] / PARTS
            loss.backward()
            total = total + loss.detach()
        optimizer.step(loss=total)
        optimizer.zero_grad()
    return net, optimizer


def assert_same(one: nn.Module, other: nn.Module) -> None:
    for (name, p), q in zip(one.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q), name
    assert not torch.equal(next(one.parameters()), next(Net().parameters()))


def assert_as_in_plain_loop(name: str, net: nn.Module, wrapper: Any) -> None:
    """Compare the parameters, and the loss averages: a few steps hardly depend on the loss."""
    expected, plain = plain_loop(name)
    optimizer = find_optimizer(wrapper)
    assert optimizer is not None
    assert_same(net, expected)
    average = optimizer.param_groups[0].get("loss_average")
    assert (average is not None) == optimizer.needs_loss
    if average is not None:
        assert torch.equal(average, plain.param_groups[0]["loss_average"])


# --- Transformers ------------------------------------------------------------------------------------------------


def make_trainer(net: Net, out: Path, chosen: Any, mixin: bool = True, **arguments: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    from pylo_zoo.integrations.transformers import TrainerMixin

    bases: Any = (TrainerMixin, transformers.Trainer) if mixin else (transformers.Trainer,)
    defaults = {
        "per_device_train_batch_size": BATCH,
        "gradient_accumulation_steps": PARTS,
        "max_steps": STEPS,
        "max_grad_norm": 0.0,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        "train_sampling_strategy": "sequential",
    }
    args = transformers.TrainingArguments(output_dir=str(out), **{**defaults, **arguments})
    return type("MyTrainer", bases, {})(net, args, train_dataset=rows(), optimizer_cls_and_kwargs=chosen)


@every_case
def test_trainer_equals_a_plain_loop(tmp_path: Path, name: str) -> None:
    net = Net()
    constant: dict[str, Any] = {} if CASES[name][0].needs_loss else {"lr_scheduler_type": "constant"}
    trainer = make_trainer(net, tmp_path, CASES[name], **constant)
    trainer.train()
    assert_as_in_plain_loop(name, net, trainer.optimizer)


def test_trainer_sorts_the_parameters_of_muon(tmp_path: Path) -> None:
    trainer = make_trainer(Net(), tmp_path, (Muon, {"lr": 0.01, "weight_decay": 0.1}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.train()
    rules = {name: g["rule"] for g in trainer.optimizer.param_groups for name in g["param_names"]}
    decays = {name: g["weight_decay"] for g in trainer.optimizer.param_groups for name in g["param_names"]}
    assert (rules["embedding.weight"], rules["layer.weight"]) == ("adamw", "learned")
    assert (decays["layer.weight"], decays["layer.bias"], decays["norm.weight"]) == (0.1, 0, 0)


def test_trainer_accepts_a_name(tmp_path: Path) -> None:
    net = Net()
    trainer = make_trainer(net, tmp_path, ("velo-sample", {}))
    trainer.train()
    assert_as_in_plain_loop("VeLO", net, trainer.optimizer)


def test_trainer_warns_about_a_schedule_that_it_does_not_use(tmp_path: Path) -> None:
    trainer = make_trainer(Net(), tmp_path, CASES["VeLO"], lr_scheduler_type="cosine")
    with pytest.warns(UserWarning, match="lr_scheduler_type='cosine' is not used"):
        trainer.train()
    assert {g["lr"] for g in trainer.optimizer.param_groups} == {1.0}


def test_trainer_resumes_bit_for_bit(tmp_path: Path) -> None:
    whole, resumed = Net(), Net()
    settings: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2}
    make_trainer(whole, tmp_path, CASES["VeLO"], **settings).train()
    make_trainer(resumed, tmp_path, CASES["VeLO"], **settings).train(
        resume_from_checkpoint=str(tmp_path / "checkpoint-2")
    )
    assert_same(whole, resumed)


def test_trainer_keeps_other_optimizers(tmp_path: Path) -> None:
    one, other = Net(), Net()
    for net, mixin in ((one, True), (other, False)):
        make_trainer(net, tmp_path, (torch.optim.SGD, {"lr": 0.1}), mixin).train()
    assert_same(one, other)


def test_trainer_without_the_mixin_explains_the_missing_loss(tmp_path: Path) -> None:
    trainer = make_trainer(Net(), tmp_path, (VeLO, {"weights": "velo-sample", "num_steps": STEPS}), mixin=False)
    with pytest.raises(ZooError, match="reads the training loss"):
        trainer.train()


def test_trainer_without_the_mixin_warns_once_about_embeddings(tmp_path: Path) -> None:
    class Wide(Net):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(4096, 256)
            self.norm, self.layer, self.head = nn.LayerNorm(256), nn.Linear(256, 4), nn.Linear(4, 1)

    trainer = make_trainer(Wide(), tmp_path, CASES["Muon"], mixin=False)
    with pytest.warns(UserWarning, match="looks like an embedding") as caught:
        trainer.train()
    assert len([each for each in caught if "looks like an embedding" in str(each.message)]) == 1


# --- Accelerate --------------------------------------------------------------------------------------------------


@every_case
def test_accelerate_equals_a_plain_loop(name: str) -> None:
    accelerate = pytest.importorskip("accelerate")
    from pylo_zoo.integrations.accelerate import StepLoss

    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=PARTS)
    cls, options = CASES[name]
    net = Net()
    net, optimizer = accelerator.prepare(net, create_optimizer(cls, net, num_steps=STEPS, **options))
    step_loss = StepLoss(accelerator, optimizer)
    for batch in micro_batches():
        with accelerator.accumulate(net):
            loss = net(**batch)["loss"]
            accelerator.backward(loss)
            step_loss.add(loss)
            optimizer.step()
            optimizer.zero_grad()
    assert_as_in_plain_loop(name, net, optimizer)


def test_accelerate_needs_an_optimizer_of_this_package() -> None:
    accelerate = pytest.importorskip("accelerate")
    from pylo_zoo.integrations.accelerate import StepLoss

    accelerator = accelerate.Accelerator(cpu=True)
    sgd = accelerator.prepare(torch.optim.SGD(Net().parameters(), lr=0.1))
    with pytest.raises(ZooError, match="AcceleratedOptimizer, which contains no optimizer of pylo_zoo"):
        StepLoss(accelerator, sgd)


def test_accelerate_warns_once_about_a_falling_learning_rate() -> None:
    accelerate = pytest.importorskip("accelerate")
    from pylo_zoo.integrations.accelerate import StepLoss

    accelerator, net = accelerate.Accelerator(cpu=True), Net()
    optimizer = create_optimizer(Celo, net, num_steps=STEPS, weights="random:celo")
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=STEPS)
    net, optimizer, schedule = accelerator.prepare(net, optimizer, schedule)
    step_loss = StepLoss(accelerator, optimizer)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for batch in micro_batches():
            loss = net(**batch)["loss"]
            accelerator.backward(loss)
            step_loss.add(loss)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    assert len([each for each in caught if "lr has fallen" in str(each.message)]) == 1


# --- Lightning ---------------------------------------------------------------------------------------------------


def fit(name: str, **arguments: Any) -> tuple[Net, Any]:
    """A :class:`Net` trained with Lightning, and its optimizer."""
    pl = pytest.importorskip("lightning.pytorch")
    from pylo_zoo.integrations.lightning import LossCallback

    cls, options = CASES[name]

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self.net(**batch)["loss"]

        def configure_optimizers(self) -> Any:
            return create_optimizer(cls, self.net, num_steps=STEPS, **options)

    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "max_epochs": 1,
        "accumulate_grad_batches": PARTS,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "callbacks": [LossCallback()],
    }
    loader = torch.utils.data.DataLoader(rows(), batch_size=BATCH)  # pyright: ignore[reportArgumentType]
    model = Module()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pl.Trainer(**{**settings, **arguments}).fit(model, loader)
    return model.net, model.optimizers()


@every_case
def test_lightning_equals_a_plain_loop(name: str) -> None:
    assert_as_in_plain_loop(name, *fit(name))


@pytest.mark.parametrize("name", ["VeLO", "Celo"])
def test_lightning_without_the_callback_passes_a_fraction_of_the_last_loss(name: str) -> None:
    with pytest.raises(AssertionError):
        assert_as_in_plain_loop(name, *fit(name, callbacks=[]))


# --- docs/loops.md -----------------------------------------------------------------------------------------------

PAGE = Path(__file__).parents[1] / "docs" / "loops.md"


@pytest.mark.parametrize("heading", ["Your own loop", "Hugging Face Trainer", "Accelerate", "Lightning"])
@pytest.mark.filterwarnings("ignore")
def test_an_example_of_the_page_runs(heading: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # Lightning writes checkpoints to the current directory
    library = {"Hugging Face Trainer": "transformers", "Accelerate": "accelerate", "Lightning": "lightning"}.get(
        heading
    )
    if library:
        pytest.importorskip(library)
    _, _, section = PAGE.read_text(encoding="utf-8").partition(f"\n## {heading}\n")
    section, _, _ = section.partition("\n## ")
    code = re.findall(r"^```python\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    assert code
    loader = torch.utils.data.DataLoader(rows(), batch_size=BATCH)  # pyright: ignore[reportArgumentType]
    names = {"model": Net(), "loader": loader, "batches": micro_batches(), "dataset": rows(), "out": str(tmp_path)}
    net = names["model"]
    for block in code:
        exec(block, names | {"steps": STEPS, "weights": "velo-sample", "__name__": "page"})
    assert not torch.equal(net.layer.weight, Net().layer.weight)


# --- create_optimizer --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "cls"),
    [
        ("Muon", {}, Muon),
        ("velo_sample", {}, VeLO),
        ("random:celo2", {}, CELO2),
        (VeLO, {"weights": "velo-sample"}, VeLO),
        ("CeloAdam", {"weights": "random:celo-adam"}, CeloAdam),
    ],
)
def test_an_optimizer_by_name(name: Any, options: dict[str, Any], cls: type) -> None:
    net = Net()
    optimizer = create_optimizer(name, net, num_steps=STEPS, lr=0.5, **options)
    assert type(optimizer) is cls
    assert [g["param_names"] for g in optimizer.param_groups] == [g["param_names"] for g in param_groups(net)]
    assert {g["lr"] for g in optimizer.param_groups} == {0.5}
    assert len(create_optimizer(name, net.parameters(), num_steps=STEPS, **options).param_groups) == 1


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("vello",), "Unknown optimizer 'vello'"),
        (("velo-sample",), "VeLO needs num_steps"),
        ((ELO, "random:velo"), "ELO cannot run 'random:velo': it is a velo checkpoint"),
    ],
)
def test_an_invalid_name_is_an_error(arguments: tuple[Any, ...], error: str) -> None:
    name, *weights = arguments
    with pytest.raises(ZooError, match=error):
        create_optimizer(name, Net(), **({"weights": weights[0]} if weights else {}))
