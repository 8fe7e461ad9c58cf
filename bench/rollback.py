"""Undoing AdamW in floats, as pipelines do that roll a refused step back, beside undoing it in integers.

    python -m bench.rollback [--steps 1 100 10000] [--weights 10000]

In floats the update is added back, and the moments, less their increments, are divided by their decays: each step back rounds,
and divides what earlier ones have rounded. Printed: the largest error of a weight, and of m and s, in units of the largest of
each, after so many steps forth and back with the same gradients (normal numbers, 0.1 of the start's).

The float undo is that of Qi et al., *Zero Bubble Pipeline Parallelism*, ICLR 2024.
"""

import argparse

import torch
from torch import Tensor

import reversible_hypergrad as rh
from bench.timing import conditions, when

LR, BETAS, EPS, DECAY = 1e-3, (0.9, 0.999), 1e-8, 0.01


def gradient_of(step: int, like: Tensor) -> Tensor:
    return 0.1 * torch.randn(like.shape, generator=torch.Generator().manual_seed(step))


class Floats:
    """AdamW in float32, forth and back."""

    def __init__(self, w: Tensor) -> None:
        self.w, self.m, self.s = w.clone(), torch.zeros_like(w), torch.zeros_like(w)

    def _update(self, t: int) -> Tensor:
        m, s = self.m / (1 - BETAS[0] ** (t + 1)), self.s / (1 - BETAS[1] ** (t + 1))
        return LR * m / (s.sqrt() + EPS)

    def step(self, t: int) -> None:
        g = gradient_of(t, self.w)
        self.m = BETAS[0] * self.m + (1 - BETAS[0]) * g
        self.s = BETAS[1] * self.s + (1 - BETAS[1]) * g * g
        self.w = self.w * (1 - LR * DECAY) - self._update(t)

    def back(self, t: int) -> None:
        g = gradient_of(t, self.w)
        self.w = (self.w + self._update(t)) / (1 - LR * DECAY)
        self.m = (self.m - (1 - BETAS[0]) * g) / BETAS[0]
        self.s = ((self.s - (1 - BETAS[1]) * g * g) / BETAS[1]).clamp(min=0)


def in_floats(start: Tensor, steps: int) -> tuple[float, float, float]:
    """Errors of w, m and s, relative to the largest of each."""
    run = Floats(start)
    for t in range(steps):
        run.step(t)
    largest = float(run.m.abs().max()), float(run.s.max())
    for t in reversed(range(steps)):
        run.back(t)
    errors = (run.w - start) / start.abs().max(), run.m / largest[0], run.s / largest[1]
    of_w, of_m, of_s = (float(e.abs().nan_to_num(torch.inf).max()) for e in errors)
    return of_w, of_m, of_s


def in_integers(start: Tensor, steps: int) -> tuple[bool, float]:
    """Whether every bit is back, and the bits kept per weight and step."""
    weight = torch.nn.Parameter(start.clone())
    optimizer = rh.ReversibleAdamW([weight], lr=LR, betas=BETAS, eps=EPS, weight_decay=DECAY)

    def closure_of(t: int) -> object:
        def closure() -> None:
            weight.grad = gradient_of(t, weight)

        return closure

    for t in range(steps):
        optimizer.step(closure_of(t))  # type: ignore[arg-type]
    kept = optimizer.memory()["information_bits_per_weight_step"]
    optimizer.rewind(closure_of(t) for t in reversed(range(steps)))  # type: ignore[misc]
    return torch.equal(weight.detach().view(torch.int32), start.view(torch.int32)), kept


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 100, 10_000])
    parser.add_argument("--weights", type=int, default=10_000)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print(f"{conditions(threads=1)}, {when()}")
    start = torch.randn(options.weights, generator=torch.Generator().manual_seed(-1))
    print(f"{'steps':>8}{'floats: error of w':>20}{'of m':>10}{'of s':>10}{'integers: exact':>18}{'bits kept':>11}")
    for steps in options.steps:
        of_w, of_m, of_s = in_floats(start, steps)
        exact, kept = in_integers(start, steps)
        print(f"{steps:8}{of_w:20.1e}{of_m:10.1e}{of_s:10.1e}{exact!s:>18}{kept:11.4f}")


if __name__ == "__main__":
    main()
