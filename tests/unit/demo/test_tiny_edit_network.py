"""tiny-edit's transformer and text encoder, which are ours to train, against ComfyUI's classes and diffusers'."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from demo import tiny_model
from demo.tiny_edit import text, transformer

tiny_model.comfyui_on_path()

SHAPE = transformer.Shape(channels=4, hidden=64, heads=2, double=2, single=2, axes=(8, 12, 12), words=16)


def shaken(network: torch.nn.Module) -> Any:
    """The network with random weights everywhere: what begins as zero would hide mistakes."""
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.data += 0.08 * torch.randn(parameter.shape, generator=generator)
    return network.eval()


def inputs(references: list[tuple[int, int]]) -> tuple[Tensor, Tensor, Tensor, Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    pictures = [draw(2, SHAPE.channels, height, width) for height, width in references]
    return draw(2, SHAPE.channels, 12, 16), torch.tensor([0.9, 0.3]), draw(2, 5, SHAPE.words), draw(2, SHAPE.words), pictures


def comfyui_flux(shape: transformer.Shape) -> Any:
    import comfy.ops
    from comfy.ldm.flux.model import Flux

    return Flux(
        in_channels=shape.channels, out_channels=shape.channels, vec_in_dim=shape.words, context_in_dim=shape.words,
        hidden_size=shape.hidden, mlp_ratio=4.0, num_heads=shape.heads, depth=shape.double, depth_single_blocks=shape.single,
        axes_dim=list(shape.axes), theta=shape.theta, patch_size=2, qkv_bias=True, guidance_embed=False, txt_ids_dims=[],
        default_ref_method="index", ref_index_scale=shape.reference_step,
        dtype=torch.float32, device="cpu", operations=comfy.ops.disable_weight_init,
    ).eval()  # fmt: skip


def diffusers_state(state: dict[str, Tensor], hidden: int) -> dict[str, Tensor]:
    """Our weights under diffusers' names."""
    found: dict[str, Tensor] = {}
    embedders = {"time_in": "timestep_embedder", "vector_in": "text_embedder"}
    for name, value in state.items():
        part, *rest = name.split(".")
        end = rest[-1]
        if part == "img_in":
            found[f"x_embedder.{end}"] = value
        elif part == "txt_in":
            found[f"context_embedder.{end}"] = value
        elif part in embedders:
            found[f"time_text_embed.{embedders[part]}.linear_{1 if rest[0] == 'in_layer' else 2}.{end}"] = value
        elif part == "final_layer" and rest[0] == "linear":
            found[f"proj_out.{end}"] = value
        elif part == "final_layer":
            shift, scale = value.chunk(2)
            found[f"norm_out.linear.{end}"] = torch.cat([scale, shift])
        elif part == "double_blocks":
            block, layer, *inner = rest
            stream, kind = layer.split("_")
            image = stream == "img"
            prefix = f"transformer_blocks.{block}."
            if kind == "mod":
                found[f"{prefix}{'norm1' if image else 'norm1_context'}.linear.{end}"] = value
            elif kind == "mlp":
                found[f"{prefix}{'ff' if image else 'ff_context'}.net.{'0.proj' if inner[0] == '0' else '2'}.{end}"] = value
            elif inner[0] == "qkv":
                names = ("to_q", "to_k", "to_v") if image else ("add_q_proj", "add_k_proj", "add_v_proj")
                found |= {f"{prefix}attn.{one}.{end}": piece for one, piece in zip(names, value.chunk(3), strict=True)}
            elif inner[0] == "proj":
                found[f"{prefix}attn.{'to_out.0' if image else 'to_add_out'}.{end}"] = value
            else:
                which = inner[1][0]
                found[f"{prefix}attn.{f'norm_{which}' if image else f'norm_added_{which}'}.weight"] = value
        else:
            block, layer, *inner = rest
            prefix = f"single_transformer_blocks.{block}."
            if layer == "modulation":
                found[f"{prefix}norm.linear.{end}"] = value
            elif layer == "linear1":
                pieces = value.split([hidden, hidden, hidden, 4 * hidden])
                names = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
                found |= {f"{prefix}{one}.{end}": piece for one, piece in zip(names, pieces, strict=True)}
            elif layer == "linear2":
                found[f"{prefix}proj_out.{end}"] = value
            else:
                found[f"{prefix}attn.norm_{inner[0][0]}.weight"] = value
    return found


