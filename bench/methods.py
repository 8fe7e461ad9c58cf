"""Every way to the hypergradient that can be measured: by hand, by this library's strategies, by its peers.

METHODS["rh.Reversible"](task, steps)   # the gradient by task.penalty
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

import reversible_hypergrad as rh
from bench import handwritten, peers
from bench.tasks import LR, MOMENTUM, Task, Weights
from reversible_hypergrad.adjoints import Adjoint

__all__ = ["METHODS", "STRATEGIES", "Method", "train"]


@dataclass(frozen=True)
class Method:
    """One way.

    Attributes:
        family: "hand" (written by hand), "library" (this one) or "peer".
        exact: False if it is approximate by design.
        compiled: whether torch.compile is in it, which takes a minute before the first result.
        most: the number of hyperparameters beyond which it refuses, None if there is no such number.
    """

    name: str
    family: str
    compute: Callable[[Task, int], Weights]
    exact: bool = True
    most: int | None = None
    compiled: bool = False

    def __call__(self, task: Task, steps: int) -> Weights:
        return self.compute(task, steps)

    def missing(self) -> str | None:
        """Why it cannot run here; None if it can."""
        return peers.missing(self.name) if self.family == "peer" else None


def train(task: Task, steps: int, **settings: Any) -> rh.TrainedWeights:
    """The task's run by the library."""
    return rh.train(
        task.model,
        lambda model, batch, penalty: task.loss(model, list(model.parameters()), batch, penalty),
        task.batch,
        steps=steps,
        optimizer=rh.SGD(lr=LR, momentum=MOMENTUM),
        hyperparameters=task.penalty,
        **settings,
    )


def by_train(make: Callable[[], Adjoint], compile: bool = False) -> Callable[[Task, int], Weights]:
    def compute(task: Task, steps: int) -> Weights:
        trained = train(task, steps, adjoint=make(), compile=compile)
        return list(torch.autograd.grad(task.validation_loss(list(trained.values())), task.penalty))

    return compute


# What the approximate ones are given: enough that more would not help on a run that has not converged.
STRATEGIES: dict[str, Callable[[], Adjoint]] = {
    "rh.Reversible": lambda: rh.Reversible(),
    "rh.Reversible-64": lambda: rh.Reversible(state_bits=64),
    "rh.Reversible-segments": lambda: rh.Reversible(segments="auto"),
    "rh.Snapshots": lambda: rh.Snapshots(),
    "rh.Unroll": lambda: rh.Unroll(),
    "rh.Checkpoint": lambda: rh.Checkpoint(),
    "rh.RecursiveCheckpoint": lambda: rh.RecursiveCheckpoint(),
    "rh.ForwardMode": lambda: rh.ForwardMode(limit=FORWARD_LIMIT),
    "rh.Truncated": lambda: rh.Truncated(10),
    "rh.DrMAD": lambda: rh.DrMAD(),
    "rh.Neumann": lambda: rh.Neumann(20),
    "rh.ConjugateGradient": lambda: rh.ConjugateGradient(20, 1e-6),
}
FORWARD_LIMIT = 100
APPROXIMATE = ("rh.Truncated", "rh.DrMAD", "rh.Neumann", "rh.ConjugateGradient")

# Compiled at their first run in a process, which bench.measure takes for the warm-up.
COMPILED = ("rh.Reversible", "rh.Snapshots")

BY_HAND = (handwritten.training, handwritten.unroll, handwritten.snapshots, handwritten.checkpoints, handwritten.recursive)

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        *(Method(function.__name__, "hand", function) for function in BY_HAND),
        *(
            Method(name, "library", by_train(make), name not in APPROXIMATE, FORWARD_LIMIT if name == "rh.ForwardMode" else None)
            for name, make in STRATEGIES.items()
        ),
        *(Method(f"{name}-compiled", "library", by_train(STRATEGIES[name], compile=True), compiled=True) for name in COMPILED),
        *(Method(name, "peer", function) for name, function in peers.PEERS.items()),
    )
}
