"""Where nodes save weights: ComfyUI's output folder, without overwriting."""

from __future__ import annotations

import os
from pathlib import Path


def free_path(prefix: str, example: str) -> Path:
    """A new file's path in ComfyUI's output folder, `prefix` with a number, and the folder made.

    ValueError, with a prefix such as `example` to take instead, outside of that folder.
    """
    import folder_paths

    try:
        folder, name, counter, *_ = folder_paths.get_save_image_path(prefix, folder_paths.get_output_directory())
    except Exception as error:  # a plain Exception for places outside of the folder
        reason = error.strerror if isinstance(error, OSError) else "it leads out of ComfyUI's output folder"
        raise ValueError(f"nothing can be saved as '{prefix}': {reason}. Use a name such as {example}.") from error
    while any(os.path.exists(os.path.join(folder, f"{name}_{counter:05}_{ending}")) for ending in (".safetensors", "")):
        counter += 1
    return Path(folder, f"{name}_{counter:05}_.safetensors")
