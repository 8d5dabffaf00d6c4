"""The pictures that the templates load, put into ComfyUI's input folder, so that a template runs as soon as it is opened."""

from __future__ import annotations

import io
import logging
import threading
from pathlib import Path

log = logging.getLogger(__name__)

SHIPPED = Path(__file__).resolve().parent.parent / "pictures"


def missing(folder: Path) -> list[Path]:
    """The shipped pictures whose PNG is not in `folder`."""
    return [path for path in sorted(SHIPPED.glob("*.webp")) if not (folder / f"{path.stem}.png").exists()]


def place(folder: Path) -> list[str]:
    """Put the missing pictures into `folder` as PNG and return their names. Nothing is overwritten; a folder that takes none is left."""
    from PIL import Image

    placed = []
    for source in missing(folder):
        target = folder / f"{source.stem}.png"
        data = io.BytesIO()
        begun = False
        try:
            with Image.open(source) as image:
                image.convert("RGB").save(data, "PNG", compress_level=6)
            with target.open("xb") as file:
                begun = True
                file.write(data.getvalue())
        except FileExistsError:
            continue
        except OSError as error:
            if begun:  # else the cut file would count as there
                target.unlink(missing_ok=True)
            log.warning("MaskPrompt: the templates' pictures cannot be put into %s (%s); choose your own in Load Image", folder, error)
            break
        placed.append(target.name)
    return placed


def place_at_start() -> threading.Thread | None:
    """Place what is missing while ComfyUI goes on starting; nothing but a look into the folder where all is there."""
    import folder_paths

    folder = Path(folder_paths.get_input_directory())
    if not folder.is_dir() or not missing(folder):
        return None
    thread = threading.Thread(target=place, args=(folder,), name="maskprompt-pictures", daemon=True)
    thread.start()
    return thread
