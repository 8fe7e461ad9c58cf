"""The exact arithmetic for research: fixed point, lazy scales, bit planes, their rate, on NumPy arrays.

Everything here is the arithmetic that the optimizer runs; the integers move in the same C++.

>>> import numpy as np
>>> from reversible_hypergrad import core
>>> scale = core.LazyScale(exponent=-20)
>>> velocity = core.quantize([-7e-6, 0.25, 0.0], scale.sigma)
>>> velocity
array([    -7, 262144,      0])
>>> shift, centre = scale.decay(0.3)
>>> decayed, planes = core.contract(velocity, shift, centre)
>>> core.dequantize(decayed, scale.sigma)
array([-1.71661377e-06,  7.50000000e-02,  0.00000000e+00])
>>> core.expand(decayed, planes, *scale.undo())
array([    -7, 262144,      0])
"""

from reversible_hypergrad._ops import cuda_in_build, instruction_sets, use_instruction_set
from reversible_hypergrad.core.fixed_point import FORMATS, FixedPointFormat, dequantize, quantize
from reversible_hypergrad.core.lazy_scale import LazyScale
from reversible_hypergrad.core.planes import contract, expand
from reversible_hypergrad.core.rate import information_limit, planned_bits
from reversible_hypergrad.core.reversible_decay import ReversibleDecay

__all__ = [
    "FORMATS",
    "FixedPointFormat",
    "LazyScale",
    "ReversibleDecay",
    "contract",
    "cuda_in_build",
    "dequantize",
    "expand",
    "information_limit",
    "instruction_sets",
    "planned_bits",
    "quantize",
    "use_instruction_set",
]
