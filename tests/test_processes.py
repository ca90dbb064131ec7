"""Several processes: sharded parameters, and a loss that only one process computed."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, nn
from torch.multiprocessing.spawn import spawn

from pylo_zoo.errors import ZooError
from pylo_zoo.optim import CELO2, Muon, VeLO, optimizer_class


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


@pytest.mark.parametrize(
    ("mark", "library"),
    [("_is_flat_param", "FSDP1"), ("_fsdp_flattened", "FSDP1"), ("ds_id", "ZeRO"), ("_hp_mapping", "ZeRO")],
)
def test_a_parameter_that_a_library_has_flattened_is_refused(mark: str, library: str) -> None:
    p = nn.Parameter(torch.ones(8))
    setattr(p, mark, True)  # as the library marks its own
    with pytest.raises(ZooError, match=f"{library}.*not supported yet"):
        Muon([p], lr=0.1)


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("use_orig_params", [False, True])
def test_fsdp1_is_refused(use_orig_params: bool) -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one process: FSDP1 does not shard, but flattens
        model = FullyShardedDataParallel(
            nn.Linear(4, 2), use_orig_params=use_orig_params, device_id=torch.device("cpu")
        )
    with pytest.raises(ZooError, match=r"sharded \(FSDP1\)"):
        Muon(model.parameters(), lr=0.1)


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("whole", [True, False], ids=["the model", "one layer"])
def test_an_optimizer_built_before_fully_shard_is_refused(whole: bool) -> None:
    fsdp = pytest.importorskip("torch.distributed.fsdp")
    from torch.distributed.device_mesh import init_device_mesh

    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    optimizer = Muon(model.parameters(), lr=0.1)
    fsdp.fully_shard(model if whole else model[0], mesh=init_device_mesh("cpu", (1,)))
    if not hasattr(optimizer.param_groups[0]["params"][0], "_fsdp_orig_uid"):
        pytest.skip("this torch does not mark the parameters that fully_shard replaces")
    model(torch.randn(3, 4)).sum().backward()
    with pytest.raises(ZooError, match=f"replaced {4 if whole else 2} of 4 parameters in the model"):
        optimizer.step()


ZERO: dict[str, dict[str, Any]] = {
    **{name: {"weights": f"random:{name}", "lr": 0.01} for name in ("celo2", "celo2-base", "elo", "mulo")},
    "elo-celo2": {"weights": "random:elo-celo2", "lr": 0.01, "clip_norm": None},
    "muon": {"lr": 0.01},
}


ORTHOGONALIZED = ("celo2", "elo-celo2", "muon")
"""Newton–Schulz multiplies stacks of a process's matrices, so its roundings depend on which matrices it has."""


def _train(optimizer: torch.optim.Optimizer, model: nn.Module) -> list[torch.Tensor]:
    source, like = torch.Generator().manual_seed(2), next(model.parameters())
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(5, 4, generator=source).to(like)).square().mean().backward()
        optimizer.step()
    return [p.detach().clone() for p in model.parameters()]


def _net(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 6), nn.Linear(6, 1)).to(dtype)


def _zero(rank: int, meeting: str) -> None:
    """Compare ``ZeroRedundancyOptimizer`` with a single process, in one of two processes."""
    distributed.init_process_group("gloo", meeting, rank=rank, world_size=2)
    from torch.distributed.optim import ZeroRedundancyOptimizer

    for name, options in ZERO.items():
        dtype = torch.float64 if name in ORTHOGONALIZED else torch.float32
        net, alone = _net(dtype), _net(dtype)
        options = {**options, "ns_dtype": None} if name == "muon" else options  # iterate in float64
        cls: Any = Muon if name == "muon" else optimizer_class(name)
        sharded = ZeroRedundancyOptimizer(net.parameters(), cls, **options)
        tolerance = 1e-9 if name in ORTHOGONALIZED else 0.0  # a wrong step is off by about 1e-3
        torch.testing.assert_close(
            _train(sharded, net), _train(cls(alone.parameters(), **options), alone), rtol=tolerance, atol=tolerance
        )
    refused: list[tuple[Any, dict[str, Any]]] = [
        (VeLO, {"weights": "velo-sample", "num_steps": 3}),
        (CELO2, {"weights": "random:celo2", "clip_norm": 1.0}),
        (Muon, {"nonfinite": "skip"}),
    ]
    for cls, options in refused:
        with pytest.raises(ZooError, match="ZeroRedundancyOptimizer gives"):
            ZeroRedundancyOptimizer(_net().parameters(), cls, **options)
    distributed.destroy_process_group()


def test_zero_redundancy_optimizer_is_exact_or_refused(tmp_path: Path) -> None:
    spawn(_zero, (f"file://{tmp_path}/meeting",), nprocs=2)


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
