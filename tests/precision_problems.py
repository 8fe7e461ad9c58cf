"""Training in 16 bits, under autocast, with a loss scaler and on channels-last convolutions, on any device. Used by
tests/training, tests/optim and tests/gpu."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from unroll import unroll

import reversible_hypergrad as rh
from reversible_hypergrad.replay.environment import Environment, seed_step

STEPS, EXAMPLES, BATCH, SEED = 25, 40, 10, 4


@dataclass(frozen=True)
class Precision:
    """How a run computes, and how far its hypergradients may be from float64's, relatively, since each rounding is amplified by
    training."""

    tolerance: float
    weights: torch.dtype = torch.float32
    channels_last: bool = False
    autocast: torch.dtype | None = None
    around: bool = False  # autocast is on where train() is called, not inside the loss

    def inside(self, device: str) -> Any:
        on = self.autocast is not None and not self.around
        return torch.autocast(device, self.autocast, enabled=on) if on else contextlib.nullcontext()

    def outside(self, device: str) -> Any:
        return torch.autocast(device, self.autocast) if self.autocast and self.around else contextlib.nullcontext()


BFLOAT16, FLOAT16 = torch.bfloat16, torch.float16
PRECISIONS = {
    "float32": Precision(2e-5),
    "float64, channels-last": Precision(1e-10, torch.float64, channels_last=True),
    "float32, channels-last": Precision(2e-5, channels_last=True),
    "bfloat16 weights": Precision(0.06, BFLOAT16),
    "float16 weights": Precision(0.008, FLOAT16),
    "bfloat16 weights, channels-last": Precision(0.06, BFLOAT16, channels_last=True),
    "autocast to bfloat16 in the loss": Precision(0.05, autocast=BFLOAT16),
    "autocast to bfloat16 around": Precision(0.05, autocast=BFLOAT16, around=True),
    "autocast to float16 in the loss": Precision(0.008, autocast=FLOAT16),
    "autocast to float16 around": Precision(0.008, autocast=FLOAT16, around=True),
    "autocast to bfloat16 in the loss, channels-last": Precision(0.05, autocast=BFLOAT16, channels_last=True),
    "autocast to float16 around, channels-last": Precision(0.008, autocast=FLOAT16, around=True, channels_last=True),
}


class Problem:
    """A small convolutional network, a weight per example, a penalty and a learning rate per step."""

    def __init__(self, precision: Precision, device: str) -> None:
        self.precision, self.device = precision, device
        generator = torch.Generator().manual_seed(2)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            model = nn.Sequential(
                nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Tanh(), nn.Conv2d(8, 6, 3, stride=2), nn.Tanh(),
                nn.Flatten(), nn.Linear(54, 5),
            )  # fmt: skip
        images = torch.randn(EXAMPLES, 3, 8, 8, generator=generator)
        layout = torch.channels_last if precision.channels_last else torch.contiguous_format
        self.model = model.to(device, precision.weights).to(memory_format=layout)
        self.images = images.to(device, precision.weights).to(memory_format=layout)
        self.labels = torch.randint(5, (EXAMPLES,), generator=generator).to(device)
        real = torch.float64 if precision.weights == torch.float64 else torch.float32
        self.log_lr = torch.linspace(-2.0, -3.0, STEPS, dtype=real).requires_grad_()
        self.log_l2 = torch.tensor(-5.0, dtype=real, device=device, requires_grad=True)
        self.example = torch.ones(EXAMPLES, dtype=real, device=device, requires_grad=True)

    def batch(self, step: int) -> Tensor:
        return (torch.arange(BATCH) + step * BATCH).remainder(EXAMPLES).to(self.device)

    def loss(self, model: nn.Module, index: Tensor, hyperparameters: tuple[Tensor, Tensor]) -> Tensor:
        example, log_l2 = hyperparameters
        with self.precision.inside(self.device):
            logits = model(self.images[index])
        each = F.cross_entropy(logits.to(example.dtype), self.labels[index], reduction="none")
        penalty = sum(p.to(example.dtype).square().sum() for _, p in model.named_parameters())
        return (example[index] * each).mean() + log_l2.exp() * penalty

    def downstream(self, trained: dict[str, Tensor]) -> Tensor:
        values = [w.to(self.example.dtype) for w in trained.values()]
        slopes = [torch.linspace(-1, 1, w.numel(), dtype=w.dtype, device=w.device).reshape(w.shape) for w in values]
        return sum((w * slope).sum() + w.square().sum() for w, slope in zip(values, slopes, strict=True))  # type: ignore[return-value]

    def gradients(self, trained: dict[str, Tensor]) -> list[Tensor]:
        """By learning rates, weights of examples, the penalty and the initial weights."""
        leaves = [self.log_lr, self.example, self.log_l2, *self.model.parameters()]
        return [g.cpu() for g in torch.autograd.grad(self.downstream(trained), leaves)]


def by_train(precision: Precision, device: str, adjoint: Any = None) -> tuple[dict[str, Tensor], list[Tensor], Any]:
    problem = Problem(precision, device)
    with precision.outside(device):
        trained = rh.train(
            problem.model,
            problem.loss,
            problem.batch,
            steps=STEPS,
            optimizer=rh.SGD(lr=problem.log_lr.exp(), momentum=0.8, weight_decay=0.01),
            hyperparameters=(problem.example, problem.log_l2),
            adjoint=adjoint,
            seed=SEED,
        )
    return dict(trained), problem.gradients(trained), trained.report


@functools.cache
def precise() -> list[Tensor]:
    """The same by autograd through the whole run, in float64, on the CPU."""
    problem = Problem(PRECISIONS["float64, channels-last"], "cpu")
    trained = unroll(
        problem.model,
        problem.loss,
        problem.batch,
        steps=STEPS,
        lr=problem.log_lr.exp(),
        momentum=0.8,
        weight_decay=0.01,
        hyperparameters=(problem.example, problem.log_l2),
        seed=SEED,
    )
    return problem.gradients(trained)


def by_optimizer(precision: Precision, device: str) -> tuple[dict[str, Tensor], bool]:
    """The weights that ReversibleSGD comes to along the same gradients, and whether it then comes back to every first bit."""
    problem = Problem(precision, device)
    named = dict(problem.model.named_parameters())
    start = {name: p.detach().clone() for name, p in named.items()}
    optimizer = rh.ReversibleSGD(named.values(), momentum=0.8, weight_decay=0.01)
    constants = problem.example.detach(), problem.log_l2.detach()

    def closure(step: int) -> Callable[[], None]:
        def give() -> None:
            seed_step(SEED, step, [torch.device(device)] if device != "cpu" else [])
            value = problem.loss(problem.model, problem.batch(step), constants)
            for p, g in zip(named.values(), torch.autograd.grad(value, list(named.values()), create_graph=True), strict=True):
                p.grad = torch.empty_like(p).copy_(g)

        return give

    with precision.outside(device), Environment.current([p.device for p in named.values()]).pinned():
        for step in range(STEPS):
            # As train() reads float32: the shortest decimal.
            optimizer.param_groups[0]["lr"] = float(str(problem.log_lr.detach().exp().cpu().numpy()[step]))
            optimizer.step(closure(step))
        end = {name: p.detach().clone() for name, p in named.items()}
        optimizer.rewind(closure(step) for step in reversed(range(STEPS)))
    return end, all(torch.equal(p, start[name]) for name, p in named.items())


def error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def check(precision: Precision, device: str) -> None:
    """Trains, is undone bit for bit, twice with the same bits, as the optimizer does; gradients are those of float64."""
    trained, gradients, report = by_train(precision, device)
    again, gradients_again, _ = by_train(precision, device)
    assert report.restored
    assert report.checks == STEPS
    assert all(torch.equal(w, again[n]) for n, w in trained.items())
    assert all(torch.equal(a, b) for a, b in zip(gradients, gradients_again, strict=True))
    by_hand, is_back = by_optimizer(precision, device)
    assert all(torch.equal(w, by_hand[n]) for n, w in trained.items())
    assert is_back
    largest = max(error(g, e) for g, e in zip(gradients, precise(), strict=True))
    assert largest < precision.tolerance, f"off from float64 by {largest:.1e}"
    assert all(w.dtype == precision.weights for w in trained.values())
    if precision.channels_last:
        assert trained["0.weight"].is_contiguous(memory_format=torch.channels_last)


class Scaled:
    """Mixed-precision training with a loss scaler, forward as in torch's recipe and back with the scale of the time."""

    def __init__(
        self, make: Callable[[Any], torch.optim.Optimizer], dtype: torch.dtype, init_scale: float, device: str = "cpu"
    ) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(20, 16), nn.Tanh(), nn.Linear(16, 10)).to(device)
        self.dtype, self.device = dtype, device
        self.optimizer = make(self.model.parameters())
        self.scaler = torch.amp.GradScaler(device, init_scale=init_scale, growth_interval=4)
        self.taken: list[tuple[int, float]] = []

    def backward(self, step: int, scale: Any) -> Tensor:
        self.optimizer.zero_grad()
        generator = torch.Generator().manual_seed(step)
        inputs = torch.randn(16, 20, generator=generator).to(self.device)
        labels = torch.randint(10, (16,), generator=generator).to(self.device)
        with torch.autocast(self.device, self.dtype):
            loss = 16 * F.cross_entropy(self.model(inputs), labels)
        scale(loss).backward()
        return loss.detach()

    def step(self, step: int) -> bool:
        """Returns whether the scaler let the step happen."""
        before, scale = [p.detach().clone() for p in self.model.parameters()], self.scaler.get_scale()
        self.backward(step, self.scaler.scale)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        done = any(not torch.equal(a, b) for a, b in zip(before, self.model.parameters(), strict=True))
        if done:
            self.taken.append((step, scale))
        return done

    def closure(self, step: int, scale: float) -> Callable[[], Tensor]:
        def closure() -> Tensor:
            loss = self.backward(step, lambda loss: loss * scale)
            for p in self.model.parameters():
                assert p.grad is not None
                p.grad.mul_(torch.tensor(scale).double().reciprocal().float().item())  # as GradScaler.unscale_ does
            return loss

        return closure


