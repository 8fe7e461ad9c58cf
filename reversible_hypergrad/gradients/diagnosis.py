"""Why a step did not come out the same on the way back."""

from reversible_hypergrad.gradients.same_bits import same_bits
from reversible_hypergrad.problem.gradient import Gradient

__all__ = ["diagnose"]


def diagnose(gradient: Gradient, step: int) -> str:
    """Asks for ``step``'s batch and gradient twice more: what differs then is the cause."""
    try:
        first = gradient.batch(step)
        if not same_bits(first, gradient.batch(step)):
            return f"Seen: the batch of step {step} is another one each time it is asked for"
        results = []
        for _ in range(2):
            evaluation = gradient(step)
            results.append([tensor.clone() for tensor in (evaluation.value, *evaluation.gradients)])
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
