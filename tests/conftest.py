"""Settings that every test leaves as it found them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings

# Failing asserts in shared helpers show their values too.
pytest.register_assert_rewrite(
    "adjoint_problems",
    "core_problems",
    "core_journeys",
    "device_matrix",
    "drop_in_journey",
    "optim_problems",
    "oracle_twin",
    "queued_steps",
    "ticket_journey",
)

# Other work on the machine must not fail a property: no deadline per example.
settings.register_profile("exact", deadline=None, print_blob=True)
settings.load_profile("exact")


@pytest.fixture
def use_instruction_set():
    """The op that switches the instruction set; the fastest one, the default, is active again afterwards."""
    ops = torch.ops.reversible_hypergrad
    yield ops.use_instruction_set
    ops.use_instruction_set(ops.instruction_sets().split()[0])


@pytest.fixture
def set_num_threads():
    """torch.set_num_threads; the number of before is back afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
