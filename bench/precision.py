"""How far hypergradients in 16 bits, under autocast, and by shortened matrix products are from float64's.

    python -m bench.precision [--steps 20 200] [--only float32 "autocast to bfloat16"]

A transformer (2 layers of width 32, 26,000 weights; no biases, since Adam follows the rounding of those of keys, whose gradient
is 0; no dropout, whose masks depend on the dtype) learns sequences of a made-up language, all steps reversed. The hypergradients,
of the validation loss in float64, are by a weight per training sequence and by a learning rate per step. Printed: their distance
from those of the same run in float64 with plain float states (rh.Snapshots), relatively, and the cosine between both; how far the
trained weights are, by the length of the way that training took them; whether the run was restored. TF32, which GPUs have, is
emulated: operands of every matrix product, backward and second derivative included, are rounded to 10 bits.
"""

import argparse
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import reversible_hypergrad as rh
from bench.timing import conditions, when

TOKENS, CONTEXT, SEQUENCES, BATCH = 16, 12, 64, 8
RULES: dict[str, Callable[[Tensor], rh.Rule]] = {
    "SGD(0.02)": lambda ones: rh.SGD(0.02 * ones),
    "SGD(0.05)": lambda ones: rh.SGD(0.05 * ones),
    "AdamW(1e-3)": lambda ones: rh.AdamW(1e-3 * ones),
    "AdamW(1e-3, eps=1e-4)": lambda ones: rh.AdamW(1e-3 * ones, eps=1e-4),
}
_PRODUCTS = {torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm, torch.ops.aten.baddbmm}


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.place = nn.Embedding(TOKENS, 32), nn.Parameter(0.1 * torch.randn(CONTEXT, 32))
        options: dict[str, Any] = {"dropout": 0.0, "activation": "gelu", "batch_first": True, "norm_first": True, "bias": False}
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(32, 2, 128, **options) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, TOKENS)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.embed(tokens) + self.place
        mask = nn.Transformer.generate_square_subsequent_mask(CONTEXT, dtype=hidden.dtype)
        for layer in self.layers:
            hidden = layer(hidden, src_mask=mask, is_causal=True)
        return self.head(self.norm(hidden))


class Rounded(TorchDispatchMode):
    """Matrix products of float32 as TF32 has them."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.overloadpacket in _PRODUCTS:
            args = [*args[:-2], *map(_to_ten_bits, args[-2:])]
        return function(*args, **(kwargs or {}))


def _to_ten_bits(x: Tensor) -> Tensor:
    """To nearest, ties away from zero, of the 23 bits of float32."""
    return x if x.dtype != torch.float32 else ((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


@contextlib.contextmanager
def shortened(precision: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@dataclass(frozen=True)
class Precision:
    weights: torch.dtype = torch.float32
    inside: Callable[[], Any] = contextlib.nullcontext  # around the model in the loss
    outside: Callable[[], Any] = contextlib.nullcontext  # around training and backward


PRECISIONS = {
    "float32": Precision(),
    "TF32, emulated": Precision(outside=Rounded),
    "matmul precision medium": Precision(outside=lambda: shortened("medium")),
    "autocast to bfloat16": Precision(inside=lambda: torch.autocast("cpu", torch.bfloat16)),
    "autocast to float16": Precision(inside=lambda: torch.autocast("cpu", torch.float16)),
    "bfloat16 weights": Precision(torch.bfloat16),
    "float16 weights": Precision(torch.float16),
}


def sequences() -> tuple[Tensor, Tensor]:
    """For training and validation; the next token is a function of the last two, one in eight is anything."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.randint(TOKENS, (2 * SEQUENCES, CONTEXT + 1), generator=generator)
    anything = torch.rand(rows.shape, generator=generator) < 0.125
    for i in range(2, CONTEXT + 1):
        rows[:, i] = torch.where(anything[:, i], rows[:, i], (3 * rows[:, i - 1] + rows[:, i - 2]) % TOKENS)
    return rows[:SEQUENCES], rows[SEQUENCES:]


def losses(logits: Tensor, rows: Tensor) -> Tensor:
    """One per sequence."""
    return F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="none").view(len(rows), -1).mean(1)


def hypergradient(
    precision: Precision, rule: Callable[[Tensor], rh.Rule], steps: int, adjoint: Any = None
) -> tuple[dict[str, Tensor], Any]:
    """By sequences and by learning rates, with the way that training took the weights, all in float64; and the report."""
    training, validation = sequences()
    model = Transformer().to(precision.weights)
    real = torch.promote_types(precision.weights, torch.float32)
    rates = torch.ones(steps, dtype=real, requires_grad=True)  # as factors
    weights = torch.ones(SEQUENCES, dtype=real, requires_grad=True)

    def loss(model: nn.Module, step: Any, weights: Tensor) -> Tensor:
        chosen = (torch.arange(BATCH) * 5 + int(step) * 3) % SEQUENCES
        with precision.inside():
            logits = model(training[chosen][:, :-1])
        return (weights[chosen] * losses(logits.to(real), training[chosen])).mean()

    with precision.outside():
        trained = rh.train(model, loss, range(steps), optimizer=rule(rates), hyperparameters=weights, adjoint=adjoint)
        wide = {name: w.double() for name, w in trained.items()}
        logits = torch.func.functional_call(Transformer().double(), wide, (validation[:, :-1],))
        by_weights, by_rates = torch.autograd.grad(losses(logits, validation).mean(), [weights, rates])
    start = dict(Transformer().double().named_parameters())
    way = torch.cat([(wide[name] - start[name]).detach().flatten() for name in wide])
    return {"sequences": by_weights.double(), "learning rates": by_rates.double(), "way": way}, trained.report


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="+", default=[20, 200])
    parser.add_argument("--only", nargs="+", choices=PRECISIONS, default=list(PRECISIONS), metavar="PRECISION")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print(f"{conditions()}, {when()}\n")
    for title, rule in RULES.items():
        print(f"\n{title}\n\n| precision | steps | by sequences | cosine | by learning rates | cosine | weights | restored |")
        print("|---|---|---|---|---|---|---|---|")
        for steps in options.steps:
            exact, _ = hypergradient(Precision(torch.float64), rule, steps, rh.Snapshots())
            for name in options.only:
                found, report = hypergradient(PRECISIONS[name], rule, steps)
                row = []
                for kind, true in exact.items():
                    row.append(f"{float((found[kind] - true).norm() / true.norm()):.1e}")
                    if kind != "way":
                        row.append(f"{float(F.cosine_similarity(found[kind], true, dim=0)):.5f}")
                print(f"| {name} | {steps} | {' | '.join(row)} | {report.restored} |", flush=True)


if __name__ == "__main__":
    main()
