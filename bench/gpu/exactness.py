"""The bits of the CPU and of the GPU, and a thousand steps undone on real models."""

import time
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reversible_hypergrad as rh
from bench.gpu.data import cifar10, text
from bench.gpu.models import language_model, resnet
from bench.gpu.report import Deadline, Setup

__all__ = ["language_model_undone", "resnet_undone", "same_bits"]


def same_bits(setup: Setup, deadline: Deadline) -> Iterator[str]:
    """The same gradients on both, weights compared after every step and on the way back."""
    shapes, steps = [(1000, 37), (513,), (7,), (64, 3, 3, 3)], 5 if setup.tiny else 200
    for bits in (32, 64):
        generator = torch.Generator().manual_seed(bits)
        start = [torch.randn(shape, generator=generator) for shape in shapes]
        gradients = [[torch.randn(shape, generator=generator) for shape in shapes] for _ in range(steps)]
        sides = [[w.clone().to(device).requires_grad_() for w in start] for device in (torch.device("cpu"), setup.device)]
        optimizers = [rh.ReversibleSGD(side, lr=0.01, momentum=0.9, weight_decay=1e-3, state_bits=bits) for side in sides]

        def give(t: int, side: list[Tensor], gradients: list[list[Tensor]] = gradients) -> None:
            for weight, gradient in zip(side, gradients[t], strict=True):
                weight.grad = gradient.to(weight.device)

        journey = [(t, True) for t in range(steps)] + [(t, False) for t in reversed(range(steps))]
        for t, forward in journey:
            deadline.check()
            for side, optimizer in zip(sides, optimizers, strict=True):
                give(t, side)
                if forward:
                    optimizer.step()
                else:
                    optimizer.step_back(lambda: None)  # the gradients stand
            _demand_equal(sides[0], sides[1], f"state of {bits} bits, at step {t}, {setup.device} and the CPU")
        _demand_equal(sides[0], start, f"state of {bits} bits, the start")
        yield f"- state of {bits} bits: {steps} steps and back, {sum(w.numel() for w in start):,} weights: every bit the same"
    if setup.device.type == "cpu":
        yield "- (no GPU: the CPU was compared with itself)"


def resnet_undone(setup: Setup, deadline: Deadline) -> Iterator[str]:
    batch, steps = (4, 3) if setup.tiny else (128, 1000)
    images, labels, source = cifar10(setup.data, 32 if setup.tiny else 10_000)
    images, labels = images.to(setup.device), labels.to(setup.device)
    torch.manual_seed(0)
    model = (resnet(4, 1) if setup.tiny else resnet()).to(setup.device)

    def loss(step: int) -> Tensor:
        index = torch.arange(step * batch, (step + 1) * batch, device=setup.device) % len(labels)
        return F.cross_entropy(model(images[index]), labels[index])

    yield f"Data: {source}."
    yield from _there_and_back(model, loss, steps, f"ResNet, batch {batch}, lr 0.05", 0.05, deadline)


def language_model_undone(setup: Setup, deadline: Deadline) -> Iterator[str]:
    batch, steps = (2, 3) if setup.tiny else (8, 1000)
    torch.manual_seed(0)
    model = language_model(setup.tiny).to(setup.device)
    context = len(model.places)
    windows, source = text(setup.data, 16 if setup.tiny else 8000, context + 1)
    windows = windows.to(setup.device)

    def loss(step: int) -> Tensor:
        chosen = windows[torch.arange(step * batch, (step + 1) * batch, device=setup.device) % len(windows)]
        return F.cross_entropy(model(chosen[:, :-1]).flatten(0, 1), chosen[:, 1:].flatten())

    yield f"Data: {source}."
    yield from _there_and_back(model, loss, steps, f"transformer, {batch} windows of {context} bytes, lr 0.02", 0.02, deadline)


def _there_and_back(
    model: nn.Module, loss: Callable[[int], Tensor], steps: int, what: str, lr: float, deadline: Deadline
) -> Iterator[str]:
    start = [p.detach().clone() for p in model.parameters()]
    optimizer = rh.ReversibleSGD(model.parameters(), lr=lr, momentum=0.9)

    def closure(step: int) -> Callable[[], Tensor]:
        def evaluate() -> Tensor:
            deadline.check()
            optimizer.zero_grad()
            value = loss(step)
            value.backward()
            return value.detach()

        return evaluate

    began = time.monotonic()
    losses = [optimizer.step(closure(step)) for step in range(steps)]
    middle = time.monotonic()
    if all(torch.equal(p, s) for p, s in zip(model.parameters(), start, strict=True)):
        raise AssertionError(f"{what}: expected that training moves the weights, but they are those of the start")
    optimizer.rewind(closure(step) for step in reversed(range(steps)))
    end = time.monotonic()
    _demand_equal(list(model.parameters()), start, what)
    weights = sum(w.numel() for w in start)
    yield (
        f"{what}: {weights:,} weights, {steps:,} steps in {middle - began:.1f} s (loss {losses[0].item():.3f} to "
        f"{losses[-1].item():.3f}), undone in {end - middle:.1f} s: **every bit of every weight as at the start**."
    )


def _demand_equal(mine: list[Tensor], expected: list[Tensor], what: str) -> None:
    for i, (a, b) in enumerate(zip(mine, expected, strict=True)):
        if not torch.equal(a.detach().cpu(), b.detach().cpu()):
            raise AssertionError(f"{what}: expected the same bits, but tensor {i} of shape {tuple(a.shape)} differs")
