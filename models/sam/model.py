"""A loaded Segment Anything model: answers prompts about pictures and keeps the embeddings of the last ones.

Encoder and decoder are separate models to ComfyUI's memory management, so a second prompt on a picture loads the small decoder alone.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import weakref
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from ...images.masks import Box
from .. import files
from ..weights import check_numbers
from . import network as sam_network

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

log = logging.getLogger(__name__)

CACHED_PICTURES = 8
_MEAN = (123.675, 116.28, 103.53)
_STD = (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class Prompt:
    """One question to SAM about one picture, in that picture's pixels; at least one part is set.

    points: (x, y, is it on the object) each; box: around the object; logits: [S/4, S/4] of an earlier answer, to improve on it.
    """

    points: tuple[tuple[float, float, bool], ...] = ()
    box: Box | None = None
    logits: torch.Tensor | None = None


@dataclass(frozen=True)
class Answer:
    """SAM's three masks for one prompt: logits float32 [3, S/4, S/4] of the padded square, scores [3] (SAM's guess of the IoU)."""

    logits: torch.Tensor
    scores: torch.Tensor


class LoadedSam:
    """A SAM whose weights ComfyUI's memory management loads and offloads, with the embeddings of the last pictures on the CPU."""

    def __init__(self, network: sam_network.SamNetwork) -> None:
        import comfy.model_management as management
        from comfy.model_patcher import ModelPatcher

        device = management.get_torch_device()
        offload = management.unet_offload_device()
        encoder = network.encoder.eval().requires_grad_(False)
        decoder = network.decoder.eval().requires_grad_(False)
        self.name = network.name
        self.image_size = network.image_size
        self.dtype = _computing_dtype(next(encoder.parameters()).dtype, device)
        self.encoder = ModelPatcher(encoder.to(offload, self.dtype), device, offload)
        # The decoder stays in float32 whatever the file has: it is small, and SAM's prompt encoder computes in float32 anyway.
        self.decoder = ModelPatcher(decoder.to(offload, torch.float32), device, offload)
        self._working_bytes = network.working_floats * self.dtype.itemsize
        self._embeddings: OrderedDict[bytes, torch.Tensor] = OrderedDict()
        self._first: tuple[torch.Tensor, tuple[int, int], Prompt, Answer] | None = None
        self._lock = threading.Lock()

    def embed(self, image: torch.Tensor) -> torch.Tensor:
        """The embedding [1, 256, g, g], float32 on the CPU, of a picture [H, W, C] in 0..1; remembered for the last 8 pictures."""
        key = _fingerprint(image)
        with self._lock:
            if key in self._embeddings:
                self._embeddings.move_to_end(key)
                return self._embeddings[key]
        device = _load(self.encoder, self._working_bytes)
        with torch.no_grad():
            embedding = self.encoder.model(prepare(image, self.image_size).to(device, self.dtype)).float().cpu()
        if not embedding.isfinite().all():
            raise RuntimeError(f"This {self.name} file gives no usable numbers in {self.dtype}. Use a file with float32 weights.")
        with self._lock:
            self._embeddings[key] = embedding
            while len(self._embeddings) > CACHED_PICTURES:
                self._embeddings.popitem(last=False)
        return embedding

    def ask(self, image: torch.Tensor, prompt: Prompt) -> Answer:
        """The three masks that SAM offers for `prompt` on the picture [H, W, C], on the CPU."""
        return self.answer(self.embed(image), image.shape[0], image.shape[1], prompt)

    def answer(self, embedding: torch.Tensor, height: int, width: int, prompt: Prompt) -> Answer:
        """The same for a picture of height x width pixels that `embed` has seen: several prompts need to look at it once only.

        The last answer to a single point is remembered, since every further point asks for it again to mend it.
        """
        single = len(prompt.points) == 1 and prompt.box is None and prompt.logits is None
        with self._lock:
            known = self._first if single else None
        if known is not None and known[0] is embedding and known[1:3] == ((height, width), prompt):
            return known[3]
        device = _load(self.decoder, 64 * 1024**2)
        with torch.no_grad():
            logits, scores = self.decoder.model(embedding.to(device), *self._encode(prompt, height, width, device))
        answer = Answer(logits.cpu(), scores.cpu())
        if single:
            with self._lock:
                self._first = embedding, (height, width), prompt, answer
        return answer

    def full_size(self, logits: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Logits [N, S/4, S/4] of the padded square -> [N, height, width] of the picture, enlarged as SAM's own code does."""
        square = F.interpolate(logits[None], (self.image_size, self.image_size), mode="bilinear", align_corners=False)
        inner_height, inner_width = fit(height, width, self.image_size)
        inner = square[..., :inner_height, :inner_width]
        return F.interpolate(inner, (height, width), mode="bilinear", align_corners=False)[0]

    def _encode(
        self, prompt: Prompt, height: int, width: int, device: torch.device
    ) -> tuple[tuple[torch.Tensor, torch.Tensor] | None, torch.Tensor | None, torch.Tensor | None]:
        inner_height, inner_width = fit(height, width, self.image_size)
        scale = torch.tensor([inner_width / width, inner_height / height])
        points = box = logits = None
        if prompt.points:
            coordinates = torch.tensor([[x, y] for x, y, _ in prompt.points]) * scale
            labels = torch.tensor([float(positive) for *_, positive in prompt.points])
            points = coordinates[None].to(device), labels[None].to(device)
        if prompt.box is not None:
            left, top = prompt.box["x"], prompt.box["y"]
            corners = torch.tensor([[left, top], [left + prompt.box["width"], top + prompt.box["height"]]]) * scale
            box = corners.reshape(1, 4).to(device)
        if prompt.logits is not None:
            logits = prompt.logits[None, None].to(device)
        return points, box, logits


def load(path: str) -> LoadedSam:
    """SAM ViT-B, L, H or MobileSAM from a .pth, .pt or .safetensors file; which one, is read from the names and shapes of its weights.

    ValueError in plain words for a file that cannot be read or holds another network, RuntimeError if a package is missing.
    """
    # ComfyUI runs nodes in inference mode, in which weights would be made that cannot be moved outside of it, as a click may have to.
    with torch.inference_mode(False):
        return _load_file(path)


def _load_file(path: str) -> LoadedSam:
    weights = files.strip_prefix(files.load_weights(path), "image_encoder.")
    try:
        network = sam_network.build(weights)
    except ValueError as error:
        raise ValueError(f"'{os.path.basename(path)}' is not a SAM model that can be loaded here. {error}") from error
    for part in (network.encoder, network.decoder):
        learned = {name: value for name, value in part.state_dict().items() if value.is_floating_point()}
        check_numbers(learned, f"'{os.path.basename(path)}'")
    log.info("SAM: %s holds a %s", os.path.basename(path), network.name)
    return LoadedSam(network)


_shared: weakref.WeakValueDictionary[tuple[str, int, int], LoadedSam] = weakref.WeakValueDictionary()
"""The models that somebody holds, by their file's path, size and time of change."""
_reading = threading.Lock()
"""A click and a Run that want the same file at once read it once."""


def shared(path: str) -> LoadedSam:
    """Load as `load` does, or hand out the same model while anybody holds it: pointing and running then share weights and embeddings."""
    try:
        found = os.stat(path)
    except OSError:
        return load(path)
    key = (os.path.abspath(path), found.st_size, found.st_mtime_ns)
    with _reading:
        model = _shared.get(key)
        if model is None:
            model = load(path)
            _shared[key] = model
        return model


def fit(height: int, width: int, longest: int) -> tuple[int, int]:
    """The size, as (height, width), of a picture whose longer side is brought to `longest`, rounded as SAM does."""
    scale = longest / max(height, width)
    return max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1)


