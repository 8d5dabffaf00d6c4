"""Attention Map on transformers as a node, and its masks: words found by the CLIP object, maps as a probe of those columns reads them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import folder_paths
import pytest
import torch
from maskprompt.attention import chain
from maskprompt.attention.joint_probe import JointProbe
from maskprompt.attention.maps import Readings
from maskprompt.conditioning import prompt_words
from maskprompt.images import heat_map
from maskprompt.nodes.attention_map import AttentionMap
from maskprompt.nodes.looked_at import draw
from scipy import ndimage
from torch import Tensor

from demo.painter import Painter

from ...support.encoders import RandomClip
from ...support.tiny_transformers import TINIES, Tiny

PROMPT = "a red ball on grass, and a blue ball in the sky"
ARGUMENTS: dict[str, Any] = {"at_percent": 0.4, "seed": 3, "scale": "share of attention"}

CLIPS: dict[str, tuple[Any, ...]] = {
    "Flux.1": ("flux", "FluxTokenizer", "t5xxl", 40),
    "Flux.2": ("flux", "KleinTokenizer", "qwen3_4b", 40),
    "Chroma": ("pixart_t5", "PixArtTokenizer", "t5xxl", 40),
    "Qwen-Image": ("qwen_image", "QwenImageTokenizer", "qwen25_7b", 40, 34),
    "Z-Image": ("z_image", "ZImageTokenizer", "qwen3_4b", 40),
    "Krea 2": ("krea2", "Krea2Tokenizer", "qwen3vl_4b", 96, 34),
}
"""Of each family ComfyUI's tokenizer, its encoder, the width of its words at toy size, and the tokens of its template that are cut."""


@pytest.fixture(autouse=True)
def _previews(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path))


def family(name: str) -> Tiny:
    return next(tiny for tiny in TINIES if tiny.name == name)


def positive(tiny: Tiny, clip: RandomClip, text: str = PROMPT, **options: Any) -> list[list[Any]]:
    return clip.encode_from_tokens_scheduled(clip.tokenize(text), **tiny.options, **options)


def shown(tiny: Tiny, clip: RandomClip, words: str, **more: Any) -> tuple[Tensor, Tensor, Tensor]:
    latent = {"samples": tiny.latent((8, 10), frames=tiny.frames)}
    given = {**ARGUMENTS, "latent": latent, "positive": positive(tiny, clip), **more}
    with torch.inference_mode():
        return AttentionMap.execute(model=tiny.model(), clip=clip, text=PROMPT, words=words, **given).args


def read_by_hand(tiny: Tiny, entries: list[list[Any]], groups: tuple[tuple[int, ...], ...], tokens: int, seed: int = 3) -> Tensor:
    """The maps of columns that the test names, on the latent's pixels."""
    import comfy.sample
    import comfy.samplers

    model, readings = tiny.model(), Readings()
    probed = chain.install(model, JointProbe((groups,), tokens, readings))
    latent = tiny.latent((8, 10), frames=tiny.frames)
    sigmas = torch.tensor([float(model.get_model_object("model_sampling").percent_to_sigma(0.4)), 0.0])
    noise = comfy.sample.prepare_noise(latent, seed)
    euler = comfy.samplers.sampler_object("euler")
    with torch.inference_mode():
        comfy.sample.sample_custom(probed, noise, 1.0, euler, sigmas, entries, entries, latent, disable_pbar=True)
    return readings.on_latent()


