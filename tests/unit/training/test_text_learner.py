"""The text encoder that learns: to the bit the CLIP it was copied from, and in its gradients `transformers` with the same weights."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import comfy.clip_model
import comfy.model_management
import comfy.sd
import comfy.sd1_clip
import comfy.sdxl_clip
import comfy.supported_models_base
import comfy.text_encoders.sd2_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from maskprompt.conditioning import handles
from maskprompt.training.engine import loop, model_copy
from maskprompt.training.engine.learner import Learner
from maskprompt.training.engine.text_learner import PLACEHOLDER, TextLearner
from maskprompt.training.engine.trainable_weights import Method
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from demo import registration, tiny_model

from .test_learner import fingerprint, unchanged, unet_of

METHODS: tuple[Method, ...] = ("lora", "full")
KINDS = {
    "l": (comfy.sd1_clip.SD1ClipModel, comfy.sd1_clip.SD1Tokenizer),
    "h": (comfy.text_encoders.sd2_clip.SD2ClipModel, comfy.text_encoders.sd2_clip.SD2Tokenizer),
    "lg": (comfy.sdxl_clip.SDXLClipModel, comfy.sdxl_clip.SDXLTokenizer),
}
"""The text encoders of SD 1.5, SD 2.1 and SDXL, by their letters."""
WIDTHS = {"l": 32, "h": 40, "g": 48}
LAYERS = 3
SPARE = 1000
"""Rows of the words' table that no prompt here names: the reference keeps its handles in them."""
LONG = "a photo of x beside " + "one old stone house, two tall trees, " * 9 + "and x at sea"
PROMPTS = ["", "a photo of a cat", "a (striped:1.3) cat [on] ((grass))", LONG, f"({LONG}:0.7)"]


def small_clip(kind: str, dtype: torch.dtype = torch.float32, folder: Path | None = None) -> Any:
    """A CLIP of three narrow layers, as ComfyUI builds it for a checkpoint; random weights. It finds embeddings in `folder`."""
    made, tokenizer = KINDS[kind]
    options: dict[str, Any] = {"dtype": dtype}
    for letter, width in WIDTHS.items():
        sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_attention_heads": 4, "num_hidden_layers": LAYERS}
        options[f"clip_{letter}_model_config"] = sizes
    target = comfy.supported_models_base.ClipTarget(tokenizer, made)
    clip = comfy.sd.CLIP(target, folder and [str(folder)], model_options=options, disable_dynamic=True)
    generator = torch.Generator().manual_seed(0)
    for name, value in clip.cond_stage_model.named_parameters():
        noise = torch.randn(value.shape, generator=generator)
        if "embedding" in name or value.ndim < 2:
            value.data = (("norm" in name and name.endswith("weight")) + 0.2 * noise).to(dtype)
        else:
            value.data = (1.5 * noise / value.shape[1] ** 0.5).to(dtype)
    for letter in kind:
        getattr(clip.tokenizer, f"clip_{letter}").embedding_size = WIDTHS[letter]
    return clip


clip_of = functools.cache(small_clip)
"""The same, kept: a learner only reads it."""


def with_a_lora(clip: Any) -> Any:
    """A clone of the CLIP with a random LoRA on some layers, as a stock loader leaves it."""
    generator = torch.Generator().manual_seed(3)
    state = {}
    for name, weight in clip.patcher.model.state_dict().items():
        if name.endswith(("layers.0.self_attn.v_proj.weight", "layers.1.mlp.fc2.weight")):
            layer = f"text_encoders.{name.removesuffix('.weight')}"
            state[f"{layer}.lora_up.weight"] = 0.2 * torch.randn(weight.shape[0], 4, generator=generator)
            state[f"{layer}.lora_down.weight"] = 0.2 * torch.randn(4, weight.shape[1], generator=generator)
    return with_a_state(None, clip, state, 0.8)[1]


def with_a_state(model: Any, clip: Any, state: dict[str, Tensor], strength: float = 1.0) -> tuple[Any, Any]:
    """Clones of MODEL and CLIP with a LORA_MODEL, by the stock loader."""
    return comfy.sd.load_lora_for_models(model, clip, state, 1, strength)


