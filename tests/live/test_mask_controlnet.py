"""Mask-ControlNet in a real server: the bundled workflows keep what the mask marks, a training leaves files that paint alike, bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from maskprompt.models.mask_controlnet import diffusers_layout
from maskprompt.models.mask_controlnet import file as mask_controlnet_file
from maskprompt.models.mask_controlnet.adapter import MaskConcat
from maskprompt.models.mask_controlnet.file import About, Content
from PIL import Image

from demo import judge, run, scenes, stand_ins, subject_pictures, train_captioner
from demo.server import Prompt, Server, WorkflowError

from ..support.graphs import CHECKPOINT, PICTURES, in_list, node, solid
from ..support.live_training import Shown, interrupt_and_go_on, latent
from ..support.live_workflows import pictures, titled, with_inputs

pytestmark = pytest.mark.thorough

TRAIN = "MaskPromptTrainMaskControlNet"
ONE = "Painted anew"
FIRST = "The first alone"
SECOND = "The second alone"
SAMPLER = {"steps": 3, "cfg": 3.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0, "seed": 1}
SMALL: dict[str, Any] = {
    "captions": "a heart\na heart\na heart", "steps": 3, "learning_rate": 0.001, "batch_size": 1, "size": 64, "seed": 0, "accumulate": 1,
    "mask_prompt": True, "text_dropout": 0.1, "preview_every": 0, "resume": True, "gradient_checkpointing": False, "average": 0.0,
}  # fmt: skip


def bundled(server: Server, name: str) -> Prompt:
    """A bundled workflow with the tiny model, and its pictures on the server."""
    prompt = stand_ins.changed(run.workflow(name))
    run.add_photographs(server, run.photographs(prompt))
    return prompt


@pytest.fixture(scope="module")
def product(server: Server) -> Prompt:
    return bundled(server, "16 Keep an object, paint its surroundings")


@pytest.fixture(scope="module")
def two(server: Server) -> Prompt:
    return bundled(server, "17 Keep one of two objects")


@pytest.fixture(scope="module")
def eye() -> judge.Judge:
    return judge.load()


def places(name: str) -> list[np.ndarray]:
    """Where each object of a picture is: bool [64, 64], the judge's size."""
    ground, things = subject_pictures.PRODUCTS[name]
    scene = scenes.Scene(things, ground if ground in scenes.GROUNDS else scenes.GROUNDS[0], 1)
    return [mask[::2, ::2] > 0.5 for mask in scenes.render(scene, 128).masks]


def seen(eye: judge.Judge, picture: np.ndarray) -> judge.Verdict:
    return judge.look(eye, torch.from_numpy(picture.copy()).float()[None] / 255)[0]


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / max(1, (one | other).sum()))


def best_at(verdict: judge.Verdict, place: np.ndarray) -> judge.Found | None:
    """The object that fits a place best."""
    return max(verdict.objects, key=lambda found: overlap(found.mask, place), default=None)


def test_the_product_stays_and_its_surroundings_are_new(server: Server, product: Prompt, eye: judge.Judge) -> None:
    verdict, (place,) = seen(eye, pictures(server, product)[ONE]), places("product")
    thing = subject_pictures.PRODUCTS["product"][1][0]
    found = best_at(verdict, place)
    assert found is not None
    assert overlap(found.mask, place) > 0.7
    assert found.shape == thing.shape
    assert found.painted(thing.paint.colour, str(thing.paint.second))
    assert product[titled(product, "The new surroundings")]["inputs"]["text"].endswith(f" on {verdict.ground}")


def test_a_click_marks_the_product(server: Server, product: Prompt) -> None:
    (image,) = server.run(product).outputs[titled(product, "The object")]["images"]
    marked = np.asarray(Image.open(server.file_of(image)).convert("L").resize((64, 64), Image.Resampling.BOX)) > 127
    assert overlap(marked, places("product")[0]) > 0.85


