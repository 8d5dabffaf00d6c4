"""Mask encoder cross attention: text drives here, an image there. Load Image Prompt Adapter, Image Prompt Region."""

# A node's execute takes its own inputs by name, which differs from the base class by design.
# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

import logging
from typing import Any, get_args

import torch
from comfy_api.latest import io
from typing_extensions import override

from ..attention import chain, ip_adapter_layers, layers, meca
from ..attention.grid import RegionMask
from ..images.masks import to_mask
from ..models import files
from ..models.ip_adapter import adapter as meca_adapter
from ..models.ip_adapter import file as meca_file
from . import inputs
from .checked import checked
from .inputs import LIST, layers_of

log = logging.getLogger(__name__)

CATEGORY = "MaskPrompt/Reference pictures"
FOLDER = "ipadapter"
NO_FILES = "no adapter file found: put one into models/ipadapter"
ADVICE = (
    "Put an IP-Adapter file into ComfyUI/models/ipadapter, for example ip-adapter_sd15.safetensors, ip-adapter-plus_sd15.safetensors or "
    "ip-adapter-plus_sdxl_vit-h.safetensors, or one from Train Image Prompt Adapter, and press R in the browser to refresh the list."
)
AUTO = "auto"
ALL = "all"
ENCODER = "encoder"
DECODER = "decoder"
AdapterType = io.Custom("MASKPROMPT_MECA")


class LoadMECA(io.ComfyNode):
    """An IP-Adapter or a MECA adapter from a file, told apart by its weights."""

    @classmethod
    @override
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MaskPromptLoadMECA",
            display_name="Load Image Prompt Adapter",
            category=CATEGORY,
            description="Loads what lets an image be a prompt: an IP-Adapter or IP-Adapter plus file for SD 1.5 or SDXL, or one that was "
            "trained with Train Image Prompt Adapter. Which one a file holds is read from the file itself.",
            search_aliases=["load meca", "meca", "ip-adapter", "ipadapter", "ip adapter plus", "image prompt", "style reference"],
            inputs=[
                io.Combo.Input(
                    "adapter_name",
                    options=files.list_files(FOLDER, meca_file.SUFFIXES) or [NO_FILES],
                    tooltip="What lets an image be a prompt: a .safetensors or .bin file in ComfyUI/models/ipadapter, an `ipadapter` "
                    "folder of extra_model_paths.yaml, or output/ipadapter, where Save Image Prompt Adapter saves.",
                )
            ],
            outputs=[
                AdapterType.Output(
                    "adapter",
                    display_name="adapter",
                    tooltip="The adapter for Image Prompt Region. ComfyUI takes it off the GPU when it needs the room.",
                )
            ],
        )

    @classmethod
    @override
    def validate_inputs(cls, adapter_name: str | None) -> bool | str:
        return inputs.there(lambda name: files.find_file(FOLDER, name, ADVICE, meca_file.SUFFIXES), adapter_name)

    @classmethod
    @override
    def fingerprint_inputs(cls, adapter_name: str | None) -> str:
        """Another text when the file was written anew, as a training under the same name does."""
        return "" if adapter_name is None else files.stamp(files.find_file(FOLDER, adapter_name, ADVICE, meca_file.SUFFIXES))

    @classmethod
    @override
    @checked
    def execute(cls, adapter_name: str) -> io.NodeOutput:
        return io.NodeOutput(meca_adapter.load(files.find_file(FOLDER, adapter_name, ADVICE, meca_file.SUFFIXES)))


