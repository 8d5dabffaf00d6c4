"""Words among the tokens of every kind of text encoder, against the places that the tokenizers' own libraries tell."""

from __future__ import annotations

import functools
import io
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from maskprompt.conditioning import encoder_words, token_text

from ...support.encoders import RandomClip

TEXT = "A Kaleidoscopic red ball, the fox's tail and a blue ball; backgrounds (of gras\u00df) on \u7ea2\u8272\u7684\u7403 unballed"
WORDS = ["ball", "red ball", "Fox", "blue", "tail and a", ", the fox", "kaleidoscopic", "backgrounds"]
QWEN_TEMPLATE = 34
"""The tokens of Qwen-Image's instruction before the prompt."""

CLIPS = {
    "FLUX.1": ("flux", "FluxTokenizer", "t5xxl", 0, "t5xxl"),
    "FLUX.2 klein": ("flux", "KleinTokenizer", "qwen3_4b", 0, "qwen3_4b"),
    "Qwen-Image": ("qwen_image", "QwenImageTokenizer", "qwen25_7b", QWEN_TEMPLATE, "qwen25_7b"),
    "Z-Image": ("z_image", "ZImageTokenizer", "qwen3_4b", 0, "qwen3_4b"),
    "Krea 2": ("krea2", "Krea2Tokenizer", "qwen3vl_4b", QWEN_TEMPLATE, "qwen3vl_4b"),
    "Chroma": ("pixart_t5", "PixArtTokenizer", "t5xxl", 0, "clip_t5xxl"),
}


@functools.lru_cache
def clip_of(name: str) -> tuple[RandomClip, Any]:
    """The CLIP and its tokenizer of Hugging Face's library."""
    module, kind, encoder, cut, attribute = CLIPS[name]
    clip = RandomClip(module, kind, encoder, 8, cut)
    return clip, getattr(clip.tokenizer, attribute).tokenizer


def read(clip: Any, text: str = TEXT, **options: Any) -> encoder_words.EncoderPrompt:
    (entry,) = clip.encode_from_tokens_scheduled(clip.tokenize(text), **options)
    return encoder_words.read(clip, text, *entry)


def places(text: str, word: str) -> list[tuple[int, int]]:
    """Where a word stands in a text, whole, by hand."""
    found: list[tuple[int, int]] = []
    low, sought = text.lower(), word.lower()
    start = low.find(sought)
    while start >= 0:
        stop = start + len(sought)
        begins = not (sought[0].isalnum() and low[start - 1 : start].isalnum())
        ends = not (sought[-1].isalnum() and low[stop : stop + 1].isalnum())
        found += [(start, stop)] if begins and ends else []
        start = low.find(sought, start + 1)
    return found


@pytest.mark.parametrize("name", CLIPS)
@pytest.mark.parametrize("word", WORDS)
def test_a_word_stands_where_the_tokenizers_offsets_say(name: str, word: str) -> None:
    """Hugging Face's tokenizers tell of each token which letters of the text it is of."""
    clip, library = clip_of(name)
    columns = read(clip).find(word)
    mine = clip.flat(TEXT)
    told = library(TEXT, return_offsets_mapping=True, add_special_tokens=False)
    blanks = {number for number, piece in enumerate(library.convert_ids_to_tokens(told["input_ids"])) if piece in ("\u2581", "\u0120")}
    # The prompt's own tokens among those of the template and what fills up.
    start = next(number for number in range(len(mine)) if mine[number : number + 5] == told["input_ids"][:5])
    wanted: set[int] = set()
    for first, last in places(TEXT, word):
        for number, (begin, end) in enumerate(told["offset_mapping"]):
            covered = TEXT[max(begin, first) : min(end, last)]
            wanted.update([start + number] if covered.strip() and number not in blanks else [])
    assert wanted
    assert columns == tuple(sorted(wanted))


