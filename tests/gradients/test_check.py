"""check_replayable says what spoils a replay, and where."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from wrong_derivative import Wrong

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


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_check_names_a_module_whose_backward_cannot_be_recorded():
    result = check(nn.Unflatten(1, (2, 1, 2)), nn.CrossMapLRN2d(2))
    assert not result.second_derivatives
    assert "'2' (CrossMapLRN2d) has no second derivative" in str(result)


def test_check_lets_the_errors_of_a_loss_through():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        check(nn.Linear(5, 1))


def test_check_blames_the_loss_itself():
    own = torch.Generator()

    def loss(model, batch, hyperparameters):
        return F.mse_loss(model(batch), torch.randn(5, 4, generator=own))

    assert "the loss function itself" in str(check(loss=loss))


def test_check_with_hyperparameters():
    scale = torch.ones((), requires_grad=True)
    assert check(loss=lambda m, b, h: h["s"] * square(m, b, h), hyperparameters={"s": scale})
    assert scale.grad is None


class OnlyWrong(nn.Module):
    def forward(self, x):
        return Wrong.apply(x)


LAYERS = [nn.ReLU(), nn.GELU(), nn.Hardtanh(0.1), nn.Dropout(0.5), nn.BatchNorm1d(4), nn.LayerNorm(4), nn.Softmax(1), nn.PReLU()]


@pytest.mark.parametrize("layer", LAYERS, ids=repr)
def test_right_second_derivatives(layer):
    torch.manual_seed(0)
    assert check(layer, nn.Linear(4, 2)).derivatives_agree


def test_wrong_second_derivatives_of_a_function():
    torch.manual_seed(0)
    result = check(nn.Tanh(), OnlyWrong(), nn.Linear(4, 2))
    assert not result
    assert not result.derivatives_agree
    assert "the second derivatives of '2' (OnlyWrong) are wrong" in str(result)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wrong_second_derivatives_of_torch(dtype):
    """The fused weight_norm of torch's CPU kernels. Should a later torch mend it, the check finds nothing, rightly."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 8)), nn.SiLU(), nn.Linear(8, 3)).to(dtype)

    def loss(model, x, _):
        return (model(x) * torch.linspace(-1, 1, 3).to(x)).sum() + model(x).square().mean()

    x = torch.randn(5, 6, dtype=dtype)
    v = model[0].parametrizations.weight.original1
    (g,) = torch.autograd.grad(loss(model, x, None), v, create_graph=True)
    u = torch.randn_like(v)
    (product,) = torch.autograd.grad(g, v, u)
    sides = []
    for sign in (1, -1):
        with torch.no_grad():
            v += sign * 1e-3
        sides.append(torch.autograd.grad(loss(model, x, None), v)[0])
        with torch.no_grad():
            v -= sign * 1e-3
    is_wrong = not torch.allclose((u * (sides[0] - sides[1])).sum() / 2e-3, product.sum(), rtol=1e-3, atol=1e-3)
    result = rh.check_replayable(model, loss, x)
    assert result.derivatives_agree != is_wrong
    assert ("(_WeightNorm) are wrong" in str(result)) == is_wrong


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_weight_that_a_hook_computes_is_checked_in_float64():
    """The deprecated weight_norm keeps a tensor with a graph, which torch does not copy."""

    def verdict(dtype):
        torch.manual_seed(0)
        model = nn.Sequential(nn.utils.weight_norm(nn.Linear(6, 8)), nn.SiLU(), nn.Linear(8, 3)).to(dtype)
        return rh.check_replayable(model, square, torch.randn(5, 6).to(dtype)).derivatives_agree

    assert verdict(torch.float32) == verdict(torch.float64)


class OnlyCubes(nn.Module):
    """One direction, in which all of the second derivative is wrong."""

    def __init__(self):
        super().__init__()
        self.x = nn.Parameter(torch.tensor(1.5))

    def forward(self, batch):
        return Wrong.apply(self.x) * batch


def test_a_loss_that_cannot_be_cast_is_checked_as_it_is():
    """Gross errors alone are found in float32."""

    def loss(model, batch, log_scale):
        return (model(batch) @ torch.ones(3, 1)).mean() * log_scale.exp()  # a matrix of float32

    torch.manual_seed(0)
    scale = torch.tensor(0.5, requires_grad=True)
    batch = torch.rand(5, 3)
    assert rh.check_replayable(nn.Sequential(nn.Linear(3, 3), nn.Tanh()), loss, batch, scale)
    result = rh.check_replayable(OnlyCubes(), loss, batch, scale)
    assert not result.derivatives_agree
    assert "are wrong, by" in str(result)
