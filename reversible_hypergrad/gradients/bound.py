"""The loss of a model as one module, and as a pure function of whatever goes into it."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from reversible_hypergrad import pytree

__all__ = ["Bound", "Loss", "pure_gradient", "pure_products"]

Loss = Callable[[nn.Module, Any, Any], Tensor]


class Bound(nn.Module):
    """The loss as a module's forward, so that functional_call can put other tensors in the place of the model's parameters."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, batch: Any, hyperparameters: Any) -> Tensor:
        return self.loss(self.model, batch, hyperparameters)


def pure_gradient(
    bound: Bound, weights: dict[str, Tensor], buffers: dict[str, Tensor], batch: Any, hyperparameters: Any
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Loss, gradients by ``weights``, and the buffers afterwards; nothing is written in place.

    The gradients are differentiable by weights and hyperparameters. Loss and buffers are detached: what is not, a compiler takes
    for something that directions may come for, and computes its derivative in vain.

    Args:
        bound: the loss, called with the rest in the places of its model's parameters and buffers.
        weights: by their names in ``bound``.
        buffers: likewise.
        batch: of a step.
        hyperparameters: any nest.
    """

    def loss_of(weights: dict[str, Tensor]) -> tuple[Tensor, tuple[Tensor, dict[str, Tensor]]]:
        after = {name: buffer.clone() for name, buffer in buffers.items()}
        loss = torch.func.functional_call(bound, {**weights, **after}, (batch, hyperparameters)).reshape(())
        return loss, (loss, after)

    gradients, (loss, after) = torch.func.grad(loss_of, has_aux=True)(weights)
    return loss.detach(), gradients, {name: buffer.detach() for name, buffer in after.items()}


def pure_products(
    bound: Bound,
    weights: dict[str, Tensor],
    buffers: dict[str, Tensor],
    batch: Any,
    hyperparameters: Any,
    places: Sequence[int],
    directions: dict[str, Tensor],
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor], dict[str, Tensor], list[Tensor]]:
    """What :func:`pure_gradient` gives, and ``directions`` times the derivatives of the gradients: by weights, and by some
    hyperparameters. All in one, so that nothing has to be kept between two.

    Args:
        places: which leaves of the nest ``hyperparameters`` count.
        directions: of the weights.
    """
    leaves, structure = pytree.flatten(hyperparameters)

    def gradient_of(weights: dict[str, Tensor], wanted: list[Tensor]) -> tuple[dict[str, Tensor], Any]:
        given = list(leaves)
        for place, leaf in zip(places, wanted, strict=True):
            given[place] = leaf
        loss, gradients, after = pure_gradient(bound, weights, buffers, batch, pytree.unflatten(given, structure))
        return gradients, (loss, after)

    wanted = [leaves[place] for place in places]
    gradients, pull_back, (loss, after) = torch.func.vjp(gradient_of, weights, wanted, has_aux=True)  # type: ignore[misc]
    by_weights, by_wanted = pull_back(directions)
    return loss, gradients, after, by_weights, by_wanted
