from __future__ import annotations

import emulation
import pytest
import torch


@pytest.fixture(scope="session")
def emulated():
    """The ops over the emulated kernels: the same names and arguments as torch.ops.reversible_hypergrad, on CPU tensors."""
    torch.ops.load_library(str(emulation.library()))
    return torch.ops.reversible_hypergrad_emulated
