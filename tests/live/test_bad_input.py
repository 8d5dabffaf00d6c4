"""What artists do wrong, sent through the real API: each is answered in plain words or has a defined result, and the server serves on."""

from __future__ import annotations

import json
import math
import pickle
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from maskprompt.conditioning import handles
from maskprompt.conditioning.handles import Handle
from maskprompt.models.mcgm import file as mask_encoder_file
from maskprompt.models.mcgm import mask_encoder
from maskprompt.models.mcgm.file import About
from PIL import Image
from safetensors.torch import load_file, save_file

from demo import run, setup, stand_ins
from demo.server import Prompt, Server, WorkflowError

from ..support.graphs import CHECKPOINT, PICTURES, node, solid, training
from ..support.live_models import VIDEO_MODEL, Evil, video_model

POINT = json.dumps([{"x": 300, "y": 150}])
SAM_INPUTS: dict[str, Any] = {"sam": ["sam", 0], "image": ["photo", 0], "choice": "best score", "fill": "white"}
PHOTO = node("LoadImage", image="coffee.png")
PLAIN_CHECKPOINT = node("CheckpointLoaderSimple", ckpt_name="plain.safetensors")
MARKED = solid(1.0, 512, 512)


def box(**inputs: Any) -> dict[str, Any]:
    """A box on the second of the subject's pictures."""
    return node("MaskPromptBoxMask", image=["picture 1", 0], **inputs)


def sam_mask(file: str = "mobile_sam.pt", **inputs: Any) -> Prompt:
    """Points, boxes or a painting to a mask that is saved."""
    return {
        "photo": PHOTO,
        "sam": node("MaskPromptLoadSAM", sam_name=file),
        "mask": node("MaskPromptSAMMask", **SAM_INPUTS, **inputs),
        "picture": node("MaskToImage", mask=["mask", 0]),
        "save": node("SaveImage", images=["picture", 0], filename_prefix="bad-input"),
    }


def box_mask(**inputs: Any) -> Prompt:
    return {
        "photo": PHOTO,
        "mask": node("MaskPromptBoxMask", image=["photo", 0], **inputs),
        "picture": node("MaskToImage", mask=["mask", 0]),
        "save": node("SaveImage", images=["picture", 0], filename_prefix="bad-input"),
    }


def cropped(mask: dict[str, Any], **more: Any) -> Prompt:
    return {
        "photo": PHOTO,
        "mask": mask,
        "crop": node("MaskPromptCropAroundBox", image=["photo", 0], mask=["mask", 0], **{"context": 0.5, "resolution": 128, **more}),
        "save": node("SaveImage", images=["crop", 0], filename_prefix="bad-input"),
    }


def painted(mask: dict[str, Any], model: dict[str, Any] = CHECKPOINT) -> Prompt:
    """Three steps of the tiny model with masked attention, from nothing."""
    choices = {"cross_attention": True, "self_attention": "paper", "layers": "paper"}
    sampler = {"steps": 3, "cfg": 3.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0, "seed": 1}
    return {
        "model": model,
        "clip": CHECKPOINT,
        "mask": mask,
        "attention": node("MaskPromptMaskedAttention", model=["model", 0], mask=["mask", 0], **choices),
        "text": node("CLIPTextEncode", clip=["clip", 1], text="a red ball on grass"),
        "latent": node("EmptyLatentImage", width=128, height=128, batch_size=1),
        "sampler": node(
            "KSampler", model=["attention", 0], positive=["text", 0], negative=["text", 0], latent_image=["latent", 0], **sampler
        ),
        "decoded": node("VAEDecode", samples=["sampler", 0], vae=["clip", 2]),
        "save": node("SaveImage", images=["decoded", 0], filename_prefix="bad-input"),
    }


def in_region(mask: dict[str, Any], model: dict[str, Any] = CHECKPOINT) -> Prompt:
    """The same with a text in a region in place of masked attention."""
    region = node(
        "MaskPromptPromptRegion", model=["model", 0], text=["text", 0], mask=["mask", 0], strength=1.0, base="everywhere", apart=0.0
    )
    return {**painted(mask, model), "attention": region}


def looked_at(words: str, model: dict[str, Any] = CHECKPOINT) -> Prompt:
    """Attention Map of a prompt on an empty latent, saved."""
    settings = {"at_percent": 0.5, "seed": 1, "scale": "each word"}
    return {
        "model": model,
        "clip": CHECKPOINT,
        "latent": node("EmptyLatentImage", width=128, height=128, batch_size=1),
        "map": node(
            "MaskPromptAttentionMap", model=["model", 0], clip=["clip", 1], text="a red ball on grass", words=words, latent=["latent", 0],
            **settings,
        ),
        "save": node("SaveImage", images=["map", 1], filename_prefix="bad-input"),
    }  # fmt: skip


