"""One bucket of a reversible run: its settings, its log, and the adjoint's elementwise arithmetic on flat vectors."""

from array import array
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from reversible_hypergrad.adjoints.planes import open_store
from reversible_hypergrad.adjoints.problem import Cotangents, Problem, Setting, Settings
from reversible_hypergrad.core.rational import approximate_momentum
from reversible_hypergrad.engine.bucket import Bucket, Coefficients, Outcome, Record, combine

__all__ = ["Group", "groups_of"]

_SPILLS = (0, 8, 16)


class Group:
    """Parameters that share a momentum (and a device), in one bucket.

    The log takes 18 bytes per step beside the planes. Vectors of the adjoint have the layout of the bucket's state:
    one flat tensor, a part per parameter, zero between the parts.
    """

    def __init__(self, problem: Problem, members: Sequence[int], state_bits: int, verify_every: int, place: str | Path) -> None:
        self.members = list(members)
        self.verify_every = verify_every
        self.settings = [problem.settings[i] for i in members]
        weights = [problem.weights[i] for i in members]
        self.bucket = Bucket(weights, [problem.names[i] for i in members], state_bits)
        self.dtype = torch.float64 if any(w.dtype == torch.float64 for w in weights) else torch.float32
        self.lr_spans = self._spans(lambda s: s.lr)
        self.dampening_spans = self._spans(lambda s: s.dampening)
        self.decay_spans = self._spans(lambda s: s.weight_decay)
        self.momentum = self.settings[0].momentum
        self._fractions: dict[float, Fraction] = {}
        self._shared = all(s == self.settings[0] and s.lr.elementwise is None for s in self.settings)
        self._constant = all(len(x.numbers) < 2 for s in self.settings for x in (s.lr, s.dampening, s.weight_decay))
        self._coefficients: tuple[Coefficients, ...] | None = None
        self._active = (True,) * len(weights)
        self.store = open_store(place, weights[0].device)
        self.hash: int | None = self.bucket.hash()
        self._hashes, self._bounds, self._spilled = array("q"), array("Q"), array("H")

    # The run forward

    def step(self, step: int, gradients: Sequence[Tensor], record: bool) -> Outcome:
        """One step. The outcome may hold flags; then the caller undoes it with :meth:`undo_flagged` and reports."""
        total = [self._with_decay(i, gradients[m]) for i, m in enumerate(self.members)]
        with_hash = record and self._is_checked(step + 1)
        entry, outcome = self.bucket.step(total, self.fraction(step), self.coefficients(step), None, with_hash)
        if record:
            if self._is_checked(step):
                assert self.hash is not None
                self._hashes.append(self.hash)
            self._bounds.append(entry.bound)
            self._spilled.append(sum(_SPILLS.index(bits) << 2 * k for k, bits in enumerate(entry.spill_bits)))
            for plane in entry.planes:
                self.store.push(plane)
            self.hash = outcome.hash if with_hash else None
        return outcome

    # The way back

    def undo_weights(self, step: int) -> tuple[Record, int]:
        """The first phase: weights back to before ``step``. Returns its record, and the hash of the weights."""
        spilled = self._spilled.pop()
        spill_bits = tuple(_SPILLS[spilled >> 2 * k & 3] for k in range(8))
        planes = [self.store.pop() for bits in spill_bits if bits][::-1]
        hash_before = self._hashes.pop() if self._is_checked(step) else None
        bound = self._bounds.pop()
        record = Record(self.fraction(step), self.coefficients(step), self._active, bound, spill_bits, planes, hash_before)
        outcome = self.bucket.move_weights(record, back=True, with_hash=hash_before is not None)
        if step == 0:
            self.bucket.restore_initial()  # the first gradient was taken there, not at the rounded weights
        return record, outcome.hash

    def undo_velocity(self, step: int, record: Record, weights_hash: int, gradients: Sequence[Tensor]) -> list[str]:
        """The second phase. Returns the names of suspect parameters, empty if all is as it was (as far as checked)."""
        total = [self._with_decay(i, gradients[m]) for i, m in enumerate(self.members)]
        outcome = self.bucket.undo_velocity(record, total, record.hash_before is not None)
        flagged = [name for name, flag in zip(self.bucket.names, outcome.flags, strict=True) if flag]
        wrong_hash = record.hash_before is not None and combine(weights_hash, outcome.hash) != record.hash_before
        if flagged or wrong_hash or (step == 0 and not self.bucket.is_empty()):
            return flagged or self.bucket.names
        return []

    # The adjoint, section by section of a step; see Reversible for the formulas

    def vector(self) -> Tensor:
        return torch.zeros(self.bucket.offsets[-1], dtype=self.dtype, device=self.bucket.x.device)

    def view(self, vector: Tensor, i: int) -> Tensor:
        """The part of ``vector`` that belongs to the ``i``-th parameter, in its shape and memory order."""
        weight = self.bucket.weights[i]
        return vector.as_strided(weight.shape, weight.stride(), self.bucket.offsets[i])

    def velocity(self) -> Tensor:
        """The integers V as floats."""
        return self.bucket.v.to(self.dtype).mul_(2.0**-self.bucket.format.velocity_fraction_bits)

    def weights_vector(self) -> Tensor:
        return self.bucket.x.to(self.dtype).mul_(2.0**-self.bucket.format.weight_fraction_bits)

    def through_weights(self, step: int, aw: Tensor, av: Tensor, totals: Cotangents) -> None:
        """w' = w - lr*v', with the state still after the step: d_lr = -<aw, v'>; av -= lr*aw."""
        velocity: Tensor | None = None
        for part, setting, index in self.lr_spans:
            if setting.source is not None:
                velocity = self.velocity() if velocity is None else velocity
                self._accumulate(setting, index, totals, step, aw[part], velocity[part], -1.0)
            if setting.elementwise is not None:
                av[part].addcmul_(aw[part], setting.elementwise, value=-1.0)
            else:
                av[part].add_(aw[part], alpha=-self._used(setting.at(step)))

    def directions(self, step: int, av: Tensor) -> Tensor:
        """u = (1 - dampening) * av."""
        shares = [(part, self._share(setting, step)) for part, setting, _ in self.dampening_spans]
        if all(share == 1.0 for _, share in shares):
            return av
        u = av.clone()
        for part, share in shares:
            u[part] *= share
        return u

    def through_velocity(self, step: int, av: Tensor, gradients: Sequence[Tensor], totals: Cotangents) -> None:
        """v' = mu*v + (1-dampening)*g, with the state before the step: d_mu = <av, v>; d_dampening = -<av, g>."""
        if self.momentum.source is not None:
            self.momentum.accumulate(totals.sources, step, torch.dot(av, self.velocity()))
        if step > 0 and any(setting.source is not None for _, setting, _ in self.dampening_spans):
            whole = self.vector()
            for i, m in enumerate(self.members):
                self.view(whole, i).copy_(self._with_decay(i, gradients[m]))
            for part, setting, _ in self.decay_spans:
                if setting.elementwise is None and setting.at(step):
                    whole[part].add_(self.weights_vector()[part], alpha=self._used(setting.at(step)))
            for part, setting, _ in self.dampening_spans:
                if setting.source is not None:
                    setting.accumulate(totals.sources, step, -torch.dot(av[part], whole[part]))

    def through_gradient(
        self, step: int, aw: Tensor, av: Tensor, u: Tensor, products: Sequence[Tensor | None], totals: Cotangents
    ) -> None:
        """g = dL/dw + wd*w: aw += H u + wd*u; d_wd = <u, w>; and av *= mu."""
        weights: Tensor | None = None
        for i, m in enumerate(self.members):
            product = products[m]
            if product is not None:
                self.view(aw, i).add_(product)
        for part, setting, index in self.decay_spans:
            if setting.source is not None:
                weights = self.weights_vector() if weights is None else weights
                self._accumulate(setting, index, totals, step, u[part], weights[part], 1.0)
            if setting.elementwise is not None:
                aw[part].addcmul_(u[part], setting.elementwise)
            elif setting.at(step):
                aw[part].add_(u[part], alpha=self._used(setting.at(step)))
        fraction = self.fraction(step)
        av.mul_(fraction.numerator / fraction.denominator)

    def information_bytes(self) -> int:
        return self.store.nbytes + self.bucket.accumulators.nbytes

    def log_bytes(self) -> int:
        return sum(log.itemsize * len(log) for log in (self._hashes, self._bounds, self._spilled))

    # Settings

    def fraction(self, step: int) -> Fraction:
        number = self.momentum.at(step)
        if number not in self._fractions:
            if len(self._fractions) > 4096:
                self._fractions.clear()
            self._fractions[number] = approximate_momentum(number, self.bucket.format.state_bits)
        return self._fractions[number]

    def coefficients(self, step: int) -> tuple[Coefficients, ...]:
        if step > 0 and self._constant and self._coefficients is not None:
            return self._coefficients
        chosen = tuple(self._coefficients_of(i, step) for i in range(1 if self._shared else len(self.settings)))
        if step > 0:
            self._coefficients = chosen
        return chosen

    def _coefficients_of(self, i: int, step: int) -> Coefficients:
        settings = self.settings[i]
        rates = settings.lr.elementwise
        return Coefficients.of(
            self.bucket.format,
            lr=settings.lr.at(step) if rates is None else self.view_of_flat(rates, i),
            weight_decay=0.0 if settings.weight_decay.elementwise is not None else settings.weight_decay.at(step),
            dampening=1.0 - self._share(settings.dampening, step),
        )

    def _share(self, dampening: Setting, step: int) -> float:
        """As torch does, the first velocity is the gradient, undampened."""
        return 1.0 if step == 0 else 1.0 - dampening.at(step)

    def _with_decay(self, i: int, gradient: Tensor) -> Tensor:
        """A decay per weight joins the gradient here; a single number is the kernel's business."""
        decay = self.settings[i].weight_decay.elementwise
        if decay is None:
            return gradient
        weight = self.bucket.weights[i].detach()
        return torch.addcmul(gradient, self.view_of_flat(decay, i), weight)

    def view_of_flat(self, flat: Tensor, i: int) -> Tensor:
        weight = self.bucket.weights[i]
        return flat.as_strided(weight.shape, weight.stride())

    def _used(self, number: float) -> float:
        """As the kernels compute: 32-bit state in float32."""
        return number if self.bucket.format.state_bits == 64 else float(np.float32(number))

    def _accumulate(self, setting: Setting, index: int, totals: Cotangents, step: int, a: Tensor, b: Tensor, sign: float) -> None:
        if setting.elementwise is None:
            setting.accumulate(totals.sources, step, sign * torch.dot(a, b))
            return
        assert setting.source is not None
        target = totals.sources[setting.source]
        target += self.view_of_flat(sign * a * b, index).reshape(target.shape)

    def _is_checked(self, step: int) -> bool:
        return step % self.verify_every == 0

    def _spans(self, of: Callable[[Settings], Setting]) -> list["Span"]:
        """Runs of neighbouring parameters with one setting; those with a value per weight stand alone, without padding."""
        spans: list[Span] = []
        offsets = self.bucket.offsets
        for i, settings in enumerate(self.settings):
            setting = of(settings)
            if setting.elementwise is not None:
                spans.append(Span(slice(offsets[i], offsets[i] + self.bucket.sizes[i]), setting, i))
            elif spans and spans[-1].setting is setting:
                spans[-1] = Span(slice(spans[-1].part.start, offsets[i + 1]), setting, spans[-1].first)
            else:
                spans.append(Span(slice(offsets[i], offsets[i + 1]), setting, i))
        return spans


class Span(NamedTuple):
    part: slice  # of a vector
    setting: Setting
    first: int  # the first parameter in it


def groups_of(problem: Problem, state_bits: int, verify_every: int, place: str | Path) -> list[Group]:
    """The fewest buckets: one per momentum setting and device."""
    members: dict[tuple[int, torch.device], list[int]] = {}
    for i, (settings, weight) in enumerate(zip(problem.settings, problem.weights, strict=True)):
        members.setdefault((id(settings.momentum), weight.device), []).append(i)
    return [Group(problem, m, state_bits, verify_every, place) for m in members.values()]
