"""MCGM's mask encoder, its file and its handles: against Pillow, sums written out, and ComfyUI's own embedding loader."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.sd1_clip
import comfy.sdxl_clip
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from maskprompt.conditioning import handles
from maskprompt.conditioning.handles import Handle, Mention
from maskprompt.models.mcgm import file as mask_encoder_file
from maskprompt.models.mcgm import mask_encoder
from maskprompt.models.mcgm.file import About
from maskprompt.models.mcgm.mask_encoder import MaskEncoder
from PIL import Image
from safetensors.torch import load_file, save_file

from ...support.mask_encoders import CAT, DOG, blobs
from ...support.pickles import Evil

ABOUT = About((CAT, DOG), "fox.safetensors", "SD 1.5")


def dense(encoder: MaskEncoder, mask: torch.Tensor, vector: torch.Tensor | None = None) -> np.ndarray[Any, Any]:
    """The token of one mask [H, W], through Pillow and a sum over the pixels that are white."""
    picture = Image.fromarray((mask.numpy() >= 0.5).astype(np.uint8) * 255).resize((64, 64), Image.Resampling.NEAREST)
    weight = encoder.linear.weight.detach().double().numpy()
    bias = encoder.linear.bias.detach().double().numpy()
    token = bias.copy()
    for y, x in zip(*np.nonzero(np.asarray(picture)), strict=True):
        token += weight[:, y * 64 + x]
    return token + (0 if vector is None else vector.detach().double().numpy())


@pytest.mark.parametrize("size", [(64, 64), (512, 512), (128, 96), (61, 83), (65, 63), (7, 300), (1, 1)])
@pytest.mark.parametrize("width", [128, 768])
def test_a_token_is_the_sum_of_the_weights_under_the_mask(size: tuple[int, int], width: int) -> None:
    encoder = mask_encoder.fresh(width, seed=3)
    masks = blobs(3, *size)
    masks[0, 0, 0] = 1
    tokens = encoder(masks)
    assert tokens.shape == (3, width)
    assert tokens.dtype == torch.float32
    for token, mask in zip(tokens, masks, strict=True):
        if mask.any():
            np.testing.assert_allclose(token.detach().numpy(), dense(encoder, mask), atol=1e-5, rtol=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 200), st.integers(1, 200), st.integers(0, 10**6))
def test_cells_are_pillows_for_any_size(height: int, width: int, seed: int) -> None:
    mask = (torch.rand(1, height, width, generator=torch.Generator().manual_seed(seed)) > 0.5).float()
    picture = Image.fromarray(mask[0].numpy().astype(np.uint8)).resize((64, 64), Image.Resampling.NEAREST)
    assert np.array_equal(mask_encoder.cells(mask)[0].numpy(), np.asarray(picture))


def test_soft_masks_count_from_a_half() -> None:
    grey = torch.tensor([0.0, 0.499, 0.5, 0.98]).repeat_interleave(16).expand(1, 64, 64)
    assert torch.equal(mask_encoder.cells(grey)[0, 0], torch.tensor([0.0, 0.0, 1.0, 1.0]).repeat_interleave(16))


def test_a_flipped_mask_is_read_flipped() -> None:
    """To one pixel of the picture; PyTorch's plain nearest is off by seven."""
    mask = torch.zeros(1, 512, 512)
    mask[:, 100:300, 40:200] = 1
    assert torch.equal(mask_encoder.cells(mask.flip(2)), mask_encoder.cells(mask).flip(2))


def test_masks_with_nothing_in_them_are_zero_tokens() -> None:
    masks = blobs(4, 512, 512)
    masks[1] = 0
    masks[2] = 0
    masks[2, 7, :] = 1  # a line that falls between the cells
    for subjects in (0, 4):
        tokens = mask_encoder.fresh(16, subjects)(masks)
        assert (tokens != 0).any(dim=1).tolist() == [True, False, False, True]
        assert torch.equal(tokens[1:3], torch.zeros(2, 16))
        assert torch.equal(mask_encoder.fresh(16, subjects)(masks[:0]), torch.zeros(0, 16))


