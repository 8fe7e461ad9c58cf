"""The adjoint of one step of SGD, elementwise, in torch's operations on flat vectors: that of float states."""

from abc import abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from reversible_hypergrad.problem.problem import Cotangents
from reversible_hypergrad.problem.setting import Setting
from reversible_hypergrad.reversible.flat import FlatGroup

__all__ = ["FlatAdjoint"]


class FlatAdjoint(FlatGroup):
    """One step, and its adjoint from ``aw`` and ``av``, the gradients by w' and v'::

        v' = mu*v + (1-tau)*(g + wd*w)          d_lr = -<aw, v'>;  av -= lr*aw;  u = (1-tau)*av
        w' = w - lr*v'                          d_mu = <av, v>;  d_tau = -<av, g + wd*w>;  d_wd = <u, w>
                                                aw += H u + wd*u;  av *= mu

    Of integer states the same is computed where they are undone: see reversible/fixed_adjoint.py.
    """

    @abstractmethod
    def velocity(self) -> Tensor:
        """The present velocity as a vector of the adjoint's dtype."""

    @abstractmethod
    def weights_vector(self) -> Tensor:
        """The present weights likewise."""

    @abstractmethod
    def total_at(self, step: int, gradients: Sequence[Tensor]) -> Tensor:
        """g + wd*w likewise, from the loss's gradients, one per weight of the problem."""

    def through_weights(self, step: int, aw: Tensor, onto: Tensor, moved: Callable[[], Tensor], totals: Cotangents) -> None:
        """Of w' = w - lr*moved: d_lr = -<aw, moved>; onto -= lr*aw."""
        vector: Tensor | None = None
        for part, setting, index in self.lr_spans:
            if setting.source is not None:
                vector = moved() if vector is None else vector
                self._accumulate(setting, index, totals, step, aw[part], vector[part], -1.0)
            if setting.elementwise is not None:
                onto[part].addcmul_(aw[part], setting.elementwise, value=-1.0)
            else:
                onto[part].add_(aw[part], alpha=-setting.at(step))

    def through_velocity(self, step: int, av: Tensor, gradients: Sequence[Tensor], totals: Cotangents) -> None:
        """Of v' = mu*v + (1-dampening)*total, with the state before the step: d_mu = <av, v>; d_dampening = -<av, total>."""
        if self.momentum.source is not None:
            self.momentum.accumulate(totals.sources, step, torch.dot(av, self.velocity()))
        if self.dampens(step) and any(setting.source is not None for _, setting, _ in self.dampening_spans):
            total = self.total_at(step, gradients)
            for part, setting, _ in self.dampening_spans:
                if setting.source is not None:
                    setting.accumulate(totals.sources, step, -torch.dot(av[part], total[part]))

    def through_gradient(
        self, step: int, aw: Tensor, av: Tensor, u: Tensor, products: Sequence[Tensor | None], totals: Cotangents
    ) -> None:
        """Of total = dL/dw + wd*w: aw += H u + wd*u; d_wd = <u, w>. And av *= mu."""
        for i, m in enumerate(self.members):
            product = products[m]
            if product is not None:
                self.view(aw, i).add_(product)
        self.through_decay(step, aw, u, totals)
        av.mul_(self.momentum_at(step))

    def through_decay(self, step: int, aw: Tensor, u: Tensor, totals: Cotangents) -> None:
        weights: Tensor | None = None
        for part, setting, index in self.decay_spans:
            if setting.source is not None:
                weights = self.weights_vector() if weights is None else weights
                self._accumulate(setting, index, totals, step, u[part], weights[part], 1.0)
            if setting.elementwise is not None:
                aw[part].addcmul_(u[part], setting.elementwise)
            elif setting.at(step):
                aw[part].add_(u[part], alpha=setting.at(step))

    def _accumulate(self, setting: Setting, index: int, totals: Cotangents, step: int, a: Tensor, b: Tensor, sign: float) -> None:
        if setting.elementwise is None:
            setting.accumulate(totals.sources, step, sign * torch.dot(a, b))
        else:
            self.add_elements(setting, index, totals, sign * a * b)
