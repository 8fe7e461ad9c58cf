"""What a user of the command line did wrong, in one line."""

__all__ = ["UsageError", "first_line"]


class UsageError(Exception):
    """Ends the command with its message on stderr and exit status 2."""


def first_line(error: BaseException) -> str:
    """An error as one line, its type first unless it is the usual one for a wrong value."""
    text = " ".join(str(error).split()) or "no message"
    return text if isinstance(error, ValueError | TypeError) else f"{type(error).__name__}: {text}"
