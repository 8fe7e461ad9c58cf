"""Files without a name, which a process has open."""

from __future__ import annotations

import os
from pathlib import Path


def open_files(directory: Path, process: int | str = "self") -> list[Path]:
    """Those of ``directory``. The paths can be read, written and truncated."""
    links = Path(f"/proc/{process}/fd")
    return [link for link in links.iterdir() if link.is_symlink() and os.readlink(link).startswith(f"{directory}/")]
