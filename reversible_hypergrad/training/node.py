"""A run as one node of autograd."""

import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from reversible_hypergrad.adjoints import Run
from reversible_hypergrad.errors import ReversalError
from reversible_hypergrad.interrupts import Uninterrupted
from reversible_hypergrad.problem.problem import Cotangents, Downstream, Problem
from reversible_hypergrad.replay.environment import Environment
from reversible_hypergrad.replay.fingerprint import Fingerprint

__all__ = ["Call", "Filled", "Training", "state_dtype"]

_Result = TypeVar("_Result")

_numbers = itertools.count()


class Call:
    """What forward and backward of one call of ``train`` share.

    Attributes:
        number: later calls have larger ones.
        collected: where a backward leaves its cotangents, in place of going back through the run; None: it goes back.
    """

    def __init__(
        self,
        run: Run,
        problem: Problem,
        environment: Environment,
        unchanged: Sequence[Tensor],
        record: bool,
    ) -> None:
        self.run, self.problem, self.environment = run, problem, environment
        self.unchanged, self.record = unchanged, record
        self.number = next(_numbers)
        self.collected: list[Downstream] | None = None

    @property
    def inputs(self) -> Sequence[Tensor]:
        """Of the node."""
        return self.problem.inputs

    def go(self, way: Callable[[], _Result], last: bool) -> _Result:
        """One way of the run, in its environment. What its gradient keeps stays for the other one, unless this is the ``last``.
        Signals come through on the way, but not where settings are put in force or back."""
        with Uninterrupted() as signals:
            try:
                with self.environment.pinned(), signals.but_for():
                    return way()
            except BaseException:
                last = True
                raise
            finally:
                if last:
                    self.problem.gradient.let_go()

    def forth(self) -> None:
        """Trains."""
        self.problem.report.environment = self.fingerprint()
        self.run.forward(self.record)

    def fingerprint(self) -> Fingerprint:
        """Inside of the pinned environment, since what it pins is no suspect."""
        return Fingerprint.current(self.environment.cuda_devices)

    @property
    def states(self) -> list[tuple[int, str]]:
        """A weight and the name of one of its states, for all of them, in the order of the node's outputs."""
        problem = self.problem
        return [(i, name) for i in range(len(problem.weights)) for name in problem.rule_of(i).states]

    def downstream(self, cotangents: Sequence[Tensor | None]) -> Downstream:
        """What autograd gives for the node's outputs, in order."""
        count, states = len(self.problem.weights), self.states
        by_states: list[dict[str, Tensor]] = [{} for _ in range(count)]
        for (i, name), by in zip(states, cotangents[count:], strict=False):
            if by is not None:
                by_states[i][name] = by
        return Downstream(cotangents[:count], by_states, cotangents[count + len(states) :])

    def pull_back(self, downstream: Sequence[Downstream]) -> list[list[Tensor | None]]:
        """For each loss, the gradients by :attr:`inputs`."""
        began = time.perf_counter()
        found = self.go(lambda: self._back(downstream), last=True)
        self.problem.report.backward_seconds = time.perf_counter() - began
        return [self._by_inputs(one) for one in found]

    def _back(self, downstream: Sequence[Downstream]) -> list[Cotangents]:
        try:
            return self.run.pull_back(downstream)
        except ReversalError as error:
            changed = Fingerprint(self.problem.report.environment).difference(self.fingerprint())
            if changed is None:
                raise
            raise ReversalError(f"{error}. The environment is another one than in training: {changed}") from error

    def _by_inputs(self, result: Cotangents) -> list[Tensor | None]:
        problem = self.problem
        states: list[Tensor | None] = []
        for i, name in problem.wanted_states:
            by, first = result.states[i].get(name), problem.states[i][name]
            states.append(torch.zeros_like(first) if by is None else by.to(first.dtype))
        sources = [total.to(t.device, t.dtype) for total, t in zip(result.sources, problem.sources, strict=True)]
        own = [total.to(t.dtype) for total, t in zip(result.hyperparameters, problem.hyperparameters, strict=True)]
        return [*result.initial, *states, *sources, *own, *(total.cpu() for total in result.readouts)]


class Training(torch.autograd.Function):
    """A call's inputs in; trained weights, places for states, and readouts out."""

    @staticmethod
    def forward(ctx: Any, call: Call, *inputs: Tensor) -> tuple[Tensor, ...]:
        began = time.perf_counter()
        problem = call.problem
        call.go(call.forth, last=not call.record)
        weights = [weight.detach().clone() for weight in problem.weights]
        # Of the states a number each, in the shape of all: their values are looked up when somebody asks.
        states = [weights[i].new_zeros((), dtype=state_dtype(weights[i])).expand(weights[i].shape) for i, _ in call.states]
        readouts = [] if problem.readouts is None else problem.readouts.outputs()
        problem.report.forward_seconds = time.perf_counter() - began
        if call.record:
            ctx.call = call
            ctx.set_materialize_grads(False)
            # Saved for torch's own checks only: none of them may change in place before backward, and a second backward needs
            # retain_graph=True. The marker is there in case there is nothing else.
            ctx.save_for_backward(*call.unchanged, torch.empty(0))
        return (*weights, *states, *readouts)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "train() was differentiated with create_graph=True, but second derivatives through it are not supported: its "
                "backward undoes integers, which leaves no graph. Use create_graph=False; for second-order terms, write the "
                "inner loop in plain autograd"
            )
        _ = ctx.saved_tensors
        call: Call = ctx.call
        downstream = call.downstream(cotangents)
        if call.collected is not None:
            call.collected.append(downstream)
            return (None,) * (1 + len(call.inputs))
        (found,) = call.pull_back([downstream])
        return (None, *found)


class Filled(torch.autograd.Function):
    """A place and the values that belong there; gradients go to the place."""

    @staticmethod
    def forward(ctx: Any, place: Tensor, values: Tensor) -> Tensor:
        return values

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def state_dtype(weight: Tensor) -> torch.dtype:
    """Of what a run says its states are."""
    return torch.promote_types(weight.dtype, torch.float32)
