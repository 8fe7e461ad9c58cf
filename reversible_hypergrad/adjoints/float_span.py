"""Neighbouring parameters with the same settings: what a rule's functions are applied to at a time."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from reversible_hypergrad.problem.problem import Cotangents
from reversible_hypergrad.problem.setting import Setting, Settings
from reversible_hypergrad.reversible.flat import FlatGroup
from reversible_hypergrad.rules.base import Rule
from reversible_hypergrad.rules.linear import LinearStep

__all__ = ["FloatSpan", "spans_of"]


class FloatSpan:
    """Some members of a group: their part of every vector, and their settings as the rule's functions read them.

    An elementwise rule sees flat parts, padding included unless there is a value per weight. Any other sees one tensor, in the
    weight's shape.

    Args:
        first: the first member.
        count: how many there are.
        steps: of the run.

    Attributes:
        linear: the step in numbers, if the rule is linear and no setting has a value per weight.
        learned: whether a setting wants a gradient.
    """

    def __init__(self, rule: Rule, group: FlatGroup, first: int, count: int, steps: range) -> None:
        self.rule, self.group, self.first, self.count = rule, group, first, count
        self.settings = group.settings[first]
        self.learned = any(setting.source is not None for setting in self.settings.values())
        whole = not any(setting.elementwise is not None for setting in self.settings.values())
        begin = group.offsets[first]
        self._part = slice(begin, group.offsets[first + count] if whole else begin + group.weights[first].numel())
        self.linear = LinearStep(rule, self.settings, steps) if whole and rule.linear and steps else None
        self._constant = all(len(setting.numbers) < 2 for setting in self.settings.values())
        self._later: SimpleNamespace | None = None  # of all steps but the first, if constant
        self._tables: dict[str, Tensor] = {}  # learned settings, on the device

    def of(self, vector: Tensor) -> Tensor:
        """A view of this part."""
        return vector[self._part] if self.rule.elementwise else self.group.view(vector, self.first)

    def scatter(self, part: Tensor, into: list[Tensor]) -> None:
        """Views of a tensor like :meth:`of` to the members' places in ``into``, a list with one entry per weight of the
        problem."""
        group, begin = self.group, self.group.offsets[self.first]
        for i in range(self.first, self.first + self.count):
            weight = group.weights[i]
            offset = part.storage_offset() + group.offsets[i] - begin
            into[group.members[i]] = part.as_strided(weight.shape, weight.stride(), offset)

    def rows_of(self, matrix: Tensor) -> Tensor:
        """A view of this part of every row of a matrix of vectors."""
        if self.rule.elementwise:
            return matrix[:, self._part]
        return self.group.view_rows(matrix, self.first)

    def rows_per_weight(self, rows: Tensor) -> Tensor:
        """Values of the first member, each row in its weight's elements, as the rule's functions take a setting per weight."""
        weight = self.group.weights[self.first]
        shaped = rows.reshape(-1, *weight.shape)
        if not self.rule.elementwise:
            return shaped
        flat = rows.new_empty(len(rows), weight.numel())
        flat.as_strided(shaped.shape, (weight.numel(), *weight.stride())).copy_(shaped)
        return flat

    def h(self, step: int) -> SimpleNamespace:
        """The settings as numbers, or tensors where there is a value per weight."""
        if step > 0 and self._later is not None:
            return self._later
        h = self.rule.at(self.settings, step, lambda _, setting: self._value(setting, step))
        if step > 0 and self._constant:
            self._later = h
        return h

    def attached(self, step: int) -> SimpleNamespace:
        """The settings with a leaf of autograd for each that wants a gradient and has one in this step."""

        def read(name: str, setting: Setting) -> Any:
            if setting.source is None:
                return self._value(setting, step)
            if name not in self._tables:
                self._tables[name] = self._table(setting)
            table = self._tables[name]
            if setting.elementwise is None:
                table = table[step - setting.first] if len(setting.numbers) > 1 else table[0]
            return table.detach().requires_grad_()

        return self.rule.at(self.settings, step, read)

    def add_to(self, totals: Cotangents, step: int, by_settings: dict[str, Tensor]) -> None:
        """One step's derivatives by the leaves of :meth:`attached`."""
        for name, by in by_settings.items():
            setting = self.settings[name]
            if setting.elementwise is None:
                setting.accumulate(totals.sources, step, by)
            else:
                assert setting.source is not None
                target = totals.sources[setting.source]
                by = self.group.view_of_flat(by, self.first) if self.rule.elementwise else by
                target += by.reshape(target.shape).to(target.device)

    def _value(self, setting: Setting, step: int) -> float | Tensor:
        return setting.at(step) if setting.elementwise is None else self._shaped(setting.elementwise)

    def _table(self, setting: Setting) -> Tensor:
        """Sums of derivatives are as precise as the vectors, or as the setting."""
        if setting.elementwise is None:
            return torch.tensor(list(setting.numbers), dtype=torch.float64, device=self.group.device)
        dtype = torch.promote_types(setting.elementwise.dtype, self.group.dtype)
        return self._shaped(setting.elementwise.to(dtype))

    def _shaped(self, elements: Tensor) -> Tensor:
        return elements if self.rule.elementwise else self.group.view_of_flat(elements, self.first)


def spans_of(rule: Rule, group: FlatGroup, steps: range) -> list[FloatSpan]:
    """The fewest: neighbours whose settings are all the same objects, and a rule that takes several tensors as one."""

    def alone(settings: Settings) -> bool:
        return not rule.elementwise or any(setting.elementwise is not None for setting in settings.values())

    starts = [
        i
        for i, settings in enumerate(group.settings)
        if i == 0 or alone(settings) or alone(group.settings[i - 1]) or settings != group.settings[i - 1]
    ]
    ends = [*starts[1:], len(group.settings)]
    return [FloatSpan(rule, group, start, end - start, steps) for start, end in zip(starts, ends, strict=True)]
