"""The bundled workflows of MECA, 14 and 15, through a real server: the product stays, and each reference acts where it should."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from demo import photos, run, stand_ins
from demo.server import Prompt, Server

from ..support.graphs import node
from ..support.live_workflows import pictures, titled, with_inputs

STEPS = 8
GREEN = 0x20F020


def bundled(server: Server, name: str) -> Prompt:
    """A bundled workflow with the tiny model, in a few steps, and its pictures on the server."""
    prompt = stand_ins.changed(run.workflow(name))
    run.add_photographs(server, [*run.photographs(prompt), "gravel.png"])
    prompt[titled(prompt, "KSampler")]["inputs"]["steps"] = STEPS
    return prompt


@pytest.fixture(scope="module")
def background(server: Server) -> Prompt:
    """The product in a reference's mood, with its mask, in the photograph's size, and the picture before it is pasted back, saved too."""
    prompt = bundled(server, "14 Keep a product in the mood of a picture")
    prompt["mask"] = node("MaskToImage", mask=[titled(prompt, "The product"), 0])
    prompt["mask saved"] = node("SaveImage", images=["mask", 0], filename_prefix="mask")
    prompt["painted"] = node("SaveImage", images=[titled(prompt, "VAE Decode"), 0], filename_prefix="painted")
    return prompt


@pytest.fixture(scope="module")
def regions(server: Server) -> Prompt:
    return bundled(server, "15 Two pictures and a text, each in its region")


def change(one: np.ndarray, other: np.ndarray, where: np.ndarray) -> float:
    """How much two pictures differ in a part of them, in levels of 255."""
    return float(np.abs(one.astype(int) - other)[where].mean())


def covered(prompt: Prompt, x: int, y: int) -> Prompt:
    """A green square of 40 pixels at this place of the reference; what SAM looks at stays as it was."""
    reference = titled(prompt, "Reference, cut to that shape")
    copy = with_inputs(prompt, "Hide in Reference", image=["covered", 0])
    copy["green"] = node("EmptyImage", width=40, height=40, batch_size=1, color=GREEN)
    copy["covered"] = node("ImageCompositeMasked", destination=[reference, 0], source=["green", 0], x=x, y=y, resize_source=False)
    return copy


def test_the_product_is_kept_to_the_bit_and_all_else_is_new(server: Server, background: Prompt) -> None:
    shown = pictures(server, background)
    photograph = photos.load("coffee")
    product = shown["mask saved"][..., 0] == 255
    assert 0.4 < product.mean() < 0.55
    assert np.array_equal(shown["Result"][product], photograph[product])
    assert change(shown["Result"], photograph, ~product) > 20


def test_the_hidden_subject_leaves_no_trace(server: Server, background: Prompt) -> None:
    """The rocket's middle is green now, and nothing changes, to the bit; a green square beside the rocket does change the picture."""
    before = pictures(server, background)["painted"]
    assert np.array_equal(pictures(server, covered(background, 279, 200))["painted"], before)
    assert change(pictures(server, covered(background, 20, 20))["painted"], before, np.ones(before.shape[:2], bool)) > 0.5


def test_another_reference_changes_all_but_the_product(server: Server, background: Prompt) -> None:
    before = pictures(server, background)
    painted = pictures(server, with_inputs(background, "Reference for the mood", image="coffee.png"))["painted"]
    size = (painted.shape[1], painted.shape[0])
    product = np.asarray(Image.fromarray(before["mask saved"]).resize(size, Image.Resampling.BOX))[..., 0]
    outside, inside = (change(painted, before["painted"], where) for where in (product == 0, product == 255))
    assert outside > 10
    assert outside > 4 * inside


def test_the_hint_has_the_product_before_a_floor(server: Server, background: Prompt) -> None:
    shown = pictures(server, background)
    hint = shown["The hint"][..., 0]
    product = shown["mask saved"][..., 0] == 255
    columns = ~product.any(0)
    assert columns.sum() > 50
    floor = hint[:, columns].mean(1)
    assert np.median(hint[product]) == 255
    assert floor[: len(floor) // 3].max() < 10
    assert floor[-1] > 245
    assert (np.diff(floor) >= -1).all()


def test_the_hint_reaches_the_model(server: Server, background: Prompt) -> None:
    """Apply ControlNet does nothing at strength 0, where the hint does not matter, to the bit."""
    before, without = (
        pictures(server, prompt)["painted"] for prompt in (background, with_inputs(background, "Apply ControlNet", strength=0.0))
    )
    everywhere = np.ones(before.shape[:2], bool)
    assert change(before, without, everywhere) > 0.1
    turned = with_inputs(with_inputs(background, "Apply ControlNet", strength=0.0), "Depth Hint", near="black")
    assert np.array_equal(pictures(server, turned)["painted"], without)


def swapped(prompt: Prompt, which: str) -> Prompt:
    """Gravel for the "first" or the "second" reference, all of it seen."""
    return with_inputs(with_inputs(prompt, f"{which.title()} reference", image="gravel.png"), f"Hide in Reference, {which}", threshold=1.0)


def parts(picture: np.ndarray) -> dict[str, np.ndarray]:
    """The regions of the two references' workflow in a painted picture: both references', and what the text has."""
    height, width = picture.shape[:2]
    y, x = np.mgrid[:height, :width] / [[[height]], [[width]]]
    text = (abs(x + 0.5 / width - 0.5) < 0.1875) & (abs(y + 0.5 / height - 0.5) < 0.1875)
    return {"first": (y < 0.5) & ~text, "second": (y >= 0.5) & ~text, "text": text}


def changes(server: Server, prompt: Prompt, other: Prompt) -> dict[str, float]:
    """How much the result of one workflow differs from another's, by region."""
    one = pictures(server, prompt)["Result"]
    two = pictures(server, other)["Result"]
    return {name: change(one, two, where) for name, where in parts(one).items()}


def test_a_reference_acts_in_its_own_region(server: Server, regions: Prompt) -> None:
    first, second = (changes(server, regions, swapped(regions, which)) for which in ("first", "second"))
    assert first["first"] > 10
    assert second["second"] > 10
    assert first["first"] > 2 * first["second"]
    assert second["second"] > 2 * second["first"]


def test_the_text_acts_where_no_region_is(server: Server, regions: Prompt) -> None:
    found = changes(server, regions, with_inputs(regions, "What the text paints", text="a green star"))
    assert found["text"] > 10
    assert found["text"] > 2 * max(found["first"], found["second"])


def test_an_adapter_without_weight_leaves_all_to_the_text(server: Server, regions: Prompt) -> None:
    """The references then do not matter, to the bit."""
    alone = regions
    for title in ("The first above", "The second below"):
        alone = with_inputs(alone, title, weight=0.0)
    assert set(changes(server, alone, swapped(swapped(alone, "first"), "second")).values()) == {0.0}
    assert min(changes(server, alone, regions).values()) > 1
