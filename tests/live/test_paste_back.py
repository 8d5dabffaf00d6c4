"""Crop Around Box and Paste Back in running ComfyUI: what is outside stays, what a model moved comes back, and the node says so."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from demo import photos, run
from demo.server import Prompt, Server

from ..support.graphs import node, solid

BOX = {"x": 250, "y": 150, "width": 100, "height": 80}
"""What is to be painted of the coffee cup, 600 x 400 pixels; with half of its size around it, it is cut out at (200, 90), 200 x 200."""


@pytest.fixture(scope="module", autouse=True)
def photograph(server: Server) -> None:
    run.add_photographs(server, ["coffee.png"])


def graph(painted: dict[str, Any], crop: dict[str, Any] | None = None, **back: Any) -> Prompt:
    """The cup cut out, `painted` in place of a model, and pasted back."""
    asked: dict[str, Any] = {"context": 0.5, "resolution": 0, **(crop or {})}
    return {
        "photo": node("LoadImage", image="coffee.png"),
        "mask": node("MaskPromptBoxMask", image=["photo", 0], **BOX),
        "empty": solid(0.0),
        "crop": node("MaskPromptCropAroundBox", **{"image": ["photo", 0], "mask": ["mask", 0], **asked}),
        "painted": painted,
        "back": node("MaskPromptPasteBack", image=["photo", 0], painted=["painted", 0], crop=["crop", 2], **{"feather": 0, **back}),
        "save": node("SaveImage", images=["back", 0], filename_prefix="paste-back"),
    }


def moved(right: int, down: int) -> dict[str, Any]:
    """The same part of the photograph, as a model that shifts it might hand it back."""
    return node("ImageCrop", image=["photo", 0], width=200, height=200, x=200 - right, y=90 - down)


def pixels(server: Server, prompt: Prompt) -> tuple[np.ndarray, str]:
    """The saved picture and what Paste Back said."""
    outputs = server.run(prompt).outputs
    with Image.open(server.file_of(outputs["save"]["images"][0])) as saved:
        return np.asarray(saved.convert("RGB")), outputs["back"]["text"][0]


def test_a_shift_is_told_and_taken_back(server: Server) -> None:
    photo = photos.load("coffee")
    inside = np.zeros(photo.shape[:2], bool)
    inside[150:230, 250:350] = True
    errors = []
    for undo in ("off", "shift and zoom"):
        found, text = pixels(server, graph(moved(3, -2), undo=undo))
        assert "3.0 px to the right, 2.0 px up" in text
        assert np.array_equal(found[~inside], photo[~inside])
        errors.append(np.abs(found[inside].astype(int) - photo[inside]).mean())
    assert errors[1] < 0.1 * errors[0]


def test_a_piece_that_was_left_alone_is_the_photograph(server: Server) -> None:
    found, text = pixels(server, graph(node("ImageScaleBy", image=["crop", 0], upscale_method="bicubic", scale_by=1.0)))
    assert np.array_equal(found, photos.load("coffee"))
    assert "where they were and in their colours" in text


def test_an_old_graph_without_the_new_inputs_runs_as_before(server: Server) -> None:
    black = node("EmptyImage", width=200, height=200, batch_size=1, color=0)
    found, _ = pixels(server, graph(black))
    wanted = photos.load("coffee").copy()
    wanted[150:230, 250:350] = 0
    assert np.array_equal(found, wanted)


def test_outpainting_makes_the_picture_larger(server: Server) -> None:
    """An even piece as the model's: new pixels on two sides, and the old ones as they were."""
    green = node("EmptyImage", width=664, height=432, batch_size=1, color=0x00FF00)
    crop = {"mask": ["empty", 0], "context": 0.0, "extend_right": 64, "extend_top": 32}
    found, _ = pixels(server, graph(green, crop))
    photo = photos.load("coffee")
    assert found.shape == (432, 664, 3)
    assert np.array_equal(found[32:, :600], photo)
    assert (found[:32] == (0, 255, 0)).all()
    assert (found[:, 600:] == (0, 255, 0)).all()


def test_an_exact_size_reaches_over_the_edge(server: Server) -> None:
    """A tall piece of a wide photograph, painted black and pasted back in its place."""
    black = node("EmptyImage", width=256, height=768, batch_size=1, color=0)
    prompt = graph(black, {"output_width": 256, "output_height": 768, "context": 0.5})
    prompt["piece"] = node("SaveImage", images=["crop", 0], filename_prefix="paste-back")
    outputs = server.run(prompt).outputs
    with Image.open(server.file_of(outputs["piece"]["images"][0])) as piece:
        assert piece.size == (256, 768)
    with Image.open(server.file_of(outputs["save"]["images"][0])) as saved:
        found = np.asarray(saved.convert("RGB"))
    wanted = photos.load("coffee").copy()
    wanted[150:230, 250:350] = 0
    assert np.array_equal(found, wanted)
