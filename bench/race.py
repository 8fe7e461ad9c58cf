"""The race: one hypergradient, by each exact method, each in a process of its own.

    python -m bench.race [--steps 100 500 2000] [--repeats 3] [--methods reversible snapshots ...] [--csv FILE]

The task: an MLP 64-256-256-10 (85,002 weights) on scikit-learn's digits, batches of 128, SGD lr 0.1, momentum 0.9, float32, one
CPU thread; the gradient of the validation loss with respect to one log L2 penalty per weight. Reported per method: CPU seconds
of forward and backward together, peak resident memory above the process after a warm-up of three steps (Linux), and the
relative error against the unrolled graph in float64 (for up to --check steps).
"""

import argparse
import csv
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import reversible_hypergrad as rh
from bench.timing import conditions

LR, MOMENTUM, BATCH = 0.1, 0.9, 128
Weights = list[Tensor]
Method = Callable[["Task", int], Weights]


def penalized(call: Callable[[Tensor], Tensor], weights: Weights, penalty: Weights, batch: tuple[Tensor, Tensor]) -> Tensor:
    decay = torch.stack([(p.exp() * w.square()).sum() for p, w in zip(penalty, weights, strict=True)]).sum()
    return F.cross_entropy(call(batch[0]), batch[1]) + decay


class Task:
    """Data, model and loss; ``penalty`` holds the hyperparameters, a log L2 penalty per weight."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(64, 256), nn.Tanh(), nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 10)).to(dtype)
        images, labels = load_digits(return_X_y=True)
        self.x, self.y = torch.tensor(images / 16, dtype=dtype), torch.tensor(labels)
        self.names = [name for name, _ in self.model.named_parameters()]
        self.penalty = [torch.full_like(p, -9.0).requires_grad_() for p in self.model.parameters()]

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        index = torch.arange(step * BATCH, (step + 1) * BATCH) % 1400
        return self.x[index], self.y[index]

    def training_loss(self, weights: Weights, step: int) -> Tensor:
        return penalized(lambda x: self.call(weights, x), weights, self.penalty, self.batch(step))

    def call(self, weights: Weights, x: Tensor) -> Tensor:
        return torch.func.functional_call(self.model, dict(zip(self.names, weights, strict=True)), x)  # type: ignore[no-any-return]

    def validation_loss(self, weights: Weights) -> Tensor:
        return F.cross_entropy(self.call(weights, self.x[1400:]), self.y[1400:])

    def start(self) -> Weights:
        return [p.detach().clone().requires_grad_() for p in self.model.parameters()]


def training(task: Task, steps: int) -> Weights:
    """No hypergradient: what the others are multiples of."""
    weights = task.start()
    velocity = [torch.zeros_like(w) for w in weights]
    for step in range(steps):
        update(weights, velocity, torch.autograd.grad(task.training_loss(weights, step), weights), step)
    return [torch.zeros_like(p) for p in task.penalty]


def update(weights: Weights, velocity: Weights, gradient: tuple[Tensor, ...], step: int) -> None:
    with torch.no_grad():
        if step:
            torch._foreach_mul_(velocity, MOMENTUM)
        torch._foreach_add_(velocity, gradient)
        torch._foreach_add_(weights, velocity, alpha=-LR)


def unroll(task: Task, steps: int) -> Weights:
    """Autograd's graph through the whole run: what one writes first."""
    weights: Weights = task.start()
    velocity = [torch.zeros_like(w) for w in weights]
    for step in range(steps):
        gradient = torch.autograd.grad(task.training_loss(weights, step), weights, create_graph=True)
        velocity = [MOMENTUM * v + g for v, g in zip(velocity, gradient, strict=True)]
        weights = [w - LR * v for w, v in zip(weights, velocity, strict=True)]
    return list(torch.autograd.grad(task.validation_loss(weights), task.penalty))


def snapshots(task: Task, steps: int) -> Weights:
    """The weights of every step, kept; the gradient recomputed at each on the way back."""
    weights, kept = task.start(), []
    velocity = [torch.zeros_like(w) for w in weights]
    for step in range(steps):
        kept.append([w.detach().clone() for w in weights])
        update(weights, velocity, torch.autograd.grad(task.training_loss(weights, step), weights), step)
    return pull_back(task, weights, steps, lambda step: kept.pop())


def checkpoints(task: Task, steps: int) -> Weights:
    """Weights and velocity kept every sqrt(T) steps; a stretch between two is run again and kept while it is walked back."""
    every = max(1, round(steps**0.5))
    weights, states = task.start(), []
    velocity = [torch.zeros_like(w) for w in weights]
    for step in range(steps):
        if step % every == 0:
            states.append((step, [w.detach().clone() for w in weights], [v.clone() for v in velocity]))
        update(weights, velocity, torch.autograd.grad(task.training_loss(weights, step), weights), step)
    kept: list[Weights] = []

    def weights_at(step: int) -> Weights:
        if not kept:
            first, again, momentum = states.pop()
            again = [w.requires_grad_() for w in again]
            for i in range(first, step + 1):
                kept.append([w.detach().clone() for w in again])
                if i < step:
                    update(again, momentum, torch.autograd.grad(task.training_loss(again, i), again), i)
        return kept.pop()

    return pull_back(task, weights, steps, weights_at)


