"""One tangent per hyperparameter, carried along with training."""

from collections.abc import Sequence

import torch
from torch import Tensor

from reversible_hypergrad.adjoints.base import Adjoint, Run
from reversible_hypergrad.adjoints.cost import Cost, RunSize
from reversible_hypergrad.adjoints.floats import FloatGroup, float_groups
from reversible_hypergrad.checks import check_integer
from reversible_hypergrad.problem.gradient import Evaluation
from reversible_hypergrad.problem.problem import Cotangents, Problem
from reversible_hypergrad.problem.setting import Setting

__all__ = ["ForwardMode"]


class ForwardMode(Adjoint):
    """Carries how weights and velocity change with every hyperparameter along with training. Exact; no way back is needed.

    Also known as real-time recurrent learning. Momentum 0 and Nesterov are allowed. Initial weights count as hyperparameters if
    they were given to :func:`train` as ``initial=``; there is no gradient by the model's own.

    Args:
        chunk: how many tangents go through a Hessian-vector product at a time, at least 1.
        limit: refuse more hyperparameters (elements of tensors) than this; at least 1.
        force: take any number of them.

    Cost: two vectors as large as the weights, and a Hessian-vector product per step, for every hyperparameter (an element of a
    tensor that wants a gradient; a learning rate per step counts T times). The loss may not be evaluated again.

    *Recommended* for a few hyperparameters and very long runs, or a loss that cannot be replayed. *Not recommended* for
    more than about ten: :class:`Reversible` takes the same time for any number.

    Raises:
        TypeError: if ``chunk`` or ``limit`` is no integer.
        ValueError: if one of them is below 1; from :func:`train` for too many hyperparameters.

    >>> import reversible_hypergrad as rh
    >>> rh.ForwardMode(chunk=8)
    ForwardMode(chunk=8, limit=100, force=False)

    Source: Forward-HG in Franceschi, Donini, Frasconi, Pontil, *Forward and Reverse Gradient-Based Hyperparameter
    Optimization*, ICML 2017, algorithm 2.
    """

    graphable = False

    def __init__(self, chunk: int = 16, limit: int = 100, force: bool = False) -> None:
        check_integer("chunk", chunk, least=1)
        check_integer("limit", limit, least=1)
        self.chunk, self.limit, self.force = chunk, limit, bool(force)

    def __repr__(self) -> str:
        return f"ForwardMode(chunk={self.chunk}, limit={self.limit}, force={self.force})"

    def start(self, problem: Problem) -> Run:
        run = ForwardModeRun(problem, self.chunk)
        if run.count > self.limit and not self.force:
            raise ValueError(
                f"adjoint: ForwardMode(limit={self.limit}) got {run.count} hyperparameters, each of which takes two vectors as "
                "large as the weights and a Hessian-vector product per step. Use rh.Reversible(), whose cost does not grow with "
                "their number, or ForwardMode(force=True)"
            )
        return run

    def cost(self, size: RunSize) -> Cost | None:
        if size.hyperparameters is None:
            return None
        tangents = (2 * size.hyperparameters + 3 * min(self.chunk, size.hyperparameters)) * size.adjoint_bytes * size.weights
        # A tangent goes through the graph of a gradient with products, which is about a step back.
        time = 1.0 + (size.time(0) - 1.0) * max(1.0, float(size.hyperparameters))
        too_many = size.hyperparameters > self.limit and not self.force
        return Cost(size.float_bytes + tangents, time, f"{size.hyperparameters:,} hyperparameters" if too_many else "")


