"""Captions of pictures by BLIP (Li et al. 2022), with `transformers` and from local folders only; the Mask-ControlNet paper's captions.

A folder holds a captioning model as `transformers` saves it. Weights are read by `files`, so nothing in them can run, and nothing is
ever downloaded. Captions are searched with beams and never sampled: the same picture has the same caption.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from .. import files
from . import folder as place

_SMALLEST = 4

_alive: weakref.WeakValueDictionary[tuple[Any, ...], LoadedBlip] = weakref.WeakValueDictionary()


@dataclass(frozen=True)
class Search:
    """How a caption is searched: with how many beams, and how many tokens (words, or parts of rare ones) it adds to the prefix."""

    beams: int = 3
    least: int = 5
    most: int = 30

    def __post_init__(self) -> None:
        if self.beams < 1:
            raise ValueError(f"beams is {self.beams}: at least one is needed.")
        if self.most < 1 or self.least > self.most:
            raise ValueError(f"min_tokens is {self.least} and max_tokens {self.most}: the first must not be larger, the second at least 1.")


class Network(torch.nn.Module):
    """BLIP as ComfyUI can move it: ComfyUI notes the device on the module, and the modules of `transformers` do not let it."""

    def __init__(self, blip: Any) -> None:
        super().__init__()
        self.blip = blip


class LoadedBlip:
    """A BLIP whose weights ComfyUI's memory management loads and offloads; in half precision where the device computes in it."""

    def __init__(self, blip: Any, tokenizer: Any, processor: Any, name: str) -> None:
        import comfy.model_management as management
        from comfy.model_patcher import ModelPatcher

        device = management.get_torch_device()
        offload = management.unet_offload_device()
        self.name = name
        self.tokenizer = tokenizer
        self.processor = processor
        self.dtype = torch.float16 if management.should_use_fp16(device) else torch.float32
        self.patcher = ModelPatcher(Network(blip).eval().requires_grad_(False).to(offload, self.dtype), device, offload)

    @property
    def blip(self) -> Any:
        """The `BlipForConditionalGeneration`."""
        return self.patcher.model.blip

    def start(self, prefix: str, search: Search) -> Tensor:
        """The tokens [1, T] that a caption begins with: [CLS], those of `prefix`, [SEP]. ValueError if there is no room for a caption."""
        tokens = self.tokenizer(" ".join(prefix.split()), return_tensors="pt")["input_ids"]
        room = self.blip.config.text_config.max_position_embeddings
        if tokens.shape[1] - 1 + search.most > room:
            raise ValueError(
                f"the prefix has {tokens.shape[1] - 2} tokens and max_tokens is {search.most}, but this BLIP reads {room - 1} in all. "
                "Shorten the prefix, or take fewer tokens."
            )
        return tokens

    def describe(self, pictures: list[Image.Image], start: Tensor, search: Search) -> list[str]:
        """A caption, prefix included, for each of a few pictures of any sizes. Can be interrupted after every token."""
        device = self._load(len(pictures), search)
        tokens = start.repeat(len(pictures), 1).to(device)
        with torch.no_grad():
            pixels = self.processor(images=pictures, return_tensors="pt")["pixel_values"].to(device, self.dtype)
            found = self.blip.generate(
                pixel_values=pixels, input_ids=tokens, attention_mask=torch.ones_like(tokens), do_sample=False, num_beams=search.beams,
                min_new_tokens=search.least, max_new_tokens=search.most, logits_processor=[self._watch],
            )  # fmt: skip
        # The first token is BLIP's own [DEC], which its tokenizer does not know.
        return [" ".join(text.split()) for text in self.tokenizer.batch_decode(found[:, 1:], skip_special_tokens=True)]

    def _watch(self, tokens: Tensor, scores: Tensor) -> Tensor:
        """Called for every token: takes no part in the search, only looks whether it can go on."""
        from comfy.model_management import throw_exception_if_processing_interrupted

        throw_exception_if_processing_interrupted()
        if bool(scores.isnan().any()):
            raise RuntimeError(
                f"'{self.name}' gives no usable numbers in {self.dtype}: its weights are damaged, or the device fails in half precision, "
                "which ComfyUI's option --force-fp32 avoids."
            )
        return scores

    def _load(self, pictures: int, search: Search) -> torch.device:
        import comfy.model_management as management

        vision = self.blip.config.vision_config
        text = self.blip.config.text_config
        tokens = self.blip.vision_model.embeddings.num_positions
        # Activations of the widest layer, a layer's attention, and each text layer's keys and values of the picture for every beam.
        floats = tokens * (12 * vision.hidden_size + vision.num_attention_heads * tokens)
        floats += 2 * search.beams * text.num_hidden_layers * text.hidden_size * tokens
        management.load_models_gpu([self.patcher], memory_required=pictures * floats * self.dtype.itemsize, force_full_load=True)
        device = self.patcher.load_device
        # With --novram ComfyUI moves only layers that cast their own weights; this network has none, so it moves as a whole.
        if any(weight.device.type != device.type for weight in self.patcher.model.parameters()):
            self.patcher.model.to(device)
        return device


