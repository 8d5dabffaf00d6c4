"""Attention Map: where in the picture the model looks at which word."""

# A node's execute takes its own inputs by name, which differs from the base class by design.
# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

from typing import Any, get_args

import torch
from comfy_api.latest import io, ui
from typing_extensions import override

from ..attention import chain, grid, layers, probe
from ..attention.maps import Readings
from ..conditioning import prompt_words
from ..images import heat_map
from . import inputs
from .checked import checked
from .inputs import LIST, layers_of

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
            "from one denoising step at a noise level of your choice. For any SD 1.5, SD 2.1 or SDXL model and prompt.",
            search_aliases=["cross attention", "heat map", "heatmap", "daam", "explain prompt", "word map", "attribution"],
            inputs=[
                io.Model.Input("model", tooltip="A UNet model, with LoRAs and other nodes if you like, as it goes into the sampler."),
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
                    tooltip="Of the noise that is put onto the picture.",
                ),
                io.Combo.Input(
                    "scale", options=list(get_args(heat_map.Scale)), default="each word",
                    tooltip="each word: by its own maximum. all words alike: by the strongest word's, to compare them. share of attention: "
                    "as it is (all words, the prompt's beginning and its end share 1, so values are small).",
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
                    tooltip="Where to look. auto: the layers whose grid is nearest to 16 x 16, where words and things go together best. "
                    "all: the mean over every layer. list: those named below.",
                ),
                inputs.layer_list("middle 0, output 3, output 4, output 5"),
                io.Float.Input(
                    "sigma", default=0.0, min=0.0, max=10000.0, step=0.01, optional=True, advanced=True,
                    tooltip="The noise level itself, instead of at_percent. 0: by at_percent.",
                ),
            ],
            outputs=[
                io.Mask.Output(
                    display_name="maps",
                    tooltip="A map for each word, in the order of `words`; of several pictures all of the first word first.",
                ),
                io.Image.Output(display_name="image", tooltip="The same maps as colours over the picture, with the word written on each."),
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
    ) -> io.NodeOutput:
        layers_of(model)
        if clip is None:
            raise ValueError("no text encoder was given (the checkpoint holds none): wire the CLIP of the checkpoint, or Load CLIP.")
        names = prompt_words.split(words)
        prompt = prompt_words.read(clip, text)
        entries = prompt_words.entries(positive, clip, prompt)
        groups = prompt_words.columns(clip, prompt, names, entries[0][1])
        pictures = latent_of(model, latent, image, vae)
        height, width = pictures["samples"].shape[-2:]
        scope = chain.Scope(chosen_layers(model, layers, layer_list, (height, width)))
        maps = look(model, entries, groups, scope, pictures, noise_level(model, at_percent, sigma), seed)
        heat = heat_map.scaled(heat_map.enlarged(maps.float().cpu(), height * 8, width * 8), scale)
        drawn = draw(heat, names, background(heat, latent, image, vae))
        return io.NodeOutput(heat.transpose(0, 1).flatten(0, 1), drawn, ui=ui.PreviewImage(drawn, cls=cls))


def latent_of(model: Any, latent: dict[str, Any] | None, image: torch.Tensor | None, vae: Any) -> dict[str, Any]:
    """The LATENT to look at, with as many channels as the model has."""
    import comfy.sample

    if latent is None:
        if image is None or vae is None:
            raise ValueError("there is no picture to look at: wire `latent`, or `image` together with `vae`.")
        return {"samples": vae.encode(image[..., :3])}
    return {**latent, "samples": comfy.sample.fix_empty_latent_channels(model, latent["samples"])}


def noise_level(model: Any, at_percent: float, sigma: float) -> float:
    """The sigma to look at, within what the model knows."""
    sampling = model.get_model_object("model_sampling")
    wanted = sigma if sigma > 0 else float(sampling.percent_to_sigma(at_percent))
    return min(max(wanted, float(sampling.sigma_min)), float(sampling.sigma_max))


def chosen_layers(model: Any, choice: str, text: str, latent: grid.Size) -> frozenset[layers.Layer] | None:
    """The layers that a choice names; None for all."""
    if choice == LIST:
        return layers.parse(text, layers_of(model))
    return probe.layers_near(model.get_model_object("diffusion_model"), latent) if choice == AUTO else None


def look(
    model: Any,
    entries: list[Any],
    groups: tuple[prompt_words.Group, ...],
    scope: chain.Scope,
    latent: dict[str, Any],
    sigma: float,
    seed: int,
) -> torch.Tensor:
    """One denoising step of the latent under noise of this level: maps [images, words, h, w] of the attention to each group of tokens.

    Runs as KSampler would at CFG 1, so that all that is on MODEL and prompt takes part. Neither is changed.
    """
    import comfy.sample
    import comfy.samplers

    readings = Readings()
    probed = chain.install(model, probe.Probe((groups,), entries[0][0].shape[1], readings, scope))
    samples = latent["samples"]
    noise = comfy.sample.prepare_noise(samples, seed, latent.get("batch_index"))
    comfy.sample.sample_custom(
        probed, noise, 1.0, comfy.samplers.sampler_object("euler"), torch.tensor([sigma, 0.0]), entries, entries, samples,
        noise_mask=latent.get("noise_mask"), disable_pbar=True, seed=seed,
    )  # fmt: skip
    if not readings.all():
        raise ValueError(
            f"the prompt does not act at this point of the sampling (noise level {sigma:.3g}): its start and end leave it out. Choose "
            "another at_percent."
        )
    return readings.on_latent()


def background(heat: torch.Tensor, latent: dict[str, Any] | None, image: torch.Tensor | None, vae: Any) -> torch.Tensor:
    """What the maps [images, words, H, W] are drawn on, [N, H, W, 3]: the image, else the latent's picture, else grey."""
    import comfy.utils

    height, width = heat.shape[-2:]
    if image is None and latent is not None and vae is not None:
        image = vae.decode(latent["samples"])
    if image is None:
        return torch.full((1, height, width, 3), 0.3)
    # As the VAE crops it.
    return comfy.utils.common_upscale(image[..., :3].movedim(-1, 1), width, height, "bilinear", "center").movedim(1, -1).float().cpu()


def draw(heat: torch.Tensor, names: list[str], pictures: torch.Tensor) -> torch.Tensor:
    """Overlays [words · images, H, W, 3] of maps [images, words, H, W], all pictures of the first word first."""
    return torch.stack(
        [
            heat_map.overlay(pictures[number % len(pictures)], heat[number, word], name)
            for word, name in enumerate(names)
            for number in range(len(heat))
        ]
    )


NODES: list[type[io.ComfyNode]] = [AttentionMap]
