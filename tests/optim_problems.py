"""Small real problems, and a view of an optimizer that compares to the last bit. Shared by tests/optim."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import reversible_hypergrad as rh

Closure = Callable[[], Any]


def bits(tensor: Tensor) -> tuple[Any, ...]:
    """Equal for two tensors only if they are the same to the last bit, signs of zeros and NaNs included."""
    flat = tensor.detach().contiguous().flatten()
    return tensor.dtype, tuple(tensor.shape), flat.view(torch.uint8).cpu().numpy().tobytes() if flat.numel() else b""


def plain(value: Any) -> Any:
    """Tensors anywhere inside become their bits, so that ``==`` compares everything."""
    if isinstance(value, Tensor):
        return bits(value)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def frozen(optimizer: rh.ReversibleSGD) -> dict[str, Any]:
    """Weights, integers, scales, records and settings as they are now; not where they were computed."""
    groups = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    weights = [p for g in optimizer.param_groups for p in g["params"]]
    state = {
        i: {k: v for k, v in own.items() if k not in ("environment", "digest")}
        for i, own in optimizer.state_dict()["state"].items()
    }
    return {"weights": plain(weights), "groups": plain(groups), "state": plain(state)}


def quanta(optimizer: rh.ReversibleSGD) -> list[tuple[float, float]]:
    """What a unit of each parameter's velocity and weight is worth now."""
    found = []
    for entry in optimizer.state_dict()["state"].values():
        if entry["part"] < 0:  # its first step has not come
            found.append((0.0, 0.0))
            continue
        fractions, row = entry["fractions"].tolist(), entry["exponents"].tolist()
        found.append((fractions[0] * 2.0 ** row[2], fractions[1] * 2.0 ** row[3]))
    return found


def weights_of(optimizer: torch.optim.Optimizer) -> list[Any]:
    return plain([p for g in optimizer.param_groups for p in g["params"]])


@contextmanager
def refused(optimizer: rh.ReversibleSGD, error: type[BaseException], *words: str) -> Iterator[None]:
    """The block must raise ``error`` with all ``words`` in its message, and change nothing."""
    before = frozen(optimizer)
    with pytest.raises(error) as caught:
        yield
    message = str(caught.value)
    missing = [word for word in words if word not in message]
    assert not missing, f"{missing} not in: {message}"
    after = frozen(optimizer)
    changed = [key for key in before if before[key] != after[key]]
    assert not changed, f"changed by a refused call: {changed}"


def setting_gradients(parameters: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> Closure:
    """A closure of a loss with known gradients: it only puts them there."""

    def closure() -> Tensor:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = None if gradient is None else gradient.clone()
        return torch.tensor(0.0)

    return closure


def random_gradients(parameters: Sequence[Tensor], seed: int, scale: float = 1.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [(scale * torch.randn(p.shape, generator=generator)).to(p.dtype) for p in parameters]


def random_parameters(*shapes: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]


def take_steps(optimizer: rh.ReversibleSGD, count: int, first: int = 0, scale: float = 1.0) -> list[Closure]:
    """``count`` steps with random gradients; their closures, oldest first."""
    parameters = [p for g in optimizer.param_groups for p in g["params"]]
    closures = [setting_gradients(parameters, random_gradients(parameters, first + i, scale)) for i in range(count)]
    for closure in closures:
        optimizer.step(closure)
    return closures


@functools.cache
def digits() -> tuple[Tensor, Tensor]:
    """Images (1797, 64) in [0, 1] and labels."""
    data = load_digits()
    return torch.tensor(data.data / 16, dtype=torch.float32), torch.tensor(data.target)


def digits_batch(step: int, size: int = 16) -> tuple[Tensor, Tensor]:
    images, labels = digits()
    chosen = torch.randint(len(labels), (size,), generator=torch.Generator().manual_seed(step))
    return images[chosen], labels[chosen]


def mlp(seed: int = 0, hidden: int = 16) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, hidden), nn.Tanh(), nn.Linear(hidden, 10))


def convnet(seed: int = 0) -> nn.Module:
    """BatchNorm, GroupNorm and SiLU, on 8x8 images given flat."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 4, 3, stride=2, padding=1),
        nn.BatchNorm2d(4),
        nn.SiLU(),
        nn.Conv2d(4, 8, 3, stride=2, padding=1),
        nn.GroupNorm(2, 8),
        nn.SiLU(),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


class Transformer(nn.Module):
    """One encoder layer with dropout over the eight rows of an image as tokens."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Linear(8, 16)
        self.position = nn.Parameter(0.02 * torch.randn(8, 16))
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.2, batch_first=True)
        self.head = nn.Linear(16, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.layer(self.embed(images.unflatten(1, (8, 8))) + self.position).mean(1))


def digits_closure(model: nn.Module, optimizer: torch.optim.Optimizer, step: int, size: int = 16) -> Closure:
    """Step number ``step`` of training: its batch, and the random numbers of its dropout."""

    def closure() -> Tensor:
        torch.manual_seed(step)
        optimizer.zero_grad()
        images, labels = digits_batch(step, size)
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        return loss

    return closure


def train_and_rewind(
    optimizer: rh.ReversibleSGD,
    closure_of: Callable[[int], Closure],
    steps: int,
    prepare: Callable[[int], None] = lambda step: None,
) -> None:
    """Trains, rewinds to the start, and compares every bit there, after one step, and in the middle.

    ``prepare`` sets a step's learning rate or momentum; rewinding must bring these back by itself.
    """
    marks = {}
    for step in range(steps):
        prepare(step)
        if step in (0, 1, steps // 2):
            marks[step] = frozen(optimizer)
        optimizer.step(closure_of(step))
    assert frozen(optimizer)["weights"] != marks[0]["weights"]
    for step in reversed(range(steps)):
        optimizer.step_back(closure_of(step))
        if step in marks:
            now = frozen(optimizer)
            differing = [key for key in now if now[key] != marks[step][key]]
            assert not differing, f"after rewinding to step {step}: {differing} differ"
    assert optimizer.memory()["information_bytes"] == 0


def warm_up_and_cosine(step: int, steps: int, lr: float) -> float:
    return lr * min((step + 1) / 50, 0.5 * (1 + math.cos(math.pi * step / steps)))


def scheduled(optimizer: torch.optim.Optimizer, schedule: str, steps: int) -> Callable[[int], None]:
    """What sets each step's learning rate: the present one as the peak of warm-up and "cosine", or "constant"."""
    (group,) = optimizer.param_groups
    peak = group["lr"]

    def prepare(step: int) -> None:
        group["lr"] = peak if schedule == "constant" else warm_up_and_cosine(step, steps, peak)

    return prepare


def undo_digits(
    kind: Callable[..., rh.ReversibleSGD], model: nn.Module, steps: int, schedule: str, decay: float, state_bits: int
) -> None:
    """Trains ``model`` on digits by an optimizer of ``kind``, and undoes it bit for bit."""
    optimizer = kind(model.parameters(), lr=3e-3, weight_decay=decay, state_bits=state_bits)
    train_and_rewind(optimizer, lambda t: digits_closure(model, optimizer, t), steps, scheduled(optimizer, schedule, steps))
