"""The text encoder that learns: to the bit the CLIP it was copied from, and in its gradients `transformers` with the same weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from maskprompt.training.engine.text_learner import TextLearner
from maskprompt.training.engine.trainable_weights import Method
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from ...support.text_learners import KINDS, LAYERS, LONG, METHODS, WIDTHS, X, clip_of, loaded, roughened, same, stock, with_a_lora

SPARE = 1000
"""Rows of the words' table that no prompt here names: the reference keeps its handles in them."""
PROMPTS = ["", "a photo of a cat", "a (striped:1.3) cat [on] ((grass))", LONG, f"({LONG}:0.7)"]


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
