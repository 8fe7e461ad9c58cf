"""torch.nn's layers, its parametrizations of weights, and recurrent and attention layers."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrizations

from bench.second_derivatives.cases import Case, case, integers, normal

__all__ = ["LAYERS"]


class Unpooled(nn.Module):
    """Max pooling and its inverse."""

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        self.pool = getattr(nn, f"MaxPool{dimensions}d")(2, return_indices=True)
        self.unpool = getattr(nn, f"MaxUnpool{dimensions}d")(2)

    def forward(self, x: Tensor) -> Any:
        return self.unpool(*self.pool(x))


class Itself(nn.Module):
    """Attention of its input by itself."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.attention, self.weighted = nn.MultiheadAttention(4, 2, **options), "need" not in options

    def forward(self, x: Tensor) -> Any:
        return self.attention(x, x, x, need_weights=self.weighted)


def _activations() -> dict[str, Case]:
    plain = (
        "CELU ELU GELU Hardshrink Hardsigmoid Hardswish Hardtanh LeakyReLU LogSigmoid Mish PReLU ReLU ReLU6 RReLU SELU SiLU "
        "Sigmoid Softplus Softshrink Softsign Tanh Tanhshrink"
    )
    made: dict[str, Callable[[], nn.Module]] = {name: getattr(nn, name) for name in plain.split()}
    made |= {
        "GELU(approximate='tanh')": lambda: nn.GELU("tanh"),
        "GLU": lambda: nn.GLU(1),
        "LogSoftmax": lambda: nn.LogSoftmax(1),
        "Softmax": lambda: nn.Softmax(1),
        "Softmin": lambda: nn.Softmin(1),
        "Threshold": lambda: nn.Threshold(0.1, 0.5),
        "RReLU in eval mode": lambda: nn.RReLU().eval(),
    }
    inputs = (normal(5, 6),)
    return {name: Case(make, inputs) for name, make in made.items()} | {"Softmax2d": Case(nn.Softmax2d, [normal(2, 3, 2, 2)])}


def _by_dimensions() -> dict[str, Case]:
    """Layers that exist for one, two and three dimensions."""
    found: dict[str, Case] = {}
    for d in (1, 2, 3):
        sides, batch = (5, 4, 3)[:d], normal(2, 3, *(5, 4, 3)[:d])
        options: dict[str, tuple[Any, ...] | dict[str, Any]] = {
            f"AdaptiveAvgPool{d}d": (2,),
            f"AdaptiveMaxPool{d}d": (2,),
            f"AvgPool{d}d": (2,),
            f"BatchNorm{d}d": (3,),
            f"CircularPad{d}d": (1,),
            f"ConstantPad{d}d": (1, 0.5),
            f"Conv{d}d": (3, 2, 2),
            f"ConvTranspose{d}d": (3, 2, 2),
            f"Dropout{d}d": (0.5,),
            f"InstanceNorm{d}d": {"num_features": 3, "affine": True},
            f"LPPool{d}d": (2.0, 2),
            f"MaxPool{d}d": (2,),
            f"ReflectionPad{d}d": (1,),
            f"ReplicationPad{d}d": (1,),
            f"ZeroPad{d}d": (1,),
        }
        for name, own in options.items():
            kind = getattr(nn, name)
            make = (lambda kind=kind, own=own: kind(**own)) if isinstance(own, dict) else lambda kind=kind, own=own: kind(*own)
            found[name] = Case(make, [batch])
        found[f"BatchNorm{d}d in eval mode"] = Case(lambda d=d: getattr(nn, f"BatchNorm{d}d")(3).eval(), [batch])
        found[f"MaxUnpool{d}d"] = Case(lambda d=d: Unpooled(d), [normal(2, 3, *(4,) * d)])
        found[f"Conv{d}d, in groups, strided, dilated, circular"] = Case(
            lambda d=d: getattr(nn, f"Conv{d}d")(4, 4, 2, stride=2, dilation=2, groups=2, padding=1, padding_mode="circular"),
            [normal(2, 4, *sides)],
        )
    for d in (2, 3):
        kind = getattr(nn, f"FractionalMaxPool{d}d")
        found[f"FractionalMaxPool{d}d"] = Case(lambda kind=kind: kind(2, output_size=2), [normal(2, 3, *(5,) * d)])
    return found


