"""Mask-ControlNet's file: control network and adapter in one .safetensors; or a control network alone, as `diffusers` saves it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from .. import files
from .. import weights as strict
from . import diffusers_layout
from .adapter import MaskConcat
from .diffusers_layout import Shape

FORMAT = "maskprompt-mask-controlnet"
VERSION = 1
CONTROL = "control_net."
ADAPTER = "adapter."
CONFIG = "config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
BESIDE = "adapter.safetensors"
SCALE = 0.18215
SCALE_SDXL = 0.13025
"""What a VAE's latents are multiplied by for the UNet, in SD 1.5 and SD 2.1, and in SDXL."""
ADVICE = "Take one from Train Mask-ControlNet or train.py mask-controlnet."


@dataclass(frozen=True)
class About:
    """What the weights do not tell. `scale`: of the latents that the hint is. `base`: the model it was trained on, in words. `masked`:
    whether it was trained with the mask prompt; without it the hint is the bare reference (the paper's ablation)."""

    scale: float = SCALE
    base: str = ""
    masked: bool = True


@dataclass(frozen=True)
class Content:
    """A file's weights by ComfyUI's names, on the CPU in the file's precision; no adapter where `diffusers` alone saved it."""

    shape: Shape
    control: Mapping[str, Tensor]
    adapter: Mapping[str, Tensor] | None
    about: About


def save(content: Content, path: str | os.PathLike[str], more: Mapping[str, str] | None = None) -> None:
    """Writes the one file; `more` goes into its metadata. A file of that name is replaced whole or not at all."""
    files.write_weights(path, together(content), {**(more or {}), **metadata_of(content)})


def together(content: Content) -> dict[str, Tensor]:
    """The weights as they stand in the one file: the control network's under `diffusers`' names; an untrained adapter for none."""
    control = diffusers_layout.to_diffusers(content.control, content.shape)
    adapter = MaskConcat().state_dict() if content.adapter is None else content.adapter
    return {CONTROL + name: value for name, value in control.items()} | {ADAPTER + name: value for name, value in adapter.items()}


def metadata_of(content: Content) -> dict[str, str]:
    """What stands beside the weights."""
    about = content.about
    return {
        "format": FORMAT,
        "format_version": str(VERSION),
        "config": json.dumps(diffusers_layout.config_of(content.shape)),
        "latent_scale": repr(about.scale),
        "base": about.base,
        "masked": str(about.masked).lower(),
    }


def save_diffusers(content: Content, folder: str | os.PathLike[str]) -> None:
    """Writes the control network as a folder for `diffusers`' ControlNetModel.from_pretrained, with the adapter in a file beside it."""
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    (target / CONFIG).write_text(json.dumps(diffusers_layout.config_of(content.shape), indent=2) + "\n", "utf-8")
    files.write_weights(target / WEIGHTS, diffusers_layout.to_diffusers(content.control, content.shape), {"format": "pt"})
    if content.adapter is not None:
        files.write_weights(target / BESIDE, dict(content.adapter), metadata_of(content))


def read(path: str) -> Content:
    """Our own file, or a .safetensors of `diffusers` with its config.json beside it, and the adapter if `save_diffusers` wrote one there.

    ValueError in plain words for a file that cannot be read, is of another kind, is not whole, or holds what are no numbers.
    """
    title = f"'{os.path.basename(path)}'"
    weights = files.load_weights(path)
    metadata = _metadata(path)
    if metadata.get("format") == FORMAT:
        strict.check_numbers(weights, title)
        if all(name.startswith("layer.") for name in weights):
            raise ValueError(f"{title} is the adapter alone: load {WEIGHTS}, which is beside it.")
        return _own(weights, metadata, title)
    first = weights.get(f"{diffusers_layout.HINT}.conv_in.weight")
    if first is None or first.ndim != 4 or first.shape[1] != diffusers_layout.LATENT:
        pictures = first is not None or any("zero_convs." in name for name in weights)
        kind = "a ControlNet for pictures, for Load ControlNet Model" if pictures else "another kind"
        raise ValueError(f"{title} is no Mask-ControlNet file but {kind}. {ADVICE}")
    strict.check_numbers(weights, title)
    config = Path(path).with_name(CONFIG)
    if not config.is_file():
        raise ValueError(f"{title} is a control network as `diffusers` saves it, but its {CONFIG} is not beside it: copy the whole folder.")
    shape = _shape(config.read_bytes(), title)
    adapter, about = _beside(Path(path).with_name(BESIDE), About(SCALE_SDXL if "adm_in_channels" in shape else SCALE))
    return Content(shape, diffusers_layout.from_diffusers(weights, shape), adapter, about)


def _beside(path: Path, about: About) -> tuple[Mapping[str, Tensor] | None, About]:
    """The adapter that `save_diffusers` wrote there and what it says of itself; else none, and `about`."""
    if not path.is_file():
        return None, about
    weights = files.load_weights(str(path))
    metadata = _metadata(str(path))
    if metadata.get("format") != FORMAT:
        return None, about
    strict.check_numbers(weights, f"'{path.name}'")
    return weights, _about(metadata, f"'{path.name}'")


def _own(weights: Mapping[str, Tensor], metadata: Mapping[str, str], title: str) -> Content:
    about = _about(metadata, title)
    shape = _shape(metadata.get("config", ""), title)
    control = {name[len(CONTROL) :]: value for name, value in weights.items() if name.startswith(CONTROL)}
    adapter = {name[len(ADAPTER) :]: value for name, value in weights.items() if name.startswith(ADAPTER)}
    return Content(shape, diffusers_layout.from_diffusers(control, shape), adapter, about)


def _about(metadata: Mapping[str, str], title: str) -> About:
    version = metadata.get("format_version", "")
    if version != str(VERSION):
        raise ValueError(
            f"{title} is a Mask-ControlNet file of format {version or 'unknown'}; this pack reads format {VERSION}. Update MaskPrompt."
        )
    try:
        about = About(float(metadata["latent_scale"]), metadata.get("base", ""), {"true": True, "false": False}[metadata["masked"]])
    except (KeyError, ValueError):
        about = About(math.nan)
    if not math.isfinite(about.scale) or about.scale <= 0:
        raise ValueError(f"{title}: its metadata cannot be read. The file is damaged.")
    return about


def _shape(config: str | bytes, title: str) -> Shape:
    try:
        content: Any = json.loads(config)
        return diffusers_layout.shape_of_config(content)
    except (KeyError, TypeError, AttributeError, RecursionError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{title}: the configuration of its control network cannot be read ({error}). The file is damaged.") from None
    except ValueError as error:
        raise ValueError(f"{title} is a control network, but {error}. {ADVICE}") from None


def _metadata(path: str) -> Mapping[str, str]:
    if not path.lower().endswith((".safetensors", ".sft")):
        return {}
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}
