"""The command line: ``python -m reversible_hypergrad tune | check``."""

from reversible_hypergrad.cli.commands import main

__all__ = ["main"]
