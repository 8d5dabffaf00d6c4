"""The encoded samples of MCGM's training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from maskprompt.models.mcgm import mask_encoder
from maskprompt.training.mcgm import examples as mcgm_samples
from maskprompt.training.mcgm.examples import Shown, draw, encode, whole
from torch import Tensor

from ...support.meca_samples import Vae
from ...support.scenes import THREE, scene_of


class Watched:
    """Keeps what `draw` gave."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shown: list[Shown] = []
        monkeypatch.setattr(mcgm_samples, "draw", self)

    def __call__(self, *given_: Any) -> Shown:
        self.shown.append(draw(*given_))
        return self.shown[-1]


@pytest.mark.parametrize(("background", "move"), [("plain", True), ("plain", False), ("original", True)])
def test_encoded_pictures_are_what_was_drawn(background: Any, move: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many of each number of subjects; latents, masks on the latents' pixels, and the cells that the mask encoder reads."""
    watched = Watched(monkeypatch)
    vae = Vae()
    told = []
    found = encode(scene_of(THREE), vae, background, move, 28, 3, on_crop=lambda done, count: told.append((done, count)))
    assert told == [(8, 27), (9, 27), (17, 27), (18, 27), (26, 27), (27, 27)]
    assert vae.largest == mcgm_samples.AT_ONCE
    assert len(found) == 3
    drawn_ = iter(watched.shown)
    for number, examples in enumerate(found, 1):
        assert examples.latents.shape == (9, 4, 12, 16)
        assert examples.cells.shape == (9, number, 64, 64)
        assert examples.masks.shape == (9, number, 12, 16)
        assert examples.subjects.shape == (9, number)
        for row in range(9):
            shown = next(drawn_)
            assert tuple(examples.subjects[row].tolist()) == shown.subjects
            torch.testing.assert_close(examples.latents[row : row + 1], Vae().encode(shown.image[None]))
            assert torch.equal(examples.cells[row], mask_encoder.cells(shown.masks))
            torch.testing.assert_close(examples.masks[row], shown.masks.unfold(1, 8, 8).unfold(2, 8, 8).mean((-1, -2)))
    assert not list(drawn_)


@pytest.mark.parametrize(("count", "subjects", "each"), [(1, 2, 1), (5, 2, 2), (40, 2, 20), (40, 1, 40)])
def test_as_many_as_are_asked_for_and_at_least_one_of_each(count: int, subjects: int, each: int) -> None:
    found = encode(scene_of(((8, 10, 30, 20), (50, 40, 10, 20))[:subjects], 64, 64), Vae(), "original", False, count, 0)
    assert [len(examples.latents) for examples in found] == [each] * subjects


def test_the_seed_decides_what_is_encoded() -> None:
    first, again, other = (encode(scene_of(), Vae(), "plain", True, 8, seed) for seed in (2, 2, 3))
    for name in ("latents", "cells", "masks", "subjects"):
        assert all(torch.equal(getattr(one, name), getattr(two, name)) for one, two in zip(first, again, strict=True))
    assert not torch.equal(first[1].latents, other[1].latents)


def test_the_whole_picture_is_encoded_with_all_of_its_subjects() -> None:
    scene = scene_of(THREE)
    found = whole(scene, Vae())
    torch.testing.assert_close(found.latents, Vae().encode(scene.image[None]))
    assert found.subjects.tolist() == [[0, 1, 2]]
    assert torch.equal(found.cells, mask_encoder.cells(scene.masks)[None])
    torch.testing.assert_close(found.masks, F.avg_pool2d(scene.masks, 8)[None])


def test_what_is_encoded_in_inference_mode_can_take_part_in_a_gradient() -> None:
    """As in a node, where the picture too was made in that mode."""
    with torch.inference_mode():
        scene = scene_of()
        found = [*encode(scene, Vae(), "original", True, 4, 0), *encode(scene, Vae(), "plain", False, 4, 0), whole(scene, Vae())]
    for examples in found:
        assert not any(getattr(examples, name).is_inference() for name in ("latents", "cells", "masks", "subjects"))
        assert not examples.latents.requires_grad


def test_a_vae_that_overflows_is_named() -> None:
    class Overflowing(Vae):
        def encode(self, images: Tensor) -> Tensor:
            latents = super().encode(images)
            latents[-1, 0, 0, 0] = torch.nan
            return latents

    for call in (lambda: encode(scene_of(), Overflowing(), "plain", True, 4, 0), lambda: whole(scene_of(), Overflowing())):
        with pytest.raises(ValueError, match=r"the VAE gives values that are no numbers \(NaN\).*--fp32-vae"):
            call()


def test_it_can_be_interrupted_between_pictures() -> None:
    """What `on_crop` raises goes on, and the VAE is not asked again."""
    vae = Vae()
    told = []

    def stop(done: int, count: int) -> None:
        told.append((done, count))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode(scene_of(), vae, "plain", True, 40, 0, on_crop=stop)
    assert told == [(8, 40)]
