"""Where nodes save weights: ComfyUI's output folder, without overwriting."""

from __future__ import annotations

import os
from pathlib import Path

LONGEST = 200
"""Bytes that each part of a prefix may have: with a number and an ending a file's name stays below the 255 of most systems."""


def free_path(prefix: str, example: str) -> Path:
    """A new file's path in ComfyUI's output folder, `prefix` with a number, and the folder made.

    ValueError, with a prefix such as `example` to take instead, outside of that folder.
    """
    import folder_paths

    _check_prefix(prefix, example)
    try:
        folder, name, counter, *_ = folder_paths.get_save_image_path(prefix, folder_paths.get_output_directory())
    except Exception as error:  # a plain Exception for places outside of the folder
        reason = error.strerror if isinstance(error, OSError) else "it leads out of ComfyUI's output folder"
        raise ValueError(f"nothing can be saved as '{prefix}': {reason}. Use a name such as {example}.") from error
    while any(os.path.exists(os.path.join(folder, f"{name}_{counter:05}_{ending}")) for ending in (".safetensors", "")):
        counter += 1
    return Path(folder, f"{name}_{counter:05}_.safetensors")


def _check_prefix(prefix: object, example: str) -> None:
    """ValueError for what cannot be part of a file's name."""
    if not isinstance(prefix, str):
        raise ValueError(f"the file's name must be a text, got {type(prefix).__name__}. Use a name such as {example}.")
    problem = ""
    if not prefix.strip() or prefix.strip()[-1] in "/\\":
        problem = "it names no file"
    elif "\0" in prefix:
        problem = "it holds a character that no file name may have (NUL)"
    elif max(len(part.encode("utf-8", "surrogatepass")) for part in prefix.replace("\\", "/").split("/")) > LONGEST:
        problem = f"it is longer than the {LONGEST} bytes that a name may have"
    if problem:
        shown = prefix if len(prefix) <= 60 else f"{prefix[:57]}..."
        raise ValueError(f"nothing can be saved as {shown!r}: {problem}. Use a name such as {example}.")