class ApplyMECA(io.ComfyNode):
    """Text outside the region, the image inside it."""

    @classmethod
    @override
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MaskPromptApplyMECA",
            display_name="Image Prompt Region",
            category=CATEGORY,
            description="Lets an image drive a region of the picture and the text the rest of it. Chain several for several regions and "
            "images; what no region covers follows the text. Without a region it is a plain IP-Adapter.",
            search_aliases=[
                "apply meca", "meca", "ip-adapter", "ipadapter apply", "image prompt", "regional", "regional ip-adapter", "attention mask",
                "style transfer", "reference", "product",
            ],
            inputs=[
                io.Model.Input("model", tooltip="A UNet model that the adapter is made for: SD 1.5 or SDXL, with LoRAs if you like."),
                AdapterType.Input(
                    "adapter",
                    tooltip="What lets the image be a prompt: from Load Image Prompt Adapter, or Train Image Prompt Adapter.",
                ),
                io.ClipVisionOutput.Input(
                    "clip_vision_output",
                    tooltip="The image that drives the region, encoded: from Hide in Reference or CLIP Vision Encode. One for all "
                    "pictures of a batch, or one for each of them.",
                ),
                io.Float.Input(
                    "weight", default=1.0, min=0.0, max=3.0, step=0.05,
                    tooltip="How strongly the image acts (lambda). 0: no adapter. In a region, below 1 leaves the rest to the text.",
                ),
                io.Combo.Input(
                    "mode",
                    options=[AUTO, *get_args(meca.Mode)],
                    default=AUTO,
                    tooltip="Who paints where. region: the image inside, the text outside, nothing of the one in the other. query: "
                    "nearly so, softer (equation 6 to the letter). global: the text everywhere, the image on top. auto: as the "
                    "adapter was trained.",
                ),
                io.Mask.Input(
                    "region",
                    optional=True,
                    tooltip="White is where the image drives. Any size, of the same shape as the picture that is painted. One for each "
                    "picture of a batch, or one for all. Without it the region is the whole picture.",
                ),
                io.ClipVision.Input(
                    "clip_vision",
                    optional=True,
                    tooltip="Only for IP-Adapter plus files: the model that encoded the image. The negative prompt's half gets its "
                    "encoding of an empty picture, as in the adapter's training.",
                ),
                io.Combo.Input(
                    "layers", options=[ALL, ENCODER, DECODER, LIST], default=ALL, optional=True, advanced=True,
                    tooltip="Where the image acts. all: as trained. encoder: with the middle, rather the layout. decoder: rather colours "
                    "and texture. list: those named below.",
                ),
                inputs.layer_list("output 3, output 4, output 5"),
                *inputs.part_of_sampling("image"),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="The model with the image prompt; the given one stays as it is.")],
        )  # fmt: skip

    @classmethod
    @override
    @checked
    def execute(
        cls,
        model: Any,
        adapter: meca_adapter.LoadedAdapter,
        clip_vision_output: Any,
        weight: float,
        mode: str,
        region: torch.Tensor | None = None,
        clip_vision: Any = None,
        layers: str = ALL,
        layer_list: str = "",
        start_percent: float = 0.0,
        end_percent: float = 1.0,
    ) -> io.NodeOutput:
        known = layers_of(model)
        numbers = fitted(adapter, model)
        inputs.check_part(start_percent, end_percent, "image")
        scope = chain.Scope(chosen_layers(layers, layer_list, known), start_percent, end_percent)
        place = _region(region)
        if weight == 0 or (place is not None and bool((place.masks < 0.5).all())):
            return io.NodeOutput(model)
        pairs = adapter.pairs(clip_vision_output, clip_vision)
        keys = meca.StoredKeys({layer: pairs[number] for number, layer in numbers.items()})
        return io.NodeOutput(meca.install(model, meca.ImagePrompt(keys, place, weight, chosen_mode(mode, adapter, place), scope)))


def fitted(adapter: meca_adapter.LoadedAdapter, model: Any) -> dict[int, layers.Layer]:
    """IP-Adapter's number of each of the MODEL's layers. ValueError if the adapter is for another model."""
    unet = model.get_model_object("diffusion_model")
    meca_adapter.check_fit(adapter, *ip_adapter_layers.widths(unet))
    return ip_adapter_layers.numbered(unet)


def chosen_mode(mode: str, adapter: meca_adapter.LoadedAdapter, region: RegionMask | None) -> meca.Mode:
    """The mode of that name; for auto the adapter's, or `global` where there is no region: the text would have nothing left."""
    if mode == AUTO:
        return adapter.about.mode if region is not None else "global"
    for known in get_args(meca.Mode):
        if mode == known:
            return known
    raise ValueError(f"there is no mode '{mode}'; there are {AUTO}, {', '.join(get_args(meca.Mode))}.")


def chosen_layers(choice: str, text: str, known: tuple[layers.Layer, ...]) -> frozenset[layers.Layer] | None:
    """The layers that a choice names; None for all."""
    if choice == LIST:
        return layers.parse(text, known)
    if choice in (ENCODER, DECODER):
        return frozenset(layer for layer in known if (layer[0] == "output") == (choice == DECODER))
    return None


def _region(mask: torch.Tensor | None) -> RegionMask | None:
    """The region, or None if nothing is wired; warns of empty masks."""
    if mask is None:
        return None
    masks = to_mask(mask, "region").cpu()
    empty = int((masks < 0.5).flatten(1).all(1).sum())
    if empty:
        log.warning("Image Prompt Region: %d of %d regions are empty; there the text drives alone.", empty, len(masks))
    return RegionMask(masks)


NODES: list[type[io.ComfyNode]] = [LoadMECA, ApplyMECA]
