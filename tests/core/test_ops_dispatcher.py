"""The dispatcher ops pass opcheck, and name a wrong argument before anything moves."""

from __future__ import annotations

import oracle
import pytest
import torch
from core_problems import EACH_RULE, OPS, WIDTHS, sample


@WIDTHS
@EACH_RULE
@pytest.mark.parametrize("op", ["step", "move_weights", "undo_states"])
def test_opcheck(state_bits, rule, op):
    torch.library.opcheck(getattr(OPS, op).default, sample(state_bits, rule)[op])


@WIDTHS
@pytest.mark.parametrize("op", ["step", "move_weights", "undo_states"])
def test_opcheck_of_a_step_that_may_be_refused(state_bits, op):
    refusal = {"first_refused": torch.tensor([5]), "number": 5}
    torch.library.opcheck(getattr(OPS, op).default, sample(state_bits)[op], refusal)


def set_to(*place, value):
    def spoil(table: torch.Tensor) -> torch.Tensor:
        table = table.clone()
        table[place] = value
        return table

    return spoil


WRONG_ARGUMENTS = {
    "another rule": ("rule", lambda _: "momentum of inertia", "rule.*momentum of inertia"),
    "gradients missing": ("gradients", lambda g: g[:-1], "gradients: expected"),
    "gradient of another size": ("gradients", lambda g: [g[0][1:], *g[1:]], r"gradients\[0\]: expected"),
    "gradient of another dtype": ("gradients", lambda g: [g[0].half(), *g[1:]], r"gradients\[0\]: expected"),
    "gradient of other strides": ("gradients", lambda g: [g[0].repeat(2)[::2], *g[1:]], r"gradients\[0\]: expected"),
    "x too short": ("x", lambda x: x[1:], "x: expected"),
    "x of floats": ("x", lambda x: x.double(), "x: expected"),
    "a state too many": ("states", lambda s: [*s, s[0].clone()], "states: expected"),
    "a state too few": ("states", lambda s: s[1:], "states: expected"),
    "state too short": ("states", lambda s: [*s[:-1], s[-1][1:]], "states: expected"),
    "state of another dtype": ("states", lambda s: [*s[:-1], s[-1].double()], "states: expected"),
    "numbers of another count": ("numbers", lambda n: n[:, 1:], "numbers: expected"),
    "numbers of another dtype": ("numbers", lambda n: n.float(), "numbers: expected"),
    "shifts of too few tensors": ("shifts", lambda s: s[1:], "shifts: expected"),
    "shifts of another dtype": ("shifts", lambda s: s.int(), "shifts: expected"),
    "a negative shift": ("shifts", set_to(0, 1, value=-1), "shifts: expected"),
    "a shift beyond the integers": ("shifts", set_to(0, 1, value=64), "shifts: expected"),
    "elements of another count": ("elements", lambda _: [torch.empty(0)], "elements: expected"),
    "planes too short": ("planes", lambda p: p[1:], "planes: expected"),
    "planes of another dtype": ("planes", lambda p: p.short(), "planes: expected"),
    "outcome too short": ("outcome", lambda o: o[1:], "outcome: expected"),
    "two words of refusal": ("first_refused", lambda _: torch.zeros(2, dtype=torch.int64), "first_refused: expected"),
    "refusal of another dtype": ("first_refused", lambda _: torch.zeros(1), "first_refused: expected"),
    "skipped of another size": ("skipped", lambda s: torch.zeros(1, dtype=torch.uint8), "skipped: expected"),
}


@WIDTHS
@EACH_RULE
@pytest.mark.parametrize("case", WRONG_ARGUMENTS)
def test_wrong_argument_is_named_and_nothing_moves(state_bits, rule, case):
    assert_refused(sample(state_bits, rule)["step"], *WRONG_ARGUMENTS[case])


def test_a_wide_state_of_32_bits_is_refused():
    """All other integers of this bucket have 32."""
    assert_refused(sample(32, oracle.Adam)["step"], "states", lambda s: [s[0], s[1].int()], "states: expected")


def assert_refused(arguments: tuple, name: str, spoil, message: str) -> None:
    """And nothing moves."""
    names = [argument.name for argument in OPS.step.default._schema.arguments]
    values = dict(zip(names, arguments, strict=False))  # without the optional ones
    state = values["x"], *values["states"], *values["weights"], values["planes"]
    before = [t.clone() for t in state]
    with pytest.raises(RuntimeError, match=message):
        OPS.step(**{**values, name: spoil(values.get(name))})
    for t, expected in zip(state, before, strict=True):
        assert torch.equal(t, expected)


@WIDTHS
@EACH_RULE
def test_gradients_of_tensors_that_take_no_part_are_not_looked_at(state_bits, rule):
    values = list(sample(state_bits, rule)["step"])
    assert values[6][1, 0] == 0
    values[2] = [values[2][0], torch.empty(3, dtype=torch.int8), values[2][2]]
    OPS.step(*values)
    assert values[-1][1 :: 2 + len(rule.powers)].tolist() == [0, 0, 0]
