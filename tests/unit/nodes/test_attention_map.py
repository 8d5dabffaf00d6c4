"""Attention Map: words at the tokenizer's own places, maps as the dense softmax has them, on the tiny model and its CLIP."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.sample
import comfy.samplers
import comfy.sdxl_clip
import folder_paths
import pytest
import torch
from comfy.ldm.modules.attention import CrossAttention
from hypothesis import given, settings
from hypothesis import strategies as st
from maskprompt.attention import layers
from maskprompt.conditioning import mask_tokens, prompt_words
from maskprompt.images import heat_map
from maskprompt.nodes.attention_map import AUTO, NODES, AttentionMap
from maskprompt.nodes.looked_at import noise_level
from safetensors.torch import save_file
from torch import Tensor

from demo.painter import Painter

from ...support.attention import split
from ...support.learners import fingerprint, unchanged
from ...support.models import random_model

PROMPT = "a red ball on grass, and a blue ball in the sky"


@pytest.fixture(autouse=True)
def _previews(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Painter:
    """The tiny model of demo/, its CLIP with two embeddings: `one` of a vector, `three` of three, `other` of another model's width."""
    painter = Painter()
    folder = tmp_path_factory.mktemp("embeddings")
    generator = torch.Generator().manual_seed(0)
    for name, shape in (("one", (1, 128)), ("three", (3, 128)), ("other", (2, 768))):
        save_file({"emb_params": torch.randn(shape, generator=generator)}, folder / f"{name}.safetensors")
    painter.clip.tokenizer.clip_l.embedding_directory = [str(folder)]
    return painter


def encoded(tiny: Painter, text: str, **options: Any) -> list[list[Any]]:
    return [[entry[0], {**entry[1], **options}] for entry in tiny.clip.encode_from_tokens_scheduled(tiny.clip.tokenize(text))]


def found(tiny: Painter, text: str, word: str) -> tuple[int, ...]:
    return prompt_words.find(tiny.clip, prompt_words.read(tiny.clip, text), word)


def tokens(tiny: Painter, text: str) -> list[str]:
    """By the tokenizer itself, without ComfyUI's weights, chunks and embeddings."""
    return tiny.clip.tokenizer.clip_l.tokenizer.tokenize(text)


@pytest.mark.parametrize("word", ["ball", "red", "grass", "sky", "Blue", ",", "red ball", "the sky", "a", "ball on  grass"])
def test_a_word_stands_where_the_tokenizer_puts_it(tiny: Painter, word: str) -> None:
    text = tokens(tiny, PROMPT)
    sought = tokens(tiny, word)
    starts = [start for start in range(len(text)) if text[start : start + len(sought)] == sought]
    assert starts
    wanted = tuple(1 + start + step for start in starts for step in range(len(sought)))  # 1: the prompt's beginning
    assert found(tiny, PROMPT, word) == wanted


@given(
    count=st.integers(0, 160), before=st.sampled_from(["a", "polychromatic", "red,"]), word=st.sampled_from(["ball", "kaleidoscopically"])
)
@settings(max_examples=30, deadline=None)
def test_a_word_is_found_beyond_token_77(tiny: Painter, count: int, before: str, word: str) -> None:
    """The encoder sees chunks of 77, each with a beginning and an end of its own; the columns' token numbers are the word's."""
    text = " ".join([*[before] * count, word])
    flat = [entry[0] for row in tiny.clip.tokenize(text)["l"] for entry in row]
    ids = tiny.clip.tokenizer.clip_l.tokenizer.convert_tokens_to_ids(tokens(tiny, word))
    columns = found(tiny, text, word)
    assert [flat[column] for column in columns] == ids
    assert len(flat) - flat[::-1].index(ids[-1]) - 1 == columns[-1]
    assert prompt_words.read(tiny.clip, text).length == len(flat)


@pytest.mark.parametrize("text", ["a (red ball:1.3) on grass", "a red (ball)", "a ((red) ball:0.5), (grass)", "a red \\(ball\\)"])
def test_weights_move_nothing(tiny: Painter, text: str) -> None:
    flat = [entry[0] for row in tiny.clip.tokenize(text)["l"] for entry in row]
    (ball,) = tiny.clip.tokenizer.clip_l.tokenizer.convert_tokens_to_ids(["ball</w>"])
    assert found(tiny, text, "ball") == (flat.index(ball),)


