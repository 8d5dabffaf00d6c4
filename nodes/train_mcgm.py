"""Train Poseable Subjects: the subjects of one picture, each with its mask, as handles that prompts name and masks pose."""

# A node's execute takes its own inputs by name, which differs from the base class by design.
# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

import gc
import logging
from typing import TYPE_CHECKING, Any

import torch
from comfy_api.latest import io
from typing_extensions import override

from ..models.mcgm import store as mcgm_store
from ..training.engine.options import AUTO, from_inputs
from ..training.mcgm.options import MASK_TOKENS, PRESET, WIDGETS, Options, of_mask_tokens, with_preset
from . import progress, train_inputs
from .checked import checked
from .mcgm import CATEGORY, MaskEncoderType
from .train_inputs import LoraModel, widget, widgets

if TYPE_CHECKING:
    from ..training.mcgm.job import Learned

log = logging.getLogger(__name__)


class TrainMCGM(io.ComfyNode):
    """One picture, masks and words to handles, a mask encoder and a LoRA."""

    @classmethod
    @override
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MaskPromptTrainMCGM",
            display_name="Train Poseable Subjects",
            category=CATEGORY,
            description="Learns one or more subjects from a single picture in which each is marked. Afterwards prompts name them, and "
            "masks say where they stand and in which pose.",
            is_output_node=True,
            search_aliases=[
                "train mcgm", "mcgm", "break-a-scene", "textual inversion", "train embedding", "train lora", "single image",
                "personalise", "pose",
            ],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="What learns to paint the subjects: an SD 1.5, SD 2.1 or SDXL model. It is copied, never changed.",
                ),
                io.Clip.Input("clip", tooltip="Learns the subjects' names: the checkpoint's text encoder. It is copied, never changed."),
                io.Vae.Input("vae", tooltip="Turns pictures into what the model paints in: the checkpoint's VAE."),
                io.Image.Input("image", tooltip="The picture that shows the subjects."),
                io.Mask.Input("masks", tooltip="One mask for each subject, as a batch, for example from SAM Mask."),
                io.String.Input(
                    "words", default="", placeholder="cat, dog",
                    tooltip="What each subject is, in one plain word, in the order of the masks, separated by commas.",
                ),
                io.String.Input(
                    "name", default="scene",
                    tooltip="What the files are called: scene and cat make the handle embedding:scene-cat. A number is added to a name "
                    "that is taken; no file is overwritten.",
                ),
                *widgets(Options, "steps", "weight_steps"),
                widget(Options, "method", default=AUTO),
                *widgets(Options, "rate", "rank", "batch", "size", "seed", "background", "move"),
                *widgets(Options, "attention_weight", "mask_attention_weight", "background_weight", "prior_weight"),
                train_inputs.of("mask_tokens", "bound", MASK_TOKENS),
                train_inputs.preview_every(100, 10_000, "Paints each subject every so many steps, so that you can see it being learned."),
                train_inputs.resume(),
                *widgets(Options, "checkpointing", "average"),
                train_inputs.of("preset", WIDGETS, PRESET),
                widget(Options, "variations"),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model with what it learned. The given one stays as it was."),
                io.Clip.Output(
                    display_name="clip", tooltip="The text encoder with what it learned, for the text nodes; it finds the handles."
                ),
                MaskEncoderType.Output(
                    "mask_encoder", display_name="mask_encoder", tooltip="For Pose by Masks; none if mask_tokens is off."
                ),
                io.String.Output(display_name="words", tooltip="The handles as a prompt names them: embedding:scene-cat and ..."),
                LoraModel.Output(display_name="lora", tooltip="What was learned, also saved in models/loras, for any LoRA node."),
                train_inputs.LossMap.Output(display_name="loss", tooltip="For Plot Loss Graph."),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    @override
    @checked
    def execute(
        cls, model: Any, clip: Any, vae: Any, image: torch.Tensor, masks: torch.Tensor, words: str, name: str, **given: Any
    ) -> io.NodeOutput:
        from comfy.sd import load_lora_for_models

        from ..training.mcgm.checks import words_of

        chosen = from_inputs(Options, given, words=words_of(words), **of_mask_tokens(given.get("mask_tokens", "bound")))
        options = with_preset(chosen, given.get("preset", WIDGETS))
        shown = given.get("preview_every", 100), given.get("resume", True)
        cls._check_name(name.strip(), options)
        mcgm_store.check_writable()
        learned, about, encoder, losses = cls._trained(model, clip, vae, image, masks, options, name.strip(), *shown)
        gc.collect()  # the copies that learned refer to themselves and would stay for a while
        trained, text = load_lora_for_models(model, clip, learned, 1.0, 1.0)
        prompt = " and ".join(handle.text for handle in about.handles)
        return io.NodeOutput(trained, text, encoder, prompt, learned, {"loss": losses})

    @staticmethod
    def _check_name(name: str, options: Options) -> None:
        if not name:
            raise ValueError("name is empty. Write into it what the files shall be called, such as fox.")
        mcgm_store.handle_names(name, options.words)

    @classmethod
    def _trained(
        cls, model: Any, clip: Any, vae: Any, image: torch.Tensor, masks: torch.Tensor, options: Options, name: str, preview_every: int,
        resume: bool,
    ) -> tuple[dict[str, torch.Tensor], Any, Any, list[float]]:  # fmt: skip
        """What was learned, what was saved of it, the mask encoder, and how the loss went."""
        from ..training.engine import checkpoint
        from ..training.mcgm.job import MCGM, prepare

        shown = progress.TrainingProgress(cls.hidden.unique_id, options.steps + options.weight_steps)
        beside = {"disk": progress.free_disk(), "begun": progress.begun(MCGM.method, resume)}
        job = prepare(model, clip, vae, image, masks, options, shown.tell, **beside)
        done, learned = progress.train(job, shown, preview_every, resume)
        about, encoder = cls._saved(name, options, learned, resume)
        checkpoint.discard(job.state_files(progress.state_folder()))
        return learned.lora, about, encoder, done.losses

    @classmethod
    def _saved(cls, name: str, options: Options, learned: Learned, resume: bool) -> tuple[Any, Any]:
        free = mcgm_store.free_name(name, options.words)
        try:
            about, encoder = mcgm_store.save(free, options.words, learned.vectors.__getitem__, learned.encoder, learned.lora)
        except Exception as error:  # safetensors has errors of its own
            raise ValueError(
                f"what was learned could not be saved as '{free}': {error}. Is the disk full? Free some space"
                f"{'' if resume else ', switch resume on'} and press Run: the training's state is kept, and only the saving is repeated."
            ) from error
        log.info("Train Poseable Subjects saved '%s': %s.", free, ", ".join(handle.text for handle in about.handles))
        return about, encoder


NODES: list[type[io.ComfyNode]] = [TrainMCGM]
