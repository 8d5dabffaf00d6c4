"""The packages that scores need, imported when they are used, each with the words that say what to install.

`torchmetrics` has all of the pair and set scores in one tested and maintained package, with the LPIPS heads inside it; `torch-fidelity` has
the Inception network in the form that published FID figures were made with; `transformers` comes with ComfyUI, and CLIP and DINO are asked
there directly, as torchmetrics' CLIP score takes a few named models only and fails with transformers 5.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any


def torchmetrics() -> ModuleType:
    """`torchmetrics.functional.image`; RuntimeError that says what to install if it is missing."""
    try:
        import torchmetrics.functional.image as library
    except (ImportError, RuntimeError) as error:
        raise _missing("SSIM and PSNR need the Python package torchmetrics", "torchmetrics", error) from error
    return library


def lpips() -> Any:
    """torchmetrics' LPIPS network, a class; RuntimeError that says what to install if it is missing."""
    try:
        import torchvision  # noqa: F401  (torchmetrics finds its absence out only when the network is built)
        from torchmetrics.functional.image.lpips import _NoTrainLpips
    except (ImportError, RuntimeError) as error:
        raise _missing("LPIPS needs the Python packages torchmetrics and torchvision", "torchmetrics torchvision", error) from error
    return _NoTrainLpips


def inception() -> tuple[Any, Any]:
    """torch-fidelity's Inception network and torchmetrics' Inception Score; RuntimeError that says what to install if one is missing."""
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        from torchmetrics.image.inception import InceptionScore
    except (ImportError, RuntimeError) as error:
        raise _missing(
            "FID and IS need the Python packages torchmetrics and torch-fidelity", "torchmetrics torch-fidelity", error
        ) from error
    return FeatureExtractorInceptionV3, InceptionScore


def transformers(*names: str) -> Any:
    """`transformers`, if it has these classes; RuntimeError that says what to install otherwise."""
    try:
        import transformers as library

        for name in names:
            getattr(library, name)
    except (ImportError, AttributeError, RuntimeError) as error:  # transformers imports its parts late and wraps what fails there
        raise _missing(
            f"this model needs a newer Python package transformers, with {', '.join(names)}", "-U transformers", error
        ) from error
    return library


def _missing(needs: str, packages: str, error: Exception) -> RuntimeError:
    return RuntimeError(f"{needs} ({error}). Run this with ComfyUI's own Python: pip install {packages}")
