"""CLIP-T, CLIP-I and DINO against `transformers` itself on small networks of random weights; what a mask cuts out."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from maskprompt.images import foreground
from maskprompt.models.scores import encoders, likeness, pictures, report
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from ...support.adapters import small_clip_vision
from ...support.score_models import clip_folder, coarse, dino_folder

PROMPTS = ["a cat", "the red dog on a hill"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clip_folder(tmp_path_factory.mktemp("clip") / "small-clip")


@pytest.fixture(scope="module")
def dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dino_folder(tmp_path_factory.mktemp("dino") / "small-dino")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("a score reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def _pillow(picture: Tensor) -> Image.Image:
    return Image.fromarray((picture * 255).round().byte().numpy())


def test_clip_t_is_transformers_own_likeness(clip: Path) -> None:
    """CLIP's own logits, from its own processor and its whole forward pass, are the cosines times its temperature."""
    network: Any = transformers.CLIPModel.from_pretrained(clip)
    processor: Any = transformers.CLIPImageProcessor.from_pretrained(clip)
    tokenizer: Any = transformers.CLIPTokenizer.from_pretrained(clip)
    images = coarse(6, 40, 60)
    found = likeness.to_prompts(encoders.load(clip, encoders.CLIP), list(images), PROMPTS * 3)
    pixels = processor(images=[_pillow(one) for one in images], return_tensors="pt")["pixel_values"]
    words = tokenizer(PROMPTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = network(pixel_values=pixels, **words).logits_per_image / network.logit_scale.exp()
    assert found == pytest.approx([float(logits[number, number % 2]) for number in range(6)], abs=1e-5)
    assert len({round(one, 4) for one in found}) == 6


def test_clip_i_is_the_mean_over_all_pairs(clip: Path) -> None:
    network: Any = transformers.CLIPModel.from_pretrained(clip)
    processor: Any = transformers.CLIPImageProcessor.from_pretrained(clip)

    def vector(picture: Tensor) -> Tensor:
        pixels = processor(images=_pillow(picture), return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            found = network.visual_projection(network.vision_model(pixel_values=pixels).pooler_output)
        return found[0] / found.norm()

    images, references = [*coarse(2, 40, 60), *coarse(1, 32, 32, seed=8)], list(coarse(10, 50, 33, seed=9))
    done: list[int] = []
    found = likeness.to_references(encoders.load(clip, encoders.CLIP), images, references, on_group=done.append)
    expected = [sum(float(vector(one) @ vector(other)) for other in references) / 10 for one in images]
    assert found == pytest.approx(expected, abs=1e-5)
    assert done == [3, 11, 13]


@pytest.mark.parametrize("kind", ["vit", "dinov2"])
def test_dino_is_the_class_tokens_cosine(kind: str, tmp_path: Path) -> None:
    folder = dino_folder(tmp_path / "dino", kind)
    network: Any = transformers.AutoModel.from_pretrained(folder)
    processor: Any = transformers.ViTImageProcessor.from_pretrained(folder)

    def vector(picture: Tensor) -> Tensor:
        pixels = processor(images=_pillow(picture), return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            found = network(pixel_values=pixels).last_hidden_state[0, 0]
        return found / found.norm()

    images, references = list(coarse(2, 40, 60)), list(coarse(2, 50, 33, seed=9))
    found = likeness.to_references(encoders.load(folder, encoders.DINO), images, references, likeness.SAME)
    assert found == pytest.approx([float(vector(one) @ vector(other)) for one, other in zip(images, references, strict=True)], abs=1e-5)
    own = likeness.to_references(encoders.load(folder, encoders.DINO), images, images, likeness.SAME)
    assert own == pytest.approx([1.0, 1.0], abs=1e-6)


def test_a_single_file_is_comfyuis_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The vectors are Load CLIP Vision's and CLIP Vision Encode's."""
    import comfy.clip_vision

    vision = small_clip_vision()
    save_file({"some.weight": torch.zeros(1)}, tmp_path / "vision.safetensors")
    monkeypatch.setattr(comfy.clip_vision, "load_clipvision_from_sd", lambda *_: vision)
    encoder = encoders.load(tmp_path / "vision.safetensors", encoders.CLIP)
    images = coarse(2, 60, 60)
    expected = torch.cat([vision.encode_image(one[None])["image_embeds"] for one in images])
    torch.testing.assert_close(encoder.pictures(list(images)), expected / expected.norm(dim=-1, keepdim=True))
    with pytest.raises(ValueError, match=r"CLIP-T needs CLIP's folder with its words"):
        likeness.to_prompts(encoder, list(images), PROMPTS)
    with pytest.raises(ValueError, match=r"is a CLIP, and a DINO is needed"):
        encoders.load(tmp_path / "vision.safetensors", encoders.DINO)


def test_a_long_prompt_is_cut_to_what_clip_reads(clip: Path) -> None:
    encoder = encoders.load(clip, encoders.CLIP)
    long = encoder.texts(["abcdefghij " * 9])
    assert torch.isfinite(long).all()
    assert not torch.equal(long, encoder.texts(["abc"]))


def test_the_model_is_loaded_once_and_anew_when_its_file_changed(clip: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(clip, tmp_path / "clip"))
    first = encoders.load(folder, encoders.CLIP)
    assert encoders.load(folder, encoders.CLIP) is first
    state = load_file(folder / "model.safetensors")
    save_file({**state, "more": torch.zeros(3)}, folder / "model.safetensors", {"format": "pt"})
    assert encoders.load(folder, encoders.CLIP) is not first


def test_models_are_listed_and_found(folders: Path, clip: Path, dino: Path) -> None:
    models = folders / "models"
    shutil.copytree(clip, models / "clip_vision" / "openai" / "small")
    shutil.copytree(dino, models / "dino" / "s16")
    (models / "clip_vision" / "vit-l.safetensors").touch()
    (models / "dino" / "readme.txt").touch()
    assert encoders.listed(encoders.CLIP) == ["openai/small", "vit-l.safetensors"]
    assert encoders.listed(encoders.DINO) == ["s16", "vit-l.safetensors"]
    assert encoders.find(encoders.DINO, "s16") == models / "dino" / "s16"
    with pytest.raises(
        ValueError, match=r"no CLIP model 'b32' in .*clip_vision \(found there: openai/small, vit-l.safetensors\). Download"
    ):
        encoders.find(encoders.CLIP, "b32")
    for outside in ("../dino/s16", str(models / "dino" / "s16"), "openai/../../dino/s16"):
        with pytest.raises(ValueError, match="no CLIP model"):
            encoders.find(encoders.CLIP, outside)
    assert encoders.find(encoders.CLIP, "openai/../openai/small").samefile(models / "clip_vision" / "openai" / "small")


def test_folders_that_do_not_do_are_told(clip: Path, dino: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no CLIP: its config.json says model_type 'vit'"):
        encoders.load(dino, encoders.CLIP)
    cut = Path(shutil.copytree(clip, tmp_path / "cut"))
    (cut / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"is not complete: it needs preprocessor_config.json and model.safetensors"):
        encoders.load(cut, encoders.CLIP)
    part = Path(shutil.copytree(clip, tmp_path / "part"))
    state = load_file(part / "model.safetensors")
    del state["text_projection.weight"]
    save_file(state, part / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 weights, such as text_projection.weight"):
        encoders.load(part, encoders.CLIP)


def test_pairing_is_checked(clip: Path) -> None:
    encoder = encoders.load(clip, encoders.CLIP)
    with pytest.raises(ValueError, match=r"images holds 2 and references 3"):
        likeness.to_references(encoder, list(coarse(2)), list(coarse(3)), likeness.SAME)
    with pytest.raises(ValueError, match=r"pairing is 'none'"):
        likeness.to_references(encoder, list(coarse(1)), list(coarse(1)), "none")


@pytest.mark.parametrize("outside", ["white", "grey", "black"])
def test_a_colour_stands_around_the_foreground(outside: str) -> None:
    """Against a loop over pixels: the box of 4 x 2 in a square of 4."""
    picture = torch.rand(8, 12, 3)
    mask = torch.zeros(8, 12)
    mask[2:6, 3] = 1
    mask[2, 4] = 1
    fill = {"white": 1.0, "grey": 0.5, "black": 0.0}[outside]
    found = foreground.cut_out(picture, mask, outside)
    assert found.shape == (4, 4, 3)
    for row in range(4):
        for column in range(4):
            inside = 1 <= column < 3 and mask[2 + row, 3 + column - 1] == 1
            expected = picture[2 + row, 3 + column - 1] if inside else torch.full((3,), fill)
            assert torch.equal(found[row, column], expected)


def test_keep_cuts_a_square_of_the_picture_itself() -> None:
    picture = torch.rand(8, 12, 3)
    mask = torch.zeros(8, 12)
    mask[1:7, 0:2] = 1
    assert torch.equal(foreground.cut_out(picture, mask, "keep"), picture[1:7, 0:6])
    assert torch.equal(foreground.cut_out(picture, torch.ones(8, 12), "keep")[2:10], picture)


def test_a_mask_of_another_size_is_fitted() -> None:
    picture = torch.rand(16, 24, 3)
    mask = torch.zeros(8, 12)
    mask[2:6, 3:7] = 1
    assert torch.equal(foreground.cut_out(picture, mask), picture[4:12, 6:14])
    with pytest.raises(ValueError, match=r"the mask shows nothing"):
        foreground.cut_out(picture, mask * 0)
    with pytest.raises(ValueError, match=r"outside is 'pink'"):
        foreground.cut_out(picture, mask, "pink")


def test_what_comes_in_is_checked() -> None:
    with pytest.raises(ValueError, match=r"images holds no picture"):
        pictures.pictures_of([torch.rand(0, 8, 8, 3)], "images")
    with pytest.raises(ValueError, match=r"images has the shape \[8, 8, 3\]"):
        pictures.pictures_of([torch.rand(8, 8, 3)], "images")
    with pytest.raises(ValueError, match=r"picture 2 of images holds values that are no numbers"):
        pictures.pictures_of([torch.stack([torch.rand(8, 8, 3), torch.full((8, 8, 3), float("nan"))])], "images")
    with pytest.raises(ValueError, match=r"masks holds 2 masks and images 3 pictures"):
        pictures.masks_of([torch.rand(2, 8, 8)], 3, "masks", "images")
    with pytest.raises(ValueError, match=r"prompt holds 2 lines and images 3 pictures"):
        pictures.prompts_of("one\ntwo", 3)
    assert pictures.prompts_of(" one \n\n", 2) == ["one", "one"]
    grey, alpha = pictures.pictures_of([torch.full((1, 4, 4, 1), 1.5), torch.rand(1, 4, 4, 4)], "images")
    assert grey.shape == alpha.shape == (4, 4, 3)
    assert float(grey.max()) == 1.0


def test_the_report_has_a_line_for_each_score() -> None:
    text = report.table({"DINO": [0.5, 0.7], "PSNR": [float("inf"), 20.0]}, ["DINO: s16"])
    assert "| DINO | 0.6000 | 0.5000 | 0.7000 | 2 | higher |" in text
    assert "| PSNR | inf | 20.0000 | inf | 2 | higher |" in text
    assert text.endswith("\n\nDINO: s16")
    assert np.isnan(report.mean([]))
