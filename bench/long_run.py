"""A hundred thousand steps of a small model: memory per weight and time of exact reversal in segments.

    python -m bench.long_run [--steps 100000] [--segments auto]

The model is linear, 200 to 200 (40,200 weights), the batches have 4 examples: what a step needs beside the weights does not
count then. The hypergradient is that of the trained weights' squared norm by a log L2 penalty per tensor, at momentum 0.9.
Memory is counted twice, over the number of weights: what the run says it kept, and the peak of resident memory above the process
after a warm-up of the same kind. Time is CPU seconds, also of plain training by torch.optim.SGD. The run ends with the check that
the initial weights came back bit for bit, or with an error.
"""

import argparse
import time

import torch
from torch import Tensor, nn

import reversible_hypergrad as rh
from bench.measure import resident
from bench.timing import conditions

LR, MOMENTUM, WIDTH, BATCHES = 0.05, 0.9, 200, 50


class LongTask:
    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Linear(WIDTH, WIDTH)
        self.x, self.y = torch.randn(BATCHES, 4, WIDTH), torch.randn(BATCHES, 4, WIDTH)
        self.log_l2 = torch.tensor([-6.0, -6.0], requires_grad=True)

    def loss(self, model: nn.Module, step: int, log_l2: Tensor) -> Tensor:
        error = (model(self.x[step % BATCHES]) - self.y[step % BATCHES]).square().mean()
        return error + torch.stack([a.exp() * p.square().sum() for a, p in zip(log_l2, model.parameters(), strict=True)]).sum()

    def train(self, steps: int) -> None:
        optimizer = torch.optim.SGD(self.model.parameters(), lr=LR, momentum=MOMENTUM)
        for step in range(steps):
            optimizer.zero_grad()
            self.loss(self.model, step, self.log_l2.detach()).backward()
            optimizer.step()

    def hypergradient(self, steps: int, segments: int | str) -> rh.training.Report:
        trained = rh.train(
            self.model,
            self.loss,
            lambda step: step,
            steps=steps,
            optimizer=rh.SGD(lr=LR, momentum=MOMENTUM),
            hyperparameters=self.log_l2,
            adjoint=rh.Reversible(segments=segments),
        )
        torch.autograd.grad(sum(w.square().sum() for w in trained.values()), self.log_l2)
        return trained.report


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--segments", type=lambda text: text if text == "auto" else int(text), default="auto")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print(conditions(threads=1))
    began = time.process_time()
    LongTask().train(options.steps)
    training = time.process_time() - began
    task = LongTask()
    task.hypergradient(10, 2)
    before, began = resident("VmRSS"), time.process_time()
    report = task.hypergradient(options.steps, options.segments)
    seconds, peak = time.process_time() - began, resident("VmHWM") - before
    # States between segments and a segment's bits trade one for the other: together they never pass the larger maximum by much.
    kept = report.state_bytes + max(report.information_bytes, report.kept_bytes) + report.log_bytes
    print(f"T = {report.steps:,}, {report.weights:,} weights, {report.adjoint}")
    print(f"kept {kept / report.weights:.0f} bytes per weight; resident memory grew by {peak / report.weights:.0f}")
    print(f"{report.steps_again:,} steps trained again; initial weights restored: {report.restored}")
    print(f"{seconds:.1f} CPU s, {seconds / training:.2f} times plain training ({training:.1f} s)")


if __name__ == "__main__":
    main()