@pytest.mark.parametrize("name", CLIPS)
def test_the_nodes_maps_are_those_of_the_words_own_tokens(name: str) -> None:
    tiny, clip = family(name), RandomClip(*CLIPS[name])
    maps, image, mask = shown(tiny, clip, "grass, blue ball")
    pixels = 16 if name == "Flux.2" else 8
    assert maps.shape == mask.shape == (2, 8 * pixels, 10 * pixels)
    assert image.shape == (*maps.shape, 3)
    encoder = getattr(clip.tokenizer, clip.encoder, None) or getattr(clip.tokenizer, f"clip_{clip.encoder}")
    pieces = [str(encoder.inv_vocab[number]).lstrip("\u2581\u0120").lower() for number in clip.flat(PROMPT)]
    blue = max(number for number, piece in enumerate(pieces) if piece == "blue")
    ball = next(number for number in range(blue, len(pieces)) if pieces[number] == "ball")
    grass = next(number for number, piece in enumerate(pieces) if piece.startswith("gras"))
    end = next(number for number in range(grass, len(pieces)) if pieces[number] == ",")
    wanted = read_by_hand(tiny, positive(tiny, clip), (tuple(range(grass, end)), (blue, ball)), len(pieces))
    whole = torch.nn.functional.interpolate(wanted, size=maps.shape[1:], mode="bilinear", align_corners=False)
    torch.testing.assert_close(maps, whole[0], atol=1e-6, rtol=1e-4)


def test_words_of_an_edits_prompt_stand_at_its_end(caplog: pytest.LogCaptureFixture) -> None:
    """Pictures that an edit model's text node puts before the prompt move the words, and the log says that they were looked for there."""
    tiny, clip = family("Qwen-Image"), RandomClip(*CLIPS["Qwen-Image"])
    (entry,) = positive(tiny, clip)
    longer = [[torch.cat([torch.randn(1, 30, 40, generator=torch.Generator().manual_seed(1)), entry[0]], 1), entry[1]]]
    maps, _, _ = shown(tiny, clip, "sky", positive=longer)
    sky = [number for number, token in enumerate(clip.flat(PROMPT)) if clip.tokenizer.qwen25_7b.inv_vocab[token] == "\u0120sky"]
    wanted = read_by_hand(tiny, longer, ((sky[0] + 30,),), longer[0][0].shape[1])
    whole = torch.nn.functional.interpolate(wanted, size=maps.shape[1:], mode="bilinear", align_corners=False)
    torch.testing.assert_close(maps, whole[0], atol=1e-6, rtol=1e-4)
    assert "is not what this CLIP makes of `text`" in caplog.text


def test_animas_words_are_t5s() -> None:
    tiny, clip = family("Anima"), RandomClip("anima", "AnimaTokenizer", "qwen3_06b", 1024)
    ids = clip.flat(PROMPT, "t5xxl")
    encode = clip.encode_from_tokens_scheduled

    def with_ids(tokens: dict[str, Any], **options: Any) -> list[list[Any]]:
        numbers = torch.tensor([entry[0] for entry in tokens["t5xxl"][0]])
        return encode(tokens, t5xxl_ids=numbers, t5xxl_weights=torch.ones(len(numbers)), **options)

    clip.encode_from_tokens_scheduled = with_ids
    maps, _, _ = shown(tiny, clip, "sky")
    sky = [number for number, token in enumerate(ids) if clip.tokenizer.t5xxl.inv_vocab[token] == "\u2581sky"]
    wanted = read_by_hand(tiny, positive(tiny, clip), (tuple(sky),), len(ids))
    whole = torch.nn.functional.interpolate(wanted, size=maps.shape[1:], mode="bilinear", align_corners=False)
    torch.testing.assert_close(maps, whole[0], atol=1e-6, rtol=1e-4)


def hidream_clip() -> RandomClip:
    """T5 as `RandomClip` encodes it, and Llama beside it: three layers for each token, after the token's number."""
    clip = RandomClip("hidream", "HiDreamTokenizer", "t5xxl", 40)
    clip.cond_stage_model = SimpleNamespace(t5xxl=True, llama=True)
    encode = clip.encode_from_tokens_scheduled

    def with_llama(tokens: dict[str, Any], **options: Any) -> list[list[Any]]:
        numbers = [int(entry[0]) for entry in tokens["llama"][0]]
        rows = [torch.randn(3, 24, generator=torch.Generator().manual_seed(number)) for number in numbers]
        return encode(tokens, conditioning_llama3=torch.stack(rows, 1)[None], **options)

    clip.encode_from_tokens_scheduled = with_llama
    return clip


