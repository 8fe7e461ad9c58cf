"""The integers of tensors' weights and states, and what they stand for."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from reversible_hypergrad import _core
from reversible_hypergrad._ops import refuse_device
from reversible_hypergrad.core.fixed_point import FORMATS, SQUARES
from reversible_hypergrad.reversible.exponents import exponents_of_weights
from reversible_hypergrad.reversible.initial import InitialWeights
from reversible_hypergrad.reversible.outcome import is_late
from reversible_hypergrad.reversible.scales import Scales, ScaleState
from reversible_hypergrad.rules.base import Rule

__all__ = ["Integers", "flat"]


def flat(tensor: Tensor) -> Tensor:
    """The elements of a dense tensor in memory order, as a view."""
    return tensor.detach().as_strided((tensor.numel(),), (1,))


class Integers:
    """The integers of ``weights``, all on one device, and of their states under ``rule``.

    Every tensor has a slot for each state of the rule, and last one for its weights: integers Z whose values are ``Z * sigma``,
    sigma on the host, per tensor and slot.
    """

    def allocate(self, weights: Sequence[Tensor], names: Sequence[str], rule: Rule, state_bits: int) -> None:
        """An all-zero state for ``weights``, to be filled."""
        self.weights = list(weights)
        self.names = list(names)
        self.rule = rule
        self.format = FORMATS[state_bits]  # of the weights
        # Of each slot.
        self.formats = [SQUARES if power == 2 else self.format for power in rule.states.values()] + [self.format]
        self.wide = [power == 2 for power in rule.states.values()]
        self.sizes = sizes = [w.numel() for w in self.weights]
        self.offsets = [0, *itertools.accumulate(_core.state_size(n) for n in sizes)]
        self.size = sum(sizes)
        device = self.weights[0].device
        refuse_device(self.names[0], device)
        self.x = torch.zeros(self.offsets[-1], dtype=self.format.torch_dtype, device=device)
        self.z = [torch.zeros_like(self.x, dtype=own.torch_dtype) for own in self.formats[:-1]]
        self.skipped = torch.zeros(sum(_core.block_count(n) for n in sizes), dtype=torch.uint8, device=device)
        self.initial: list[InitialWeights | None] = [None] * len(sizes)
        plane_bytes = [_core.plane_bytes(n) for n in sizes]  # of one bit of each weight
        most_shift = [own.state_bits - 3 for own in self.formats]
        self.scales = Scales(np.zeros((len(sizes), self.slots), np.int64), most_shift, plane_bytes)
        self.plane_bytes = torch.tensor(plane_bytes, dtype=torch.int64)
        self._largest_shown = np.array([torch.finfo(weight.dtype).max for weight in self.weights])

    @property
    def slots(self) -> int:
        return len(self.z) + 1

    def quantize_weights(self) -> None:
        """The integers become those of the visible weights; what rounding lost is kept in ``initial``.

        Raises:
            OverflowError: if a weight is not finite. Nothing is changed then.
        """
        largest = [float(flat(weight).abs().max()) if weight.numel() else 0.0 for weight in self.weights]
        for name, most in zip(self.names, largest, strict=True):
            if not math.isfinite(most):
                raise OverflowError(f"{name}: its weights must be finite, got {most}. Initialize it again, or leave it out")
        exponents = np.array(exponents_of_weights(largest, self.format))
        now = self.scales.state
        a, exponent = now.a.copy(), now.exponent.copy()
        a[:, -1], exponent[:, -1] = 1.0, exponents
        self.scales.state = ScaleState(a, now.count, exponent)
        for i, weight in enumerate(self.weights):
            part = self.part(i, self.x)
            part.copy_((flat(weight).double() * 2.0 ** -float(exponents[i])).round_())
            self.initial[i] = InitialWeights.differences(flat(weight), self.visible(i))

    def part(self, index: int, integers: Tensor) -> Tensor:
        """What belongs to the tensor ``index`` of ``x`` or a member of ``z``, or of a vector laid out like them, flat."""
        return integers[self.offsets[index] : self.offsets[index] + self.sizes[index]]

    def sigma(self, index: int, slot: int) -> float:
        """Of a tensor's slot now; the weight is the last one."""
        now = self.scales.state
        return math.ldexp(now.a[index, slot], int(now.exponent[index, slot]))

    def value(self, index: int, slot: int, dtype: torch.dtype, sigma: float | None = None, part: slice = slice(None)) -> Tensor:
        """What a tensor's slot, or a part of it, stands for now, or with another sigma; flat."""
        sigma = self.sigma(index, slot) if sigma is None else sigma
        if slot in (-1, self.slots - 1):
            return self.part(index, self.x)[part].to(dtype) * sigma
        integers = self.part(index, self.z[slot])[part]
        return (integers.double() * sigma).to(dtype) if self.wide[slot] else integers.to(dtype) * sigma

    def visible(self, index: int) -> Tensor:
        """The weights of the tensor ``index`` as the kernels write them, flat."""
        dtype, part = self.weights[index].dtype, self.part(index, self.x)
        real = torch.float64 if self.format.state_bits == 64 or dtype == torch.float64 else torch.float32
        value = part.to(real) * self.sigma(index, -1)
        return value.float().to(dtype) if dtype.itemsize == 2 else value.to(dtype)

    def resized(self) -> list[str]:
        """Names of the tensors that no longer have as many elements as their state."""
        return [n for n, w, size in zip(self.names, self.weights, self.sizes, strict=True) if w.numel() != size]

    def edited(self, suspects: Sequence[int], at_start: Sequence[int]) -> list[str]:
        """Names of those of the tensors ``suspects`` whose visible weights are not the ones of the state; reads them. Of those
        ``at_start`` the first weights are visible."""
        names = []
        for i in suspects:
            weight = self.weights[i]
            expected = self.visible(i)
            initial = self.initial[i]
            if i in at_start and initial is not None:
                initial.restore(expected)
            if InitialWeights.differences(flat(weight), expected) is not None:
                names.append(self.names[i])
        return names

    def show_weights(self) -> None:
        """The visible weights become those of the state."""
        for i, weight in enumerate(self.weights):
            flat(weight).copy_(self.visible(i))

    def restore_initial(self, tensors: Sequence[int]) -> None:
        """The visible weights of the start, to the last bit, of ``tensors`` whose integers are back there."""
        for i in tensors:
            initial = self.initial[i]
            if initial is not None:
                initial.restore(flat(self.weights[i]))

    @property
    def is_late(self) -> bool:
        """Whether moves are only queued when their calls return."""
        return is_late(self.x.device)

    @property
    def nbytes(self) -> int:
        """Of the integers."""
        return self.x.nbytes + sum(z.nbytes for z in self.z)