def test_a_word_of_several_tokens_and_parts_of_words(tiny: Painter) -> None:
    pieces = tokens(tiny, "kaleidoscopically")
    assert len(pieces) > 1
    assert found(tiny, "a kaleidoscopically red ball", "kaleidoscopically") == tuple(range(2, 2 + len(pieces)))
    end = pieces[-1].removesuffix("</w>")
    assert tokens(tiny, end) == pieces[-1:]
    for part in (end, "kaleidoscopic"):
        with pytest.raises(ValueError, match=f"'{part}' is not in `text`. `text` has the words: a, kaleidoscopically, red, ball"):
            found(tiny, "a kaleidoscopically red ball", part)


def test_embeddings_take_as_many_columns_as_they_have_vectors(tiny: Painter) -> None:
    text = "a embedding:three ball, (embedding:one:1.2) and embedding:three"
    assert found(tiny, text, "embedding:three") == (2, 3, 4, 9, 10, 11)
    assert found(tiny, text, "ball") == (5,)
    (one,) = found(tiny, text, "embedding:one")
    vector = [entry[0] for entry in tiny.clip.tokenize(text)["l"][0]][one]
    assert torch.equal(vector, tiny.clip.tokenize("embedding:one")["l"][0][1][0])
    with pytest.raises(ValueError, match=r"no embedding of that name .*'embedding:absent'\. `text` has the words: .*embedding:three"):
        found(tiny, text, "embedding:absent")


def test_an_embedding_of_another_model_takes_no_column(tiny: Painter) -> None:
    """The text encoder leaves it out: what follows moves up, as its output shows."""
    text = "a embedding:other ball"
    assert found(tiny, text, "ball") == (2,)
    there, without = (encoded(tiny, words)[0][0] for words in (text, "a ball"))
    torch.testing.assert_close(there[:, 2], without[:, 2])


def test_sdxls_two_tokenizers(tmp_path: Path) -> None:
    """Both put a word into the same column, also behind an embedding for both; one for a single encoder shifts the other's words."""
    for name, widths in (("pair", {"clip_l": 768, "clip_g": 1280}), ("single", {"emb_params": 768})):
        save_file({key: torch.rand(2, width) for key, width in widths.items()}, tmp_path / f"{name}.safetensors")
    clip: Any = SimpleNamespace(tokenizer=comfy.sdxl_clip.SDXLTokenizer(embedding_directory=[str(tmp_path)]))
    clip.tokenize = clip.tokenizer.tokenize_with_weights
    encoders = {
        name: SimpleNamespace(transformer=SimpleNamespace(get_input_embeddings=lambda width=width: torch.nn.Embedding(1, width)))
        for name, width in (("clip_l", 768), ("clip_g", 1280))
    }
    clip.cond_stage_model = SimpleNamespace(named_children=encoders.items)

    def columns(text: str, word: str) -> tuple[int, ...]:
        return prompt_words.find(clip, prompt_words.read(clip, text), word)

    assert columns("a red ball", "ball") == (3,)
    assert columns("ball " * 80 + "star", "star") == (77 + 6,)
    assert columns("a embedding:pair ball", "embedding:pair") == (2, 3)
    assert columns("a embedding:pair ball", "ball") == (4,)
    assert columns("a embedding:single ball", "embedding:single") == (2, 3)
    assert columns("a embedding:single ball", "ball") == (2, 4)


def test_mask_tokens_by_number_in_every_copy() -> None:
    """Two nodes, of two masks and of one, on a prompt of 154 tokens: each mask stands there twice."""
    conditioning: Any = [[torch.zeros(1, 154, 4), {}]]
    one, two, three = (torch.full((1, 4), value) for value in (1.0, 2.0, 3.0))
    conditioning = mask_tokens.with_tokens(conditioning, lambda _options: torch.cat([one, two]), 77)
    conditioning = mask_tokens.with_tokens(conditioning, lambda _options: three, 77)
    text, options = conditioning[0]
    for number in (1, 2, 3):
        columns = prompt_words.find_mask(options, number)
        assert columns == tuple((text[0, :, 0] == number).nonzero().flatten().tolist())
        assert len(columns) == 2
    for number in (0, 4):
        with pytest.raises(ValueError, match="has 3 mask tokens"):
            prompt_words.find_mask(options, number)
    with pytest.raises(ValueError, match=r"has no mask tokens\. Wire"):
        prompt_words.find_mask({}, 1)


def shown(tiny: Any, words: str, text: str = PROMPT, **more: Any) -> tuple[Tensor, Tensor]:
    """The node's maps and image."""
    given = {
        "model": tiny.model, "clip": tiny.clip, "text": text, "words": words, "at_percent": 0.4, "seed": 3, "scale": "share of attention",
        "latent": {"samples": torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))},
    } | more  # fmt: skip
    with torch.inference_mode():
        maps, image, _ = AttentionMap.execute(**given).args
    return maps, image