def test_the_mask_decides_which_of_two_objects_is_painted(server: Server, two: Prompt, eye: judge.Judge) -> None:
    """The pictures differ in their masks and words alone; with the masks exchanged, so are the objects."""
    seeds = {str(entry["inputs"]["seed"]) for entry in two.values() if entry["class_type"] == "KSampler"}
    assert len(seeds) == 1
    words = {title: two[titled(two, title)]["inputs"]["text"] for title in ("The first on a new ground", "The second on the same")}
    exchanged = two
    for title, click in (("Click the first", "Click the second"), ("Click the second", "Click the first")):
        exchanged = with_inputs(exchanged, title, positive_coords=two[titled(two, click)]["inputs"]["positive_coords"])
    for title, other in zip(words, reversed(words), strict=True):
        exchanged = with_inputs(exchanged, title, text=words[other])
    stars, balls = places("two-products")
    for prompt, order in ((two, (stars, balls)), (exchanged, (balls, stars))):
        shown = pictures(server, prompt)
        for title, (there, away) in ((FIRST, order), (SECOND, order[::-1])):
            objects = seen(eye, shown[title]).objects
            assert max(overlap(found.mask, there) for found in objects) > 0.5
            assert all(float((found.mask & away).sum() / away.sum()) < 0.2 for found in objects)


def test_without_strength_it_is_the_picture_without_it(server: Server, product: Prompt) -> None:
    """To the bit; the reference then does not matter."""
    off = with_inputs(product, "Apply ControlNet", strength=0.0)
    plain: Prompt = json.loads(json.dumps(product))
    applied = plain.pop(titled(plain, "Apply ControlNet"))
    sampler = plain[titled(plain, "KSampler")]["inputs"]
    sampler["positive"] = applied["inputs"]["positive"]
    sampler["negative"] = applied["inputs"]["negative"]
    assert np.array_equal(pictures(server, off)[ONE], pictures(server, plain)[ONE])


def painting(control: list[Any], adapter: list[Any], **others: dict[str, Any]) -> Prompt:
    """Three steps into an empty latent, of the first picture's middle; `others` replace nodes by their names."""
    return {
        "picture 0": node("LoadImage", image=PICTURES[0]),
        "clip": CHECKPOINT,
        "marked": node("MaskPromptBoxMask", image=["picture 0", 0], x=130, y=130, width=250, height=250),
        "hint": node("MaskPromptMaskConcat", adapter=adapter, image=["picture 0", 0], mask=["marked", 0]),
        "text": node("CLIPTextEncode", clip=["clip", 1], text="a heart on grass"),
        "applied": node(
            "ControlNetApplyAdvanced", positive=["text", 0], negative=["text", 0], control_net=control, image=["hint", 0], strength=1.0,
            start_percent=0.0, end_percent=1.0, vae=["clip", 2],
        ),
        "empty": node("EmptyLatentImage", width=64, height=64, batch_size=1),
        "sampler": node(
            "KSampler", model=["clip", 0], positive=["applied", 0], negative=["applied", 1], latent_image=["empty", 0], **SAMPLER
        ),
        "latent": node("SaveLatent", samples=["sampler", 0], filename_prefix="mask-controlnet"),
        **others,
    }  # fmt: skip


def loaded(name: str, **others: dict[str, Any]) -> Prompt:
    """The painting with a file."""
    load = node("MaskPromptLoadMaskControlNet", mask_controlnet_name=name)
    return painting(["loaded", 0], ["loaded", 1], **{"loaded": load, **others})


