"""The two codecs that bench.codecs compares: both exact, the compiled one the same as the one in NumPy."""

import re
from fractions import Fraction

import numpy as np
import pytest

from bench.codecs import __main__ as codecs
from bench.codecs import speed
from bench.codecs.rational import FORMATS, RationalDecay, approximate
from reversible_hypergrad import core

WIDTHS = pytest.mark.parametrize("state_bits", [64, 32])


@pytest.fixture(scope="module")
def library():
    return speed.compiled()


def test_a_momentum_is_the_simplest_fraction_within_the_tolerance():
    assert approximate(0.9, 64) == approximate(0.9, 32) == Fraction(9, 10)
    assert approximate(0.8731, 64) == Fraction(8731, 10000)
    assert approximate(0.8731, 32) == Fraction(55, 63)
    with pytest.raises(ValueError, match="d <= 8192"):
        approximate(1 - 1e-5, 32)


@WIDTHS
def test_the_rational_codec_is_exact_and_its_bits_near_the_limit(state_bits):
    state = RationalDecay(1003, 20, state_bits)
    kicks = np.random.default_rng(0).normal(size=(300, 1003))
    for step, kick in enumerate(kicks):
        state.decay((0.9, 0.5, 0.99)[step % 3])
        state.add(kick)
        assert state.accumulators.max() < state.bound <= FORMATS[state_bits].capacity
    assert state.limit < state.bits < 1.02 * state.limit
    for kick in kicks[::-1]:
        state.undo_add(kick)
        state.undo_decay()
    assert state.is_at_the_start()


@WIDTHS
def test_compiled_rational_contraction_is_the_one_in_numpy(library, state_bits):
    blocks = 3
    values = np.random.default_rng(0).integers(-(2**29), 2**29, blocks * 512).astype(np.dtype(f"int{state_bits}"))
    plain = RationalDecay(values.size, 0, state_bits)
    plain.integers = values.reshape(blocks, 8, 64).swapaxes(0, 1).reshape(8, -1).astype(np.int64)
    compiled = speed.Rational(library, values.copy(), 0.9)
    compiled.decay()
    for _ in range(speed.STEPS):
        plain.decay(0.9)
    assert sum(np.count_nonzero(spill) for spill, _ in compiled.log) > 0
    ours = compiled.values.reshape(blocks, 8, 64).swapaxes(0, 1).reshape(8, -1)
    np.testing.assert_array_equal(ours, plain.integers)
    np.testing.assert_array_equal(compiled.accumulators, plain.accumulators)
    compiled.undo()
    np.testing.assert_array_equal(compiled.values, values)
    assert not compiled.accumulators.any()


@WIDTHS
def test_compiled_planes_are_the_cores(library, state_bits):
    values = np.random.default_rng(0).integers(-(2**29), 2**29, 512).astype(np.dtype(f"int{state_bits}"))
    compiled = speed.Planes(library, values.copy(), 0.3)
    compiled.decay()
    expected = values
    for shift, centre, planes in compiled.log:
        expected, kept = core.contract(expected, shift, centre)
        np.testing.assert_array_equal(planes, kept.ravel())
    np.testing.assert_array_equal(compiled.values, expected)


def test_tables_are_printed_and_written(capsys, tmp_path):
    out = tmp_path / "codecs.md"
    codecs.main(["--steps", "3", "--weights", "2000", "--turns", "1", "--out", str(out)])
    assert out.read_text() == capsys.readouterr().out
    rows = [row for row in out.read_text().splitlines() if re.match(r"\| [\d.]+", row)]
    assert len(rows) == 5 * 4 + 2
    assert "| 0.8731 | 0.19578 | n/d | 32 | 55/63 |" in out.read_text()
