"""Reference Region in a running ComfyUI, on tiny-edit of random weights: each reference in its region, and what is hidden stays so."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from demo.server import Prompt, Server, WorkflowError
from demo.tiny_edit import files

from ..support import tiny_edit_world
from ..support.graphs import CHECKPOINT, node

SAMPLING = {"seed": 11, "steps": 3, "cfg": 2.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
NAMES = ("region-0.png", "region-1.png", "region-0-changed.png")


@pytest.fixture(scope="module", autouse=True)
def models(server: Server, tmp_path_factory: pytest.TempPathFactory) -> None:
    tiny_edit_world.serve(server, tmp_path_factory.mktemp("tiny-edit"))
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 255, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC).save(server.input / NAMES[number])
    changed = np.array(Image.open(server.input / NAMES[0]))
    changed[:, 32:] = 255 - changed[:, 32:]
    Image.fromarray(changed).save(server.input / NAMES[2])


def box(x: int, width: int) -> dict[str, Any]:
    return node("MaskPromptBoxMask", x=x, y=0, width=width, height=64, image_width=64, image_height=64, feather=0)


def graph(*references: dict[str, Any], pictures: tuple[str, ...] = NAMES[:2]) -> Prompt:
    """tiny-edit with these references, each the further inputs of a Reference Region; or with core's Reference Latent where None."""
    nodes: Prompt = {
        "model": node("UNETLoader", unet_name=files.TRANSFORMER, weight_dtype="default"),
        "clip": node("CLIPLoader", clip_name=files.TEXT, type="flux2"),
        "vae": node("VAELoader", vae_name=files.AUTOENCODER),
        "text": node("CLIPTextEncode", clip=["clip", 0], text="the fox of the first picture on the left in the second picture"),
        "nothing": node("CLIPTextEncode", clip=["clip", 0], text=""),
        "empty": node("EmptyLatentImage", width=64, height=64, batch_size=1),
        "left": box(0, 32),
        "right": box(32, 32),
    }
    line: dict[str, Any] = {"model": ["model", 0], "positive": ["text", 0], "negative": ["nothing", 0]}
    for number, (asked, name) in enumerate(zip(references, pictures, strict=False)):
        nodes[f"image {number}"] = node("LoadImage", image=name)
        place = f"reference {number}"
        if asked.get("core"):
            nodes[f"latent {number}"] = node("VAEEncode", pixels=[f"image {number}", 0], vae=["vae", 0])
            for half in ("positive", "negative"):
                nodes[f"{half} {number}"] = node("ReferenceLatent", conditioning=line[half], latent=[f"latent {number}", 0])
                line[half] = [f"{half} {number}", 0]
            continue
        given = {"image": [f"image {number}", 0], "vae": ["vae", 0], "invert": False, "strength": 1.0, "megapixels": 1.0}
        nodes[place] = node("MaskPromptReferenceRegion", **line, **{**given, **asked})
        line = {half: [place, index] for index, half in enumerate(("model", "positive", "negative"))}
    nodes["sample"] = node("KSampler", **SAMPLING, **line, latent_image=["empty", 0])
    nodes["decode"] = node("VAEDecode", samples=["sample", 0], vae=["vae", 0])
    nodes["save"] = node("SaveImage", images=["decode", 0], filename_prefix="reference-region")
    return nodes


def painted(server: Server, prompt: Prompt) -> np.ndarray:
    with Image.open(server.file_of(server.run(prompt).outputs["save"]["images"][0])) as saved:
        return np.asarray(saved.convert("RGB"))


def test_without_masks_it_paints_what_cores_nodes_paint(server: Server) -> None:
    assert np.array_equal(painted(server, graph({}, {})), painted(server, graph({"core": True}, {"core": True})))


def test_each_reference_acts_in_its_own_region(server: Server) -> None:
    regions = ({"region": ["left", 0]}, {"region": ["right", 0]})
    found = painted(server, graph(*regions))
    assert not np.array_equal(found, painted(server, graph(*reversed(regions))))
    assert not np.array_equal(found, painted(server, graph({}, {})))
    assert np.array_equal(found, painted(server, graph(*regions)))


def test_what_is_hidden_is_not_in_the_painted_picture(server: Server) -> None:
    """The second picture differs from the first on its right only."""
    hidden = [painted(server, graph({"show": ["left", 0]}, pictures=(name,))) for name in (NAMES[0], NAMES[2])]
    assert np.array_equal(hidden[0], hidden[1])
    shown = [painted(server, graph({}, pictures=(name,))) for name in (NAMES[0], NAMES[2])]
    assert not np.array_equal(shown[0], shown[1])


@pytest.mark.parametrize("half", ["positive", "negative"])
def test_beside_an_area_over_all_of_the_picture_it_is_as_without(server: Server, half: str) -> None:
    """With the negative prompt unwired, as the page recommends it: ComfyUI makes each half a copy of the other for its area."""
    alone = graph({"region": ["left", 0]})
    del alone["reference 0"]["inputs"]["negative"]
    alone["sample"]["inputs"]["negative"] = ["nothing", 0]
    wanted = painted(server, alone)
    given = alone["sample"]["inputs"][half]
    alone["area"] = node("ConditioningSetArea", conditioning=given, width=64, height=64, x=0, y=0, strength=1.0)
    alone["sample"]["inputs"][half] = ["area", 0]
    assert np.abs(painted(server, alone).astype(int) - wanted).max() <= 1
    plain = graph({})
    del plain["reference 0"]["inputs"]["negative"]
    plain["sample"]["inputs"]["negative"] = ["nothing", 0]
    assert np.abs(painted(server, plain).astype(int) - wanted).max() > 1


def test_bad_input_is_refused_in_plain_words_and_the_server_serves_on(server: Server) -> None:
    forgotten, unheard = graph({"region": ["left", 0]}), graph({"region": ["left", 0]})
    forgotten["sample"]["inputs"]["model"] = ["model", 0]
    unheard["sample"]["inputs"]["positive"] = ["text", 0]
    no_vae, unet, wide, nothing = (graph({"region": ["left", 0]}) for _ in range(4))
    del no_vae["reference 0"]["inputs"]["vae"]
    unet |= {"model": CHECKPOINT}
    wide["reference 0"]["inputs"]["show"] = ["other", 0]
    wide["other"] = node("SolidMask", value=1.0, width=100, height=300)
    nothing["reference 0"]["inputs"]["show"] = ["other", 0]
    nothing["other"] = node("SolidMask", value=0.0, width=64, height=64)
    refused = {
        "output `model` is wired to nothing": forgotten,
        "output `positive` is wired to nothing": unheard,
        "no VAE was given": no_vae,
        "Use Image Prompt Region, or an IP-Adapter": unet,
        "show is 100x300 but the reference is 64x64: their shapes differ": wide,
        "the whole reference is hidden": nothing,
    }
    for message, prompt in refused.items():
        with pytest.raises(WorkflowError, match=message):
            server.run(prompt)
    assert painted(server, graph({"region": ["left", 0]})).shape == (64, 64, 3)