def training(masks: dict[str, Any] | None = None, model: dict[str, Any] = CHECKPOINT, **settings: Any) -> Prompt:
    """A few small steps on three pictures in which the middle is marked, saved."""
    return {
        **{f"picture {index}": node("LoadImage", image=name) for index, name in enumerate(PICTURES)},
        "pictures": in_list([f"picture {index}" for index in range(len(PICTURES))]),
        "masks": masks or node("MaskPromptBoxMask", image=["pictures", 0], x=130, y=130, width=250, height=250),
        "clip": CHECKPOINT,
        "model": model,
        "train": node(
            TRAIN, model=["model", 0], clip=["clip", 1], vae=["clip", 2], images=["pictures", 0], masks=["masks", 0],
            **{**SMALL, **settings},
        ),
        "saved": node(
            "MaskPromptSaveMaskControlNet", control_net=["train", 0], adapter=["train", 1], filename_prefix="controlnet/live",
            layout="one file",
        ),
    }  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def files(server: Server, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The pictures; one network for another base, and a part of a file, where control networks lie."""
    run.add_photographs(server, PICTURES)
    folder = tmp_path_factory.mktemp("controlnet")
    shape = {**mask_controlnet_file.read(str(stand_ins.TINY_MASK_CONTROL)).shape, "context_dim": 768}
    control = {name: torch.zeros(size) for name, size in sizes(shape).items()}
    content = Content(shape, control, MaskConcat().state_dict(), About(0.18215, "another"))
    mask_controlnet_file.save(content, folder / "other-base.safetensors")
    (folder / "cut-off.safetensors").write_bytes((folder / "other-base.safetensors").read_bytes()[:-1000])
    for name in ("other-base", "cut-off"):
        server.add_model("controlnet", folder / f"{name}.safetensors")


def sizes(shape: diffusers_layout.Shape) -> dict[str, torch.Size]:
    """Of a control network's weights."""
    import comfy.ops
    from maskprompt.models.mask_controlnet.network import LatentControlNet

    network = LatentControlNet(shape, torch.float32, "meta", comfy.ops.disable_weight_init)
    return {name: value.shape for name, value in network.state_dict().items()}


def saved(server: Server) -> list[Path]:
    return sorted((server.output / "controlnet").glob("live_*.safetensors"))


def test_it_shows_how_far_it_is_and_the_saved_file_paints_the_same(server: Server) -> None:
    shown = Shown()
    graph = {**training(steps=6, preview_every=2), **painting(["train", 0], ["train", 1])}
    trained = latent(server, server.run(graph, on_bytes=shown))
    assert shown.steps == [1, 2, 3, 4, 5, 6]
    assert len(shown.previews) >= 2
    again = latent(server, server.run(loaded(saved(server)[-1].name)))
    assert trained.isfinite().all()
    assert (trained - again).abs().max() < 1e-4
    plain = loaded(saved(server)[-1].name)
    plain["applied"]["inputs"]["strength"] = 0.0
    assert (latent(server, server.run(plain)) - again).abs().max() > 1e-3


def test_an_interrupted_training_goes_on_where_it_was(server: Server) -> None:
    before = saved(server)
    interrupt_and_go_on(server, training(seed=3, steps=26), TRAIN, "mask-controlnet")
    assert len(saved(server)) == len(before) + 1


def test_what_diffusers_reads_is_listed_and_paints_the_same(server: Server) -> None:
    """Saved from a file in the other layout, and loaded again from there."""
    name = stand_ins.TINY_MASK_CONTROL.name
    save = node(
        "MaskPromptSaveMaskControlNet", control_net=["loaded", 0], adapter=["loaded", 1], filename_prefix="controlnet/folder",
        layout="diffusers folder",
    )  # fmt: skip
    first = latent(server, server.run(loaded(name, save=save)))
    (folder,) = (server.output / "controlnet").glob("folder_*")
    second = latent(server, server.run(loaded(f"{folder.name}/diffusion_pytorch_model.safetensors")))
    assert torch.equal(first, second)


def test_captions_come_line_by_line(server: Server) -> None:
    """Each says its picture's ground, and the Train node takes them as they come. Of shapes the tiny captioner knows little."""
    listed = ["blocks.png", *PICTURES]
    Image.fromarray(scenes.render(scenes.Scene((scenes.Thing("ball", scenes.Paint("red"), 0.5, 0.5, 0.5),), "snow", 4), 200).image).save(
        server.input / "blocks.png"
    )
    graph: Prompt = {f"picture {index}": node("LoadImage", image=name) for index, name in enumerate(listed)}
    graph["pictures"] = in_list(list(graph))
    graph["captions"] = node(
        "MaskPromptCaptionImage", image=["pictures", 0], blip_name=stand_ins.TINY_BLIP.name, prefix="", max_tokens=20, beams=3, min_tokens=1
    )
    (text,) = server.run(graph).outputs["captions"]["text"]
    lines = text.splitlines()
    assert len(lines) == len(listed)
    assert lines[0].startswith("a red ")
    assert [line.split(" on ")[-1] for line in lines] == ["snow", "a photo", "grass", "a photo"]
    assert all(set(line.split()) <= set(train_captioner.words()) for line in lines)
    captioned = training()
    captioned["captions"] = {**graph["captions"], "inputs": {**graph["captions"]["inputs"], "image": ["pictures", 0]}}
    captioned["train"]["inputs"]["captions"] = ["captions", 0]
    assert "train" in server.run(captioned).executed


def without(entry: dict[str, Any], name: str) -> dict[str, Any]:
    """A node without an input."""
    return {**entry, "inputs": {field: value for field, value in entry["inputs"].items() if field != name}}


def with_prefix(prefix: str) -> Prompt:
    """The training, saved as this."""
    graph = training()
    graph["saved"]["inputs"]["filename_prefix"] = prefix
    return graph


TINY = stand_ins.TINY_MASK_CONTROL.name
REFUSED: dict[str, tuple[Prompt, str]] = {
    "no VAE": (
        {**loaded(TINY), "applied": without(loaded(TINY)["applied"], "vae")},
        "connect the checkpoint's VAE to Apply ControlNet's vae input",
    ),
    "a file for another base": (loaded("other-base.safetensors"), r"made for .* text of width 768.*the model is .* width 128"),
    "a ControlNet for pictures": (loaded(stand_ins.TINY_CONTROL.name), "but a ControlNet for pictures, for Load ControlNet Model"),
    "a cut-off file": (loaded("cut-off.safetensors"), "'cut-off.safetensors'.* is damaged or not complete"),
    "no such file": (loaded("owl.safetensors"), "There is no file 'owl.safetensors'.*found there:"),
    "a mask of another shape": (loaded(TINY, marked=solid(1.0, 300, 100)), "the picture is 512 x 512 pixels but its mask 300 x 100"),
    "a path that leads elsewhere": (with_prefix("../x"), "nothing can be saved as '../x'"),
    "fewer lines than pictures": (training(captions="one\ntwo"), "3 pictures but 2 lines of captions"),
    "no captions": (training(captions=""), "captions is empty"),
    "nothing is marked": ({**training(masks=in_list(["blank"] * 3)), "blank": solid(0.0, 512, 512)}, "mask of picture 1 marks nothing"),
    "too small pictures": (training(size=1536), "too small for crops of 1536"),
    "no such BLIP": (
        {"picture": node("LoadImage", image=PICTURES[0]),
         "captions": node("MaskPromptCaptionImage", image=["picture", 0], blip_name="owl", prefix="", max_tokens=9, beams=1, min_tokens=1)},
        "no BLIP folder 'owl'.*Salesforce/blip-image-captioning-base",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_it_is_refused_in_plain_words(server: Server, case: str) -> None:
    prompt, message = REFUSED[case]
    with pytest.raises(WorkflowError, match=f"(?s){message}") as refused:
        server.run(prompt)
    assert not any(word in str(refused.value) for word in ("Traceback", "torch.", "size mismatch", "Tensor"))


def test_a_mask_that_marks_nothing_warns_and_keeps_no_object(server: Server) -> None:
    empty = latent(server, server.run(loaded(TINY, marked=solid(0.0, 512, 512))))
    assert "the mask of picture 1 marks nothing, so no object is kept" in server.log_tail(60)
    assert (latent(server, server.run(loaded(TINY))) - empty).abs().max() > 1e-3
