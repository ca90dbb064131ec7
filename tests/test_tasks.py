"""The training tasks: their data, seeds and options, and custom tasks."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pylo_zoo.cli import complete
from pylo_zoo.errors import ZooError
from pylo_zoo.experiments import tasks
from pylo_zoo.experiments.tasks import numbers
from pylo_zoo.experiments.tasks.base import batch_indices, generator
from pylo_zoo.experiments.train import recipes

HERE = ["digits-mlp", "digits-cnn", "digits-vit", "chars", "diabetes", "quadratic"]


def test_completion_lists_all_tasks() -> None:
    assert tuple(tasks.TASKS) == complete.TASKS
    assert tuple(recipes.BASELINES) == complete.BASELINES


@pytest.mark.parametrize("name", HERE)
def test_a_task_is_learned_and_reproducible(name: str) -> None:
    task = tasks.make(name)
    assert (task.name, task.data != "") == (name, True)
    torch.manual_seed(1)
    model, other = task.model(3), task.model(4)
    torch.manual_seed(2)  # other users of random numbers have no effect
    again = task.model(3)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    same = [torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True)]
    assert name == "quadratic" or not all(same)
    for one, two in zip(task.batch(3, 7), task.batch(3, 7), strict=True):
        assert torch.equal(one, two)
    before = task.evaluate(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for step in range(30):
        optimizer.zero_grad()
        loss = task.loss(model, task.batch(0, step))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < sum(losses[:5])
    metric = next(iter(before))
    assert (task.evaluate(model)[metric] > before[metric]) == task.higher_is_better


def test_held_out_data_is_not_trained_on() -> None:
    for name in ("digits-mlp", "diabetes"):
        task = tasks.make(name, {"batch_size": 200})
        recorded = {row.numpy().tobytes() for step in range(8) for row in task.batch(0, step)[0]}
        assert len(recorded) > 300
        held: list[torch.Tensor] = []

        class Spy(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.nothing = torch.nn.Parameter(torch.zeros(()))

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                held.append(x)  # noqa: B023  (used up at once)
                return torch.zeros(len(x), 10) if x.ndim == 4 else torch.zeros(len(x))

        task.evaluate(Spy())
        assert not recorded & {row.numpy().tobytes() for row in held[0]}


def test_every_example_appears_once_per_epoch() -> None:
    picked = torch.cat([batch_indices(10, 4, seed=0, step=step) for step in range(5)])
    assert sorted(picked[:10].tolist()) == sorted(picked[10:].tolist()) == list(range(10))
    assert picked[:10].tolist() != picked[10:].tolist()
    assert batch_indices(3, 10, 0, 0).bincount().tolist() in ([3, 3, 4], [3, 4, 3], [4, 3, 3])
    first = [torch.randint(1 << 40, (1,), generator=generator(*words)).item() for words in [(0,), (1,), (0, 0), (0, 1)]]
    assert len(set(first)) == 4


def test_the_quadratic_reaches_its_known_minimum() -> None:
    task = tasks.make("quadratic", {"size": 6, "condition": 100.0})
    assert task.floor == 0.0
    model = task.model(0)
    answer, root = task.batch(0, 0)
    curvature = torch.linalg.eigvalsh((root.T @ root).double())
    torch.testing.assert_close(curvature.max() / curvature.min(), torch.tensor(100.0).double(), rtol=1e-3, atol=0)
    assert isinstance(model, numbers.Matrix)
    with torch.no_grad():
        model.weight.copy_(answer)
    assert task.evaluate(model) == {"excess_loss": 0.0, "distance": 0.0}
    assert tasks.make("quadratic", {"noise": 0.1}).floor is None
    assert not torch.equal(tasks.make("quadratic", {"noise": 0.1}).batch(0, 1)[0], answer)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("digits", {}, "Unknown task 'digits'. Did you mean 'digits-"),
        ("nonsense", {}, "Unknown task 'nonsense'. Tasks: digits-mlp"),
        ("digits-mlp", {"widht": 3}, "Unknown option 'widht' of the task digits-mlp. Did you mean 'width'"),
        ("digits-mlp", {"width": 0}, "width is 0. It must be an integer from 1 to 1,000,000,000"),
        ("digits-mlp", {"width": "wide"}, "width is 'wide'"),
        ("digits-mlp", {"width": 2.5}, "width is 2.5"),
        ("digits-mlp", {"width": 1e10}, "width is 10000000000.0"),
        ("quadratic", {"condition": True}, "condition is True"),
        ("quadratic", {"condition": 0.5}, "a condition of at least 1"),
        ("digits-vit", {"width": 6}, "a width divisible by 4"),
        ("chars", {"heads": 3}, "not divisible by 3 heads"),
        ("chars", {"context": 10**6}, "too short for a context"),
        ("nowhere:task", {}, "No module named 'nowhere'"),
        ("math:nothing", {}, "math has no 'nothing'"),
        ("math:pi", {}, "pi is not a function"),
        ("builtins:dict", {"a": 1}, "not a Python function"),
    ],
)
def test_invalid_tasks_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ZooError) as error:
        tasks.make(name, options)
    assert message in str(error.value)


def test_a_custom_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_own_task.py").write_text(
        "from dataclasses import replace\nfrom pylo_zoo.experiments import tasks\n"
        "def small(*, size: int = 3):\n    return replace(tasks.make('quadratic', {'size': size}), name='small')\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert tasks.make("my_own_task:small", {"size": 5}).model(0).weight.shape == (5, 5)  # pyright: ignore
    with pytest.raises(ZooError, match="Unknown option 'width'"):
        tasks.make("my_own_task:small", {"width": 5})
    (tmp_path / "my_other_task.py").write_text("def broken():\n    raise ValueError('oops')\n")
    with pytest.raises(ZooError, match=r"my_other_task:broken raised ValueError: oops. See .*my_other_task.py, line 2"):
        tasks.make("my_other_task:broken")


class Pictures:
    """The interface of torchvision's data sets."""

    def __init__(self, root: Path, *, train: bool, download: bool) -> None:
        if not download:
            raise RuntimeError("not there")
        random = np.random.default_rng(int(train))
        self.data = random.integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
        self.targets = (np.arange(20) % 4).tolist()


