"""What the demo puts in the place of published models: small files of its own, and the settings that they like."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from . import setup, tiny_edit
from .server import ROOT, Prompt

TINY_MODEL = ROOT / "demo" / "tiny-sd-inpaint.safetensors"
TINY_CLIP_VISION = ROOT / "demo" / "tiny-clip-vision.safetensors"
TINY_MECA = ROOT / "demo" / "tiny-meca.safetensors"
TINY_CONTROL = ROOT / "demo" / "tiny-depth-control.safetensors"
TINY_MASK_CONTROL = ROOT / "demo" / "tiny-mask-controlnet.safetensors"
TINY_BLIP = ROOT / "demo" / "tiny-blip"

MODEL_FILES: dict[str, tuple[str, Path]] = {
    "ckpt_name": ("checkpoints", TINY_MODEL),
    "sam_name": ("sams", setup.mobile_sam_path()),
    "clip_name": ("clip_vision", TINY_CLIP_VISION),
    "adapter_name": ("ipadapter", TINY_MECA),
    "control_net_name": ("controlnet", TINY_CONTROL),
    "mask_controlnet_name": ("controlnet", TINY_MASK_CONTROL),
    "blip_name": ("blip", TINY_BLIP),
}
"""The inputs that name model files: the folder below models/, and the small file, or folder of files, that the demo has for it."""

PUBLISHED: dict[str, dict[str, str]] = {
    "UNETLoader": {"unet_name": "diffusion_models"},
    "CLIPLoader": {"clip_name": "text_encoders"},
    "DualCLIPLoader": {"clip_name1": "text_encoders", "clip_name2": "text_encoders"},
    "VAELoader": {"vae_name": "vae"},
}
"""The loaders of transformers and their parts: the folder below models/ of each input."""

TINY_EDIT: dict[str, Path] = {
    "diffusion_models": ROOT / "demo" / tiny_edit.TRANSFORMER,
    "text_encoders": ROOT / "demo" / tiny_edit.TEXT,
    "vae": ROOT / "demo" / tiny_edit.AUTOENCODER,
}
"""tiny-edit's files, by the folder below models/. They are there once `python -m demo.tiny_edit.files demo` has written them."""
NOT_FOR_TINY_EDIT: frozenset[str] = frozenset({"TextEncodeQwenImageEditPlus"})
"""Nodes that need more than a transformer, a text encoder and a VAE: here a language model that sees."""

