"""A private copy of what one process holds; what is spread over several is refused by name."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import reversible_hypergrad as rh


@pytest.fixture
def one_process(tmp_path):
    if not dist.is_available() or not dist.is_gloo_available():
        pytest.skip("this torch has no gloo")
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def train(model, **settings):
    data = torch.randn(4, 5, 3)
    return rh.train(model, lambda model, x, _: model(x).square().mean(), data, optimizer=rh.SGD(lr=0.1), **settings)


def test_distributed_data_parallel(one_process):
    model = DistributedDataParallel(nn.Linear(3, 1))
    with pytest.raises(TypeError, match=r"^model: got a DistributedDataParallel, .*Pass what it wraps, model\.module$"):
        train(model, initial={"weight": torch.zeros(1, 3)})
    with pytest.raises(TypeError, match="DistributedDataParallel"):
        rh.check_replayable(model, lambda model, x, _: model(x).sum(), torch.ones(1, 3))
    with pytest.raises(TypeError, match=r"^model\.1: got a DistributedDataParallel, .*model\.1\.module$"):
        train(nn.Sequential(nn.Tanh(), model))
    trained = train(model.module)
    sum(w.sum() for w in trained.values()).backward()
    assert trained.report.restored


def test_parameters_spread_over_processes(one_process):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import distribute_module

    model = distribute_module(nn.Sequential(nn.Linear(3, 1)), init_device_mesh("cpu", (1,)))
    with pytest.raises(TypeError, match=r"^model: got a DTensor as its parameter '0\.weight', .*full_tensor\(\)$"):
        train(model)


def test_fully_shard(one_process):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = nn.Sequential(nn.Linear(3, 1))
    fully_shard(model[0], mesh=init_device_mesh("cpu", (1,)))
    with pytest.raises(TypeError, match=r"^model\.0: got a FSDPLinear, of whose weights .*before it is sharded$"):
        train(model)


def test_fully_sharded_data_parallel_by_its_name():
    class FullyShardedDataParallel(nn.Module):
        """In the place of torch's, which needs an accelerator."""

        def __init__(self, module):
            super().__init__()
            self.module = module

    with pytest.raises(TypeError, match=r"^model: got a FullyShardedDataParallel, of whose weights this process holds a part"):
        train(FullyShardedDataParallel(nn.Linear(3, 1)))


def test_what_is_no_module():
    with pytest.raises(TypeError, match=r"^model: expected a torch.nn.Module, got function$"):
        train(lambda x: x)
