"""CLIP and DINO as scores use them: pictures and prompts to unit vectors, with weights from ComfyUI's own folders.

A folder is a model as `transformers` saves it, of any size; a single file is one that ComfyUI's Load CLIP Vision takes. Weights are read by
`files`, so nothing in them can run, and nothing is ever downloaded.
"""

from __future__ import annotations

import json
import os
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .. import files
from . import libraries

CLIP, DINO = "CLIP", "DINO"
PLACES: dict[str, tuple[str, ...]] = {CLIP: ("clip_vision",), DINO: ("clip_vision", "dino")}
"""ComfyUI's folders that hold them."""
SUFFIXES = frozenset({".safetensors", ".sft", ".pth", ".pt", ".bin"})
ADVICE = {
    CLIP: "Download config.json, preprocessor_config.json, tokenizer.json, vocab.json, merges.txt and model.safetensors of "
    "openai/clip-vit-base-patch32 (the papers' CLIP) or openai/clip-vit-large-patch14 from huggingface.co into a folder of their own in "
    "ComfyUI/models/clip_vision, and press R in the browser to refresh the list.",
    DINO: "Download config.json, preprocessor_config.json and model.safetensors (or pytorch_model.bin) of facebook/dino-vits16 (the "
    "papers' DINO) or facebook/dinov2-base from huggingface.co into a folder of their own in ComfyUI/models/dino, and press R in the "
    "browser to refresh the list.",
}
KINDS: dict[str, tuple[str, str]] = {
    "clip": (CLIP, "CLIPModel"),
    "vit": (DINO, "ViTModel"),
    "dinov2": (DINO, "Dinov2Model"),
    "dinov2_with_registers": (DINO, "Dinov2WithRegistersModel"),
    "dinov3_vit": (DINO, "DINOv3ViTModel"),
}
"""A config.json's model_type: what the model is for, and its class in `transformers`."""
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_TOGETHER = 8

_alive: weakref.WeakValueDictionary[tuple[Any, ...], Any] = weakref.WeakValueDictionary()


class Encoder(Protocol):
    """Pictures to vectors. `reads_text` tells whether prompts can be brought to vectors of the same space."""

    name: str
    reads_text: bool

    def pictures(self, images: Sequence[Tensor], on_group: Callable[[int], None] | None = None) -> Tensor:
        """Bring pictures [H, W, 3] in 0..1 of any sizes to unit vectors [N, D], float32 on the CPU."""
        ...

    def texts(self, prompts: Sequence[str]) -> Tensor:
        """Bring prompts to unit vectors [N, D], float32 on the CPU. ValueError if `reads_text` is False."""
        ...


