"""Settings and parameters that cannot be honoured: a clear error that changes nothing."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from optim_problems import frozen, random_gradients, random_parameters, refused, setting_gradients, take_steps
from torch import nn

import reversible_hypergrad as rh

BAD_SETTINGS: dict[str, tuple[dict[str, Any], type[Exception], tuple[str, ...]]] = {
    "momentum-0": ({"momentum": 0}, ValueError, ("momentum", "0", "[2^-16, 1]", "rh.ReversibleTracedSGD")),
    "momentum-1.5": ({"momentum": 1.5}, ValueError, ("momentum", "1.5", "[2^-16, 1]")),
    "momentum-negative": ({"momentum": -0.9}, ValueError, ("momentum", "-0.9", "[2^-16, 1]")),
    "momentum-nan": ({"momentum": math.nan}, ValueError, ("momentum", "nan", "[2^-16, 1]")),
    "momentum-below-2^-16": ({"momentum": 1.5e-5}, ValueError, ("momentum", "1.5e-05", "rh.ReversibleTracedSGD")),
    "lr-negative": ({"lr": -0.1}, ValueError, ("Invalid learning rate: -0.1", "Expected")),
    "lr-nan": ({"lr": math.nan}, ValueError, ("Invalid learning rate: nan", "Expected")),
    "lr-inf": ({"lr": math.inf}, ValueError, ("Invalid learning rate: inf", "Expected")),
    "lr-tensor-negative": ({"lr": torch.tensor(-1.0)}, ValueError, ("Invalid learning rate: -1", "Expected")),
    "lr-tensor-of-two": ({"lr": torch.tensor([0.1, 0.2])}, ValueError, ("Invalid learning rate", "(2,)", "one element")),
    "weight-decay-negative": ({"weight_decay": -1.0}, ValueError, ("Invalid weight_decay value: -1.0", "Expected")),
    "weight-decay-nan": ({"weight_decay": math.nan}, ValueError, ("Invalid weight_decay value: nan", "Expected")),
    "weight-decay-inf": ({"weight_decay": math.inf}, ValueError, ("Invalid weight_decay value: inf", "Expected")),
    "dampening-nan": ({"dampening": math.nan}, ValueError, ("Invalid dampening value: nan", "Expected")),
    "nesterov": ({"nesterov": True}, ValueError, ("nesterov=True", "nesterov=False")),
    "differentiable": ({"differentiable": True}, ValueError, ("differentiable=True", "differentiable=False")),
    "foreach-and-fused": ({"foreach": True, "fused": True}, RuntimeError, ("fused", "foreach")),
}
by_setting = pytest.mark.parametrize(("settings", "error", "words"), BAD_SETTINGS.values(), ids=BAD_SETTINGS.keys())


def refused_words(error: type[Exception], words: tuple[str, ...]) -> Any:
    everywhere = "".join(f"(?=.*{re.escape(word)})" for word in words)
    return pytest.raises(error, match="(?s)" + everywhere)


@by_setting
def test_at_construction(settings: dict[str, Any], error: type[Exception], words: tuple[str, ...]) -> None:
    with refused_words(error, words):
        rh.ReversibleSGD(random_parameters((3,)), **settings)


@by_setting
def test_in_a_group_at_construction(settings: dict[str, Any], error: type[Exception], words: tuple[str, ...]) -> None:
    first, second = random_parameters((3,), (4,))
    with refused_words(error, words):
        rh.ReversibleSGD([{"params": [first]}, {"params": [second], **settings}])


@by_setting
def test_in_a_group_added_later(settings: dict[str, Any], error: type[Exception], words: tuple[str, ...]) -> None:
    optimizer = rh.ReversibleSGD(random_parameters((3,)), lr=0.1)
    closures = take_steps(optimizer, 2)
    extra = random_parameters((4,))
    with refused(optimizer, error, *words):
        optimizer.add_param_group({"params": extra, **settings})
    optimizer.add_param_group({"params": extra})  # a corrected call must work
    take_steps(optimizer, 1)
    optimizer.step_back(setting_gradients([*optimizer.param_groups[0]["params"], *extra], random_gradients_of(optimizer)))
    optimizer.rewind(reversed(closures))


def random_gradients_of(optimizer: rh.ReversibleSGD) -> list[torch.Tensor]:
    return random_gradients([p for g in optimizer.param_groups for p in g["params"]], 0)


@by_setting
def test_written_into_the_second_group_between_steps(
    settings: dict[str, Any], error: type[Exception], words: tuple[str, ...]
) -> None:
    first, second = random_parameters((3,), (4,))
    optimizer = rh.ReversibleSGD([{"params": [first]}, {"params": [second]}], lr=0.1)
    start = frozen(optimizer)
    closures = take_steps(optimizer, 3)
    good = {key: optimizer.param_groups[1][key] for key in settings}
    optimizer.param_groups[1].update(settings)
    before = [first.detach().clone(), second.detach().clone(), str(optimizer.state_dict()["state"])]
    with refused_words(error, words):
        optimizer.step()
    assert torch.equal(first, before[0])
    assert torch.equal(second, before[1])
    assert str(optimizer.state_dict()["state"]) == before[2]
    optimizer.param_groups[1].update(good)
    optimizer.rewind(reversed(closures))
    assert frozen(optimizer) == start


@pytest.mark.parametrize("state_bits", [0, 16, 128, "64"])
def test_state_bits(state_bits: Any) -> None:
    with pytest.raises(ValueError, match=f"state_bits.*{state_bits}.*32, 64 or None"):
        rh.ReversibleSGD(random_parameters((3,)), state_bits=state_bits)


@pytest.mark.parametrize(
    ("verify_every", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError), (True, TypeError), (None, TypeError)]
)
def test_verify_every(verify_every: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"verify_every: expected an integer >= 1, got {verify_every}"):
        rh.ReversibleSGD(random_parameters((3,)), verify_every=verify_every)


PARAMETERS = {
    "complex64": (lambda: nn.Parameter(torch.zeros(3, dtype=torch.complex64)), "view_as_real"),
    "complex128": (lambda: nn.Parameter(torch.zeros(3, dtype=torch.complex128)), "view_as_real"),
    "int64": (lambda: nn.Parameter(torch.zeros(3, dtype=torch.int64), requires_grad=False), "Leave it out"),
    "uint8": (lambda: nn.Parameter(torch.zeros(3, dtype=torch.uint8), requires_grad=False), "Leave it out"),
    "bool": (lambda: nn.Parameter(torch.zeros(3, dtype=torch.bool), requires_grad=False), "Leave it out"),
    "sparse": (lambda: nn.Parameter(torch.eye(3).to_sparse()), "to_dense"),
    "meta": (lambda: nn.Parameter(torch.zeros(3, device="meta")), "meta"),
}


@pytest.mark.parametrize(("make", "remedy"), PARAMETERS.values(), ids=PARAMETERS.keys())
def test_parameters_that_have_no_fixed_point(make: Any, remedy: str) -> None:
    good, bad = random_parameters((3,))[0], make()
    with pytest.raises((TypeError, ValueError), match=rf"'bad'.*{remedy}"):
        rh.ReversibleSGD([("good", good), ("bad", bad)])
    optimizer = rh.ReversibleSGD([good], lr=0.1)
    with refused(optimizer, (TypeError, ValueError), "parameter 0 of group 1", remedy):  # type: ignore[arg-type]
        optimizer.add_param_group({"params": [bad]})


def test_the_same_parameter_twice() -> None:
    (weight,) = random_parameters((3,))
    optimizer = rh.ReversibleSGD([weight], lr=0.1)
    take_steps(optimizer, 1)
    with refused(optimizer, ValueError, "parameter"):
        optimizer.add_param_group({"params": [weight]})


@pytest.mark.parametrize("momentum", [2.0**-16, 0.0123456789, 0.949685610494662, 1 - 1e-9, 1.0])
@pytest.mark.parametrize("state_bits", [64, 32])
def test_any_other_momentum_is_taken_as_it_is(momentum: float, state_bits: int) -> None:
    """Schedulers that cycle the momentum write numbers with no short decimal form."""
    optimizer = rh.ReversibleSGD(random_parameters((3,)), lr=0.1, momentum=momentum, state_bits=state_bits)
    start = frozen(optimizer)
    closures = take_steps(optimizer, 3)
    limit = optimizer.memory()["limit_bits_per_weight_step"]
    assert limit == pytest.approx(-math.log2(momentum), rel=1e-15, abs=0)
    optimizer.rewind(reversed(closures))
    assert frozen(optimizer) == start
