"""Forward mode by what a task is computed from, whose tangents go on from run to run."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from reversible_hypergrad.adjoints.base import Adjoint, Run
from reversible_hypergrad.adjoints.forward_mode import ForwardModeRun
from reversible_hypergrad.problem.problem import Cotangents, Downstream, Problem

__all__ = ["CarriedForwardMode", "Tangents"]


class Tangents(NamedTuple):
    """How weights and states have come to change with every element of the leaves: matrices per group, a row per element."""

    members: list[list[int]]  # the weights in each group
    w: list[Tensor]
    z: list[dict[str, Tensor]]


class CarriedForwardMode(Adjoint):
    """As :class:`ForwardMode`, by the leaves that what a run is given was computed from, which costs their number of tangents,
    and from the tangents that an earlier run ended with. Nothing goes back through autograd: see :meth:`attached`.

    Args:
        leaves: what the tangents are by.
        chunk: how many go through a product at a time.
        tangents: of the run that this one goes on from, which are written over; None: there is none.

    Attributes:
        run: the last one.
    """

    graphable = False
    chains = False

    def __init__(self, leaves: Sequence[Tensor], chunk: int, tangents: Tangents | None) -> None:
        self.leaves, self.chunk, self._tangents = leaves, chunk, tangents
        self.run: CarriedRun | None = None

    def start(self, problem: Problem) -> Run:
        self.run = CarriedRun(problem, self.chunk, self.leaves, self._tangents)
        return self.run

    def attached(self, weights: Mapping[str, Tensor], states: Mapping[str, Mapping[str, Tensor]]) -> tuple[Any, Any]:
        """Trained weights and states as functions of the leaves, as long as no run goes on from here."""
        assert self.run is not None
        rows, rows_of_states = self.run.rows()
        new = {name: _Attached.apply(w.detach(), rows[name], *self.leaves) for name, w in weights.items()}  # type: ignore[no-untyped-call]
        new_states = {
            name: {key: _Attached.apply(z.detach(), rows_of_states[name][key], *self.leaves) for key, z in own.items()}  # type: ignore[no-untyped-call]
            for name, own in states.items()
        }
        return new, new_states


class CarriedRun(ForwardModeRun):
    def __init__(self, problem: Problem, chunk: int, leaves: Sequence[Tensor], tangents: Tangents | None) -> None:
        super().__init__(problem, chunk)
        self.count = sum(x.numel() for x in leaves)
        self._tangents = tangents
        rows = iter(jacobian_rows(problem.inputs, leaves))
        self._of_weights = [next(rows) for _ in problem.weights]
        self._of_first = [next(rows) for _ in problem.wanted_states]
        self._sources = [next(rows) for _ in problem.sources]
        self._hyperparameters = [next(rows) for _ in problem.hyperparameters]

    @property
    def tangents(self) -> Tangents:
        """After training."""
        return Tangents([group.members for group in self.groups], self._w, self._z)

    def rows(self) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
        """Those of each weight, and of each of its states."""
        weights, states = {}, {}
        for group, w, z in zip(self.groups, self._w, self._z, strict=True):
            for i, m in enumerate(group.members):
                name = self.problem.names[m]
                weights[name] = group.view_rows(w, i)
                states[name] = {key: group.view_rows(own, i) for key, own in z.items()}
        return weights, states

    def forward(self, record: bool) -> None:
        # Tangents go on where this part of training depends on no hyperparameter, too.
        super().forward(record=True)

    def begin(self) -> None:
        if self._tangents is None:
            self._w = [g.vector().new_zeros(self.count, len(g.w)) for g in self.groups]
            self._z = [{key: torch.zeros_like(w) for key in g.rule.states} for g, w in zip(self.groups, self._w, strict=True)]
        else:
            members, self._w, self._z = self._tangents
            if members != [group.members for group in self.groups]:
                raise ValueError(
                    "optimizer: expected the same rules for the same weights in all steps of a task, got others than before"
                )
        for group, w, z in zip(self.groups, self._w, self._z, strict=True):
            for i, m in enumerate(group.members):
                _add(group.view_rows(w, i), self._of_weights[m])
                for (m_of_state, key), rows in zip(self.problem.wanted_states, self._of_first, strict=True):
                    if m_of_state == m:
                        _add(group.view_rows(z[key], i), rows)
        self._of_weights, self._of_first, self._tangents = [], [], None

    def rows_of_hyperparameter(self, k: int, rows: slice) -> Tensor:
        return _rows(self._hyperparameters[k], self.problem.hyperparameters[k], rows)

    def rows_of_source(self, i: int, rows: slice) -> Tensor:
        return _rows(self._sources[i], self.problem.sources[i], rows)

    def rows_of_number(self, i: int, place: int, rows: slice) -> Tensor:
        return self.rows_of_source(i, rows).reshape(rows.stop - rows.start, -1)[:, place].to(self.groups[0].device)

    def pull_back(self, downstream: Sequence[Downstream]) -> list[Cotangents]:
        raise RuntimeError("adjoint: a run with tangents by its leaves cannot be differentiated by autograd. Use attached()")


class _Attached(torch.autograd.Function):
    """A tensor and how it changes with every element of the leaves."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, rows: Tensor, *leaves: Tensor) -> Tensor:
        ctx.rows, ctx.leaves = rows, leaves
        return values.clone()

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        found = ctx.rows.reshape(len(ctx.rows), -1) @ cotangent.to(ctx.rows).flatten()
        parts = found.split([x.numel() for x in ctx.leaves])
        return None, None, *(part.reshape(x.shape).to(x) for part, x in zip(parts, ctx.leaves, strict=True))


