"""MCGM: a mask says where a learned subject stands and how it is posed. Pose by Masks, Load Poseable Subjects."""

# A node's execute takes its own inputs by name, which differs from the base class by design.
# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

import logging
from typing import Any

import torch
from comfy_api.latest import io
from typing_extensions import override

from ..conditioning import mask_tokens
from ..images.masks import to_mask
from ..models import files
from ..models.mcgm import bundle
from ..models.mcgm import file as mask_encoder_file
from ..models.mcgm.file import FOLDER, LoadedEncoder
from . import inputs
from .checked import checked
from .inputs import layers_of

log = logging.getLogger(__name__)

CATEGORY = "MaskPrompt/Subjects"
NO_FILES = "no mask encoder found: put one into models/mcgm"
ADVICE = (
    "Train Poseable Subjects writes such files. Put one from elsewhere into ComfyUI/models/mcgm, its embeddings into models/embeddings "
    "and its LoRA into models/loras, and press R in the browser to refresh the list."
)
MaskEncoderType = io.Custom("MASKPROMPT_MASK_ENCODER")


class LoadMCGM(io.ComfyNode):
    """All that one MCGM training left: LoRA, handles, mask encoder."""

    @classmethod
    @override
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MaskPromptLoadMCGM",
            display_name="Load Poseable Subjects",
            category=CATEGORY,
            description="Loads subjects that Train Poseable Subjects has learned from a picture: puts its LoRA onto the model, looks "
            "whether the text encoder finds its handles, and hands on the mask encoder that poses them.",
            search_aliases=["load mcgm", "break-a-scene", "mcgm", "mask encoder", "textual inversion", "load subject", "pose"],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="What paints the subjects: the checkpoint that they were learned on, or one of its family.",
                ),
                io.Clip.Input("clip", tooltip="Reads the subjects' names in a prompt: the checkpoint's text encoder."),
                io.Combo.Input(
                    "mcgm_name",
                    options=files.list_files(FOLDER, mask_encoder_file.SUFFIXES) or [NO_FILES],
                    tooltip="Which subjects can be posed: a mask encoder in ComfyUI/models/mcgm or an `mcgm` folder of "
                    "extra_model_paths.yaml. It names its LoRA and its handles, which are found by themselves.",
                ),
                io.Float.Input(
                    "lora_strength", default=1.0, min=-4.0, max=4.0, step=0.05, optional=True, advanced=True,
                    tooltip="How strongly its LoRA acts on model and text encoder. 0 leaves it out; then its file is not needed.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model with the LoRA; the given one if there is none."),
                io.Clip.Output(display_name="clip", tooltip="The text encoder with the LoRA, for the text nodes: it finds the handles."),
                MaskEncoderType.Output("mask_encoder", display_name="mask_encoder", tooltip="For Pose by Masks."),
                io.String.Output(display_name="words", tooltip="The subjects' handles as a prompt names them: embedding:fox-cat and ..."),
            ],
        )  # fmt: skip

    @classmethod
    @override
    def validate_inputs(cls, mcgm_name: str | None) -> bool | str:
        return inputs.there(lambda name: files.find_file(FOLDER, name, ADVICE), mcgm_name)

    @classmethod
    @override
    def fingerprint_inputs(cls, mcgm_name: str | None, **_others: Any) -> str:
        """Another text when one of the files was written anew, as a training under the same name does."""
        return "" if mcgm_name is None else bundle.stamp(files.find_file(FOLDER, mcgm_name, ADVICE))

    @classmethod
    @override
    @checked
    def execute(cls, model: Any, clip: Any, mcgm_name: str, lora_strength: float = 1.0) -> io.NodeOutput:
        from ..attention import ip_adapter_layers

        encoder = mask_encoder_file.load(files.find_file(FOLDER, mcgm_name, ADVICE))
        layers_of(model)
        bundle.check_model(encoder, ip_adapter_layers.widths(model.get_model_object("diffusion_model"))[1])
        bundle.check_handles(encoder, clip)
        if encoder.about.lora and lora_strength:
            model, clip = bundle.with_lora(encoder, model, clip, lora_strength)
        return io.NodeOutput(model, clip, encoder, bundle.words(encoder))


class EncodeMasks(io.ComfyNode):
    """Masks as tokens beside the words of the prompts."""

    @classmethod
    @override
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MaskPromptEncodeMasks",
            display_name="Pose by Masks",
            category=CATEGORY,
            description="Poses learned subjects: each mask becomes a token beside the words of the prompt. The negative gets as many empty "
            "ones, so that sampling takes no longer.",
            search_aliases=["mcgm", "encode masks", "pose", "pose mask", "shape mask", "mask token", "mask conditioning", "pose subject"],
            inputs=[
                io.Conditioning.Input("positive", tooltip="The prompt that names the subjects, from any text node."),
                io.Conditioning.Input("negative", tooltip="The negative prompt."),
                MaskEncoderType.Input(
                    "mask_encoder",
                    tooltip="What poses the subjects: from Load Poseable Subjects or Train Poseable Subjects.",
                ),
                io.Float.Input(
                    "strength", default=1.0, min=0.0, max=3.0, step=0.05,
                    tooltip="How strongly the masks act. 0 switches the node off.",
                ),
                io.Mask.Input(
                    "masks", optional=True,
                    tooltip="White is the subject in its pose, on the whole picture. A batch holds one mask for each subject, in the order "
                    "in which the prompt names them; a list paints several pictures. Without masks nothing is changed.",
                ),
                io.String.Input(
                    "prompt", default="", optional=True, force_input=True, multiline=True,
                    tooltip="Gives each subject its own mask: the positive prompt's text, whose order the masks then follow; too many "
                    "masks are noticed. Without it the order is that of the training.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive", tooltip="With a token for each mask, for the sampler."),
                io.Conditioning.Output(display_name="negative", tooltip="With as many zero tokens, for the sampler."),
            ],
        )  # fmt: skip

    @classmethod
    @override
    @checked
    def execute(
        cls,
        positive: list[Any],
        negative: list[Any],
        mask_encoder: LoadedEncoder | None,
        strength: float = 1.0,
        masks: torch.Tensor | None = None,
        prompt: str | None = None,
    ) -> io.NodeOutput:
        if strength == 0 or masks is None or len(masks) == 0:
            return io.NodeOutput(positive, negative)
        if mask_encoder is None:
            raise ValueError(
                "no mask encoder was given: Train Poseable Subjects makes none where its mask_tokens is off. Train with mask tokens, or "
                "bypass this node."
            )
        drawn = to_mask(masks, "masks").cpu()
        owners = bundle.owners(mask_encoder, len(drawn), prompt)
        bundle.warn_of(drawn)
        unit = mask_tokens.unit_of([bundle.length(text, mask_encoder) for text, _ in [*positive, *negative]])
        return io.NodeOutput(
            mask_tokens.with_tokens(positive, lambda options: bundle.tokens(mask_encoder, drawn, owners, options, strength), unit),
            mask_tokens.with_tokens(negative, lambda _options: torch.zeros(len(drawn), mask_encoder.network.width), unit),
        )


NODES: list[type[io.ComfyNode]] = [LoadMCGM, EncodeMasks]
