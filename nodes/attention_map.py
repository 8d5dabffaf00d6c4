"""Attention Map: where in the picture the model looks at which word."""

# A node's execute takes its own inputs by name, which differs from the base class by design.
# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_args

import torch
from comfy_api.latest import io, ui
from typing_extensions import override

from ..attention import chain, grid, layers, probe
from ..attention.joint_probe import JointProbe
from ..attention.maps import Readings
from ..conditioning import encoder_words, prompt_words
from ..images import heat_map
from . import inputs
from .checked import checked
from .inputs import LIST
from .looked_at import background, draw, latent_of, noise_level

AUTO = "auto"
ALL = "all"


class AttentionMap(io.ComfyNode):
    """Heat maps of the words, from one denoising step."""

    @classmethod
    @override
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MaskPromptAttentionMap",
            display_name="Attention Map",
            category="MaskPrompt/See and measure",
            description="Shows where in the picture the model looks at a word: a heat map for each word, learned handle or mask token, "
            "from one denoising step at a noise level of your choice. A map can leave as a mask, for the next node. For SD 1.5, SD 2.1, "
            "SDXL, and transformers such as FLUX, Qwen-Image, Z-Image, SD 3, Krea 2, Anima and Wan.",
            search_aliases=[
                "cross attention", "heat map", "heatmap", "daam", "explain prompt", "word map", "attribution", "mask from word",
                "text mask", "concept attention",
            ],
            inputs=[
                io.Model.Input("model", tooltip="The model, with LoRAs and other nodes if you like, as it goes into the sampler."),
                io.Clip.Input("clip", tooltip="The text encoder that encodes the prompt; it tells where each word stands."),
                io.String.Input(
                    "text", multiline=True, dynamic_prompts=True,
                    tooltip="The positive prompt, the same text as in its text node.",
                ),
                io.String.Input(
                    "words", default="",
                    tooltip="What to look for, separated by commas: words, phrases such as red ball, handles such as embedding:fox-cat, "
                    "mask tokens as mask:1.",
                ),
                io.Float.Input(
                    "at_percent", default=0.5, min=0.0, max=1.0, step=0.01,
                    tooltip="When in the sampling to look: 0 is the beginning (only noise), 1 the end.",
                ),
                io.Int.Input(
                    "seed", default=0, min=0, max=2**64 - 1, control_after_generate=True,
                    tooltip="Another seed looks through other noise, and the maps differ a little.",
                ),
                io.Combo.Input(
                    "scale", options=list(get_args(heat_map.Scale)), default="each word",
                    tooltip="How bright each map is. each word: by its own maximum. all words alike: by the strongest word's, to "
                    "compare them. share of attention: as it is (all words, the prompt's beginning and its end share 1, so "
                    "values are small).",
                ),
                io.Conditioning.Input(
                    "positive", optional=True,
                    tooltip="The positive prompt as it goes into the sampler, with ControlNets, areas, an inpainting picture or mask "
                    "tokens. Without it `text` is encoded here.",
                ),
                io.Latent.Input(
                    "latent", optional=True, tooltip="The picture to look at: from the sampler, or an empty one for pure noise."
                ),
                io.Image.Input(
                    "image", optional=True,
                    tooltip="The picture to look at, through `vae`, if no latent is wired; and what the maps are drawn on.",
                ),
                io.Vae.Input(
                    "vae", optional=True,
                    tooltip="Needed for `image` without a latent; with a latent alone it gives the picture to draw on.",
                ),
                io.Combo.Input(
                    "layers", options=[AUTO, ALL, LIST], default=AUTO, optional=True, advanced=True,
                    tooltip="Where to look. auto: the layers whose grid is nearest to 16 x 16, where words and things go together best; "
                    "of a transformer every layer. all: the mean over every layer. list: those named below.",
                ),
                inputs.layer_list("middle 0, output 3, output 4, output 5"),
                io.Float.Input(
                    "sigma", default=0.0, min=0.0, max=10000.0, step=0.01, optional=True, advanced=True,
                    tooltip="How noisy the picture is when it is looked at: the noise level itself, instead of at_percent. 0: by "
                    "at_percent.",
                ),
                io.Float.Input(
                    "threshold", default=0.5, min=0.0, max=1.0, step=0.01, optional=True, advanced=True,
                    tooltip="How large the output mask becomes: white from this part of a map's range on, between its darkest place "
                    "(0) and its brightest (1). Lower: a larger mask.",
                ),
                io.Float.Input(
                    "smallest_area", default=0.01, min=0.0, max=1.0, step=0.001, optional=True, advanced=True,
                    tooltip="Keeps specks out of the output mask: pieces smaller than this part of the picture are left out. The "
                    "largest one always stays.",
                ),
            ],
            outputs=[
                io.Mask.Output(
                    display_name="maps",
                    tooltip="A map for each word, in the order of `words`; of several pictures all of the first word first.",
                ),
                io.Image.Output(display_name="image", tooltip="The same maps as colours over the picture, with the word written on each."),
                io.Mask.Output(
                    display_name="mask",
                    tooltip="The same maps as masks: white where the model looks at the word. One for each word, in the order of the maps.",
                ),
            ],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    @override
    @checked
    def execute(
        cls,
        model: Any,
        clip: Any,
        text: str,
        words: str,
        at_percent: float,
        seed: int,
        scale: heat_map.Scale,
        positive: list[Any] | None = None,
        latent: dict[str, Any] | None = None,
        image: torch.Tensor | None = None,
        vae: Any = None,
        layers: str = AUTO,
        layer_list: str = "",
        sigma: float = 0.0,
        threshold: float = 0.5,
        smallest_area: float = 0.01,
    ) -> io.NodeOutput:
        inputs.known_layers(model)
        if clip is None:
            raise ValueError("no text encoder was given (the checkpoint holds none): wire the CLIP of the checkpoint, or Load CLIP.")
        names = prompt_words.split(words)
        found = find_words(model, clip, text, names, positive)
        pictures = latent_of(model, latent, image, vae)
        height, width = pictures["samples"].shape[-2:]
        scope = chain.Scope(chosen_layers(model, layers, layer_list, (height, width)))
        maps = look(model, found, scope, pictures, noise_level(model, at_percent, sigma), seed)
        pixels = inputs.latent_pixels(model)
        heat = heat_map.scaled(heat_map.enlarged(maps.float().cpu(), height * pixels, width * pixels), scale)
        frames = pictures["samples"].shape[2] > 1 if pictures["samples"].ndim == 5 else False
        drawn = draw(heat, names, background(heat, latent, image, vae), frames)
        masks = heat_map.masks_of(heat, threshold, smallest_area)
        by_word = [each.transpose(0, 1).flatten(0, 1) for each in (heat, masks)]
        return io.NodeOutput(by_word[0], drawn, by_word[1], ui=ui.PreviewImage(drawn, cls=cls))