class Network(torch.nn.Module):
    """A network of `transformers` as ComfyUI can move it: ComfyUI notes the device on the module, and theirs do not let it."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner


class FolderEncoder:
    """A CLIP or DINO of `transformers`, in single precision, moved by ComfyUI's memory management."""

    def __init__(self, network: Any, processor: Any, tokenizer: Any, name: str) -> None:
        import comfy.model_management as management
        from comfy.model_patcher import ModelPatcher

        self.name, self.processor, self.tokenizer = name, processor, tokenizer
        self.reads_text = tokenizer is not None
        offload = management.unet_offload_device()
        inner = Network(network).eval().requires_grad_(False).to(offload, torch.float32)
        self.patcher = ModelPatcher(inner, management.get_torch_device(), offload)

    @torch.no_grad()
    def pictures(self, images: Sequence[Tensor], on_group: Callable[[int], None] | None = None) -> Tensor:
        network, device = self._loaded()
        found = []
        for first in range(0, len(images), _TOGETHER):
            bytes_of = [(one * 255).round().to(torch.uint8).cpu().numpy() for one in images[first : first + _TOGETHER]]
            group = [Image.fromarray(one) for one in bytes_of]  # of arrays, transformers guesses which axis is the colours'
            pixels = torch.cat([self.processor(images=one, return_tensors="pt")["pixel_values"] for one in group]).to(device)
            if self.reads_text:
                vectors = network.visual_projection(network.vision_model(pixel_values=pixels)[1])
            else:
                vectors = network(pixel_values=pixels)[0][:, 0]
            found.append(vectors.float().cpu())
            if on_group is not None:
                on_group(min(len(images), first + _TOGETHER))
        return F.normalize(torch.cat(found), dim=-1)

    @torch.no_grad()
    def texts(self, prompts: Sequence[str]) -> Tensor:
        if not self.reads_text:
            raise ValueError(f"'{self.name}' reads no text, so it cannot compare pictures with a prompt. {ADVICE[CLIP]}")
        network, device = self._loaded()
        length = network.config.text_config.max_position_embeddings
        words = self.tokenizer(list(prompts), padding=True, truncation=True, max_length=length, return_tensors="pt").to(device)
        states = network.text_model(input_ids=words["input_ids"], attention_mask=words["attention_mask"])
        return F.normalize(network.text_projection(states[1]).float().cpu(), dim=-1)

    def _loaded(self) -> tuple[Any, torch.device]:
        import comfy.model_management as management

        management.load_models_gpu([self.patcher], force_full_load=True)
        device = self.patcher.load_device
        # With --novram ComfyUI moves only layers that cast their own weights; this network has none, so it moves as a whole.
        self.patcher.model.to(device)
        return self.patcher.model.inner, device


ONE_FILE: dict[str, str] = {"clip_vision_model": CLIP, "dinov2": DINO}
"""What ComfyUI calls the models that are taken from one file; SigLIP and DINOv3 give no vector for a picture there."""


class FileEncoder:
    """A CLIP_VISION as ComfyUI loads it from one file: CLIP in L, H, G, or DINOv2 in large or giant. It reads no text."""

    reads_text = False

    def __init__(self, clip_vision: Any, name: str) -> None:
        self.clip_vision, self.name = clip_vision, name

    @torch.no_grad()
    def pictures(self, images: Sequence[Tensor], on_group: Callable[[int], None] | None = None) -> Tensor:
        found = []
        for number, picture in enumerate(images, 1):
            found.append(self.clip_vision.encode_image(picture[None])["image_embeds"].float().cpu())
            if on_group is not None and (number % _TOGETHER == 0 or number == len(images)):
                on_group(number)
        return F.normalize(torch.cat(found), dim=-1)

    def texts(self, prompts: Sequence[str]) -> Tensor:
        raise ValueError(
            f"'{self.name}' is loaded as ComfyUI loads it, for pictures alone: CLIP-T needs CLIP's folder with its words. {ADVICE[CLIP]}"
        )


def listed(kind: str) -> list[str]:
    """List the model files and folders of ComfyUI that may hold a CLIP or a DINO, by their relative names, in alphabetic order."""
    import folder_paths

    found: set[str] = set()
    for place in PLACES[kind]:
        single = files.list_files(place, SUFFIXES)
        for base in folder_paths.get_folder_paths(place):
            folders = {
                Path(one).relative_to(base).as_posix(): Path(one)
                for one, _, names in os.walk(base, followlinks=True)
                if "config.json" in names
            }
            found |= {name for name, folder in folders.items() if _kind_of(folder) == kind}
            single = [file for file in single if file.replace("\\", "/").rpartition("/")[0] not in folders]
        found |= set(single)
    return sorted(found)


def find(kind: str, name: str) -> Path:
    """The file or folder of that name in ComfyUI's folders. ValueError that says what is there and what to put where if there is none."""
    import folder_paths

    for place in PLACES[kind]:
        files.register_folder(place, SUFFIXES)
        for base in folder_paths.get_folder_paths(place):
            found = Path(base) / name
            if Path(os.path.normpath(found)).is_relative_to(os.path.normpath(base)) and found.exists():
                return found
    places = " or ".join(base for place in PLACES[kind] for base in folder_paths.get_folder_paths(place))
    raise ValueError(f"There is no {kind} model '{name}' in {places} (found there: {', '.join(listed(kind)) or 'none'}). {ADVICE[kind]}")


