"""An outer loop with random numbers, momentum, a schedule and a set, to be killed at any moment; as a program, too.

python loop_problem.py DIRECTORY LOG ESTIMATOR: prints all that comes out.
"""

from __future__ import annotations

import sys
import time

import torch

import reversible_hypergrad as rh

ESTIMATORS = {"whole": rh.Snapshots(), "online": rh.Windowed(2), "random": rh.EvoGrad(sigma=0.1), "fitted": rh.HyperDistill(0.9)}


class Interrupted(BaseException):
    pass


def noisy(k):
    return torch.randn(6, 8, 3, generator=torch.Generator().manual_seed(k))


def outcome(directory, log, estimator="whole", at=None, slow=0.0, **more):
    """The result of a loop, and how many tasks were made; interrupted in the ``at``-th."""
    torch.manual_seed(0)
    model, count = torch.nn.Linear(3, 1), 0
    h = {
        "l2": torch.full((3,), -2.0, requires_grad=True),
        "mix": torch.tensor([0.2, 0.3, 0.5], requires_grad=True),
        "fixed": torch.ones(2),
    }
    more = {
        "steps": 12,
        "score": lambda h, k: -float(h["l2"].square().sum()),
        "score_every": 3,
        "resume": None if directory is None else rh.Resume(directory, 1),
        **more,
    }

    def task(k, h):
        nonlocal count
        count += 1
        if count == at:
            raise Interrupted
        time.sleep(slow)
        x = noisy(k) + 0.1 * torch.randn(())  # of torch's global random numbers
        return rh.Task(
            model,
            lambda model, x, h: (model(x * h["mix"]) - 1).square().mean() + (h["l2"].exp() * model.weight.square()).sum(),
            x,
            outer=lambda weights: (torch.func.functional_call(model, weights, x[0]) - 1).square().mean(),
            optimizer=rh.SGD(0.1, momentum=0.9),
            hyperparameters=h,
            seed=k,
        )

    loop = rh.Bilevel(
        task,
        h,
        ESTIMATORS[estimator],
        torch.optim.Adam,
        lr={"l2": 0.1, "mix": 0.05},
        scheduler=lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 12),
        sets={"mix": rh.Simplex()},
        guard=rh.Guard(1.1, after=1),
        amsgrad=True,
    )
    return loop.run(log=log, **more), count


def plain(result, log):
    """All that has to be the same, whatever was interrupted: no times."""
    rows = [",".join(line.split(",")[:-2]) for line in open(log).read().splitlines()]  # noqa: SIM115
    records = [[value for name, value in record.items() if "seconds" not in name] for record in result.history]
    tensors = [result.h["l2"], result.h["mix"], result.last["l2"], result.last["mix"]]
    numbers = [result.best, result.best_step, result.refused, result.inner_steps, result.stopped]
    return repr((rows, records, [t.detach().numpy().tobytes().hex() for t in tensors], numbers, torch.rand(()).item()))


if __name__ == "__main__":
    torch.set_num_threads(1)
    found, _ = outcome(sys.argv[1], sys.argv[2], sys.argv[3], slow=0.05)
    print(plain(found, sys.argv[2]))