@contextmanager
def loaded(text: TextLearner) -> Iterator[TextLearner]:
    """The text encoder ready to learn, beside a UNet that does not."""
    with Learner(unet(), "frozen", text=text, checkpointing=False).loaded():
        yield text


@functools.cache
def unet() -> Any:
    return unet_of(32, small=True)


def stock(clip: Any, prompt: str) -> list[Any]:
    """What a stock Text Encode node gives."""
    with torch.inference_mode():
        (entry,) = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
    return entry


def same(one: Sequence[Any], other: Sequence[Any]) -> bool:
    """Whether two texts of a CONDITIONING are equal to the bit."""
    pooled = [entry[1]["pooled_output"] for entry in (one, other)]
    return one[1].keys() == other[1].keys() and torch.equal(one[0], other[0]) and torch.equal(*pooled)


def roughened(text: TextLearner) -> None:
    """As after a long training: all that learns has moved far enough to be seen, by what half precision holds exactly."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, value in text.parameters.items():
            noise = torch.randn(value.shape, generator=generator)
            if name in text.adapted.parameters and text.adapted.method == "full":
                value.add_((0.1 * noise * (value.abs().mean() + 0.01)).half())
            else:
                value.copy_((value + 0.1 * noise).half())


class Reference:
    """`transformers`' text encoders in float64, with weights by a CLIP's names."""

    def __init__(self, kind: str, state: dict[str, Tensor]) -> None:
        self.kind = kind
        self.models = dict[str, Any]()
        for letter in kind:
            config = CLIPTextConfig(
                hidden_size=WIDTHS[letter], intermediate_size=2 * WIDTHS[letter], num_attention_heads=4, num_hidden_layers=LAYERS,
                projection_dim=WIDTHS[letter], hidden_act="quick_gelu" if letter == "l" else "gelu", vocab_size=49408, eos_token_id=49407,
            )  # fmt: skip
            model: Any = CLIPTextModelWithProjection(config).eval().double()
            model.load_state_dict({name: state[f"clip_{letter}.transformer.{name}"].double() for name in model.state_dict()})
            self.models[letter] = model

    def encode(
        self, clip: Any, prompt: str, order: Sequence[int], vectors: Mapping[str, Tensor], layer: int | None
    ) -> tuple[Tensor, Tensor]:
        """Text [1, T, width] and pooled text [1, width] of a prompt in which the handles of `order` stand for the word x."""
        texts = {}
        pooled = torch.empty(0)
        for letter, model in self.models.items():
            table = model.get_input_embeddings().weight
            table.data[SPARE : SPARE + len(vectors[letter])] = vectors[letter].detach().double()
            entries = clip.tokenize(prompt)[letter]
            left = iter(order)
            ids = [[SPARE + next(left) if token == X else token for token, _ in row] for row in entries]
            empty = clip.tokenize("")[letter][0]
            found = model(torch.tensor([*ids, [token for token, _ in empty]]), output_hidden_states=True)
            skipped = layer if layer is not None else None if self.kind == "l" else -2
            text = found.last_hidden_state if skipped is None else found.hidden_states[skipped]
            if skipped is not None and self.kind != "lg":
                text = model.text_model.final_layer_norm(text)
            weights = torch.tensor([[weight for _, weight in row] for row in entries]).double()[..., None]
            texts[letter] = torch.where(weights == 1, text[:-1], text[-1] + weights * (text[:-1] - text[-1])).flatten(0, 1)[None]
            end = ids[0].index(49407)
            pooled = found.last_hidden_state[:1, end] if self.kind == "l" else found.text_embeds[:1]
        return torch.cat([texts[letter] for letter in self.kind], -1), pooled

    @property
    def gradients(self) -> dict[str, Tensor | None]:
        """By the CLIP's names."""
        found = {letter: model.named_parameters() for letter, model in self.models.items()}
        return {f"clip_{letter}.transformer.{name}": value.grad for letter, values in found.items() for name, value in values}


TOKENIZER = tiny_model.tokenizer()
X = TOKENIZER(PLACEHOLDER).input_ids[1]


