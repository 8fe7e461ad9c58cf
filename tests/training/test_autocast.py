"""Few digits: a warning once per run, and no cast of earlier weights, by whatever strategy."""

from __future__ import annotations

import contextlib
import warnings

import pytest
import torch
import torch.nn.functional as F
from runs import STRATEGIES, Run, same

import reversible_hypergrad as rh

ALL = {**STRATEGIES, "forward mode": rh.ForwardMode(), "micro-batches": None, "compiled": None}
by_strategy = pytest.mark.parametrize("strategy", [*list(ALL)[:-1], pytest.param("compiled", marks=pytest.mark.slow)])
OPTIONS = {"micro-batches": {"accumulate": 2}, "compiled": {"compile": {"backend": "aot_eager"}}}
AROUND = {
    "nothing": contextlib.nullcontext,
    "a disabled autocast": lambda: torch.autocast("cpu", enabled=False),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


class Cast(Run):
    """Its model is called under autocast."""

    def __init__(self, cache: bool) -> None:
        super().__init__(dtype=torch.float32, steps=6)
        self.cache = cache

    def loss(self, model, index, hyperparameters):
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=self.cache):
            logits = model(self.x[index])
        penalty = hyperparameters.exp() * sum(p.square().sum() for p in model.parameters())
        return F.cross_entropy(logits.float(), self.y[index]) + penalty

    def hypergradients(self, strategy, around):
        """Trained weights, and gradients of a value that they, an average of them and a loss along the way have part in."""
        decay = torch.tensor(0.7, requires_grad=True)
        readouts = {"average": rh.ExponentialAverage(decay), "along": rh.LossAt(self.loss, torch.arange(9), [2, 4])}
        with AROUND[around]():
            trained = self.train(ALL[strategy], readouts=readouts, **OPTIONS.get(strategy, {}))
            value = trained.readouts["along"].sum() + sum(w.square().sum() for w in trained.readouts["average"].values())
            value = value + sum((w * torch.linspace(-1, 1, w.numel()).reshape(w.shape)).sum() for w in trained.values())
            return [w.detach() for w in trained.values()], torch.autograd.grad(value, [self.lr, self.l2, decay])


@pytest.mark.filterwarnings("ignore:loss. it computes:RuntimeWarning")
@by_strategy
def test_no_cast_of_earlier_weights(strategy):
    """Inside of another autocast, whatever it says, the end of one does not clear the cache. Each weight is cast once in a step,
    so that a cache changes no bit as long as it holds casts of the present weights."""
    trained, gradients = Cast(cache=False).hypergradients(strategy, "nothing")
    for around in ("nothing", "a disabled autocast"):
        found = Cast(cache=True).hypergradients(strategy, around)
        assert same(found[0], trained), around
        assert same(found[1], gradients), around


@pytest.mark.filterwarnings("ignore:loss. it computes:RuntimeWarning")
@by_strategy
def test_no_cast_of_earlier_weights_around_all(strategy):
    with_cache, without = (Cast(cache).hypergradients(strategy, "autocast") for cache in (True, False))
    assert same(with_cache[0], without[0])
    assert same(with_cache[1], without[1])


def loss_in(dtype):
    def loss(model, x, _):
        with torch.autocast("cpu", dtype):
            return model(x).float().square().mean()

    return loss


def warned(call):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [str(w.message) for w in caught if str(w.message).startswith("loss: it computes")]


def train(loss=lambda model, x, _: model(x).float().square().mean(), dtype=torch.float32, **more):
    torch.manual_seed(0)
    model = torch.nn.Linear(32, 1).to(dtype)
    trained = rh.train(model, loss, torch.randn(5, 4, 32).to(dtype), optimizer=rh.SGD(0.1), **more)
    sum(w.float().sum() for w in trained.values()).backward()
    assert trained.report.restored


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"adjoint": rh.Snapshots()},
        {"accumulate": 2},
        pytest.param({"compile": {"backend": "aot_eager"}}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_16_bits_are_a_warning_once_per_run(dtype, more):
    readouts = {"loss": rh.LossAt(loss_in(dtype), torch.randn(4, 32), [1, 3])}
    cases = [
        lambda: train(loss_in(dtype), **more),
        lambda: train(loss_in(dtype), readouts=readouts, **more),
        lambda: train(lambda model, x, _: model(x).to(dtype).square().mean().float(), **more),
        lambda: train(dtype=dtype, **more),
    ]
    for case in cases:
        (message,) = warned(case)
        assert f"in {dtype} (autocast, a cast, or weights" in message
        assert "Give train() a float32 model, and leave autocast out" in message


def test_autocast_around_is_a_warning():
    with torch.autocast("cpu", torch.bfloat16):
        assert len(warned(train)) == 1


def test_float32_and_float64_are_none():
    assert warned(train) == warned(lambda: train(dtype=torch.float64)) == []


def test_shortened_products_are_a_warning():
    """Where the machine does shorten them."""
    try:
        torch.set_float32_matmul_precision("medium")
        found = warned(train)
        assert warned(lambda: train(dtype=torch.float64)) == []
    finally:
        torch.set_float32_matmul_precision("highest")
    assert len(found) == bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    assert all('torch.set_float32_matmul_precision("highest"), before train()' in text for text in found)
