"""What the last s steps of a run contribute to a hypergradient, for many s at once."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from reversible_hypergrad import pytree
from reversible_hypergrad.adjoints import Adjoint, DrMAD, Snapshots
from reversible_hypergrad.bilevel.estimators.base import gradients_of, pulled
from reversible_hypergrad.bilevel.estimators.step_loss import StepLoss
from reversible_hypergrad.bilevel.task import Task
from reversible_hypergrad.problem.start import Start
from reversible_hypergrad.readouts import WeightsAt

__all__ = ["FITS", "Horizons"]

FITS: Mapping[str, Adjoint] = {"drmad": DrMAD(), "exact": Snapshots()}
_MOST = 100

OfHorizon = tuple[int, Mapping[str, Tensor], Any, list[Tensor] | None]  # see Horizons.__iter__


class Horizons:
    """A run and one walk back through it, which tells apart what each step does: the loss of each step, or of as many
    neighbouring ones as make 100 parts, is given hyperparameters of its own.

    Args:
        one: a problem, at the present hyperparameters.
        leaves: what those are computed from.
        adjoint: the strategy of the walk back.

    Attributes:
        attached: the hyperparameters in the loss that require grad.
        alphas: the gradient of the outer loss by the trained weights.
        before_last: where the last step begins, with the states after it.
    """

    def __init__(self, one: Task, leaves: Sequence[Tensor], adjoint: Adjoint) -> None:
        self._one, self._leaves, self._count = one, leaves, one.count
        self.attached = [t for t in pytree.leaves(one.hyperparameters) if isinstance(t, Tensor) and t.requires_grad]
        if not self.attached:
            return
        self._begin = one.untrained().state
        parts = min(self._count, _MOST)
        # Of each step, counted from the end; the horizons are where they end.
        self._part_of = [s * parts // self._count for s in range(self._count)]
        copies = [pytree.map_tensors(_own, one.hyperparameters) for _ in range(parts)]
        trained = self._run(copies, adjoint.exact).train(adjoint)
        end = trained.state
        value = one.value(trained)
        wanted = [[t for t in pytree.leaves(nest) if isinstance(t, Tensor) and t.requires_grad] for nest in copies]
        flat = [t for own in wanted for t in own]
        by = gradients_of(value, [*trained.values(), *flat], keep=True)
        self.alphas, rest = by[: len(trained)], iter(by[len(trained) :])
        self._by_part = [[next(rest) for _ in own] for own in wanted]
        self._path: list[dict[str, Tensor]] | None = trained.readouts.get("path")
        self._end = {name: weight.detach() for name, weight in trained.items()}
        states = {name: {key: z.detach() for key, z in own.items()} for name, own in end.states.items()}
        self.before_last = Start(self._end, states, trained.buffers, end.step - 1, memory=end.memory)

    def _run(self, copies: list[Any], with_path: bool) -> Task:
        one, first, count = self._one, self._begin.step, self._count
        batches = one.batches if callable(one.batches) else one.batches.__getitem__

        def loss(model: nn.Module, batch: Any, nests: list[Any]) -> Tensor:
            step, data = batch
            return one.loss(model, data, nests[self._part_of[first + count - 1 - step]])

        readouts = {"path": WeightsAt(range(first, first + count))} if with_path else {}
        options = {name: one.options[name] for name in ("clip", "accumulate") if name in one.options}
        return replace(
            one,
            loss=loss,
            batches=lambda step: (step, batches(step)),
            steps=count,
            hyperparameters=copies,
            options={**options, "check_derivatives": False, "readouts": readouts},
        )

    def __iter__(self) -> Iterator[OfHorizon]:
        """s from 1 on; the weights before the step that is the s-th from the end, and its batch; and the part of the
        hypergradient that comes through the last s steps, where s is a horizon, else None."""
        totals = [torch.zeros_like(t) for t in self.attached]
        for s in range(1, self._count + 1):
            step = self._begin.step + self._count - s
            part = self._part_of[s - 1]
            ends = s == self._count or self._part_of[s] != part
            if ends:
                totals = [total + by for total, by in zip(totals, self._by_part[part], strict=True)]
            window = self._one.window(replace(self._begin, step=step), 1)
            data = StepLoss(window, replace(self._begin, step=step)).data
            yield s, self._weights(step), data, pulled(self.attached, totals, self._leaves) if ends else None

    def _weights(self, step: int) -> Mapping[str, Tensor]:
        taken = step - self._begin.step
        if self._path is not None:
            return self._path[taken]
        share = taken / self._count
        return {name: torch.lerp(weight, self._end[name], share) for name, weight in self._begin.weights.items()}


def _own(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_() if tensor.requires_grad else tensor