def merged(clip: Any, text: TextLearner) -> dict[str, Tensor]:
    """The CLIP's weights in float64 with what was learned in them."""
    state = {name: value.double() for name, value in clip.patcher.model.state_dict().items()}
    learned = {name.removeprefix("text_encoders."): value.detach().double() for name, value in text.adapted.parameters.items()}
    for name, value in learned.items():
        if name.endswith(".lora_up.weight"):
            layer = name.removesuffix(".lora_up.weight")
            state[f"{layer}.weight"] += value @ learned[f"{layer}.lora_down.weight"]
        elif not name.endswith(".lora_down.weight"):
            state[name] = value
    return state


def scalar(text: Tensor, pooled: Tensor) -> Tensor:
    """Some number that all of an encoding has a part in, the pooled text a small one."""
    generator = torch.Generator().manual_seed(8)
    weights = [torch.randn(part.shape, generator=generator).to(part.dtype) for part in (text, pooled)]
    return (text * weights[0]).sum() + (pooled * weights[1]).sum()


def close(found: Tensor, wanted: Tensor) -> None:
    """float32 against float64 after a few layers."""
    wanted = wanted.detach()
    torch.testing.assert_close(found.detach().double(), wanted, atol=2e-5 * float(wanted.abs().max()), rtol=0)


@pytest.mark.parametrize(
    ("kind", "dtype", "method", "patched"),
    [
        ("l", torch.float32, "lora", False),
        ("l", torch.float16, "full", True),
        ("h", torch.float16, "full", False),
        ("h", torch.float32, "lora", True),
        ("lg", torch.float16, "lora", True),
        ("lg", torch.float32, "full", True),
    ],
)
def test_untrained_it_encodes_as_its_clip_to_the_bit(kind: str, dtype: torch.dtype, method: Method, patched: bool) -> None:
    """Long and weighted prompts too, and with fewer layers; no tolerance."""
    clip = clip_of(kind, dtype)
    clip = (with_a_lora(clip) if patched else clip).clone()
    layers = (None, -1, -2, -3)
    wanted = {}
    for layer in layers:
        clip.clip_layer(layer)
        wanted |= {(layer, prompt): stock(clip, prompt) for prompt in PROMPTS}
    assert not any(torch.equal(wanted[None, ""][0], wanted[layer, ""][0]) for layer in ((-3,) if kind != "l" else (-2, -3)))
    assert patched == (not torch.equal(wanted[-2, ""][0], stock(bare(clip_of(kind, dtype), -2), "")[0]))
    comfy.model_management.unload_all_models()
    with loaded(TextLearner(clip, ["cat", "dog"], method, 2)) as text:
        for layer in layers:
            clip.clip_layer(layer)
            for prompt in PROMPTS:
                assert same(text.text(prompt), wanted[layer, prompt]), (layer, prompt)


def bare(clip: Any, layer: int) -> Any:
    """A clone with this layer."""
    clip = clip.clone()
    clip.clip_layer(layer)
    return clip


@pytest.mark.parametrize("layer", [None, -2])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_transformers_and_reach_nothing_else(kind: str, method: Method, layer: int | None) -> None:
    """Of handles, adapters and weights, through a prompt of two parts with weights in it; the encoding itself as well."""
    clip = bare(clip_of(kind), layer or 0) if layer else clip_of(kind)
    prompt = LONG.replace("and x", "and (x:1.2)")
    order = [1, 0]
    with loaded(TextLearner(clip, ["cat", "dog", "fish"], method, 2)) as text:
        roughened(text)
        found, options = text.encode(text.tokens(prompt, order)[0])
        scalar(found, options["pooled_output"]).backward()
        reference = Reference(kind, merged(clip, text))
        wanted, pooled = reference.encode(clip, prompt, order, text.vectors, layer)
        scalar(wanted, pooled).backward()
        close(found, wanted)
        close(options["pooled_output"], pooled)
        for letter, rows in text.vectors.items():
            table = reference.models[letter].get_input_embeddings().weight.grad
            assert rows.grad is not None
            assert rows.grad[:2].abs().amax(1).gt(1e-2).all()
            assert not rows.grad[2].any()  # the fish is not in the prompt
            close(rows.grad, table[SPARE : SPARE + 3])
        compare(text, reference)
        own = [id(value) for value in text.parameters.values()]
        others = [value for value in text.adapted.patcher.model.parameters() if id(value) not in own]
        assert not any(value.requires_grad or value.grad is not None for value in others)
        assert len(others) == (len(list(clip.cond_stage_model.parameters())) if method == "lora" else 4 * len(kind))


