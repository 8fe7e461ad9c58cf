"""A run that is kept in a directory, to be interrupted at any moment; as a program, to be killed.

python kept_run.py DIRECTORY STRATEGY: prints a digest of all that comes out.
"""

from __future__ import annotations

import hashlib
import sys

import torch
from runs import STRATEGIES, Run

import reversible_hypergrad as rh

EVERY = 5


class Interrupted(BaseException):
    pass


def outcome(strategy, directory, name="mlp", rule="AdamW", at=None, **more):
    """Everything that a run and its backward give, and how often the loss was evaluated; interrupted when it is for the ``at``-th
    time."""
    run, evaluations = Run(rule, name, torch.float32), 0
    plain = run.loss

    def loss(*given):
        nonlocal evaluations
        evaluations += 1
        if evaluations == at:
            raise Interrupted
        return plain(*given)

    run.loss = loss
    readouts = {"ema": rh.ExponentialAverage(0.9), "curve": rh.LossAt(plain, slice(0, 6), [0, 4, 10])}
    resume = None if directory is None else rh.Resume(directory, EVERY)
    more = {"check_derivatives": False, **more}  # it evaluates the loss, too, in the first of equal runs
    trained = run.train(STRATEGIES[strategy], readouts=readouts, resume=resume, **more)
    value = run.value(trained) + run.value(trained.readouts["ema"]) + trained.readouts["curve"].sum()
    found = run.gradients(value)
    everything = [value, *trained.values(), *trained.buffers.values(), *found]
    return [t.detach() for t in everything], evaluations


if __name__ == "__main__":
    torch.set_num_threads(1)
    results, _ = outcome(sys.argv[2], sys.argv[1], name="transformer with dropout")
    print(hashlib.blake2b(b"".join(t.numpy().tobytes() for t in results)).hexdigest())
