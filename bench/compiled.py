"""What compile=True is worth: one hypergradient, eager and compiled, in units of plain training by torch.

    python -m bench.compiled [--models mlp conv transformer] [--steps 200] [--repeats 3] [--text FILE]

One thread, one process, in turns; the first turn, in which all is compiled, is left out and its compile seconds reported apart.
The models are in training mode: an MLP 64-256-256-10 and a conv net with batch norm on digits, by SGD; a character transformer of
two layers with dropout on the text of --text (without one, on made-up characters), by AdamW. The hypergradient is by one log L2
penalty per tensor and a learning rate per step.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import reversible_hypergrad as rh
from bench.timing import conditions, when

WIDTH, HEADS, CONTEXT = 64, 4, 32


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 256), nn.Tanh(), nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 10))


def conv() -> nn.Module:
    layers: list[nn.Module] = [nn.Unflatten(1, (1, 8, 8))]
    for i, o in ((1, 16), (16, 32)):
        layers += [nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.Tanh()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 64, 10))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.mix, self.out = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH)
        self.wide, self.narrow, self.drop = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH), nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        count, length, _ = x.shape
        q, k, v = self.mix(self.norms[0](x)).view(count, length, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-1, -2) / math.sqrt(WIDTH // HEADS)
        mask = torch.ones(length, length, dtype=torch.bool).tril()
        mixed = scores.masked_fill(~mask, -torch.inf).softmax(-1) @ v
        x = x + self.drop(self.out(mixed.transpose(1, 2).reshape(x.shape)))
        return x + self.drop(self.narrow(F.gelu(self.wide(self.norms[1](x)))))


class Transformer(nn.Module):
    def __init__(self, characters: int) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(characters, WIDTH), nn.Parameter(0.02 * torch.randn(CONTEXT, WIDTH))
        self.blocks, self.head = nn.Sequential(Block(), Block()), nn.Linear(WIDTH, characters)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.blocks(self.embed(tokens) + self.place)).flatten(0, 1)  # type: ignore[no-any-return]


class Task:
    """A model, batches, and its torch optimizer beside the rule of the same steps."""

    def __init__(self, name: str, text: str, steps: int) -> None:
        torch.manual_seed(0)
        self.steps, self.is_text = steps, name == "transformer"
        if self.is_text:
            alphabet = sorted(set(text))
            tokens = torch.tensor([alphabet.index(c) for c in text[: 512 * (CONTEXT + 1)]])
            rows = tokens[: len(tokens) // (CONTEXT + 1) * (CONTEXT + 1)].view(-1, CONTEXT + 1)
            self.x, self.y, self.size = rows[:, :-1], rows[:, 1:], 8
        else:
            images, labels = load_digits(return_X_y=True)
            self.x, self.y, self.size = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels), 128
        self.model = Transformer(len(alphabet)) if self.is_text else {"mlp": mlp, "conv": conv}[name]()
        self.lr = torch.full((steps, 1), 1e-3 if self.is_text else 0.1, requires_grad=True)
        self.penalty = {n: torch.tensor(-9.0, requires_grad=True) for n, _ in self.model.named_parameters()}

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        index = torch.arange(step * self.size, (step + 1) * self.size) % len(self.x)
        return self.x[index], self.y[index].flatten()

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor], penalty: dict[str, Tensor]) -> Tensor:
        decay = torch.stack([penalty[n].exp() * w.square().sum() for n, w in model.named_parameters()]).sum()
        return F.cross_entropy(model(batch[0]), batch[1]) + decay

    def train(self) -> None:
        """By torch."""
        rate, weights = self.lr.detach()[0].item(), list(self.model.parameters())
        before = [w.detach().clone() for w in weights]
        optimizer: torch.optim.Optimizer = (
            torch.optim.AdamW(weights, rate) if self.is_text else torch.optim.SGD(weights, rate, momentum=0.9)
        )
        for step in range(self.steps):
            optimizer.zero_grad()
            self.loss(self.model, self.batch(step), self.penalty).backward(inputs=weights)
            optimizer.step()
        with torch.no_grad():
            for w, b in zip(weights, before, strict=True):
                w.copy_(b)

    def hypergradient(self, compile: bool) -> rh.TrainedWeights:
        rule = rh.AdamW(self.lr) if self.is_text else rh.SGD(self.lr, momentum=0.9)
        arguments: dict[str, Any] = {"optimizer": rule, "hyperparameters": self.penalty, "compile": compile}
        trained = rh.train(self.model, self.loss, self.batch, steps=self.steps, **arguments)
        value = sum(w.square().sum() for w in trained.values())
        assert isinstance(value, Tensor)
        torch.autograd.grad(value, [self.lr, *self.penalty.values()])
        return trained


def seconds_of(call: Callable[[], object]) -> float:
    began = time.process_time()
    call()
    return time.process_time() - began


def row(task: Task, name: str, repeats: int) -> str:
    report = task.hypergradient(True).report
    calls = [task.train, lambda: task.hypergradient(False), lambda: task.hypergradient(True)]
    turns = [[seconds_of(call) for call in calls] for _ in range(repeats)]
    plain = statistics.median(turn[0] for turn in turns)
    eager, compiled = (statistics.median(turn[i] / turn[0] for turn in turns) for i in (1, 2))
    count = sum(p.numel() for p in task.model.parameters())
    alike, took = str(report.compiled_alike), report.compile_seconds
    return f"{name:12}{count:9,}{plain:13.2f}{eager:8.2f}{compiled:10.2f}{alike:>7}{took:11.0f}{report.restored!s:>10}"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["mlp", "conv", "transformer"], choices=["mlp", "conv", "transformer"])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--text", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    text = options.text.read_text() if options.text else "".join(chr(97 + i * i % 26) for i in range(20_000))
    print(f"{conditions()}, {when()}; {options.steps} steps, medians of {options.repeats} turns")
    columns = f"{'model':12}{'weights':>9}{'training, s':>13}{'eager':>8}{'compiled':>10}{'alike':>7}"
    print(f"{columns}{'compile, s':>11}{'restored':>10}")
    for name in options.models:
        print(row(Task(name, text, options.steps), name, options.repeats), flush=True)


if __name__ == "__main__":
    main()
