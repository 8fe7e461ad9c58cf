"""torch's own list of settings that its optimizers are tested with (those of CUDA, too): ours train as torch's do, and rewind."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from optim_problems import frozen, random_gradients, random_parameters, setting_gradients
from torch import Tensor
from torch.testing._internal.common_optimizers import optim_db

import reversible_hypergrad as rh

OURS = {"Adam": rh.ReversibleAdam, "AdamW": rh.ReversibleAdamW}
REFUSED = ("amsgrad", "capturable", "differentiable")


def rows() -> list[Any]:
    found = []
    for info in optim_db:
        name = info.optim_cls.__name__
        for i, row in enumerate(info.optim_inputs_func(device="cuda") if name in OURS else ()):
            found.append(pytest.param(name, dict(row.kwargs), id=f"{name}-{i}-{row.desc.replace(' ', '-')}"))
    return found


def plain(settings: dict[str, Any]) -> dict[str, Any]:
    """Tensors of their own for each optimizer."""
    return copy.deepcopy(settings)


@pytest.mark.parametrize(("name", "settings"), rows())
def test_a_row_of_torchs_list(name: str, settings: dict[str, Any]) -> None:
    theirs = getattr(torch.optim, name)
    mine = random_parameters((10,), (3, 4), dtype=torch.float64)
    refused = next((option for option in REFUSED if settings.get(option)), None)
    if refused is not None:
        with pytest.raises(ValueError, match=refused):
            OURS[name](mine, **plain(settings))
        return
    other = random_parameters((10,), (3, 4), dtype=torch.float64)
    optimizer, torchs = OURS[name](mine, **plain(settings)), theirs(other, **plain(settings))
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
        assert torch.allclose(p, q, rtol=1e-5 if single else 1e-9, atol=1e-5 if single else 1e-10)
    optimizer.rewind(reversed(closures))
    assert frozen(optimizer)["weights"] == start
