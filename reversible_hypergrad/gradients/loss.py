"""The training loss's gradient as a function of the step: one code path for training and for its reversal."""

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from reversible_hypergrad import pytree
from reversible_hypergrad.problem.gradient import Evaluation, Gradient
from reversible_hypergrad.replay.batches import BatchOf
from reversible_hypergrad.replay.environment import seed_step

__all__ = ["Loss", "LossEvaluation", "LossGradient", "is_first_order_only", "private_copy", "same_bits"]

Loss = Callable[[nn.Module, Any, Any], Tensor]


def private_copy(model: nn.Module) -> nn.Module:
    """A deep copy, ties and modes kept. Cached non-leaf tensors, which torch cannot deep-copy, are copied detached."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    return copy.deepcopy(model, memo)


class LossGradient(Gradient):
    """``autograd.grad(create_graph=True)`` of ``loss(model, batch, hyperparameters)``, always.

    A plain backward gives other bits for some layers (LSTM, GroupNorm, SiLU, weight_norm), so the forward run takes this path
    as well, although it needs no second derivatives.

    Args:
        model: the private copy; its ``weights`` are moved in place by the run.
        leaves, spec: the flattened hyperparameters; ``wanted`` are the positions that get gradients.
    """

    def __init__(
        self,
        model: nn.Module,
        weights: Sequence[Tensor],
        names: Sequence[str],
        loss: Loss,
        batches: BatchOf,
        leaves: Sequence[Any],
        spec: Any,
        wanted: Sequence[int],
        seed: int,
    ) -> None:
        self.model, self.weights, self.names = model, list(weights), list(names)
        self.loss, self.batches, self.seed = loss, batches, seed
        leaves = list(leaves)
        for i in wanted:
            leaves[i] = leaves[i].detach().requires_grad_()
        self.wanted: list[Tensor] = [leaves[i] for i in wanted]
        self.hyperparameters = pytree.unflatten(leaves, spec)
        self.cuda_devices = tuple({w.device for w in weights if w.device.type == "cuda"})
        self._bound = _Bound(model, loss)
        self._buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
        self.checked = False
        self.first_order_only = False
        self.refuse_first_order = True

    def __call__(self, step: int) -> "LossEvaluation":
        return self.evaluation_of(self.batch_of(step))

    def values(self, step: int) -> tuple[Tensor, list[Tensor]]:
        self._check_once(step)
        return self.values_of(self.batch_of(step))

    # The two halves of a call: what a step needs, and what the loss makes of it.

    def batch_of(self, step: int) -> Any:
        """The batch of ``step``; the random numbers that follow are those of its loss."""
        seed_step(self.seed, step, self.cuda_devices)
        with torch.enable_grad():
            return self.batches(step)

    def evaluation_of(self, batch: Any) -> "LossEvaluation":
        with torch.enable_grad():
            loss = self._loss_of(batch)
            if not self.checked:
                self._check(loss)
            gradients = torch.autograd.grad(loss, self.weights, create_graph=True, allow_unused=True)
            if not self.checked:
                self.first_order_only = is_first_order_only([loss, *gradients])
            if self.first_order_only and self.refuse_first_order:
                raise RuntimeError(
                    "loss: something in it has no second derivative (a torch.autograd.Function marked once_differentiable), and "
                    "torch would silently take it for zero. rh.check_replayable(model, loss, batch) names the module; write its "
                    "backward in differentiable operations"
                )
            if not self.checked and self.refuse_first_order and _lacks_second_derivative(gradients):
                raise RuntimeError(
                    "loss: something in it has no second derivative in torch, such as CTC loss, or an LSTM, GRU or RNN as cuDNN "
                    "computes on a GPU. rh.check_replayable(model, loss, batch) names the module. For recurrent layers set "
                    "torch.backends.cudnn.enabled = False before the run: torch's own form of them has one"
                )
            self.checked = True
        return LossEvaluation(self, loss.detach(), gradients)

    def values_of(self, batch: Any) -> tuple[Tensor, list[Tensor]]:
        with torch.enable_grad():
            loss = self._loss_of(batch)
            gradients = torch.autograd.grad(loss, self.weights, allow_unused=True)
        return loss.detach(), [self.dense(i, g) for i, g in enumerate(gradients)]

    def _loss_of(self, batch: Any) -> Tensor:
        # Inside of somebody's autocast, even a disabled one, an autocast in the loss would find its casts of earlier weights.
        torch.clear_autocast_cache()
        return self.loss(self.model, batch, self.hyperparameters)

    def attached(self, step: int, weights: Sequence[Tensor]) -> tuple[Tensor, list[Tensor | None]]:
        self._check_once(step)
        batch = self.batch_of(step)
        named = {f"model.{name}": weight for name, weight in zip(self.names, weights, strict=True)}
        with torch.enable_grad():
            loss = torch.func.functional_call(self._bound, named, (batch, self.hyperparameters))
            gradients = torch.autograd.grad(loss, list(weights), create_graph=True, allow_unused=True)
        return loss, list(gradients)

    def _check_once(self, step: int) -> None:
        """Before the first step: only an evaluation with a graph can be checked, and its gradient may have other last bits than
        those of the path that training takes, each time. Its effect on buffers does not count."""
        if not self.checked:
            self(step)
            self.restart()

    def dense(self, i: int, gradient: Tensor | None) -> Tensor:
        """As the kernels need it: in its weight's memory order, zero where the loss does not use the weight."""
        weight = self.weights[i]
        if gradient is None:
            return torch.zeros_like(weight, requires_grad=False)
        if gradient.layout is not torch.strided:
            raise RuntimeError(
                f"{self.names[i]}: expected a dense gradient, got layout {gradient.layout}. Use sparse=False in the layer"
            )
        gradient = gradient.detach()
        if gradient.stride() != weight.stride():
            gradient = torch.empty_like(weight, requires_grad=False).copy_(gradient)
        return gradient

    def _check(self, loss: Any) -> None:
        """Of the first loss: a scalar that reaches the weights, and nothing that wants a gradient but will not get one."""
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise TypeError(f"loss: expected it to return a scalar tensor, got {got}. Reduce it, as with .mean()")
        if loss.grad_fn is None:
            raise ValueError(
                "loss: its result does not depend on the model's weights. Call the model that is passed to it, without "
                "torch.no_grad() or detach()"
            )
        known = {id(t) for t in (*self.weights, *self.wanted)}
        for tensor in _graph_leaves(loss):
            if id(tensor) not in known:
                raise ValueError(
                    f"loss: it depends on a tensor of shape {tuple(tensor.shape)} that requires grad but is neither a weight of "
                    "the model passed to it nor among the hyperparameters, so its gradient would be lost. Use the model that is "
                    "the loss's first argument; pass the tensor in hyperparameters=, or detach() it"
                )

    def restart(self) -> None:
        for buffer, first in self._buffers:
            buffer.copy_(first)

    def diagnose(self, step: int) -> str:
        """Evaluates ``step`` twice more: what differs then is the cause."""
        try:
            seed_step(self.seed, step, self.cuda_devices)
            first = self.batches(step)
            seed_step(self.seed, step, self.cuda_devices)
            second = self.batches(step)
            if not same_bits(first, second):
                return f"Seen: the batch of step {step} is another one each time it is asked for"
            results = []
            for _ in range(2):
                seed_step(self.seed, step, self.cuda_devices)
                evaluation = self.evaluation_of(first)
                results.append([evaluation.loss, *evaluation.gradients])
            if not same_bits(results[0], results[1]):
                return (
                    f"Seen: with the same weights, batch and seed, the gradient at step {step} is another one at each call, so "
                    "the loss or the model draws unseeded random numbers or counts its calls"
                )
        except Exception as error:
            return f"Seen: evaluating step {step} again raised {type(error).__name__}: {error}"
        return (
            f"Seen: batch and gradient of step {step} are the same when asked for twice now, so what changed did so between "
            "training and this backward, or depends on the order of steps"
        )