def compare(text: TextLearner, reference: Reference) -> None:
    """The gradients of what learns of the encoder; and that it is the encoder's layers that learn."""
    gradients = reference.gradients
    left = set(text.adapted.parameters)
    layers = {
        name
        for name, value in text.adapted.patcher.model.named_parameters()
        if "transformer.text_model.encoder.layers." in name and name.endswith("weight") and value.ndim == 2
    }
    assert len(layers) == 6 * LAYERS * len(reference.kind)
    largest = max(float(value.abs().max()) for value in gradients.values() if value is not None)
    for name in layers if text.adapted.method == "lora" else [name.removeprefix("text_encoders.") for name in left]:
        gradient = gradients[name]
        places = [f"text_encoders.{name}"]
        if text.adapted.method == "lora":
            places = [f"text_encoders.{name.removesuffix('weight')}lora_{part}.weight" for part in ("up", "down")]
        values = [text.adapted.parameters[place] for place in places]
        left -= set(places)
        if gradient is None:  # SDXL reads neither the last layer of its first encoder nor its norm
            assert name.startswith(("clip_l.transformer.text_model.encoder.layers.2.", "clip_l.transformer.text_model.final_layer_norm."))
            assert reference.kind == "lg"
            assert all(value.grad is None for value in values)
            continue
        wanted = [gradient]
        if text.adapted.method == "lora":
            up, down = (value.detach().double() for value in values)
            wanted = [gradient @ down.T, up.T @ gradient]
        for value, right in zip(values, wanted, strict=True):
            assert value.grad is not None
            torch.testing.assert_close(value.grad.double(), right, atol=2e-5 * largest, rtol=1e-4)
    assert left == set()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["lora", "full", "frozen"])
def test_what_learns_has_the_names_of_a_lora(kind: str, method: Method) -> None:
    clip = clip_of(kind)
    with loaded(TextLearner(clip, ["cat"], method, 3)) as text:
        names = {name.removeprefix("text_encoders.") for name in text.adapted.parameters}
        assert set(text.handles) == {f"handles.{letter}" for letter in kind}
        assert text.parameters.keys() == text.handles.keys() | text.adapted.parameters.keys()
    stem = "transformer.text_model."
    norms = {f"{stem}encoder.layers.{n}.layer_norm{k}" for n in range(LAYERS) for k in (1, 2)} | {f"{stem}final_layer_norm"}
    linear = {f"{stem}encoder.layers.{n}.self_attn.{part}_proj" for n in range(LAYERS) for part in ("q", "k", "v", "out")}
    linear |= {f"{stem}encoder.layers.{n}.mlp.{part}" for n in range(LAYERS) for part in ("fc1", "fc2")}
    parts, chosen = {
        "lora": (("lora_up.weight", "lora_down.weight"), linear), "full": (("weight", "bias"), linear | norms), "frozen": ((), set[str]())
    }[method]  # fmt: skip
    assert names == {f"clip_{letter}.{name}.{part}" for letter in kind for name in chosen for part in parts}
    if method == "frozen":
        assert text.adapted.learned() == {}


def rows_of(clip: Any, letter: str, word: str) -> Tensor:
    """The word's rows in the table, by the stock tokenizer of `transformers`."""
    table = clip.cond_stage_model.state_dict()[f"clip_{letter}.transformer.text_model.embeddings.token_embedding.weight"]
    return table[TOKENIZER(word).input_ids[1:-1]]


@pytest.mark.parametrize(("kind", "dtype"), [("l", torch.float16), ("h", torch.float32), ("lg", torch.float16)])
def test_handles_begin_as_the_mean_of_their_words(kind: str, dtype: torch.dtype) -> None:
    clip = clip_of(kind, dtype)
    words = ["cat", "fox terrier", "Xyloquark", "犬", "!", "cat"]
    assert [len(rows_of(clip, "l" if kind == "lg" else kind, word)) for word in words[:3]] == [1, 2, 4]
    text = TextLearner(clip, words)
    assert "".join(sorted(text.vectors)) == "".join(sorted(kind))
    for letter, rows in text.vectors.items():
        wanted = torch.stack([rows_of(clip, letter, word).double().mean(0) for word in words])
        assert (rows.dtype, rows.requires_grad, rows.is_leaf) == (torch.float32, True, True)
        torch.testing.assert_close(rows.detach().double(), wanted, atol=1e-7, rtol=1e-6)
    assert not any(torch.equal(rows[0], rows[1]) for rows in text.vectors.values())


