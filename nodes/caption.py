"""Caption Image: BLIP says what pictures show, as the Mask-ControlNet paper lets it do for its training pictures."""

# A node's execute takes its own inputs by name, which differs from the base class by design.
# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

import logging
import weakref
from typing import Any

import torch
from comfy_api.latest import io, ui
from typing_extensions import override

from ..models.blip import captioner
from ..models.blip import folder as blip_folder
from . import inputs
from .checked import checked
from .progress import TrainingProgress

log = logging.getLogger(__name__)

CATEGORY = "MaskPrompt/See and measure"
NO_FOLDERS = "no BLIP folder found: put one into models/blip"
NO_WORDS = "a picture"

_used: weakref.WeakKeyDictionary[CaptionImage, captioner.LoadedBlip | None] = weakref.WeakKeyDictionary()
"""The model that was used last, as long as a Caption Image is in the graph: so long ComfyUI keeps the objects of its nodes."""


class CaptionImage(io.ComfyNode):
    """Pictures to one text, with a line for each."""

    def __init__(self) -> None:
        super().__init__()
        _used[self] = None

    @classmethod
    @override
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MaskPromptCaptionImage",
            display_name="Caption Image",
            category=CATEGORY,
            description="Says in a sentence what a picture shows, with BLIP. For several pictures it gives one text with a line for each, "
            "as the Train nodes take it.",
            search_aliases=["blip", "image to text", "describe image", "captioning", "interrogate", "tagger", "image2text"],
            is_input_list=True,
            is_output_node=True,
            inputs=[
                io.Image.Input("image", tooltip="The picture, a batch of pictures, or a list of pictures of any sizes."),
                io.Combo.Input(
                    "blip_name", options=list(blip_folder.folders()) or [NO_FOLDERS],
                    tooltip="What writes the sentences: a folder in ComfyUI/models/blip with all files of a BLIP captioning model.",
                ),
                io.String.Input(
                    "prefix", default="", optional=True, placeholder="a photo of",
                    tooltip="What every caption begins with; BLIP goes on from there. Empty: BLIP's own beginning.",
                ),
                io.Int.Input(
                    "max_tokens", default=30, min=1, max=200, optional=True,
                    tooltip="The most words that are added to the prefix; a rare word counts as two or more.",
                ),
                io.Int.Input(
                    "beams", default=3, min=1, max=16, optional=True,
                    tooltip="More find a better sentence and take longer; 1 is fastest. So many beginnings of it are followed at once.",
                ),
                io.Int.Input(
                    "min_tokens", default=5, min=0, max=200, optional=True, advanced=True,
                    tooltip="More make BLIP say more of the picture: the fewest words that are added to the prefix.",
                ),
            ],
            outputs=[io.String.Output("captions", display_name="captions", tooltip="One line for each picture, in their order.")],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    @override
    def validate_inputs(cls, blip_name: list[str | None] | str | None) -> bool | str:
        return inputs.there(blip_folder.find, *(blip_name if isinstance(blip_name, list) else [blip_name]))

    @classmethod
    @override
    @checked
    def execute(cls, image: list[torch.Tensor], blip_name: list[str], **settings: list[Any]) -> io.NodeOutput:
        given: dict[str, Any] = {name: values[0] for name, values in settings.items() if values}
        prefixes = set(settings.get("prefix", []))
        if len(prefixes) > 1:
            raise ValueError(f"prefix holds {len(prefixes)} different texts: one is needed, with which all captions begin.")
        search = captioner.Search(given.get("beams", 3), given.get("min_tokens", 5), given.get("max_tokens", 30))
        pictures = [one for batch in image for one in batch]
        if not pictures:
            raise ValueError("no picture was given: wire a picture, or a batch of them.")
        model = captioner.load(blip_folder.find(blip_name[0]))
        _used.update(dict.fromkeys(_used, model))
        progress = TrainingProgress(cls.hidden.unique_id, len(pictures), first=False)

        def after(done: int) -> None:
            progress.bar.update_absolute(done)
            progress.tell("Captions", done, len(pictures))

        lines = captioner.captions(model, pictures, given.get("prefix", ""), search, on_group=after)
        for number in (number for number, line in enumerate(lines, 1) if not line):
            log.warning("Caption Image: BLIP has no words for picture %d; its line says '%s'", number, NO_WORDS)
        text = "\n".join(line or NO_WORDS for line in lines)
        progress.say(text)
        return io.NodeOutput(text, ui=ui.PreviewText(text))


NODES: list[type[io.ComfyNode]] = [CaptionImage]