def test_a_bound_encoder_adds_the_subjects_vector() -> None:
    encoder = mask_encoder.fresh(16, subjects=2)
    masks = blobs(3, 64, 64)
    plain = mask_encoder.fresh(16)
    assert (plain.mode, encoder.mode) == ("paper", "bound")
    assert torch.equal(encoder(masks[:2]), plain(masks[:2]))  # nothing learned yet
    assert encoder.subjects is not None
    encoder.subjects.data = torch.randn(2, 16)
    tokens = encoder(masks, [1, None, 0])
    for token, mask, vector in zip(tokens, masks, (encoder.subjects[1], None, encoder.subjects[0]), strict=True):
        np.testing.assert_allclose(token.detach().numpy(), dense(encoder, mask, vector), atol=1e-5, rtol=1e-5)
    assert torch.equal(encoder(masks[:2]), encoder(masks[:2], [0, 1]))
    assert torch.equal(plain(masks, [1, None, 0]), plain(masks))
    with pytest.raises(IndexError):
        encoder(masks)


def test_it_learns_from_the_masks_that_are_there() -> None:
    """The gradient is written out: of the sum of all tokens it is, for each weight, the number of masks that are white there."""
    encoder = mask_encoder.fresh(8, subjects=3)
    masks = blobs(3, 64, 64)
    masks[1] = 0
    encoder(masks).sum().backward()
    assert encoder.subjects is not None
    gradients = [encoder.linear.weight.grad, encoder.linear.bias.grad, encoder.subjects.grad]
    wanted = [masks.sum(0).flatten().expand(8, -1), torch.full((8,), 2.0), torch.tensor([1.0, 0.0, 1.0])[:, None].expand(3, 8)]
    for gradient, right in zip(gradients, wanted, strict=True):
        assert gradient is not None
        assert torch.equal(gradient, right)


def test_the_same_seed_is_the_same_encoder_and_disturbs_no_other() -> None:
    torch.manual_seed(5)
    before = torch.rand(1)
    torch.manual_seed(5)
    with torch.inference_mode():
        one = mask_encoder.fresh(32, seed=1)
    assert torch.equal(torch.rand(1), before)
    assert torch.equal(one.linear.weight, mask_encoder.fresh(32, seed=1).linear.weight)
    assert not torch.equal(one.linear.weight, mask_encoder.fresh(32, seed=2).linear.weight)
    assert not any(parameter.is_inference() for parameter in one.parameters())
    assert one.linear.weight.std() < 0.02  # tokens of an untrained encoder do not drown the words


@pytest.mark.parametrize("subjects", [0, 2])
@pytest.mark.parametrize("width", [128, 2048])
def test_save_then_load_is_equal(tmp_path: Path, width: int, subjects: int) -> None:
    encoder = mask_encoder.fresh(width, subjects, seed=4)
    path = str(tmp_path / "fox.safetensors")
    if encoder.subjects is not None:
        encoder.subjects.data = torch.randn(subjects, width)
    about = replace(ABOUT, handles=(Handle("a", "Füchsin"), DOG))
    mask_encoder_file.save(encoder, about, path)
    loaded = mask_encoder_file.load(path)
    assert (loaded.about, loaded.name, loaded.network.mode) == (about, "fox.safetensors", encoder.mode)
    assert mask_encoder_file.read_about(path) == about
    masks = blobs(2, 61, 83)
    assert torch.equal(loaded.network(masks), encoder(masks))
    assert not any(parameter.requires_grad for parameter in loaded.network.parameters())
    assert not list(tmp_path.glob("*.unfinished"))
    mask_encoder_file.save(encoder.half(), about, path)
    assert load_file(path)["linear.weight"].dtype == torch.float16
    assert mask_encoder_file.load(path).network.linear.weight.dtype == torch.float32


def broken(change: Callable[[dict[str, torch.Tensor], dict[str, str]], Any]) -> Callable[[Path], Path]:
    """Writes a file that `change` made wrong."""

    def write(folder: Path) -> Path:
        encoder = mask_encoder.fresh(16, 2)
        weights = dict(encoder.state_dict())
        metadata = mask_encoder_file.metadata_of(encoder, ABOUT)
        change(weights, metadata)
        save_file(weights, folder / "broken.safetensors", metadata=metadata)
        return folder / "broken.safetensors"

    return write


def truncated(folder: Path) -> Path:
    path = broken(lambda _w, _m: None)(folder)
    path.write_bytes(path.read_bytes()[:-100])
    return path


