"""The digits that come with scikit-learn."""

import numpy as np
import torch
from torch import Tensor

__all__ = ["Digits"]


class Digits:
    """1,797 handwritten digits of 8x8 pixels in 10 classes, which come with scikit-learn: no file is needed.

    They are the test part of the UCI Machine Learning Repository's "Optical Recognition of Handwritten Digits" (Alpaydin, Kaynak
    1998), in shades from 0 to 16. Divide them by :func:`split`.

    Attributes:
        x: float32 (1797, 1, 8, 8) in [0, 1].
        y: int64 (1797,).
        classes: their number, 10.

    Raises:
        ImportError: where scikit-learn is not installed.

    >>> from reversible_hypergrad import datasets
    >>> digits = datasets.Digits()
    >>> training, test = datasets.split(digits.x, digits.y, [1200, 597], seed=0)
    >>> tuple(training.x.shape), len(test)
    ((1200, 1, 8, 8), 597)
    """

    classes = 10
    x: Tensor
    y: Tensor

    def __init__(self) -> None:
        try:
            from sklearn.datasets import load_digits  # type: ignore[import-untyped]
        except ImportError:
            raise ImportError("the digits come with scikit-learn, which is not installed: pip install scikit-learn") from None
        digits = load_digits()
        self.x = torch.from_numpy(np.asarray(digits.images).astype(np.float32)).unsqueeze(1) / 16
        self.y = torch.from_numpy(np.asarray(digits.target).astype(np.int64))
