"""Averages of the weights along a run."""

import torch
from torch import Tensor

from reversible_hypergrad.checks import check_integer
from reversible_hypergrad.readouts.base import Readout, Sum, Term, as_coefficients

__all__ = ["ExponentialAverage", "UniformAverage"]


class ExponentialAverage(Readout):
    """The exponential moving average of the weights: E = decay * E + (1 - decay) * w after every step, E the initial weights at
    first. A dict of name -> tensor.

    What is differentiated is the sum that this comes to, E = decay^T w_0 + (1 - decay) (w_T + decay w_(T-1) + ...), so nothing is
    undone, and the derivative by the decay is exact.

    Args:
        decay: in [0, 1]: a number, or a tensor of shape () or (steps,), which may require grad.

    Cost: one vector as large as the weights, and a pass over it per step; 8 bytes per step.

    Raises:
        TypeError: for a decay that is no number and no floating-point tensor.
        ValueError: for one outside of [0, 1], or, from :func:`train`, of another shape.

    >>> import torch, reversible_hypergrad as rh
    >>> def loss(model, batch, _):
    ...     return model(batch).square().mean()
    >>> model, data = torch.nn.Linear(3, 1), [torch.randn(8, 3)] * 10
    >>> decay = torch.tensor(0.8, requires_grad=True)
    >>> trained = rh.train(
    ...     model, loss, data, optimizer=rh.SGD(lr=0.1), readouts={"ema": rh.ExponentialAverage(decay)}
    ... )
    >>> trained.readouts["ema"]["weight"].sum().backward()
    >>> decay.grad.shape
    torch.Size([])

    Source: Polyak, Juditsky, *Acceleration of Stochastic Approximation by Averaging*, 1992, in the form of
    torch.optim.swa_utils.get_ema_multi_avg_fn.
    """

    def __init__(self, decay: float | Tensor) -> None:
        if isinstance(decay, bool) or not isinstance(decay, int | float | Tensor):
            raise TypeError(f"decay: expected a number or a tensor, got {type(decay).__name__}")
        if isinstance(decay, Tensor) and not decay.is_floating_point():
            raise TypeError(f"decay: expected a floating-point tensor, got {decay.dtype}")
        values = torch.as_tensor(decay).detach()
        if not bool(((values >= 0) & (values <= 1)).all()):
            raise ValueError(f"decay: expected numbers in [0, 1], got {values.min().item():g} to {values.max().item():g}")
        self.decay = decay

    def __repr__(self) -> str:
        shown = f"tensor of shape {tuple(self.decay.shape)}" if isinstance(self.decay, Tensor) else repr(self.decay)
        return f"ExponentialAverage({shown})"

    def sums(self, steps: range) -> list[Sum]:
        decay = as_coefficients(torch.as_tensor(self.decay, dtype=None if isinstance(self.decay, Tensor) else torch.float64))
        if decay.shape not in ((), (len(steps),)):
            raise ValueError(
                f"readouts: ExponentialAverage expected a decay of shape () or ({len(steps)},), one per step, got "
                f"{tuple(decay.shape)}"
            )
        decay = decay.expand(len(steps))
        # What is left of each moment's weights at the end: the product of the decays after it.
        left = torch.cat([decay.flip(0).cumprod(0).flip(0), decay.new_ones(1)])
        return [_Coefficients(steps.start, torch.cat([left[:1], (1 - decay) * left[1:]]))]


class UniformAverage(Readout):
    """The mean of the weights after steps ``first``, ``first + every``, ... to the end, each with the same share. A dict of
    name -> tensor.

    Args:
        first: how many steps have been taken where it begins, counted as in :class:`WeightsAt`; 0 counts the initial weights.
        every: steps between two that count, at least 1.

    Cost: one vector as large as the weights, and a pass over it per weights that count.

    Raises:
        TypeError: for what is no integer.
        ValueError: for ``every`` below 1, or, from :func:`train`, for a beginning that the run does not have.

    >>> import reversible_hypergrad as rh
    >>> rh.UniformAverage(first=500, every=10)
    UniformAverage(first=500, every=10)

    Source: Izmailov, Podoprikhin, Garipov, Vetrov, Wilson, *Averaging Weights Leads to Wider Optima*, UAI 2018.
    """

    def __init__(self, first: int = 0, every: int = 1) -> None:
        check_integer("first", first, least=0)
        check_integer("every", every, least=1)
        self.first, self.every = first, every

    def __repr__(self) -> str:
        return f"UniformAverage(first={self.first}, every={self.every})"

    def sums(self, steps: range) -> list[Sum]:
        if not steps.start <= self.first <= steps.stop:
            raise ValueError(
                f"readouts: UniformAverage expected to begin after {steps.start} to {steps.stop} steps, got first={self.first}"
            )
        coefficients = torch.zeros(len(steps) + 1, dtype=torch.float64)
        counted = coefficients[self.first - steps.start :: self.every]
        counted += 1 / len(counted)
        return [_Coefficients(steps.start, coefficients)]


class _Coefficients(Sum):
    """One for every moment of a run."""

    def __init__(self, start: int, coefficients: Tensor) -> None:
        self._start, self._numbers = start, coefficients.detach().numpy()
        self.coefficients = coefficients if coefficients.requires_grad else None

    def term(self, taken: int) -> Term | None:
        place = taken - self._start
        number = float(self._numbers[place])
        if self.coefficients is not None:
            return Term(number, place)
        return Term(number) if number else None