def test_hidreams_words_are_t5s_and_llamas() -> None:
    """A word's map is what the cells give to it by both encoders: T5's tokens once, Llama's in both of the places where they stand."""
    tiny, clip = family("HiDream"), hidream_clip()
    text = "sky" + ", grass" * 130  # T5 is cut at 128 tokens, Llama is not; some versions of its tokenizer lose blanks, none loses commas
    latent = {"samples": tiny.latent((8, 10))}
    given = {**ARGUMENTS, "latent": latent, "positive": positive(tiny, clip, text)}
    with torch.inference_mode():
        maps = AttentionMap.execute(model=tiny.model(), clip=clip, text=text, words="sky", **given).args[0]
    t5 = [number for number, token in enumerate(clip.flat(text)) if clip.tokenizer.t5xxl.inv_vocab[token] == "\u2581sky"]
    spelled = [clip.tokenizer.llama.inv_vocab[token] for token in clip.flat(text, "llama")]
    assert (spelled[1], spelled[2], spelled.count("sky"), t5) == ("sky", ",", 1, [0])
    assert len(spelled) > len(clip.flat(text)) == 128
    heat: list[Tensor] = []

    def watch(func: Any, q: Tensor, k: Tensor, v: Tensor, heads: int, **call: Any) -> Tensor:
        parts = [x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (q, k)]
        weights = (parts[0] @ parts[1].transpose(2, 3) / parts[0].shape[-1] ** 0.5).softmax(-1).mean(1)
        first = 20 + 128
        second = first + len(spelled)
        heat.append(weights[:, :20, [20, first + 1, second + 1]].sum(2).unflatten(1, (4, 5)))
        return func(q, k, v, heads, **call)

    import comfy.sample
    import comfy.samplers

    model = tiny.model()
    model.model_options["transformer_options"]["optimized_attention_override"] = watch
    sigmas = torch.tensor([float(model.get_model_object("model_sampling").percent_to_sigma(0.4)), 0.0])
    euler, entries = comfy.samplers.sampler_object("euler"), given["positive"]
    samples = latent["samples"]
    noise = comfy.sample.prepare_noise(samples, 3)
    with torch.inference_mode():
        comfy.sample.sample_custom(model, noise, 1.0, euler, sigmas, entries, entries, samples, disable_pbar=True)
    assert len(heat) == 4
    whole = torch.nn.functional.interpolate(torch.stack(heat).mean(0)[None], size=(8, 10), mode="bilinear", align_corners=False)
    whole = torch.nn.functional.interpolate(whole, size=maps.shape[1:], mode="bilinear", align_corners=False)
    torch.testing.assert_close(maps, whole[0], atol=1e-6, rtol=1e-4)


def test_a_video_has_a_map_for_each_latent_frame() -> None:
    """Its words stand in front, whatever fills up behind."""
    tiny, clip = family("Wan text to video"), RandomClip(*CLIPS["Chroma"])
    maps, image, mask = shown(tiny, clip, "grass, sky")
    assert maps.shape == mask.shape == (6, 64, 80)
    assert image.shape == (6, 64, 80, 3)
    assert not torch.equal(maps[0], maps[1])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"words": "car"}, r"'car' is not in `text`\. `text` has the words: a, red, ball, on, grass"),
        ({"layers": "list", "layer_list": "output 3"}, "no attention layer 'output 3'. It has: double 0, double 1, single 0"),
        ({"words": "mask:1"}, "has no mask tokens"),
        ({"positive": [[torch.zeros(1, 9, 40), {}]]}, "is 256 tokens long for the text encoder, but `positive` holds 9"),
    ],
)
def test_bad_input_is_refused_in_words(more: dict[str, Any], message: str) -> None:
    tiny, clip = family("Flux.1"), RandomClip(*CLIPS["Flux.1"])
    given = {"words": "ball", **more}
    with pytest.raises(ValueError, match=message):
        shown(tiny, clip, **given)


def test_the_clip_of_another_kind_is_refused_in_words() -> None:
    tiny, clip = family("Flux.1"), RandomClip("hidream", "HiDreamTokenizer", "t5xxl", 40)
    with pytest.raises(ValueError, match=r"not known where this text encoder \(g, l, llama, t5xxl; HiDreamTokenizer\)"):
        shown(tiny, clip, "ball")


