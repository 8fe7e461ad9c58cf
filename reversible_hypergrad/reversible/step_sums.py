"""Derivatives by settings that are numbers, from the inner products that kernels leave step by step."""

from typing import NamedTuple

import torch
from torch import Tensor

from reversible_hypergrad.problem.problem import Cotangents
from reversible_hypergrad.problem.setting import Setting, tree_sum
from reversible_hypergrad.reversible.fixed import FixedGroup
from reversible_hypergrad.reversible.pull_back import Wanted

__all__ = ["StepSums"]

_ROWS = 64  # steps whose inner products wait until they are added to the totals, a few small operations for all
_SIGNS = {"lr": -1.0, "weight_decay": 1.0, "momentum": 1.0, "dampening": -1.0}  # in the kernels' order


class Column(NamedTuple):
    kind: int  # which of the wanted inner products
    members: Tensor | None  # those with this setting; None: all
    setting: Setting
    sign: float


class StepSums:
    """A table on the group's device with a row per step, in it one number per wanted inner product and member.

    So a step neither adds single numbers nor waits for them. Steps come in descending order, without gaps.
    """

    def __init__(self, group: FixedGroup, steps: int) -> None:
        self._group = group
        self._columns: list[Column] = []
        kinds: list[str] = []
        for name, sign in _SIGNS.items():
            members: dict[Setting, list[int]] = {}
            for i, settings in enumerate(group.settings):
                setting: Setting = settings[name]
                if setting.source is not None and setting.elementwise is None:
                    members.setdefault(setting, []).append(i)
            for setting, those in members.items():
                chosen = None if len(those) == len(group.settings) else torch.tensor(those, device=group.device)
                self._columns.append(Column(len(kinds), chosen, setting, sign))
            if members:
                kinds.append(name)
        self.wanted = Wanted(**dict.fromkeys(kinds, True))
        self._dampening = kinds.index("dampening") if self.wanted.dampening else None
        shape = min(_ROWS, steps), len(kinds), len(group.settings)
        self._table = torch.zeros(shape, dtype=torch.float64, device=group.device)
        self._filled = 0

    @property
    def before_gradient(self) -> Tensor:
        """Where the first phase of undoing the present step leaves its sums."""
        return self._table[self._filled, : int(self.wanted.lr)]

    @property
    def after_gradient(self) -> Tensor:
        """Where the second one does."""
        return self._table[self._filled, int(self.wanted.lr) :]

    def close_row(self, step: int, totals: Cotangents) -> None:
        """The present step is undone: the next one gets a row of its own."""
        if not self._columns:
            return
        if self._dampening is not None and not self._group.dampens(step):
            self._table[self._filled, self._dampening].zero_()
        self._filled += 1
        if self._filled == len(self._table) or step == 0:
            self._add_to(totals, step)

    def _add_to(self, totals: Cotangents, first: int) -> None:
        rows = self._table[: self._filled].flip(0)
        for kind, members, setting, sign in self._columns:
            of_members = rows[:, kind] if members is None else rows[:, kind].index_select(1, members)
            setting.accumulate_steps(totals.sources, first, sign * tree_sum(of_members))
        self._filled = 0