def test_torchvision_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZooError, match=r"pip install torchvision"):
        tasks.make("torchvision")
    module = types.ModuleType("torchvision.datasets")
    module.MNIST = Pictures  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.datasets", module)
    for model in ("cnn", "vit"):
        task = tasks.make("torchvision", {"model": model, "batch_size": 5, "width": 4, "depth": 2})
        assert task.loss(task.model(0), task.batch(0, 0)).isfinite()
        assert set(task.evaluate(task.model(0))) == {"accuracy", "test_loss"}
    with pytest.raises(ZooError, match="Unknown torchvision data set 'Nothing'"):
        tasks.make("torchvision", {"dataset": "Nothing"})


def test_a_text_dataset_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZooError, match=r"pip install datasets"):
        tasks.make("hub-text")

    def load(name: str, split: str) -> dict[str, list[str]]:
        if name != "org/text":
            raise FileNotFoundError(name)
        return {"text": ["abc " * 500] * int(split.removeprefix("train[:").removesuffix("]"))}

    module = types.ModuleType("datasets")
    module.load_dataset = load  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "datasets", module)
    task = tasks.make("hub-text", {"dataset": "org/text", "rows": 3, "context": 8, "width": 8, "depth": 1})
    assert task.loss(task.model(0), task.batch(0, 0)).isfinite()
    with pytest.raises(ZooError, match="org/other is unavailable"):
        tasks.make("hub-text", {"dataset": "org/other"})


def test_a_whole_float_is_an_integer_option() -> None:
    """YAML reads ``--set width=1e1`` as a float."""
    first, second = (list(tasks.make("digits-mlp", {"width": width}).model(0).parameters()) for width in (10.0, 10))
    assert [p.shape for p in first] == [p.shape for p in second]