@pytest.mark.parametrize("name", ["Qwen-Image", "Z-Image", "FLUX.2 klein"])
def test_letters_of_several_bytes_and_tokens(name: str) -> None:
    """Scripts without blanks: a part of a run is found, with every token that has a byte of it."""
    clip, library = clip_of(name)
    prompt = read(clip)
    ids = clip.flat(TEXT)
    assert library.decode([ids[column] for column in prompt.find("\u7403")]) == "\u7403"
    assert "\u7ea2\u8272" in library.decode([ids[column] for column in prompt.find("\u7ea2\u8272")])


@pytest.mark.parametrize("name", CLIPS)
@pytest.mark.parametrize("word", ["color", "user", "system", "think", "pad", "s", "gra", "unball", "a red"])
def test_the_templates_words_and_parts_of_words_are_not_found(name: str, word: str) -> None:
    text = "A Kaleidoscopic red ball, a blue ball; backgrounds of grass unballed"
    with pytest.raises(ValueError, match=rf"'{word}' is not in `text`\. `text` has the words: A, Kaleidoscopic, red, ball"):
        read(clip_of(name)[0], text).find(word)


def test_weights_and_brackets() -> None:
    """T5 reads weights and leaves their signs out, as ComfyUI's text nodes do; Qwen sees them as they are written."""
    t5, library = clip_of("FLUX.1")
    prompt = read(t5, "a (red ball:1.3) on \\(grass\\)")
    ids = t5.flat("a (red ball:1.3) on \\(grass\\)")
    assert [library.convert_ids_to_tokens(ids[column]) for column in prompt.find("red ball")] == ["\u2581red", "\u2581ball"]
    qwen, _ = clip_of("Qwen-Image")
    assert len(read(qwen, "a (red ball:1.3)").find("1.3")) == 3


def test_in_a_longer_conditioning_the_words_stand_at_the_end_or_the_beginning() -> None:
    """Qwen-Image-Edit puts its pictures before the prompt; what others append comes behind it."""
    qwen, t5 = read(clip_of("Qwen-Image")[0]), read(clip_of("FLUX.1")[0])
    longer = [torch.zeros(1, qwen.length + 100, 8), {}]
    assert qwen.shift_in(longer, same=False) == 100
    assert qwen.shift_in(longer, same=True) == 0
    assert t5.shift_in([torch.zeros(1, t5.length + 100, 8), {}], same=False) == 0
    assert read(clip_of("FLUX.2 klein")[0]).shift_in([torch.zeros(1, 700, 8), {}], same=False) == 0
    images = RandomClip("qwen_image", "QwenImageTokenizer", "qwen25_7b", 8, 64)
    edited = images.tokenize(TEXT, images=[torch.zeros(1, 4, 4, 3)])["qwen25_7b"][0]
    plain = clip_of("Qwen-Image")[0].tokenize(TEXT)["qwen25_7b"][0]
    assert [entry[0] for entry in edited[-20:]] == [entry[0] for entry in plain[-20:]]


def test_an_encoder_that_cuts_behind_the_prompt_is_refused() -> None:
    """LongCat-Image's takes the end of its template off, so that what is missing is not all in front."""
    with pytest.raises(ValueError, match=r"it is not known where this text encoder .*LongCatImageTokenizer"):
        read(RandomClip("longcat_image", "LongCatImageTokenizer", "qwen25_7b", 8, QWEN_TEMPLATE))