# All that the demo changes in a workflow of a checkpoint: (class of the node, its input) to the value for the tiny model.
CHANGES: dict[tuple[str, str], Any] = {
    ("CheckpointLoaderSimple", "ckpt_name"): TINY_MODEL.name,
    ("MaskPromptLoadSAM", "sam_name"): "mobile_sam.pt",
    ("CLIPVisionLoader", "clip_name"): TINY_CLIP_VISION.name,
    ("MaskPromptScorePictures", "clip_name"): TINY_CLIP_VISION.name,
    ("MaskPromptLoadMECA", "adapter_name"): TINY_MECA.name,
    ("ControlNetLoader", "control_net_name"): TINY_CONTROL.name,
    ("MaskPromptLoadMaskControlNet", "mask_controlnet_name"): TINY_MASK_CONTROL.name,
    ("MaskPromptCaptionImage", "blip_name"): TINY_BLIP.name,
    ("MaskPromptCropAroundBox", "resolution"): 128,
    ("EmptyLatentImage", "width"): 128,
    ("EmptyLatentImage", "height"): 128,
    ("MaskPromptTrainDreamCom", "size"): 128,
    ("MaskPromptTrainDreamCom", "steps"): 260,
    ("MaskPromptTrainDreamCom", "gradient_checkpointing"): False,
    ("MaskPromptTrainMECA", "size"): 128,
    ("MaskPromptTrainMECA", "steps"): 100,
    ("MaskPromptTrainMECA", "learning_rate"): 5e-4,
    ("MaskPromptTrainMECA", "gradient_checkpointing"): False,
    ("MaskPromptTrainMCGM", "size"): 128,
    ("MaskPromptTrainMCGM", "method"): "full",
    ("MaskPromptTrainMCGM", "learning_rate"): 5e-4,
    ("MaskPromptTrainMCGM", "average"): 0.98,
    ("MaskPromptTrainMCGM", "steps"): 50,
    ("MaskPromptTrainMCGM", "weight_steps"): 700,
    ("MaskPromptTrainMCGM", "batch_size"): 4,
    ("MaskPromptTrainMCGM", "variations"): 100,
    ("MaskPromptTrainMCGM", "gradient_checkpointing"): False,
    ("MaskPromptTrainMaskControlNet", "size"): 128,
    ("MaskPromptTrainMaskControlNet", "steps"): 80,
    ("MaskPromptTrainMaskControlNet", "batch_size"): 2,
    ("MaskPromptTrainMaskControlNet", "learning_rate"): 2e-3,
    ("MaskPromptTrainMaskControlNet", "gradient_checkpointing"): False,
    ("KSampler", "steps"): 20,
}
SAMPLER: dict[str, Any] = {"sampler_name": "euler", "scheduler": "normal"}
"""What the tiny UNet likes in a KSampler, where a workflow's checkpoint gives way to it."""
CFG: dict[str, float] = {
    "MaskPromptTrainMaskControlNet": 2.5,
    "MaskPromptLoadMaskControlNet": 2.5,
    "MaskPromptDepthHint": 3.0,
    "MaskPromptTrainMECA": 4.0,
    "MaskPromptApplyMECA": 4.0,
    "KSampler": 5.0,
}
"""And which CFG: that of the first of these nodes which the workflow has."""


EDIT_SEED = 6
"""Chosen by eye, of the nine seeds from 1 on."""
# The same for tiny-edit, in a workflow of a transformer.
EDIT_CHANGES: dict[tuple[str, str], Any] = {
    **{(name, field): TINY_EDIT[folder].name for name, fields in PUBLISHED.items() for field, folder in fields.items()},
    ("MaskPromptLoadSAM", "sam_name"): "mobile_sam.pt",
    ("MaskPromptReferenceRegion", "megapixels"): 0.0625,
    ("RandomNoise", "noise_seed"): EDIT_SEED,
    ("Flux2Scheduler", "steps"): 20,
    ("CFGGuider", "cfg"): 3.5,
    ("KSampler", "seed"): EDIT_SEED,
    ("KSampler", "steps"): 20,
    ("KSampler", "cfg"): 3.5,
    ("KSampler", "sampler_name"): "euler",
    ("KSampler", "scheduler"): "simple",
}
EDIT_SIDE = 256
"""The longer side, in pixels, of what tiny-edit paints."""
EDIT_CONTEXT = 0.5
"""The most surroundings of a box that it is shown: it has not learned to paint what is smaller than a quarter of its picture."""
EDIT_SIZES: dict[str, tuple[str, str]] = {
    "EmptyFlux2LatentImage": ("width", "height"),
    "EmptySD3LatentImage": ("width", "height"),
    "Flux2Scheduler": ("width", "height"),
    "MaskPromptCropAroundBox": ("output_width", "output_height"),
}
"""The inputs that say how large a picture is painted."""
EDIT_NODES: dict[str, str] = {"EmptyFlux2LatentImage": "EmptyLatentImage"}
"""Nodes that give way to another with the same inputs: FLUX.2's latents have a sixteenth of the picture's side, tiny-edit's an eighth."""
MEADOW = "in a green meadow"
EDIT_TEXTS: dict[str, str] = {
    "a glass of orange juice stands on the wooden table, seen from above, photograph": "add a cat in the middle",
    "a photograph of a meadow in the morning, a red fox on the left and a penguin on the right": (
        f"a fox on the left and a penguin on the right {MEADOW}"
    ),
    "a red fox sitting in a meadow in the morning": f"a fox {MEADOW}",
    "a penguin standing in a meadow in the morning": f"a penguin {MEADOW}",
    "a red and white striped star lies on the wooden table beside the cup, photograph": "put the thing of the second picture on the right",
    "a cup of espresso on a red saucer stands on a white marble table in a sunlit garden, photograph": f"nothing {MEADOW}",
    "a tabby cat sits on the left, on the right a cup of espresso on a red saucer, on a wooden table by a window, photograph": (
        "a cat on the left and a mug on the right on brown planks"
    ),
    "": "",
}
"""What the workflows say, in words that tiny-edit knows."""


