"""What torch's second derivatives leave out, and tensors that would get no gradient, whichever step they enter at."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from runs import STRATEGIES
from torch import nn
from torch.utils.checkpoint import checkpoint

import reversible_hypergrad as rh

ALL = {**STRATEGIES, "forward mode": rh.ForwardMode()}
STEPS = 10


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1)).double()


class Task:
    """Counts the steps that were begun."""

    def __init__(self, strategy):
        torch.manual_seed(1)
        self.model, self.x = network(), torch.randn(STEPS, 8, 4).double()
        self.scale = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
        self.strategy, self.steps = strategy, 0

    def train(self, loss, model=None, **more):
        def batch(step):
            self.steps += 1
            return step, self.x[step]

        def counted(model, batch, scale):
            return loss(model, *batch, scale)

        arguments = {"steps": STEPS, "optimizer": rh.SGD(0.1), "hyperparameters": self.scale, **more}
        arguments["check_derivatives"] = False  # it asks for batches, too
        return rh.train(self.model if model is None else model, counted, batch, adjoint=ALL[self.strategy], **arguments)

    def gradient(self, loss):
        trained = self.train(loss)
        return torch.autograd.grad(sum(w.square().sum() for w in trained.values()), self.scale)[0]


@pytest.fixture(params=ALL)
def task(request):
    return Task(request.param)


def test_a_tensor_that_wants_a_gradient_enters_late(task):
    outside = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    with pytest.raises(ValueError, match="its gradient would be lost"):
        # The same operations in every step.
        task.train(lambda model, step, x, scale: model(x).square().mean() * (scale if step < 4 else outside))
    assert task.steps == 5


def test_one_that_is_computed_outside(task):
    outside = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    computed = outside.exp()
    with pytest.raises(ValueError, match=r"its gradient would be lost"):
        task.train(lambda model, step, x, scale: model(x).square().mean() * (scale if step < 4 else computed))
    assert task.steps == 5


@pytest.mark.parametrize("keep", ["output", "weight"])
def test_what_is_kept_of_an_earlier_step_with_its_graph(task, keep):
    kept = []

    def loss(model, step, x, scale):
        kept.append(model(x) if keep == "output" else 2 * model[0].weight)
        return scale * model(x).square().mean() + (kept[-1] - kept[max(len(kept) - 2, 0)]).square().mean()

    with pytest.raises(ValueError, match=r"that was there before this step|its gradient would be lost"):
        task.train(loss)
    assert task.steps == 2


def test_what_is_kept_of_an_earlier_step_without_its_graph():
    """Replays tell that it is another one; the error is theirs."""
    task, kept = Task("snapshots"), []

    def loss(model, step, x, scale):
        kept.append(model(x).detach())
        return scale * model(x).square().mean() + (model(x) - kept[max(len(kept) - 2, 0)]).square().mean()

    with pytest.raises(rh.ReversalError):
        task.gradient(loss)


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return 2 * g * ctx.saved_tensors[0]


def test_a_once_differentiable_function_enters_late(task):
    def loss(model, step, x, scale):
        y = model(x)
        return scale * (y.square() if step < 4 else Once.apply(y)).mean()

    with pytest.raises(RuntimeError, match=r"no second derivative.*once_differentiable"):
        task.train(loss)
    assert task.steps == 5


def bag(model, step, x, scale):
    return scale * F.embedding_bag(torch.arange(6).view(2, 3), model[0].weight).square().mean()


def distance(model, step, x, scale):
    return scale * torch.cdist(model(x), x[:, :1]).square().mean()


@pytest.mark.parametrize("late", [False, True], ids=["at first", "late"])
@pytest.mark.parametrize("missing", [bag, distance])
def test_an_operation_without_second_derivative(task, missing, late):
    def loss(model, step, x, scale):
        return missing(model, step, x, scale) if step >= 4 * late else scale * model(x).square().mean()

    with pytest.raises(RuntimeError, match=r"no second derivative in torch.*EmbeddingBag.*Torch says: the derivative for '_"):
        task.train(loss)
    assert task.steps == 1 + 4 * late


@pytest.mark.parametrize("strategy", ["snapshots", "unroll"])
def test_a_compiled_function_in_the_loss(strategy):
    task = Task(strategy)
    compiled = torch.compile(torch.tanh, backend="aot_eager")
    with pytest.raises(RuntimeError, match=r"no second derivative in torch.*torch.compile"):
        task.train(lambda model, step, x, scale: scale * compiled(model(x)).square().mean())
    assert task.steps == 1


def test_a_model_that_compiles_itself_is_trained_as_it_is():
    task = Task("snapshots")
    model = network()
    model.compile(backend="aot_eager")
    loss = lambda model, step, x, scale: scale * model(x).square().mean()  # noqa: E731
    trained, expected = task.train(loss, model), task.train(loss)
    assert all(torch.equal(trained[name], expected[name]) for name in expected)


def plain(model, step, x, scale):
    return (scale * model(x)).square().mean() + 0.1 * model(x).mean()


def checkpointed(model, step, x, scale):
    return (scale * checkpoint(model, x, use_reentrant=False)).square().mean() + 0.1 * model(x).mean()


def test_a_checkpoint_is_exact_or_refused(task):
    """What Unroll computes again at its end it would compute with the weights of another step."""
    if task.strategy == "unroll":
        with pytest.raises(RuntimeError, match=r"rh.Unroll\(\) expected no torch.utils.checkpoint.*rh.Snapshots\(\)"):
            task.train(checkpointed)
        assert task.steps == 1
    else:
        torch.testing.assert_close(task.gradient(checkpointed), Task("unroll").gradient(plain), rtol=1e-9, atol=0)


def test_a_checkpoint_of_the_old_kind(task):
    def loss(model, step, x, scale):
        return scale * checkpoint(model, x.requires_grad_(), use_reentrant=True).square().mean()

    with pytest.raises(RuntimeError, match=r"expected .* with use_reentrant=False, got True"):
        task.train(loss)
    assert task.steps == 1


@pytest.mark.parametrize("strategy", ["snapshots", "reversible"])
def test_a_checkpointed_batch_norm_moves_as_often_in_every_step(strategy):
    """Once forwards, and once when it is computed again: the first step's check adds nothing."""
    norm = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 1)).double()
    trained = Task(strategy).train(checkpointed_alone, norm)
    assert int(trained.buffers["1.num_batches_tracked"]) == 2 * STEPS


def checkpointed_alone(model, step, x, scale):
    return scale * checkpoint(model, x, use_reentrant=False).square().mean()


def test_what_the_compiler_refuses_leaves_hooks_as_they_were():
    """Torch would refuse every checkpoint of the process afterwards."""
    task = Task("reversible")
    with pytest.raises(RuntimeError, match=r"compile: torch.compile refuses"):
        task.train(checkpointed, compile={"backend": "aot_eager"})
    checkpoint(task.model, task.x[0], use_reentrant=False).sum().backward()


@pytest.mark.parametrize("step", [0, 64])
def test_weights_written_through_data(step):
    """Torch does not count such writes, as those of a critic's clipping: they are looked for in every 64th loss."""
    seen = []

    def loss(model, x, _):
        seen.append(1)
        if len(seen) > step:
            model.weight.data.clamp_(-0.01, 0.01)
        return model(x).square().mean()

    with pytest.raises(RuntimeError, match=r"wrote to the weight 'weight' in place"):
        rh.train(nn.Linear(4, 1), loss, torch.randn(100, 8, 4), optimizer=rh.SGD(0.1), check_derivatives=False)
    assert len(seen) == step + 1
