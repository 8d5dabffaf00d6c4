"""ComfyUI-MaskPrompt: a mask is a prompt. Registration only; every heavy import waits for the node that needs it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from comfy_api.latest import ComfyExtension

WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> ComfyExtension:
    """What ComfyUI calls once at its start."""
    from .nodes import MaskPromptExtension

    return MaskPromptExtension()
