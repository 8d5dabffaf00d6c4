"""Train Image Prompt Adapter and Save Image Prompt Adapter: pictures with captions to an adapter that lets an image drive a region."""

# A node's execute takes its own inputs by name, which differs from the base class by design.
# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

import gc
import logging
from typing import TYPE_CHECKING, Any

import torch
from comfy_api.latest import io, ui
from typing_extensions import override

from ..models.ip_adapter import adapter as meca_adapter
from ..models.ip_adapter import file as meca_file
from ..training.engine.options import from_inputs
from ..training.meca.options import Options
from . import progress, train_inputs
from .checked import checked
from .meca import CATEGORY, FOLDER, AdapterType
from .saving import free_path
from .train_inputs import widgets

if TYPE_CHECKING:
    from ..training.data.captions import Given
    from ..training.engine.loop import Progress
    from ..training.meca.job import Learned

log = logging.getLogger(__name__)


class TrainMECA(io.ComfyNode):
    """Pictures, captions and masks to an adapter for Image Prompt Region."""

    @classmethod
    @override
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MaskPromptTrainMECA",
            display_name="Train Image Prompt Adapter",
            category=CATEGORY,
            description="Trains an adapter that lets an image be a prompt, in a region or everywhere, from pictures with captions. The "
            "model itself, its text encoder and the vision model stay as they are.",
            search_aliases=["train meca", "train ip-adapter", "ipadapter training", "image prompt training", "meca", "fine-tune"],
            is_input_list=True,
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="What will paint with image prompts: an SD 1.5, SD 2.1 or SDXL model, inpainting ones too. It is copied, "
                    "never changed.",
                ),
                io.Clip.Input(
                    "clip",
                    tooltip="Reads the sentences: the checkpoint's text encoder. It is used as it is and does not learn.",
                ),
                io.Vae.Input("vae", tooltip="Turns pictures into what the model paints in: the checkpoint's VAE."),
                io.ClipVision.Input(
                    "clip_vision",
                    tooltip="What looks at the image prompts: from Load CLIP Vision, ViT-H for example. Use the same one with the adapter "
                    "later.",
                ),
                io.Image.Input("images", tooltip="The pictures to learn from, the more the better: a batch, or a list of any sizes."),
                io.String.Input(
                    "captions", multiline=True, default="",
                    tooltip="What the pictures show: one line for each, in the same order, or a single line for all of them.",
                ),
                *widgets(Options, "steps", "rate", "batch", "size", "tokens", "mode", "seed"),
                io.Mask.Input(
                    "masks", optional=True,
                    tooltip="One for each picture: a sample's region is this mask, or all but it. Without masks regions are random.",
                ),
                train_inputs.preview_every(500, 100_000, "Paints the first picture's text and image every so many steps."),
                train_inputs.resume(),
                *widgets(Options, "threshold", "masked", "text_only", "text_dropout", "checkpointing", "average", "visibility"),
            ],
            outputs=[
                AdapterType.Output("adapter", display_name="adapter", tooltip="What was learned, for Image Prompt Region, and for saving."),
                train_inputs.LossMap.Output(display_name="loss", tooltip="For Plot Loss Graph."),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    @override
    @checked
    def execute(
        cls, images: list[torch.Tensor], captions: list[str], masks: list[torch.Tensor] | None = None, **settings: list[Any]
    ) -> io.NodeOutput:
        from ..training.data.captions import pair

        given: dict[str, Any] = {name: values[0] for name, values in settings.items()}
        done, learned = cls._trained(pair(images, captions, masks or ()), from_inputs(Options, given), given)
        gc.collect()  # the copy that learned refers to itself and would stay for a while
        return io.NodeOutput(learned.adapter, {"loss": done.losses})

    @classmethod
    def _trained(cls, pictures: Given, options: Options, given: dict[str, Any]) -> tuple[Progress, Learned]:
        """How it went, and what was learned."""
        from ..training.meca.job import prepare

        shown = progress.TrainingProgress(cls.hidden.unique_id, options.steps, first=False)
        job = prepare(given["model"], given["clip"], given["vae"], given["clip_vision"], pictures, options, shown.tell)
        return progress.train(job, shown, given.get("preview_every", 500), given.get("resume", True))


class SaveMECA(io.ComfyNode):
    """An adapter to a file that Load Image Prompt Adapter lists."""

    @classmethod
    @override
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MaskPromptSaveMECA",
            display_name="Save Image Prompt Adapter",
            category=CATEGORY,
            description="Saves a trained adapter into ComfyUI's output folder, where Load Image Prompt Adapter finds it. "
            "Nothing is overwritten.",
            search_aliases=["save meca", "meca", "save ip-adapter", "export adapter", "ipadapter save"],
            is_output_node=True,
            inputs=[
                AdapterType.Input("adapter", tooltip="What lets an image be a prompt: from Train Image Prompt Adapter."),
                io.String.Input(
                    "filename_prefix", default=f"{FOLDER}/meca",
                    tooltip="The file's name; a number is added. Keep `ipadapter/` before it: there Load Image Prompt Adapter "
                    "looks for it.",
                ),
            ],
            outputs=[],
        )  # fmt: skip

    @classmethod
    @override
    @checked
    def execute(cls, adapter: meca_adapter.LoadedAdapter, filename_prefix: str) -> io.NodeOutput:
        path = free_path(filename_prefix, f"{FOLDER}/my-adapter")
        try:
            meca_file.save(adapter.patcher.model, adapter.about, str(path))
        except Exception as error:  # safetensors has errors of its own
            raise ValueError(
                f"the adapter could not be written to {path}: {error}. Is the disk full? Free some space and press Run: the adapter is "
                "still there, and only the saving is repeated."
            ) from error
        log.info("Saved %s.", path)
        return io.NodeOutput(ui=ui.PreviewText(str(path)))


NODES: list[type[io.ComfyNode]] = [TrainMECA, SaveMECA]
