"""Train MCGM: the subjects of one picture, each with its mask, as handles that prompts name and masks pose."""

# A node's execute takes its own inputs by name, which differs from the base class by design.
# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

import gc
import logging
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from comfy_api.latest import io
from typing_extensions import override

from ..models.mcgm import store as mcgm_store
from ..training.engine.options import AUTO
from . import train_inputs
from .mcgm import CATEGORY, MaskEncoderType
from .progress import TrainingProgress, state_file
from .train_inputs import LoraModel

if TYPE_CHECKING:
    from ..training.mcgm.examples import Scene
    from ..training.mcgm.options import Options

log = logging.getLogger(__name__)


class TrainMCGM(io.ComfyNode):
    """One picture, masks and words to handles, a mask encoder and a LoRA."""

    @classmethod
    @override
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MaskPromptTrainMCGM",
            display_name="Train MCGM",
            category=CATEGORY,
            description="Learns one or more subjects from a single picture in which each is marked. Afterwards prompts name them, and "
            "masks say where they stand and in which pose.",
            search_aliases=["break-a-scene", "textual inversion", "train embedding", "train lora", "single image", "personalise", "pose"],
            inputs=[
                io.Model.Input("model", tooltip="An SD 1.5, SD 2.1 or SDXL model. It is copied, never changed."),
                io.Clip.Input("clip", tooltip="The checkpoint's text encoder. It is copied, never changed."),
                io.Vae.Input("vae", tooltip="The checkpoint's VAE."),
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
                io.Int.Input("steps", default=400, min=0, max=100_000, tooltip="For handles and mask encoder; the paper: 400."),
                io.Int.Input(
                    "weight_steps", default=400, min=0, max=100_000,
                    tooltip="Of the second phase, in which the model and its text encoder learn as well. 400 in the paper.",
                ),
                io.Combo.Input(
                    "method", options=[AUTO, "lora", "full"], default=AUTO,
                    tooltip="What learns in the second phase. lora: a small file beside the checkpoint. full: all weights (the paper): "
                    "about 20 GB for SD 1.5. auto: full where the GPU holds it, else lora.",
                ),
                io.Float.Input(
                    "learning_rate", default=0.0, min=0.0, max=1.0, step=1e-7, round=1e-9,
                    tooltip="Of the second phase. 0 takes the usual one: 0.0001 for lora, the paper's 0.000002 for full (for a model of "
                    "SD 1.5's or SDXL's width; more for a narrower one).",
                ),
                io.Int.Input("rank", default=16, min=1, max=256, tooltip="The LoRA's size. More holds more detail in a larger file."),
                io.Int.Input("batch_size", default=1, min=1, max=64, tooltip="Pictures in each step (paper: 1). More needs more memory."),
                io.Int.Input(
                    "size", default=512, min=64, max=2048, step=8,
                    tooltip="The training picture has about size x size pixels, in the given one's proportions. SD 1.5: 512, SDXL: 1024.",
                ),
                train_inputs.seed(),
                io.Combo.Input(
                    "background", options=["plain", "original"], default="plain", optional=True, advanced=True,
                    tooltip="What lies around the subjects while training: a random plain colour, as in the paper, or the picture itself.",
                ),
                io.Boolean.Input(
                    "move_subjects", default=True, optional=True, advanced=True,
                    tooltip="On a plain background, show the subjects in other places and sizes, turned and stretched a little, so that "
                    "masks unlike the picture's own can pose them. Off: as in the paper, where they stay and are only mirrored.",
                ),
                io.Float.Input(
                    "attention_weight", default=0.3, min=0.0, max=10.0, step=0.01, optional=True, advanced=True,
                    tooltip="How strongly each handle's attention is drawn to its own mask. The paper: 0.01.",
                ),
                io.Float.Input(
                    "mask_attention_weight", default=3.0, min=0.0, max=100.0, step=0.1, optional=True, advanced=True,
                    tooltip="The same for the masks' own tokens, as a multiple of attention_weight. The paper: 0.3, with which masks pose "
                    "little after so few steps.",
                ),
                io.Float.Input(
                    "background_weight", default=0.3, min=0.0, max=1.0, step=0.05, optional=True, advanced=True,
                    tooltip="How much the background counts in what is learned, so that a subject ends where its mask does. The paper: 0.",
                ),
                io.Float.Input(
                    "prior_weight", default=0.0, min=0.0, max=10.0, step=0.1, optional=True, advanced=True,
                    tooltip="Prior preservation: how much ordinary pictures of the same model count, which it paints before training, so "
                    "that it does not forget what else it knows. 1 in Break-A-Scene's code; nearly twice the time.",
                ),
                io.Combo.Input(
                    "mask_tokens", options=["bound", "paper", "off"], default="bound", optional=True, advanced=True,
                    tooltip="bound: each mask's token also tells whose mask it is. paper: only its shape does. off: no mask tokens: "
                    "Break-A-Scene.",
                ),
                train_inputs.preview_every(100, 10_000, "Paints each subject every so many steps, so that you can see it being learned."),
                train_inputs.resume(),
                train_inputs.checkpointing(),
                train_inputs.average(0.98, "what the second phase learns,", "the last weights, as in the paper."),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model with what it learned. The given one stays as it was."),
                io.Clip.Output(
                    display_name="clip", tooltip="The text encoder with what it learned, for the text nodes; it finds the handles."
                ),
                MaskEncoderType.Output(
                    "mask_encoder", display_name="mask_encoder", tooltip="For Encode Masks; none if mask_tokens is off."
                ),
                io.String.Output(display_name="words", tooltip="The handles as a prompt names them: embedding:scene-cat and ..."),
                LoraModel.Output(display_name="lora", tooltip="What was learned, also saved in models/loras, for any LoRA node."),
                train_inputs.LossMap.Output(display_name="loss", tooltip="For Plot Loss Graph."),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    @override
    def execute(
        cls, model: Any, clip: Any, vae: Any, image: torch.Tensor, masks: torch.Tensor, words: str, name: str, **given: Any
    ) -> io.NodeOutput:
        from comfy.sd import load_lora_for_models

        from ..training.engine import memory
        from ..training.mcgm import options as mcgm_options

        tokens = given.get("mask_tokens", "bound")
        options = mcgm_options.Options(
            mcgm_options.words_of(words), given["steps"], given["weight_steps"], rate=given["learning_rate"] or None, rank=given["rank"],
            batch=given["batch_size"], size=given["size"], seed=given["seed"], background=given.get("background", "plain"),
            move=given.get("move_subjects", True), masks=tokens != "off", mode="paper" if tokens == "paper" else "bound",
            attention_weight=given.get("attention_weight", 0.3), mask_attention_weight=given.get("mask_attention_weight", 3.0),
            background_weight=given.get("background_weight", 0.3), prior_weight=given.get("prior_weight", 0.0),
            checkpointing=given.get("gradient_checkpointing", True), average=given.get("average", 0.0),
        )  # fmt: skip
        scene = mcgm_options.scene_of(image, masks, options)
        mcgm_options.check(model, clip, vae, options, scene)
        cls._check_name(name.strip(), options)
        scene = mcgm_options.fitted(scene, options)
        if given["method"] == AUTO:
            text = sum(value.numel() for value in clip.patcher.model.parameters())
            full = memory.estimate_full(model, options.latents(scene), options.checkpointing, options.average > 0, text)
            options = replace(options, method=memory.method_for(model.load_device, full))
        else:
            options = replace(options, method=given["method"])
        learned, about, encoder, losses = cls._trained(
            model, clip, vae, scene, options, name.strip(), given.get("preview_every", 100), given.get("resume", True)
        )
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
        cls, model: Any, clip: Any, vae: Any, scene: Scene, options: Options, name: str, preview_every: int, resume: bool
    ) -> tuple[dict[str, torch.Tensor], Any, Any, list[float]]:
        """What was learned, what was saved of it, the mask encoder, and how the loss went."""
        from ..training.engine import memory
        from ..training.engine.checkpoint import signature
        from ..training.engine.learner import Learner
        from ..training.engine.text_learner import TextLearner
        from ..training.mcgm import examples as mcgm_samples
        from ..training.mcgm import loss as mcgm
        from ..training.mcgm import prior

        progress = TrainingProgress(cls.hidden.unique_id, options.steps + options.weight_steps)
        text = TextLearner(clip, options.words, options.method, options.rank, options.seed)
        learner = Learner(model, options.method, options.rank, options.seed, options.checkpointing, text)
        shape = options.latents(scene)
        beside = sum(part.numel() for part in text.parameters.values())
        needed = memory.estimate(learner, shape, options.checkpointing, options.average > 0, beside)
        memory.check(needed, learner.device, options.method)
        # As many however few steps are asked for, so that a training that is made longer goes on with the same.
        count = mcgm_samples.EXAMPLES
        examples = mcgm_samples.encode(
            scene, vae, options.background, options.move, count, options.seed, partial(progress.tell, "Encoding crops")
        )
        whole = mcgm_samples.whole(scene, vae)
        ordinary = None
        if options.prior_weight:
            pictures = (options.prior_pictures, *shape[1:])
            painting = partial(progress.between, what="Painting ordinary pictures")
            latents = prior.painted(model, clip, options.prior_prompt, pictures, options.seed, painting)
            ordinary = mcgm.Prior(latents, options.prior_prompt)
        prompts = [clip.encode_from_tokens_scheduled(clip.tokenize(word)) for word in options.words]
        fingerprints = [options.fingerprint(phase, scene, signature(model, prompts)) for phase in (1, 2)]
        states = mcgm.state_files(state_file("mcgm", fingerprints[0], keep=True), fingerprints)
        for state in () if resume else states:
            state.remove()
        with learner.loaded():
            subjects = mcgm.Subjects(learner, options)

            def preview() -> torch.Tensor:
                return mcgm.preview(subjects, whole, vae)

            done = mcgm.train(subjects, examples, options, ordinary, states, progress.watcher(preview_every, preview))
            learned = learner.learned()
            vectors = [text.handle(number) for number in range(len(options.words))]
            network = None if subjects.encoder is None else subjects.encoder.cpu()
        about, encoder = cls._saved(name, options, vectors, network, learned)
        mcgm.remove_states(states)
        return learned, about, encoder, done.losses

    @classmethod
    def _saved(cls, name: str, options: Options, vectors: list[Any], network: Any, learned: dict[str, torch.Tensor]) -> tuple[Any, Any]:
        free = mcgm_store.free_name(name, options.words)
        try:
            about, encoder = mcgm_store.save(free, options.words, vectors.__getitem__, network, learned)
        except Exception as error:  # safetensors has errors of its own
            raise ValueError(
                f"what was learned could not be saved as '{free}': {error}. Is the disk full? Free some space and press Run: the "
                "training's state is kept, and only the saving is repeated."
            ) from error
        log.info("Train MCGM saved '%s': %s.", free, ", ".join(handle.text for handle in about.handles))
        return about, encoder


NODES: list[type[io.ComfyNode]] = [TrainMCGM]
