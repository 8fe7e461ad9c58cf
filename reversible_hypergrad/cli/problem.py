"""The tuning problem: a classifier, everything that its training is told, and how it does afterwards."""

import itertools
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reversible_hypergrad as rh
from reversible_hypergrad.cli.data import Data, Part

__all__ = ["Curves", "Problem", "Recipe", "Score"]


@dataclass
class Recipe:
    """The hyperparameters of one training run, in coordinates in which any real number is allowed.

    Attributes:
        log_l2: parameter name -> log of the L2 penalty of each weight: exp(log_l2) * w**2 / 2 is added to the loss.
        log_lr: of shape (steps, 1), one per layer.
        momentum_logit: of shape (steps,).
        log_scale: of shape (), one per layer: the logarithm of the standard deviation of its initial weights.
    """

    log_l2: dict[str, Tensor]
    log_lr: list[Tensor]
    momentum_logit: Tensor
    log_scale: list[Tensor]

    def kinds(self) -> dict[str, list[Tensor]]:
        return {
            "penalties": list(self.log_l2.values()),
            "learning rates": self.log_lr,
            "momenta": [self.momentum_logit],
            "initial scales": self.log_scale,
        }

    def tensors(self) -> list[Tensor]:
        return list(itertools.chain.from_iterable(self.kinds().values()))

    def count(self) -> dict[str, int]:
        return {kind: sum(t.numel() for t in tensors) for kind, tensors in self.kinds().items()}

    def momentum(self) -> Tensor:
        """In float64, between 0.001 and 0.999."""
        return torch.sigmoid(self.momentum_logit.double()).clamp(0.001, 0.999)

    def detached(self) -> "Recipe":
        """A copy that stays as it is when this one learns."""
        return Recipe(
            {name: t.detach().clone() for name, t in self.log_l2.items()},
            [t.detach().clone() for t in self.log_lr],
            self.momentum_logit.detach().clone(),
            [t.detach().clone() for t in self.log_scale],
        )


@dataclass(frozen=True)
class Score:
    """Cross-entropy in nats and share of wrong answers in percent, over several runs."""

    loss: float
    loss_sd: float  # standard deviation between the runs, 0 for a single one
    error: float
    error_sd: float

    @staticmethod
    def of(results: Sequence[tuple[float, float]]) -> "Score":
        both = torch.tensor(results, dtype=torch.float64)
        mean = both.mean(0).tolist()
        sd = both.std(0).tolist() if len(results) > 1 else [0.0, 0.0]
        return Score(mean[0], sd[0], mean[1], sd[1])


@dataclass(frozen=True)
class Curves:
    steps: list[int]
    training: list[float]
    validation: list[float]


