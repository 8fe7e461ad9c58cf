"""Derivatives by settings that are numbers, from the inner products that kernels leave step by step."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from reversible_hypergrad.problem.problem import Cotangents
from reversible_hypergrad.problem.setting import Setting, tree_sum
from reversible_hypergrad.reversible.flat import FlatGroup
from reversible_hypergrad.reversible.lateness import LOOK_EVERY
from reversible_hypergrad.rules.base import Rule

__all__ = ["StepSums"]


class Column(NamedTuple):
    kind: int  # which of the wanted inner products
    name: str  # of the setting
    members: Tensor | None  # those with this setting; None: all
    setting: Setting
    sign: float


class StepSums:
    """A table on the group's device with a row per step, in it one number per wanted inner product and member.

    So a step neither adds single numbers nor waits for them: a few small operations add LOOK_EVERY rows to the totals at a time.
    Steps come in descending order, without gaps.
    """

    def __init__(self, group: FlatGroup, rule: Rule, steps: int) -> None:
        self._group, self._rule = group, rule
        self._columns: list[Column] = []
        self.wanted_before = [self._add_column(*sum_, group) for sum_ in rule.sums_before]
        self.wanted_after = [self._add_column(*sum_, group) for sum_ in rule.sums_after]
        self._before = sum(self.wanted_before)
        self._kinds = self._before + sum(self.wanted_after)
        shape = max(min(LOOK_EVERY, steps), 1), self._kinds, len(group.settings)
        self._table = torch.zeros(shape, dtype=torch.float64, device=group.device)
        self._rows: list[tuple[Tensor, Tensor]] = [(row[: self._before], row[self._before :]) for row in self._table]
        self._filled = 0

    def _add_column(self, name: str, sign: float, group: FlatGroup) -> bool:
        """Whether the sum is wanted: somebody learns the setting."""
        members: dict[Setting, list[int]] = {}
        for i, settings in enumerate(group.settings):
            setting = settings[name]
            if setting.source is not None and setting.elementwise is None:
                members.setdefault(setting, []).append(i)
        kind = len({column.kind for column in self._columns})
        for setting, those in members.items():
            chosen = None if len(those) == len(group.settings) else torch.tensor(those, device=group.device)
            self._columns.append(Column(kind, name, chosen, setting, sign))
        return bool(members)

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
        if not self._columns:
            return
        for i, settings in enumerate(self._group.settings):
            for column in self._columns:
                if self._rule.settings[column.name].set_aside(settings, step):
                    self._table[self._filled, column.kind, i] = 0.0
        self._filled += 1
        if self._filled == len(self._table) or step == 0:
            self._add_to(totals, step)

    def _add_to(self, totals: Cotangents, first: int) -> None:
        rows = self._table[: self._filled].flip(0)
        for column in self._columns:
            of_kind = rows[:, column.kind]
            of_members = of_kind if column.members is None else of_kind.index_select(1, column.members)
            column.setting.accumulate_steps(totals.sources, first, column.sign * tree_sum(of_members))
        self._filled = 0


def apart_from(vectors: Sequence[Tensor], products: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The products, copied where they lie inside one of ``vectors``: a loss may hand a direction back as it is, and the vector
    that it is a part of is about to change."""
    spans = [(vector.data_ptr(), vector.data_ptr() + vector.nbytes) for vector in vectors]
    inside = [p is not None and any(begin <= p.data_ptr() < end for begin, end in spans) for p in products]
    return [p.clone() if p is not None and copy else p for p, copy in zip(products, inside, strict=True)]
