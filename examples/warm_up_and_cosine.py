"""Learns AdamW's warm-up, peak, cosine end, weight decay and betas on scikit-learn's digits, by hypergradients.

    python examples/warm_up_and_cosine.py [--steps 300] [--meta-steps 30]

The learning rate of each step is a differentiable function of three numbers; backward gives the gradient of the validation loss
by these, through the whole of training, and by weight decay and both betas. Each meta-step trains from other initial weights and
in another order. Prints the validation loss of each meta-step, and at the end the test loss before and after, over starts that
were not learned from. Takes half a minute.
"""

import argparse
import math
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import reversible_hypergrad as rh

# Each in the space where it lives: logarithms of what is positive, logits of what is a part.
BEGIN = {
    "peak": math.log(1e-3),
    "warm_up": math.log(10.0),  # in steps
    "end": -3.0,  # logit of the part of the peak that is left at the end
    "decay": math.log(1e-2),
    "beta1": 2.2,  # logit: 0.9
    "beta2": 4.6,  # logit: 0.99
}


def data() -> dict[str, tuple[Tensor, Tensor]]:
    digits = load_digits()
    images, labels = torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    parts = {"train": order[:600], "validation": order[600:1200], "test": order[1200:]}
    return {name: (images[rows], labels[rows]) for name, rows in parts.items()}


def schedule(learned: dict[str, Tensor], steps: int) -> Tensor:
    """The learning rate of every step."""
    t = torch.arange(steps) + 1.0
    rise = 1 - torch.exp(-t / learned["warm_up"].exp())
    fall = 0.5 * (1 + torch.cos(math.pi * t / steps))
    end = torch.sigmoid(learned["end"])
    return learned["peak"].exp() * rise * (end + (1 - end) * fall)


def optimizer(learned: dict[str, Tensor], steps: int) -> rh.AdamW:
    betas = torch.sigmoid(learned["beta1"]), torch.sigmoid(learned["beta2"])
    return rh.AdamW(schedule(learned, steps), betas, weight_decay=learned["decay"].exp())


def loss_after(sets: dict[str, tuple[Tensor, Tensor]], learned: dict[str, Tensor], steps: int, seed: int, of: str) -> Tensor:
    """Of a net that is trained with ``learned``, from the start and in the order of ``seed``; differentiable."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10))
    images, labels = sets["train"]

    def loss(model: nn.Module, step: int, _: Any) -> Tensor:
        rows = torch.randint(len(labels), (64,), generator=torch.Generator().manual_seed(1000 * seed + int(step)))
        return F.cross_entropy(model(images[rows]), labels[rows])

    trained = rh.train(model, loss, range(steps), optimizer=optimizer(learned, steps))
    return F.cross_entropy(torch.func.functional_call(model, dict(trained), sets[of][0]), sets[of][1])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--meta-steps", type=int, default=30)
    parser.add_argument("--starts", type=int, default=5, help="that the test loss is a mean over")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    sets = data()
    learned = {name: torch.tensor(value, requires_grad=True) for name, value in BEGIN.items()}

    def test_loss() -> float:
        with torch.no_grad():
            losses = [loss_after(sets, learned, options.steps, 10_000 + i, "test") for i in range(options.starts)]
        return float(torch.stack(losses).mean())

    before = test_loss()
    meta = torch.optim.Adam(learned.values(), lr=0.1)
    for meta_step in range(options.meta_steps):
        meta.zero_grad()
        validation = loss_after(sets, learned, options.steps, meta_step, "validation")
        validation.backward()
        torch.nn.utils.clip_grad_norm_(learned.values(), 1.0)
        meta.step()
        print(f"{meta_step:3} validation loss {float(validation.detach()):.4f}")
    rates = schedule(learned, options.steps)
    print(f"test loss before {before:.4f}, after {test_loss():.4f}")
    highest = int(rates.argmax())
    print(f"peak learning rate {float(rates[highest].detach()):.2g}, at step {highest}; last {float(rates[-1].detach()):.1g}")
    print(f"weight decay {float(learned['decay'].exp().detach()):.2g}")
    print("betas " + ", ".join(f"{float(torch.sigmoid(learned[name]).detach()):.4f}" for name in ("beta1", "beta2")))


if __name__ == "__main__":
    main()