class Problem:
    """A tanh network on ``data``, from a start that ``seed`` fixes, in any order of minibatches.

    Args:
        hidden: sizes of the hidden layers. steps, batch_size: of training.
        state_bits: of the reversible optimizer.
    """

    def __init__(self, data: Data, hidden: Sequence[int], steps: int, batch_size: int, seed: int, state_bits: int) -> None:
        self.data, self.steps, self.batch_size, self.seed = data, steps, batch_size, seed
        self.adjoint = rh.Reversible(state_bits=state_bits)
        self.sizes = [math.prod(data.shape), *hidden, data.classes]
        self.layers = [f"layer{i + 1}" for i in range(len(self.sizes) - 1)]
        self.model = _network(self.sizes, self.layers)
        self.weights = sum(p.numel() for p in self.model.parameters())

    def constant_recipe(self, lr: float, l2: float, momentum: float = 0.9) -> Recipe:
        """What one writes by hand: constants, and initial weights of variance 1 / (inputs of the layer)."""
        return Recipe(
            {name: torch.full(p.shape, math.log(l2)) for name, p in self.model.named_parameters()},
            [torch.full((self.steps, 1), math.log(lr)) for _ in self.layers],
            torch.full((self.steps,), math.log(momentum / (1 - momentum))),
            [torch.tensor(-0.5 * math.log(inputs)) for inputs in self.sizes[:-1]],
        )

    def initial(self, recipe: Recipe, start: int = 0) -> dict[str, Tensor]:
        """Random directions, the same for every recipe, times the learned scale of the layer; biases at zero."""
        generator = torch.Generator().manual_seed(1000 * self.seed + start)
        weights = {}
        for layer, log_scale in zip(self.layers, recipe.log_scale, strict=True):
            shape = self.model.get_parameter(f"{layer}.weight").shape
            weights[f"{layer}.weight"] = torch.randn(shape, generator=generator) * log_scale.exp()
            weights[f"{layer}.bias"] = torch.zeros(shape[0])
        return weights

    def batches(self, order: int) -> Callable[[int], tuple[Tensor, Tensor]]:
        """Shuffled epochs; another order of examples for each number."""
        part = self.data.training
        loader = rh.ReplayableLoader(range(len(part)), self.batch_size, seed=1_000_000 * self.seed + order, drop_last=True)
        chosen = [torch.tensor(loader.indices(step)) for step in range(self.steps)]
        return lambda step: (part.images[chosen[step]], part.labels[chosen[step]])

    def train(self, recipe: Recipe, order: int, start: int = 0, loss: Any = None) -> rh.TrainedWeights:
        """One training run as a differentiable function of the recipe."""
        lr = {f"{layer}.*": log_lr.exp() for layer, log_lr in zip(self.layers, recipe.log_lr, strict=True)}
        # A leading 1 says "one per weight" even where a layer happens to have as many units as there are steps.
        l2 = {name: log_l2.exp().unsqueeze(0) for name, log_l2 in recipe.log_l2.items()}
        return rh.train(
            self.model,
            _cross_entropy if loss is None else loss,
            self.batches(order),
            steps=self.steps,
            optimizer=rh.SGD(lr=lr, momentum=recipe.momentum(), weight_decay=l2),
            initial=self.initial(recipe, start),
            adjoint=self.adjoint,
            seed=self.seed,
        )

    def loss(self, trained: rh.TrainedWeights, part: Part) -> Tensor:
        return F.cross_entropy(self._outputs(trained, part), part.labels)

    def result(self, trained: rh.TrainedWeights, part: Part) -> tuple[float, float]:
        """Loss, and error in percent."""
        with torch.no_grad():
            outputs = self._outputs(trained, part)
            wrong = outputs.argmax(1) != part.labels
            return F.cross_entropy(outputs, part.labels).item(), 100 * wrong.double().mean().item()

    def curves(self, recipe: Recipe, order: int) -> Curves:
        """Loss of all training and validation examples along one run, at about 100 steps."""
        every = max(1, self.steps // 100)
        parts = (self.data.training, self.data.validation)
        curves = Curves([], [], [])
        step = 0

        def note(losses: Sequence[float]) -> None:
            curves.steps.append(step)
            curves.training.append(losses[0])
            curves.validation.append(losses[1])

        def watched(model: nn.Module, batch: Any, hyperparameters: Any) -> Tensor:
            nonlocal step
            if step % every == 0:
                with torch.no_grad():
                    note([F.cross_entropy(model(part.images), part.labels).item() for part in parts])
            step += 1
            return _cross_entropy(model, batch, hyperparameters)

        with torch.no_grad():
            trained = self.train(recipe, order, loss=watched)
        note([self.result(trained, part)[0] for part in parts])
        return curves

    def plain_seconds(self, recipe: Recipe, order: int, repeats: int = 5) -> float:
        """Median time of the same training by ``torch.optim.SGD``: schedules by layer, but one L2 penalty per layer."""
        momentum, rates = recipe.momentum().tolist(), [log_lr.exp().flatten().tolist() for log_lr in recipe.log_lr]
        batches, times = self.batches(order), []
        for _ in range(repeats):
            model = _network(self.sizes, self.layers)
            groups = [
                {
                    "params": list(model.get_submodule(layer).parameters()),
                    "weight_decay": recipe.log_l2[f"{layer}.weight"].exp().mean().item(),
                }
                for layer in self.layers
            ]
            optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
            began = time.perf_counter()
            for step in range(self.steps):
                for group, lr in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"], group["momentum"] = lr[step], momentum[step]
                optimizer.zero_grad()
                _cross_entropy(model, batches(step), None).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            times.append(time.perf_counter() - began)
        return sorted(times)[repeats // 2]

    def _outputs(self, trained: rh.TrainedWeights, part: Part) -> Tensor:
        outputs: Tensor = torch.func.functional_call(self.model, dict(trained), part.images)
        return outputs


def _network(sizes: Sequence[int], layers: Sequence[str]) -> nn.Sequential:
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    for i, layer in enumerate(layers):
        modules[layer] = nn.Linear(sizes[i], sizes[i + 1])
        if i + 1 < len(layers):
            modules[f"tanh{i + 1}"] = nn.Tanh()
    return nn.Sequential(modules)


def _cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor], hyperparameters: Any) -> Tensor:
    images, labels = batch
    return F.cross_entropy(model(images), labels)
