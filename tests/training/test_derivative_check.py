"""Before it trains, train() compares torch's second derivatives of the loss with differences of its gradient."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from wrong_derivative import Wrong

import reversible_hypergrad as rh


class Cube(nn.Module):
    def __init__(self, cube):
        super().__init__()
        self.cube = cube

    def forward(self, x):
        return self.cube(x)


def model_of(cube=torch.sin, dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), Cube(cube), nn.Linear(6, 2)).to(dtype)


SCALE = torch.linspace(-1, 1, 2)  # which the loss closes over, in float32


def square(model, x, _):
    return ((model(x).float() + SCALE) ** 2).mean()


def train(model, loss=square, dtype=torch.float32, steps=6, **more):
    batches = torch.randn(steps, 8, 4, generator=torch.Generator().manual_seed(1)).to(dtype)
    return rh.train(model, loss, batches, optimizer=rh.SGD(0.01), **more)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_compared_in_float64_whatever_the_loss_is_written_in(dtype):
    assert train(model_of(dtype=dtype), dtype=dtype, check_derivatives=2).report.derivative_error < 1e-6
    with pytest.raises(
        RuntimeError, match=r"step 0 the second derivatives of '2' \(Cube\) are wrong, by 0.* check_derivatives=False"
    ):
        train(model_of(Wrong.apply, dtype), dtype=dtype)


def test_compared_in_float64_inside_of_autocast():
    def loss(model, x, _):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return square(model, x, _)

    assert train(model_of(), loss).report.derivative_error < 1e-6


@pytest.mark.parametrize("adjoint", [rh.Reversible(), rh.Snapshots(), rh.Unroll(), rh.Neumann(3)], ids=repr)
def test_refused_before_training(adjoint):
    model = model_of(Wrong.apply)
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="the second derivatives of"):
        train(model, adjoint=adjoint)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.get_default_dtype() == torch.float32
    assert not torch.are_deterministic_algorithms_enabled()


def test_refused_at_a_later_step():
    def loss(model, x, _):
        y = model(x[:, :4])
        return (Wrong.apply(y) if x[0, 4] > 2 else y**3).square().mean()

    batches = torch.cat([torch.randn(6, 8, 4), torch.arange(6.0).reshape(6, 1, 1).expand(6, 8, 1)], 2)

    def run(**more):
        return rh.train(model_of(), loss, batches, optimizer=rh.SGD(0.01), **more)

    assert run().report.derivative_error < 1e-6
    with pytest.raises(RuntimeError, match="at step 3 the second derivatives of the loss are wrong"):
        run(check_derivatives=2)


def test_once_for_the_same_loss_model_and_shapes():
    def loss_of(power):
        return lambda model, x, _: (model(x) ** power).mean()

    assert train(model_of(), loss_of(2)).report.derivative_error is not None
    assert train(model_of(), loss_of(2)).report.derivative_error is None
    assert train(model_of(), loss_of(2), check_derivatives=1).report.derivative_error is not None
    assert train(model_of(torch.cos), loss_of(2)).report.derivative_error is None  # both are built in
    assert train(model_of().double(), loss_of(2), torch.float64).report.derivative_error is not None
    assert train(nn.Linear(4, 2), loss_of(2)).report.derivative_error is not None
    with pytest.raises(RuntimeError, match="the second derivatives of"):
        train(model_of(Wrong.apply), loss_of(2))


def test_a_stopped_gradient():
    """The gradient depends on what was detached, which torch's derivative of it does not know."""

    def loss(model, x, _):
        y = model(x)
        return ((y - y.flip(0).detach()) ** 2).mean()

    with pytest.raises(
        RuntimeError, match=r"the second derivatives of the loss are wrong.*or the loss has a detach\(\) of something"
    ):
        train(model_of(), loss)


def test_what_a_loss_has_closed_over_counts():
    def loss_of(function):
        return lambda model, x, _: function(model(x)).mean()

    def right(y):
        return y**3

    def wrong(y):
        return Wrong.apply(y)

    train(model_of(), loss_of(right))
    with pytest.raises(RuntimeError, match="the second derivatives of the loss are wrong"):
        train(model_of(), loss_of(wrong))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_hyperparameters_and_micro_batches(accumulate):
    scale = torch.ones(2, requires_grad=True)

    def run(function):
        loss = lambda model, x, scale: (model(x).square() * function(scale)).mean()  # noqa: E731
        return train(model_of(), loss, hyperparameters=scale, accumulate=accumulate, check_derivatives=1)

    assert run(torch.exp).report.derivative_error < 1e-6
    with pytest.raises(RuntimeError, match="the second derivatives of the loss are wrong"):
        run(lambda s: s * s.detach())  # differentiable by hyperparameters through one of two


