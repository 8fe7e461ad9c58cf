"""A run as one node of autograd."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from reversible_hypergrad.adjoints import Run
from reversible_hypergrad.problem.problem import Problem
from reversible_hypergrad.replay.environment import Environment

__all__ = ["Call", "Training"]


class Call:
    """What forward and backward of one call of ``train`` share."""

    def __init__(self, run: Run, problem: Problem, environment: Environment, unchanged: Sequence[Tensor], record: bool) -> None:
        self.run, self.problem, self.environment = run, problem, environment
        self.unchanged, self.record = unchanged, record

    @contextmanager
    def pinned(self, last: bool) -> Iterator[None]:
        """The run's environment for one way. What its gradient keeps stays for the other one, unless this is the ``last``."""
        try:
            with self.environment.pinned():
                yield
        except BaseException:
            last = True
            raise
        finally:
            if last:
                self.problem.gradient.let_go()


class Training(torch.autograd.Function):
    """Initial weights, the optimizer's tensors and hyperparameters in, trained weights out."""

    @staticmethod
    def forward(ctx: Any, call: Call, *inputs: Tensor) -> tuple[Tensor, ...]:
        began = time.perf_counter()
        with call.pinned(last=not call.record):
            call.run.forward(call.record)
        outputs = tuple(weight.detach().clone() for weight in call.problem.weights)
        call.problem.report.forward_seconds = time.perf_counter() - began
        if call.record:
            ctx.call = call
            ctx.set_materialize_grads(False)
            # Saved for torch's own checks only: none of them may change in place before backward, and a second backward needs
            # retain_graph=True. The marker is there in case there is nothing else.
            ctx.save_for_backward(*call.unchanged, torch.empty(0))
        return outputs

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
        began = time.perf_counter()
        with call.pinned(last=True):
            result = call.run.pull_back(cotangents)
        call.problem.report.backward_seconds = time.perf_counter() - began
        problem = call.problem
        sources = [total.to(t.device, t.dtype) for total, t in zip(result.sources, problem.sources, strict=True)]
        own = [total.to(t.dtype) for total, t in zip(result.hyperparameters, problem.hyperparameters, strict=True)]
        return (None, *result.initial, *sources, *own)