SCALES = {FLOAT16: 2.0**24, BFLOAT16: 2.0**127}  # overflow the gradients a few times: such steps are skipped


def check_loss_scaling(dtype: torch.dtype, device: str, frozen: Callable[[Any], Any]) -> None:
    """Beside torch's SGD: the same steps are skipped, without a trace, and the others are undone bit for bit.

    ``frozen``: everything in an optimizer, to be compared to the last bit.
    """
    ours = Scaled(lambda p: rh.ReversibleSGD(p, lr=0.01, momentum=0.9), dtype, SCALES[dtype], device)
    theirs = Scaled(lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9), dtype, SCALES[dtype], device)
    start = frozen(ours.optimizer)
    skipped = 0
    for step in range(40):
        before = frozen(ours.optimizer)
        done = ours.step(step)
        assert theirs.step(step) == done
        if not done:
            skipped += 1
            assert frozen(ours.optimizer) == before, "a skipped step must not advance"
    assert skipped > 0
    assert len(ours.taken) > 5
    for a, b in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        # 16-bit products amplify the last bit of a weight to 2^-8 of a gradient; both runs see that noise.
        torch.testing.assert_close(a, b, rtol=0.02, atol=0.02)
    assert isinstance(ours.optimizer, rh.ReversibleSGD)
    ours.optimizer.rewind([ours.closure(*taken) for taken in reversed(ours.taken)])
    assert frozen(ours.optimizer) == start
