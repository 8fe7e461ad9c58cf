"""Where a run begins, or where it ended."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from reversible_hypergrad import pytree

__all__ = ["Start"]


@dataclass(frozen=True, eq=False)
class Start:
    """Weights, the optimizer's states, buffers and the number of steps taken: what a run needs to go on.

    ``trained.state`` is one, and ``train(start=trained.state)`` continues the run. One can also be written by hand, such as to
    learn the first velocities. All its tensors may require grad; it counts as a nest of them.

    Args:
        weights: name -> weight; those left out are the model's own.
        states: name of a weight -> name of the optimizer's state ("v" of :class:`SGD`, "m" and "s" of :class:`AdamW`) -> tensor
            of the weight's shape; those left out are zero.
        buffers: name -> buffer; those left out are the model's own.
        step: how many steps have been taken. Batches, seeds and schedules go on from there, and whatever a rule does in its
            first steps is over.
        exact: the integers of a run in fixed point, which hold more bits than the weights. They are used where they still stand
            for the same weights and states.
        memory: what the gradient knows of the steps before, such as the exponents of micro-batches.

    >>> import torch, reversible_hypergrad as rh
    >>> velocity = torch.zeros(1, 3, requires_grad=True)
    >>> start = rh.Start(states={"weight": {"v": velocity}})
    >>> def loss(model, batch, _):
    ...     return model(batch).square().mean()
    >>> model = torch.nn.Linear(3, 1)
    >>> trained = rh.train(model, loss, [torch.randn(8, 3)] * 5, optimizer=rh.SGD(lr=0.1), start=start)
    >>> trained["weight"].sum().backward()
    >>> velocity.grad.shape
    torch.Size([1, 3])
    """

    weights: Mapping[str, Tensor] = field(default_factory=dict)
    states: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    buffers: Mapping[str, Tensor] = field(default_factory=dict)
    step: int = 0
    exact: Any = field(default=None, repr=False)
    memory: Any = field(default=None, repr=False)


def _children(start: Start) -> tuple[list[Any], Any]:
    states = {name: dict(own) for name, own in start.states.items()}
    return [dict(start.weights), states, dict(start.buffers)], (start.step, start.exact, start.memory)


pytree.register(Start, _children, lambda children, rest: Start(*children, *rest), "reversible_hypergrad.problem.Start")
