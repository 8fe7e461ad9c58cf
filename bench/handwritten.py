"""The same hypergradient written by hand in plain PyTorch: the baselines, and in float64 the reference.

Each function takes a task and a number of steps, and returns the gradient by ``task.penalty``.
"""

from collections.abc import Callable

import torch

from bench.tasks import LR, MOMENTUM, Task, Weights

__all__ = ["checkpoints", "recursive", "snapshots", "training", "unroll"]

State = tuple[int, Weights, Weights]  # before which step; weights; velocity


def training(task: Task, steps: int) -> Weights:
    """No hypergradient: what the others are multiples of."""
    _, weights, velocity = _begin(task)
    _advance(task, weights, velocity, 0, steps)
    return [torch.zeros_like(p) for p in task.penalty]


def unroll(task: Task, steps: int) -> Weights:
    """Autograd's graph through the whole run: what one writes first."""
    _, weights, velocity = _begin(task)
    for step in range(steps):
        gradient = torch.autograd.grad(task.training_loss(weights, step), weights, create_graph=True)
        velocity = [MOMENTUM * v + g for v, g in zip(velocity, gradient, strict=True)]
        weights = [w - LR * v for w, v in zip(weights, velocity, strict=True)]
    return list(torch.autograd.grad(task.validation_loss(weights), task.penalty))


def snapshots(task: Task, steps: int) -> Weights:
    """The weights of every step, kept; the gradient recomputed at each on the way back."""
    _, weights, velocity = _begin(task)
    kept: list[Weights] = []
    for step in range(steps):
        kept.append(_copy(weights))
        _advance(task, weights, velocity, step, step + 1)
    return _pull_back(task, weights, steps, lambda step: kept.pop())


def checkpoints(task: Task, steps: int) -> Weights:
    """Weights and velocity kept every sqrt(T) steps; a stretch between two is run again and kept while it is walked back."""
    every = max(1, round(steps**0.5))
    _, weights, velocity = _begin(task)
    states: list[State] = []
    for step in range(0, steps, every):
        states.append((step, _copy(weights), _copy(velocity)))
        _advance(task, weights, velocity, step, min(step + every, steps))
    kept: list[Weights] = []

    def weights_at(step: int) -> Weights:
        if not kept:
            first, again, momentum = states.pop()
            for i in range(first, step):
                kept.append(_copy(again))
                _advance(task, again, momentum, i, i + 1)
            kept.append(again)
        return kept.pop()

    return _pull_back(task, weights, steps, weights_at)


def recursive(task: Task, steps: int) -> Weights:
    """Weights and velocity kept at halves of halves: log2(T) states, and about log2(T)/2 more forward runs."""
    states = [_begin(task)]

    def halve(goal: int) -> None:
        """Keeps states at the midpoints between the last one and ``goal``, until one stands right before it."""
        while goal - states[-1][0] > 1:
            first, weights, velocity = states[-1]
            middle = (first + goal + 1) // 2
            weights, velocity = _copy(weights), _copy(velocity)
            _advance(task, weights, velocity, first, middle)
            states.append((middle, weights, velocity))

    def weights_at(step: int) -> Weights:
        halve(step + 1)
        return states.pop()[1]

    halve(steps)
    last, weights, velocity = states[-1]
    weights, velocity = _copy(weights), _copy(velocity)
    _advance(task, weights, velocity, last, steps)
    return _pull_back(task, weights, steps, weights_at)


def _begin(task: Task) -> State:
    weights = task.start()
    return 0, weights, [torch.zeros_like(w, requires_grad=False) for w in weights]


def _copy(tensors: Weights) -> Weights:
    return [t.detach().clone() for t in tensors]


def _advance(task: Task, weights: Weights, velocity: Weights, first: int, last: int) -> None:
    """Trains in place, from before step ``first`` to before step ``last``."""
    for step in range(first, last):
        gradient = torch.autograd.grad(task.training_loss([w.requires_grad_() for w in weights], step), weights)
        with torch.no_grad():
            torch._foreach_mul_(velocity, MOMENTUM)
            torch._foreach_add_(velocity, gradient)
            torch._foreach_add_(weights, velocity, alpha=-LR)


def _pull_back(task: Task, weights: Weights, steps: int, weights_at: Callable[[int], Weights]) -> Weights:
    """The adjoint of SGD with momentum, given the weights of each step."""
    aw = list(torch.autograd.grad(task.validation_loss(weights), weights))
    av = [torch.zeros_like(w) for w in weights]
    total = [torch.zeros_like(p) for p in task.penalty]
    for step in reversed(range(steps)):
        torch._foreach_add_(av, aw, alpha=-LR)
        at = [w.requires_grad_() for w in weights_at(step)]
        gradient = torch.autograd.grad(task.training_loss(at, step), at, create_graph=True)
        products = torch.autograd.grad(gradient, [*at, *task.penalty], grad_outputs=av)
        torch._foreach_add_(aw, products[: len(at)])
        torch._foreach_add_(total, products[len(at) :])
        torch._foreach_mul_(av, MOMENTUM)
    return total
