"""Finds wrong labels: learns a weight for each of 5,000 training examples, half of whose labels were changed.

    python examples/hyper_cleaning.py --data DIR [--model mlp] [--seeds 3] [--out cleaned]

DIR holds MNIST's four IDX files, or the same of Fashion-MNIST. 5,000 examples with clean labels validate, 10,000 test. The
weights are the hyperparameters of a training run, of a softmax regression or of a network 784-300-10: the loss of an example
counts by its weight, from 0 to 1, and the outer loss is that of the validation examples after training. Three ways to their
gradient: through the whole run, exactly; through its last 10 steps; and through one step at a time, while training goes on.

Prints per way the F1 of finding the changed labels (weight below a half; weight 0), and the test accuracy of a model that is
trained anew on weighted training and validation examples together, beside models that do not use the weights. Writes results.csv
and weights.png. A split takes about two minutes of one core, of the network five.

After the data hyper-cleaning of Franceschi, Donini, Frasconi, Pontil, *Forward and Reverse Gradient-Based Hyperparameter
Optimization*, ICML 2017, who train without momentum. With momentum 0.9 a twentieth of their 2,000 steps does the same.
"""

import argparse
import csv
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import reversible_hypergrad as rh

# Per model: of inner runs, and of the models that are trained anew.
LR = {"linear": 0.1, "mlp": 0.3}
STEPS = {"linear": 100, "mlp": 200}
STEPS_ANEW = 600


class Cleaning:
    """One split of the data, by ``seed``."""

    def __init__(self, data: rh.datasets.MNIST, model: str, examples: int, seed: int) -> None:
        x, y = data.train.x.flatten(1), data.train.y
        self.train, self.validation = rh.datasets.split(x, y, [examples, examples], seed=seed)
        self.test = data.test
        self.labels, self.is_wrong = rh.datasets.flipped(self.train.y, share=0.5, classes=10, seed=seed)
        torch.manual_seed(seed)
        self.lr, self.steps = LR[model], STEPS[model]
        self.model: nn.Module = nn.Linear(784, 10)
        if model == "mlp":
            self.model = nn.Sequential(nn.Linear(784, 300), nn.Sigmoid(), nn.Linear(300, 10))
        else:
            for p in self.model.parameters():
                nn.init.zeros_(p)

    def task(self, k: int, h: Tensor, momentum: float = 0.9, lr: float | None = None, steps: int | None = None) -> rh.Task:
        """A run on the training examples with weights ``h``, in full batches."""
        return rh.Task(
            self.model,
            weighted,
            lambda step: (self.train.x, self.labels),
            outer=lambda weights: F.cross_entropy(self.outputs(weights, self.validation.x), self.validation.y),
            optimizer=rh.SGD(self.lr if lr is None else lr, momentum=momentum),
            steps=self.steps if steps is None else steps,
            hyperparameters=h,
        )

    def outputs(self, weights: Any, x: Tensor) -> Tensor:
        return torch.func.functional_call(self.model, dict(weights), x)

    def accuracy_anew(self, x: Tensor, y: Tensor, weights: Tensor) -> float:
        """On the test examples, of a model trained on these for a fixed number of steps."""
        with torch.no_grad():
            trained = rh.train(
                self.model,
                weighted,
                lambda step: (x, y),
                steps=STEPS_ANEW,
                optimizer=rh.SGD(self.lr, momentum=0.9),
                hyperparameters=weights,
            )
            right = self.outputs(trained, self.test.x.flatten(1)).argmax(1) == self.test.y
        return float(right.double().mean())

    def with_validation(self, labels: Tensor, weights: Tensor) -> float:
        """The same of training and validation examples together."""
        x, y = torch.cat([self.train.x, self.validation.x]), torch.cat([labels, self.validation.y])
        return self.accuracy_anew(x, y, torch.cat([weights, torch.ones(len(self.validation))]))

    def f1(self, found: Tensor) -> float:
        hits = float((found & self.is_wrong).sum())
        return 2 * hits / float(found.sum() + self.is_wrong.sum())


def weighted(model: nn.Module, batch: tuple[Tensor, Tensor], weights: Tensor) -> Tensor:
    return 2 * (weights * F.cross_entropy(model(batch[0]), batch[1], reduction="none")).mean()


