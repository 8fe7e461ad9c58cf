"""What a training run returns."""

from collections.abc import Mapping

from torch import Tensor

from reversible_hypergrad import pytree
from reversible_hypergrad.problem.report import Report

__all__ = ["TrainedWeights"]


class TrainedWeights(dict[str, Tensor]):
    """Parameter name -> trained tensor, attached to autograd as one node.

    Attributes:
        buffers: name -> the buffers after training (BatchNorm's running statistics), detached.
        report: what the run took.

    ``torch.func.functional_call(model, trained, x)`` runs the trained model, and
    ``functional_call(model, (trained, trained.buffers), x)`` with the trained buffers, as evaluation needs.
    """

    def __init__(self, weights: Mapping[str, Tensor], buffers: Mapping[str, Tensor], report: Report) -> None:
        super().__init__(weights)
        self.buffers = dict(buffers)
        self.report = report


# So that trained weights can stand wherever a dict of tensors can, such as in another run's hyperparameters.
pytree.register_dict(TrainedWeights, "reversible_hypergrad.training.TrainedWeights")
