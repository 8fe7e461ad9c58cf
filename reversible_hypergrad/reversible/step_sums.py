"""Derivatives by settings that are numbers, from the inner products that kernels leave step by step."""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from reversible_hypergrad.problem.problem import Cotangents
from reversible_hypergrad.problem.setting import Setting, Settings, tree_sum
from reversible_hypergrad.reversible.flat import FlatGroup
from reversible_hypergrad.reversible.lateness import LOOK_EVERY
from reversible_hypergrad.rules.base import Rule

__all__ = ["StepSums", "apart_from"]

Sums = Sequence[tuple[int | str, float]]  # as a rule's ``sums_before``


class StepSums:
    """A table on the group's device with a row per step, in it one number per wanted inner product and member.

    The inner products are derivatives by the numbers that the program takes; those by settings follow by the chain rule, on the
    host, LOOK_EVERY rows at a time. So a step neither adds single numbers nor waits for them. Steps come in descending order,
    without gaps.

    Args:
        real: dtype of the kernels' arithmetic.
        left_out: members whose derivatives come from the rule's own functions.
    """

    def __init__(
        self, group: FlatGroup, rule: Rule, steps: range, real: torch.dtype = torch.float64, left_out: Sequence[int] = ()
    ) -> None:
        self._rule, self._real, self._steps = rule, real, steps
        kinds: dict[tuple[Setting, ...], list[int]] = {}
        for i, settings in enumerate(group.settings):
            if i not in left_out and any(_is_learned(setting) for setting in settings.values()):
                kinds.setdefault(tuple(settings.values()), []).append(i)
        self._members = list(kinds.values())  # by what they have in common
        self._settings = [group.settings[members[0]] for members in self._members]
        sums = [*rule.sums_before, *rule.sums_after]
        wanted = self._wanted(sums)
        self.wanted_before, self.wanted_after = wanted[: len(rule.sums_before)], wanted[len(rule.sums_before) :]
        self._sums = [own for own, is_wanted in zip(sums, wanted, strict=True) if is_wanted]
        before = sum(self.wanted_before)
        shape = max(min(LOOK_EVERY, len(steps)), 1), before + sum(self.wanted_after), len(group.settings)
        self._table = torch.zeros(shape, dtype=torch.float64, device=group.device)
        self._rows: list[tuple[Tensor, Tensor]] = [(row[:before], row[before:]) for row in self._table]
        self._filled = 0

    def _wanted(self, sums: Sums) -> list[bool]:
        """Which inner products are by something that a learned setting enters."""
        found = [False] * len(sums)
        later = max(self._steps.start, 1)  # in the very first step of all some settings are set aside
        for settings in self._settings if self._steps else ():
            _, outputs = self._outputs([settings], range(later, later + 1), sums)
            found = [was or bool(output.requires_grad) for was, output in zip(found, outputs, strict=True)]
        return found

    def _used(self, numbers: Tensor) -> Tensor:
        """By how much kernels' rounded numbers are larger. Inner products are by what a step really took; a derivative may be the
        small difference of two, as that by a decay is."""
        exact = numbers.detach()
        return torch.where(exact == 0, 1.0, exact.to(self._real).double() / exact)

    def _outputs(self, settings: Sequence[Settings], steps: range, sums: Sums) -> tuple[list[Mapping[str, Tensor]], list[Tensor]]:
        """For members with ``settings``, each in all ``steps``: the learned settings' numbers, each of shape (steps,), and what
        the inner products are by, each of shape (len(settings) * steps,)."""
        learned: list[Mapping[str, Tensor]] = []
        columns: dict[str, list[Tensor]] = {name: [] for name in self._rule.settings}
        for own in settings:
            h = self._rule.columns(own, steps)
            leaves = {name: getattr(h, name).clone().requires_grad_() for name, s in own.items() if _is_learned(s)}
            learned.append(leaves)
            for name in columns:
                aside = torch.from_numpy(self._rule.settings[name].set_aside_at(own, steps))
                column = leaves.get(name, getattr(h, name))
                with torch.enable_grad():
                    columns[name].append(torch.where(aside, column.detach(), column))
        t = torch.arange(steps.start, steps.stop, dtype=torch.float64).repeat(len(settings))

        def of_row(h: dict[str, Tensor], t: Tensor) -> tuple[Tensor, ...]:
            space = SimpleNamespace(**h)
            numbers, decay = self._rule.numbers(space, t), self._rule.decay(space, t)
            chosen: list[Any] = [numbers[by] if isinstance(by, int) else decay.get(by, 1.0) for by, _ in sums]
            return tuple(one if isinstance(one, Tensor) else t.new_tensor(one) for one in chosen)

        with torch.enable_grad():
            joined = {name: torch.cat(own) for name, own in columns.items()}
            return learned, list(torch.func.vmap(of_row)(joined, t))

    @property
    def before_gradient(self) -> Tensor:
        """Where the first phase of undoing the present step leaves its sums."""
        return self._rows[self._filled][0]

    @property
    def after_gradient(self) -> Tensor:
        """Where the second one does."""
        return self._rows[self._filled][1]

    def close_row(self, step: int, totals: Cotangents) -> None:
        """The present step is undone: the next one gets a row of its own."""
        if not self._sums:
            return
        self._filled += 1
        if self._filled == len(self._table) or step == self._steps.start:
            self._add_to(totals, step)

    def _add_to(self, totals: Cotangents, first: int) -> None:
        rows = self._filled
        table = self._table[:rows].flip(0).cpu()
        learned, outputs = self._outputs(self._settings, range(first, first + rows), self._sums)
        cotangents = [
            torch.cat([sign * tree_sum(table[:, kind, members]) for members in self._members])
            for kind, (_, sign) in enumerate(self._sums)
        ]
        leaves = [(own[name], leaf) for own, names in zip(self._settings, learned, strict=True) for name, leaf in names.items()]
        attached = [
            (output, by * self._used(output)) for output, by in zip(outputs, cotangents, strict=True) if output.requires_grad
        ]
        found = torch.autograd.grad(
            [output for output, _ in attached], [leaf for _, leaf in leaves], [by for _, by in attached], allow_unused=True
        )
        by_setting: dict[Setting, Tensor] = {}
        for (setting, _), by in zip(leaves, found, strict=True):
            if by is not None:
                by_setting[setting] = by_setting[setting] + by if setting in by_setting else by
        for setting, by in by_setting.items():
            setting.accumulate_steps(totals.sources, first, by)
        self._filled = 0


def _is_learned(setting: Setting) -> bool:
    return setting.source is not None and setting.elementwise is None


def apart_from(vectors: Sequence[Tensor], products: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The products, copied where they lie inside one of ``vectors``: a loss may hand a direction back as it is, and the vector
    that it is a part of is about to change."""
    spans = [(vector.data_ptr(), vector.data_ptr() + vector.nbytes) for vector in vectors]
    inside = [p is not None and any(begin <= p.data_ptr() < end for begin, end in spans) for p in products]
    return [p.clone() if p is not None and copy else p for p, copy in zip(products, inside, strict=True)]
