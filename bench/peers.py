"""The same hypergradient by other libraries, each where it is installed:

    pip install higher torchopt                              # measured with 0.2.1 and 0.7.3
    pip install "pip<24.1" && pip install betty-ml==0.1.1    # newer pips refuse its metadata, newer releases do not unroll

All three keep autograd's graph of the whole run. The code is what their documentations suggest for this problem.
"""

import importlib.metadata
from copy import deepcopy
from typing import Any

import torch
from torch import nn

from bench.tasks import LR, MOMENTUM, Task, Weights

__all__ = ["DISTRIBUTIONS", "INSTALL", "PEERS", "missing", "versions"]

# The module's name and the distribution's.
DISTRIBUTIONS = {"higher": "higher", "torchopt": "torchopt", "betty": "betty-ml"}
INSTALL = {
    "higher": "pip install higher",
    "torchopt": "pip install torchopt",
    "betty": 'pip install "pip<24.1" && pip install betty-ml==0.1.1',
}


def missing(name: str) -> str | None:
    """Why a peer cannot be measured, with the remedy; None if it can."""
    try:
        importlib.metadata.version(DISTRIBUTIONS[name])
    except importlib.metadata.PackageNotFoundError:
        return f"not installed: {INSTALL[name]}"
    return None


def versions() -> str:
    """Of the installed peers, in one line."""
    found = [name for name in PEERS if missing(name) is None]
    return ", ".join(f"{name} {importlib.metadata.version(DISTRIBUTIONS[name])}" for name in found)


def higher(task: Task, steps: int) -> Weights:
    """Grefenstette et al. 2019: a functional copy of the module, patched at every step."""
    import higher as library

    optimizer = torch.optim.SGD(task.model.parameters(), lr=LR, momentum=MOMENTUM)
    with library.innerloop_ctx(task.model, optimizer) as (model, differentiable):
        for step in range(steps):
            differentiable.step(task.loss(model, list(model.parameters()), task.batch(step), task.penalty))
        return list(torch.autograd.grad(task.validation_loss(list(model.parameters())), task.penalty))


def torchopt(task: Task, steps: int) -> Weights:
    """Ren et al. 2023: a differentiable optimizer that replaces the module's parameters by results of the graph."""
    import torchopt as library

    model = deepcopy(task.model)
    optimizer = library.MetaSGD(model, lr=LR, momentum=MOMENTUM)
    for step in range(steps):
        optimizer.step(task.loss(model, list(model.parameters()), task.batch(step), task.penalty))
    return list(torch.autograd.grad(task.validation_loss(list(model.parameters())), task.penalty))


def betty(task: Task, steps: int) -> Weights:
    """Choe et al. 2023: two problems in a graph, the inner one iterative, unrolled for the whole run."""
    from betty.configs import Config, EngineConfig
    from betty.engine import Engine
    from betty.problems import ImplicitProblem, IterativeProblem

    class Outer(ImplicitProblem):  # type: ignore[misc]
        hypergradient: Weights

        def get_batch(self) -> tuple[()]:
            return ()

        def training_step(self, batch: Any) -> torch.Tensor:
            return task.validation_loss(list(self.inner.trainable_parameters()))

        def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
            self.hypergradient = [p.grad.clone() for p in self.trainable_parameters()]

    class Inner(IterativeProblem):  # type: ignore[misc]
        at = 0

        def get_batch(self) -> tuple[torch.Tensor, torch.Tensor]:
            self.at += 1
            return task.batch(self.at - 1)

        def training_step(self, batch: Any) -> torch.Tensor:
            weights = list(self.trainable_parameters())
            return task.loss(lambda x: task.call(weights, x), weights, batch, list(self.outer.module))

    penalty, model = nn.ParameterList([p.detach().clone() for p in task.penalty]), deepcopy(task.model)
    outer = Outer(name="outer", config=Config(first_order=False), module=penalty, optimizer=torch.optim.SGD(penalty, lr=0.0))
    inner = Inner(
        name="inner",
        config=Config(unroll_steps=steps, first_order=False, retain_graph=True),
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM),
    )
    dependencies = {"u2l": {outer: [inner]}, "l2u": {inner: [outer]}}
    Engine([outer, inner], EngineConfig(train_iters=steps), dependencies).run()
    return outer.hypergradient


PEERS = {"higher": higher, "torchopt": torchopt, "betty": betty}
