"""One hypergradient through AdamW of a character transformer: a learning rate per step, and a weight per training sequence.

    python -m bench.transformer --text FILE [--steps 1000] [--strategies reversible snapshots checkpoint]

The model has about a million weights (6 layers of width 128, 4 heads, context 64); a step takes 4 sequences, in float32. Each strategy
runs in a process of its own on one thread. Printed: CPU seconds of training and of forward and backward together, in units of plain
training by torch.optim.AdamW in a process of its own; peak resident memory beyond that of three such steps; bits kept per weight and
step; and how far apart the strategies' hypergradients are.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import reversible_hypergrad as rh
from bench.measure import resident
from bench.timing import conditions, when

WIDTH, HEADS, LAYERS, CONTEXT, BATCH, SEQUENCES = 128, 4, 6, 64, 4, 256
PEAK_LR = 1e-3
STRATEGIES = {
    "reversible": rh.Reversible(),
    "reversible 64": rh.Reversible(state_bits=64),
    "snapshots": rh.Snapshots(),
    "checkpoint": rh.Checkpoint(),
}


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.attention, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.wide, self.narrow = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        count, length, _ = x.shape
        q, k, v = self.attention(self.norms[0](x)).view(count, length, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        # Written out: the fused one has no second derivative on a CPU.
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        mask = torch.ones(length, length, dtype=torch.bool).tril()
        mixed = scores.masked_fill(~mask, -torch.inf).softmax(-1) @ v
        x = x + self.out(mixed.transpose(1, 2).reshape(x.shape))
        return x + self.narrow(F.gelu(self.wide(self.norms[1](x))))


class Transformer(nn.Module):
    def __init__(self, characters: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.place = nn.Embedding(characters, WIDTH), nn.Parameter(0.02 * torch.randn(CONTEXT, WIDTH))
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, characters)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.embed(tokens) + self.place)))


class Task:
    def __init__(self, text: str, steps: int) -> None:
        alphabet = sorted(set(text))
        tokens = torch.tensor([alphabet.index(c) for c in text[: (SEQUENCES + 32) * (CONTEXT + 1)]])
        rows = tokens[: len(tokens) // (CONTEXT + 1) * (CONTEXT + 1)].view(-1, CONTEXT + 1)
        self.train, self.validation, self.steps = rows[:SEQUENCES], rows[SEQUENCES:], steps
        self.model = Transformer(len(alphabet))
        warm_up = max(steps // 20, 1)
        self.schedule = [PEAK_LR * min((t + 1) / warm_up, 0.5 * (1 + math.cos(math.pi * t / steps))) for t in range(steps)]

    def chosen(self, step: int) -> Tensor:
        return torch.randint(len(self.train), (BATCH,), generator=torch.Generator().manual_seed(step))

    def losses(self, model: Any, rows: Tensor) -> Tensor:
        logits = model(rows[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="none").view(len(rows), -1).mean(1)

    def by_torch(self) -> float:
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=PEAK_LR)
        for step in range(self.steps):
            optimizer.param_groups[0]["lr"] = self.schedule[step]
            optimizer.zero_grad()
            self.losses(self.model, self.train[self.chosen(step)]).mean().backward()
            optimizer.step()
        with torch.no_grad():
            return float(self.losses(self.model, self.validation).mean())

    def hypergradient(self, strategy: str) -> tuple[list[Tensor], Any, float]:
        rates = torch.tensor(self.schedule, requires_grad=True)
        weights = torch.ones(len(self.train), requires_grad=True)

        def loss(model: Any, step: Any, hyper: Tensor) -> Tensor:
            rows = self.chosen(int(step))
            return (hyper[rows] * self.losses(model, self.train[rows])).mean()

        trained = rh.train(
            self.model, loss, range(self.steps), optimizer=rh.AdamW(rates), hyperparameters=weights, adjoint=STRATEGIES[strategy]
        )

        def model(rows: Tensor) -> Tensor:
            return torch.func.functional_call(self.model, dict(trained), rows)

        after = self.losses(model, self.validation).mean()
        after.backward()
        return [rates.grad, weights.grad], trained.report, float(after.detach())  # type: ignore[list-item]


def run(strategy: str, text: str, steps: int, to: Path) -> dict[str, Any]:
    """In this process."""
    torch.set_num_threads(1)
    warm = Task(text, 3)
    warm.by_torch() if strategy == "torch" else warm.hypergradient(strategy)
    base = resident("VmHWM")
    task = Task(text, steps)
    cpu = time.process_time()
    result: dict[str, Any] = {"weights": sum(p.numel() for p in task.model.parameters())}
    if strategy == "torch":
        result["validation"] = task.by_torch()
    else:
        found, report, result["validation"] = task.hypergradient(strategy)
        torch.save(found, to)
        result |= {"bits": report.information_bits, "limit": report.limit_bits, "forward": report.forward_seconds}
        result |= {"restored": report.restored, "below_eps": report.weights_below_eps}
    result |= {"cpu": time.process_time() - cpu, "megabytes": (resident("VmHWM") - base) / 1e6}
    return result


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="a text file of 19,000 characters or more")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=["reversible", "snapshots", "checkpoint"])
    parser.add_argument("--only", help=argparse.SUPPRESS)
    parser.add_argument("--to", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.only:
        print(json.dumps(run(options.only, options.text.read_text(), options.steps, options.to)))
        return
    print(f"{conditions(threads=1)}, {when()}")
    with tempfile.TemporaryDirectory() as folder:
        results, found = {}, {}
        for strategy in ["torch", *options.strategies]:
            to = Path(folder) / f"{strategy}.pt"
            own = ["--text", str(options.text), "--steps", str(options.steps), "--only", strategy, "--to", str(to)]
            done = subprocess.run([sys.executable, "-m", "bench.transformer", *own], capture_output=True, text=True, check=True)
            results[strategy] = json.loads(done.stdout.splitlines()[-1])
            if strategy != "torch":
                found[strategy] = torch.load(to)
    plain = results["torch"]
    print(f"{plain['weights']:,} weights, {options.steps} steps of AdamW; torch.optim.AdamW {plain['cpu']:.1f} s")
    print(f"{'':16}{'CPU s':>8}{'of training':>13}{'MB':>8}{'bits':>8}{'restored':>10}{'val. loss':>11}")
    for strategy, r in results.items():
        kept = f"{r['bits']:.4f}" if r.get("bits") else ""
        print(
            f"{strategy:16}{r['cpu']:8.1f}{r['cpu'] / plain['cpu']:13.2f}{r['megabytes']:8.0f}{kept:>8}"
            f"{r.get('restored', '')!s:>10}{r['validation']:11.5f}"
        )
    first = options.strategies[0]
    for other in options.strategies[1:]:
        apart = [float((a - b).norm() / b.norm()) for a, b in zip(found[first], found[other], strict=True)]
        print(f"{first} from {other}: learning rates {apart[0]:.1e}, weights of sequences {apart[1]:.1e}")


if __name__ == "__main__":
    main()
