"""check_replayable says what spoils a replay, and where."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import reversible_hypergrad as rh


def square(model, batch, hyperparameters):
    return model(batch).square().mean()


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.exp()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return g * ctx.saved_tensors[0].exp()


class OnlyOnce(nn.Module):
    def forward(self, x):
        return Once.apply(x)


class OwnNoise(nn.Module):
    def __init__(self):
        super().__init__()
        self.generator = torch.Generator()

    def forward(self, x):
        return x + torch.randn(x.shape, generator=self.generator)

    def __deepcopy__(self, memo):
        return OwnNoise()


def check(*layers, loss=square, hyperparameters=None):
    return rh.check_replayable(nn.Sequential(nn.Linear(3, 4), *layers), loss, torch.randn(5, 3), hyperparameters)


@pytest.mark.parametrize("layer", [nn.Dropout(0.5), nn.BatchNorm1d(4), nn.SiLU(), nn.LayerNorm(4), nn.Softmax(1)])
def test_check_passes(layer):
    result = check(layer, nn.Linear(4, 2))
    assert result
    assert "bit for bit" in str(result)


def test_check_passes_attention():
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    assert rh.check_replayable(model, square, torch.randn(2, 3, 8))


def test_check_names_unseeded_randomness():
    result = check(nn.Tanh(), OwnNoise(), nn.Linear(4, 2))
    assert not result
    assert "'2' (OwnNoise)" in result.problems[0]
    assert not result.same_loss


def test_check_names_a_module_without_second_derivative():
    result = check(nn.Sequential(nn.Tanh(), OnlyOnce()))
    assert not result.second_derivatives
    assert "'1.1' (OnlyOnce) has no second derivative" in str(result)


def test_check_blames_the_loss_itself():
    own = torch.Generator()

    def loss(model, batch, hyperparameters):
        return F.mse_loss(model(batch), torch.randn(5, 4, generator=own))

    assert "the loss function itself" in str(check(loss=loss))


def test_check_with_hyperparameters():
    scale = torch.ones((), requires_grad=True)
    assert check(loss=lambda m, b, h: h["s"] * square(m, b, h), hyperparameters={"s": scale})
    assert scale.grad is None
