"""What torch does without a word, and a run would get wrong: each is refused at the first step where it occurs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from runs import STRATEGIES, Run
from torch import nn

import reversible_hypergrad as rh

ALL = {**STRATEGIES, "forward mode": rh.ForwardMode(), "compiled": rh.Reversible()}


def train(model, loss, batches, strategy="reversible", **more):
    compile = {"backend": "aot_eager"} if strategy == "compiled" else False
    return rh.train(model, loss, batches, optimizer=rh.SGD(0.1), adjoint=ALL[strategy], compile=compile, **more)


@pytest.mark.parametrize("strategy", ALL)
def test_a_layer_that_writes_to_its_weights(strategy):
    """Embedding(max_norm=) renormalizes the rows that it looks up."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(5, 4, max_norm=0.5), nn.Linear(4, 1))
    with pytest.raises(RuntimeError, match=r"wrote to the weight '0.weight' in place"):
        train(model, lambda model, x, _: model(x).square().mean(), [torch.arange(5)] * 4, strategy)


def test_a_loss_that_writes_to_the_weights_at_a_later_step():
    seen = []

    def loss(model, x, _):
        seen.append(len(seen))
        if len(seen) == 5:
            with torch.no_grad():
                model.weight.clamp_(-0.1, 0.1)
        return model(x).square().mean()

    with pytest.raises(RuntimeError, match=r"wrote to the weight 'weight' in place"):
        train(nn.Linear(4, 1), loss, torch.randn(9, 8, 4))
    assert len(seen) == 5


@pytest.mark.parametrize("register", ["register_hook", "register_post_accumulate_grad_hook"])
def test_hooks_on_parameters(register):
    model = nn.Linear(4, 1)
    getattr(model.weight, register)(lambda g: None if register == "register_post_accumulate_grad_hook" else g.clamp(-1, 1))
    with pytest.raises(ValueError, match=r"expected parameters without hooks, got one on 'weight'.*clip=rh.clip_norm"):
        train(model, lambda model, x, _: model(x).square().mean(), torch.randn(3, 8, 4))
    with pytest.raises(ValueError, match="expected parameters without hooks"):
        rh.check_replayable(model, lambda model, x, _: model(x).square().mean(), torch.randn(8, 4))


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(6)), nn.Parameter(torch.randn(4))
        self.b.data = self.a.data[2:]


def test_parameters_that_share_memory():
    with pytest.raises(ValueError, match=r"b: expected memory of its own, got some that it shares with a"):
        train(Shared(), lambda model, x, _: (model.a.sum() * model.b.sum() - x).square().mean(), torch.randn(3, 2))


@pytest.mark.parametrize("optimizer", [rh.ReversibleSGD, rh.ReversibleAdamW, rh.ReversibleLion])
def test_parameters_that_share_memory_in_an_optimizer(optimizer):
    model, other = Shared(), nn.Parameter(torch.randn(3))
    with pytest.raises(ValueError, match="expected memory of its own"):
        optimizer(model.parameters(), lr=0.1)
    ours = optimizer([model.a, other], lr=0.1)
    with pytest.raises(ValueError, match="expected memory of its own"):
        ours.add_param_group({"params": [model.b]})
    assert len(ours.param_groups) == 1


def test_parts_of_one_buffer_that_do_not_overlap_are_allowed():
    model = Shared()
    buffer = torch.randn(12)
    model.a.data, model.b.data = buffer[:6], buffer[6:10]
    trained = train(model, lambda model, x, _: (model.a.sum() * model.b.sum() - x).square().mean(), torch.randn(3, 2))
    sum(w.square().sum() for w in trained.values()).backward()
    assert trained.report.restored


def test_complex_hyperparameters():
    run = Run()
    phase = torch.tensor(1 + 1j, requires_grad=True)

    def loss(model, index, hyperparameters):
        return F.cross_entropy(model(run.x[index]), run.y[index]) * hyperparameters.abs()

    with pytest.raises(TypeError, match=r"hyperparameters: expected real tensors .* got torch.complex64 .*view_as_real"):
        train(run.model, loss, lambda step: slice(0, 12), steps=3, hyperparameters=phase)
