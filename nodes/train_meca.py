"""Train MECA Adapter and Save MECA Adapter: pictures with captions to an adapter that lets an image drive a region."""

# A node's execute takes its own inputs by name, which differs from the base class by design.
# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

import gc
import logging
from typing import TYPE_CHECKING, Any, get_args

import torch
from comfy_api.latest import io, ui
from typing_extensions import override

from ..attention import meca as attention
from ..models.ip_adapter import adapter as meca_adapter
from ..models.ip_adapter import file as meca_file
from . import train_inputs
from .meca import CATEGORY, FOLDER, AdapterType
from .progress import TrainingProgress, state_file
from .saving import free_path

if TYPE_CHECKING:
    from ..training.data.captions import Given
    from ..training.meca.options import Options

log = logging.getLogger(__name__)


class TrainMECA(io.ComfyNode):
    """Pictures, captions and masks to an adapter for Apply MECA."""

    @classmethod
    @override
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MaskPromptTrainMECA",
            display_name="Train MECA Adapter",
            category=CATEGORY,
            description="Trains an adapter that lets an image be a prompt, in a region or everywhere, from pictures with captions. The "
            "model itself, its text encoder and the vision model stay as they are.",
            search_aliases=["train ip-adapter", "ipadapter training", "image prompt training", "meca", "fine-tune"],
            is_input_list=True,
            inputs=[
                io.Model.Input("model", tooltip="An SD 1.5, SD 2.1 or SDXL model, inpainting ones too. It is copied, never changed."),
                io.Clip.Input("clip", tooltip="The checkpoint's text encoder. It is used as it is and does not learn."),
                io.Vae.Input("vae", tooltip="The checkpoint's VAE."),
                io.ClipVision.Input(
                    "clip_vision", tooltip="From Load CLIP Vision, ViT-H for example. Use the same one with the adapter later."
                ),
                io.Image.Input("images", tooltip="The pictures to learn from, the more the better: a batch, or a list of any sizes."),
                io.String.Input(
                    "captions", multiline=True, default="",
                    tooltip="What the pictures show: one line for each, in the same order, or a single line for all of them.",
                ),
                io.Int.Input("steps", default=10_000, min=1, max=10_000_000, tooltip="Training steps. The paper takes a million."),
                io.Float.Input(
                    "learning_rate", default=1e-4, min=1e-9, max=1.0, step=1e-7, round=1e-9, tooltip="0.0001 in the paper.",
                ),
                io.Int.Input(
                    "batch_size", default=4, min=1, max=64, tooltip="Pictures in each step; 64 in the paper. More needs more memory."
                ),
                io.Int.Input(
                    "size", default=512, min=64, max=2048, step=8,
                    tooltip="Side of the training crops in pixels. The paper takes 512, also for SDXL.",
                ),
                io.Int.Input("tokens", default=16, min=1, max=256, tooltip="Into how many tokens an image is compressed."),
                io.Combo.Input(
                    "mode", options=list(get_args(attention.Mode)), default="region",
                    tooltip="How text and image share a picture that has a region; Apply MECA takes the same one by itself. region: text "
                    "outside, image inside. query: the paper's equation 6 to the letter. global: text everywhere, image inside.",
                ),
                train_inputs.seed(),
                io.Mask.Input(
                    "masks", optional=True,
                    tooltip="One for each picture: a sample's region is this mask, or all but it. Without masks regions are random.",
                ),
                train_inputs.preview_every(500, 100_000, "Paints the first picture's text and image every so many steps."),
                train_inputs.resume(),
                io.Float.Input(
                    "threshold", default=0.5, min=0.0, max=1.0, step=0.01, optional=True, advanced=True,
                    tooltip="As in Patch Visibility: a patch is hidden when more than this part of it lies outside of the region.",
                ),
                io.Float.Input(
                    "masked", default=0.5, min=0.0, max=1.0, step=0.05, optional=True, advanced=True,
                    tooltip="Which part of the samples has a region; half in the paper.",
                ),
                io.Float.Input(
                    "text_only", default=0.05, min=0.0, max=1.0, step=0.01, optional=True, advanced=True,
                    tooltip="Which part of the samples has text and no image; 0.05 in the paper.",
                ),
                io.Float.Input(
                    "text_dropout", default=0.05, min=0.0, max=1.0, step=0.01, optional=True, advanced=True,
                    tooltip="Which part of the samples loses its text, so that an image also works without a prompt. 0 is the paper's.",
                ),
                train_inputs.checkpointing(),
                train_inputs.average(0.999),
            ],
            outputs=[
                AdapterType.Output("adapter", display_name="adapter", tooltip="What was learned, for Apply MECA and Save MECA Adapter."),
                train_inputs.LossMap.Output(display_name="loss", tooltip="For Plot Loss Graph."),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    @override
    def execute(
        cls, images: list[torch.Tensor], captions: list[str], masks: list[torch.Tensor] | None = None, **settings: list[Any]
    ) -> io.NodeOutput:
        from ..training.data.captions import pair
        from ..training.meca import loss as meca
        from ..training.meca.options import Options

        given: dict[str, Any] = {name: values[0] for name, values in settings.items()}
        pictures = pair(images, captions, masks or ())
        optional = {name: given[name] for name in ("threshold", "masked", "text_only", "text_dropout", "average") if name in given}
        options = Options(
            steps=given["steps"], rate=given["learning_rate"], batch=given["batch_size"], size=given["size"], tokens=given["tokens"],
            mode=given["mode"], seed=given["seed"], checkpointing=given.get("gradient_checkpointing", True), **optional,
        )  # fmt: skip
        model, clip, vae, clip_vision = (given[name] for name in ("model", "clip", "vae", "clip_vision"))
        meca.check(model, clip, vae, clip_vision, options, pictures)
        shown = given.get("preview_every", 500), given.get("resume", True)
        adapter, losses = cls._trained(model, clip, vae, clip_vision, options, pictures, *shown)
        gc.collect()  # the copy that learned refers to itself and would stay for a while
        return io.NodeOutput(adapter, {"loss": losses})

    @classmethod
    def _trained(
        cls, model: Any, clip: Any, vae: Any, clip_vision: Any, options: Options, pictures: Given, preview_every: int, resume: bool
    ) -> tuple[meca_adapter.LoadedAdapter, list[float]]:
        from ..training.engine import memory
        from ..training.engine.checkpoint import signature, signature_of
        from ..training.engine.checks import check_text
        from ..training.engine.learner import Learner
        from ..training.meca import examples as meca_samples
        from ..training.meca import loss as meca

        progress = TrainingProgress(cls.hidden.unique_id, options.steps, first=False)
        learner = Learner(model, "frozen", checkpointing=options.checkpointing)
        features = meca_samples.width_of(clip_vision)
        weights = meca.size(learner, features, options)
        needed = memory.estimate(learner, options.latents, options.checkpointing, options.average > 0, weights)
        memory.check(needed, learner.device, learner.method)
        source = meca_samples.Source(pictures, clip, vae, clip_vision, options, on_sample=progress.between)
        negative = clip.encode_from_tokens_scheduled(clip.tokenize(""))
        check_text(learner, negative)
        fingerprint = options.fingerprint(
            pictures.fingerprint(), signature(model, [negative]), signature_of(clip_vision.model), signature_of(vae.first_stage_model)
        )
        state = state_file("meca", fingerprint, keep=resume)
        seen = source.shown() if preview_every else None

        with learner.loaded():
            network = meca.fresh(learner, features, options)

            def preview() -> torch.Tensor:
                assert seen is not None
                return meca.preview(learner, network, seen, vae, negative, options)

            done = meca.train(learner, network, source, options, state, fingerprint, progress.watcher(preview_every, preview))
            base = meca_adapter.in_words(network.widths, network.image_proj.context)
            return meca.finished(network, options, base, f"the adapter of {done.step} steps"), done.losses


class SaveMECA(io.ComfyNode):
    """An adapter to a file that Load MECA Adapter lists."""

    @classmethod
    @override
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MaskPromptSaveMECA",
            display_name="Save MECA Adapter",
            category=CATEGORY,
            description="Saves a trained adapter into ComfyUI's output folder, where Load MECA Adapter finds it. No file is overwritten.",
            search_aliases=["save ip-adapter", "export adapter", "ipadapter save"],
            is_output_node=True,
            inputs=[
                AdapterType.Input("adapter", tooltip="From Train MECA Adapter."),
                io.String.Input(
                    "filename_prefix", default=f"{FOLDER}/meca",
                    tooltip="The file's name; a number is added. Keep `ipadapter/` before it, or Load MECA Adapter will not list the file.",
                ),
            ],
            outputs=[],
        )  # fmt: skip

    @classmethod
    @override
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
