"""The mean of gradients as integers, against Python's integers and fractions."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
import torch

from reversible_hypergrad.gradients.fixed_point_mean import Exponents, FixedPointMean, exponent_of, fitting
from reversible_hypergrad.gradients.means import mean_loss

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def by_integers(terms, exponent, dtype):
    """The mean of floats, in the very steps that the class says it takes."""
    shift = 62 - (len(terms) - 1).bit_length() - exponent
    quantum = Fraction(2) ** -shift
    total = sum(round(Fraction(x) / quantum) for x in terms)  # to the nearest, halves to even
    assert abs(total) <= 2**62
    # An integer to float64, and its quotient, are rounded to nearest by Python, too; a power of two is exact.
    return torch.tensor(float(total) / len(terms) * float(quantum), dtype=torch.float64).to(dtype)


def mean(weights, terms, exponents=None):
    exponents = exponents or [-960] * len(weights)
    total = FixedPointMean(weights, exponents, len(terms))
    for term in terms:
        total.add(term)
    fit = fitting(exponents, total.largest())
    return (total.mean(), fit) if fit == exponents else mean(weights, terms, fit)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("parts", [2, 3, 6, 7, 64])
def test_against_integers(parts, dtype):
    generator = torch.Generator().manual_seed(parts)
    spread = torch.logspace(-12, 3, 40, dtype=torch.float64) if dtype != torch.float16 else torch.logspace(-4, 3, 40)
    terms = [[(torch.randn(40, generator=generator) * spread).to(dtype)] for _ in range(parts)]
    (found,), (exponent,) = mean([torch.zeros(40, dtype=dtype)], terms)
    assert found.dtype == dtype
    for i, value in enumerate(found):
        assert torch.equal(value, by_integers([float(term[0][i]) for term in terms], exponent, dtype))
    # And it is the mean: half a quantum off at most, and what the quotient and the dtype round.
    exact = torch.stack([term[0].double() for term in terms]).mean(0)
    quantum = 2.0 ** (exponent - 62 + (parts - 1).bit_length())
    eps = torch.finfo(dtype).eps + parts * 2.0**-52
    bound = eps * torch.stack([term[0].double().abs() for term in terms]).mean(0) + quantum
    assert bool(((found.double() - exact).abs() <= bound).all())


def test_every_order_gives_the_same_bits():
    generator = torch.Generator().manual_seed(0)
    terms = [[torch.randn(100, generator=generator) * 10.0**i] for i in range(-2, 3)]
    weights = [torch.zeros(100)]
    (first,), exponents = mean(weights, terms)
    for order in itertools.permutations(terms):
        (found,), same = mean(weights, order)
        assert same == exponents
        assert torch.equal(found, first)
    plain = [sum(t[0] for t in order) / 5 for order in (terms, terms[::-1])]
    assert not torch.equal(*plain)  # guards: floats do depend on the order


@pytest.mark.parametrize("magnitude", [5e-324, 1e-300, 1e-30, 1.0, 65504.0, 3e38, 1.7976931348623157e308])
def test_every_magnitude_fits(magnitude):
    """The largest numbers do not overflow where their mean does not; the quantum is never below 2^-1020."""
    weights = [torch.zeros(2, dtype=torch.float64)]
    for signs in ((1, 1, 1), (1, -1, 1)):
        (found,), (exponent,) = mean(weights, [[torch.tensor([s * magnitude, 0.0], dtype=torch.float64)] for s in signs])
        expected = sum(signs) / 3 * magnitude
        assert found.tolist() == [pytest.approx(expected, rel=1e-15, abs=2.0**-1021), 0.0]
        assert exponent >= exponent_of(magnitude)


def test_what_is_lost():
    """With 6 parts, exponents are some 59 binary digits above the quantum, and up to 5 above the largest element at first."""
    weights = [torch.zeros(3)]
    largest = 1.0 - 2.0**-24
    terms = [[torch.tensor([largest, 2.0**-29, 2.0**-57])] for _ in range(6)]
    (found,), (exponent,) = mean(weights, terms)
    assert exponent == 4
    # The quantum is 2^-55: float32's 24 digits are there from 2^-31 on, and below 2^-56 there is nothing.
    assert found.tolist() == [largest, 2.0**-29, 0.0]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite(bad):
    weights = [torch.zeros(2), torch.zeros(2)]
    terms = [[torch.tensor([1.0, 2.0]), torch.tensor([1.0, bad if i == 1 else 1.0])] for i in range(3)]
    (good, spoilt), _ = mean(weights, terms)
    assert good.tolist() == [1.0, 2.0]
    assert bool(spoilt.isnan().all())


def test_empty_tensors_and_strides():
    weights = [torch.zeros(0), torch.zeros(2, 3, 4, 4).to(memory_format=torch.channels_last), torch.zeros(())]
    terms = [[torch.full_like(w, i + 1.0) for w in weights] for i in range(2)]
    found, exponents = mean(weights, terms)
    assert [g.stride() for g in found] == [w.stride() for w in weights]
    assert exponents[0] == -960
    assert float(found[2]) == 1.5


def test_exponents_are_those_of_training():
    log = Exponents(2)
    for step, largest in enumerate([[1.0, 0.0], [15.0, 0.5], [32.0, 0.5], [0.1, 0.1]]):
        log.keep(step, fitting(log.at(step), largest))
    expected = [[5, -960], [5, 4], [10, 4], [10, 4]]
    assert [log.at(step) for step in range(4)] == expected
    assert log.at(100) == [10, 4]
    log.keep(1, [99, 99])  # a step that was trained before
    assert [log.at(step) for step in range(4)] == expected


def test_the_mean_of_losses_in_any_order():
    losses = [torch.tensor(x) for x in (1e8, 1.0, -1e8, 3e-3, 7.0)]
    values = {float(mean_loss(order)) for order in itertools.permutations(losses)}
    assert values == {float(torch.tensor(8.003 / 5))}
