"""Next-character prediction by a small transformer with dropout, on a text file or a made-up text. Shared by long runs."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CONTEXT = 16
_CHARACTERS = 200_000  # at most so many are read


@functools.cache
def text() -> str:
    """The beginning of the file that RH_TEXT names; without it sentences of made-up words, the same on every machine."""
    path = os.environ.get("RH_TEXT")
    if path is None:
        return _made_up()
    try:
        found = Path(path).read_text(encoding="utf-8")[:_CHARACTERS]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"RH_TEXT: expected the path of a text file in UTF-8, got {path!r} ({error}); or unset it") from error
    if len(set(found)) < 2 or len(found) < 2 * CONTEXT:
        raise ValueError(f"RH_TEXT: expected a text of at least {2 * CONTEXT} characters, got {len(found)} in {path!r}")
    return found


def _made_up() -> str:
    """Words of syllables, the early ones far more frequent, so that there is something to learn at each character."""
    generator = torch.Generator().manual_seed(0)

    def draws(high: int, count: int) -> list[int]:
        return torch.randint(high, (count,), generator=generator).tolist()

    syllables = [c + v for c in "bdklmnrst" for v in "aeiou"]
    words = ["".join(syllables[i] for i in draws(len(syllables), 1 + n % 3)) for n in range(200)]
    ranks = (len(words) * torch.rand(8_000, generator=generator) ** 3).long().tolist()
    return " ".join(words[rank] + (".\n" if end == 0 else "") for rank, end in zip(ranks, draws(8, len(ranks)), strict=True))


class TextTransformer(nn.Module):
    """Two causal layers of width 32 with dropout."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        characters = len(set(text()))
        self.embed, self.position = nn.Embedding(characters, 32), nn.Parameter(0.02 * torch.randn(CONTEXT, 32))
        layers = [nn.TransformerEncoderLayer(32, 2, 64, dropout=0.1, batch_first=True, norm_first=True) for _ in range(2)]
        self.layers, self.norm, self.head = nn.ModuleList(layers), nn.LayerNorm(32), nn.Linear(32, characters)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(CONTEXT))

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.embed(tokens) + self.position
        for layer in self.layers:
            hidden = layer(hidden, src_mask=self.mask, is_causal=True)
        return self.head(self.norm(hidden))


@functools.cache
def _tokens() -> Tensor:
    number = {character: i for i, character in enumerate(sorted(set(text())))}
    return torch.tensor([number[character] for character in text()])


def text_closure(
    model: nn.Module, optimizer: torch.optim.Optimizer, step: int, losses: list[float], size: int = 8
) -> Callable[[], Tensor]:
    """Step number ``step`` of training: its passages of the text, and the random numbers of its dropout. Notes its loss."""

    def closure() -> Tensor:
        torch.manual_seed(step)
        optimizer.zero_grad()
        first = torch.randint(len(_tokens()) - CONTEXT, (size, 1))
        passages = _tokens()[first + torch.arange(CONTEXT + 1)]
        loss = F.cross_entropy(model(passages[:, :-1]).flatten(0, 1), passages[:, 1:].flatten())
        loss.backward()
        losses.append(loss.item())
        return loss

    return closure
