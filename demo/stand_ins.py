"""What the demo puts in the place of published models: small files of its own, and the settings that they like."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from . import setup
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
"""The loaders of transformers and their parts: the folder below models/ of each input. The demo has no small model for them yet."""

# All that the demo changes in a workflow: (class of the node, its input) to the value for the tiny model.
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


def changed(prompt: Prompt) -> Prompt:
    """A copy of an API-format workflow with CHANGES applied; ValueError if a changed input is not a plain value there."""
    copy: Prompt = json.loads(json.dumps(prompt))
    for node, entry in copy.items():
        for (name, field), value in CHANGES.items():
            if entry["class_type"] != name:
                continue
            if isinstance(entry["inputs"].get(field), (list, type(None))):
                raise ValueError(f"node {node} ({name}) has no input {field!r} to replace: bring demo/stand_ins.py's CHANGES up to date")
            entry["inputs"][field] = value
    for entry in copy.values():
        if entry["class_type"] == "KSampler":
            entry["inputs"] |= of_sampler(copy)
    return copy


def of_sampler(prompt: Prompt) -> dict[str, Any]:
    """What the demo changes in a workflow's KSamplers beside CHANGES: nothing where the model is none that the tiny UNet stands in for."""
    classes = {entry["class_type"] for entry in prompt.values()}
    if "CheckpointLoaderSimple" not in classes:
        return {}
    return {**SAMPLER, "cfg": next(cfg for name, cfg in CFG.items() if name in classes)}