@pytest.mark.parametrize("choice", [AUTO, "all", "list"])
def test_maps_are_the_dense_softmax_of_the_layers_q_and_k(tiny: Painter, monkeypatch: pytest.MonkeyPatch, choice: str) -> None:
    """Written out in ComfyUI's own layers, with the very inputs that the node's step gives to the UNet."""
    where = {AUTO: "input 1, input 2, output 9, output 10, output 11", "all": None, "list": "middle 0, output 3"}[choice]
    maps, image = shown(tiny, "red ball, grass", layers=choice, layer_list="middle 0, output 3")
    assert maps.shape == (2, 128, 128)
    assert image.shape == (2, 128, 128, 3)
    unet = tiny.model.get_model_object("diffusion_model")
    known = layers.layers_of(unet)
    chosen = known if where is None else sorted(layers.parse(where, known), key=known.index)
    seen: list[Tensor] = []
    forward = CrossAttention.forward

    def written_out(self: Any, x: Tensor, context: Any = None, *args: Any, **kwargs: Any) -> Tensor:
        if context is not None:
            scores = split(self.to_q(x), self.heads) @ split(self.to_k(context), self.heads).mT
            seen.append((scores / self.dim_head**0.5).softmax(-1).mean(1))
        return forward(self, x, context, *args, **kwargs)

    monkeypatch.setattr(CrossAttention, "forward", written_out)
    positive = encoded(tiny, PROMPT)
    latent = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    noise = comfy.sample.prepare_noise(latent, 3)
    sigmas = torch.tensor([float(tiny.model.get_model_object("model_sampling").percent_to_sigma(0.4)), 0.0])
    euler = comfy.samplers.sampler_object("euler")
    comfy.sample.sample_custom(tiny.model, noise, 1.0, euler, sigmas, positive, positive, latent, disable_pbar=True)
    assert len(seen) == len(known)
    text = tokens(tiny, PROMPT)
    groups = [[1 + text.index("red</w>"), 2 + text.index("red</w>")], [1 + text.index("grass</w>")]]
    assert text[groups[0][1] - 1] == "ball</w>"
    wanted = torch.zeros(2, 16, 16)
    for layer in chosen:
        weights = seen[known.index(layer)][0]
        side = round(len(weights) ** 0.5)
        cells = torch.stack([weights[:, group].sum(1).view(side, side) for group in groups])
        wanted += torch.nn.functional.interpolate(cells[None], size=(16, 16), mode="bilinear", align_corners=False)[0] / len(chosen)
    whole = torch.nn.functional.interpolate(wanted[None], size=(128, 128), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(maps, whole, atol=1e-5, rtol=1e-4)


def test_the_trained_model_looks_at_the_object_for_its_word(tiny: Painter) -> None:
    """A painted red ball on the left, a blue star on the right: each word's map is higher on its own side."""
    picture = torch.full((1, 128, 128, 3), 0.5)
    y, x = torch.meshgrid(torch.arange(128), torch.arange(128), indexing="ij")
    picture[0, (y - 64) ** 2 + (x - 34) ** 2 < 24**2] = torch.tensor([0.85, 0.1, 0.1])
    picture[0, ((y - 64).abs() + (x - 94).abs()) < 24] = torch.tensor([0.1, 0.2, 0.85])
    maps, _ = shown(tiny, "red ball, blue diamond", "a red ball and a blue diamond on grass", latent=None, image=picture, vae=tiny.vae)
    left, right = maps[:, 40:88, 10:58].mean((1, 2)), maps[:, 40:88, 70:118].mean((1, 2))
    assert left[0] > right[0]
    assert right[1] > left[1]


def test_scales() -> None:
    maps = torch.rand(2, 3, 4, 4) * 0.1
    maps[1, 2] = 0
    one, all_, share = (heat_map.scaled(maps, scale) for scale in ("each word", "all words alike", "share of attention"))
    assert torch.equal(share, maps)
    torch.testing.assert_close(one.amax((2, 3)), torch.tensor([[1.0, 1, 1], [1, 1, 0]]))
    torch.testing.assert_close(all_.amax((1, 2, 3)), torch.ones(2))
    torch.testing.assert_close(all_[0] / all_[0, 0, 0, 0], maps[0] / maps[0, 0, 0, 0])


def test_positive_is_run_and_equals_the_text_encoded_here(tiny: Painter) -> None:
    wanted, _ = shown(tiny, "ball, sky")
    with_it, _ = shown(tiny, "ball, sky", positive=encoded(tiny, PROMPT))
    assert torch.equal(with_it, wanted)
    again, _ = shown(tiny, "ball, sky")
    assert torch.equal(again, wanted)
    assert not torch.equal(shown(tiny, "ball, sky", seed=4)[0], wanted)
    assert not torch.equal(shown(tiny, "ball, sky", at_percent=0.8)[0], wanted)


def test_of_a_combined_prompt_the_texts_own_part_is_read(tiny: Painter, caplog: pytest.LogCaptureFixture) -> None:
    wanted, _ = shown(tiny, "ball")
    both = [*encoded(tiny, "something else"), *encoded(tiny, PROMPT)]
    with caplog.at_level(logging.WARNING):
        assert torch.equal(shown(tiny, "ball", positive=both)[0], wanted)
        assert not caplog.records
        shown(tiny, "ball", positive=encoded(tiny, "a green star"))
    assert "is not what this CLIP makes of `text`" in caplog.text


def test_a_mask_token_is_seen_and_moves_no_word(tiny: Painter) -> None:
    token = torch.randn(1, 128, generator=torch.Generator().manual_seed(4))
    positive = mask_tokens.with_tokens(encoded(tiny, PROMPT), lambda _options: token, 77)
    maps, _ = shown(tiny, "mask:1, ball", positive=positive)
    assert maps.shape == (2, 128, 128)
    assert (maps[0] > 0).all()
    alone, _ = shown(tiny, "ball")
    assert not torch.equal(maps[1:], alone)  # the token takes its share


def test_an_area_is_read_where_it_is(tiny: Painter) -> None:
    maps, _ = shown(tiny, "ball", positive=encoded(tiny, PROMPT, area=(8, 16, 0, 0), strength=1.0),
                    latent={"samples": torch.zeros(1, 4, 16, 16)})  # fmt: skip
    assert (maps[0, :56] > 0).all()
    assert (maps[0, 72:] == 0).all()


@pytest.mark.parametrize("size", [(16, 16), (13, 9), (9, 22)])
@pytest.mark.parametrize("images", [1, 2])
def test_batches_and_odd_sizes(tiny: Painter, size: tuple[int, int], images: int) -> None:
    """Words first, then pictures; each picture's maps are those that it has alone."""
    latents = torch.randn(images, 4, *size, generator=torch.Generator().manual_seed(1))
    maps, image = shown(tiny, "ball, sky", latent={"samples": latents, "batch_index": [5] * images})
    assert maps.shape == (2 * images, size[0] * 8, size[1] * 8)
    assert image.shape == (*maps.shape, 3)
    for number in range(images):
        alone, _ = shown(tiny, "ball, sky", latent={"samples": latents[number : number + 1], "batch_index": [5]})
        torch.testing.assert_close(maps[number::images], alone, atol=1e-6, rtol=1e-4)


def test_an_ordinary_model_of_four_channels(tiny: Painter) -> None:
    """And an empty latent at the very beginning."""
    ordinary = random_model(in_channels=4)
    maps, _ = shown(tiny, "ball", model=ordinary, latent={"samples": torch.zeros(1, 4, 16, 16)}, at_percent=0.0)
    assert bool(torch.isfinite(maps).all())
    assert maps.max() > 0


def test_noise_levels_stay_within_the_models(tiny: Painter) -> None:
    sampling = tiny.model.get_model_object("model_sampling")
    low, high = float(sampling.sigma_min), float(sampling.sigma_max)
    levels = [noise_level(tiny.model, percent, 0.0) for percent in (0.0, 0.3, 0.7, 1.0)]
    assert levels == sorted(levels, reverse=True)
    assert levels[0] == high
    assert levels[-1] == low
    assert [noise_level(tiny.model, 0.3, sigma) for sigma in (1e-6, 2.5, 1e4)] == [low, 2.5, high]


def test_guidance_that_runs_the_prompt_again_is_not_looked_at(tiny: Painter) -> None:
    """Perturbed Attention Guidance runs the positive prompt once more, its attention damaged on purpose."""
    from comfy_extras.nodes_pag import PerturbedAttentionGuidance

    guided = SimpleNamespace(model=PerturbedAttentionGuidance.execute(tiny.model, 3.0).args[0], clip=tiny.clip)
    assert guided.model.model_options["sampler_post_cfg_function"]
    for seen, alone in zip(shown(guided, "ball"), shown(tiny, "ball"), strict=True):
        assert torch.equal(seen, alone)
    assert guided.model.model_options["sampler_post_cfg_function"]


def test_the_model_is_as_it_was(tiny: Painter) -> None:
    before = fingerprint(tiny.model)
    shown(tiny, "ball")
    with pytest.raises(ValueError, match="is not in `text`"):
        shown(tiny, "car")
    assert unchanged(tiny.model, before)


def test_the_overlay_shows_the_picture_and_the_heat(tiny: Painter) -> None:
    picture = torch.zeros(1, 128, 128, 3)
    picture[:, :, 64:] = 1
    _, image = shown(tiny, "ball", image=picture)
    assert image[0, 40:, 64:].mean() > image[0, 40:, :64].mean() + 0.1
    heat = torch.zeros(64, 64)
    heat[32:, 32:] = 1
    drawn = heat_map.overlay(torch.full((64, 64, 3), 0.5), heat, "ball")
    assert drawn[40:, 40:].mean() > drawn[40:, :24].mean() + 0.3
    assert not torch.equal(drawn[:10], heat_map.overlay(torch.full((64, 64, 3), 0.5), heat, "star")[:10])
    whole = heat_map.coloured(torch.tensor([0.0, 0.5, 1.0]))
    torch.testing.assert_close(whole, heat_map.COLOURS[[0, 2, 4]])


def test_the_preview_is_saved(tiny: Painter, tmp_path: Path) -> None:
    output = AttentionMap.execute(
        tiny.model, tiny.clip, PROMPT, "ball, sky", 0.4, 0, "each word", latent={"samples": torch.zeros(1, 4, 8, 8)}
    )
    saved: Any = output.ui
    assert len(saved.as_dict()["images"]) == 2
    assert len(list(tmp_path.iterdir())) == 2
    assert all(node.GET_SCHEMA().is_output_node for node in NODES)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"words": "car"}, r"'car' is not in `text`\. `text` has the words: a, red, ball, on, grass, ,, and, blue, in, the, sky"),
        ({"words": " , "}, r"`words` is empty: .*`text` has the words: a, red"),
        ({"words": "ball", "text": ""}, r"`text` has no words"),
        ({"words": "mask:1"}, r"'mask:1': the positive prompt has no mask tokens"),
        ({"clip": None}, r"no text encoder was given"),
        ({"latent": None}, r"no picture to look at: wire `latent`, or `image` together with `vae`"),
        ({"latent": None, "image": torch.zeros(1, 64, 64, 3)}, r"no picture to look at"),
        ({"latent": {"samples": torch.ones(1, 16, 8, 8)}}, r"belongs to another model: it has 16 channels, this model's have 4"),
        (
            {"latent": {"samples": torch.ones(1, 4, 2, 8, 8)}},
            r"has 3 dimensions .* \[1, 4, 2, 8, 8\], and this model takes 2",
        ),
        ({"layers": "list", "layer_list": "output 99"}, r"no attention layer 'output 99'"),
        ({"text": "ball " * 100}, r"is 154 tokens long for the text encoder, but `positive` holds 77"),
    ],
)
def test_bad_input_is_refused_in_words(tiny: Painter, given: dict[str, Any], message: str) -> None:
    more: dict[str, Any] = {"words": "ball", "positive": encoded(tiny, PROMPT), **given}
    with pytest.raises(ValueError, match=message):
        shown(tiny, **more)


def test_a_picture_smaller_than_a_cell_is_refused_in_words(tiny: Painter) -> None:
    with pytest.raises(ValueError, match="the picture is 9x1 pixels, and the VAE takes no side under 8"):
        shown(tiny, "ball", latent=None, image=torch.zeros(1, 1, 9, 3), vae=tiny.vae)


def test_a_prompt_that_does_not_act_then_is_refused_in_words(tiny: Painter) -> None:
    with pytest.raises(ValueError, match="does not act at this point of the sampling"):
        shown(tiny, "ball", positive=encoded(tiny, PROMPT, start_percent=0.8, end_percent=1.0), at_percent=0.2)


def test_a_model_that_is_not_known_is_refused_in_words(tiny: Painter) -> None:
    class Unknown:
        def get_model_object(self, name: str) -> torch.nn.Module:
            return torch.nn.Linear(2, 2)

    with pytest.raises(ValueError, match="neither a UNet nor a transformer that MaskPrompt can read"):
        shown(tiny, "ball", model=Unknown())