@dataclass(frozen=True)
class Found:
    """The texts of a prompt to run, the columns of each word in them, and how many tokens the model sees of each."""

    entries: list[Any]
    groups: tuple[prompt_words.Group, ...]
    tokens: int


def find_words(model: Any, clip: Any, text: str, names: list[str], positive: list[Any] | None) -> Found:
    """Where the words stand in the prompt as it goes into the sampler. ValueError in the artist's words if one is not there."""
    if inputs.is_unet(model):
        prompt = prompt_words.read(clip, text)
        own = clip.encode_from_tokens_scheduled(clip.tokenize(text))
        entries, _ = prompt_words.entries(positive, own, prompt.length)
        groups = prompt_words.columns(prompt, names, entries[0][1], lambda word: prompt_words.find(clip, prompt, word))
        return Found(entries, groups, entries[0][0].shape[1])
    own = clip.encode_from_tokens_scheduled(clip.tokenize(text))
    prompt = encoder_words.read(clip, text, own[0][0], own[0][1])
    entries, same = prompt_words.entries(positive, own, prompt.length)
    groups = prompt_words.columns(prompt, names, entries[0][1], prompt.find)
    shift = prompt.shift_in(entries[0], same)
    return Found(entries, tuple(tuple(column + shift for column in group) for group in groups), prompt.tokens_in(entries[0]))


def chosen_layers(model: Any, choice: str, text: str, latent: grid.Size) -> frozenset[layers.Layer] | None:
    """The layers that a choice names; None for all."""
    if choice == LIST:
        return layers.parse(text, inputs.known_layers(model))
    if choice == ALL or not inputs.is_unet(model):
        return None
    return probe.layers_near(model.get_model_object("diffusion_model"), latent)


def look(model: Any, found: Found, scope: chain.Scope, latent: dict[str, Any], sigma: float, seed: int) -> torch.Tensor:
    """One denoising step of the latent under noise of this level: maps [images, words, h, w] of the attention to each word.

    Every latent frame of a video is a picture. Runs as KSampler would at CFG 1, so that all that is on MODEL and prompt takes part, but
    for guidance after the step, which may run the prompt again with its attention damaged on purpose. Neither is changed.
    """
    import comfy.sample
    import comfy.samplers

    readings = Readings()
    kind = probe.Probe if inputs.is_unet(model) else JointProbe
    probed = chain.install(model, kind((found.groups,), found.tokens, readings, scope))
    probed.model_options.pop("sampler_post_cfg_function", None)
    samples = latent["samples"]
    noise = comfy.sample.prepare_noise(samples, seed, latent.get("batch_index"))
    comfy.sample.sample_custom(
        probed, noise, 1.0, comfy.samplers.sampler_object("euler"), torch.tensor([sigma, 0.0]), found.entries, found.entries,
        samples, noise_mask=latent.get("noise_mask"), disable_pbar=True, seed=seed,
    )  # fmt: skip
    if not readings.all():
        raise ValueError(
            f"the prompt does not act at this point of the sampling (noise level {sigma:.3g}): its start and end leave it out. Choose "
            "another at_percent. Or in the layers that are chosen the picture sees no words: choose others."
        )
    return readings.on_latent()


NODES: list[type[io.ComfyNode]] = [AttentionMap]