def _others() -> dict[str, Case]:
    table, image = normal(5, 6), normal(2, 4, 3, 3)
    return {
        "AlphaDropout": case(lambda: nn.AlphaDropout(0.5), table),
        "Bilinear": case(lambda: nn.Bilinear(3, 4, 2), normal(5, 3), normal(5, 4)),
        "ChannelShuffle": case(lambda: nn.ChannelShuffle(2), image),
        "CosineSimilarity": case(lambda: nn.CosineSimilarity(), normal(5, 4), normal(5, 4)),
        "CrossMapLRN2d": case(lambda: nn.CrossMapLRN2d(2), image),
        "Dropout": case(lambda: nn.Dropout(0.5), table),
        "Embedding": case(lambda: nn.Embedding(5, 3), integers(5, 4)),
        "Embedding(scale_grad_by_freq=True)": case(lambda: nn.Embedding(5, 3, scale_grad_by_freq=True), integers(5, 4)),
        "EmbeddingBag(mode='sum')": case(lambda: nn.EmbeddingBag(5, 3, mode="sum"), integers(5, 4, 2)),
        "EmbeddingBag(mode='mean')": case(lambda: nn.EmbeddingBag(5, 3, mode="mean"), integers(5, 4, 2)),
        "EmbeddingBag(mode='max')": case(lambda: nn.EmbeddingBag(5, 3, mode="max"), integers(5, 4, 2)),
        "FeatureAlphaDropout": case(lambda: nn.FeatureAlphaDropout(0.5), image),
        "Flatten": case(lambda: nn.Flatten(), image),
        "Fold": case(lambda: nn.Fold((4, 5), 2), normal(2, 8, 12)),
        "GroupNorm": case(lambda: nn.GroupNorm(2, 4), image),
        "Identity": case(lambda: nn.Identity(), table),
        "LayerNorm": case(lambda: nn.LayerNorm(6), table),
        "Linear": case(lambda: nn.Linear(6, 3), table),
        "LocalResponseNorm": case(lambda: nn.LocalResponseNorm(2), image),
        "PairwiseDistance": case(lambda: nn.PairwiseDistance(), normal(5, 4), normal(5, 4)),
        "PixelShuffle": case(lambda: nn.PixelShuffle(2), image),
        "PixelUnshuffle": case(lambda: nn.PixelUnshuffle(2), normal(2, 2, 4, 4)),
        "RMSNorm": case(lambda: nn.RMSNorm(6), table),
        "SyncBatchNorm": case(lambda: nn.SyncBatchNorm(4).eval(), image),  # training needs GPUs
        "Unflatten": case(lambda: nn.Unflatten(1, (2, 3)), table),
        "Unfold": case(lambda: nn.Unfold(2), image),
        "UpsamplingBilinear2d": case(lambda: nn.UpsamplingBilinear2d(scale_factor=2), image),
        "UpsamplingNearest2d": case(lambda: nn.UpsamplingNearest2d(scale_factor=2), image),
        "Upsample": case(lambda: nn.Upsample(scale_factor=2, mode="bicubic"), image),
    }


def _sequences() -> dict[str, Case]:
    sequence, encoder = normal(3, 2, 4), {"dim_feedforward": 6, "dropout": 0.1}
    return {
        **{name: Case(lambda name=name: getattr(nn, name)(4, 3), [normal(2, 4)]) for name in ("RNNCell", "GRUCell", "LSTMCell")},
        "RNN": case(lambda: nn.RNN(4, 3, 2), sequence),
        "RNN(nonlinearity='relu')": case(lambda: nn.RNN(4, 3, nonlinearity="relu"), sequence),
        "GRU": case(lambda: nn.GRU(4, 3, 2, dropout=0.3), sequence),
        "LSTM": case(lambda: nn.LSTM(4, 3, 2, dropout=0.3), sequence),
        "LSTM(bidirectional=True)": case(lambda: nn.LSTM(4, 3, bidirectional=True), sequence),
        "LSTM(proj_size=2)": case(lambda: nn.LSTM(4, 3, proj_size=2), sequence),
        "MultiheadAttention": case(lambda: Itself(), sequence),
        "MultiheadAttention(dropout=0.2, add_bias_kv=True)": case(lambda: Itself(dropout=0.2, add_bias_kv=True), sequence),
        "Transformer": case(lambda: nn.Transformer(4, 2, 1, 1, **encoder), sequence, normal(2, 2, 4)),
        "TransformerEncoderLayer": case(lambda: nn.TransformerEncoderLayer(4, 2, **encoder), sequence),
        "TransformerEncoderLayer(activation='gelu', norm_first=True)": case(
            lambda: nn.TransformerEncoderLayer(4, 2, **encoder, activation="gelu", norm_first=True), sequence
        ),
        "TransformerDecoderLayer": case(lambda: nn.TransformerDecoderLayer(4, 2, **encoder), sequence, normal(2, 2, 4)),
        "TransformerEncoder": case(lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, **encoder), 2), sequence),
        "TransformerDecoder": case(
            lambda: nn.TransformerDecoder(nn.TransformerDecoderLayer(4, 2, **encoder), 2), sequence, normal(2, 2, 4)
        ),
    }


def _parametrized() -> dict[str, Case]:
    table, image = normal(5, 6), normal(2, 4, 3, 3)
    p = parametrizations
    return {
        "weight_norm": case(lambda: p.weight_norm(nn.Linear(6, 3)), table),
        "weight_norm(dim=1)": case(lambda: p.weight_norm(nn.Linear(6, 3), dim=1), table),
        "weight_norm(dim=None)": case(lambda: p.weight_norm(nn.Linear(6, 3), dim=None), table),
        "weight_norm of Conv2d": case(lambda: p.weight_norm(nn.Conv2d(4, 2, 2)), image),
        "weight_norm of ConvTranspose2d": case(lambda: p.weight_norm(nn.ConvTranspose2d(4, 2, 2), dim=1), image),
        "weight_norm, the deprecated one": case(lambda: nn.utils.weight_norm(nn.Linear(6, 3)), table),
        "spectral_norm": case(lambda: p.spectral_norm(nn.Linear(6, 3)).eval(), table),
        "spectral_norm of Conv2d": case(lambda: p.spectral_norm(nn.Conv2d(4, 2, 2)).eval(), image),
        "spectral_norm, the deprecated one": case(lambda: nn.utils.spectral_norm(nn.Linear(6, 3)).eval(), table),
        **{
            f"orthogonal, by {way}": Case(lambda way=way: p.orthogonal(nn.Linear(6, 6), orthogonal_map=way), [table])
            for way in ("matrix_exp", "cayley", "householder")
        },
        "orthogonal of another shape": case(lambda: p.orthogonal(nn.Linear(6, 3)), table),
    }


LAYERS = {**_activations(), **_by_dimensions(), **_others(), **_sequences(), **_parametrized()}