def pickled(folder: Path) -> Path:
    (folder / "evil.pt").write_bytes(pickle.dumps(Evil(folder / "ran")))
    return folder / "evil.pt"


def a_lora(folder: Path) -> Path:
    save_file({"diffusion_model.x.lora_up.weight": torch.zeros(2, 2)}, folder / "lora.safetensors")
    return folder / "lora.safetensors"


WRONG: list[tuple[Callable[[Path], Path], str]] = [
    (truncated, "damaged or not complete"),
    (pickled, r"'evil.pt' was refused: mask encoders are .safetensors"),
    (a_lora, "no mask encoder but another kind of file .* A LoRA goes into models/loras"),
    (lambda folder: folder / "none.safetensors", "is missing"),
    (broken(lambda _w, m: m.update(format="maskprompt-meca")), r"another kind of file \('maskprompt-meca'\)"),
    (broken(lambda _w, m: m.update(format_version="2")), "of format 2; this pack reads format 1. Update"),
    (broken(lambda _w, m: m.update(handles="[{")), "list of handles cannot be read"),
    (broken(lambda _w, m: m.update(handles="[7]")), "list of handles cannot be read"),
    (broken(lambda _w, m: m.update(handles="[]")), "names no handles"),
    (broken(lambda _w, m: m.update(handles=json.dumps([{"name": "../x", "word": "", "fingerprint": ""}]))), "cannot be a handle's name"),
    (broken(lambda _w, m: m.update(width="many")), "its metadata cannot be read"),
    (broken(lambda _w, m: m.update(mode="sideways")), "its metadata cannot be read"),
    (broken(lambda _w, m: m.update(width="768")), r"linear.bias is \[16\], but .* width 768 \(SD 1.5\) has \[768\]"),
    (broken(lambda _w, m: m.update(mode="paper")), r"subjects is \[2, 16\], but .* has no such weights"),
    (broken(lambda w, _m: w.pop("linear.bias")), "linear.bias is missing"),
    (broken(lambda w, _m: w.update(subjects=torch.zeros(3, 16))), r"subjects is \[3, 16\]"),
    (broken(lambda w, _m: w["linear.bias"].fill_(float("nan"))), "holds numbers that are none"),
]


@pytest.mark.parametrize(("write", "message"), WRONG)
def test_what_is_wrong_with_a_file_is_said(tmp_path: Path, write: Callable[[Path], Path], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mask_encoder_file.load(str(write(tmp_path)))
    if write is truncated:
        with pytest.raises(ValueError, match=message):
            mask_encoder_file.read_about(str(write(tmp_path)))
    assert not (tmp_path / "ran").exists()


def test_nothing_wrong_is_saved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="for 3 subjects, but 2 handles"):
        mask_encoder_file.save(mask_encoder.fresh(8, 3), ABOUT, str(tmp_path / "a.safetensors"))
    for name in ("fox cat", "fox,cat", "<fox>", "a/b", "..", "fox.", "fox.pt", "", "(fox:1.2)"):
        with pytest.raises(ValueError, match="cannot be a handle's name"):
            mask_encoder_file.save(mask_encoder.fresh(8), About((Handle(name, "fox"),)), str(tmp_path / "a.safetensors"))
        with pytest.raises(ValueError, match="cannot be a handle's name"):
            handles.save(str(tmp_path), name, {"l": torch.zeros(8)}, "fox")
    assert not list(tmp_path.iterdir())


