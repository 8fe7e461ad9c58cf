"""A text as numbers of its characters."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from reversible_hypergrad.checks import check_integer
from reversible_hypergrad.datasets.examples import Examples
from reversible_hypergrad.datasets.files import Directory, missing, places

__all__ = ["Text"]


class Text:
    """A text file in UTF-8, for models of characters.

    Args:
        path: the file; or a folder with one file ``*.txt``, in it or in its subfolder ``text``.

    Attributes:
        characters: the distinct ones, in the order of their code points; a character's number is its place in it.
        ids: the text, int64 (length,).

    Raises:
        FileNotFoundError, OSError: for a file that is missing or cannot be read.
        ValueError: for one that is empty or not UTF-8, and for a folder with several.

    >>> from pathlib import Path
    >>> from reversible_hypergrad import datasets
    >>> _ = Path("some.txt").write_text("to be or not to be")
    >>> text = datasets.Text("some.txt")
    >>> text.characters, text.decode(text.ids[:5])
    (' benort', 'to be')
    >>> pairs = text.examples(length=4)
    >>> [(text.decode(x), text.decode(y)) for x, y in zip(pairs.x[:2], pairs.y[:2])]
    [('to b', 'o be'), ('e or', ' or ')]
    """

    def __init__(self, path: Directory) -> None:
        file = _file(Path(path))
        try:
            content = file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{file}: expected a text in UTF-8, but {error}. Convert it first") from None
        if not content:
            raise ValueError(f"{file}: expected at least one character, got an empty file")
        self.characters = "".join(sorted(set(content)))
        self.ids = self.encode(content)

    def encode(self, text: str) -> Tensor:
        """A text's numbers, int64 (len(text),).

        Raises:
            ValueError: for a character that the file does not have.
        """
        number = {character: i for i, character in enumerate(self.characters)}
        unknown = sorted(set(text) - set(number))
        if unknown:
            raise ValueError(
                f"text: expected characters of the file alone, which has {len(number)}, got {''.join(unknown)!r}, too"
            )
        return torch.tensor([number[character] for character in text], dtype=torch.int64)

    def decode(self, ids: Tensor | Sequence[int]) -> str:
        """The text of numbers of one dimension."""
        return "".join(self.characters[i] for i in (ids.tolist() if isinstance(ids, Tensor) else ids))

    def examples(self, length: int, stride: int | None = None) -> Examples:
        """Passages, and the same passages one character later: what next-character prediction is trained on.

        Args:
            length: characters per passage, at least 1 and less than the text's.
            stride: characters from the beginning of one passage to that of the next; None for ``length``, without overlap.

        Returns:
            x and y, both int64 (passages, length). The last passage is the last that is whole.

        Raises:
            TypeError, ValueError: for a length or stride that is no integer of at least 1, and a text that is too short.
        """
        check_integer("length", length, least=1)
        if stride is not None:
            check_integer("stride", stride, least=1, otherwise="None")
        if length >= len(self.ids):
            raise ValueError(f"length: expected less than the {len(self.ids)} characters of the text, got {length}")
        passages = self.ids.unfold(0, length + 1, length if stride is None else stride)
        return Examples(passages[:, :-1].contiguous(), passages[:, 1:].contiguous())


def _file(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is missing: expected a text file, or a folder with one file *.txt")
    folders = places(path, ["text"])
    files = [file for folder in folders for file in sorted(folder.glob("*.txt"))]
    if not files:
        raise missing("a file *.txt", folders, "Give the path of the text file itself")
    if len(files) > 1:
        raise ValueError(f"{path}: expected one file *.txt, got {', '.join(file.name for file in files)}. Give the path of one")
    return files[0]
