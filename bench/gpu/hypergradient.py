"""The full hypergradient of a transformer's training: a learning rate per step, and a weight per example."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reversible_hypergrad as rh
from bench.gpu.clock import Clock
from bench.gpu.data import text
from bench.gpu.models import language_model
from bench.gpu.report import Deadline, Setup
from reversible_hypergrad.adjoints import Adjoint

__all__ = ["hypergradient"]

LR, MOMENTUM = 0.02, 0.9


class Task:
    """Windows of text in turn; the training loss weighs each by a hyperparameter, the downstream loss is of other windows."""

    def __init__(self, setup: Setup, deadline: Deadline) -> None:
        self.batch, self.steps, examples = (2, 4, 8) if setup.tiny else (8, 500, 1000)
        torch.manual_seed(0)
        self.model = language_model(setup.tiny).to(setup.device)
        self.context = len(self.model.places)
        windows, self.source = text(setup.data, examples + self.batch, self.context + 1)
        windows = windows[torch.randperm(len(windows), generator=torch.Generator().manual_seed(1))].to(setup.device)
        self.windows, self.held_out = windows[: -self.batch], windows[-self.batch :]
        self.log_lr = torch.full((self.steps,), LR, device=setup.device).log().requires_grad_()
        self.weight = torch.ones(len(self.windows), device=setup.device, requires_grad=True)
        self.deadline = deadline

    def losses(self, model: Callable[[Tensor], Tensor], windows: Tensor) -> Tensor:
        """One per window."""
        logits = model(windows[:, :-1])
        values = F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten(), reduction="none")
        return values.view(len(windows), -1).mean(1)

    def index(self, step: int) -> Tensor:
        self.deadline.check()
        return torch.arange(step * self.batch, (step + 1) * self.batch, device=self.windows.device) % len(self.windows)

    def loss(self, model: nn.Module, index: Tensor, weight: Tensor) -> Tensor:
        return (weight[index] * self.losses(model, self.windows[index])).mean()

    def warm_up(self) -> None:
        """Loads what the first second derivative loads."""
        value = self.loss(self.model, self.index(0), self.weight)
        gradients = torch.autograd.grad(value, list(self.model.parameters()), create_graph=True)
        torch.autograd.grad(sum(g.square().sum() for g in gradients), self.weight)  # type: ignore[arg-type]

    def train_plainly(self) -> None:
        model = copy.deepcopy(self.model)
        optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM, fused=True)
        for step in range(self.steps):
            optimizer.zero_grad()
            self.loss(model, self.index(step), self.weight.detach()).backward()
            optimizer.step()

    def by(self, adjoint: Adjoint) -> tuple[tuple[Tensor, ...], Any]:
        trained = rh.train(
            self.model,
            self.loss,
            self.index,
            steps=self.steps,
            optimizer=rh.SGD(lr=self.log_lr.exp(), momentum=MOMENTUM),
            hyperparameters=self.weight,
            adjoint=adjoint,
        )
        value = self.losses(lambda x: torch.func.functional_call(self.model, dict(trained), (x,)), self.held_out).mean()
        return torch.autograd.grad(value, [self.log_lr, self.weight]), trained.report


def hypergradient(setup: Setup, deadline: Deadline) -> Iterator[str]:
    task, clock = Task(setup, deadline), Clock(setup.device)
    weights = sum(p.numel() for p in task.model.parameters())
    yield f"Data: {task.source}. Transformer of {weights:,} float32 weights, {task.steps} steps of {task.batch} windows of"
    yield f"{task.context} bytes, matrix products in {torch.get_float32_matmul_precision()!r} precision. Hyperparameters:"
    yield f"{len(task.log_lr)} learning rates and {len(task.weight):,} weights of examples. Time of forward and backward"
    yield "together; plain training is torch.optim.SGD(fused=True). Peak of all tensors, as torch counts them."
    yield from [
        "",
        "| | s | forward + backward | of plain training | peak GB | GB beyond plain | off from the first |",
        "|---|---|---|---|---|---|---|",
    ]
    task.warm_up()
    clock.reset_peak()
    plain = clock.wall_seconds(task.train_plainly)
    plain_peak = clock.peak()
    yield f"| plain training | {plain:.1f} | | 1.00 | {plain_peak:.2f} | | |"
    strategies: list[Adjoint] = [rh.Reversible(), rh.Checkpoint(), rh.Reversible(state_bits=64)]
    first: tuple[Tensor, ...] | None = None
    for adjoint in strategies:
        found: list[Any] = []
        clock.reset_peak()
        seconds = clock.wall_seconds(lambda adjoint=adjoint, found=found: found.extend(task.by(adjoint)))  # type: ignore[misc]
        peak = clock.peak()
        gradients, report = found
        if not report.restored or not all(bool(g.isfinite().all()) for g in gradients):
            raise AssertionError(f"{adjoint}: expected finite hypergradients of a restored trajectory")
        first = gradients if first is None else first
        off = ", ".join(f"{float((a - b).norm() / b.norm()):.1e}" for a, b in zip(gradients, first, strict=True))
        parts = f"{report.forward_seconds:.1f} + {report.backward_seconds:.1f}"
        yield f"| rh.{adjoint} | {seconds:.1f} | {parts} | {seconds / plain:.2f} | {peak:.2f} | {peak - plain_peak:.2f} | {off} |"