class ForwardModeRun(Run):
    """The tangents of a group are the rows of two matrices: of its weights, and of its velocity."""

    def __init__(self, problem: Problem, chunk: int) -> None:
        self.problem, self.chunk = problem, chunk
        sizes = [t.numel() for t in (*problem.sources, *problem.hyperparameters, *(problem.weights[i] for i in problem.given))]
        begins = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
        self.count = begins[-1]
        sources, hyperparameters = len(problem.sources), len(problem.hyperparameters)
        self._of_sources = begins[:sources]
        self._of_hyperparameters = begins[sources : sources + hyperparameters]
        self._of_initial = begins[sources + hyperparameters : -1]
        self.groups: list[FloatGroup] = []
        self._w: list[Tensor] = []
        self._v: list[Tensor] = []

    def forward(self, record: bool) -> None:
        problem = self.problem
        self.groups = float_groups(problem)
        if record:
            self._w = [g.vector().new_zeros(self.count, len(g.w)) for g in self.groups]
            self._v = [torch.zeros_like(w) for w in self._w]
            self._begin()
        with problem.progress("training", problem.steps) as bar:
            for step in range(problem.steps):
                # Not values(): their last bits may differ, and a run is the same one whether it is differentiated or not.
                evaluation = problem.gradient(step)
                loss, gradients = evaluation.value, evaluation.gradients
                for first in range(0, self.count if record else 0, self.chunk):
                    self._advance(step, slice(first, min(first + self.chunk, self.count)), evaluation)
                del evaluation
                if not bool(loss.isfinite()):
                    raise FloatingPointError(f"step {step}: the loss is {loss.item()}, expected a finite number. Lower lr")
                for group in self.groups:
                    group.step(step, gradients)
                bar.advance()
        self._v = []
        problem.report.kept_bytes = 2 * sum(w.nbytes for w in self._w)

    def _begin(self) -> None:
        for begin, m in zip(self._of_initial, self.problem.given, strict=True):
            for group, w in zip(self.groups, self._w, strict=True):
                if m in group.members:
                    i = group.members.index(m)
                    weight = group.weights[i]
                    unit = torch.eye(weight.numel(), dtype=w.dtype, device=w.device).reshape(-1, *weight.shape)
                    _rows(group, w[begin : begin + weight.numel()], i).copy_(unit)

    def _advance(self, step: int, rows: slice, evaluation: Evaluation) -> None:
        """Some tangents of every group through one step. All see the state before it."""
        problem = self.problem
        by_weights: list[Tensor] = [torch.empty(0)] * len(problem.weights)
        for group, w in zip(self.groups, self._w, strict=True):
            for i, m in enumerate(group.members):
                by_weights[m] = _rows(group, w[rows], i)
        by_hyperparameters = [
            self._unit_rows(begin, tensor, rows)
            for begin, tensor in zip(self._of_hyperparameters, problem.hyperparameters, strict=True)
        ]
        changes = evaluation.tangents(by_weights, by_hyperparameters)
        for group, w_all, v_all in zip(self.groups, self._w, self._v, strict=True):
            w, v = w_all[rows], v_all[rows]
            total = torch.zeros_like(w)
            for i, m in enumerate(group.members):
                change = changes[m]
                if change is not None:
                    _rows(group, total, i).copy_(change)
            self._step(step, rows, group, w, v, total, evaluation.gradients)

    def _step(
        self, step: int, rows: slice, group: FloatGroup, w: Tensor, v: Tensor, total: Tensor, gradients: Sequence[Tensor]
    ) -> None:
        """The product rule, line by line of a step. ``total`` holds the tangents of the loss's gradients."""
        for part, setting, index in group.decay_spans:
            numbers = setting.elementwise if setting.elementwise is not None else setting.at(step)
            total[:, part] += numbers * w[:, part]
            self._add(total[:, part], rows, step, setting, group, index, lambda part=part: group.weights_vector()[part])
        momentum = group.momentum_at(step)
        v_before = group.velocity
        v.mul_(momentum)
        self._add(v, rows, step, group.momentum, group, 0, v_before)
        for part, setting, index in group.dampening_spans:
            v[:, part].add_(total[:, part], alpha=group.share(setting, step))
            if group.dampens(step):
                self._add(v[:, part], rows, step, setting, group, index, lambda part=part: -group.total_at(step, gradients)[part])
        moved = v
        if group.nesterov:
            moved = total.add_(v, alpha=momentum)
            self._add(moved, rows, step, group.momentum, group, 0, lambda: group.velocity_after(step, gradients))
        for part, setting, index in group.lr_spans:
            numbers = setting.elementwise if setting.elementwise is not None else setting.at(step)
            w[:, part] -= numbers * moved[:, part]
            self._add(w[:, part], rows, step, setting, group, index, lambda part=part: -self._moved(group, step, gradients)[part])

    def _moved(self, group: FloatGroup, step: int, gradients: Sequence[Tensor]) -> Tensor:
        after = group.velocity_after(step, gradients)
        return group.total_at(step, gradients).add(after, alpha=group.momentum_at(step)) if group.nesterov else after

    def _add(self, onto, rows, step, setting: Setting, group: FloatGroup, index: int, factor) -> None:  # type: ignore[no-untyped-def]
        """``factor`` to the rows of ``onto`` that are the tangents of this setting at this step, among ``rows``."""
        if setting.source is None:
            return
        begin = self._of_sources[setting.source]
        if setting.elementwise is None:
            row = begin + (step if len(setting.numbers) > 1 else 0) - rows.start
            if 0 <= row < len(onto):
                onto[row] += factor()
            return
        weight = group.weights[index]
        places = torch.arange(weight.numel(), device=onto.device).as_strided(weight.shape, weight.stride()).reshape(-1)
        first, last = max(begin, rows.start), min(begin + len(places), rows.stop)
        if first < last:
            chosen = places[first - begin : last - begin]
            onto[torch.arange(first - rows.start, last - rows.start, device=onto.device), chosen] += factor()[chosen]

    def _unit_rows(self, begin: int, tensor: Tensor, rows: slice) -> Tensor:
        unit = torch.zeros(rows.stop - rows.start, tensor.numel(), dtype=tensor.dtype, device=tensor.device)
        first, last = max(begin, rows.start), min(begin + tensor.numel(), rows.stop)
        if first < last:
            unit[torch.arange(first - rows.start, last - rows.start), torch.arange(first - begin, last - begin)] = 1.0
        return unit.reshape(-1, *tensor.shape)

    def pull_back(self, cotangents: Sequence[Tensor | None]) -> Cotangents:
        problem = self.problem
        totals = Cotangents.zeros(problem)
        found = torch.zeros(self.count, dtype=torch.float64, device=self.groups[0].device)
        for group, w in zip(self.groups, self._w, strict=True):
            found += w @ group.gather(cotangents)
        for begin, target in zip(
            (*self._of_sources, *self._of_hyperparameters), (*totals.sources, *totals.hyperparameters), strict=True
        ):
            target += found[begin : begin + target.numel()].reshape(target.shape).to(target.device)
        initial: list[Tensor | None] = [None] * len(problem.weights)
        for begin, m in zip(self._of_initial, problem.given, strict=True):
            weight = problem.weights[m]
            initial[m] = found[begin : begin + weight.numel()].reshape(weight.shape).to(weight.dtype)
        totals.initial = initial
        problem.report.restored = True
        return totals


def _rows(group: FloatGroup, matrix: Tensor, i: int) -> Tensor:
    """The part of every row that belongs to the ``i``-th member, in its shape."""
    weight = group.weights[i]
    shape, strides = (len(matrix), *weight.shape), (matrix.stride(0), *weight.stride())
    return matrix.as_strided(shape, strides, matrix.storage_offset() + group.offsets[i])
