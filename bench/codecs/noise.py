"""How far SGD in either codec ends from SGD in float64, and that both come back to their first bits."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch.nn import functional as F

from bench.codecs.rational import RationalDecay
from reversible_hypergrad import core

Array = np.ndarray[Any, Any]
FRACTION_BITS = {64: (47, 47), 32: (26, 23)}  # of weights and velocities
RATES = {0.9: 0.1, 0.99: 0.01, 0.8731: 0.1, 0.95: 0.05, 0.999: 0.001}  # learning rates by momentum


class Velocity(Protocol):
    """What both codecs offer."""

    @property
    def values(self) -> Array: ...
    @property
    def bits(self) -> float: ...
    def decay(self, factor: float) -> None: ...
    def undo_decay(self) -> None: ...
    def add(self, x: Array) -> None: ...
    def undo_add(self, x: Array) -> None: ...


class Digits:
    """An MLP (64-128-10, tanh) on scikit-learn's digits, batches of 64: gradients of one flat weight vector."""

    def __init__(self, steps: int, seed: int = 0) -> None:
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
        self.images, self.labels = torch.tensor(images / 16.0), torch.tensor(labels)
        generator = torch.Generator().manual_seed(seed)
        self.batches = torch.randint(0, len(labels), (steps, 64), generator=generator)
        self.shapes = [(128, 64), (128,), (10, 128), (10,)]
        parts = [torch.randn(shape, generator=generator) / shape[-1] ** 0.5 * (len(shape) > 1) for shape in self.shapes]
        self.start = torch.cat([part.flatten() for part in parts])  # float32 numbers, for every run

    def gradient(self, weights: torch.Tensor, step: int) -> torch.Tensor:
        leaf = weights.detach().requires_grad_()
        sizes = [int(np.prod(shape)) for shape in self.shapes]
        w1, b1, w2, b2 = (part.view(shape) for part, shape in zip(leaf.split(sizes), self.shapes, strict=True))
        batch = self.batches[step]
        hidden = torch.tanh(F.linear(self.images[batch].to(leaf.dtype), w1, b1))
        return torch.autograd.grad(F.cross_entropy(F.linear(hidden, w2, b2), self.labels[batch]), leaf)[0]


def plain(task: Digits, momentum: float, steps: int, dtype: torch.dtype) -> Array:
    """The last weights of torch.optim.SGD."""
    weights = torch.nn.Parameter(task.start.to(dtype, copy=True))
    optimizer = torch.optim.SGD([weights], lr=RATES[momentum], momentum=momentum)
    for step in range(steps):
        weights.grad = task.gradient(weights, step)
        optimizer.step()
    return weights.detach().double().numpy()


@dataclass
class Run:
    weights: Array
    bits: float  # kept per weight, all steps
    restored: bool


def reversible(task: Digits, momentum: float, steps: int, codec: str, state_bits: int) -> Run:
    """A float32 model whose weights and velocities are integers, trained and undone."""
    layout = core.FORMATS[state_bits]
    real = layout.real.type
    weight_bits, velocity_bits = FRACTION_BITS[state_bits]
    weight_sigma, rate = 2.0**-weight_bits, real(RATES[momentum])
    makers: dict[str, Callable[[], Velocity]] = {
        "rational": lambda: RationalDecay(len(task.start), velocity_bits, state_bits),
        "planes": lambda: core.ReversibleDecay(np.zeros(len(task.start)), velocity_bits, state_bits),
    }
    velocity = makers[codec]()
    start = integers = core.quantize(task.start.numpy(), weight_sigma, state_bits)

    def gradient(step: int) -> Array:
        visible = core.dequantize(integers, weight_sigma).astype(np.float32)
        return task.gradient(torch.from_numpy(visible), step).numpy()

    for step in range(steps):
        slope = gradient(step)
        velocity.decay(momentum)
        velocity.add(slope)
        integers = integers - core.quantize(rate * velocity.values, weight_sigma, state_bits)
    last, bits = core.dequantize(integers, weight_sigma).astype(np.float64), velocity.bits
    for step in reversed(range(steps)):
        integers = integers + core.quantize(rate * velocity.values, weight_sigma, state_bits)
        velocity.undo_add(gradient(step))
        velocity.undo_decay()
    return Run(last, bits, bool((integers == start).all()) and not velocity.values.any())


def distance(weights: Array, reference: Array) -> float:
    return float(np.linalg.norm(weights - reference) / np.linalg.norm(reference))
