"""Whether torch's second derivatives of a loss are those of its gradient, before a run relies on them."""

import math
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from reversible_hypergrad import pytree
from reversible_hypergrad.gradients.bound import Loss
from reversible_hypergrad.gradients.derivatives import BOUND, disagreement
from reversible_hypergrad.gradients.familiar import Familiar
from reversible_hypergrad.gradients.loss import LossGradient
from reversible_hypergrad.gradients.module_watch import ModuleWatch
from reversible_hypergrad.gradients.private_copy import private_copy
from reversible_hypergrad.gradients.same_bits import same_bits
from reversible_hypergrad.gradients.widened import double, widened
from reversible_hypergrad.problem.gradient import Evaluation
from reversible_hypergrad.replay.micro_batches import micro_batches

__all__ = ["BYTES_PER_WEIGHT", "Derivatives", "check_derivatives", "compare_derivatives", "is_checked"]

BYTES_PER_WEIGHT = 45  # of the check, for a moment: a model, a direction, gradients and products in float64
_CHECKED = Familiar(256)  # losses, models and hyperparameters that a run of this process has checked


class Derivatives(NamedTuple):
    """What :func:`compare_derivatives` found.

    Attributes:
        error: the distance of products from differences, in units of their size.
        bound: what is above is wrong; infinite where differences say nothing.
        culprit: the module that is to blame, where the error is above the bound and one was found.
    """

    error: float
    bound: float
    culprit: str | None

    @property
    def are_right(self) -> bool:
        return not self.error > self.bound  # what is not finite is for others to refuse

    def __str__(self) -> str:
        return (
            f"the second derivatives of {self.culprit or 'the loss'} are wrong, by {self.error:.1g} of their size: "
            "hypergradients through it would be wrong in silence. A formula of torch's is, or a backward of its own "
            "leaves something out, or the loss has a detach() of something that depends on weights or hyperparameters. Write it "
            "in other operations"
        )


def compare_derivatives(model: nn.Module, loss: Loss, batch: Any, hyperparameters: Any, seed: int, step: int = 0) -> Derivatives:
    """The second derivatives of one step's loss beside central differences of its gradient.

    In float64 if the loss can be computed in it, whatever it is written in. Nothing given is modified.

    Args:
        model: of floating-point parameters; a copy of it is evaluated.
        loss: as for :func:`train`.
        batch: a step's.
        hyperparameters: likewise.
        seed: of the run.
        step: with the seed, of the random numbers.

    Cost: 4 to 10 gradients and 1 to 3 products, in float64, and as many again before something is called wrong;
    :data:`BYTES_PER_WEIGHT`, and twice a step's activations.
    """
    found = None
    # Transformations of torch.func see a mode of torch's functions, and may compute something else in it: what is right in one of
    # the two is right.
    for mode in (widened, nullcontext):
        with mode():
            wide = private_copy(model).double()
            gradient = _gradient_of(wide, loss, double(batch), double(hyperparameters), seed)
            try:
                found = _compare(wide, gradient, torch.float64, step, seed)
            except Exception:  # something is of one dtype; if it raises for another reason, it does so again below
                del wide, gradient
        if found is not None and found.are_right:
            return found
    if found is not None:
        return found
    own = private_copy(model)
    moved = pytree.map_tensors(lambda t: t.detach().clone().requires_grad_() if t.requires_grad else t, hyperparameters)
    gradient = _gradient_of(own, loss, batch, moved, seed)
    return _compare(own, gradient, None, step, seed)


def _gradient_of(model: nn.Module, loss: Loss, batch: Any, hyperparameters: Any, seed: int) -> LossGradient:
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    leaves, structure = pytree.flatten(batch)
    return LossGradient(model, trained, loss, lambda step: pytree.unflatten(list(leaves), structure), hyperparameters, seed)


def _compare(model: nn.Module, gradient: LossGradient, dtype: torch.dtype | None, step: int, seed: int) -> Derivatives:
    """In ``dtype``; None: in that of the loss."""
    watch = ModuleWatch(model)
    before = gradient.side_effects()

    def evaluate() -> Evaluation:
        before.put_back()  # buffers move at each evaluation, and may be read
        return gradient(step)

    def products(u: Sequence[Tensor]) -> list[Tensor | None]:
        by_weights, by_hyperparameters = evaluate().products(u)
        return [*by_weights, *by_hyperparameters]

    own = evaluate().value.dtype
    watch.remove()
    bound = BOUND.get(dtype or own, math.inf)
    error = disagreement(lambda: evaluate().gradients, products, [*gradient.weights, *gradient.wanted], seed)
    if not error > bound:
        return Derivatives(error, bound, None)
    if not same_bits(evaluate().value, evaluate().value):
        return Derivatives(math.nan, bound, None)  # the loss counts its calls, say; who asks for a replay will be told
    return Derivatives(error, bound, watch.with_wrong_second_derivative(seed))


def is_checked(gradient: LossGradient, hyperparameters: Any) -> bool:
    """Whether a run of this process has found the second derivatives right, of the same code of the loss, the same kind of model
    and hyperparameters of the same shapes. Arguments as :func:`check_derivatives` has them."""
    return (gradient.bound.model, gradient.bound.loss, hyperparameters) in _CHECKED


def check_derivatives(
    gradient: LossGradient, parts: int, hyperparameters: Any, seed: int, steps: range, wanted: bool | int
) -> float | None:
    """Compares at some steps of a run, before it begins.

    Args:
        gradient: of the run's loss.
        parts: in how many to cut a batch; the first one is looked at.
        hyperparameters: as the loss takes them.
        seed: of the run.
        steps: of the run.
        wanted: at how many of them. True: at the first one. False: at none.

    Returns:
        The largest error; None if nothing was compared.

    Raises:
        RuntimeError: where second derivatives are wrong.

    Warns where they seem so, but could be computed in float32 alone.
    """
    count = min(int(wanted), len(steps))
    given = gradient.bound.model, gradient.bound.loss, hyperparameters
    errors = []
    for step in (steps[k * len(steps) // count] for k in range(count)):
        batch = micro_batches(step, gradient.load(step), parts)[0]
        found = compare_derivatives(gradient.bound.model, gradient.bound.loss, batch, hyperparameters, seed, step)
        if not found.are_right:
            _complain(found, step)
        elif wanted is True:
            _CHECKED.add(given)
        if math.isfinite(found.bound + found.error):
            errors.append(found.error)
    return max(errors, default=None)


def _complain(found: Derivatives, step: int) -> None:
    if found.bound == BOUND[torch.float64]:
        raise RuntimeError(f"loss: at step {step} {found}, or pass check_derivatives=False to take them as they are")
    where = f", in {found.culprit}" if found.culprit else ""
    warnings.warn(
        f"loss: at step {step}, in float32, second derivatives and differences of the gradient are {found.error:.1g} of their "
        f"size apart{where}. Kinks, as those of ReLU, may explain that, or torch's second derivatives are wrong. Write the loss "
        "so that it can be computed in float64, too, in which the check is sharp",
        RuntimeWarning,
        stacklevel=2,
    )