@pytest.mark.parametrize("references", [[], [(12, 16)], [(12, 16), (8, 8)]])
def test_it_answers_as_comfyui_does(references: list[tuple[int, int]]) -> None:
    ours = shaken(transformer.Flux(SHAPE))
    theirs = comfyui_flux(SHAPE)
    state = {name.replace("_norm.scale", "_norm.weight"): value for name, value in ours.state_dict().items()}
    theirs.load_state_dict(state, strict=True)
    noisy, times, words, pooled, pictures = inputs(references)
    with torch.no_grad():
        expected = theirs(noisy, times, words, pooled, ref_latents=pictures or None)
        answer = ours(noisy, times, words, pooled, pictures)
    assert expected.std() > 0.05
    torch.testing.assert_close(answer, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("references", [[], [(12, 16)], [(12, 16), (8, 8)]])
def test_it_answers_as_diffusers_does(references: list[tuple[int, int]]) -> None:
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

    ours = shaken(transformer.Flux(SHAPE))
    theirs = FluxTransformer2DModel(
        patch_size=1, in_channels=4 * SHAPE.channels, num_layers=SHAPE.double, num_single_layers=SHAPE.single,
        attention_head_dim=SHAPE.hidden // SHAPE.heads, num_attention_heads=SHAPE.heads, joint_attention_dim=SHAPE.words,
        pooled_projection_dim=SHAPE.words, guidance_embeds=False, axes_dims_rope=(8, 12, 12),
    ).eval()  # fmt: skip
    theirs.load_state_dict(diffusers_state(ours.state_dict(), SHAPE.hidden), strict=True)
    noisy, times, words, pooled, pictures = inputs(references)
    grids = [(12, 16), *references]
    ids = torch.cat(
        [
            torch.tensor([[SHAPE.reference_step * number, row, column] for row in range(height // 2) for column in range(width // 2)])
            for number, (height, width) in enumerate(grids)
        ]
    )
    with torch.no_grad():
        tokens = torch.cat([transformer.patches_of(picture) for picture in (noisy, *pictures)], 1)
        expected = theirs(
            hidden_states=tokens,
            encoder_hidden_states=words,
            pooled_projections=pooled,
            timestep=times,
            img_ids=ids,
            txt_ids=torch.zeros(5, 3),
        ).sample[:, : 6 * 8]
        answer = ours(noisy, times, words, pooled, pictures)
    torch.testing.assert_close(answer, transformer.latents_of(expected, 12, 16), atol=2e-5, rtol=1e-4)


def test_every_weight_learns() -> None:
    ours = shaken(transformer.Flux(SHAPE))
    noisy, times, words, pooled, pictures = inputs([(12, 16)])
    ours(noisy, times, words, pooled, pictures).square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in ours.parameters())


def test_a_picture_of_half_the_size_covers_the_same_positions() -> None:
    whole = transformer.positions(8, 8, 0).view(8, 8, 3)
    half = transformer.positions(4, 4, 0, spacing=2).view(4, 4, 3)
    centres = whole.view(4, 2, 4, 2, 3).mean((1, 3))
    assert torch.equal(half, centres)


def test_the_text_encoder_answers_as_comfyui_does() -> None:
    import comfy.ops
    from comfy.clip_model import CLIPTextModel

    ids = [320, 1929, 2533, text.START, text.END]
    ours = shaken(text.TextEncoder(ids))
    config = {
        "hidden_size": text.TEXT_WIDTH, "intermediate_size": 4 * text.TEXT_WIDTH, "num_attention_heads": text.HEADS,
        "num_hidden_layers": text.LAYERS, "hidden_act": "quick_gelu", "max_position_embeddings": text.TEXT_LENGTH, "eos_token_id": text.END,
    }  # fmt: skip
    theirs = CLIPTextModel(config, torch.float32, "cpu", comfy.ops.disable_weight_init).eval()
    missing, unexpected = theirs.load_state_dict(ours.clip_state(), strict=False)
    assert missing == ["text_projection.weight"]
    assert not unexpected
    tokens = torch.tensor([[text.START, 320, 1929, *[text.END] * 21], [text.START, 320, 2533, 1929, *[text.END] * 20]])
    rows = torch.tensor([[ids.index(int(number)) for number in line] for line in tokens])
    theirs.text_projection.weight.data = torch.eye(text.TEXT_WIDTH)
    with torch.no_grad():
        expected, _, _, pooled = theirs(tokens)
        words, together = ours(rows)
    torch.testing.assert_close(words, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(together, pooled, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_is_the_same_where_it_learns(causal: bool) -> None:
    """Written out while gradients are recorded on a CPU, fused while they are not."""
    q, k, v = torch.randn(3, 2, 4, 9, 16, generator=torch.Generator().manual_seed(0))
    written = transformer.attention(q, k, v, causal)
    with torch.no_grad():
        fused = transformer.attention(q, k, v, causal)
    torch.testing.assert_close(written, fused, atol=1e-6, rtol=1e-5)


def test_a_head_looks_at_the_references_as_its_block_attends(monkeypatch: pytest.MonkeyPatch) -> None:
    """The logits are those of the block's own attention, from the painted picture's tokens to the references', for every block and head."""
    matching = tuple((block, head) for block in range(SHAPE.single) for head in range(SHAPE.heads))
    network = shaken(transformer.Flux(replace(SHAPE, matching=matching)))
    noisy, times, words, pooled, references = inputs([(12, 16), (8, 10)])
    scores: list[Tensor] = []
    own = transformer.attention

    def watched(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> Tensor:
        scores.append(q @ k.transpose(2, 3) * q.shape[-1] ** -0.5)
        return own(q, k, v, causal)

    monkeypatch.setattr(transformer, "attention", watched)
    said = network.answers(noisy, times, words, pooled, references, looking=True)
    painted, behind = 6 * 8, 6 * 8 + 4 * 5
    length = words.shape[1]
    assert len(said.looks) == len(matching)
    for look, (block, head) in zip(said.looks, matching, strict=True):
        assert look.shape == (2, painted, behind)
        expected = scores[SHAPE.double + block][:, head, length : length + painted, length + painted :]
        torch.testing.assert_close(look, expected)
    assert torch.equal(said.picture, network(noisy, times, words, pooled, references))
    assert not network.answers(noisy, times, words, pooled, references).looks
    assert not network.answers(noisy, times, words, pooled, looking=True).looks
