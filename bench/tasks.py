"""The task that every hypergradient here is measured on: digits, a model that may be named, one log L2 penalty per weight.

    task = Task("mlp")                      # or "medium", "small", "cnn", or MODULE:FUNCTION of your own
    task = Task("my_package.models:net")    # a function that returns an nn.Module from (n, 64) pixels to (n, 10) logits

scikit-learn's digits in their order, examples 0 to 1399 to train in batches of 128, the rest to validate; SGD at lr 0.1, momentum
0.9, from weights of seed 0. The hypergradient is that of the validation loss after the last step with respect to the penalties.
"""

import pkgutil
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

__all__ = ["BATCH", "LR", "MODELS", "MOMENTUM", "PENALTIES", "Task", "Weights", "build"]

LR, MOMENTUM, BATCH, TRAINING_EXAMPLES = 0.1, 0.9, 128, 1400
Weights = list[Tensor]


def mlp() -> nn.Module:
    """85,002 weights: the race's."""
    return nn.Sequential(nn.Linear(64, 256), nn.Tanh(), nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 10))


def small() -> nn.Module:
    """1,210 weights: for tests, and for runs of 10,000 steps in seconds."""
    return nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10))


def medium() -> nn.Module:
    """15,010 weights: for runs of 10,000 steps in a minute."""
    return nn.Sequential(nn.Linear(64, 200), nn.Tanh(), nn.Linear(200, 10))


def cnn() -> nn.Module:
    """14,238 weights, two convolutions: activations outweigh the weights."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 16, 3, padding=1),
        nn.Tanh(),
        nn.Conv2d(16, 16, 3, padding=1, stride=2),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(256, 44),
        nn.Tanh(),
        nn.Linear(44, 10),
    )


MODELS: dict[str, Callable[[], nn.Module]] = {"mlp": mlp, "medium": medium, "small": small, "cnn": cnn}
PENALTIES = ("weight", "tensor")


def build(name: str) -> nn.Module:
    """The named model, from seed 0, in evaluation mode: dropout is off and batch norm is fixed, since not every method here
    replays random numbers or running statistics.

    Raises:
        ValueError: for a name that is neither built in nor a function that returns such a model.
    """
    torch.manual_seed(0)
    if name in MODELS:
        return MODELS[name]().eval()
    known = f"expected {', '.join(map(repr, MODELS))} or MODULE:FUNCTION, got {name!r}"
    if ":" not in name:
        raise ValueError(f"model: {known}")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        function = pkgutil.resolve_name(name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"model: {known}, which cannot be imported: {error}") from error
    model = function() if callable(function) else None
    if not isinstance(model, nn.Module):
        raise ValueError(f"model: expected {name} to return an nn.Module, got {type(model).__name__}")
    model = model.float().eval()
    with torch.no_grad():
        logits = model(torch.zeros(2, 64))
    if logits.shape != (2, 10):
        raise ValueError(f"model: expected {name} to map (2, 64) pixels to (2, 10) logits, got {tuple(logits.shape)}")
    return model


class Task:
    """Data, model and loss; ``penalty`` holds the hyperparameters, logarithms of L2 penalties.

    Args:
        model: see the module.
        dtype: of data, weights and penalties.
        penalties: "weight" for one per weight, "tensor" for one per parameter tensor (few enough for forward mode).
    """

    def __init__(self, model: str = "mlp", dtype: torch.dtype = torch.float32, penalties: str = "weight") -> None:
        if penalties not in PENALTIES:
            raise ValueError(f"penalties: expected one of {PENALTIES}, got {penalties!r}")
        self.model = build(model).to(dtype)
        images, labels = load_digits(return_X_y=True)
        self.x, self.y = torch.tensor(images / 16, dtype=dtype), torch.tensor(labels)
        self.names = [name for name, _ in self.model.named_parameters()]
        shapes = [p.shape if penalties == "weight" else () for p in self.model.parameters()]
        self.penalty = [torch.full(shape, -9.0, dtype=dtype, requires_grad=True) for shape in shapes]

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        index = torch.arange(step * BATCH, (step + 1) * BATCH) % TRAINING_EXAMPLES
        return self.x[index], self.y[index]

    def call(self, weights: Weights, x: Tensor) -> Tensor:
        return torch.func.functional_call(self.model, dict(zip(self.names, weights, strict=True)), x)  # type: ignore[no-any-return]

    def loss(self, call: Callable[[Tensor], Tensor], weights: Weights, batch: tuple[Tensor, Tensor], penalty: Weights) -> Tensor:
        """The training loss of a model that is already bound to ``weights``."""
        decay = torch.stack([(p.exp() * w.square()).sum() for p, w in zip(penalty, weights, strict=True)]).sum()
        return F.cross_entropy(call(batch[0]), batch[1]) + decay

    def training_loss(self, weights: Weights, step: int) -> Tensor:
        return self.loss(lambda x: self.call(weights, x), weights, self.batch(step), self.penalty)

    def validation_loss(self, weights: Weights) -> Tensor:
        return F.cross_entropy(self.call(weights, self.x[TRAINING_EXAMPLES:]), self.y[TRAINING_EXAMPLES:])

    def start(self) -> Weights:
        return [p.detach().clone().requires_grad_() for p in self.model.parameters()]
