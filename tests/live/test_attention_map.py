"""The bundled attention_map through a real server: each map is brightest on its own thing, and looking changes nothing."""

from __future__ import annotations

import numpy as np
from PIL import Image
from scipy import ndimage

from demo import run, stand_ins
from demo.server import Server

from ..support.graphs import node
from ..support.live_workflows import pictures as pictures_of


def test_each_word_lights_up_on_its_thing_and_the_picture_stays(server: Server) -> None:
    prompt = stand_ins.changed(run.workflow("18 See where a word acts"))
    (looking,) = (name for name, entry in prompt.items() if entry["class_type"] == "MaskPromptAttentionMap")
    (decoded,) = (name for name, entry in prompt.items() if entry["class_type"] == "VAEDecode")
    prompt["maps"] = node("MaskToImage", mask=[looking, 0])
    prompt["maps saved"] = node("SaveImage", images=["maps", 0], filename_prefix="maps")
    prompt["painted"] = node("SaveImage", images=[decoded, 0], filename_prefix="painted")

    def pictures(outputs: dict[str, dict[str, list[dict[str, str]]]], name: str) -> list[np.ndarray]:
        return [np.asarray(Image.open(server.file_of(image)).convert("RGB"), np.float32) for image in outputs[name]["images"]]

    outputs = server.run(prompt).outputs
    (painted,), maps = pictures(outputs, "painted"), [one[..., 0] for one in pictures(outputs, "maps saved")]
    red = (painted[..., 0] > 150) & (painted[..., 1] < 90) & (painted[..., 2] < 90)
    blue = (painted[..., 2] > 150) & (painted[..., 0] < 90)
    assert min(red.sum(), blue.sum()) > 300
    ball, star = maps
    assert ball[red].mean() > 3 * ball[blue].mean()
    assert star[blue].mean() > 3 * star[red].mean()

    without = {
        name: entry
        for name, entry in prompt.items()
        if name not in (looking, "maps", "maps saved") and [looking, 1] not in entry["inputs"].values()
    }
    assert np.array_equal(pictures(server.run(without).outputs, "painted")[0], painted)


def test_a_word_makes_the_mask_and_only_there_is_painted_anew(server: Server) -> None:
    """The bundled 03 Make a mask from a word: the ball and nothing of the star is in its mask, and a yellow thing comes there."""
    shown = pictures_of(server, stand_ins.changed(run.workflow("03 Make a mask from a word")))
    painted, result = (shown[title].astype(np.float32) for title in ("Painted", "Result"))
    mask = shown["The mask"][..., 0] > 127
    red = (painted[..., 0] > 150) & (painted[..., 1] < 90) & (painted[..., 2] < 90)
    blue = (painted[..., 2] > 150) & (painted[..., 0] < 90)
    assert min(red.sum(), blue.sum()) > 300
    assert mask[red].mean() > 0.95
    assert mask[blue].mean() < 0.05
    yellow = (result[..., 0] > 170) & (result[..., 1] > 130) & (result[..., 2] < 110)
    assert yellow[mask].sum() > 300
    assert yellow[~mask].sum() < 20
    far = np.asarray(ndimage.distance_transform_edt(~mask)) > 16  # a cell of the latent is 8 pixels, and the decoder looks beyond it
    assert far.mean() > 0.3
    assert np.abs(result - painted)[far].mean() < 2
