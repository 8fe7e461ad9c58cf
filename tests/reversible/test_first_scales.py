"""The quanta that a state chooses at its first gradient, which it looks at piece by piece."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import reversible_hypergrad as rh
from reversible_hypergrad.reversible.record import StepNumbers
from reversible_hypergrad.reversible.state import State

SIZE = 40_000  # several pieces, and a rest
H = SimpleNamespace(lr=0.1, momentum=0.9, dampening=0.0, weight_decay=0.0)


def exponents(gradient, h=H, elements=()):
    state = State([torch.ones(SIZE)], ["w"], rh.SGD(lr=0.1), 64)
    numbers = np.array([1.0, 0.0 if isinstance(h.weight_decay, torch.Tensor) else h.weight_decay, 0.1])
    state.step([gradient], StepNumbers(np.array([0.9, 1.0]), numbers, elements, (h,)), None, False)
    return state.scales.state.exponent


@pytest.mark.parametrize("place", [0, SIZE // 2, SIZE - 1])
def test_the_largest_number_counts_wherever_it_stands(place):
    small = torch.full((SIZE,), 1e-3)
    one_large = small.clone()
    one_large[place] = 1e-3 * 2**10
    np.testing.assert_array_equal(exponents(one_large) - exponents(small), [[10, 0]])


def test_settings_per_weight_are_taken_with_their_weights():
    decay = torch.zeros(SIZE, dtype=torch.float64)
    decay[-1] = 2.0**10
    none = torch.empty(0, dtype=torch.float64)
    per_weight = SimpleNamespace(**{**vars(H), "weight_decay": decay})
    found = exponents(torch.full((SIZE,), 1e-3), per_weight, (none, decay, none))
    everywhere = exponents(torch.full((SIZE,), 1e-3), SimpleNamespace(**{**vars(H), "weight_decay": 2.0**10}))
    np.testing.assert_array_equal(found, everywhere)


def test_a_gradient_that_is_not_finite_is_seen_in_any_piece():
    gradient = torch.full((SIZE,), 1e-3)
    gradient[SIZE // 2] = float("nan")
    with pytest.raises(FloatingPointError, match="w: "):
        exponents(gradient)
