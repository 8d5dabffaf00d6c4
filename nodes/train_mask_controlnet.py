"""Train Mask-ControlNet: pictures, captions and masks of their objects to a control network and its adapter."""

# A node's execute takes its own inputs by name, which differs from the base class by design.
# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

import gc
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from comfy_api.latest import io
from typing_extensions import override

from ..training.engine.options import from_inputs
from ..training.mask_controlnet.options import GIVEN, GROUNDS, Options, Pairs
from . import progress, train_inputs
from .checked import checked
from .mask_controlnet import CATEGORY, AdapterType
from .train_inputs import widgets

if TYPE_CHECKING:
    from ..training.data.objects import Given
    from ..training.engine.loop import Progress
    from ..training.mask_controlnet.job import Learned


class TrainMaskControlNet(io.ComfyNode):
    """Pictures to a Mask-ControlNet."""

    @classmethod
    @override
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MaskPromptTrainMaskControlNet",
            display_name="Train Mask-ControlNet",
            category=CATEGORY,
            description="Trains a control network, and the adapter that makes its hint, to keep an object while everything else is painted "
            "anew, from pictures with captions and masks of their objects. Model, text encoder and VAE stay as they are.",
            search_aliases=["train controlnet", "controlnet training", "mask controlnet", "fine-tune", "keep object"],
            is_input_list=True,
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="What will paint around the object: an SD 1.5, SD 2.1 or SDXL model, inpainting ones too. It is copied, never "
                    "changed.",
                ),
                io.Clip.Input(
                    "clip",
                    tooltip="Reads the sentences: the checkpoint's text encoder. It is used as it is and does not learn.",
                ),
                io.Vae.Input(
                    "vae",
                    tooltip="Turns pictures into what the model paints in: the checkpoint's VAE. The hint goes through it as well; it "
                    "does not learn.",
                ),
                io.Image.Input("images", tooltip="The pictures to learn from, thousands if you can: a batch, or a list of any sizes."),
                io.Mask.Input(
                    "masks",
                    tooltip="The objects: one mask for each picture in one batch; or a list with a batch of any number for each picture, "
                    "of which one is drawn each time.",
                ),
                io.String.Input(
                    "captions", multiline=True, default="",
                    tooltip="What the pictures show: one line for each, in the same order, or a single line for all. Caption Image writes "
                    "them.",
                ),
                *widgets(Options, "steps", "rate", "batch", "size", "seed", "accumulate", "masked", "text_dropout"),
                train_inputs.preview_every(500, 100_000, "Paints a picture from its hint every so many steps."),
                train_inputs.resume(),
                *widgets(Options, "checkpointing", "average", "pairs"),
                io.Image.Input(
                    "references", optional=True,
                    tooltip="Your own pictures to keep the objects from, for pairs: one for each of images, of the same size, with the "
                    "object in the same place on another ground. Wired, they are what the hint is made of, and images what is "
                    "painted.",
                ),
            ],
            outputs=[
                io.ControlNet.Output("control_net", display_name="control_net", tooltip="For Apply ControlNet and Save Mask-ControlNet."),
                AdapterType.Output("adapter", display_name="adapter", tooltip="For Object Hint and Save Mask-ControlNet."),
                train_inputs.LossMap.Output(display_name="loss", tooltip="For Plot Loss Graph."),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    @override
    @checked
    def execute(
        cls,
        images: list[torch.Tensor],
        masks: list[torch.Tensor],
        captions: list[str],
        references: list[torch.Tensor] | None = None,
        **settings: list[Any],
    ) -> io.NodeOutput:
        from ..models.mask_controlnet.control import of_content
        from ..training.data.objects import pair

        given: dict[str, Any] = {name: values[0] for name, values in settings.items()}
        options = from_inputs(Options, given)
        if references:
            options = replace(options, pairs=given_pairs(options.pairs))
        done, learned = cls._trained(pair(images, captions, masks, references or ()), options, given)
        gc.collect()  # the copy that learned refers to itself and would stay for a while
        with torch.inference_mode(False):
            control, adapter = of_content(learned.content, "what was learned")
        return io.NodeOutput(control, adapter, {"loss": done.losses})

    @classmethod
    def _trained(cls, examples: Given, options: Options, given: dict[str, Any]) -> tuple[Progress, Learned]:
        """How it went, and what was learned."""
        from ..training.mask_controlnet.job import prepare

        shown = progress.TrainingProgress(cls.hidden.unique_id, options.steps, first=False)
        job = prepare(given["model"], given["clip"], given["vae"], examples, options, shown.tell)
        return progress.train(job, shown, given.get("preview_every", 500), given.get("resume", True))


def given_pairs(chosen: Pairs) -> Pairs:
    """What `pairs` is where references are wired. ValueError where both were asked for."""
    if chosen == GROUNDS:
        raise ValueError(
            f"references are wired, and pairs is {GROUNDS}, which makes references of its own: set pairs to {GIVEN}, or take the wire away."
        )
    return GIVEN


NODES: list[type[io.ComfyNode]] = [TrainMaskControlNet]
