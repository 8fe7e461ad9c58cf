"""A tiny run's arguments."""

from __future__ import annotations

# Seconds in place of a minute.
TINY = ["tune", "--steps", "6", "--meta-steps", "2", "--hidden", "4", "--batch-size", "8"]
