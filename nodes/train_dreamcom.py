"""Train DreamCom: three to five pictures of a subject tuned into an inpainting model."""

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
from .dreamcom import CATEGORY
from .progress import TrainingProgress, state_file

if TYPE_CHECKING:
    from ..training.data.references import Reference
    from ..training.dreamcom.loss import Options
    from ..training.engine.loop import Progress

LoraModel = io.Custom("LORA_MODEL")
AUTO = "auto"


class TrainDreamCom(io.ComfyNode):
    """Pictures and masks of one subject to a LoRA (or all weights) that paints it into a box."""

    @classmethod
    @override
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MaskPromptTrainDreamCom",
            display_name="Train DreamCom",
            category=CATEGORY,
            description="Teaches an inpainting model one subject of yours from three to five pictures in which it is marked. Afterwards "
            "the prompt paints that subject into any box of any picture.",
            search_aliases=["dreambooth", "train lora", "personalise", "personalize", "subject", "custom object", "fine-tune", "inpaint"],
            is_input_list=True,
            inputs=[
                io.Model.Input("model", tooltip="An inpainting checkpoint (9 input channels). It is copied, never changed."),
                io.Clip.Input("clip", tooltip="The checkpoint's text encoder. It is used as it is and does not learn."),
                io.Vae.Input("vae", tooltip="The checkpoint's VAE."),
                io.Image.Input("images", tooltip="Three to five pictures of the subject: a batch, or a list of pictures of any sizes."),
                io.Mask.Input("masks", tooltip="The subject in each picture, in the same order, for example from SAM Mask."),
                io.String.Input(
                    "token", default="sks",
                    tooltip="A rare word that is to stand for the subject. Write it into your prompts later.",
                ),
                io.String.Input(
                    "noun", default="", placeholder="dog, backpack, guitar ...", tooltip="What the subject is, in one plain word.",
                ),
                io.Int.Input("steps", default=400, min=1, max=100_000, tooltip="Training steps. The paper takes 400."),
                io.Combo.Input(
                    "method", options=[AUTO, "lora", "full"], default=AUTO,
                    tooltip="lora: a small file beside the checkpoint. full: all of the UNet's weights, as in the paper; takes about 16 GB "
                    "for SD 1.5 and saves a file as large as the checkpoint. auto: full where the GPU holds it, else lora.",
                ),
                io.Float.Input(
                    "learning_rate", default=0.0, min=0.0, max=1.0, step=1e-7, round=1e-9,
                    tooltip="0 takes the usual one: 0.0001 for lora, the paper's 0.000005 for full (for a model of SD 1.5's or SDXL's "
                    "width; more for a narrower one).",
                ),
                io.Int.Input("rank", default=16, min=1, max=256, tooltip="The LoRA's size. More holds more detail in a larger file."),
                io.Int.Input("batch_size", default=1, min=1, max=64, tooltip="Crops in each step; 1 in the paper. More needs more memory."),
                io.Int.Input(
                    "size", default=512, min=64, max=2048, step=8,
                    tooltip="Side of the training crops in pixels: 512 for SD 1.5, 1024 for SDXL.",
                ),
                train_inputs.seed(),
                train_inputs.preview_every(100, 10_000, "Paints the subject every so many steps, so that you can see it being learned."),
                train_inputs.resume(),
                io.Boolean.Input(
                    "masked_attention", default=True, optional=True, advanced=True,
                    tooltip="Let the text reach the subject's box only while training, as the paper does.",
                ),
                train_inputs.checkpointing(),
                train_inputs.average(0.99, last="the last weights, as in the paper."),
                io.Float.Input(
                    "box_margin", default=0.0, min=0.0, max=1.0, step=0.05, optional=True, advanced=True,
                    tooltip="Draw each subject's training box larger on every side by up to this part of its size, so that it learns to "
                    "stand in a box with some room around it. 0: the tight box, as in the paper.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model with what it learned. The given one stays as it was."),
                LoraModel.Output(display_name="lora", tooltip="What was learned, for Save LoRA Weights or Load LoRA Model."),
                train_inputs.LossMap.Output(display_name="loss", tooltip="For Plot Loss Graph."),
                io.Int.Output(
                    display_name="steps",
                    tooltip="How many steps were trained. Careful: wired into Save LoRA Weights, with the same prefix every time, a later "
                    "training overwrites an earlier one's file. Put the time into the prefix, as in "
                    "loras/my-dog_%month%%day%_%hour%%minute%, or leave steps there unwired.",
                ),
                io.String.Output(display_name="prompt", tooltip="The sentence it was trained with; use it, or the token in your own."),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    @override
    def execute(cls, images: list[torch.Tensor], masks: list[torch.Tensor], **settings: list[Any]) -> io.NodeOutput:
        from comfy.sd import load_lora_for_models

        from ..training.data import references
        from ..training.dreamcom import loss as dreamcom
        from ..training.engine import memory

        given: dict[str, Any] = {name: values[0] for name, values in settings.items()}
        model = given["model"]
        clip = given["clip"]
        vae = given["vae"]
        pictures = references.pair(images, masks)
        options = dreamcom.Options(
            token=given["token"].strip(), noun=given["noun"].strip(), steps=given["steps"], rate=given["learning_rate"] or None,
            rank=given["rank"], batch=given["batch_size"], size=given["size"], seed=given["seed"],
            masked_attention=given.get("masked_attention", True), average=given.get("average", 0.0),
            checkpointing=given.get("gradient_checkpointing", True), box_margin=given.get("box_margin", 0.0),
        )  # fmt: skip
        dreamcom.check(model, clip, vae, options, pictures)
        full = memory.estimate_full(model, options.latents, options.checkpointing, options.average > 0)
        method = memory.method_for(model.load_device, full) if given["method"] == AUTO else given["method"]
        options = replace(options, method=method)
        done, learned = cls._trained(model, clip, vae, options, pictures, given.get("preview_every", 100), given.get("resume", True))
        gc.collect()  # the copy that learned refers to itself and would stay for a while
        trained, _ = load_lora_for_models(model, None, learned, 1.0, 0)
        return io.NodeOutput(trained, learned, {"loss": done.losses}, done.step, options.prompt)

    @classmethod
    def _trained(
        cls, model: Any, clip: Any, vae: Any, options: Options, pictures: list[Reference], preview_every: int, resume: bool
    ) -> tuple[Progress, dict[str, torch.Tensor]]:
        """How it went, and what was learned."""
        from ..training.dreamcom import loss as dreamcom
        from ..training.engine import memory
        from ..training.engine.checkpoint import signature
        from ..training.engine.learner import Learner

        progress = TrainingProgress(cls.hidden.unique_id, options.steps)
        learner = Learner(model, options.method, options.rank, options.seed, options.checkpointing)
        needed = memory.estimate(learner, options.latents, options.checkpointing, options.average > 0)
        memory.check(needed, learner.device, options.method)
        texts = [clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in (options.prompt, "")]
        examples = dreamcom.encode(pictures, vae, options, on_crop=progress.crop)
        fingerprint = options.fingerprint(pictures, signature(model, texts))
        state = state_file("dreamcom", fingerprint, keep=resume)

        def preview() -> torch.Tensor:
            return dreamcom.preview(learner, examples, vae, texts[0], texts[1], options.masked_attention)

        with learner.loaded():
            done = dreamcom.train(learner, examples, texts[0], options, state, fingerprint, progress.watcher(preview_every, preview))
            return done, learner.learned()


NODES: list[type[io.ComfyNode]] = [TrainDreamCom]
