"""Whether a hypergradient is the derivative of what it is said to be: the whole computation, run again at other inputs."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from reversible_hypergrad import pytree
from reversible_hypergrad.checks import check_integer

__all__ = ["Verification", "verify"]

_LARGEST, _FACTOR = 0.1, 4.0  # steps, in units of the inputs' size: the first one, and by how much each next one is smaller
_HOLDS = 0.1  # a derivative holds up to the step at which differences are so far from it
_USELESS = 1e-4  # one that holds for smaller changes only tells nothing that an outer loop could use
_SETTLED = 0.05  # three differences that agree so well have found the derivative


@dataclass
class Verification:
    """What :func:`verify` found. True if the derivative is right; ``str()`` of it is a report.

    Attributes:
        verdict: "right": within the differences' uncertainty; "wrong": outside of it; "chaotic": the function is so rough that
            its derivative holds for the smallest changes only, or no difference settles; "undecided": changes drown in rounding.
        derivative: of the outer function along the direction, by its gradient.
        difference: the same by central differences.
        uncertainty: of ``difference``: how far apart the three best steps are.
        reach: the largest step, in units of the inputs' size, up to which ``derivative`` is within a tenth of the differences; 0
            if there is none.
        wrong: the inputs, by path, in which the derivative is wrong.
        differences: step -> difference, from large to small; nan where a run could not be finished.
    """

    verdict: str
    derivative: float
    difference: float
    uncertainty: float
    reach: float
    wrong: list[str] = field(default_factory=list)
    differences: Mapping[float, float] = field(default_factory=dict, repr=False)

    def __bool__(self) -> bool:
        return self.verdict == "right"

    def __str__(self) -> str:
        found = (
            f"{self.verdict}: along a random direction the gradient gives {self.derivative:.6g}, differences give "
            f"{self.difference:.6g} +- {self.uncertainty:.1g}"
        )
        if self.verdict == "right":
            return f"{found}. It holds within a tenth for changes up to {self.reach:.1g} of the inputs' size"
        if self.verdict == "wrong":
            where = f", by {', '.join(self.wrong)}" if self.wrong else ""
            return (
                f"{found}{where}. rh.check_replayable tells whether torch's second derivatives of the training loss are wrong; a "
                "strategy whose report says exact=False leaves terms out; and a tensor that was detached counts as constant"
            )
        if self.verdict == "chaotic":
            return (
                f"{found}. The gradient tells what changes do that are below {self.reach:.1g} of the inputs' size: training is "
                "chaotic, and following it goes astray. Lower the learning rates, or train for fewer steps"
            )
        return f"{found}. The changes drown in rounding: compute in float64, or take inputs that matter more"


def verify(outer: Callable[[Any], Tensor], inputs: Any, *, directions: int = 1, seed: int = 0) -> Verification:
    """Compares the gradient of a whole computation, training included, with differences of its results.

    Along random directions the inputs are moved to both sides by 0.1 of their size, a fourth of that, and so on, and the outer
    function is computed there, from which a central difference follows for each step. Where three in a row agree, they are the
    derivative, with an uncertainty; so a derivative that is wrong is told from one of a function that has none to be found. If it
    is wrong, each input is moved alone, to name those to blame.

    Args:
        outer: inputs -> scalar tensor, such as a validation loss after :func:`train`. It is called with a nest like ``inputs``
            and must give the same whenever it is called with the same.
        inputs: any nest (dict, list, tuple) of tensors, of which those of floating point that require grad count. Not modified.
        directions: how many random ones to try, at least 1; the worst result is returned.
        seed: of the directions.

    Returns:
        A :class:`Verification`, true if the gradient is right.

    Raises:
        TypeError: for an ``outer`` that gives no scalar tensor, and a number that is no integer.
        ValueError: for inputs of which none requires grad, a result that does not depend on them, or differs between two calls;
            and whatever ``outer`` raises at the inputs as they are, or at all others.

    Cost: per direction one gradient, and 7 to 32 evaluations without (float32: 7 to 12); as many for each input if one is wrong.

    >>> import torch, reversible_hypergrad as rh
    >>> model, data = torch.nn.Linear(3, 1).double(), torch.randn(10, 8, 3, dtype=torch.float64)
    >>> def loss(model, batch, log_l2):
    ...     return model(batch).square().mean() + log_l2.exp() * sum(p.square().sum() for p in model.parameters())
    >>> def outer(inputs):
    ...     optimizer = rh.SGD(lr=inputs["log_lr"].exp())
    ...     trained = rh.train(model, loss, data, optimizer=optimizer, hyperparameters=inputs["log_l2"])
    ...     return torch.func.functional_call(model, trained, data[0]).square().mean()
    >>> inputs = {"log_lr": torch.full((10,), -2.0, requires_grad=True), "log_l2": torch.tensor(-5.0, requires_grad=True)}
    >>> rh.verify(outer, inputs).verdict
    'right'

    Source: differences at several steps as in Ridders, *Accurate computation of F'(x) and F'(x) F''(x)*, Advances in Engineering
    Software 4(2), 1982.
    """
    check_integer("directions", directions, least=1)
    function = _Function(outer, inputs)
    generator = torch.Generator().manual_seed(seed)
    found = [_along(function, function.direction(generator)) for _ in range(directions)]
    worst = max(found, key=lambda one: ["right", "undecided", "chaotic", "wrong"].index(one.verdict))
    if worst.verdict == "wrong":
        alone = {name: _along(function, function.direction(generator, name)) for name in function.names}
        worst.wrong = [name for name, one in alone.items() if one.verdict == "wrong"]
    return worst


class _Function:
    """The outer function of those inputs that count, which all are ``start`` plus a step along a direction."""

    def __init__(self, outer: Callable[[Any], Tensor], inputs: Any) -> None:
        self._outer = outer
        leaves, self._structure = pytree.flatten(inputs)
        self._leaves = [leaf.detach().clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self._places = [i for i, x in enumerate(leaves) if isinstance(x, Tensor) and x.requires_grad]
        if not self._places:
            raise ValueError("inputs: expected tensors that require grad, got none. Set requires_grad_() on what to verify")
        paths = pytree.paths(inputs)
        self.names = [paths[i] or "inputs" for i in self._places]
        self._start = [self._leaves[i] for i in self._places]
        given = [x.clone().requires_grad_() for x in self._start]
        value = self._at(given)
        if not value.requires_grad:
            raise ValueError("outer: expected a result that depends on the inputs, got one without a graph")
        gradients = torch.autograd.grad(value, given, allow_unused=True)
        self.gradients = [torch.zeros_like(x) if g is None else g for g, x in zip(gradients, given, strict=True)]
        self.size = abs(float(value.detach()))
        self.eps = max(torch.finfo(x.dtype).eps for x in (value, *given))
        first, again = float(value.detach()), float(self._at(self._start).detach())
        if abs(again - first) > math.sqrt(self.eps) * self.size:
            raise ValueError(
                f"outer: expected the same result whenever it is called with the same inputs, got {first:.9g} and {again:.9g}. "
                "Seed what it draws, and leave nothing behind that the next call sees"
            )

    def _at(self, given: Sequence[Tensor]) -> Tensor:
        leaves = list(self._leaves)
        for i, x in zip(self._places, given, strict=True):
            leaves[i] = x
        value = self._outer(pytree.unflatten(leaves, self._structure))
        if not isinstance(value, Tensor) or value.numel() != 1:
            got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"outer: expected it to return a scalar tensor, got {got}")
        return value

    def direction(self, generator: torch.Generator, only: str | None = None) -> list[Tensor]:
        """A random one, in which each input counts by its size; ``only`` one of them moves if it is named."""
        moves = []
        for name, x in zip(self.names, self._start, strict=True):
            size = float(x.double().square().mean().sqrt()) if x.numel() else 0.0
            move = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.device) * (size or 1.0)
            moves.append(move if only in (None, name) else torch.zeros_like(move))
        return moves

    def along(self, direction: Sequence[Tensor], step: float) -> float:
        with torch.no_grad():
            moved = [(x.double() + step * d).to(x.dtype) for x, d in zip(self._start, direction, strict=True)]
        return float(self._at(moved).detach())


def _differences(function: _Function, direction: Sequence[Tensor]) -> Iterator[tuple[float, float, float]]:
    """Steps from large to small, differences, and the changes that these are computed from."""
    step, failed = _LARGEST, None
    while step > function.eps**0.6:  # where rounding has all but a few digits of the change
        try:
            change = function.along(direction, step) - function.along(direction, -step)
            failed = None
        except (ArithmeticError, ValueError) as error:  # that far training diverges, or a momentum is no momentum
            change, failed = math.nan, error
        yield step, change / (2 * step), change
        step /= _FACTOR
    if failed is not None:
        raise failed


def _along(function: _Function, direction: Sequence[Tensor]) -> Verification:
    derivative = sum(float((g.double() * d).sum()) for g, d in zip(function.gradients, direction, strict=True))
    found: dict[float, float] = {}
    changes: list[float] = []
    best, spread, floor = math.nan, math.inf, math.inf
    precision = math.sqrt(function.eps)
    for step, difference, change in _differences(function, direction):
        found[step] = difference
        changes.append(abs(change))
        last = list(found.values())[-3:]
        rounding = 4 * function.eps * function.size / step
        if len(last) == 3 and max(last) - min(last) + rounding < spread + floor:
            best, spread, floor = sorted(last)[1], max(last) - min(last), rounding
        size = max(abs(best), abs(derivative))
        is_right = abs(best - derivative) <= 2 * (spread + floor) + 4 * precision * size
        if is_right and spread + floor <= max(1e-4, 10 * precision) * size:
            break
    reach = next((step for step, d in found.items() if abs(d - derivative) <= _HOLDS * abs(derivative)), 0.0)
    if spread + floor > _SETTLED * size and size > 0:
        verdict = "chaotic" if min(changes[-3:]) > 1e3 * function.eps * function.size else "undecided"
    elif spread > max(_SETTLED * abs(best), floor):  # small beside the gradient alone
        verdict = "chaotic"
    else:
        verdict = ("chaotic" if reach < _USELESS else "right") if is_right else "wrong"
    return Verification(verdict, derivative, best, spread + floor, reach, differences=found)