def jacobian_rows(tensors: Sequence[Tensor], leaves: Sequence[Tensor]) -> list[Tensor | None]:
    """How each tensor changes along each element of the leaves, a row per element; None: not at all.

    By products with the transposed derivative, which are linear in what they are of, and are differentiated by that. A pass
    per element, however large the tensors are.

    Raises:
        RuntimeError: where they cannot be differentiated.
    """
    attached = [t for t in tensors if t.requires_grad]
    if not attached:
        return [None] * len(tensors)
    with torch.enable_grad():
        along = [torch.linspace(0.5, 1.5, t.numel()).reshape(t.shape).to(t).requires_grad_() for t in attached]
        pulled = torch.autograd.grad(attached, list(leaves), along, create_graph=True, allow_unused=True)
    count, row = sum(x.numel() for x in leaves), 0
    found: list[Tensor | None] = [None] * len(attached)
    for leaf, by in zip(leaves, pulled, strict=True):
        for j in range(leaf.numel() if by is not None else 0):
            products = _differentiated(by, j, along)
            total, size = 0.0, 0.0
            for i, (product, at) in enumerate(zip(products, along, strict=True)):
                if product is not None:
                    own = found[i]
                    if own is None:
                        own = found[i] = at.new_zeros(count, *at.shape)
                    own[row + j] = product
                    terms = product.double() * at.detach().double()
                    total, size = total + float(terms.sum()), size + float(terms.abs().sum())
            _check(total, size, float(by.detach().reshape(-1)[j]), torch.finfo(by.dtype).eps)
        row += leaf.numel()
    rows = iter(found)
    return [next(rows) if t.requires_grad else None for t in tensors]


def _differentiated(by: Tensor, j: int, along: Sequence[Tensor]) -> Sequence[Tensor | None]:
    if not by.requires_grad:
        return [None] * len(along)
    return torch.autograd.grad(by.reshape(-1)[j], list(along), retain_graph=True, allow_unused=True)


def _check(total: float, size: float, expected: float, eps: float) -> None:
    """A linear function is its derivative times what it is of: a sum of terms that come to ``size`` without their signs."""
    if not abs(total - expected) <= max(1e-4, 4 * eps) * size:
        raise RuntimeError(
            "task: expected what is computed from the hyperparameters (learning rates, initial weights, ...) by functions that "
            f"torch can differentiate twice, got one whose backward has no graph: {total:.3g} where {expected:.3g} was expected. "
            "Write its backward in differentiable operations"
        )


def _add(target: Tensor, rows: Tensor | None) -> None:
    if rows is not None:
        target.add_(rows)


def _rows(found: Tensor | None, tensor: Tensor, rows: slice) -> Tensor:
    if found is None:
        return tensor.new_zeros(rows.stop - rows.start, *tensor.shape)
    return found[rows]
