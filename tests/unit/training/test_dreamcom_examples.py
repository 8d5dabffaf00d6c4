"""The crops that DreamCom learns from."""

from __future__ import annotations

import pytest
import torch
from maskprompt.training.data import references
from maskprompt.training.dreamcom import examples as dreamcom
from maskprompt.training.dreamcom.options import Options

from demo.painter import Painter

from ...support.dreamcom import SIZE, box_masks, quick_previews, reference_pictures, tiny

__all__ = ["quick_previews", "tiny"]  # fixtures


def test_crops_are_encoded_as_inpainting_shows_them(tiny: Painter) -> None:
    """Latents of the crop, and of the crop with its box in mid grey: what InpaintModelConditioning makes of the same picture."""
    import nodes

    pictures = references.pair([reference_pictures(3)], [box_masks(3)])
    told: list[tuple[int, int]] = []
    options = Options(steps=10, size=SIZE, seed=5)
    found = dreamcom.encode(pictures, tiny.vae, options, on_crop=lambda done, count: told.append((done, count)))
    assert told == [(8, 10), (10, 10)]
    assert (found.latents.shape, found.masked.shape) == ((10, 4, 8, 8), (10, 4, 8, 8))
    assert (found.boxes.shape, found.valid.shape, found.boxes.dtype) == ((10, 64, 64), (10, 1, 8, 8), torch.bool)
    import numpy as np
    from maskprompt.training.dreamcom.augment import Augmentation

    crop = Augmentation()(pictures[0], SIZE, np.random.default_rng(5))
    inpaint = nodes.InpaintModelConditioning()
    positive, _, latent = inpaint.encode([[torch.zeros(1), {}]], [], crop.image[None], tiny.vae, crop.box[None])
    torch.testing.assert_close(found.masked[:1], positive[0][1]["concat_latent_image"], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.latents[:1], latent["samples"], atol=1e-5, rtol=1e-4)
    assert torch.equal(found.values(slice(0, 1))["concat_mask"], positive[0][1]["concat_mask"].reshape(1, 1, 64, 64))
    again = dreamcom.encode(pictures, tiny.vae, options)
    assert all(torch.equal(getattr(found, name), getattr(again, name)) for name in ("latents", "masked", "boxes", "valid"))


def test_a_vae_that_overflows_is_named(tiny: Painter, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = references.pair([reference_pictures(1)], [box_masks(1)])
    monkeypatch.setattr(tiny.vae, "encode", lambda images: torch.full((len(images), 4, 8, 8), torch.nan))
    with pytest.raises(ValueError, match=r"the VAE gives values that are no numbers \(NaN\)"):
        dreamcom.encode(pictures, tiny.vae, Options(steps=1, size=SIZE))


def test_every_reference_is_encoded_and_never_too_often(tiny: Painter, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = references.pair([reference_pictures(3)], [box_masks(3)])
    assert len(dreamcom.encode(pictures, tiny.vae, Options(steps=1, size=SIZE)).latents) == 3
    monkeypatch.setattr(dreamcom, "CROPS_EACH", 2)
    assert len(dreamcom.encode(pictures, tiny.vae, Options(steps=100, batch=2, size=SIZE)).latents) == 6
