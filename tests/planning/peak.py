"""Run as a script: the peak resident memory of one hypergradient above what the process had before, in bytes.

    python tests/planning/peak.py "rh.Snapshots()" STEPS MOMENTUM [BUDGET [CLIP [ACCUMULATE]]]

The model is wide and the batch small, so that activations do not count. Small allocations would be kept by the allocator
after they are freed: MALLOC_MMAP_THRESHOLD_ must be set low before Python starts.
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path

import torch

import reversible_hypergrad as rh

WIDTH, LAYERS, HYPERPARAMETERS = 300, 8, 5


def model(width=WIDTH):
    return torch.nn.Sequential(*[m for _ in range(LAYERS) for m in (torch.nn.Linear(width, width), torch.nn.Tanh())])


def resident():
    """Bytes now, and at most so far, but without what is mapped from files: how much of a library a touch of its code brings in
    is up to the system, and differs by 2 MB between two copies of the same files."""
    status = Path("/proc/self/status").read_text().splitlines()
    fields = {
        line.split(":")[0]: 1024 * int(line.split()[1]) for line in status if line.startswith(("VmRSS", "VmHWM", "RssFile"))
    }
    return fields["VmRSS"] - fields["RssFile"], fields["VmHWM"] - fields["RssFile"]


def hypergradient(adjoint, steps, momentum, net, budget=None, clip=None, accumulate=1):
    batch = torch.randn(2, net[0].in_features)
    scale = torch.zeros(HYPERPARAMETERS, requires_grad=True)
    trained = rh.train(
        net,
        lambda model, batch, scale: (model(batch) - scale.exp().sum()).square().mean(),
        lambda step: batch,
        steps=steps,
        optimizer=rh.SGD(lr=0.01, momentum=momentum),
        hyperparameters=scale,
        adjoint=adjoint,
        budget=budget,
        clip=clip,
        accumulate=accumulate,
    )
    torch.autograd.grad(sum(w.square().sum() for w in trained.values()), [scale])
    return trained.report


def main(adjoint, steps, momentum, *gradient):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for warm_up in (rh.Snapshots(), rh.Reversible(segments=2)):
        hypergradient(warm_up, 3, momentum, model(8), None, *gradient[1:])
    net = model()
    gc.collect()
    base, _ = resident()
    Path("/proc/self/clear_refs").write_text("5")
    report = hypergradient(adjoint, steps, momentum, net, *gradient)
    print(json.dumps({"bytes": resident()[1] - base, "adjoint": report.adjoint, "restored": report.restored}))


if __name__ == "__main__":
    chosen, *numbers = ("auto" if text == "auto" else eval(text, {"rh": rh}) for text in sys.argv[1:])
    main(chosen, *numbers)
