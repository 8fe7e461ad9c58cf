"""Readers of data sets that lie in a folder, few-shot episodes, splits by seed and flipped labels. Nothing is downloaded.

>>> import torch
>>> from reversible_hypergrad import datasets
>>> x, y = torch.rand(60, 4), torch.arange(60) % 3
>>> training, validation = datasets.split(x, y, sizes=[40, 20], seed=0)
>>> labels, is_flipped = datasets.flipped(training.y, share=0.5, classes=3, seed=0)
>>> len(training), int(is_flipped.sum()), bool((labels != training.y).equal(is_flipped))
(40, 20, True)
"""

from reversible_hypergrad.datasets.cifar10 import CIFAR10
from reversible_hypergrad.datasets.digits import Digits
from reversible_hypergrad.datasets.episodes import Episode, Episodes
from reversible_hypergrad.datasets.examples import Examples, split
from reversible_hypergrad.datasets.image_folder import ImageFolder
from reversible_hypergrad.datasets.mnist import MNIST
from reversible_hypergrad.datasets.noise import flipped
from reversible_hypergrad.datasets.omniglot import Omniglot
from reversible_hypergrad.datasets.text import Text

__all__ = ["CIFAR10", "MNIST", "Digits", "Episode", "Episodes", "Examples", "ImageFolder", "Omniglot", "Text", "flipped", "split"]
