"""Several processes: sharded parameters, and a loss that only one process computed."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import distributed, nn

from pylo_zoo.errors import ZooError
from pylo_zoo.optim import Muon, VeLO


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone."""
    distributed.init_process_group("gloo", f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("group")
def test_a_sharded_parameter_is_refused_when_the_optimizer_is_built() -> None:
    tensor = pytest.importorskip("torch.distributed.tensor")
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh("cpu", (1,))
    p = nn.Parameter(tensor.distribute_tensor(torch.ones(4, 2), mesh, [tensor.Shard(0)]))
    for build in (lambda: VeLO([p], num_steps=3, weights="velo-sample"), lambda: Muon([p], lr=0.1)):
        with pytest.raises(ZooError, match=r"shape \(4, 2\) is sharded \(DTensor\), which is not supported yet"):
            build()


def test_a_flat_parameter_of_fsdp1_is_refused() -> None:
    p = nn.Parameter(torch.ones(8))
    p._is_flat_param = True  # pyright: ignore[reportAttributeAccessIssue]  (as torch marks its own)
    with pytest.raises(ZooError, match="Use DistributedDataParallel"):
        Muon([p], lr=0.1)


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("world", [1, 2])
def test_a_local_loss_warns_once_in_a_process_group(world: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "get_world_size", lambda: world)
    p = nn.Parameter(torch.ones(3))
    optimizer = VeLO([p], num_steps=5, weights="velo-sample")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = p.square().mean()
        value.backward()
        return value

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for inputs in (loss().detach(), loss().item()):  # which may well be the mean
            optimizer.step(inputs)
        assert not caught
        for _ in range(2):
            optimizer.step(loss())
    assert [warning.filename for warning in caught] == [__file__] * (world - 1)
    assert all("dist.all_reduce(mean)" in str(warning.message) for warning in caught)