class _Bound(nn.Module):
    """The loss as a module's forward, so that functional_call can put other tensors in the place of the model's parameters."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model, self._loss = model, loss

    def forward(self, batch: Any, hyperparameters: Any) -> Tensor:
        return self._loss(self.model, batch, hyperparameters)


class LossEvaluation(Evaluation):
    def __init__(self, owner: LossGradient, loss: Tensor, gradients: Sequence[Tensor | None]) -> None:
        self.loss = loss
        self._owner = owner
        self._attached = [(i, g) for i, g in enumerate(gradients) if g is not None and g.requires_grad]
        self.gradients = [owner.dense(i, g) for i, g in enumerate(gradients)]
        self._transposed: tuple[list[Tensor], Sequence[Tensor | None]] | None = None

    @property
    def is_attached(self) -> bool:
        """Whether there is a graph: a second derivative that is not zero everywhere."""
        return bool(self._attached)

    def products(self, directions: Sequence[Tensor], keep: bool = False) -> tuple[list[Tensor | None], list[Tensor | None]]:
        owner, attached = self._owner, self._attached
        weights, wanted = owner.weights, owner.wanted
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
        owner, attached = self._owner, self._attached
        changes: list[Tensor | None] = [None] * len(owner.weights)
        if not attached:
            return changes
        if self._transposed is None:
            # u -> (H u, M' u) is linear, whatever u is, so its transpose takes tangents to the gradients' changes.
            us = [torch.zeros_like(g).requires_grad_() for _, g in attached]
            with torch.enable_grad():
                products: Sequence[Tensor | None] = torch.autograd.grad(
                    [g for _, g in attached], [*owner.weights, *owner.wanted], us, create_graph=True, allow_unused=True
                )
            self._transposed = us, products
        us, products = self._transposed
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
            for (i, _), change in zip(attached, found, strict=True):
                changes[i] = change
        return changes


def is_first_order_only(results: Sequence[Tensor | None]) -> bool:
    """Whether a once_differentiable function is in the graphs, which torch may take for constant without an error."""
    return any(_is_marked(node) for node in _nodes(*(t for t in results if t is not None)))


def _lacks_second_derivative(gradients: Sequence[Tensor | None]) -> bool:
    """Torch would say so itself, but only on the way back, after all of training."""
    return any(node.name().endswith("::NotImplemented") for node in _nodes(*(g for g in gradients if g is not None)))


def _is_marked(node: Any) -> bool:
    # In a gradient's graph, torch left an Error where the backward ran. In the loss's, the backward itself is looked at: the
    # decorator's wrapper is code of torch.autograd.function.
    backward = getattr(getattr(node, "_forward_cls", None), "backward", None)
    code = getattr(backward, "__code__", None)
    wrapped = code is not None and code.co_filename == torch.autograd.function.__file__ and hasattr(backward, "__wrapped__")
    return wrapped or node.name().endswith("::Error")


def _graph_leaves(loss: Tensor) -> list[Tensor]:
    variables = (getattr(node, "variable", None) for node in _nodes(loss))
    return [variable for variable in variables if isinstance(variable, Tensor)]


def _nodes(*tensors: Tensor) -> Iterator[Any]:
    """Every node of the graphs of ``tensors``."""
    seen, waiting = set(), [t.grad_fn for t in tensors]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting.extend(parent for parent, _ in node.next_functions)
            yield node


def same_bits(a: Any, b: Any) -> bool:
    """Whether two nests hold the same tensors, NaNs included. What is not a tensor counts as the same."""
    first, second = pytree.leaves(a), pytree.leaves(b)
    if len(first) != len(second):
        return False
    for x, y in zip(first, second, strict=True):
        if not isinstance(x, Tensor):
            continue
        if not isinstance(y, Tensor) or x.shape != y.shape or not bool(((x == y) | ((x != x) & (y != y))).all()):
            return False
    return True