def test_a_handle_is_handed_out_as_a_copy() -> None:
    text = TextLearner(clip_of("lg"), ["cat", "dog"])
    found = text.handle(1)
    assert {letter: tuple(vector.shape) for letter, vector in found.items()} == {"l": (1, 32), "g": (1, 48)}
    for letter, vector in found.items():
        assert torch.equal(vector[0], text.vectors[letter][1])
        assert not vector.requires_grad
        vector += 1
        assert not torch.equal(vector[0], text.vectors[letter][1])


@pytest.mark.parametrize("kind", KINDS)
def test_a_word_may_be_an_embedding(tmp_path: Path, kind: str) -> None:
    """One trained before; of several vectors their mean. One that is not there, or is for another text encoder, is refused in words."""
    clip = small_clip(kind, folder=tmp_path)
    trained = {letter: torch.randn(3, WIDTHS[letter]) for letter in kind}
    handles.save(str(tmp_path), "one", {letter: rows[:1] for letter, rows in trained.items()}, "cat")
    handles.save(str(tmp_path), "three", trained, "cat")
    handles.save(str(tmp_path), "other", {"l": torch.randn(1, 20)}, "cat")
    text = TextLearner(clip, ["embedding:one", "embedding:three", "embedding:one cat"])
    for letter, rows in text.vectors.items():
        both = torch.cat([trained[letter][:1], rows_of(clip, letter, "cat")]).mean(0)
        wanted = torch.stack([trained[letter][0], trained[letter].mean(0), both])
        torch.testing.assert_close(rows.detach(), wanted, atol=1e-6, rtol=1e-6)
    for word in ("embedding:none", "", "  "):
        with pytest.raises(ValueError, match=f"reads nothing where a subject's word says '{word}'"):
            TextLearner(clip, ["cat", word])
    with pytest.raises(ValueError, match=r"'embedding:other' is an embedding for another text encoder: it has 20 .* needs"):
        TextLearner(clip, ["embedding:other"])


@pytest.mark.parametrize("kind", KINDS)
def test_saved_handles_say_the_same_in_stock_text_nodes(tmp_path: Path, kind: str) -> None:
    """To the bit: handles are stored in float32. With a weight, twice, and beyond the 77th token."""
    clip = small_clip(kind, folder=tmp_path)
    with loaded(TextLearner(clip, ["cat", "fox terrier"], "lora", 2)) as text:
        for rows in text.vectors.values():
            rows.data.add_(torch.randn(rows.shape, generator=torch.Generator().manual_seed(1)))
        for number in (0, 1):
            handles.save(str(tmp_path), f"own-{number}", text.handle(number), "cat")
        found = {}
        for prompt, order in (("a photo of x and (x:1.4)", (1, 0)), (LONG, (0, 0)), ("x", (1,))):
            named = prompt
            for number in order:
                named = named.replace("x", f"embedding:own-{number}", 1)
            with torch.no_grad():
                found[named] = text.encode(text.tokens(prompt, order)[0])
    for named, encoded in found.items():
        assert "own" in named
        assert same(encoded, stock(clip, named))