def prepare(image: torch.Tensor, size: int) -> torch.Tensor:
    """A picture [H, W, 1, 3 or 4] in 0..1 -> [1, 3, size, size]: longer side to `size`, normalised, padded at the right and bottom.

    Resized in 8 bit by Pillow, because that is what SAM was trained on.
    """
    pixels = (image[..., :3].detach().cpu().float().nan_to_num().clamp(0, 1) * 255).round().byte()
    height, width = fit(image.shape[0], image.shape[1], size)
    resized = Image.fromarray(pixels.expand(-1, -1, 3).numpy()).resize((width, height), Image.Resampling.BILINEAR)
    tensor = torch.from_numpy(np.array(resized)).permute(2, 0, 1).float()
    tensor = (tensor - torch.tensor(_MEAN).view(3, 1, 1)) / torch.tensor(_STD).view(3, 1, 1)
    return F.pad(tensor, (0, size - width, 0, size - height))[None]


def _fingerprint(image: torch.Tensor) -> bytes:
    pixels = image.detach().cpu().contiguous()
    digest = hashlib.blake2b(f"{tuple(pixels.shape)} {pixels.dtype}".encode(), digest_size=16)
    digest.update(pixels.flatten().view(torch.uint8).numpy().data)
    return digest.digest()


def _computing_dtype(stored: torch.dtype, device: torch.device) -> torch.dtype:
    """Half-precision files stay so where the device computes in it; everything else, and every CPU, works in float32."""
    import comfy.model_management as management

    if stored == torch.float16 and management.should_use_fp16(device):
        return torch.float16
    if stored == torch.bfloat16 and management.should_use_bf16(device):
        return torch.bfloat16
    return torch.float32


def _load(patcher: ModelPatcher, memory: int) -> torch.device:
    import comfy.model_management as management

    management.load_models_gpu([patcher], memory_required=memory, force_full_load=True)
    device = patcher.load_device
    # With --novram ComfyUI moves only layers that cast their own weights; these networks have none, so they move as a whole.
    if any(weight.device.type != device.type for weight in patcher.model.parameters()):
        patcher.model.to(device)
    return device