def captions(
    model: LoadedBlip,
    images: Iterable[Tensor],
    prefix: str = "",
    search: Search | None = None,
    batch: int = 8,
    on_group: Callable[[int], None] | None = None,
) -> list[str]:
    """A caption of one line for each picture [H, W, 1, 3 or 4] in 0..1, of any sizes; alpha is ignored. May be "", if BLIP has no word.

    `prefix` is what every caption begins with. Pictures are taken from `images` in groups of `batch`, so they may be read one by one;
    after each group `on_group` is told how many are done. ValueError in plain words for anything that is no picture.
    """
    search = search or Search()
    found = []
    source = iter(images)
    start = model.start(prefix, search)
    while group := [picture(image, len(found) + number) for number, image in enumerate(islice(source, batch), 1)]:
        found += model.describe(group, start, search)
        if on_group is not None:
            on_group(len(found))
    return found


def picture(image: Tensor, number: int = 1) -> Image.Image:
    """[H, W, 1, 3 or 4] in 0..1 as a Pillow image of three colours; ValueError, naming the picture's `number`, for anything else."""
    if image.ndim != 3 or image.shape[-1] not in (1, 3, 4) or 0 in image.shape:
        raise ValueError(f"picture {number} has the shape {list(image.shape)}; a picture is [height, width, 3].")
    colours = image[..., :3].detach().float().cpu()
    if not bool(colours.isfinite().all()):
        raise ValueError(
            f"picture {number} holds values that are no numbers (NaN): a node before it failed, often a VAE in half precision. Look at "
            "that picture, and wire one that is whole."
        )
    shown = Image.fromarray((colours.clamp(0, 1) * 255).round().byte().expand(-1, -1, 3).contiguous().numpy())
    # Up to three rows or columns are taken for colour channels by some versions of transformers.
    return shown.resize((max(shown.width, _SMALLEST), max(shown.height, _SMALLEST)), Image.Resampling.NEAREST)


def load(folder: Path) -> LoadedBlip:
    """The BLIP of a folder that `find` or `check` has seen; the same object as long as somebody holds it and its files stay the same.

    ValueError in plain words if its files are damaged or hold another network, RuntimeError if `transformers` is missing.
    """
    weights = next(folder / name for name in place.WEIGHTS if (folder / name).is_file())
    # By all files, since a tokenizer may be replaced as well.
    key = (folder, *sorted((one.name, one.stat().st_size, one.stat().st_mtime_ns) for one in folder.iterdir() if one.is_file()))
    found = _alive.get(key)
    if found is None:
        # Not as inference tensors, so that training code may use them as well.
        with torch.inference_mode(False):
            found = _alive[key] = _loaded(folder, weights)
    return found


def _loaded(folder: Path, weights: Path) -> LoadedBlip:
    library = _library()
    try:
        config = library.BlipConfig.from_pretrained(folder, local_files_only=True)
        processor = library.BlipImageProcessor.from_dict(place.picture_settings(folder))
        tokenizer = _tokenizer_class(library).from_pretrained(folder, local_files_only=True)
    except Exception as error:  # tokenizers has a plain Exception
        raise ValueError(f"The settings or the tokenizer in {folder} cannot be read ({error}). Download its small files again.") from error
    if len(tokenizer) > config.text_config.vocab_size:
        raise ValueError(
            f"The tokenizer in {folder} has {len(tokenizer)} words, its BLIP {config.text_config.vocab_size}: they are of different "
            "models. Download all files again from one place."
        )
    state = files.load_weights(str(weights))
    try:
        # Without a path transformers takes these weights, and has nowhere to look for others.
        network, report = getattr(library, place.KIND).from_pretrained(None, config=config, state_dict=state, output_loading_info=True)
    except (RuntimeError, ValueError, TypeError) as error:
        if "memory" in str(error):
            raise
        raise ValueError(
            f"'{weights.name}' in {folder} does not fit its {place.CONFIG}: they are of different models. ({error})"
        ) from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise ValueError(
            f"'{weights.name}' in {folder} lacks {len(missing)} weights of a BLIP captioning model, such as {missing[0]}: it is another "
            f"model, or not complete. {place.ADVICE}"
        )
    text = config.text_config
    # A fresh one: before 5.0 transformers takes sampling, lengths and penalties from the folder.
    network.text_decoder.generation_config = library.GenerationConfig(
        bos_token_id=text.bos_token_id, eos_token_id=text.sep_token_id, pad_token_id=text.pad_token_id
    )
    return LoadedBlip(network, tokenizer, processor, folder.name)


def _library() -> Any:
    try:
        import transformers

        for name in (place.KIND, "BlipConfig", "BlipImageProcessor", "GenerationConfig"):
            getattr(transformers, name)
        _tokenizer_class(transformers)
    except (ImportError, AttributeError, RuntimeError) as error:  # transformers imports its parts late and wraps what fails there
        raise RuntimeError(
            f"Captions need the Python package transformers in 4.50 or newer ({error}). It belongs to ComfyUI: run pip install -r "
            "requirements.txt in ComfyUI's folder with ComfyUI's Python, or pip install transformers."
        ) from error
    return transformers


def _tokenizer_class(library: Any) -> Any:
    """The one that reads both kinds of files; since 5.0 there is no other, and its old name may go."""
    return getattr(library, "BertTokenizerFast", None) or library.BertTokenizer
