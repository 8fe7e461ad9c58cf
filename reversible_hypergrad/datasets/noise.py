"""Labels made wrong on purpose."""

import torch
from torch import Tensor

from reversible_hypergrad.checks import check_integer

__all__ = ["flipped"]


def flipped(labels: Tensor, share: float, classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """A share of the labels, each changed to one of the other classes, all equally likely: the noise of data hyper-cleaning.

    As in Franceschi et al. 2017, "Forward and reverse gradient-based hyperparameter optimization": ``round(share * n)`` of the
    ``n`` labels change, and none of them to itself.

    Args:
        labels: int64 of shape (n,), each from 0 to ``classes - 1``.
        share: of the labels that change, from 0 to 1.
        classes: how many there are, at least 2.
        seed: of the choice and of the new labels.

    Returns:
        The labels, int64 of shape (n,), and a mask, bool of shape (n,), true where one was changed; ``labels`` stays as it is.

    Raises:
        TypeError, ValueError: for labels that are no int64 of one dimension or out of range, a share outside [0, 1], classes
            that are no integer of at least 2.

    >>> import torch
    >>> from reversible_hypergrad.datasets import flipped
    >>> labels, is_flipped = flipped(torch.zeros(6, dtype=torch.int64), share=0.5, classes=2, seed=0)
    >>> labels.sum(), labels.bool().equal(is_flipped)
    (tensor(3), True)
    """
    check_integer("classes", classes, least=2)
    if labels.dtype != torch.int64 or labels.ndim != 1:
        raise TypeError(f"labels: expected int64 of shape (n,), got {labels.dtype} of shape {tuple(labels.shape)}")
    if len(labels) and not (int(labels.min()) >= 0 and int(labels.max()) < classes):
        raise ValueError(
            f"labels: expected each from 0 to {classes - 1}, got from {int(labels.min())} to {int(labels.max())}. "
            "Number the classes from 0, or raise classes"
        )
    if not 0 <= share <= 1:
        raise ValueError(f"share: expected a number from 0 to 1, got {share!r}")
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(labels), generator=generator)[: round(share * len(labels))].to(labels.device)
    moves = torch.randint(1, classes, (len(chosen),), generator=generator).to(labels.device)
    changed, mask = labels.clone(), torch.zeros_like(labels, dtype=torch.bool)
    changed[chosen] = (labels[chosen] + moves) % classes
    mask[chosen] = True
    return changed, mask
