"""torch.nn's losses. Targets that are numbers count as variables, too, where the formula is differentiable by them."""

import torch
from torch import nn
from torch.nn import functional as F

from bench.second_derivatives.cases import Case, case, classes, integers, normal, positive, probabilities, signs

__all__ = ["LOSSES"]

_PAIR = normal(5, 4), normal(5, 4)
_CLASSES = normal(6, 4), classes(4, 6)
_LENGTHS = lambda: torch.full((2,), 6), lambda: torch.tensor([3, 2])

LOSSES: dict[str, Case] = {
    "AdaptiveLogSoftmaxWithLoss": case(
        lambda: nn.AdaptiveLogSoftmaxWithLoss(5, 8, [3], div_value=2.0), normal(8, 5), classes(8, 8)
    ),
    "BCELoss": case(lambda: nn.BCELoss(), probabilities(5, 4), probabilities(5, 4)),
    "BCEWithLogitsLoss": case(lambda: nn.BCEWithLogitsLoss(), normal(5, 4), probabilities(5, 4)),
    "BCEWithLogitsLoss(pos_weight=...)": case(
        lambda: nn.BCEWithLogitsLoss(pos_weight=torch.linspace(0.5, 2, 4)), normal(5, 4), probabilities(5, 4)
    ),
    "CTCLoss": case(lambda: nn.CTCLoss(), lambda: normal(6, 2, 4)().log_softmax(2), lambda: 1 + integers(3, 2, 3)(), *_LENGTHS),
    "CosineEmbeddingLoss": case(lambda: nn.CosineEmbeddingLoss(0.1), *_PAIR, signs(5)),
    "CrossEntropyLoss": case(lambda: nn.CrossEntropyLoss(), *_CLASSES),
    "CrossEntropyLoss(label_smoothing=0.1)": case(lambda: nn.CrossEntropyLoss(label_smoothing=0.1), *_CLASSES),
    "CrossEntropyLoss(weight=...)": case(lambda: nn.CrossEntropyLoss(torch.linspace(0.5, 2, 4)), *_CLASSES),
    "CrossEntropyLoss, by probabilities": case(lambda: nn.CrossEntropyLoss(), normal(6, 4), probabilities(6, 4)),
    "CrossEntropyLoss of an image": case(lambda: nn.CrossEntropyLoss(), normal(2, 3, 2, 2), classes(3, 2, 2, 2)),
    "GaussianNLLLoss": case(lambda: nn.GaussianNLLLoss(), *_PAIR, positive(5, 4)),
    "HingeEmbeddingLoss": case(lambda: nn.HingeEmbeddingLoss(), normal(5, 4), signs(5, 4)),
    "HuberLoss": case(lambda: nn.HuberLoss(), *_PAIR),
    "KLDivLoss": case(lambda: nn.KLDivLoss(reduction="batchmean"), lambda: normal(5, 4)().log_softmax(1), probabilities(5, 4)),
    "KLDivLoss(log_target=True)": case(
        lambda: nn.KLDivLoss(reduction="batchmean", log_target=True), *(lambda: normal(5, 4)().log_softmax(1),) * 2
    ),
    "L1Loss": case(lambda: nn.L1Loss(), *_PAIR),
    "LinearCrossEntropyLoss": case(lambda: nn.LinearCrossEntropyLoss(5, 4), normal(6, 5), classes(4, 6)),
    "MSELoss": case(lambda: nn.MSELoss(), *_PAIR),
    "MarginRankingLoss": case(lambda: nn.MarginRankingLoss(0.1), normal(5), normal(5), signs(5)),
    "MultiLabelMarginLoss": case(
        lambda: nn.MultiLabelMarginLoss(), normal(2, 4), lambda: torch.tensor([[3, 0, -1, 1], [1, -1, 0, 2]])
    ),
    "MultiLabelSoftMarginLoss": case(lambda: nn.MultiLabelSoftMarginLoss(), normal(5, 4), integers(2, 5, 4)),
    "MultiMarginLoss": case(lambda: nn.MultiMarginLoss(), *_CLASSES),
    "MultiMarginLoss(p=2)": case(lambda: nn.MultiMarginLoss(p=2), *_CLASSES),
    "NLLLoss": case(lambda: nn.NLLLoss(), *_CLASSES),
    "NLLLoss2d": case(lambda: nn.NLLLoss(), normal(2, 3, 2, 2), classes(3, 2, 2, 2)),
    "PoissonNLLLoss": case(lambda: nn.PoissonNLLLoss(), normal(5, 4), positive(5, 4)),
    "PoissonNLLLoss(full=True)": case(lambda: nn.PoissonNLLLoss(full=True), normal(5, 4), lambda: 1.5 + positive(5, 4)()),
    "SmoothL1Loss": case(lambda: nn.SmoothL1Loss(), *_PAIR),
    "SoftMarginLoss": case(lambda: nn.SoftMarginLoss(), normal(5, 4), signs(5, 4)),
    "TripletMarginLoss": case(lambda: nn.TripletMarginLoss(), *_PAIR, normal(5, 4)),
    "TripletMarginLoss(p=1)": case(lambda: nn.TripletMarginLoss(p=1), *_PAIR, normal(5, 4)),
    "TripletMarginWithDistanceLoss": case(
        lambda: nn.TripletMarginWithDistanceLoss(distance_function=lambda a, b: 1 - F.cosine_similarity(a, b)),
        *_PAIR,
        normal(5, 4),
    ),
}
