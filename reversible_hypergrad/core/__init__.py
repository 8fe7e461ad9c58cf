"""The exact arithmetic for research: fixed point, rational momentum, the information buffer, on NumPy arrays.

Everything here is the same C++ that the optimizer runs, one element per lane.

>>> import numpy as np
>>> from reversible_hypergrad import core
>>> core.approximate_momentum(0.9)
Fraction(9, 10)
>>> velocity = np.array([-7, 123456, 0])
>>> buffer = core.InformationBuffer(lanes=3)
>>> decayed = buffer.contract(velocity, core.approximate_momentum(0.9))
>>> decayed
array([    -6, 111111,      0])
>>> buffer.expand(decayed, core.approximate_momentum(0.9))
array([    -7, 123456,      0])
"""

from reversible_hypergrad._ops import cuda_in_build, instruction_sets, use_instruction_set
from reversible_hypergrad.core.fixed_point import FORMATS, FixedPointFormat, dequantize, quantize
from reversible_hypergrad.core.information_buffer import InformationBuffer
from reversible_hypergrad.core.rational import approximate_momentum, information_limit, plan_capacity

__all__ = [
    "FORMATS",
    "FixedPointFormat",
    "InformationBuffer",
    "approximate_momentum",
    "cuda_in_build",
    "dequantize",
    "information_limit",
    "instruction_sets",
    "plan_capacity",
    "quantize",
    "use_instruction_set",
]