def changed(prompt: Prompt) -> Prompt:
    """A copy of an API-format workflow with what the demo's models need; ValueError if a changed input is not a plain value there."""
    if of_transformer(prompt):
        return changed_for_tiny_edit(prompt)
    return changed_for_tiny_sd(prompt)


def of_transformer(prompt: Prompt) -> bool:
    """Says whether a workflow loads a transformer and its parts, and no checkpoint."""
    return any(entry["class_type"] in PUBLISHED for entry in prompt.values())


def for_tiny_edit(prompt: Prompt) -> bool:
    """Says whether it is a transformer's workflow in which tiny-edit can stand in."""
    return of_transformer(prompt) and not any(entry["class_type"] in NOT_FOR_TINY_EDIT for entry in prompt.values())


def changed_for_tiny_sd(prompt: Prompt) -> Prompt:
    """A copy of a checkpoint's workflow with CHANGES applied."""
    copy = _with(prompt, CHANGES)
    for entry in copy.values():
        if entry["class_type"] == "KSampler":
            entry["inputs"] |= of_sampler(copy)
    return copy


def changed_for_tiny_edit(prompt: Prompt) -> Prompt:
    """A copy of a transformer's workflow with EDIT_CHANGES, at a size and in words for tiny-edit; KeyError for a text without any."""
    copy = _with(prompt, EDIT_CHANGES)
    for entry in copy.values():
        inputs = entry["inputs"]
        across, down = EDIT_SIZES.get(entry["class_type"], ("", ""))
        if isinstance(inputs.get(across), int) and inputs[across]:
            inputs[across], inputs[down] = fitted(inputs[across], inputs[down])
        if entry["class_type"] == "MaskPromptCropAroundBox":
            inputs["context"] = min(inputs["context"], EDIT_CONTEXT)
        if entry["class_type"] == "CLIPTextEncode":
            inputs["text"] = EDIT_TEXTS[inputs["text"]]
        entry["class_type"] = EDIT_NODES.get(entry["class_type"], entry["class_type"])
    return copy


def fitted(width: int, height: int) -> tuple[int, int]:
    """The size in the same proportions whose longer side is `EDIT_SIDE`, in multiples of 16."""
    scale = EDIT_SIDE / max(width, height) / 16
    return max(1, round(width * scale)) * 16, max(1, round(height * scale)) * 16


def tiny_edit_is_there() -> bool:
    """Says whether all of tiny-edit's files are there."""
    return all(file.is_file() for file in TINY_EDIT.values())


def _with(prompt: Prompt, changes: dict[tuple[str, str], Any]) -> Prompt:
    copy: Prompt = json.loads(json.dumps(prompt))
    for node, entry in copy.items():
        for (name, field), value in changes.items():
            if entry["class_type"] != name:
                continue
            if isinstance(entry["inputs"].get(field), (list, type(None))):
                raise ValueError(f"node {node} ({name}) has no input {field!r} to replace: bring demo/stand_ins.py up to date")
            entry["inputs"][field] = value
    return copy


def of_sampler(prompt: Prompt) -> dict[str, Any]:
    """What the demo changes in a workflow's KSamplers beside CHANGES: nothing where the model is none that the tiny UNet stands in for."""
    classes = {entry["class_type"] for entry in prompt.values()}
    if "CheckpointLoaderSimple" not in classes:
        return {}
    return {**SAMPLER, "cfg": next(cfg for name, cfg in CFG.items() if name in classes)}