class Stock:
    """A CLIP as far as the tokens: ComfyUI's own tokenizers, which read embeddings."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def tokenize(self, text: str) -> Any:
        return self.tokenizer.tokenize_with_weights(text)


@pytest.mark.parametrize("vectors", [1, 3])
def test_comfyui_reads_the_handles(tmp_path: Path, vectors: int) -> None:
    """For SD 1.5's one text encoder and SDXL's two, in the middle of a prompt, and with the trained numbers."""
    one = {"l": torch.randn(vectors, 768)}
    both = {"l": torch.randn(vectors, 768), "g": torch.randn(vectors, 1280)}
    handles.save(str(tmp_path), "sd-fox", one, "fox")
    handles.save(str(tmp_path), "xl-fox", both, "fox")
    for name, trained, stock in (
        ("sd-fox", one, Stock(comfy.sd1_clip.SD1Tokenizer(embedding_directory=[str(tmp_path)]))),
        ("xl-fox", both, Stock(comfy.sdxl_clip.SDXLTokenizer(embedding_directory=[str(tmp_path)]))),
    ):
        found = handles.vectors_of(stock, name)
        assert found.keys() == trained.keys()
        assert all(torch.equal(found[letter], trained[letter]) for letter in trained)
        assert handles.fingerprint(found) == handles.fingerprint(trained)
        (row,) = stock.tokenize(f"a photo of embedding:{name}, at sea")["l"]
        assert [index for index, (token, _) in enumerate(row) if isinstance(token, torch.Tensor)] == list(range(4, 4 + vectors))
        assert handles.vectors_of(stock, "no-such-file") == {}
    path = handles.save(str(tmp_path), "sd-fox", {"l": one["l"][0].half()}, "fox")
    assert torch.equal(load_file(path)["emb_params"], one["l"][:1].half().float())


def test_a_fingerprint_tells_vectors_apart() -> None:
    vectors = {"l": torch.randn(1, 768), "g": torch.randn(1, 1280)}
    own = handles.fingerprint(vectors)
    assert handles.fingerprint({"g": vectors["g"], "l": vectors["l"].half()}) == own
    assert handles.fingerprint({**vectors, "l": vectors["l"] + 0.01}) != own
    assert handles.fingerprint({"l": vectors["l"]}) != own
    assert handles.fingerprint({"l": torch.zeros(2, 4)}) != handles.fingerprint({"l": torch.zeros(4, 2)})


@pytest.mark.parametrize(
    ("prompt", "places"),
    [
        ("a photo of embedding:fox-cat and embedding:fox-dog", [(0, True), (1, True)]),
        ("embedding:fox-dog, embedding:fox-cat, at sea", [(1, True), (0, True)]),
        ("(embedding:fox-dog:1.2) with ((embedding:fox-cat))", [(1, True), (0, True)]),
        ("embedding:fox-cat and embedding:fox-cat", [(0, True), (0, True)]),
        ("embedding:pets/fox-cat.safetensors on\nembedding:fox-dog.pt", [(0, True), (1, True)]),
        ("a striped dog and a Cat, cats, a cat-tree, concat", [(1, False), (0, False)]),
        ("embedding:fox-cat, a black cat and a striped dog", [(0, True), (1, False)]),  # her handle names the cat, so the word does not
        ("embedding:fox-cat-2 and embedding:Fox-Cat", []),
        ("x,embedding:fox-cat embedding:fox-dog.", []),  # ComfyUI reads neither
        ("", []),
    ],
)
def test_a_prompt_names_its_subjects(prompt: str, places: list[tuple[int, bool]]) -> None:
    assert handles.mentions(prompt, ABOUT.handles) == [Mention(*place) for place in places]


def test_handles_are_found_where_comfyui_finds_them(tmp_path: Path) -> None:
    """For every prompt of the test before that has them: as many, in this order, in ComfyUI's tokens."""
    handles.save(str(tmp_path), "fox-cat", {"l": torch.full((1, 768), 0.0)}, "cat")
    handles.save(str(tmp_path), "fox-dog", {"l": torch.full((1, 768), 1.0)}, "dog")
    stock = Stock(comfy.sd1_clip.SD1Tokenizer(embedding_directory=[str(tmp_path)]))
    for prompt in (
        "a photo of embedding:fox-cat and embedding:fox-dog", "embedding:fox-dog, embedding:fox-cat, at sea",
        "(embedding:fox-dog:1.2) with ((embedding:fox-cat))", "embedding:fox-dog\nembedding:fox-cat.safetensors, embedding:fox-cat",
        "(a photo of embedding:fox-dog at sea:0.8)embedding:fox-cat<lora:x>", "x,embedding:fox-cat embedding:fox-dog.",
        "embedding:fox-cat, embedding:fox-cat,, (embedding:fox-dog)",
    ):  # fmt: skip
        (row,) = stock.tokenize(prompt)["l"]
        wanted = [int(token[0]) for token, _ in row if isinstance(token, torch.Tensor)]
        assert [mention.index for mention in handles.mentions(prompt, (CAT, DOG)) if mention.by_handle] == wanted, prompt
