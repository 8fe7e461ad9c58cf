"""mark_boundary() where states were still zero, and what is saved just after it."""

from __future__ import annotations

import io

import torch
from optim_problems import frozen, random_parameters, setting_gradients, take_steps

import reversible_hypergrad as rh


def test_a_state_that_stays_zero_is_restored_with_its_scale() -> None:
    """A gradient so small that no state moves: what was chosen for it is no part of the state."""
    parameters = random_parameters((17,))
    optimizer = rh.ReversibleRMSprop(parameters)
    small = setting_gradients(parameters, [torch.full((17,), 1e-42)])
    optimizer.step(small)
    optimizer.mark_boundary()
    before = frozen(optimizer)
    optimizer.step(small)
    optimizer.step_back(small)
    assert frozen(optimizer) == before


def test_saved_at_a_boundary() -> None:
    """Without any step in it, a log's tables have no rows."""
    parameters = random_parameters((3,), (2, 2))
    optimizer = rh.ReversibleAdamW(parameters)
    take_steps(optimizer, 2)
    optimizer.mark_boundary()
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    other = rh.ReversibleAdamW(parameters)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert frozen(other) == frozen(optimizer)
