"""Plain float weights and velocities, as torch.optim.SGD keeps them: the state of the strategies that do not reverse."""

from collections.abc import Sequence

import torch
from torch import Tensor

from reversible_hypergrad.adjoints.flat_adjoint import FlatAdjoint
from reversible_hypergrad.problem.problem import Cotangents, Problem

__all__ = ["FloatGroup", "FloatState", "float_groups", "needs_velocity"]

_ALIGNMENT = 16  # elements: every part begins where wide loads are fast


class FloatState:
    """One group's weights, and its velocity where it is needed, before some step."""

    def __init__(self, w: Tensor, v: Tensor | None) -> None:
        self.w, self.v = w, v


class FloatGroup(FlatAdjoint):
    """Parameters that share a momentum, a device and a dtype. Their weights become views of one vector, ``w``.

    A step is torch.optim.SGD's: ``v' = mu*v + (1-tau)*total``, ``w' = w - lr*moved``, with moved = v', or
    total + mu*v' (Nesterov).
    """

    def __init__(self, problem: Problem, members: Sequence[int]) -> None:
        offsets = [0]
        for i in members:
            offsets.append(offsets[-1] + -(-problem.weights[i].numel() // _ALIGNMENT) * _ALIGNMENT)
        super().__init__(problem, members, offsets)
        self.nesterov = problem.nesterov
        self.w = torch.zeros(offsets[-1], dtype=self.weights[0].dtype, device=self.device)
        for i, weight in enumerate(self.weights):
            view = self.view(self.w, i)
            view.copy_(weight.detach())
            weight.data = view
        self.v = torch.zeros_like(self.w)
        self._gradient = torch.zeros_like(self.w)
        self._gradient_views = [self.view(self._gradient, i) for i in range(len(members))]

    # The run forward

    def step(self, step: int, gradients: Sequence[Tensor]) -> None:
        total = self._total(step, gradients)
        self._decay_velocity(self.v, step, total)
        moved = total.add_(self.v, alpha=self.momentum_at(step)) if self.nesterov else self.v
        for part, setting, _ in self.lr_spans:
            if setting.elementwise is not None:
                self.w[part].addcmul_(moved[part], setting.elementwise, value=-1.0)
            else:
                self.w[part].add_(moved[part], alpha=-setting.at(step))

    def _total(self, step: int, gradients: Sequence[Tensor]) -> Tensor:
        """In the weights' dtype, valid until the next call."""
        total = self._gradient
        torch._foreach_copy_(self._gradient_views, [gradients[m] for m in self.members])
        for part, setting, _ in self.decay_spans:
            if setting.elementwise is not None:
                total[part].addcmul_(self.w[part], setting.elementwise)
            elif setting.at(step):
                total[part].add_(self.w[part], alpha=setting.at(step))
        return total

    def _decay_velocity(self, v: Tensor, step: int, total: Tensor) -> None:
        v.mul_(self.momentum_at(step))
        for part, setting, _ in self.dampening_spans:
            v[part].add_(total[part], alpha=self.share(setting, step))

    def state(self, with_velocity: bool) -> FloatState:
        """A copy."""
        return FloatState(self.w.clone(), self.v.clone() if with_velocity else None)

    def load(self, state: FloatState) -> None:
        """Without a velocity it is the start's: zero."""
        self.w.copy_(state.w)
        if state.v is None:
            self.v.zero_()
        else:
            self.v.copy_(state.v)

    # The adjoint

    def dampens(self, step: int) -> bool:
        # torch's SGD does not dampen without momentum.
        return step > 0 and self.momentum_at(step) != 0

    def velocity(self) -> Tensor:
        return self.v.to(self.dtype)

    def weights_vector(self) -> Tensor:
        return self.w.to(self.dtype)

    def total_at(self, step: int, gradients: Sequence[Tensor]) -> Tensor:
        return self._total(step, gradients).to(self.dtype)

    def momentum_at(self, step: int) -> float:
        return self.momentum.at(step)

    def velocity_after(self, step: int, gradients: Sequence[Tensor]) -> Tensor:
        v = self.v.clone()
        self._decay_velocity(v, step, self._total(step, gradients))
        return v.to(self.dtype)

    def enter(self, step: int, aw: Tensor, av: Tensor, gradients: Sequence[Tensor], totals: Cotangents) -> Tensor:
        """The adjoint of the step's last line, from the state before it. Returns the cotangent of ``total``."""
        if not self.nesterov:
            self.through_weights(step, aw, av, lambda: self.velocity_after(step, gradients), totals)
            return self.directions(step, av)
        mu = self.momentum_at(step)
        direct = self.vector()  # the cotangent of total + mu*v'
        self.through_weights(
            step, aw, direct, lambda: self.total_at(step, gradients).add(self.velocity_after(step, gradients), alpha=mu), totals
        )
        if self.momentum.source is not None:
            self.momentum.accumulate(totals.sources, step, torch.dot(direct, self.velocity_after(step, gradients)))
        av.add_(direct, alpha=mu)
        return self.directions(step, av) + direct


def needs_velocity(problem: Problem) -> bool:
    """Whether the adjoint of a step looks at velocities: where learning rates or momenta get gradients."""
    return any(s.lr.source is not None or s.momentum.source is not None for s in problem.settings)


def float_groups(problem: Problem) -> list[FloatGroup]:
    """One per momentum setting, device and dtype."""
    members: dict[tuple[int, torch.device, torch.dtype], list[int]] = {}
    for i, (settings, weight) in enumerate(zip(problem.settings, problem.weights, strict=True)):
        members.setdefault((id(settings.momentum), weight.device, weight.dtype), []).append(i)
    return [FloatGroup(problem, m) for m in members.values()]
