"""Whether the number of hyperparameters matters: 10 and 10,000 example weights in the same training run.

    python -m bench.hyperparameters [--steps 200] [--turns 7]

An MLP 64-256-10 on 10,000 random examples, batches of 128; each example's loss is weighted by a hyperparameter, of which there
are 10 (shared by every tenth example) or 10,000. Prints the seconds of one hypergradient, taking turns, and the ratio.
"""

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reversible_hypergrad as rh
from bench.timing import conditions, in_turns, median, ratio

EXAMPLES, BATCH = 10_000, 128


def hypergradient(count: int, steps: int) -> Tensor:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.Tanh(), nn.Linear(256, 10))
    x, y = torch.randn(EXAMPLES, 64), torch.randint(10, (EXAMPLES,))
    log_weights = torch.zeros(count, requires_grad=True)

    def loss(model: nn.Module, step: int, log_weights: Tensor) -> Tensor:
        index = torch.arange(step * BATCH, (step + 1) * BATCH) % EXAMPLES
        losses = F.cross_entropy(model(x[index]), y[index], reduction="none")
        return (log_weights[index % count].exp() * losses).mean()

    trained = rh.train(model, loss, range(steps), optimizer=rh.SGD(lr=0.1), hyperparameters=log_weights)
    F.cross_entropy(torch.func.functional_call(model, trained, x[:1000]), y[:1000]).backward()
    assert log_weights.grad is not None
    return log_weights.grad


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--turns", type=int, default=7)
    options = parser.parse_args(arguments)
    print(conditions())
    few, many = 10, EXAMPLES
    timed = in_turns({str(n): lambda n=n: hypergradient(n, options.steps) for n in (few, many)}, options.turns)  # type: ignore[misc]
    for name, seconds in timed.items():
        print(f"{int(name):7,} hyperparameters: {median(seconds):.3f} s")
    low, middle, high = ratio(timed[str(many)], timed[str(few)])
    print(f"ratio {middle:.2f}, quartiles {low:.2f}-{high:.2f}")


if __name__ == "__main__":
    main()
