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

from . import train_inputs
from .mask_controlnet import CATEGORY, AdapterType
from .progress import TrainingProgress, state_file

if TYPE_CHECKING:
    from ..training.mask_controlnet.loss import Options, Source


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
                io.Model.Input("model", tooltip="An SD 1.5, SD 2.1 or SDXL model, inpainting ones too. It is copied, never changed."),
                io.Clip.Input("clip", tooltip="The checkpoint's text encoder. It is used as it is and does not learn."),
                io.Vae.Input("vae", tooltip="The checkpoint's VAE. The hint goes through it as well; it does not learn."),
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
                io.Int.Input("steps", default=10_000, min=1, max=10_000_000, tooltip="Training steps."),
                io.Float.Input(
                    "learning_rate", default=0.0, min=0.0, max=1.0, step=1e-7, round=1e-9,
                    tooltip="0: ControlNet's usual one, 0.00001 for a UNet of Stable Diffusion's width.",
                ),
                io.Int.Input("batch_size", default=4, min=1, max=64, tooltip="Pictures at a time. More needs more memory."),
                io.Int.Input(
                    "size", default=512, min=64, max=2048, step=8,
                    tooltip="Pictures are scaled to about this square in pixels, in their own proportions: 512 for SD 1.5, 1024 for SDXL.",
                ),
                train_inputs.seed(),
                io.Int.Input(
                    "accumulate", default=1, min=1, max=1024, optional=True, advanced=True,
                    tooltip="So many batches make a step: as a larger batch, with the memory of a small one.",
                ),
                io.Boolean.Input(
                    "mask_prompt", default=True, optional=True, advanced=True,
                    tooltip="Off trains on the bare reference, for comparison: the paper's ablation.",
                ),
                io.Float.Input(
                    "text_dropout", default=0.1, min=0.0, max=1.0, step=0.01, optional=True, advanced=True,
                    tooltip="Which part of the samples loses its text, so that the hint also works without a prompt.",
                ),
                train_inputs.preview_every(500, 100_000, "Paints a picture from its hint every so many steps."),
                train_inputs.resume(),
                train_inputs.checkpointing(),
                train_inputs.average(0.999),
            ],
            outputs=[
                io.ControlNet.Output("control_net", display_name="control_net", tooltip="For Apply ControlNet and Save Mask-ControlNet."),
                AdapterType.Output("adapter", display_name="adapter", tooltip="For Mask Concat and Save Mask-ControlNet."),
                train_inputs.LossMap.Output(display_name="loss", tooltip="For Plot Loss Graph."),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    @override
    def execute(cls, images: list[torch.Tensor], masks: list[torch.Tensor], captions: list[str], **settings: list[Any]) -> io.NodeOutput:
        from ..training.mask_controlnet import loss as mask_controlnet
        from ..training.mask_controlnet.examples import Source, pair

        given: dict[str, Any] = {name: values[0] for name, values in settings.items()}
        examples = pair(images, captions, masks)
        optional = {name: given[name] for name in ("accumulate", "text_dropout", "average") if name in given}
        options = mask_controlnet.Options(
            steps=given["steps"], rate=given["learning_rate"] or None, batch=given["batch_size"], size=given["size"], seed=given["seed"],
            masked=given.get("mask_prompt", True), checkpointing=given.get("gradient_checkpointing", True), **optional,
        )  # fmt: skip
        model, clip, vae = (given[name] for name in ("model", "clip", "vae"))
        mask_controlnet.check(model, clip, vae, options, examples)
        source = Source(examples, options.batch, options.size, options.text_dropout)
        shown = given.get("preview_every", 500), given.get("resume", True)
        control, adapter, losses = cls._trained(model, clip, vae, options, source, *shown)
        gc.collect()  # the copy that learned refers to itself and would stay for a while
        return io.NodeOutput(control, adapter, {"loss": losses})

    @classmethod
    def _trained(
        cls, model: Any, clip: Any, vae: Any, options: Options, source: Source, preview_every: int, resume: bool
    ) -> tuple[Any, Any, list[float]]:
        from ..training.engine.checkpoint import signature, signature_of
        from ..training.engine.checks import check_text
        from ..training.engine.learner import Learner
        from ..training.engine.loop import random_numbers
        from ..training.mask_controlnet import loss as mask_controlnet

        progress = TrainingProgress(cls.hidden.unique_id, options.steps, first=False)
        learner = Learner(model, "frozen", checkpointing=options.checkpointing)
        mask_controlnet.check_memory(learner, vae, options)
        told = replace(source, text_dropout=0.0)  # what is previewed has its text
        first = told.load(told.plan(random_numbers(options.seed, 0)))
        positive, negative = (clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in (first.texts[0], ""))
        check_text(learner, negative)
        fingerprint = options.fingerprint(source.examples.fingerprint(), signature(model, [negative]), signature_of(vae.first_stage_model))
        state = state_file("mask-controlnet", fingerprint, keep=resume)

        with learner.loaded():
            branch = mask_controlnet.Branch(learner, vae, options)

            def preview() -> torch.Tensor:
                return mask_controlnet.preview(branch, first, vae, positive, negative)

            done = mask_controlnet.train(branch, source, clip, state, fingerprint, progress.watcher(preview_every, preview))
            return *branch.finished(), done.losses


NODES: list[type[io.ComfyNode]] = [TrainMaskControlNet]