def test_sd3_has_clips_columns_and_t5s_behind_them() -> None:
    clip = RandomClip("sd3_clip", "SD3Tokenizer", "t5xxl", 8)
    clip.cond_stage_model = SimpleNamespace(clip_l=1, clip_g=1, t5xxl=1)
    encoded = torch.zeros(1, 154, 8)
    l_ids, t5_ids = clip.flat("a red ball", "l"), clip.flat("a red ball", "t5xxl")
    ball = clip.tokenizer.clip_l.tokenizer.convert_tokens_to_ids("ball</w>")
    ball5 = clip.tokenizer.t5xxl.tokenizer.convert_tokens_to_ids("\u2581ball")
    assert encoder_words.read(clip, "a red ball", encoded, {}).find("ball") == (l_ids.index(ball), 77 + t5_ids.index(ball5))
    clip.cond_stage_model.t5xxl = None
    assert encoder_words.read(clip, "a red ball", torch.zeros(1, 77, 8), {}).find("ball") == (l_ids.index(ball),)
    clip.cond_stage_model = SimpleNamespace(clip_l=None, clip_g=None, t5xxl=1)
    assert encoder_words.read(clip, "a red ball", torch.zeros(1, 77, 8), {}).find("ball") == (t5_ids.index(ball5),)


def test_anima_sees_t5s_tokens_and_not_qwens() -> None:
    clip = RandomClip("anima", "AnimaTokenizer", "qwen3_06b", 8)
    ids = clip.flat(TEXT, "t5xxl")
    prompt = read(clip, t5xxl_ids=torch.tensor(ids))
    ball = clip.tokenizer.t5xxl.tokenizer.convert_tokens_to_ids("\u2581ball")
    assert [ids[column] for column in prompt.find("blue ball")][-1] == ball
    assert prompt.seen == len(ids) == prompt.tokens_in([None, {"t5xxl_ids": torch.tensor(ids)}]) != prompt.length
    with pytest.raises(ValueError, match="not known where this text encoder"):
        read(clip)


def trained_model() -> bytes:
    """A SentencePiece model of a few words, with bytes for letters that it does not know, as Gemma and UMT5 have."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(["a red ball on the grass", "a blue ball and the fox", "kaleidoscopic backgrounds"] * 20),
        model_writer=model, vocab_size=310, byte_fallback=True, hard_vocab_limit=False, minloglevel=2, pad_id=3,
    )  # fmt: skip
    return model.getvalue()


def test_sentencepiece_by_what_it_decodes() -> None:
    """Lumina 2's Gemma, whose file brings its vocabulary: the library decodes what is found to the word, and the rest without it."""
    import sentencepiece

    model = trained_model()
    library = sentencepiece.SentencePieceProcessor(model_proto=model)
    clip = RandomClip("lumina2", "LuminaTokenizer", "gemma2_2b", 8, spiece_model=torch.ByteTensor(list(model)))
    text = "a red ball on the unballed backgrounds, \u7403 blue ball"
    prompt = read(clip, text)
    ids = clip.flat(text)
    for word in ("ball", "red ball", "backgrounds", "\u7403"):
        found = prompt.find(word)
        assert library.decode([ids[column] for column in found]).split() == word.split() * len(places(text, word)), word
        others = library.decode([number for column, number in enumerate(ids) if column not in found])
        assert not places(others, word), word


def test_what_cannot_be_known_is_refused_in_words() -> None:
    t5 = clip_of("FLUX.1")[0]
    with pytest.raises(ValueError, match=r"not known where this text encoder \(l, t5xxl; FluxTokenizer\) puts the words"):
        encoder_words.read(t5, TEXT, torch.zeros(1, 100, 8), {})
    several: Any = SimpleNamespace(
        tokenize=lambda text, return_word_ids=False: {name: [[(1, 1.0, 1)]] for name in ("g", "l", "t5xxl", "gemma2_2b")},
        tokenizer=SimpleNamespace(),
    )
    with pytest.raises(ValueError, match="not known where this text encoder"):
        encoder_words.read(several, TEXT, torch.zeros(1, 1, 8), {})
    with pytest.raises(ValueError, match="learned embeddings can be looked for in prompts of SD"):
        read(t5).find("embedding:fox")
    odd: Any = SimpleNamespace(inv_vocab={1: "x"})
    with pytest.raises(LookupError, match="neither of bytes nor of SentencePiece"):
        token_text.letters_of(odd, [(1, 1.0, 1)])
