"""CLIP-T, CLIP-I and DINO: how like pictures are to their prompts and to references, as cosines of an encoder's vectors.

CLIP-T (Hessel et al. 2021, without its factor), CLIP-I and DINO as in DreamBooth (Ruiz et al. 2023, section 4): the mean over all pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from .encoders import Encoder

ALL, SAME = "all references", "same number"
PAIRINGS = (ALL, SAME)
"""With which references a picture is compared: each with every one, as the papers do, or with the one of its number."""


def to_prompts(
    encoder: Encoder, images: Sequence[Tensor], prompts: Sequence[str], on_group: Callable[[int], None] | None = None
) -> list[float]:
    """CLIP-T: the cosine of each picture [H, W, 3] with its own prompt, in -1..1."""
    words = encoder.texts(prompts)
    pictures = encoder.pictures(images, on_group)
    return [float(one) for one in (pictures * words).sum(-1)]


def to_references(
    encoder: Encoder,
    images: Sequence[Tensor],
    references: Sequence[Tensor],
    pairing: str = ALL,
    on_group: Callable[[int], None] | None = None,
) -> list[float]:
    """CLIP-I or DINO: each picture's mean cosine with the references, or its cosine with the one of its number, in -1..1.

    ValueError for another pairing, or for `same number` with differing numbers.
    """
    if pairing not in PAIRINGS:
        raise ValueError(f"pairing is '{pairing}', and one of {', '.join(PAIRINGS)} is needed.")
    if pairing == SAME and len(images) != len(references):
        raise ValueError(
            f"pairing is '{SAME}', but images holds {len(images)} and references {len(references)}: give as many, or choose '{ALL}'."
        )

    def later(done: int) -> None:
        if on_group is not None:
            on_group(len(images) + done)

    one = encoder.pictures(images, on_group)
    other = encoder.pictures(references, later)
    if pairing == SAME:
        return [float(value) for value in (one * other).sum(-1)]
    return [float(value) for value in (one @ other.T).mean(1)]
