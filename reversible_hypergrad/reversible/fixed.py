"""One bucket of a reversible run: its steps forward and back, and their log."""

from array import array
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from reversible_hypergrad.core.rational import approximate_momentum
from reversible_hypergrad.problem.problem import Problem
from reversible_hypergrad.problem.setting import Setting
from reversible_hypergrad.reversible.bucket import Bucket, Coefficients, Outcome, Record, combine
from reversible_hypergrad.reversible.flat import FlatGroup
from reversible_hypergrad.reversible.hash_log import HashLog
from reversible_hypergrad.storage.places import open_store

__all__ = ["LOG_BYTES", "FixedGroup", "fixed_groups"]

_SPILLS = (0, 8, 16)
LOG_BYTES = 18  # per recorded step: a hash, a bound, what was spilled


class Span(NamedTuple):
    """Neighbouring parameters with one setting."""

    part: slice  # of a vector
    setting: Setting
    first: int  # the first parameter in it


class FixedGroup(FlatGroup):
    """Parameters that share a momentum and a device, in one bucket. Vectors have the layout of the bucket's state.

    A run is one segment or several. Each begins with an empty buffer; planes and log are those of the recorded one.
    """

    def __init__(self, problem: Problem, members: Sequence[int], state_bits: int, verify_every: int, place: str | Path) -> None:
        weights = [problem.weights[i] for i in members]
        self.bucket = Bucket(weights, [problem.names[i] for i in members], state_bits)
        super().__init__(problem, members, self.bucket.offsets)
        self.lr_spans = self._spans("lr")
        self.dampening_spans = self._spans("dampening")
        self.decay_spans = self._spans("weight_decay")
        self.momentum = self.settings[0]["momentum"]
        self.verify_every = verify_every
        self._fractions: dict[float, Fraction] = {}
        self._shared = all(s == self.settings[0] and s["lr"].elementwise is None for s in self.settings)
        self._constant = all(len(s[x].numbers) < 2 for s in self.settings for x in ("lr", "dampening", "weight_decay"))
        self._later: tuple[tuple[Coefficients, ...], list[float]] | None = None  # of all steps but the first, if constant
        self._active = (True,) * len(weights)
        self.store = open_store(place, weights[0].device)
        self.first = 0  # step of the present segment
        self._hash: int | Outcome | None = self.bucket.hash()  # of the present state, or who will know it
        self._hashes, self._bounds, self._spilled = HashLog(), array("Q"), array("H")

    # The run forward

    def step(self, step: int, gradients: Sequence[Tensor], record: bool) -> Outcome:
        """One step. If its outcome, once read, holds flags, the run is over: the caller reports them."""
        with_hash = record and self._is_checked(step + 1)
        entry, outcome = self.bucket.step(self.totals(gradients), self.fraction(step), self.coefficients(step), None, with_hash)
        if record:
            if self._is_checked(step):
                assert self._hash is not None
                self._hashes.push(self._hash)
            self._bounds.append(entry.bound)
            self._spilled.append(sum(_SPILLS.index(bits) << 2 * k for k, bits in enumerate(entry.spill_bits)))
            for plane in entry.planes:
                self.store.push(plane)
            self._hash = outcome if with_hash else None
        return outcome

    def begin_segment(self, step: int) -> None:
        """Whatever information there is is dropped."""
        self.bucket.forget()
        self.first = step
        self._hash = self.bucket.hash()

    def begin_again(self) -> None:
        """At the initial weights, which must be the visible ones."""
        self.bucket.quantize_weights()
        self.bucket.v.zero_()
        self.begin_segment(0)

    def push_state(self) -> None:
        self.store.push(self.bucket.x.clone().view(torch.uint8))
        self.store.push(self.bucket.v.clone().view(torch.uint8))

    def pop_state(self) -> None:
        self.bucket.v.copy_(self.store.pop().view(self.bucket.v.dtype))
        self.bucket.x.copy_(self.store.pop().view(self.bucket.x.dtype))
        self.bucket.show_weights()

    # The way back

    def pop_record(self, step: int) -> Record:
        """What undoing ``step``, the last one that is left, needs beside its gradient."""
        spilled = self._spilled.pop()
        spill_bits = tuple(_SPILLS[spilled >> 2 * k & 3] for k in range(8))
        planes = [self.store.pop() for bits in spill_bits if bits][::-1]
        hash_before = self._hashes.pop() if self._is_checked(step) else None
        bound = self._bounds.pop()
        return Record(self.fraction(step), self.coefficients(step), self._active, bound, spill_bits, planes, hash_before)

    def suspects(self, step: int, weights: Outcome, velocity: Outcome, hash_before: int | None) -> list[str]:
        """Names of parameters that undoing ``step`` did not restore, by the outcomes of both phases; empty if all is as it was
        (as far as checked). Of a segment's first step the state itself is looked at: call it while that is the present one."""
        flagged = [name for name, flag in zip(self.bucket.names, velocity.flags, strict=True) if flag]
        wrong_hash = hash_before is not None and combine(weights.hash, velocity.hash) != hash_before
        left_over = step == self.first and not (self.bucket.is_empty() if step == 0 else self.bucket.has_no_information())
        if flagged or wrong_hash or left_over:
            return flagged or self.bucket.names
        return []

    # What the adjoint asks for

    def velocity_of(self, i: int) -> Tensor:
        """The ``i``-th member's velocity, flat, in the vectors' dtype."""
        bucket = self.bucket
        return bucket.state_of(i, bucket.v).to(self.dtype).mul_(2.0**-bucket.format.velocity_fraction_bits)

    def weights_of(self, i: int) -> Tensor:
        """Its weights likewise."""
        bucket = self.bucket
        return bucket.state_of(i, bucket.x).to(self.dtype).mul_(2.0**-bucket.format.weight_fraction_bits)

    def momentum_at(self, step: int) -> float:
        fraction = self.fraction(step)
        return fraction.numerator / fraction.denominator

    def directions(self, step: int, av: Tensor) -> Tensor:
        """u = (1 - dampening) * av."""
        shares = [(part, self.share(setting, step)) for part, setting, _ in self.dampening_spans]
        if all(share == 1.0 for _, share in shares):
            return av
        u = av.clone()
        for part, share in shares:
            u[part] *= share
        return u

    def information_bytes(self) -> int:
        return self.store.nbytes + self.bucket.accumulators.nbytes

    def log_bytes(self) -> int:
        return self._hashes.nbytes + sum(log.itemsize * len(log) for log in (self._bounds, self._spilled))

    # Settings

    def dampens(self, step: int) -> bool:
        """As torch does, the first velocity is the gradient, undampened."""
        return step > 0

    def share(self, dampening: Setting, step: int) -> float:
        """1 - dampening, as the step used it."""
        return 1.0 - dampening.at(step) if self.dampens(step) else 1.0

    def fraction(self, step: int) -> Fraction:
        number = self.momentum.at(step)
        if number not in self._fractions:
            if len(self._fractions) > 4096:
                self._fractions.clear()
            self._fractions[number] = approximate_momentum(number, self.bucket.format.state_bits)
        return self._fractions[number]

    def coefficients(self, step: int) -> tuple[Coefficients, ...]:
        return self._at(step)[0]

    def shares_and_decays(self, step: int) -> list[float]:
        """1 - dampening and weight decay as the step used them, of all members or of each, one after the other; a decay per
        weight, which is in the totals, counts as 0."""
        return self._at(step)[1]

    def _at(self, step: int) -> tuple[tuple[Coefficients, ...], list[float]]:
        if step > 0 and self._constant and self._later is not None:
            return self._later
        members = range(1 if self._shared else len(self.settings))
        chosen = (
            tuple(self._coefficients_of(i, step) for i in members),
            [x for i in members for x in self._share_and_decay(i, step)],
        )
        if step > 0:
            self._later = chosen
        return chosen

    def _share_and_decay(self, i: int, step: int) -> tuple[float, float]:
        decay = self._decay(i, step)
        # As the kernels compute: 32-bit state in float32.
        used = decay if self.bucket.format.state_bits == 64 else float(np.float32(decay))
        return self.share(self.settings[i]["dampening"], step), used

    def _decay(self, i: int, step: int) -> float:
        decay = self.settings[i]["weight_decay"]
        return 0.0 if decay.elementwise is not None else decay.at(step)

    def _coefficients_of(self, i: int, step: int) -> Coefficients:
        settings = self.settings[i]
        rates = settings["lr"].elementwise
        return Coefficients.of(
            self.bucket.format,
            lr=settings["lr"].at(step) if rates is None else self.view_of_flat(rates, i),
            weight_decay=self._decay(i, step),
            dampening=1.0 - self.share(settings["dampening"], step),
        )

    def totals(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        """The members' gradients as the kernels get them, from those of all weights of the problem."""
        return [self._with_decay(i, gradients[m]) for i, m in enumerate(self.members)]

    def _with_decay(self, i: int, gradient: Tensor) -> Tensor:
        """A decay per weight joins the gradient here; a single number is the kernel's business."""
        decay = self.settings[i]["weight_decay"].elementwise
        if decay is None:
            return gradient
        weight = self.bucket.weights[i].detach()
        return torch.addcmul(gradient, self.view_of_flat(decay, i).to(weight.dtype), weight)

    def _spans(self, name: str) -> list[Span]:
        """Those with a value per weight stand alone, without padding."""
        spans: list[Span] = []
        for i, settings in enumerate(self.settings):
            setting = settings[name]
            if setting.elementwise is not None:
                spans.append(Span(slice(self.offsets[i], self.offsets[i] + self.weights[i].numel()), setting, i))
            elif spans and spans[-1].setting is setting:
                spans[-1] = Span(slice(spans[-1].part.start, self.offsets[i + 1]), setting, spans[-1].first)
            else:
                spans.append(Span(slice(self.offsets[i], self.offsets[i + 1]), setting, i))
        return spans

    def _is_checked(self, step: int) -> bool:
        return (step - self.first) % self.verify_every == 0


def fixed_groups(problem: Problem, state_bits: int, verify_every: int, place: str | Path) -> list[FixedGroup]:
    """The fewest buckets: one per momentum setting and device, and float64 weights apart, whose adjoint is float64, too."""
    members: dict[tuple[int, torch.device, bool], list[int]] = {}
    for i, (settings, weight) in enumerate(zip(problem.settings, problem.weights, strict=True)):
        members.setdefault((id(settings["momentum"]), weight.device, weight.dtype == torch.float64), []).append(i)
    return [FixedGroup(problem, m, state_bits, verify_every, place) for m in members.values()]
