"""Pictures, masks and prompts as they come to a score, checked and brought into lists."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def pictures_of(batches: Iterable[Tensor], what: str) -> list[Tensor]:
    """List the pictures [H, W, 3] of IMAGE batches [B, H, W, 1, 3 or 4] of any sizes, float32 in 0..1 on the CPU; alpha is left out.

    ValueError, naming `what`, if there is none, or if one is no picture or holds NaN.
    """
    found: list[Tensor] = []
    for batch in batches:
        if batch.ndim != 4 or batch.shape[-1] not in (1, 3, 4) or 0 in batch.shape[1:]:
            raise ValueError(f"{what} has the shape {list(batch.shape)}; pictures are [number, height, width, 3].")
        for picture in batch:
            colours = picture[..., :3].detach().float().cpu()
            if not bool(colours.isfinite().all()):
                raise ValueError(
                    f"picture {len(found) + 1} of {what} holds values that are no numbers (NaN): a node before it failed, often a VAE in "
                    "half precision. Look at that picture, and wire one that is whole."
                )
            found.append(colours.clamp(0, 1).expand(-1, -1, 3))
    if not found:
        raise ValueError(f"{what} holds no picture: wire a picture, or a batch of them.")
    return found


def masks_of(batches: Iterable[Tensor], count: int, what: str, pictures: str) -> list[Tensor]:
    """List the masks [H, W] of MASK batches [B, H, W] for `count` pictures: one for each, or one for all. ValueError otherwise."""
    found: list[Tensor] = []
    for batch in batches:
        found += list(batch[None] if batch.ndim == 2 else batch)
    if len(found) not in (1, count):
        raise ValueError(f"{what} holds {len(found)} masks and {pictures} {count} pictures: one mask for all is needed, or one for each.")
    cleaned = [mask.detach().float().cpu().nan_to_num(0.0).clamp(0, 1) for mask in found]
    return cleaned * count if len(cleaned) == 1 else cleaned


def one_text(texts: Sequence[str]) -> str:
    """Give the one text of prompts that came as a list: each of several is one line, whatever lines it has itself."""
    return texts[0].strip() if len(texts) == 1 else "\n".join(" ".join(text.split()) for text in texts)


def prompts_of(text: str, count: int) -> list[str]:
    """List the prompts for `count` pictures: the lines of `text`, one for each, or one for all. ValueError otherwise."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) not in (1, count):
        raise ValueError(
            f"prompt holds {len(lines)} lines and images {count} pictures: write one line for all, or a line for each, in their order."
        )
    return lines * count if len(lines) == 1 else lines


def same_sizes(pictures: Sequence[Tensor], references: Sequence[Tensor], names: tuple[str, str] = ("images", "references")) -> None:
    """ValueError unless each picture has a reference of its own size."""
    if len(pictures) != len(references):
        raise ValueError(
            f"{names[0]} holds {len(pictures)} pictures and {names[1]} {len(references)}: LPIPS, SSIM and PSNR compare each picture with "
            "the reference of the same number, so as many are needed. For sets of different numbers, measure FID alone."
        )
    for number, (picture, reference) in enumerate(zip(pictures, references, strict=True), 1):
        if picture.shape != reference.shape:
            sizes = " and ".join(f"{one.shape[1]} x {one.shape[0]}" for one in (picture, reference))
            raise ValueError(
                f"picture {number} and its reference differ in size ({sizes} pixels): LPIPS, SSIM and PSNR compare pixel by pixel. Bring "
                "both to one size with Upscale Image, or measure FID alone."
            )


def batch_of(pictures: Sequence[Tensor]) -> Tensor:
    """Stack pictures [H, W, 3] of one size as [B, 3, H, W]."""
    return torch.stack(list(pictures)).movedim(-1, 1).contiguous()