def load(path: Path, kind: str) -> Encoder:
    """Load the CLIP or DINO of a file or folder; the same object as long as somebody holds it and the files stay the same.

    ValueError in plain words if it is another model, damaged or not complete, RuntimeError if a package is missing.
    """
    members = sorted(one for one in path.iterdir() if one.is_file()) if path.is_dir() else [path]
    key = (kind, path, *((one.name, one.stat().st_size, one.stat().st_mtime_ns) for one in members))
    found = _alive.get(key)
    if found is None:
        # Not as inference tensors, so that training code may use them as well.
        with torch.inference_mode(False):
            found = _alive[key] = _from_folder(path, kind) if path.is_dir() else _from_file(path, kind)
    return found


def _from_file(path: Path, kind: str) -> FileEncoder:
    import comfy.clip_vision

    state = files.load_weights(str(path))
    openai = "visual.transformer.resblocks.0.attn.in_proj_weight" in state
    clip_vision = comfy.clip_vision.load_clipvision_from_sd(state, "visual." if openai else "", openai)
    told = "" if clip_vision is None else str(clip_vision.config.get("model_type", ""))
    own = ONE_FILE.get(told)
    if own != kind:
        other = f"another vision model ({told})" if told else "no vision model that ComfyUI loads from one file"
        what = other if own is None else f"a {own}"
        raise ValueError(f"'{path.name}' is {what}, and a {kind} is needed here. {ADVICE[kind]}")
    return FileEncoder(clip_vision, path.name)


def _from_folder(folder: Path, kind: str) -> FolderEncoder:
    config = json.loads((folder / "config.json").read_text("utf-8")) if (folder / "config.json").is_file() else {}
    own, name = KINDS.get(config.get("model_type", ""), ("", ""))
    if own != kind:
        raise ValueError(
            f"The folder {folder} holds no {kind}: its config.json says model_type {config.get('model_type')!r}. {ADVICE[kind]}"
        )
    weights = next((folder / one for one in _WEIGHTS if (folder / one).is_file()), None)
    if weights is None or not (folder / "preprocessor_config.json").is_file():
        raise ValueError(
            f"The folder {folder} is not complete: it needs preprocessor_config.json and {' or '.join(_WEIGHTS)}. {ADVICE[kind]}"
        )
    library = libraries.transformers(name, "AutoConfig", "AutoImageProcessor", "CLIPTokenizer")
    try:
        settings = library.AutoConfig.from_pretrained(folder, local_files_only=True)
        processor = library.AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        tokenizer = library.CLIPTokenizer.from_pretrained(folder, local_files_only=True) if kind == CLIP else None
    except Exception as error:  # tokenizers has a plain Exception
        raise ValueError(f"The small files in {folder} cannot be read ({error}). {ADVICE[kind]}") from error
    more = {"add_pooling_layer": False} if name == "ViTModel" else {}
    try:
        # Without a path transformers takes these weights, and has nowhere to look for others.
        network, report = getattr(library, name).from_pretrained(
            None, config=settings, state_dict=files.load_weights(str(weights)), output_loading_info=True, **more
        )
    except (RuntimeError, ValueError, TypeError) as error:
        if "memory" in str(error):
            raise
        raise ValueError(f"'{weights.name}' in {folder} does not fit its config.json: they are of different models. ({error})") from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise ValueError(
            f"'{weights.name}' in {folder} lacks {len(missing)} weights, such as {missing[0]}: it is not complete. {ADVICE[kind]}"
        )
    return FolderEncoder(network, processor, tokenizer, folder.name)


def _kind_of(folder: Path) -> str:
    """What a folder with a config.json holds: CLIP, DINO or "" for anything else."""
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return ""
    return KINDS.get(config.get("model_type", ""), ("", ""))[0] if isinstance(config, dict) else ""
