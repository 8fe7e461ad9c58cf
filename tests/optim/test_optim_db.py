"""torch's own lists of settings and of errors that its optimizers are tested with (those of CUDA, too), for every drop-in
optimizer: ours train as torch's do, and rewind; they refuse what torch refuses, in torch's words. What is otherwise is listed,
with the reason."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from drop_ins import DROP_INS, DropIn
from optim_problems import frozen, random_gradients, random_parameters, setting_gradients
from torch import Tensor

# In a process of its own: importing torch's tests forbids flags to be set that others of ours set.
LIST = """
import sys, torch
from torch.testing._internal.common_optimizers import optim_db
rows, errors = [], []
for info in optim_db:
    name = info.optim_cls.__name__
    rows += [(name, row.desc, dict(row.kwargs)) for row in info.optim_inputs_func(device="cuda")]
    for error in info.optim_error_inputs_func(device="cpu", dtype=torch.float32):
        given = error.optimizer_error_input
        words = (error.error_type.__name__, error.error_regex, error.error_on.name)
        errors.append((name, given.desc, given.params, dict(given.kwargs), words))
torch.save((rows, errors), sys.argv[1])
"""

# What torch takes and a reversible step cannot, or not under this name: setting -> (the value, words of the error).
REFUSED: dict[str, tuple[Any, str]] = {
    "amsgrad": (True, "amsgrad=True cannot be undone"),
    "capturable": (True, "capturable=True is not supported: each reversible step has numbers of its own"),
    "nesterov": (True, "nesterov=True cannot be undone"),
}
REFUSED_BY: dict[str, dict[str, tuple[Any, str]]] = {
    "RAdam": {"maximize": (True, "maximize=True is not supported by ReversibleRAdam. Call backward on the negative loss")},
    "RMSprop": {"maximize": (True, "maximize=True is not supported by ReversibleRMSprop. Call backward on the negative loss")},
    # Torch has none, so these are AdamW's rows; the paper's Lion has no such arguments.
    "Lion": {
        "maximize": (True, "unexpected keyword argument 'maximize'"),
        "amsgrad": (True, "unexpected keyword argument 'amsgrad'"),
        "capturable": (True, "unexpected keyword argument"),
    },
    # These are SGD's rows; the ordinary momentum is that of ReversibleSGD.
    "TracedSGD": {
        "maximize": (True, "unexpected keyword argument 'maximize'"),
        "dampening": (0.5, "unexpected keyword argument 'dampening'"),
        "momentum": (0.9, "Expected 0 without nesterov=True; rh.ReversibleSGD has the ordinary momentum"),
    },
}
# What is an error of torch's and none here, by the row's description.
TAKEN = {
    "lr as Tensor doesn't work with foreach & not capturable": "a step is always one fused call, which reads the number",
    "betas must be either both floats or both Tensors": "each is read as the number that it is",
    r"betas\[0\] as a Tensor is not supported for capturable=False and foreach=True": "as the learning rate",
}
# Errors in other words than torch's, by the row's description: (type, words).
OWN_WORDS: dict[str, tuple[str, str]] = {
    "Tensor lr must be 1-element": ("ValueError", r"Invalid learning rate: a tensor of shape \(2,\). Expected one element"),
    "only support 2D parameters": ("ValueError", r"ReversibleMuon expected matrices, got a parameter of shape \(2, 3, 4\)"),
    "only support `original` and `match_rms_adamw`": ("ValueError", "adjust_lr_fn: expected None, 'original' or 'match_rms"),
    "does not support complex parameters": ("TypeError", "parameter 0 of group 0: expected float32, .* got torch.complex64"),
}


@pytest.fixture(scope="module")
def lists(tmp_path_factory: pytest.TempPathFactory) -> Any:
    file: Path = tmp_path_factory.mktemp("lists") / "rows.pt"
    subprocess.run([sys.executable, "-c", LIST, str(file)], check=True, capture_output=True)
    return torch.load(file, weights_only=False)


def refusals(name: str, settings: dict[str, Any]) -> list[str]:
    """Words of the errors that these settings may come to: the first thing that is found is said."""
    known = {**REFUSED, **REFUSED_BY.get(name, {})}
    if name == "TracedSGD" and settings.get("nesterov"):  # the momentum is Nesterov's then
        known = {}
    return [words for key, (value, words) in known.items() if key in settings and settings[key] == value]


def check(drop_in: DropIn, settings: dict[str, Any], what: str) -> bool:
    """Whether it trains; otherwise it is refused for a listed reason."""
    mine = random_parameters((10, 2), (3, 4), dtype=torch.float64)
    settings = {**drop_in.forced, **settings}
    words = refusals(drop_in.name, settings)
    if words:
        with pytest.raises((ValueError, TypeError), match="|".join(map(re.escape, words))):
            drop_in.make(mine, **copy.deepcopy(settings))
        return False
    if drop_in.theirs is None:
        settings = {key: value for key, value in settings.items() if key not in ("amsgrad", "capturable", "maximize")}
    other = random_parameters((10, 2), (3, 4), dtype=torch.float64)
    optimizer, reference = drop_in.make(mine, **copy.deepcopy(settings)), drop_in.reference(other, copy.deepcopy(settings))
    start, closures = frozen(optimizer)["weights"], []
    for step in range(20):
        gradients = random_gradients(mine, step)
        closures.append(setting_gradients(mine, gradients))
        optimizer.step(closures[-1])
        setting_gradients(other, gradients)()
        reference.step()
    # Tensors of one number are float32 in torch's list, and torch computes with them as such.
    single = any(isinstance(x, Tensor) for x in (settings.get("lr"), *settings.get("betas", ())))
    for p, q in zip(mine, other, strict=True):
        assert torch.allclose(p, q, rtol=1e-5 if single else 1e-9, atol=1e-5 if single else 1e-10), what
    optimizer.rewind(reversed(closures))
    assert frozen(optimizer)["weights"] == start, what
    return True


@pytest.mark.parametrize("drop_in", DROP_INS.values(), ids=DROP_INS.keys())
def test_rows(drop_in: DropIn, lists: Any) -> None:
    rows = [(desc, settings) for name, desc, settings in lists[0] if name == drop_in.rows]
    assert len(rows) >= 7
    assert sum(check(drop_in, settings, f"{drop_in.name}, {desc}") for desc, settings in rows) >= 3


def error_of(make: Any, params: Any, settings: dict[str, Any]) -> BaseException | None:
    """What construction, or else a step, raises or warns."""
    params = random_parameters((1, 1)) if params is None else params
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            optimizer = make(params, **settings)
            optimizer.step()
        except Exception as error:
            return error
    return None


@pytest.mark.parametrize("drop_in", DROP_INS.values(), ids=DROP_INS.keys())
def test_errors(drop_in: DropIn, lists: Any) -> None:
    rows = [copy.deepcopy(row[1:]) for row in lists[1] if row[0] == drop_in.rows]
    assert len(rows) >= 7
    for desc, params, settings, (kind, words, _) in rows:
        if drop_in.theirs is None:
            settings.pop("foreach", None)
        error = error_of(drop_in.make, params, settings)
        if desc in TAKEN:
            assert error is None, f"{desc}: {error}"
            continue
        kind, words = OWN_WORDS.get(desc, (kind, words))
        assert type(error).__name__ == kind, f"{desc}: {error!r}"
        assert re.search(words, str(error)), f"{desc}: {error}"