Box = tuple[int, int, int, int]
LEFT = (8, 16, 48, 96)
RIGHT = (72, 32, 48, 64)
"""Two boxes (x, y, width, height) beside each other on 128 x 128 pixels."""
SUBJECTS = "embedding:live-ball and embedding:live-star"


def batch(boxes: Sequence[Box | None], side: int = 128) -> Prompt:
    """Masks of these boxes (None: nothing marked), of which the node "masks" makes a batch."""
    size = {"image_width": side, "image_height": side, "feather": 0}
    marks = {
        f"mask {number}": solid(0.0, side, side) if box is None
        else node("MaskPromptBoxMask", **dict(zip(("x", "y", "width", "height"), box, strict=True)), **size)
        for number, box in enumerate(boxes)
    }  # fmt: skip
    return {**marks, "masks": node("BatchMasksNode", **{f"masks.mask{number}": [name, 0] for number, name in enumerate(marks)})}


def posed(boxes: Sequence[Box | None], text: str = SUBJECTS, file: str = "live.safetensors", told: bool = False) -> Prompt:
    """Three steps of a prompt with masks that Pose by Masks encodes; `told`: it is given the prompt's text as well."""
    sampler = {"steps": 3, "cfg": 3.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0, "seed": 1}
    return {
        **batch(boxes),
        "clip": CHECKPOINT,
        "mcgm": node("MaskPromptLoadMCGM", model=["clip", 0], clip=["clip", 1], mcgm_name=file, lora_strength=1.0),
        "text": node("CLIPTextEncode", clip=["mcgm", 1], text=text),
        "nothing": node("CLIPTextEncode", clip=["mcgm", 1], text=""),
        "encoded": node(
            "MaskPromptEncodeMasks", positive=["text", 0], negative=["nothing", 0], mask_encoder=["mcgm", 2], masks=["masks", 0],
            strength=1.0, **({"prompt": text} if told else {}),
        ),
        "latent": node("EmptyLatentImage", width=128, height=128, batch_size=1),
        "sampler": node(
            "KSampler", model=["mcgm", 0], positive=["encoded", 0], negative=["encoded", 1], latent_image=["latent", 0], **sampler
        ),
        "decoded": node("VAEDecode", samples=["sampler", 0], vae=["clip", 2]),
        "save": node("SaveImage", images=["decoded", 0], filename_prefix="bad-input"),
    }  # fmt: skip


def learned(boxes: Sequence[Box | None], model: dict[str, Any] = CHECKPOINT, side: int = 512, **settings: Any) -> Prompt:
    """Train Poseable Subjects on a picture of 512 x 512 pixels, if it comes so far."""
    given = {
        "model": ["model", 0], "clip": ["clip", 1], "vae": ["clip", 2], "image": ["picture", 0], "masks": ["masks", 0],
        "words": "ball, star", "name": "live", "steps": 1, "weight_steps": 1, "method": "lora", "variations": 2,
        "learning_rate": 0.0, "rank": 2,
        "batch_size": 1, "size": 64, "seed": 0,
    }  # fmt: skip
    return {
        **batch(boxes, side),
        "picture": node("LoadImage", image=PICTURES[0]),
        "clip": CHECKPOINT,
        "model": model,
        "train": {"class_type": "MaskPromptTrainMCGM", "inputs": {**given, **settings}},
        "words": node("PreviewAny", source=["train", 3]),
    }  # fmt: skip


MARKS = [(50, 100, 180, 300), (300, 150, 150, 250)]


@pytest.fixture(scope="module", autouse=True)
def photograph(server: Server) -> None:
    run.add_photographs(server, ["coffee.png", *PICTURES])


@pytest.fixture(autouse=True)
def still_serves(server: Server) -> Any:
    """After whatever a test did, a good workflow runs and its result is right."""
    yield
    images = server.run(box_mask(x=10, y=20, width=30, height=40)).outputs["save"]["images"]
    pixels = np.asarray(Image.open(server.file_of(images[0])).convert("L"))
    assert (pixels > 0).sum() == 30 * 40


def saved(server: Server, prompt: Prompt) -> np.ndarray:
    return np.asarray(Image.open(server.file_of(server.run(prompt).outputs["save"]["images"][0])).convert("L"))


