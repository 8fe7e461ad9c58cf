"""The gradient of one step's loss, and what is computed through its graph."""

from collections.abc import Sequence

import torch
from torch import Tensor

from reversible_hypergrad.problem.gradient import Evaluation, Products

__all__ = ["LossEvaluation", "dense"]


def dense(name: str, weight: Tensor, gradient: Tensor | None) -> Tensor:
    """As the kernels need it: detached, in its weight's memory order, zero where the loss does not use the weight.

    Args:
        name: of the weight.
        weight: what ``gradient`` is by.
        gradient: of autograd; None stands for zero.

    Raises:
        RuntimeError: for a sparse one.
    """
    if gradient is None:
        return torch.zeros_like(weight, requires_grad=False)
    if gradient.layout is not torch.strided:
        raise RuntimeError(f"{name}: expected a dense gradient, got layout {gradient.layout}. Use sparse=False in the layer")
    gradient = gradient.detach()
    if gradient.stride() != weight.stride():
        gradient = torch.empty_like(weight, requires_grad=False).copy_(gradient)
    return gradient


class LossEvaluation(Evaluation):
    """By autograd.

    Args:
        loss: a scalar.
        gradients: of it, one per weight, with their graphs.
        names: of the weights.
        weights: leaves of the graphs.
        wanted: the hyperparameters that want gradients; leaves, too.
    """

    def __init__(
        self,
        loss: Tensor,
        gradients: Sequence[Tensor | None],
        names: Sequence[str],
        weights: Sequence[Tensor],
        wanted: Sequence[Tensor],
    ) -> None:
        self.value = loss.detach()
        self._weights, self._wanted = weights, wanted
        self._attached = [(i, g) for i, g in enumerate(gradients) if g is not None and g.requires_grad]
        self.gradients = [dense(n, w, g) for n, w, g in zip(names, weights, gradients, strict=True)]
        self._transposed: tuple[list[Tensor], Sequence[Tensor | None]] | None = None

    @property
    def is_attached(self) -> bool:
        return bool(self._attached)

    def products(self, directions: Sequence[Tensor], keep: bool = False) -> Products:
        weights, wanted, attached = self._weights, self._wanted, self._attached
        if not attached:
            return [None] * len(weights), [None] * len(wanted)
        results = torch.autograd.grad(
            [g for _, g in attached],
            [*weights, *wanted],
            [directions[i].to(g.dtype) for i, g in attached],
            allow_unused=True,
            retain_graph=keep,
        )
        if not keep:
            self._attached = []
        return list(results[: len(weights)]), list(results[len(weights) :])

    def tangents(self, by_weights: Sequence[Tensor], by_hyperparameters: Sequence[Tensor]) -> list[Tensor | None]:
        changes: list[Tensor | None] = [None] * len(self._weights)
        if not self._attached:
            return changes
        us, products = self._transpose()
        along = zip(products, (*by_weights, *by_hyperparameters), strict=True)
        used = [(row, t) for row, t in along if row is not None and row.requires_grad]
        if used:
            found = torch.autograd.grad(
                [row for row, _ in used],
                us,
                [t.to(row.dtype) for row, t in used],
                allow_unused=True,
                retain_graph=True,
                is_grads_batched=True,
            )
            for (i, _), change in zip(self._attached, found, strict=True):
                changes[i] = change
        return changes

    def _transpose(self) -> tuple[list[Tensor], Sequence[Tensor | None]]:
        """u -> (H u, M' u) is linear, whatever u is, so its transpose takes tangents to the gradients' changes. Here are the u,
        and the products with their graph."""
        if self._transposed is None:
            us = [torch.zeros_like(g).requires_grad_() for _, g in self._attached]
            with torch.enable_grad():
                products: Sequence[Tensor | None] = torch.autograd.grad(
                    [g for _, g in self._attached], [*self._weights, *self._wanted], us, create_graph=True, allow_unused=True
                )
            self._transposed = us, products
        return self._transposed
