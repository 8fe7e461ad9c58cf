"""How a recipe is found: a grid of constants, then Adam on hypergradients."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median

import torch

from reversible_hypergrad.cli.optimizers import Optimizer
from reversible_hypergrad.cli.problem import Problem, Recipe, Score
from reversible_hypergrad.training import Report

__all__ = ["Baseline", "Learning", "best_constants", "grid_of", "learn", "score"]

# Orders of minibatches: the learned hyperparameters are judged on orders that they have not seen.
_GRID_ORDERS = range(100_000, 100_003)
JUDGED_ORDERS = range(200_000, 200_008)

# Schedules and scales move at this share of the rate of what is per weight: they act on the whole network at once.
_SHARE = 0.4

# Nats per e-fold. On digits and MNIST healthy hypergradients have norms of 0.01 to 1 for each kind of hyperparameter of
# SGD, below 0.1 for those of AdamW; chaotic ones reach 1e18.
_CHAOTIC = 3.0


@dataclass(frozen=True)
class Baseline:
    """The best constants by validation loss."""

    constants: dict[str, float]  # by setting
    grid: list[tuple[float, ...]]  # the settings of which several are tried, in the optimizer's order, and the validation loss


@dataclass
class Learning:
    """What the outer Adam saw."""

    validation: list[float] = field(default_factory=list)  # loss before each meta-step's update
    forward_seconds: list[float] = field(default_factory=list)
    backward_seconds: list[float] = field(default_factory=list)
    chaotic: list[int] = field(default_factory=list)  # meta-steps whose hypergradient was not followed
    restored: int = 0  # runs undone to their first bit
    checks: int = 0  # states compared by hash on the way
    report: Report | None = None  # the last run's

    def seconds(self) -> float:
        """Of one hypergradient, training included; the median."""
        return median(a + b for a, b in zip(self.forward_seconds, self.backward_seconds, strict=True))


def grid_of(optimizer: Optimizer) -> list[dict[str, float]]:
    """All combinations of the constants that are tried."""
    names = [setting.name for setting in optimizer.settings]
    tried = itertools.product(*(setting.tried for setting in optimizer.settings))
    return [dict(zip(names, constants, strict=True)) for constants in tried]


def best_constants(problem: Problem, advance: Callable[[], object]) -> Baseline:
    several = [setting.name for setting in problem.optimizer.settings if len(setting.tried) > 1]
    scored = []
    for constants in grid_of(problem.optimizer):
        try:
            loss = score(problem, problem.constant_recipe(**constants), "validation", _GRID_ORDERS)[0].loss
        except (FloatingPointError, OverflowError):
            loss = math.inf  # diverged
        scored.append((loss, constants))
        advance()
    least, best = min(scored, key=lambda entry: entry[0])
    if not math.isfinite(least):
        raise FloatingPointError("training diverges at every learning rate of the grid")
    return Baseline(best, [(*(constants[name] for name in several), loss) for loss, constants in scored])


def learn(problem: Problem, recipe: Recipe, meta_steps: int, meta_lr: float, advance: Callable[[float], object]) -> Learning:
    """Improves ``recipe`` in place by Adam on exact hypergradients of the validation loss.

    Each meta-step trains on a new order of minibatches. With one fixed order the validation loss falls further, but what is
    learned is that one run: on other orders most of the gain is lost.

    At large learning rates training is chaotic: the exact hypergradient explodes and says nothing about the next run (section
    4 of the 2015 paper). Such a one is not followed; all learning rates are cut by a tenth instead.
    """
    tensors = recipe.tensors()
    for tensor in tensors:
        tensor.requires_grad_()
    groups = [
        {"params": list(recipe.coordinates[setting.name].values()), "share": 1.0 if setting.per == "weight" else _SHARE}
        for setting in problem.optimizer.settings
    ]
    adam = torch.optim.Adam([*groups, {"params": recipe.log_scale, "share": _SHARE}], lr=meta_lr)
    learning = Learning()
    for meta_step in range(meta_steps):
        for group in adam.param_groups:
            group["lr"] = meta_lr * group["share"] * (1 - meta_step / meta_steps)
        trained = problem.train(recipe, order=meta_step)
        loss = problem.loss(trained, problem.data.validation)
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norms = [torch.cat([_gradient(t).flatten() for t in kind]).norm().item() for kind in recipe.kinds().values()]
        if max(norms) <= _CHAOTIC:  # not so for NaN, too
            adam.step()
            _refuse_infinite(recipe, meta_step)
        else:
            learning.chaotic.append(meta_step)
            with torch.no_grad():
                for log_lr in recipe.coordinates["lr"].values():
                    log_lr += math.log(0.9)
        report = trained.report
        learning.validation.append(loss.item())
        learning.forward_seconds.append(report.forward_seconds)
        learning.backward_seconds.append(report.backward_seconds)
        learning.restored += report.restored
        learning.checks += report.checks
        learning.report = report
        advance(loss.item())
    for tensor in tensors:
        tensor.requires_grad_(False)
    return learning


def _refuse_infinite(recipe: Recipe, meta_step: int) -> None:
    for setting in recipe.optimizer.settings:
        if not all(bool(value.isfinite().all()) for value in recipe.values()[setting.name].values()):
            raise OverflowError(f"after meta-step {meta_step} the {setting.labels} have left the range of floating-point numbers")


def _gradient(tensor: torch.Tensor) -> torch.Tensor:
    assert tensor.grad is not None
    return tensor.grad


def score(problem: Problem, recipe: Recipe, parts: str, orders: Sequence[int], starts: bool = False) -> list[Score]:
    """How the recipe does on the named parts (separated by blanks), over runs in these orders of minibatches.

    ``starts``: each run also begins at random weights of its own, which the hyperparameters have not seen.
    """
    with torch.no_grad():
        runs = [problem.train(recipe, order, start=1 + i if starts else 0) for i, order in enumerate(orders)]
        return [Score.of([problem.result(run, getattr(problem.data, part)) for run in runs]) for part in parts.split()]
