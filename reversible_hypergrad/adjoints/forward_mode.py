"""One tangent per hyperparameter, carried along with training."""

from collections.abc import Sequence
from types import SimpleNamespace

import torch
from torch import Tensor

from reversible_hypergrad.adjoints.base import Adjoint, End, Run, states_of
from reversible_hypergrad.adjoints.cost import Cost, RunSize
from reversible_hypergrad.adjoints.float_span import FloatSpan
from reversible_hypergrad.adjoints.floats import FloatGroup, float_groups
from reversible_hypergrad.adjoints.readout_tangents import ReadoutTangents
from reversible_hypergrad.checks import check_integer
from reversible_hypergrad.problem.gradient import Evaluation
from reversible_hypergrad.problem.problem import Cotangents, Downstream, Problem
from reversible_hypergrad.problem.setting import Setting
from reversible_hypergrad.rules.step import step

__all__ = ["ForwardMode", "ForwardModeRun"]


class ForwardMode(Adjoint):
    """Carries how weights and states change with every hyperparameter along with training. Exact; no way back is needed.

    Also known as real-time recurrent learning. Momentum 0 and Nesterov are allowed. Initial weights count as hyperparameters if
    they were given to :func:`train` as ``initial=``; there is no gradient by the model's own.

    Args:
        chunk: how many tangents go through a Hessian-vector product at a time, at least 1.
        limit: refuse more hyperparameters (elements of tensors) than this; at least 1.
        force: take any number of them.

    Cost: a vector as large as the weights, one more per state of the rule, and a Hessian-vector product per step, for every
    hyperparameter (an element of a
    tensor that wants a gradient; a learning rate per step counts T times). The loss need not be one that can be repeated. One
    that moves floating-point buffers is evaluated once more in each step, to see whether it reads them.

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
    chains = False

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
                f"adjoint: ForwardMode(limit={self.limit}) got {run.count} hyperparameters, each of which takes vectors as "
                "large as the weights and a Hessian-vector product per step. Use rh.Reversible(), whose cost does not grow with "
                "their number, or ForwardMode(force=True)"
            )
        return run

    def cost(self, size: RunSize) -> Cost | None:
        if size.hyperparameters is None:
            return None
        # Of a chunk, the changes of the gradients, twice; meanwhile neither result nor cotangent nor products are there.
        vectors = (1 + size.states) * size.hyperparameters + max(2 * min(self.chunk, size.hyperparameters) - 3, 0)
        tangents = vectors * size.adjoint_bytes * size.weights
        # A tangent goes through the graph of a gradient with products, which is about a step back.
        time = 1.0 + (size.time(0) - 1.0) * max(1.0, float(size.hyperparameters))
        too_many = size.hyperparameters > self.limit and not self.force
        return Cost(size.float_bytes + tangents, time, f"{size.hyperparameters:,} hyperparameters" if too_many else "")


class ForwardModeRun(Run):
    """The tangents of a group are the rows of matrices: of its weights, and of each of its states."""

    def __init__(self, problem: Problem, chunk: int) -> None:
        self.problem, self.chunk = problem, chunk
        problem.gradient.expect_no_replay()
        inputs = [] if problem.readouts is None else problem.readouts.inputs
        kinds: list[list[Tensor]] = [
            problem.sources,
            problem.hyperparameters,
            inputs,
            [problem.weights[i] for i in problem.given],
            [problem.states[i][name] for i, name in problem.wanted_states],
        ]
        sizes = [t.numel() for kind in kinds for t in kind]
        begins = [sum(sizes[:i]) for i in range(len(sizes))]
        self.count = sum(sizes)
        of_kinds = [[begins.pop(0) for _ in kind] for kind in kinds]
        self._of_sources, self._of_hyperparameters, of_readouts, self._of_initial, self._of_states = of_kinds
        self.groups: list[FloatGroup] = []
        self._w: list[Tensor] = []
        self._z: list[dict[str, Tensor]] = []
        self._readouts = ReadoutTangents(problem, self.count, of_readouts, self._of_hyperparameters)

    def forward(self, record: bool) -> None:
        problem = self.problem
        self.groups = float_groups(problem)
        if record:
            self.begin()
        self._readouts.begin(self.groups, self._w)
        with problem.progress("training", len(problem.steps)) as bar:
            for step in problem.steps:
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
                self._readouts.see(step + 1)
                bar.advance()
        rows = zip(self.groups, self._w, strict=False)  # without ``record`` there are none
        problem.report.kept_bytes = sum((1 + len(group.rule.states)) * w.nbytes for group, w in rows)

    def end(self) -> End | None:
        return End(states_of(self.groups))

    def begin(self) -> None:
        """The tangents of the first weights and states."""
        self._w = [g.vector().new_zeros(self.count, len(g.w)) for g in self.groups]
        self._z = [
            {name: torch.zeros_like(w) for name in group.rule.states} for group, w in zip(self.groups, self._w, strict=True)
        ]
        for begin, m in zip(self._of_initial, self.problem.given, strict=True):
            for group, w in zip(self.groups, self._w, strict=True):
                if m in group.members:
                    i = group.members.index(m)
                    weight = group.weights[i]
                    unit = torch.eye(weight.numel(), dtype=w.dtype, device=w.device).reshape(-1, *weight.shape)
                    group.view_rows(w[begin : begin + weight.numel()], i).copy_(unit)
        for begin, (m, name) in zip(self._of_states, self.problem.wanted_states, strict=True):
            for group, z in zip(self.groups, self._z, strict=True):
                if m in group.members:
                    i = group.members.index(m)
                    weight = group.weights[i]
                    unit = torch.eye(weight.numel(), dtype=z[name].dtype, device=z[name].device).reshape(-1, *weight.shape)
                    group.view_rows(z[name][begin : begin + weight.numel()], i).copy_(unit)

    def _advance(self, step: int, rows: slice, evaluation: Evaluation) -> None:
        """Some tangents of every group through one step. All see the state before it."""
        problem = self.problem
        by_weights: list[Tensor] = [torch.empty(0)] * len(problem.weights)
        for group, w in zip(self.groups, self._w, strict=True):
            for i, m in enumerate(group.members):
                by_weights[m] = group.view_rows(w[rows], i)
        by_hyperparameters = [self.rows_of_hyperparameter(k, rows) for k in range(len(problem.hyperparameters))]
        changes = evaluation.tangents(by_weights, by_hyperparameters)
        for group, w, z in zip(self.groups, self._w, self._z, strict=True):
            g = torch.zeros_like(w[rows])
            for i, m in enumerate(group.members):
                change = changes[m]
                if change is not None:
                    group.view_rows(g, i).copy_(change)
            group.gather_gradient(evaluation.gradients)
            for span in group.spans:
                self._step(step, rows, group, span, g, w[rows], {name: state[rows] for name, state in z.items()})

    def _step(
        self, t: int, rows: slice, group: FloatGroup, span: FloatSpan, dg: Tensor, dw: Tensor, dz: dict[str, Tensor]
    ) -> None:
        """The rule's own step, differentiated along each row. ``dg`` holds the tangents of the loss's gradients."""
        dg, dw, dz = span.rows_of(dg), span.rows_of(dw), {name: span.rows_of(state) for name, state in dz.items()}
        if span.linear is not None and not span.learned:
            span.linear.move(t, dg, dw, dz)
            return
        dtype = group.dtype
        h = span.attached(t)
        leaves = {name: x.detach().to(dtype) for name, x in vars(h).items() if isinstance(x, Tensor) and x.requires_grad}

        def after(g: Tensor, w: Tensor, z: dict[str, Tensor], learned: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
            return step(group.rule, SimpleNamespace(**{**vars(h), **learned}), t, g, w, z)

        primals = (
            span.of(group.g).to(dtype),
            span.of(group.w).to(dtype),
            {name: span.of(state).to(dtype) for name, state in group.z.items()},
            leaves,
        )
        by_setting = {name: self._setting_rows(t, rows, span, span.settings[name], x) for name, x in leaves.items()}
        new_w, new_z = torch.func.vmap(lambda *along: torch.func.jvp(after, primals, along)[1])(dg, dw, dz, by_setting)
        dw.copy_(new_w)
        for name, state in dz.items():
            state.copy_(new_z[name])

    def _setting_rows(self, t: int, rows: slice, span: FloatSpan, setting: Setting, value: Tensor) -> Tensor:
        """How a setting's value at this step changes along each of ``rows``."""
        assert setting.source is not None
        if setting.elementwise is None:
            place = 0 if setting.place is None else setting.place + t - setting.first
            return self.rows_of_number(setting.source, place, rows).to(value)
        return span.rows_per_weight(self.rows_of_source(setting.source, rows).to(value))

    def rows_of_hyperparameter(self, k: int, rows: slice) -> Tensor:
        """How one of the loss's hyperparameters changes along each of ``rows``."""
        return self._unit_rows(self._of_hyperparameters[k], self.problem.hyperparameters[k], rows)

    def rows_of_source(self, i: int, rows: slice) -> Tensor:
        """How one of the optimizer's tensors does."""
        return self._unit_rows(self._of_sources[i], self.problem.sources[i], rows)

    def rows_of_number(self, i: int, place: int, rows: slice) -> Tensor:
        """How one number in it does."""
        found = torch.zeros(rows.stop - rows.start, dtype=torch.float64, device=self.groups[0].device)
        row = self._of_sources[i] + place - rows.start
        if 0 <= row < len(found):
            found[row] = 1.0
        return found

    def _unit_rows(self, begin: int, tensor: Tensor, rows: slice) -> Tensor:
        unit = torch.zeros(rows.stop - rows.start, tensor.numel(), dtype=tensor.dtype, device=tensor.device)
        first, last = max(begin, rows.start), min(begin + tensor.numel(), rows.stop)
        if first < last:
            unit[torch.arange(first - rows.start, last - rows.start), torch.arange(first - begin, last - begin)] = 1.0
        return unit.reshape(-1, *tensor.shape)

    def pull_back(self, downstream: Sequence[Downstream]) -> list[Cotangents]:
        self.problem.report.restored = True
        return [self._pull_back(one) for one in downstream]

    def _pull_back(self, downstream: Downstream) -> Cotangents:
        problem, count = self.problem, len(self.problem.weights)
        totals = Cotangents(problem)
        found = torch.zeros(self.count, dtype=torch.float64, device=self.groups[0].device)
        for group, w, z in zip(self.groups, self._w, self._z, strict=True):
            found += w @ group.gather(downstream.weights)
            for name, rows in z.items():
                found += rows @ group.gather([downstream.states_of(i).get(name) for i in range(count)])
        found += self._readouts.pull_back(downstream)
        begins = (*self._of_sources, *self._of_hyperparameters, *self._readouts.of_inputs)
        targets = (*totals.sources, *totals.hyperparameters, *totals.readouts)
        for begin, target in zip(begins, targets, strict=True):
            target += found[begin : begin + target.numel()].reshape(target.shape).to(target.device)
        totals.initial = [None] * count
        for begin, m in zip(self._of_initial, problem.given, strict=True):
            weight = problem.weights[m]
            totals.initial[m] = found[begin : begin + weight.numel()].reshape(weight.shape).to(weight.dtype)
        for begin, (m, name) in zip(self._of_states, problem.wanted_states, strict=True):
            weight = problem.weights[m]
            totals.states[m][name] = found[begin : begin + weight.numel()].reshape(weight.shape)
        return totals