def by_hand(heat: Tensor, threshold: float, smallest: float) -> Tensor:
    """A map [H, W] as a mask: each piece of what is bright enough is grown from a pixel and counted."""
    low, high = float(heat.min()), float(heat.max())
    bright = heat >= low + threshold * (high - low)
    left, pieces = bright.clone(), []
    while bool(left.any()):
        piece = torch.zeros_like(bright)
        piece[tuple(left.nonzero()[0])] = True
        while True:
            near = torch.from_numpy(ndimage.binary_dilation(piece.numpy())) & bright
            if torch.equal(near, piece):
                break
            piece = near
        pieces.append(piece)
        left &= ~piece
    most = max(int(piece.sum()) for piece in pieces)
    result = torch.zeros_like(bright)
    for piece in pieces:
        result |= piece & bool(int(piece.sum()) >= smallest * heat.numel() or int(piece.sum()) == most)
    return result.float()


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.6, 0.9, 1.0])
@pytest.mark.parametrize("smallest", [0.0, 0.02, 0.2, 1.0])
def test_masks_of_maps(threshold: float, smallest: float) -> None:
    noise = torch.rand(2, 3, 5, 7, generator=torch.Generator().manual_seed(2)) * 0.2
    maps = torch.nn.functional.interpolate(noise, size=(20, 28), mode="bilinear")
    masks = heat_map.masks_of(maps, threshold, smallest)
    assert masks.shape == maps.shape
    for one, mask in zip(maps.flatten(0, 1), masks.flatten(0, 1), strict=True):
        assert torch.equal(mask, by_hand(one, threshold, smallest))


def test_a_map_that_is_alike_everywhere_gives_an_empty_mask() -> None:
    assert float(heat_map.masks_of(torch.full((1, 1, 4, 4), 0.3), 0.5, 0.0).max()) == 0


def test_masks_come_in_the_order_of_the_maps() -> None:
    tiny = Painter()
    latents = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        maps, _, masks = AttentionMap.execute(
            tiny.model, tiny.clip, PROMPT, "ball, sky", latent={"samples": latents}, threshold=0.4, smallest_area=0.05, **ARGUMENTS
        ).args
    assert masks.shape == maps.shape == (4, 128, 128)
    for one, mask in zip(maps, masks, strict=True):
        assert torch.equal(mask, by_hand(one, 0.4, 0.05))


def test_a_word_makes_the_mask_of_its_thing() -> None:
    """A painted red ball on the left, a blue star on the right, and the trained tiny model: each mask lies on its own side."""
    tiny = Painter()
    picture = torch.full((1, 128, 128, 3), 0.5)
    y, x = torch.meshgrid(torch.arange(128), torch.arange(128), indexing="ij")
    ball, star = (y - 64) ** 2 + (x - 34) ** 2 < 24**2, ((y - 64).abs() + (x - 94).abs()) < 24
    picture[0, ball] = torch.tensor([0.85, 0.1, 0.1])
    picture[0, star] = torch.tensor([0.1, 0.2, 0.85])
    text = "a red ball and a blue diamond on grass"
    with torch.inference_mode():
        _, _, masks = AttentionMap.execute(
            tiny.model, tiny.clip, text, "red ball, blue diamond", image=picture, vae=tiny.vae, threshold=0.6, **ARGUMENTS
        ).args
    for mask, own, other in ((masks[0], ball, star), (masks[1], star, ball)):
        assert float(mask[own].mean()) > 2 * float(mask[other].mean())


def test_words_of_any_script_are_split_and_told_apart() -> None:
    assert prompt_words.split("cat\uff0c dog\u3001fox\u060c owl, cat\nbee") == ["cat", "dog", "fox", "owl", "bee"]
    heat, grey = torch.zeros(1, 2, 64, 64), torch.full((1, 64, 64, 3), 0.5)
    one, other = draw(heat, ["\u732b", "\u72d7"], grey)
    assert not torch.equal(one, other), "Pillow's font has neither"
    assert torch.equal(draw(heat, ["cat", "\u72d7"], grey)[0], heat_map.overlay(grey[0], heat[0, 0], "cat"))
