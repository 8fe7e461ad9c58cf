"""torch's own list of settings that its optimizers are tested with (those of CUDA, too): ours train as torch's do, and rewind."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from optim_problems import frozen, random_gradients, random_parameters, setting_gradients
from torch import Tensor

import reversible_hypergrad as rh

OURS = {"Adam": rh.ReversibleAdam, "AdamW": rh.ReversibleAdamW}
REFUSED = ("amsgrad", "capturable", "differentiable")

# In a process of its own: importing torch's tests forbids flags to be set that others of ours set.
LIST = """
import sys, torch
from torch.testing._internal.common_optimizers import optim_db
rows = [
    (info.optim_cls.__name__, row.desc, dict(row.kwargs))
    for info in optim_db if info.optim_cls.__name__ in ("Adam", "AdamW")
    for row in info.optim_inputs_func(device="cuda")
]
torch.save(rows, sys.argv[1])
"""


def check(name: str, settings: dict[str, Any], what: str) -> None:
    mine = random_parameters((10,), (3, 4), dtype=torch.float64)
    refused = next((option for option in REFUSED if settings.get(option)), None)
    if refused is not None:
        with pytest.raises(ValueError, match=refused):
            OURS[name](mine, **copy.deepcopy(settings))
        return
    other = random_parameters((10,), (3, 4), dtype=torch.float64)
    optimizer, torchs = OURS[name](mine, **copy.deepcopy(settings)), getattr(torch.optim, name)(other, **copy.deepcopy(settings))
    start, closures = frozen(optimizer)["weights"], []
    for step in range(20):
        gradients = random_gradients(mine, step)
        closures.append(setting_gradients(mine, gradients))
        optimizer.step(closures[-1])
        setting_gradients(other, gradients)()
        torchs.step()
    # Tensors of one number are float32 in torch's list, and torch computes with them as such.
    single = any(isinstance(x, Tensor) for x in (settings.get("lr"), *settings.get("betas", ())))
    for p, q in zip(mine, other, strict=True):
        assert torch.allclose(p, q, rtol=1e-5 if single else 1e-9, atol=1e-5 if single else 1e-10), what
    optimizer.rewind(reversed(closures))
    assert frozen(optimizer)["weights"] == start, what


def test_the_rows_of_torchs_list(tmp_path: Path) -> None:
    file = tmp_path / "rows.pt"
    subprocess.run([sys.executable, "-c", LIST, str(file)], check=True, capture_output=True)
    rows = torch.load(file)
    assert {name for name, _, _ in rows} == set(OURS)
    assert sum(not any(settings.get(option) for option in REFUSED) for _, _, settings in rows) >= 8
    for name, what, settings in rows:
        check(name, settings, f"{name}, {what}")
