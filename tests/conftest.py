"""Loads the pack as ComfyUI does, by path and under a name of its own (`maskprompt`), and ComfyUI beside it."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from demo.pack import load_pack

load_pack()
