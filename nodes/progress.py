"""What a Train node shows while it works, and where it keeps its state."""

from __future__ import annotations

import hashlib
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from ..training.engine.loop import Progress

log = logging.getLogger(__name__)


class TrainingProgress:
    """The node's progress bar, its line of text, and previews. Crops count as the first tenth of the bar, if they come `first`."""

    def __init__(self, node: str | None, steps: int, first: bool = True) -> None:
        from comfy.utils import ProgressBar

        self.node = node
        self.steps = steps
        self.ahead = max(1, steps // 10) if first else 0
        self.bar = ProgressBar(self.ahead + steps, node_id=node)

    def crop(self, done: int, count: int) -> None:
        """After each encoded crop."""
        from comfy.model_management import throw_exception_if_processing_interrupted

        throw_exception_if_processing_interrupted()
        self.bar.update_absolute(done * self.ahead // count)
        self.say(f"Encoding crops: {done} of {count}")

    def between(self, done: int, count: int, what: str = "Encoding pictures") -> None:
        """After some of the pictures that are encoded between training steps, or whatever else is done there."""
        from comfy.model_management import throw_exception_if_processing_interrupted

        throw_exception_if_processing_interrupted()
        self.say(f"{what}: {done} of {count}")

    def watcher(self, preview_every: int, preview: Callable[[], torch.Tensor]) -> Callable[[Progress], None]:
        """What to do after each step: bar, loss, a preview [B, H, W, 3] every so often (0: never), and the artist's interrupt."""
        from comfy.model_management import throw_exception_if_processing_interrupted

        def after(progress: Progress) -> None:
            throw_exception_if_processing_interrupted()
            shown = None
            if preview_every and progress.step % preview_every == 0 and progress.step < self.steps:
                shown = self.shown(preview)
            self.bar.update_absolute(self.ahead + progress.step, preview=shown)
            self.say(f"Step {progress.step} of {self.steps}, loss {progress.recent:.4f}")

        return after

    def shown(self, preview: Callable[[], torch.Tensor]) -> tuple[str, Any, int] | None:
        """A preview as ComfyUI's bar takes it; nothing where it fails, as no training is worth losing for a preview."""
        from comfy.model_management import InterruptProcessingException

        try:
            return "JPEG", picture(preview()), 512
        except InterruptProcessingException:  # a plain Exception in older versions
            raise
        except Exception as error:
            log.warning("The preview failed (%s: %s); training goes on.", type(error).__name__, error)
            return None

    def say(self, text: str) -> None:
        """A line under the node; nothing without a server."""
        say(self.node, text)


def say(node: str | None, text: str) -> None:
    """Shows a line under the node of that id; nothing without a server."""
    instance = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    if instance is not None and node is not None:
        instance.send_progress_text(text, node)


def picture(image: torch.Tensor) -> Any:
    """The first of an IMAGE batch as a Pillow image."""
    from PIL import Image

    return Image.fromarray((image[0].clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy())


def state_file(method: str, fingerprint: str, keep: bool) -> Path:
    """Where this training's state lies, in ComfyUI's output folder; without `keep` an old one is taken away."""
    import folder_paths

    from ..training.engine.checkpoint import StateFile

    name = f"{method}-{hashlib.sha256(fingerprint.encode()).hexdigest()[:12]}.pt"
    path = Path(folder_paths.get_output_directory()) / "maskprompt" / "training" / name
    if not keep:
        StateFile(path, fingerprint).remove()
    return path