def test_a_loss_that_float64_does_not_fit():
    """Then differences are coarse, and kinks may be what they show: it warns."""

    class Float32Only(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, power):
            assert x.dtype == torch.float32
            ctx.save_for_backward(x)
            ctx.power = power
            return x**power

        @staticmethod
        def backward(ctx, g):
            (x,) = ctx.saved_tensors
            return ctx.power * g * (x if ctx.power == 2 else x.detach() ** (ctx.power - 1)), None

    def loss_of(power):
        return lambda model, x, _: Float32Only.apply(model(x), power).sum()

    assert train(model_of(), loss_of(2), check_derivatives=1).report.derivative_error < 0.1
    with pytest.warns(RuntimeWarning, match="at step 0, in float32, second derivatives and differences .* apart"):
        train(nn.Linear(4, 2), loss_of(3), check_derivatives=1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("wide", [True, False])
def test_nothing_is_moved(dtype, wide):
    scale = torch.tensor([0.3, 0.7], dtype=dtype, requires_grad=True)
    model = model_of(dtype=dtype)
    before = [p.detach().clone() for p in (scale, *model.parameters())]

    def loss(model, x, scale):
        y = model(x)
        assert wide or y.dtype == dtype
        return (y * scale).square().mean()

    runs = [train(model, loss, dtype, hyperparameters=scale, check_derivatives=check) for check in (2, False)]
    assert all(torch.equal(a, b) for a, b in zip(before, (scale, *model.parameters()), strict=True))
    assert all(torch.equal(w, runs[1][name]) for name, w in runs[0].items())


def test_not_without_hypergradients():
    model = model_of(Wrong.apply).requires_grad_(True)
    with torch.no_grad():
        assert train(model).report.derivative_error is None


def test_chosen_by_number():
    assert train(model_of(Wrong.apply), check_derivatives=False).report.derivative_error is None
    for wrong, error in ((0, ValueError), (1.5, TypeError), ("yes", TypeError)):
        with pytest.raises(error, match="check_derivatives: expected an integer >= 1 or True or False, got"):
            train(model_of(), check_derivatives=wrong)


def test_elements_on_a_jump_that_nothing_moves():
    """Orthogonal by householder casts a diagonal of -1 and 1, whose gradient is zero, to integers."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.utils.parametrizations.orthogonal(nn.Linear(4, 6)), nn.Tanh(), nn.Linear(6, 2))
    assert train(model).report.derivative_error < 1e-4


@pytest.mark.parametrize("cube", [torch.sin, Wrong.apply])
def test_what_is_computed_again_in_a_backward_is_as_wide(cube):
    def loss(model, x, _):
        return square(lambda x: checkpoint(model, x, use_reentrant=False), x, _)

    if cube is torch.sin:
        assert train(model_of(cube), loss).report.derivative_error < 1e-6
        return
    with pytest.raises(RuntimeError, match="the second derivatives of '2'"):
        train(model_of(cube), loss)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_spectral_norm(mode):
    """While training, its vectors follow the weights, without a derivative; otherwise they stay."""
    model = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 6)), nn.Tanh(), nn.Linear(6, 2))
    if mode == "eval":
        assert train(model.eval()).report.derivative_error < 1e-6
        return
    with pytest.raises(
        RuntimeError, match=r"the second derivatives of '0.parametrizations.weight.0' \(_SpectralNorm\) are wrong"
    ):
        train(model)


def test_buffers_that_move_and_are_not_read():
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 2))
    assert train(model).report.derivative_error < 1e-6
    assert int(model[1].num_batches_tracked) == 0


def test_a_transformation_of_torch_func_in_the_loss():
    def slope(model, x, _):
        return torch.func.grad(lambda x: model(x).sum())(x).square().mean()

    assert train(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)), slope).report.derivative_error < 1e-6