@settings(max_examples=25, deadline=None)
@given(kind=st.sampled_from(list(KINDS)), gaps=st.lists(st.integers(0, 60), min_size=1, max_size=4), data=st.data())
def test_vectors_stand_where_tokens_says(kind: str, gaps: list[int], data: st.DataObject) -> None:
    """Any number of handles, in any order, with any number of words between them: nothing else in the prompt's tokens changes."""
    clip = clip_of(kind)
    text = learner_of(kind)
    order = data.draw(st.lists(st.integers(0, 2), min_size=len(gaps), max_size=len(gaps)))
    weight = data.draw(st.sampled_from([1.0, 1.5]))
    prompt = " ".join(f"{'house ' * gap} {PLACEHOLDER if weight == 1 else f'(x:{weight})'}" for gap in gaps) + " at sea"
    found, columns = text.tokens(prompt, order)
    places = []
    filled = 0
    for gap in gaps:  # each of these words is one token; 75 of them fit beside the beginning's and the end's
        filled += gap + 1
        places.append(77 * ((filled - 1) // 75) + (filled - 1) % 75 + 1)
    assert columns == places
    plain = clip.tokenize(prompt)
    assert found.keys() == plain.keys() == text.vectors.keys()
    for letter, rows in found.items():
        assert [len(row) for row in rows] == [77] * len(rows) == [len(row) for row in plain[letter]]
        flat = [entry for row in rows for entry in row]
        before = [entry for row in plain[letter] for entry in row]
        for column, (entry, was) in enumerate(zip(flat, before, strict=True)):
            assert len(entry) == len(was) == 2
            assert entry[1] == was[1] == (weight if column in columns else 1.0)
            if column in columns:
                index = order[columns.index(column)]
                assert torch.equal(entry[0][0], text.vectors[letter][index])
                assert entry[0].requires_grad
            else:
                assert entry == was
                assert entry[0] != X


@functools.cache
def learner_of(kind: str) -> TextLearner:
    """One with three handles, for what does not encode."""
    return TextLearner(clip_of(kind), ["cat", "dog", "fish"], "frozen")


@pytest.mark.parametrize("kind", KINDS)
def test_the_columns_are_those_of_the_encoding(kind: str) -> None:
    """Words before a handle know nothing of it, so an encoding changes from the handle's column on, until its part of 77 ends."""
    with loaded(TextLearner(clip_of(kind), ["cat", "dog"], "frozen")) as text, torch.no_grad():
        tokens, columns = text.tokens(LONG, [1, 0])
        before = text.encode(tokens)[0]
        assert before.shape == (1, 154, sum(WIDTHS[letter] for letter in kind))
        assert columns[0] < 77 < columns[1]
        for index, column, end in ((1, columns[0], 77), (0, columns[1], 154)):
            kept = {letter: rows.clone() for letter, rows in text.vectors.items()}
            for rows in text.vectors.values():
                rows[index] += torch.randn(rows.shape[1], generator=torch.Generator().manual_seed(2))
            changed = (text.encode(text.tokens(LONG, [1, 0])[0])[0] != before).any(2)[0]
            assert changed.nonzero().flatten().tolist() == list(range(column, end))
            for letter, rows in text.vectors.items():
                rows.copy_(kept[letter])


@pytest.mark.parametrize(("prompt", "order", "places"), [("a photo", [0], 0), ("x and x", [0], 2), ("x", [0, 1], 1), ("x", [], 1)])
@pytest.mark.parametrize("kind", KINDS)
def test_as_many_places_as_handles(kind: str, prompt: str, order: list[int], places: int) -> None:
    with pytest.raises(ValueError, match=f"the prompt has {places} places for {len(order)} handles"):
        learner_of(kind).tokens(prompt, order)


def train(text: TextLearner, steps: int = 2, rate: float = 1e-2) -> list[float]:
    """Pulls the encoding of a prompt with handles towards that of another prompt."""
    with torch.no_grad():
        target = text.text("a photo of a red house and a green tree")[0].clone()

    def loss(step: int, generator: torch.Generator) -> Tensor:
        return ((text.encode(text.tokens("a photo of x and x", [0, 1])[0])[0] - target) ** 2).mean()

    return loop.run(text.parameters, loss, loop.Settings(steps, rate)).losses


@pytest.mark.parametrize(("kind", "method"), [("l", "lora"), ("lg", "full"), ("h", "frozen")])
def test_the_loss_falls(kind: str, method: Method) -> None:
    with loaded(TextLearner(clip_of(kind, torch.float16), ["cat", "dog"], method, 4)) as text:
        losses = train(text, 20)
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize(
    ("kind", "method", "patched"), [("l", "lora", False), ("l", "full", True), ("lg", "lora", True), ("lg", "full", False)]
)
def test_the_clip_stays_as_it_was(kind: str, method: Method, patched: bool) -> None:
    """Weights, options and what it says to the bit: before, while another learns from it, and after, even if that fails."""
    clip = with_a_lora(small_clip(kind)) if patched else small_clip(kind)
    before = fingerprint(clip.patcher)
    said = stock(clip, LONG)
    kept = vars(clip).copy()
    text = TextLearner(clip, ["cat", "dog"], method, 2)
    for fails in (False, True):
        try:
            with loaded(text):
                train(text)
                assert not same(text.text(LONG), said)
                assert same(stock(clip, LONG), said)
                assert not fails, "on purpose"
        except AssertionError as error:
            if "on purpose" not in str(error):
                raise
    assert same(stock(clip, LONG), said)
    assert unchanged(clip.patcher, before)
    assert vars(clip) == kept
    own = {value.data_ptr() for value in clip.cond_stage_model.parameters()}
    assert not own & {value.data_ptr() for value in text.adapted.patcher.model.parameters()}
    assert text.clip is clip


@pytest.mark.parametrize(("method", "rank", "patched"), [("lora", 3, True), ("lora", 64, False), ("full", 1, False), ("full", 1, True)])
@pytest.mark.parametrize("kind", KINDS)
def test_what_was_learned_leaves_for_any_stock_loader(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str, method: Method, rank: int, patched: bool
) -> None:
    """Through a file as Save LoRA and Load LoRA write and read it, on top of a LoRA that was there; every name is known."""
    clip = with_a_lora(clip_of(kind)) if patched else clip_of(kind)
    before = stock(clip, LONG)
    with loaded(TextLearner(clip, ["cat"], method, rank)) as text:
        assert same(said_by(clip, text.adapted.learned()), before)  # nothing learned yet
        roughened(text)
        with torch.no_grad():
            wanted = text.text(LONG)
        save_file(text.adapted.learned(), tmp_path / "lora.safetensors")
    with loaded(text), torch.no_grad():  # being off the device in between, as for a preview, loses nothing
        assert same(text.text(LONG), wanted)
    state = load_file(tmp_path / "lora.safetensors")
    assert {value.dtype for value in state.values()} <= {torch.float16, torch.float32}
    found = said_by(clip, state)
    for one, right, was in ((found[0], wanted[0], before[0]), *([entry[1]["pooled_output"] for entry in (found, wanted, before)],)):
        assert (right - was).std() > 0.05 * was.std()
        torch.testing.assert_close(one, right, atol=2e-5 * float(right.abs().max()), rtol=0)
    assert same(said_by(clip, state, 0), before)
    assert not [record.getMessage() for record in caplog.records if "not loaded" in record.getMessage().lower()]


def said_by(clip: Any, lora: dict[str, Tensor], strength: float = 1.0) -> list[Any]:
    """What the CLIP says with a LORA_MODEL on it."""
    return stock(with_a_state(None, clip, lora, strength)[1], LONG)


@pytest.mark.parametrize("method", METHODS)
def test_weights_in_half_precision_learn_in_float32(method: Method) -> None:
    """The stock loader writes the sum in half precision again, which is all that is lost: 1/2048 of a weight."""
    clip = clip_of("l", torch.float16)
    before = stock(clip, LONG)[0]
    with loaded(TextLearner(clip, ["cat"], method, 3)) as text:
        assert {value.dtype for value in text.parameters.values()} == {torch.float32}
        roughened(text)
        with torch.no_grad():
            wanted = text.text(LONG)[0]
        learned = text.adapted.learned()
    assert {value.dtype for value in clip.cond_stage_model.clip_l.transformer.parameters()} == {torch.float16}
    assert (said_by(clip, learned)[0] - wanted).std() < 0.005 * (wanted - before).std()


@pytest.mark.parametrize("method", METHODS)
def test_it_is_loaded_and_unloaded_with_its_learner(method: Method, caplog: pytest.LogCaptureFixture) -> None:
    clip = clip_of("lg")
    text = TextLearner(clip, ["cat"], method, 2)
    learner = Learner(unet(), "lora", 2, text=text, checkpointing=False)
    patchers = (learner.patcher, text.adapted.patcher)
    learned = dict[str, Tensor]()
    for _ in range(2):  # a second time, too
        with learner.loaded():
            assert held(*patchers) == [True, True]
            assert all(patcher.is_injected == bool(patcher.injections) for patcher in patchers)
            assert bool(text.adapted.patcher.injections) == (method == "lora")
            assert all(value.requires_grad for value in text.parameters.values())
            stock(clip, "a cat")  # as a preview does
            learner.load()
            assert held(*patchers) == [True, True]
            learned = learner.learned()
        assert held(*patchers) == [False, False]
        assert not any(patcher.is_injected for patcher in patchers)
        with pytest.raises(KeyError), learner.loaded():
            raise KeyError
        assert held(*patchers) == [False, False]
    assert learned.keys() == learner.adapted.learned().keys() | text.adapted.learned().keys()
    assert {name.partition(".")[0] for name in learned} == {"diffusion_model", "text_encoders"}
    with caplog.at_level(logging.WARNING):
        model, encoder = with_a_state(unet(), clip, learned)
    assert not caplog.records
    for patches, adapted in ((model.patches, learner.adapted), (encoder.patcher.patches, text.adapted)):
        assert len(patches) == len(adapted.adapters or adapted.parameters) > 0


def held(*patchers: Any) -> list[bool]:
    """Which of these ComfyUI holds on their device."""
    present = comfy.model_management.loaded_models()
    return [any(patcher is one for one in present) for patcher in patchers]


@pytest.mark.parametrize("method", METHODS)
def test_it_learns_inside_of_a_node(method: Method) -> None:
    """ComfyUI runs nodes, and loads their CLIP, in inference mode."""
    with torch.inference_mode():
        clip = small_clip("l")
        text = TextLearner(clip, ["cat", "dog"], method, 2)
        with loaded(text), torch.enable_grad():
            losses = train(text, 3, 1e-3)
        assert losses[-1] < losses[0]
        assert not any(value.is_inference() for value in text.parameters.values())


def test_the_same_seed_is_the_same_learner_and_disturbs_no_other() -> None:
    torch.manual_seed(5)
    before = torch.rand(1)
    torch.manual_seed(5)
    one, other, third = (TextLearner(clip_of("l"), ["cat"], "lora", 2, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), before)
    assert all(torch.equal(value, other.parameters[name]) for name, value in one.parameters.items())
    assert any(not torch.equal(value, third.parameters[name]) for name, value in one.parameters.items())


def test_a_clip_in_dynamic_memory_is_read_again_from_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """As large cards have it: its layers know no gradients, so the copy comes from the checkpoint."""
    registration.register()
    clip: Any = comfy.sd.load_checkpoint_guess_config(str(tiny_model.CHECKPOINT), output_vae=False, output_model=False)[1]
    said = stock(clip, LONG)
    monkeypatch.setattr(clip.patcher, "is_dynamic", lambda: True)
    with loaded(TextLearner(clip, ["cat"], "lora", 2)) as text:
        assert same(text.text(LONG), said)
        train_one(text)
    assert same(stock(clip, LONG), said)
    monkeypatch.setattr(clip.patcher, "cached_patcher_init", None)
    with pytest.raises(ValueError, match="cannot be copied for training"):
        TextLearner(clip, ["cat"])


def train_one(text: TextLearner) -> None:
    text.encode(text.tokens("a photo of x", [0])[0])[0].square().sum().backward()
    assert all(value.grad is not None for value in text.parameters.values())


def test_sums_that_are_not_in_place() -> None:
    """The same numbers from an input that stays; the layers of the CLIP that it was copied from go on as before."""
    clip = clip_of("l")
    copied = model_copy.twin(clip.patcher).model
    model_copy.without_sums_in_place(copied)
    kept: list[Any] = [module for module in clip.cond_stage_model.modules() if isinstance(module, comfy.clip_model.CLIPLayer)]
    changed: list[Any] = [module for module in copied.modules() if isinstance(module, comfy.clip_model.CLIPLayer)]
    assert len(kept) == len(changed) == LAYERS
    x = torch.randn(2, 9, WIDTHS["l"], generator=torch.Generator().manual_seed(0))

    def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Any) -> Tensor:
        q, k, v = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part in (q, k, v))
        return nn.functional.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2)

    mask = torch.full((9, 9), -1e30).triu(1)
    for one, other in zip(kept, changed, strict=True):
        given = x.clone()
        with torch.no_grad():
            found = other(given, mask, attention)
            wanted = one(x.clone(), mask, attention)
        assert torch.equal(given, x)
        assert torch.equal(found, wanted)
        assert not torch.equal(found, x)
