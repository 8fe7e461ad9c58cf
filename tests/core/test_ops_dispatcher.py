"""The dispatcher ops pass opcheck, and name a wrong argument before anything moves."""

from __future__ import annotations

import pytest
import torch
from core_problems import OPS, WIDTHS, sample


@WIDTHS
@pytest.mark.parametrize("op", ["sgd_step", "sgd_move_weights", "sgd_undo_velocity"])
def test_opcheck(state_bits, op):
    torch.library.opcheck(getattr(OPS, op).default, sample(state_bits)[op])


@WIDTHS
@pytest.mark.parametrize("op", ["sgd_step", "sgd_move_weights", "sgd_undo_velocity"])
def test_opcheck_of_a_step_that_may_be_refused(state_bits, op):
    refusal = {"first_refused": torch.tensor([5]), "number": 5}
    torch.library.opcheck(getattr(OPS, op).default, sample(state_bits)[op], refusal)


WRONG_ARGUMENTS = {
    "active too short": ("active", lambda a: a[:-1], "active"),
    "coefficients of another count": ("coefficients", lambda c: c[:-1], "coefficients"),
    "gradient of another size": ("gradients", lambda g: [g[0][1:], *g[1:]], r"gradients\[0\]"),
    "gradient of another dtype": ("gradients", lambda g: [g[0].half(), *g[1:]], r"gradients\[0\]"),
    "state too short": ("state_weights", lambda x: x[1:], "state_weights"),
    "velocities of another dtype": ("velocities", lambda v: v.double(), "velocities"),
    "accumulators too short": ("accumulators", lambda s: s[1:], "accumulators"),
    "planes missing": ("planes", lambda p: p[:-1], "planes"),
    "plane too short": ("planes", lambda p: [p[0][1:], *p[1:]], "planes"),
    "spill_bits of another count": ("spill_bits", lambda b: b[:-1], "spill_bits"),
    "spill_bits of an odd width": ("spill_bits", lambda b: [4, *b[1:]], "spill_bits"),
    "momentum above 1": ("n", lambda n: 11, "n/d"),
    "momentum 0": ("n", lambda n: 0, "n/d"),
    "denominator beyond the format": ("d", lambda d: 2**16 + 1, "n/d"),
    "outcome too short": ("outcome", lambda o: o[1:], "outcome"),
    "two words of refusal": ("first_refused", lambda _: torch.zeros(2, dtype=torch.int64), "first_refused"),
    "refusal of another dtype": ("first_refused", lambda _: torch.zeros(1), "first_refused"),
    "skipped of another size": ("skipped", lambda s: torch.zeros(1, dtype=torch.uint8), "skipped"),
}


@WIDTHS
@pytest.mark.parametrize("case", WRONG_ARGUMENTS)
def test_wrong_argument_is_named_and_nothing_moves(state_bits, case):
    arguments = sample(state_bits)["sgd_step"]
    names = [argument.name for argument in OPS.sgd_step.default._schema.arguments]
    name, spoil, message = WRONG_ARGUMENTS[case]
    values = dict(zip(names, arguments, strict=False))  # without the optional ones
    before = [values[k].clone() for k in ("state_weights", "velocities", "accumulators")]
    with pytest.raises(RuntimeError, match=message):
        OPS.sgd_step(**{**values, name: spoil(values.get(name))})
    for k, expected in zip(("state_weights", "velocities", "accumulators"), before, strict=True):
        assert torch.equal(values[k], expected)