REFUSED: dict[str, tuple[Prompt, str]] = {
    "points that are not JSON": (sam_mask(positive_coords="[over there"), r"positive_coords.*not JSON.*over there"),
    "points in words": (sam_mask(positive_coords="over there"), r"positive_coords.*not a point.*over there"),
    "a box in words": (sam_mask(box="around it"), r"box: write a box as left,top,width,height.*around it"),
    "points without x and y": (sam_mask(positive_coords="[[300, 150]]"), "positive_coords.*not a point"),
    "a point outside": (sam_mask(positive_coords='[{"x": 601, "y": 10}]'), "x=601, y=10 lies outside of the picture, which is 600 x 400"),
    "no prompt": (sam_mask(), "cannot know which object"),
    "only negative points": (sam_mask(negative_coords=POINT), "only negative points"),
    "no such SAM file": (sam_mask("nonesuch.pth", positive_coords=POINT), "nonesuch.pth.*mobile_sam.pt"),
    "a cut-off SAM file": (sam_mask("cut-off.pt", positive_coords=POINT), "cut-off.pt.*damaged or not complete"),
    "a cut-off safetensors": (sam_mask("cut-off.safetensors", positive_coords=POINT), "cut-off.safetensors.*damaged or not complete"),
    "a pickle with code": (sam_mask("evil.pt", positive_coords=POINT), "evil.pt.*can run any program"),
    "another network": (sam_mask("other.safetensors", positive_coords=POINT), "other.safetensors.*not a SAM model"),
    "a box outside": (box_mask(x=700, y=0, width=50, height=50), "lies outside of the picture, which is 600 x 400"),
    "a box without area": (box_mask(x=0, y=0, width=0, height=50), "has no area"),
    "nothing to crop around": (cropped(solid(0.0)), "empty.*nothing to crop around"),
    "a context that is no number": (cropped(solid(1.0), context=math.nan), "Crop Around Box: context must be from 0 to 1000, got nan"),
    "an exact size of one side": (cropped(solid(1.0), output_width=512), "output_width is 512 but output_height is 0. Give both"),
    "an exact size that a VAE would cut": (cropped(solid(1.0), output_width=500, output_height=300), "500x300 would be cut by the VAE"),
    "a context mask of another shape": (
        {**cropped(solid(1.0), context_mask=["also", 0]), "also": solid(1.0, 300, 300)},
        "300x300 but the picture is 600x400",
    ),
    "an infinite box": (box_mask(bboxes={"x": 0, "y": 0, "width": math.inf, "height": 9}), "Box Mask: bboxes: .*must be finite"),
    "a box of 400 digits": (box_mask(bboxes={"x": 10**400, "y": 0, "width": 9, "height": 9}), "Box Mask: bboxes: .*must be finite"),
    "a picture where the crop belongs": (
        {
            **cropped(solid(1.0)),
            "save": node("SaveImage", images=["back", 0], filename_prefix="bad-input"),
            "back": node("MaskPromptPasteBack", image=["photo", 0], painted=["crop", 0], crop={"x": 0}, feather=0),
        },
        "crop must come from Crop Around Box, got dict",
    ),
    "a mask of another shape": (painted(solid(1.0, 300, 100)), "the mask is 300x100.*their shapes differ"),
    "a model that is not known": (painted(solid(1.0, 128, 128), VIDEO_MODEL), r"\(MaskPromptMaskedAttention\).*neither a UNet"),
    "a region in a model that is not known": (in_region(solid(1.0, 128, 128), VIDEO_MODEL), r"\(MaskPromptPromptRegion\).*neither a UNet"),
    "a region without area": (in_region(solid(0.0, 128, 128)), "mask of this region is empty"),
    "a region of another shape": (in_region(solid(1.0, 300, 100)), "the mask is 300x100.*their shapes differ"),
    "a subject marked in two of three pictures": (training([MARKED, solid(0.0, 512, 512), MARKED]), "picture 2 marks nothing"),
    "a subject of nine pixels": (training([MARKED, box(x=9, y=9, width=3, height=3), MARKED]), "picture 2 marks nothing"),
    "a subject's box without area": (training([MARKED, box(x=9, y=9, width=0, height=3), MARKED]), "has no area"),
    "fewer masks than pictures": (training([MARKED, MARKED]), "3 pictures but 2 masks"),
    "a mask of another size than its picture": (training([MARKED, solid(1.0, 500, 512), MARKED]), "picture 2 is 512 x 512.*500 x 512"),
    "a model without the inpainting channels": (training(model=PLAIN_CHECKPOINT), r"inpainting checkpoint.*9 channels.*takes 4"),
    "a model to train that is no UNet": (training(model=VIDEO_MODEL), r"inpainting checkpoint.*no UNet"),
    "no token": (training(token=" "), "token is empty.*sks"),
    "no noun": (training(noun=""), "noun is empty"),
    "a word that is not in the prompt": (looked_at("red ball, cat"), "the word 'cat' is not in `text`.*ball"),
    "no word at all": (looked_at(" , "), "words"),
    "a map of a model that is no UNet": (looked_at("ball", VIDEO_MODEL), r"\(MaskPromptAttentionMap\).*UNet"),
    "a noun of many pieces": (training(noun="antidisestablishmentarianism " * 3), r"noun .*antidis.* pieces long.*plain word"),
    "mcgm: an encoder for SDXL": (posed([LEFT], file="sdxl.safetensors"), r"text of width 2048 \(SDXL\); this model's text has width 128"),
    "mcgm: a LoRA for an encoder": (posed([LEFT], file="a-lora.safetensors"), "'a-lora.safetensors' is no mask encoder.*models/loras"),
    "mcgm: a cut-off file": (posed([LEFT], file="cut-off.safetensors"), "'cut-off.safetensors'.* is damaged or not complete"),
    "mcgm: no such file": (posed([LEFT], file="owl.safetensors"), "There is no file 'owl.safetensors'.*found there:.*live.safetensors"),
    "mcgm: more masks than subjects": (posed([LEFT, RIGHT, None]), "there are 3 masks, but 'live.safetensors' knows 2 subjects"),
    "mcgm: more masks than the prompt names": (posed([LEFT, RIGHT, None], told=True), "are 3 masks, but the prompt names 2 subjects"),
    "mcgm: a handle missing from the prompt": (
        posed([LEFT, RIGHT], "a photo of embedding:live-ball", told=True),
        r"2 masks, but the prompt names 1 subject .*does not name embedding:live-star \(or 'star'\)",
    ),
    "mcgm: a handle with a full stop": (posed([LEFT], "see embedding:live-ball.", told=True), "names no subjects.*space before and after"),
    "mcgm: a model that is no UNet": (learned(MARKS, VIDEO_MODEL), r"\(MaskPromptTrainMCGM\).*a UNet model is needed"),
    "mcgm: more masks than words": (learned([*MARKS, None]), r"2 words \(ball, star\) but 3 masks"),
    "mcgm: fewer masks than words": (learned(MARKS, words="ball, star, ring"), r"3 words \(ball, star, ring\) but 2 masks"),
    "mcgm: no words": (learned(MARKS, words=" , "), "words is empty.*cat, dog"),
    "mcgm: a mask that marks nothing": (learned([MARKS[0], None]), r"mask 2 \(star\) marks nothing: point SAM Mask"),
    "mcgm: masks of another size": (learned(MARKS, side=500), "the picture is 512 x 512 pixels but its masks 500 x 500"),
    "mcgm: a subject too small for the size": (learned([MARKS[0], (9, 9, 8, 8)]), r"mask 2 \(star\) marks too little.*larger `size`"),
    "mcgm: no name": (learned(MARKS, name=" "), "name is empty"),
    "mcgm: a name that leads elsewhere": (learned(MARKS, name="../live"), "cannot be a handle's name.*letters from a to z"),
    "mcgm: a word that is no embedding": (learned(MARKS, words="ball, embedding:owl"), "reads nothing where .* 'embedding:owl'"),
}


