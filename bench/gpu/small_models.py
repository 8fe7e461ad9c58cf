"""What CUDA graphs bring where launches decide: a training run and its hypergradient, with and without cuda_graph=True."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reversible_hypergrad as rh
from bench.gpu.clock import Clock, quartiles
from bench.gpu.models import language_model
from bench.gpu.report import Deadline, Setup
from bench.timing import ratio

__all__ = ["small_models"]

LR = 0.02


class Task:
    """Made-up data on the device, a penalty per tensor, and a learning rate per step."""

    def __init__(self, name: str, model: nn.Module, x: Tensor, y: Tensor, steps: int, batch: int, deadline: Deadline) -> None:
        self.name, self.model, self.x, self.y = name, model, x, y
        self.steps, self.batch, self.deadline = steps, batch, deadline
        self.log_lr = torch.full((steps,), LR).log().requires_grad_()
        self.log_l2 = [torch.tensor(-7.0, device=x.device, requires_grad=True) for _ in model.parameters()]

    def data(self, step: int) -> tuple[Tensor, Tensor]:
        self.deadline.check()
        first = step * self.batch % len(self.x)
        return self.x[first : first + self.batch], self.y[first : first + self.batch]

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor], log_l2: list[Tensor]) -> Tensor:
        penalty = sum(l2.exp() * p.square().sum() for l2, p in zip(log_l2, model.parameters(), strict=True))
        return F.cross_entropy(model(batch[0]).flatten(0, -2), batch[1].flatten()) + penalty

    def run(self, cuda_graph: bool) -> tuple[list[Tensor], float, float]:
        """Hypergradients, and seconds forwards and backwards."""
        trained = rh.train(
            self.model,
            self.loss,
            self.data,
            steps=self.steps,
            optimizer=rh.SGD(lr=self.log_lr.exp(), momentum=0.9),
            hyperparameters=self.log_l2,
            cuda_graph=cuda_graph,
        )
        found = torch.autograd.grad(sum(w.square().sum() for w in trained.values()), [self.log_lr, *self.log_l2])  # type: ignore[arg-type]
        if not trained.report.restored:
            raise AssertionError(f"{self.name}: expected a restored trajectory")
        return list(found), trained.report.forward_seconds, trained.report.backward_seconds


def tasks(setup: Setup, deadline: Deadline) -> Iterator[Task]:
    device, steps, examples = setup.device, 6 if setup.tiny else 200, 24 if setup.tiny else 4096
    torch.manual_seed(0)
    width, batch = (8, 4) if setup.tiny else (256, 128)
    layers = [nn.Linear(64, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 10)]
    x, y = torch.randn(examples, 64, device=device), torch.randint(10, (examples,), device=device)
    yield Task(f"MLP 64-{width}-{width}-10, batch {batch}", nn.Sequential(*layers).to(device), x, y, steps, batch, deadline)
    text = torch.randint(256, (examples // 4, 17), device=device)
    model = language_model(tiny=True).to(device)
    batch = 2 if setup.tiny else 32
    name = f"transformer, width 16, {batch} windows of 16 bytes"
    yield Task(name, model, text[:, :-1].contiguous(), text[:, 1:].contiguous(), steps, batch, deadline)


def small_models(setup: Setup, deadline: Deadline) -> Iterator[str]:
    clock, turns = Clock(setup.device), 1 if setup.tiny else 3
    ways = {"launch by launch": False, "cuda_graph=True": True}
    if not clock.cuda:
        ways = {"launch by launch": False}
        yield "(no GPU: there are no CUDA graphs to compare with)"
    yield f"Seconds of a run and its hypergradient, capture included, medians of {turns} turns after a warm-up; ratios turn by"
    yield "turn. The hypergradients have the same bits. Made-up data."
    yield from ["", "| | weights | steps | s | forward + backward | times | peak GB |", "|---|---|---|---|---|---|---|"]
    for task in tasks(setup, deadline):
        taken: dict[str, list[float]] = {way: [] for way in ways}
        parts: dict[str, tuple[float, float]] = {}
        peaks: dict[str, float] = {}
        expected: list[Tensor] = []
        for turn in range(1 + turns):
            for way, cuda_graph in ways.items():
                found: list[Tensor] = []
                clock.reset_peak()
                seconds = clock.wall_seconds(_keeping(task, cuda_graph, found, parts, way))
                peaks[way] = clock.peak()
                if turn:
                    taken[way].append(seconds)
                expected = expected or found
                if not all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)):
                    raise AssertionError(f"{task.name}, {way}: expected the hypergradients of the first run, bit for bit")
        weights = sum(p.numel() for p in task.model.parameters())
        for way, samples in taken.items():
            forward, backward = parts[way]
            times = ratio(samples, taken["launch by launch"])[1]
            cells = [f"{weights:,}", f"{task.steps}", f"{quartiles(samples)[1]:.3g}", f"{forward:.3g} + {backward:.3g}"]
            yield f"| {task.name}, {way} | {' | '.join(cells)} | {times:.2f} | {peaks[way]:.2f} |"


def _keeping(
    task: Task, cuda_graph: bool, found: list[Tensor], parts: dict[str, tuple[float, float]], way: str
) -> Callable[[], None]:
    def call() -> None:
        gradients, forward, backward = task.run(cuda_graph)
        found.extend(gradients)
        parts[way] = forward, backward

    return call
