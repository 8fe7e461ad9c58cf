"""What is looked at in every loss of a run, and in the gradients of those that are made of something new."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointFunction

from reversible_hypergrad.gradients.autograd_graph import graph_of, is_first_order_only, is_held, lacks_second_derivative

__all__ = ["Check", "LossChecks", "check_second_derivative"]

Check = Callable[[Tensor, Sequence[Tensor | None], Sequence[Tensor]], None]  # loss, its gradients, and what they are by


class LossChecks:
    """Looks at the graph of every loss; its gradients are due to be checked when a kind of operation is in it for the first time.

    Args:
        check: of a loss and its gradients, which have graphs; may raise.
    """

    def __init__(self, check: Check) -> None:
        self._check = check
        self._familiar: set[type] = set()
        self._new: set[type] = set()  # of the last loss

    @property
    def due(self) -> bool:
        """Whether the gradients of the last loss are to be checked."""
        return bool(self._new)

    def look(self, loss: Any, known: Sequence[Tensor], since: int) -> None:
        """Refuses what is no scalar that reaches the weights, or depends on something that wants a gradient and would not get it.

        Args:
            loss: what the user's function returned.
            known: where its graph may end.
            since: torch's number of the first node that it may have.

        Raises:
            TypeError: if it is no scalar tensor.
            ValueError: if it has no graph, or one with another leaf, which somebody holds, or one that an earlier step began.
            RuntimeError: if torch can give its gradients by backward() alone.
        """
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise TypeError(f"loss: expected it to return a scalar tensor, got {got}. Reduce it, as with .mean()")
        if loss.grad_fn is None:
            raise ValueError(
                "loss: its result does not depend on the model's weights. Call the model that is passed to it, without "
                "torch.no_grad() or detach()"
            )
        graph = graph_of(loss, known)
        for node in graph.others:
            if is_held(node):
                _refuse_leaf(node.variable)
        if graph.begun < since and not loss.is_cuda:  # on a GPU, nodes of gradients are numbered by other threads
            raise ValueError(
                "loss: it depends on a tensor with a graph that was there before this step, such as an output kept from an "
                "earlier one, whose weights have moved since. detach() what is kept"
            )
        self._new = graph.kinds - self._familiar
        if any(getattr(kind, "_forward_cls", None) is CheckpointFunction for kind in self._new):
            raise RuntimeError(
                "loss: expected torch.utils.checkpoint with use_reentrant=False, got True, with which torch gives gradients by "
                "backward() alone, and no second derivatives. Pass use_reentrant=False"
            )

    def check(self, loss: Tensor, gradients: Sequence[Tensor | None], variables: Sequence[Tensor]) -> None:
        """The gradients of the loss that was looked at last."""
        self._check(loss, gradients, variables)
        self._familiar |= self._new
        self._new = set()


def _refuse_leaf(tensor: Tensor) -> None:
    raise ValueError(
        f"loss: it depends on a tensor of shape {tuple(tensor.shape)} that requires grad but is neither a weight of "
        "the model passed to it nor among the hyperparameters, so its gradient would be lost. Use the model that is "
        "the loss's first argument; pass the tensor in hyperparameters=, or detach() it. A loss that takes the gradient by its "
        "inputs makes them require grad itself: x = x.detach().requires_grad_()"
    )


def check_second_derivative(loss: Tensor, gradients: Sequence[Tensor | None], variables: Sequence[Tensor]) -> None:
    """Raises RuntimeError if something in the graphs of loss and gradients cannot be differentiated again."""
    if is_first_order_only([loss, *gradients]):
        raise RuntimeError(
            "loss: something in it has no second derivative (a torch.autograd.Function marked once_differentiable), and "
            "torch would silently take it for zero. rh.check_replayable(model, loss, batch) names the module; write its "
            "backward in differentiable operations"
        )
    error = None if lacks_second_derivative(gradients) else _error_of_products(gradients, variables)
    if error is not None or lacks_second_derivative(gradients):
        said = "" if error is None else f" Torch says: {str(error).splitlines()[0]}"
        raise RuntimeError(
            "loss: something in it has no second derivative in torch, such as CTC loss, nn.EmbeddingBag, torch.cdist, a function "
            "made by torch.compile, or an LSTM, GRU or RNN as cuDNN computes on a GPU. rh.check_replayable(model, loss, batch) "
            "names the module. For recurrent layers set torch.backends.cudnn.enabled = False before the run: torch's own form of "
            f"them has one. Write other things in differentiable operations.{said}"
        ) from error


def _error_of_products(gradients: Sequence[Tensor | None], variables: Sequence[Tensor]) -> Exception | None:
    """What torch raises where it differentiates the gradients; most of what it lacks is found in no other way."""
    attached = [g for g in gradients if g is not None and g.requires_grad]
    if not attached:
        return None
    along = [torch.zeros_like(g) for g in attached]
    try:
        torch.autograd.grad(attached, list(variables), along, allow_unused=True, retain_graph=True)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, NotImplementedError) as error:
        return error
    return None
