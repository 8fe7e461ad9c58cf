"""Torch's second derivatives: the scan covers all of torch.nn, prints what is wrong, and check_replayable names each of those."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from wrong_derivative import Wrong

import reversible_hypergrad as rh
from bench.second_derivatives import __main__ as bench
from bench.second_derivatives.scan import CASES, scan, value

# No layers of their own, or they become one of those that are there.
_NOT_LAYERS = (
    "Container LinearCrossEntropyOptions Module ModuleDict ModuleList ParameterDict ParameterList RNNBase RNNCellBase Sequential"
)


def test_it_prints_what_is_wrong(capsys):
    bench.main(["--only", "Linear", "weight_norm", "CTCLoss", "--all"])
    rows = {line.split(" | ")[0].strip("| "): line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")}
    assert "right | right" in rows["Linear"]
    assert "missing | missing" in rows["CTCLoss"]
    assert "weight_norm" in rows


def test_every_layer_of_torch_is_scanned():
    scanned = {name.split("(")[0].split(",")[0].split(" ")[0] for name in CASES}
    layers = [n for n in nn.modules.__all__ if not n.startswith("Lazy") and n not in _NOT_LAYERS.split()]
    assert [name for name in layers if name not in scanned] == []


def test_the_oracle_finds_a_wrong_one():
    """Independently of what is wrong in this torch."""
    from bench.second_derivatives.cases import case, normal

    assert scan(case(lambda x: x**3, normal(4, 3))).verdict == "right"
    found = scan(case(lambda x: Wrong.apply(x), normal(4, 3)))
    assert found.verdict == "wrong"
    assert found.error > 0.1


class Holder(nn.Module):
    """A case's layer in a model, with its inputs as parameters."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.layer, inputs = CASES[name].drawn(0)
        self.layer.float()
        self.given = nn.ParameterList(
            nn.Parameter(x.float() if x.is_floating_point() else x, requires_grad=x.is_floating_point()) for x in inputs
        )

    def forward(self, scale: torch.Tensor) -> torch.Tensor:
        return value(self.layer, list(self.given)) * scale


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_check_names_what_the_scan_finds(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        verdict = scan(CASES[name]).verdict
        found = rh.check_replayable(Holder(name), lambda model, scale, _: model(scale), torch.tensor(1.5))
    if verdict in ("right", "on a jump"):  # the jump is by elements that no gradient moves
        assert found, str(found)
        return
    assert not found
    assert "'layer" in found.problems[0], "the module is named"
    assert ("no second derivative" if verdict == "missing" else "are wrong") in found.problems[0]