def learned(problem: Cleaning, way: str, hypergradients: int) -> rh.bilevel.Result:
    """The weights, from a half each, by Adam."""
    half = torch.full((len(problem.train),), 0.5, requires_grad=True)
    sets = rh.Box(0, 1)
    if way == "one step at a time":

        def online(k: int, h: Tensor) -> rh.Task:
            return problem.task(k, h, momentum=0.0, lr=5 * problem.lr, steps=15 * hypergradients)

        return rh.Bilevel(online, half, rh.OneStep(), torch.optim.Adam, lr=0.01, sets=sets).run(steps=15 * hypergradients)
    estimator = rh.Truncated(10) if way == "last 10 steps" else rh.Reversible()
    return rh.Bilevel(problem.task, half, estimator, torch.optim.Adam, lr=0.1, sets=sets).run(steps=hypergradients)


def rows_of(problem: Cleaning, hypergradients: int) -> tuple[list[dict[str, Any]], Tensor]:
    """Name, F1s, test accuracy and CPU seconds of each way, and the weights of the exact one."""
    rows, exact = [], torch.empty(0)
    for way in ("whole run, exact", "last 10 steps", "one step at a time"):
        began = time.process_time()
        weights = learned(problem, way, hypergradients).last.detach()
        seconds = time.process_time() - began
        exact = weights if way == "whole run, exact" else exact
        f1, f1_at_0, test = problem.f1(weights < 0.5), problem.f1(weights <= 0), problem.with_validation(problem.labels, weights)
        rows.append({"way": way, "f1": f1, "f1_at_0": f1_at_0, "test": test, "seconds": seconds})
    ones = torch.ones(len(problem.train))
    others: dict[str, Callable[[], float]] = {
        "oracle: all clean labels": lambda: problem.with_validation(problem.labels, (~problem.is_wrong).float()),
        "all labels": lambda: problem.with_validation(problem.labels, ones),
        "validation examples alone": lambda: problem.accuracy_anew(
            problem.validation.x, problem.validation.y, torch.ones(len(problem.validation))
        ),
    }
    rows += [{"way": way, "f1": None, "f1_at_0": None, "test": test(), "seconds": None} for way, test in others.items()]
    return rows, exact


def shown(values: list[float | None]) -> str:
    numbers = [value for value in values if value is not None]
    if not numbers:
        return ""
    spread = f" ± {statistics.stdev(numbers):.3f}" if len(numbers) > 1 else ""
    return f"{statistics.fmean(numbers):.3f}{spread}"


def figure(weights: Tensor, is_wrong: Tensor, path: Path) -> None:
    import matplotlib.pyplot as plt

    drawing, axes = plt.subplots(figsize=(5, 3), layout="constrained")
    axes.hist([weights[~is_wrong].numpy(), weights[is_wrong].numpy()], bins=40, label=["right labels", "changed labels"])
    axes.set(xlabel="learned weight", ylabel="examples", yscale="log")
    axes.legend()
    drawing.savefig(path, dpi=150)
    plt.close(drawing)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of MNIST's IDX files")
    parser.add_argument("--model", choices=list(LR), default="linear")
    parser.add_argument("--seeds", type=int, default=3, help="splits of the data")
    parser.add_argument("--hypergradients", type=int, default=40)
    parser.add_argument("--examples", type=int, default=5000, help="to train, and as many to validate")
    parser.add_argument("--out", type=Path, default=Path("cleaned"))
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    data = rh.datasets.MNIST(given.data)
    found: dict[str, list[dict[str, Any]]] = {}
    for seed in range(given.seeds):
        problem = Cleaning(data, given.model, given.examples, seed)
        rows, weights = rows_of(problem, given.hypergradients)
        for row in rows:
            found.setdefault(row["way"], []).append(row)
    given.out.mkdir(parents=True, exist_ok=True)
    columns = ["f1", "f1_at_0", "test", "seconds"]
    with (given.out / "results.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["seed", "way", *columns])
        writer.writerows([seed, way, *(row[c] for c in columns)] for way, rows in found.items() for seed, row in enumerate(rows))
    figure(weights, problem.is_wrong, given.out / "weights.png")
    print(f"{'':27}{'F1':>16}{'F1 at 0':>16}{'test accuracy':>16}{'CPU seconds':>18}")
    for way, rows in found.items():
        print(f"{way:27}" + "".join(f"{shown([row[c] for row in rows]):>{18 if c == 'seconds' else 16}}" for c in columns))
    print(f"{given.seeds} splits; written to {given.out}/")


if __name__ == "__main__":
    main()
