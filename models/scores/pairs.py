"""PSNR, SSIM and LPIPS: how far each picture is from the reference of its number, everywhere or where a mask is white."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...images.foreground import shown
from .. import files
from . import libraries, pictures

FOLDER = "lpips"
NETWORKS: dict[str, tuple[int, ...]] = {"alex": (64, 3, 11, 11), "vgg": (64, 3, 3, 3)}
"""The networks of LPIPS, told by the shape of the first layer of their files from torchvision."""
ADVICE = (
    "Download alexnet-owt-7be5be79.pth (or vgg16-397923af.pth) from download.pytorch.org/models into ComfyUI/models/lpips and press R in "
    "the browser to refresh the list. Published LPIPS figures are mostly those of AlexNet."
)
SMALLEST = {"alex": 31, "vgg": 16, "ssim": 6}
"""Pixels that a picture's shorter side needs at least."""


def psnr(picture: Tensor, reference: Tensor, mask: Tensor | None = None) -> float:
    """The peak signal-to-noise ratio in dB of a picture [H, W, 3] in 0..1; inf if both are the same. With a mask [H, W]: of its pixels."""
    library = libraries.torchmetrics()
    if mask is not None:
        inside = shown(mask, picture.shape[0], picture.shape[1])
        picture, reference = picture[inside], reference[inside]
    if torch.equal(picture, reference):
        return math.inf
    return float(library.peak_signal_noise_ratio(picture.double(), reference.double(), data_range=1.0))


def ssim(picture: Tensor, reference: Tensor, mask: Tensor | None = None) -> float:
    """The structural similarity (Wang et al. 2004; a Gaussian window of sigma 1.5) of a picture [H, W, 3] in 0..1; 1 if both are the same.

    With a mask [H, W], the map of similarities is averaged over its pixels; their windows reach 5 pixels beyond it.
    """
    library = libraries.torchmetrics()
    _large_enough(picture, "SSIM", SMALLEST["ssim"])
    one, other = (pictures.batch_of([each]).double() for each in (picture, reference))
    found, every = library.structural_similarity_index_measure(one, other, data_range=1.0, return_full_image=True)
    if mask is None:
        return float(found)
    return float(every[0].mean(0)[shown(mask, picture.shape[0], picture.shape[1])].mean())


class Lpips:
    """The perceptual distance of Zhang et al. 2018, by torchmetrics' network with weights from a local file."""

    def __init__(self, network: Any, kind: str) -> None:
        import comfy.model_management as management
        from comfy.model_patcher import ModelPatcher

        self.kind = kind
        self.patcher = ModelPatcher(network, management.get_torch_device(), management.unet_offload_device())

    @torch.no_grad()
    def distance(self, picture: Tensor, reference: Tensor, mask: Tensor | None = None) -> float:
        """The distance of a picture [H, W, 3] in 0..1 to its reference; 0 if both are the same. With a mask: the map's mean over it."""
        import comfy.model_management as management

        _large_enough(picture, f"LPIPS ({self.kind})", SMALLEST[self.kind])
        management.load_models_gpu([self.patcher], force_full_load=True)
        device = self.patcher.load_device
        network: Any = self.patcher.model.to(device)
        one, other = (pictures.batch_of([each]).to(device) for each in (picture, reference))
        network.spatial = mask is not None
        found = network(one, other, normalize=True)[0, 0]
        if mask is None:
            return float(found)
        return float(found[shown(mask, picture.shape[0], picture.shape[1]).to(device)].mean())


def load_lpips(path: str) -> Lpips:
    """Load LPIPS with torchvision's AlexNet or VGG-16 of a file. ValueError in plain words if it is another file."""
    state = files.load_weights(path)
    first = state.get("features.0.weight")
    kind = next((name for name, shape in NETWORKS.items() if first is not None and tuple(first.shape) == shape), None)
    if kind is None:
        raise ValueError(f"'{Path(path).name}' holds neither torchvision's AlexNet nor its VGG-16. {ADVICE}")
    # Not as inference tensors, whichever node loads it.
    with torch.inference_mode(False):
        network = libraries.lpips()(net=kind, pnet_rand=True).eval().requires_grad_(False)
        own = {name: weight for name, weight in network.state_dict().items() if name.startswith("net.slice")}
        found = {name: state.get("features." + name.split(".", 2)[2]) for name in own}
        wrong = [name for name, weight in found.items() if weight is None or weight.shape != own[name].shape]
        if wrong:
            raise ValueError(f"'{Path(path).name}' lacks weights of the network that LPIPS needs, such as {wrong[0]}. {ADVICE}")
        network.load_state_dict({name: weight.float() for name, weight in found.items() if weight is not None}, strict=False)
    return Lpips(network, kind)


def score_pairs(
    images: Sequence[Tensor],
    references: Sequence[Tensor],
    masks: Sequence[Tensor] | None = None,
    network: Lpips | None = None,
    on_pair: Callable[[int], None] | None = None,
) -> dict[str, list[float]]:
    """Score each picture against the reference of its number: "psnr", "ssim" and, with a network, "lpips", a value for each pair.

    `masks` [h, w] tell where; a pixel counts from 0.5 on. ValueError for differing numbers or sizes, or a mask that shows nothing.
    """
    pictures.same_sizes(images, references)
    found: dict[str, list[float]] = {"psnr": [], "ssim": []}
    if network is not None:
        found["lpips"] = []
    for number, (picture, reference) in enumerate(zip(images, references, strict=True)):
        mask = None if masks is None else masks[number]
        try:
            found["psnr"].append(psnr(picture, reference, mask))
            found["ssim"].append(ssim(picture, reference, mask))
            if network is not None:
                found["lpips"].append(network.distance(picture, reference, mask))
        except ValueError as error:
            raise ValueError(f"picture {number + 1}: {error}") from None
        if on_pair is not None:
            on_pair(number + 1)
    return found


def _large_enough(picture: Tensor, score: str, smallest: int) -> None:
    if min(picture.shape[:2]) < smallest:
        raise ValueError(f"{picture.shape[1]} x {picture.shape[0]} pixels are too few for {score}, which needs {smallest} each way.")
