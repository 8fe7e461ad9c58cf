"""The tuning problem: a classifier, everything that its training is told, and how it does afterwards."""

import itertools
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reversible_hypergrad as rh
from reversible_hypergrad.cli.data import Data, Part
from reversible_hypergrad.cli.optimizers import OPTIMIZERS, Optimizer

__all__ = ["Curves", "Problem", "Recipe", "Score"]


@dataclass
class Recipe:
    """The hyperparameters of one training run, in coordinates in which any real number is allowed.

    Attributes:
        optimizer: whose settings these are.
        coordinates: setting name -> parameter name or pattern -> its coordinate, of shape (steps, 1) for one per layer, (steps,)
            for one per step, that of the weight for one per weight.
        log_scale: of shape (), one per layer: the logarithm of the standard deviation of its initial weights.
    """

    optimizer: Optimizer
    coordinates: dict[str, dict[str, Tensor]]
    log_scale: list[Tensor]

    def kinds(self) -> dict[str, list[Tensor]]:
        settings = {setting.labels: list(self.coordinates[setting.name].values()) for setting in self.optimizer.settings}
        return {**settings, "initial scales": self.log_scale}

    def tensors(self) -> list[Tensor]:
        return list(itertools.chain.from_iterable(self.kinds().values()))

    def count(self) -> dict[str, int]:
        return {kind: sum(t.numel() for t in tensors) for kind, tensors in self.kinds().items()}

    def values(self) -> dict[str, dict[str, Tensor]]:
        """What the coordinates stand for; differentiable."""
        return {s.name: {k: s.value(t) for k, t in self.coordinates[s.name].items()} for s in self.optimizer.settings}

    def detached(self) -> "Recipe":
        """A copy that stays as it is when this one learns."""
        copies = {name: {k: t.detach().clone() for k, t in own.items()} for name, own in self.coordinates.items()}
        return Recipe(self.optimizer, copies, [t.detach().clone() for t in self.log_scale])

    def saved(self) -> dict[str, Any]:
        """For a file: logarithms, as log_NAME, and fractions as they are; by parameter, as a list by layer, or one schedule."""
        values, saved = self.values(), {}
        for setting in self.optimizer.settings:
            if setting.fraction:
                name, own = setting.name, values[setting.name]
            else:
                largest = math.log(setting.most)
                name, own = f"log_{setting.name}", {k: t.clamp(max=largest) for k, t in self.coordinates[setting.name].items()}
            saved[name] = {"weight": own, "layer": list(own.values()), "step": own.get("*")}[setting.per]
        return {**saved, "log_scale": self.log_scale}


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
        state_bits: of the reversible optimizer, which ``optimizer`` describes.
    """

    def __init__(
        self,
        data: Data,
        hidden: Sequence[int],
        steps: int,
        batch_size: int,
        seed: int,
        state_bits: int,
        optimizer: Optimizer = OPTIMIZERS["sgd"],
    ) -> None:
        self.optimizer = optimizer
        self.data, self.steps, self.batch_size, self.seed = data, steps, batch_size, seed
        self.adjoint = rh.Reversible(state_bits=state_bits)
        self.sizes = [math.prod(data.shape), *hidden, data.classes]
        self.layers = [f"layer{i + 1}" for i in range(len(self.sizes) - 1)]
        self.model = _network(self.sizes, self.layers)
        self.weights = sum(p.numel() for p in self.model.parameters())

    def constant_recipe(self, **constants: float) -> Recipe:
        """What one writes by hand: constants by setting (the first that is tried if left out), and initial weights of variance
        1 / (inputs of the layer)."""
        shapes: dict[str, dict[str, Sequence[int]]] = {
            "layer": {f"{layer}.*": (self.steps, 1) for layer in self.layers},
            "step": {"*": (self.steps,)},
            "weight": {name: p.shape for name, p in self.model.named_parameters()},
        }
        coordinates = {}
        for setting in self.optimizer.settings:
            start = setting.coordinate(constants.get(setting.name, setting.tried[0]))
            coordinates[setting.name] = {key: torch.full(tuple(shape), start) for key, shape in shapes[setting.per].items()}
        return Recipe(self.optimizer, coordinates, [torch.tensor(-0.5 * math.log(inputs)) for inputs in self.sizes[:-1]])

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
        values = recipe.values()
        # A leading 1 says "one per weight" even where a layer happens to have as many units as there are steps.
        l2 = values["l2"] = {name: value.unsqueeze(0) for name, value in values["l2"].items()}
        return rh.train(
            self.model,
            _loss if loss is None else loss,
            self.batches(order),
            steps=self.steps,
            optimizer=self.optimizer.rule(**self.optimizer.arguments(values)),
            hyperparameters=l2 if self.optimizer.penalty_in_loss else None,
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
            return _loss(model, batch, hyperparameters)

        with torch.no_grad():
            trained = self.train(recipe, order, loss=watched)
        note([self.result(trained, part)[0] for part in parts])
        return curves

    def plain_seconds(self, recipe: Recipe, order: int, repeats: int = 5) -> float:
        """Median time of the same training by torch's optimizer; its own L2 penalty has one value per layer, the mean."""
        settings = [self._plain_settings(recipe, layer) for layer in self.layers]
        penalties = recipe.values()["l2"] if self.optimizer.penalty_in_loss else None
        batches, times = self.batches(order), []
        for _ in range(repeats):
            model = _network(self.sizes, self.layers)
            groups = [{"params": list(model.get_submodule(layer).parameters())} for layer in self.layers]
            optimizer = self.optimizer.plain(groups, **settings[0][0])
            began = time.perf_counter()
            for step in range(self.steps):
                for group, own in zip(optimizer.param_groups, settings, strict=True):
                    group.update(own[step])
                optimizer.zero_grad()
                _loss(model, batches(step), penalties).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            times.append(time.perf_counter() - began)
        return sorted(times)[repeats // 2]

    def _plain_settings(self, recipe: Recipe, layer: str) -> list[dict[str, Any]]:
        """What a group of torch's optimizer is told at each step."""
        schedules = {}
        for setting, values in zip(self.optimizer.settings, recipe.values().values(), strict=True):
            value = values[{"layer": f"{layer}.*", "step": "*", "weight": f"{layer}.weight"}[setting.per]]
            schedules[setting.name] = (value.mean().expand(self.steps) if setting.per == "weight" else value).flatten().tolist()
        return [
            self.optimizer.arguments({name: numbers[step] for name, numbers in schedules.items()}) for step in range(self.steps)
        ]

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


def _loss(model: nn.Module, batch: tuple[Tensor, Tensor], penalties: Mapping[str, Tensor] | None) -> Tensor:
    """Cross-entropy, and the L2 penalties if the optimizer does not apply them."""
    images, labels = batch
    loss = F.cross_entropy(model(images), labels)
    if penalties is None:
        return loss
    return loss + 0.5 * sum((penalties[name] * weight.square()).sum() for name, weight in model.named_parameters())
