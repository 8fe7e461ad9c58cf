"""The adjoint of Adam's step: the CUDA kernels give the bits of the CPU's, and both those of the rule's own derivatives."""

import math
from types import SimpleNamespace

import pytest
import torch

import reversible_hypergrad as rh
from reversible_hypergrad._ops import ops
from reversible_hypergrad.rules.step import Halfway, pull_update

SIZES = [1, 17, 512, 700]
T, LR, BETAS, EPS, EPS_ROOT = 4, 0.01, (0.9, 0.99), 1e-4, 1e-6
DECAY = {"Adam": 0.1, "AdamW": 0.0}
SIGMA = (2.0**-30, 2.0**-40, 2.0**-20)  # of m, s and the weight
WEIGHT_DECAY = 0.97


def settings(kind):
    return SimpleNamespace(lr=LR, beta1=BETAS[0], beta2=BETAS[1], eps=EPS, weight_decay=DECAY[kind], eps_root=EPS_ROOT)


def inputs(kind, state_bits, dtype):
    """What undoing takes: integers after a step without shifts, gradients, vectors, tables; on the CPU."""
    rng = torch.Generator().manual_seed(0)
    own = SimpleNamespace()
    padded = [-(-n // 16) * 16 for n in SIZES]
    narrow = torch.int64 if state_bits == 64 else torch.int32

    def integers(largest, to):
        whole = torch.zeros(sum(padded), dtype=torch.int64)
        for part, n in zip(whole.split(padded), SIZES, strict=True):
            part[:n] = torch.randint(-largest, largest, (n,), generator=rng)
        return whole.to(to)

    own.x, own.m = integers(2**21, narrow), integers(2**24, narrow)
    own.s = integers(2**34, torch.int64).abs()
    own.s[::5] = 0
    own.m[::5] = 0
    own.weights = [torch.randn(n, generator=rng).to(dtype) for n in SIZES]
    own.gradients = [(0.01 * torch.randn(n, generator=rng)).to(dtype) for n in SIZES]
    own.products = [torch.randn(n, generator=rng).to(dtype) if i != 1 else torch.empty(0) for i, n in enumerate(SIZES)]
    real = torch.float64 if dtype == torch.float64 else torch.float32

    def vector():
        parts = [torch.nn.functional.pad(torch.randn(n, generator=rng), (0, p - n)) for n, p in zip(SIZES, padded, strict=True)]
        return torch.cat(parts).to(real)

    own.vectors = [vector() for _ in range(3)]
    own.directions = [torch.zeros(n, dtype=real) for n in SIZES]
    rule = {"Adam": rh.Adam, "AdamW": rh.AdamW}[kind]()
    own.rule, own.padded, own.real = rule, padded, real
    row = [SIGMA[0], SIGMA[1], SIGMA[2], SIGMA[2], *rule.numbers(settings(kind), T)]
    own.numbers = torch.tensor([row] * len(SIZES), dtype=torch.float64)
    own.shifts = torch.zeros(len(SIZES), 7, dtype=torch.int64)
    own.shifts[:, 0] = 1
    return own


def undone(library, own):
    """Both halves; everything that they wrote."""
    x, m, s = own.x.clone(), own.m.clone(), own.s.clone()
    weights, vectors = [w.clone() for w in own.weights], [v.clone() for v in own.vectors]
    directions = [d.clone() for d in own.directions]
    words = torch.zeros(1 + 4 * len(SIZES), dtype=torch.int64)
    blocks = sum(math.ceil(n / 512) for n in SIZES)
    partials = torch.zeros(5 * blocks, dtype=torch.float64)
    sums = [torch.zeros(5, len(SIZES), dtype=torch.float64) for _ in range(2)]
    none, skipped = torch.empty(0, dtype=torch.uint8), torch.zeros(blocks, dtype=torch.uint8)
    carries = torch.tensor([[0.8, 0.95, WEIGHT_DECAY]] * len(SIZES), dtype=torch.float64)
    sigma_before = torch.tensor([SIGMA[:2]] * len(SIZES), dtype=torch.float64)
    outcomes, everything = [], [True] * 5
    state = own.numbers, own.shifts, [], none
    first = "adam", weights, x, [m, s], *state, False, True, words, vectors[0], vectors[1:]
    library.undo_weights_adjoint(*first, own.products, carries, everything, partials, sums[0])
    outcomes.append(words.clone())
    middle = [v.clone() for v in vectors], x.clone()
    second = "adam", weights, own.gradients, x, [m, s], *state, skipped, False, True, words, vectors[0], vectors[1:]
    library.undo_states_adjoint(*second, directions, sigma_before, everything, partials, sums[1])
    outcomes.append(words.clone())
    return SimpleNamespace(
        all=[x, m, s, *weights, *vectors, *directions, *sums, *outcomes],
        sums=sums,
        vectors=vectors,
        directions=directions,
        middle=middle,
        states=(m, s),
    )


CASES = [(kind, bits, dtype) for kind in DECAY for bits in (64, 32) for dtype in (torch.float32, torch.float64, torch.bfloat16)]


@pytest.mark.parametrize(("kind", "state_bits", "dtype"), CASES)
def test_the_bits_of_the_cpu(kind, state_bits, dtype, emulated):
    own = inputs(kind, state_bits, dtype)
    mine, theirs = undone(emulated, own), undone(ops, own)
    for one, other in zip(mine.all, theirs.all, strict=True):
        assert torch.equal(
            one.view(torch.uint8) if one.dtype.is_floating_point else one,
            other.view(torch.uint8) if other.dtype.is_floating_point else other,
        )


@pytest.mark.parametrize("kind", DECAY)
def test_the_rules_own_derivatives(kind):
    """In double, so that they agree but for the order of operations; squares that are 0 included."""
    own = inputs(kind, 64, torch.float64)
    found = undone(ops, own)
    offset = 0
    for i, (n, p) in enumerate(zip(SIZES, own.padded, strict=True)):
        part = slice(offset, offset + n)
        offset += p
        aw, am, as_ = (v[part].clone() for v in own.vectors)
        am, as_ = 0.8 * am, 0.95 * as_
        if own.products[i].numel():
            aw = aw + own.products[i]
        z = {"m": own.m[part].double() * SIGMA[0], "s": own.s[part].double() * SIGMA[1]}
        w = found.middle[1][part].double() * SIGMA[2]  # the old weights, which are there by then
        by_decay = float((aw * w).sum())
        h = settings(kind)
        pulled = pull_update(own.rule, h, T, w, z, aw)
        am, as_ = am + pulled.z["m"], as_ + pulled.z["s"]
        for got, expected in zip(found.middle[0][1:], (am, as_), strict=True):
            assert torch.allclose(got[part], expected, rtol=1e-12, atol=1e-12 * float(expected.abs().max()))
        assert torch.allclose(found.middle[0][0][part], WEIGHT_DECAY * aw, rtol=1e-14, atol=0)
        assert float(found.sums[0][4, i]) == pytest.approx(by_decay, rel=1e-9)
        old = {"m": found.states[0][part].double() * SIGMA[0], "s": found.states[1][part].double() * SIGMA[1]}
        half = Halfway(own.rule, h, T, own.gradients[i], w, old).pull({"m": am, "s": as_})
        assert torch.allclose(found.directions[i], half.direction, rtol=1e-12, atol=1e-12 * float(half.direction.abs().max()))
