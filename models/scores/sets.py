"""FID and IS: how a set of pictures compares with another set, and how distinct and varied it is, as the Inception network sees them."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import files
from . import libraries

FOLDER = "inception"
FEATURES, CLASSES = 2048, 1008
ADVICE = (
    "Download weights-inception-2015-12-05-6726825d.pth (95 MB) from the releases of github.com/toshas/torch-fidelity into "
    "ComfyUI/models/inception and press R in the browser to refresh the list. It is the network that published FID figures are made with."
)
FEW = 2048
"""Of fewer pictures the estimate of FID depends strongly on their number."""


class Seen(NamedTuple):
    """What Inception says of N pictures: features [N, 2048], and class scores without bias [N, 1008], float32."""

    features: Tensor
    logits: Tensor


class Inception:
    """torch-fidelity's Inception v3, the port of TensorFlow's that FID is defined by, with weights from a local file."""

    def __init__(self, network: Any) -> None:
        import comfy.model_management as management
        from comfy.model_patcher import ModelPatcher

        self.patcher = ModelPatcher(network, management.get_torch_device(), management.unet_offload_device())

    @torch.no_grad()
    def see(self, images: Sequence[Tensor], on_picture: Callable[[int], None] | None = None) -> Seen:
        """Look at pictures [H, W, 3] in 0..1 of any sizes, one by one; the network itself brings each to 299 x 299."""
        import comfy.model_management as management

        management.load_models_gpu([self.patcher], force_full_load=True)
        device = self.patcher.load_device
        network: Any = self.patcher.model.to(device)
        features, logits = [], []
        for number, picture in enumerate(images, 1):
            pixels = (picture * 255).round().to(torch.uint8).movedim(-1, 0)[None].to(device)
            one, other = network(pixels)
            features.append(one.reshape(1, -1).float().cpu())
            logits.append(other.reshape(1, -1).float().cpu())
            if on_picture is not None:
                on_picture(number)
        return Seen(torch.cat(features), torch.cat(logits))


def load_inception(path: str) -> Inception:
    """Load the Inception network from a file; nothing in the file can run. ValueError in plain words if it is another file."""
    state = files.load_weights(path)
    if state.get("fc.weight", torch.empty(0)).shape != (CLASSES, FEATURES):
        raise ValueError(f"'{Path(path).name}' is not the Inception network of FID (1008 classes). {ADVICE}")
    # torch-fidelity reads its file with pickle: it is given weights that have been read safely, written anew in memory.
    written = io.BytesIO()
    torch.save(state, written)
    written.seek(0)
    network, _ = libraries.inception()
    try:
        with torch.inference_mode(False):
            built = network("inception-v3-compat", [str(FEATURES), "logits_unbiased"], written).eval().requires_grad_(False)
    except RuntimeError as error:
        if "state_dict" not in str(error):
            raise
        raise ValueError(f"'{Path(path).name}' does not fit the Inception network of FID. {ADVICE}") from error
    return Inception(built)


def frechet_distance(one: Tensor, other: Tensor) -> float:
    """The Frechet distance of two sets of features [N, D] and [M, D], each taken for a Gaussian (Heusel et al. 2017, FID).

    |mean difference|^2 + tr(S1) + tr(S2) - 2 tr sqrt(S1 S2). With X and Y the centred features over sqrt(N - 1) and sqrt(M - 1),
    S1 = X^T X and S2 = Y^T Y, the last trace is the sum of the singular values of X Y^T: exact also for fewer pictures than features,
    where the usual square root of a singular matrix is not. ValueError for fewer than two pictures on a side.
    """
    if min(len(one), len(other)) < 2:
        raise ValueError(f"FID compares sets: of {len(one)} and {len(other)} pictures there is none. Give at least two on each side.")
    first, second = one.double(), other.double()
    means = first.mean(0), second.mean(0)
    x = (first - means[0]) / math.sqrt(len(first) - 1)
    y = (second - means[1]) / math.sqrt(len(second) - 1)
    if min(len(x), len(y)) > x.shape[1]:  # the same singular values from a matrix of D x D
        x, y = torch.linalg.qr(x).R, torch.linalg.qr(y).R
    product = x @ y.T
    shared = float(torch.linalg.svdvals(product).sum())
    distance = float((means[0] - means[1]).square().sum() + x.square().sum() + y.square().sum()) - 2 * shared
    return max(0.0, distance)


def inception_score(logits: Tensor, splits: int = 10, seed: int = 0) -> tuple[float, float]:
    """The Inception Score (Salimans et al. 2016) of class scores [N, C]: mean and deviation over `splits` shuffled parts, by torchmetrics.

    The deviation is nan for a single part. ValueError for fewer pictures than parts.
    """
    if not 1 <= splits <= len(logits):
        raise ValueError(f"IS is asked for in {splits} parts of {len(logits)} pictures: there can be as many parts as pictures at most.")
    _, metric = libraries.inception()
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that features are stored, and that one part has no deviation
        score = metric(feature=torch.nn.Identity(), splits=splits)
        score.update(logits)
        torch.manual_seed(seed)
        mean, deviation = score.compute()
    return float(mean), float(deviation) if splits > 1 else math.nan
