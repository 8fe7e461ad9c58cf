"""What is looked at in the first loss of a run, and in its gradient."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from reversible_hypergrad.gradients.autograd_graph import is_first_order_only, lacks_second_derivative, leaves_of

__all__ = ["check_loss", "check_second_derivative"]


def check_loss(loss: Any, known: Sequence[Tensor]) -> None:
    """Refuses what is no scalar that reaches the weights, or depends on something that wants a gradient and would not get it.

    Args:
        loss: what the user's function returned.
        known: the leaves that do get gradients.

    Raises:
        TypeError: if it is no scalar tensor.
        ValueError: if it has no graph, or one with another leaf.
    """
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise TypeError(f"loss: expected it to return a scalar tensor, got {got}. Reduce it, as with .mean()")
    if loss.grad_fn is None:
        raise ValueError(
            "loss: its result does not depend on the model's weights. Call the model that is passed to it, without "
            "torch.no_grad() or detach()"
        )
    ids = {id(t) for t in known}
    for tensor in leaves_of(loss):
        if id(tensor) not in ids:
            raise ValueError(
                f"loss: it depends on a tensor of shape {tuple(tensor.shape)} that requires grad but is neither a weight of "
                "the model passed to it nor among the hyperparameters, so its gradient would be lost. Use the model that is "
                "the loss's first argument; pass the tensor in hyperparameters=, or detach() it"
            )


def check_second_derivative(loss: Tensor, gradients: Sequence[Tensor | None]) -> None:
    """Raises RuntimeError if something in the graphs of loss and gradients cannot be differentiated again."""
    if is_first_order_only([loss, *gradients]):
        raise RuntimeError(
            "loss: something in it has no second derivative (a torch.autograd.Function marked once_differentiable), and "
            "torch would silently take it for zero. rh.check_replayable(model, loss, batch) names the module; write its "
            "backward in differentiable operations"
        )
    if lacks_second_derivative(gradients):
        raise RuntimeError(
            "loss: something in it has no second derivative in torch, such as CTC loss, or an LSTM, GRU or RNN as cuDNN "
            "computes on a GPU. rh.check_replayable(model, loss, batch) names the module. For recurrent layers set "
            "torch.backends.cudnn.enabled = False before the run: torch's own form of them has one"
        )
