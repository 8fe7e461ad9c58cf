"""The models of the GPU bench. Every operation has a deterministic form on CUDA, and a second derivative."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Transformer", "language_model", "resnet"]


class Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.short = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.short(x))


class Mean(nn.Module):
    """Over rows and columns. Adaptive pooling has no deterministic backward on CUDA."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def resnet(width: int = 32, blocks: int = 2) -> nn.Module:
    """(n, 3, 32, 32) -> (n, 10); 700,000 weights as it stands."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    channels = width
    for stage in range(3):
        for block in range(blocks):
            outputs = width << stage
            layers.append(Residual(channels, outputs, 2 if stage and not block else 1))
            channels = outputs
    return nn.Sequential(*layers, Mean(), nn.Linear(channels, 10))


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        n, length, width = x.shape
        # Written out: flash and efficient attention have no second derivative.
        q, k, v = self.attention(self.before(x)).view(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = (q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5
        mixed = (scores + mask).softmax(-1) @ v
        x = x + self.out(mixed.transpose(1, 2).reshape(n, length, width))
        return x + self.narrow(F.gelu(self.wide(self.between(x))))


class Transformer(nn.Module):
    """Bytes (n, length) -> logits of the next byte (n, length, 256)."""

    def __init__(self, width: int, layers: int, heads: int, context: int) -> None:
        super().__init__()
        self.bytes = nn.Embedding(256, width)
        self.places = nn.Parameter(torch.randn(context, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.last, self.logits = nn.LayerNorm(width), nn.Linear(width, 256)
        self.register_buffer("mask", torch.full((context, context), float("-inf")).triu(1))

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        x = self.bytes(tokens) + self.places[:length]
        for block in self.blocks:
            x = block(x, self.mask[:length, :length])  # type: ignore[index]
        return self.logits(self.last(x))  # type: ignore[no-any-return]


def language_model(tiny: bool = False) -> Transformer:
    """101 million weights; ``tiny``: 12,000."""
    return Transformer(16, 1, 2, 16) if tiny else Transformer(1024, 8, 16, 128)
