"""Where hypergradients stop being useful: chaos at large learning rates.

    python -m bench.chaos [--steps 100] [--points 61] [--output docs/chaos.png]

Trains an MLP 64-50-50-10 on scikit-learn's digits at many fixed learning rates (momentum 0.9, batches of 100) and draws the final
training loss as a function of log lr, with the exact hypergradient at each point beside the slope of the curve. After Maclaurin,
Duvenaud and Adams 2015, section 4: beyond the edge of stability the hypergradient stays exact and explodes, and no longer says
anything about the curve at the scale of a useful step.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import reversible_hypergrad as rh
from bench.timing import conditions


def curve(steps: int, points: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """log lr, final training loss, and d(loss)/d(log lr)."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 50), nn.Tanh(), nn.Linear(50, 50), nn.Tanh(), nn.Linear(50, 10))
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        index = torch.arange(step * 100, step * 100 + 100) % len(x)
        return x[index], y[index]

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor], _: None) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])

    grid = np.linspace(np.log(0.01), np.log(1.0), points)
    losses, slopes = [], []
    for value in grid:
        log_lr = torch.tensor(value, dtype=torch.float64, requires_grad=True)
        trained = rh.train(model, loss, batch, steps=steps, optimizer=rh.SGD(lr=log_lr.exp()))
        final = F.cross_entropy(torch.func.functional_call(model, trained, x), y)
        (slope,) = torch.autograd.grad(final, log_lr)
        losses.append(final.item())
        slopes.append(slope.item())
    return grid, np.array(losses), np.array(slopes)


def draw(grid: np.ndarray, losses: np.ndarray, slopes: np.ndarray, caption: str, output: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    numeric = np.gradient(losses, grid)
    rates = np.exp(grid)
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(6, 5.4), sharex=True, constrained_layout=True)
    top.loglog(rates, losses, color="#0072B2", marker=".", markersize=4, linewidth=1)
    top.set_ylabel("final training loss (nats)")
    bottom.semilogx(rates, slopes, color="#D55E00", marker=".", markersize=4, linewidth=1, label="exact hypergradient")
    bottom.semilogx(rates, numeric, color="#0072B2", linewidth=1, linestyle="--", label="slope of the curve above")
    bottom.set_yscale("symlog", linthresh=1.0)
    bottom.set_yticks([-1e30, -1e20, -1e10, 0, 1e10, 1e20, 1e30])
    bottom.axhline(0, color="0.7", linewidth=0.6)
    bottom.set_ylabel("d loss / d log lr (nats)")
    bottom.set_xlabel("learning rate, the same for all steps")
    bottom.legend(frameon=False, loc="upper left")
    figure.savefig(output, dpi=150, metadata={"Description": caption})


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--points", type=int, default=61)
    parser.add_argument("--output", type=Path, default=Path("docs/chaos.png"))
    options = parser.parse_args(arguments)
    grid, losses, slopes = curve(options.steps, options.points)
    numeric = np.gradient(losses, grid)
    caption = f"{options.steps} steps, {options.points} learning rates; {conditions()}"
    print(caption)
    for low, high in ((0.01, 0.1), (0.1, 0.25), (0.25, 1.0)):
        inside = (np.exp(grid) >= low) & (np.exp(grid) <= high)
        if inside.sum() > 2:
            correlation = np.corrcoef(slopes[inside], numeric[inside])[0, 1]
            largest = np.abs(slopes[inside]).max()
            print(f"lr {low}-{high}: correlation with the numeric slope {correlation:.2f}, largest hypergradient {largest:.3g}")
    draw(grid, losses, slopes, caption, options.output)


if __name__ == "__main__":
    main()