@pytest.fixture(scope="module", autouse=True)
def broken_files(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model files of REFUSED; returns the folder that the pickle would make."""
    folder = tmp_path_factory.mktemp("files")
    marker = tmp_path_factory.mktemp("marker") / "made-by-evil"
    (folder / "cut-off.pt").write_bytes(setup.mobile_sam_path().read_bytes()[:1_000_000])
    save_file({"conv.weight": torch.zeros(64, 64)}, folder / "other.safetensors")
    (folder / "cut-off.safetensors").write_bytes((folder / "other.safetensors").read_bytes()[:-100])
    with zipfile.ZipFile(folder / "evil.pt", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"weight": Evil(marker)}, protocol=2))
        archive.writestr("archive/version", "3\n")
    for file in folder.iterdir():
        server.add_model("sams", file)
    save_file(video_model(), folder / "video.safetensors")
    server.add_model("diffusion_models", folder / "video.safetensors")
    save_file(without_inpainting(), folder / "plain.safetensors")
    server.add_model("checkpoints", folder / "plain.safetensors")
    return marker


@pytest.fixture(scope="module", autouse=True)
def mcgm_files(server: Server, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Two handles, and a mask encoder with them; one for SDXL, a LoRA, and a part of a file, all where mask encoders lie."""
    folder = tmp_path_factory.mktemp("mcgm")
    known = []
    for number, word in enumerate(("ball", "star")):
        vectors = {"l": torch.randn(1, 128, generator=torch.Generator().manual_seed(number)) * 0.05}
        server.add_model("embeddings", Path(handles.save(str(folder), f"live-{word}", vectors, word)))
        known.append(Handle(f"live-{word}", word, handles.fingerprint(vectors)))
    for name, width in (("live", 128), ("sdxl", 2048)):
        mask_encoder_file.save(mask_encoder.fresh(width, 2), About(tuple(known)), str(folder / f"{name}.safetensors"))
    layer = "lora_unet_down_blocks_0_attentions_0_proj_in"
    lora = {f"{layer}.lora_up.weight": torch.zeros(320, 4), f"{layer}.lora_down.weight": torch.zeros(4, 320)}
    save_file(lora, folder / "a-lora.safetensors", {"format": "pt"})
    (folder / "cut-off.safetensors").write_bytes((folder / "live.safetensors").read_bytes()[:-1000])
    for name in ("live", "sdxl", "a-lora", "cut-off"):
        server.add_model("mcgm", folder / f"{name}.safetensors")


def without_inpainting() -> dict[str, torch.Tensor]:
    """The tiny model's checkpoint with a UNet that sees the noisy latents only, as one for plain text to image does."""
    weights = load_file(stand_ins.TINY_MODEL)
    key = "model.diffusion_model.input_blocks.0.0.weight"
    return {**weights, key: weights[key][:, :4].contiguous()}


@pytest.mark.parametrize("case", REFUSED)
def test_it_is_refused_in_plain_words(server: Server, broken_files: Path, case: str) -> None:
    prompt, message = REFUSED[case]
    with pytest.raises(WorkflowError, match=f"(?s){message}") as refused:
        server.run(prompt)
    assert not any(word in str(refused.value) for word in ("Traceback", "torch.", "size mismatch", "Tensor"))
    assert not broken_files.exists()


def test_an_empty_painting_finds_nothing(server: Server) -> None:
    prompt = sam_mask(rough_mask=["rough", 0])
    prompt["rough"] = solid(0.0)
    assert saved(server, prompt).max() == 0
    assert "nothing was found" in server.log_tail(20)


def test_a_box_over_the_edge_is_cut_off(server: Server) -> None:
    pixels = saved(server, box_mask(x=-20, y=-20, width=50, height=50))
    wanted = np.zeros((400, 600))
    wanted[:30, :30] = 255
    assert np.array_equal(pixels, wanted)


def test_a_mask_of_another_size_but_the_same_shape_is_taken(server: Server) -> None:
    assert saved(server, cropped(solid(1.0, 300, 200))).shape == saved(server, cropped(solid(1.0))).shape


@pytest.mark.parametrize("value", [0.0, 1.0], ids=["empty", "full"])
def test_an_empty_or_full_mask_leaves_attention_as_it_is(server: Server, value: float) -> None:
    without = painted(solid(value, 128, 128))
    del without["attention"], without["mask"]
    without["sampler"]["inputs"]["model"] = ["model", 0]
    assert np.array_equal(saved(server, painted(solid(value, 128, 128))), saved(server, without))


def test_mcgm_masks_that_overlap_are_warned_of(server: Server) -> None:
    apart, over = (saved(server, posed(boxes)) for boxes in ([LEFT, RIGHT], [LEFT, (16, 24, 32, 64)]))
    assert not np.array_equal(apart, over)
    assert "masks 1 and 2 share 100 % of the smaller one; there subjects may mix" in server.log_tail(20)


def test_mcgm_a_mask_with_nothing_in_it_leaves_the_pose_to_the_text(server: Server) -> None:
    """Its token is zero, wherever it stands, and a warning says so; a mask in its place paints another picture."""
    blank, drawn = (saved(server, posed(boxes)) for boxes in ([LEFT, None], [LEFT, RIGHT]))
    assert "mask 2 has nothing in it; its token is zero, and the text alone poses the subject" in server.log_tail(60)
    assert not np.array_equal(blank, drawn)


def test_mcgm_a_prompt_of_more_than_77_tokens_works(server: Server) -> None:
    """The masks act there too, also where the subjects are named at its end."""
    text = "a photo of grass and sky and stones, " * 12 + SUBJECTS
    one, other = (saved(server, posed(boxes, text, told=True)) for boxes in ([LEFT, RIGHT], [RIGHT, (0, 0, 128, 24)]))
    assert one.shape == other.shape == (128, 128)
    assert not np.array_equal(one, other)
