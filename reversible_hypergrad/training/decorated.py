"""What train() is asked to do to the gradient of a loss: compiled or captured, accumulated, clipped, from the inside out."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from reversible_hypergrad.gradients.accumulated import Accumulated
from reversible_hypergrad.gradients.captured import captured
from reversible_hypergrad.gradients.clip import Clip
from reversible_hypergrad.gradients.clipped import Clipped
from reversible_hypergrad.gradients.compiled import CompiledGradient, compiled
from reversible_hypergrad.gradients.decorator import Decorator
from reversible_hypergrad.gradients.loss import LossGradient
from reversible_hypergrad.problem.gradient import Gradient
from reversible_hypergrad.problem.report import Report

__all__ = ["decorated", "note_compilation"]


def decorated(
    plain: LossGradient,
    hyperparameters: Any,
    steps: range,
    compile: bool | Mapping[str, Any],
    cuda_graph: bool,
    accumulate: int,
    clip: Clip | None,
) -> tuple[Gradient, list[Tensor]]:
    """The gradient, and its hyperparameters beside those of the loss, attached. Arguments as :func:`train` has them."""
    gradient: Gradient = plain if compile is False else compiled(plain, compile)
    if cuda_graph:
        gradient = captured(gradient, hyperparameters)
    gradient = Accumulated(gradient, accumulate)
    if clip is None:
        return gradient, []
    limits = clip.resolve(steps, gradient.weights[0].device)
    return Clipped(gradient, clip, limits, steps.stop), [limits] if limits.requires_grad else []


def note_compilation(gradient: Gradient, report: Report) -> None:
    """What compiling took, if anything was compiled."""
    while isinstance(gradient, Decorator):
        if isinstance(gradient, CompiledGradient):
            report.compile_seconds, report.compiled_alike = gradient.seconds, gradient.agree
        gradient = gradient.inner
