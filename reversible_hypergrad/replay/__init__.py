"""What makes a step's gradient come out the same twice: batches by step, seeded randomness, pinned settings."""

from reversible_hypergrad.replay.loader import ReplayableLoader
from reversible_hypergrad.replay.micro_batches import MicroBatches

__all__ = ["MicroBatches", "ReplayableLoader"]
