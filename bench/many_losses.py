"""Many losses in one walk back: what each further one takes, beside walks of their own.

    python -m bench.many_losses [--losses 1 4 16] [--steps 200] [--repeats 3] [--model mlp] [--compile]

The task is the race's (bench.race), with one loss per group of validation examples; one thread. Printed: CPU seconds of rh.train
and rh.hypergradients together, and of a run and a backward for each loss, in units of plain training by hand; what a further loss
takes; and whether the gradients have the bits of a walk of their own.
"""

import argparse
import statistics
import time

import torch
import torch.nn.functional as F
from torch import Tensor

import reversible_hypergrad as rh
from bench import handwritten
from bench.methods import train
from bench.tasks import TRAINING_EXAMPLES, Task
from bench.timing import conditions, when


def losses_of(task: Task, trained: rh.TrainedWeights, count: int) -> list[Tensor]:
    """Of the validation examples in ``count`` groups."""
    logits = task.call(list(trained.values()), task.x[TRAINING_EXAMPLES:])
    each = F.cross_entropy(logits, task.y[TRAINING_EXAMPLES:], reduction="none")
    return [part.mean() for part in each.tensor_split(count)]


def together(task: Task, steps: int, count: int, compile: bool) -> list[list[Tensor]]:
    return rh.hypergradients(losses_of(task, train(task, steps, compile=compile), count), task.penalty)


def own_walk(task: Task, steps: int, count: int, compile: bool) -> list[Tensor]:
    """Of the last one."""
    return list(torch.autograd.grad(losses_of(task, train(task, steps, compile=compile), count)[-1], task.penalty))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--losses", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3, help="all take turns; ratios are medians over turns")
    parser.add_argument("--model", default="mlp")
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    task, steps = Task(options.model), options.steps
    how = "compiled" if options.compile else "eager"
    print(f"{conditions()}, {when()}\n{options.model}, {how}, {steps} steps, medians of {options.repeats}, in training runs")
    handwritten.training(task, 20)
    together(task, 20, 2, options.compile)
    own_walk(task, 20, 2, options.compile)
    turns: list[dict[str, float]] = []
    for _ in range(options.repeats):
        seconds = {}
        began = time.process_time()
        handwritten.training(task, steps)
        unit = time.process_time() - began
        for count in options.losses:
            began = time.process_time()
            found = together(task, steps, count, options.compile)
            seconds[f"{count}"] = (time.process_time() - began) / unit
        began = time.process_time()
        alone = own_walk(task, steps, count, options.compile)
        seconds["alone"] = (time.process_time() - began) / unit
        same = all(torch.equal(a, b) for a, b in zip(found[-1], alone, strict=True))
        turns.append(seconds)
    medians = {name: statistics.median(turn[name] for turn in turns) for name in turns[0]}
    print(f"{'losses':>8}{'together':>10}{'one by one':>12}{'each further one':>18}")
    first = medians[f"{options.losses[0]}"]
    for count in options.losses:
        further = (medians[f"{count}"] - first) / (count - options.losses[0]) if count > options.losses[0] else 0.0
        print(f"{count:8}{medians[f'{count}']:10.2f}{count * medians['alone']:12.2f}{further:18.2f}")
    print(f"the last one of {count} has the bits of a walk of its own: {same}")


if __name__ == "__main__":
    main()
