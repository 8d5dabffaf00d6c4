"""Train a Subject: three to five pictures of a subject tuned into an inpainting model."""

# A node's execute takes its own inputs by name, which differs from the base class by design.
# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

import gc
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from comfy_api.latest import io
from typing_extensions import override

from ..training.dreamcom.options import Options
from ..training.engine.options import AUTO, from_inputs
from . import progress, train_inputs
from .checked import checked
from .mcgm import CATEGORY
from .train_inputs import LoraModel, widget, widgets

if TYPE_CHECKING:
    from ..training.data.references import Reference
    from ..training.dreamcom.job import Learned
    from ..training.engine.loop import Progress


class TrainDreamCom(io.ComfyNode):
    """Pictures and masks of one subject to a LoRA (or all weights) that paints it into a box."""

    @classmethod
    @override
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MaskPromptTrainDreamCom",
            display_name="Train a Subject",
            category=CATEGORY,
            description="Teaches an inpainting model one subject of yours from three to five pictures in which it is marked. Afterwards "
            "the prompt paints that subject into any box of any picture.",
            search_aliases=[
                "train dreamcom", "dreamcom", "dreambooth", "train lora", "personalise", "personalize", "subject", "product",
                "custom object", "fine-tune", "inpaint",
            ],
            is_input_list=True,
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="What learns to paint your subject: an inpainting checkpoint (9 input channels). It is copied, never changed.",
                ),
                io.Clip.Input(
                    "clip",
                    tooltip="Reads the sentences: the checkpoint's text encoder. It is used as it is and does not learn.",
                ),
                io.Vae.Input("vae", tooltip="Turns pictures into what the model paints in: the checkpoint's VAE."),
                io.Image.Input("images", tooltip="Three to five pictures of the subject: a batch, or a list of pictures of any sizes."),
                io.Mask.Input("masks", tooltip="The subject in each picture, in the same order, for example from SAM Mask."),
                widget(Options, "token"),
                widget(Options, "noun", default="", placeholder="dog, backpack, guitar ..."),
                widget(Options, "steps"),
                widget(Options, "method", default=AUTO),
                *widgets(Options, "rate", "rank", "batch", "size", "seed"),
                train_inputs.preview_every(100, 10_000, "Paints the subject every so many steps, so that you can see it being learned."),
                train_inputs.resume(),
                *widgets(Options, "masked_attention", "checkpointing", "average", "box_margin"),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model with what it learned. The given one stays as it was."),
                LoraModel.Output(display_name="lora", tooltip="What was learned, for Save LoRA Weights or Load LoRA Model."),
                train_inputs.LossMap.Output(display_name="loss", tooltip="For Plot Loss Graph."),
                io.Int.Output(
                    display_name="steps",
                    tooltip="How many steps were trained. Careful: with the same prefix every time, Save LoRA Weights lets a "
                    "later training overwrite an earlier one's file. Put the time into the prefix, as in "
                    "loras/my-dog_%month%%day%_%hour%%minute%.",
                ),
                io.String.Output(display_name="prompt", tooltip="The sentence it was trained with; use it, or the token in your own."),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    @override
    @checked
    def execute(cls, images: list[torch.Tensor], masks: list[torch.Tensor], **settings: list[Any]) -> io.NodeOutput:
        from comfy.sd import load_lora_for_models

        from ..training.data import references

        given: dict[str, Any] = {name: values[0] for name, values in settings.items()}
        words = {name: given[name].strip() for name in ("token", "noun")}
        options = from_inputs(Options, given, **words)
        done, learned = cls._trained(references.pair(images, masks), options, given)
        gc.collect()  # the copy that learned refers to itself and would stay for a while
        trained, _ = load_lora_for_models(given["model"], None, learned.lora, 1.0, 0)
        return io.NodeOutput(trained, learned.lora, {"loss": done.losses}, done.step, options.prompt)

    @classmethod
    def _trained(cls, pictures: Sequence[Reference], options: Options, given: dict[str, Any]) -> tuple[Progress, Learned]:
        """How it went, and what was learned."""
        from ..training.dreamcom.job import DreamCom, prepare

        shown = progress.TrainingProgress(cls.hidden.unique_id, options.steps)
        resume = given.get("resume", True)
        beside = {"disk": progress.free_disk(), "begun": progress.begun(DreamCom.method, resume)}
        job = prepare(given["model"], given["clip"], given["vae"], pictures, options, shown.tell, **beside)
        return progress.train(job, shown, given.get("preview_every", 100), resume)


NODES: list[type[io.ComfyNode]] = [TrainDreamCom]