def pull_back(task: Task, weights: Weights, steps: int, weights_at: Callable[[int], Weights]) -> Weights:
    """The adjoint of SGD with momentum, given the weights of each step."""
    aw = list(torch.autograd.grad(task.validation_loss(weights), weights))
    av = [torch.zeros_like(w) for w in weights]
    total = [torch.zeros_like(p) for p in task.penalty]
    for step in reversed(range(steps)):
        torch._foreach_add_(av, aw, alpha=-LR)
        at = [w.requires_grad_() for w in weights_at(step)]
        gradient = torch.autograd.grad(task.training_loss(at, step), at, create_graph=True)
        products = torch.autograd.grad(gradient, [*at, *task.penalty], grad_outputs=av)
        torch._foreach_add_(aw, products[: len(at)])
        torch._foreach_add_(total, products[len(at) :])
        torch._foreach_mul_(av, MOMENTUM)
    return total


def reversible(task: Task, steps: int) -> Weights:
    """This library."""
    return by_train(task, steps, 64)


def reversible_32(task: Task, steps: int) -> Weights:
    """This library with 32-bit state."""
    return by_train(task, steps, 32)


def by_train(task: Task, steps: int, state_bits: int) -> Weights:
    def loss(model: nn.Module, batch: tuple[Tensor, Tensor], penalty: Weights) -> Tensor:
        return penalized(model, list(model.parameters()), penalty, batch)

    trained = rh.train(
        task.model,
        loss,
        task.batch,
        steps=steps,
        optimizer=rh.SGD(lr=LR, momentum=MOMENTUM),
        hyperparameters=task.penalty,
        adjoint=rh.Reversible(state_bits=state_bits),
    )
    return list(torch.autograd.grad(task.validation_loss(list(trained.values())), task.penalty))


METHODS: dict[str, Method] = {m.__name__: m for m in (training, unroll, snapshots, checkpoints, reversible, reversible_32)}


def resident() -> tuple[int, int]:
    """Present and peak resident bytes (Linux); zeros elsewhere."""
    try:
        status = Path("/proc/self/status").read_text()
    except FileNotFoundError:
        return 0, 0
    field = {line.split(":")[0]: line.split()[1] for line in status.splitlines() if line.startswith(("VmRSS", "VmHWM"))}
    return 1024 * int(field["VmRSS"]), 1024 * int(field["VmHWM"])


def measure(method: str, steps: int, check: bool) -> dict[str, float]:
    """In this process. The peak is reset after the warm-up."""
    torch.set_num_threads(1)
    task = Task()
    METHODS[method](task, 3)
    gc.collect()
    base, _ = resident()
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")
    began = time.process_time()
    hypergradient = METHODS[method](task, steps)
    seconds = time.process_time() - began
    peak = resident()[1] - base
    result = {"seconds": seconds, "megabytes": peak / 1e6}
    if check and method != "training":
        exact = unroll(Task(torch.float64), steps)
        difference = sum(float((a - b).square().sum()) for a, b in zip(hypergradient, exact, strict=True))
        result["error"] = (difference / sum(float(b.square().sum()) for b in exact)) ** 0.5
    return result


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="+", default=[100, 500, 2000])
    parser.add_argument("--methods", nargs="+", choices=sorted(METHODS), default=sorted(METHODS, key=list(METHODS).index))
    parser.add_argument("--repeats", type=int, default=3, help="the methods take turns; ratios are medians over turns")
    parser.add_argument("--check", type=int, default=100, help="compare with float64 up to this many steps")
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        print(json.dumps(measure(options.methods[0], options.steps[0], options.steps[0] <= options.check)))
        return
    print(conditions().replace(f"{torch.get_num_threads()} threads", "1 thread"))
    rows = []
    for steps in options.steps:
        runs: dict[str, list[dict[str, float]]] = {m: [] for m in options.methods}
        for _ in range(options.repeats):
            for method in options.methods:
                command = [sys.executable, "-m", "bench.race", "--one", "--methods", method, "--steps", str(steps)]
                done = subprocess.run([*command, "--check", str(options.check)], capture_output=True, text=True, check=False)
                if done.returncode:
                    raise SystemExit(f"{method} failed at {steps} steps:\n{done.stderr}")
                runs[method].append(json.loads(done.stdout))
        baseline = runs.get("snapshots", runs[options.methods[0]])
        print(f"\nT = {steps:<8}{'CPU s':>9}{'of snapshots':>14}{'peak MB':>10}{'error':>10}")
        for method, results in runs.items():
            seconds = statistics.median(r["seconds"] for r in results)
            times = statistics.median(r["seconds"] / b["seconds"] for r, b in zip(results, baseline, strict=True))
            megabytes = statistics.median(r["megabytes"] for r in results)
            error = results[0].get("error")
            print(f"{method:12}{seconds:9.2f}{times:14.2f}{megabytes:10.1f}{'' if error is None else f'{error:10.1e}'}")
            rows.append([method, steps, f"{seconds:.3f}", f"{times:.3f}", f"{megabytes:.1f}", error])
    if options.csv:
        with options.csv.open("w", newline="") as file:
            csv.writer(file).writerows([["method", "steps", "cpu_seconds", "of_snapshots", "peak_megabytes", "error"], *rows])


if __name__ == "__main__":
    main()
