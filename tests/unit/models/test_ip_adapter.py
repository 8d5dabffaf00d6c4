"""Adapter files and networks: IP-Adapter's families against diffusers, our own format, and what is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from maskprompt.attention import chain, ip_adapter_layers, meca
from maskprompt.models.clip_vision import patch_visibility
from maskprompt.models.ip_adapter import adapter as meca_adapter
from maskprompt.models.ip_adapter import file as meca_file
from maskprompt.models.ip_adapter import network as meca_network
from safetensors.torch import save_file

from ...support import adapters
from ...support.ip_adapters import CONTEXT, WIDTHS, write
from ...support.unets import unet as real_unet


def small_unet(kind: str) -> tuple[Any, Any]:
    """diffusers' UNet of random weights, built like SD 1.5 or SDXL, and ComfyUI's with the same weights."""
    import comfy.ops
    import comfy.utils
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    torch.manual_seed(0)
    down: dict[str, Any]
    if kind == "SD 1.5":
        down = {"down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"), "transformer_layers_per_block": 1,
                "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D")}  # fmt: skip
        depth = [1, 1, 1, 1, 0, 0]
        depth_out = [1, 1, 1, 1, 1, 1, 0, 0, 0]
        middle = 1
    else:
        down = {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"), "use_linear_projection": True,
                "transformer_layers_per_block": [1, 2, 3],
                "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")}  # fmt: skip
        depth = [0, 0, 2, 2, 3, 3]
        depth_out = [0, 0, 0, 2, 2, 2, 3, 3, 3]
        middle = 3
    theirs = UNet2DConditionModel(
        block_out_channels=(32, 64, 96), cross_attention_dim=CONTEXT, attention_head_dim=cast("Any", (2, 4, 6)), layers_per_block=2, **down
    ).eval()  # fmt: skip
    config: dict[str, Any] = {
        "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32, "num_res_blocks": [2, 2, 2], "channel_mult": (1, 2, 3),
        "transformer_depth": depth, "transformer_depth_output": depth_out, "transformer_depth_middle": middle, "context_dim": CONTEXT,
        "num_heads": -1, "num_head_channels": 16, "use_spatial_transformer": True, "use_linear_in_transformer": kind == "SDXL",
        "legacy": False,
    }  # fmt: skip
    ours = UNetModel(**config, dtype=torch.float32, device="cpu", operations=comfy.ops.disable_weight_init)
    names = comfy.utils.unet_to_diffusers(config)
    state = {names[name]: weight for name, weight in theirs.state_dict().items() if name in names}
    ours.load_state_dict(state, strict=True)
    return theirs, ours.eval()


def painted(ours: Any, patches: tuple[chain.Patch, ...], x: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """ComfyUI's UNet with the patches; the two rows are the pictures of a batch, both positive."""
    composed = chain.Chain(patches).composed(ours, x, {"cond_or_uncond": [0], "sigmas": torch.tensor([1.0])})
    with torch.no_grad():
        return ours(x, torch.tensor([500.0, 500.0]), context=text, transformer_options=composed)


@pytest.mark.parametrize("kind", ["SD 1.5", "SDXL"])
@pytest.mark.parametrize("family", ["base", "plus"])
def test_a_whole_unet_paints_as_diffusers_does(kind: str, family: str, tmp_path: Path) -> None:
    """The very same file through both: projection, the order of the layers, the middle block, every key and value."""
    theirs, ours = small_unet(kind)
    widths, context = ip_adapter_layers.widths(ours)
    weights = (adapters.base if family == "base" else adapters.plus)(widths, context)
    loaded = meca_adapter.load(write(weights, tmp_path / "adapter.bin"))
    output = adapters.encoded(2)
    x = torch.randn(2, 4, 16, 24)
    text = torch.randn(2, 77, context)
    theirs._load_ip_adapter_weights([adapters.nested(weights)])
    features = output.image_embeds if family == "base" else output.penultimate_hidden_states
    with torch.no_grad():
        wanted = theirs(x, 500, text, added_cond_kwargs={"image_embeds": [features[:, None]]}).sample
    pairs = loaded.pairs(output, zeros_for(loaded))
    keys = meca.StoredKeys({layer: pairs[number] for number, layer in ip_adapter_layers.numbered(ours).items()})
    result = painted(ours, (meca.ImagePrompt(keys, None, 1.0, "global"),), x, text)
    torch.testing.assert_close(result, wanted, atol=1e-4, rtol=1e-4)
    assert (result - painted(ours, (), x, text)).abs().max() > 1e-2


def zeros_for(loaded: meca_adapter.LoadedAdapter) -> Any:
    """A stand-in for a CLIP_VISION where the unconditional half is not looked at."""
    return adapters.small_clip_vision(loaded.features) if loaded.about.unconditional == meca_file.ZERO_PIXELS else None


@pytest.mark.parametrize(("kind", "count"), [("SD 1.5", 16), ("SD 2.1", 16), ("SDXL", 70)])
def test_the_numbers_are_ip_adapters(kind: str, count: int) -> None:
    """The real models, against the order of diffusers' attention processors, in which IP-Adapter's files count."""
    import comfy.utils
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    from ...support.unets import UNETS

    narrow = {"attention_head_dim": 8, "norm_num_groups": 8, "block_out_channels": (8, 16, 32, 32)}
    sdxl = {**narrow, "block_out_channels": (8, 16, 32), "transformer_layers_per_block": [1, 2, 10],
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")}  # fmt: skip
    theirs = UNet2DConditionModel(**cast("dict[str, Any]", sdxl if kind == "SDXL" else narrow))
    names = comfy.utils.unet_to_diffusers(UNETS[kind])
    found = ip_adapter_layers.numbered(real_unet(kind))
    order = list(theirs.attn_processors)
    assert len(found) == count
    assert {number for number, name in enumerate(order) if "attn2" in name} == set(found)
    for number, (part, block, index) in found.items():
        key = names[order[number].replace(".processor", ".to_k.weight")]
        place = "middle_block.1" if part == "middle" else f"{part}_blocks.{block}.1"
        assert key == f"{place}.transformer_blocks.{index}.attn2.to_k.weight", number
    middle = [number for number, layer in found.items() if layer[0] == "middle"]
    assert middle == ([*range(121, 141, 2)] if kind == "SDXL" else [31])


def test_widths_are_the_networks() -> None:
    for kind, context in (("SD 1.5", 768), ("SDXL", 2048)):
        widths, text = ip_adapter_layers.widths(real_unet(kind))
        assert text == context
        for number, module in ip_adapter_layers.cross_attention(real_unet(kind)).items():
            assert tuple(module.to_k.weight.shape) == (widths[number], context)


@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
@pytest.mark.parametrize("family", ["base", "plus"])
def test_projections_are_diffusers(family: str, suffix: str, tmp_path: Path) -> None:
    from diffusers.loaders.unet import UNet2DConditionLoadersMixin

    weights = adapters.base(WIDTHS, CONTEXT) if family == "base" else adapters.plus(WIDTHS, CONTEXT, width=128, depth=3)
    if family == "plus":
        weights = {name: weight for name, weight in weights.items() if not name.startswith("image_proj.layers.3")}
    read, _ = meca_file.read(write(weights, tmp_path / f"adapter{suffix}"))
    network = meca_network.like(read)
    network.load_state_dict(read, assign=True)
    if family == "plus":
        weights |= {
            name.replace("layers.2", "layers.3"): torch.zeros_like(weight) for name, weight in weights.items() if "layers.2" in name
        }
    theirs: Any = UNet2DConditionLoadersMixin()._convert_ip_adapter_image_proj_to_diffusers(
        adapters.nested(weights)["image_proj"], low_cpu_mem_usage=False
    )
    features = torch.randn(3, 64) if family == "base" else torch.randn(3, 17, 48)
    with torch.no_grad():
        torch.testing.assert_close(network.image_proj(features), theirs(features), atol=1e-5, rtol=1e-5)


def test_half_precision_files_stay_so_and_are_computed_in_float32(tmp_path: Path) -> None:
    weights = {name: weight.half() for name, weight in adapters.base(WIDTHS, CONTEXT).items()}
    loaded = meca_adapter.load(write(weights, tmp_path / "half.safetensors"))
    assert {weight.dtype for weight in loaded.patcher.model.state_dict().values()} == {torch.float16}
    exact = meca_adapter.load(write({name: weight.float() for name, weight in weights.items()}, tmp_path / "full.safetensors"))
    for mine, theirs in zip(loaded.pairs(adapters.encoded()).values(), exact.pairs(adapters.encoded()).values(), strict=True):
        assert mine[0].dtype == torch.float32
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-6)


def test_the_unconditional_tokens_of_base_are_those_of_zeros(tmp_path: Path) -> None:
    weights = adapters.base(WIDTHS, CONTEXT)
    loaded = meca_adapter.load(write(weights, tmp_path / "base.bin"))
    bias = weights["image_proj.proj.bias"].view(4, CONTEXT)
    scale = weights["image_proj.norm.weight"]
    shift = weights["image_proj.norm.bias"]
    tokens = torch.nn.functional.layer_norm(bias, (CONTEXT,), scale, shift)
    for number, (k, v) in loaded.pairs(adapters.encoded(2)).items():
        assert len(k) == len(v) == 3
        torch.testing.assert_close(k[2], tokens @ weights[f"ip_adapter.{number}.to_k_ip.weight"].T, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(v[2], tokens @ weights[f"ip_adapter.{number}.to_v_ip.weight"].T, atol=1e-5, rtol=1e-5)


def test_zero_pixels_are_encoded_as_transformers_does() -> None:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    clip_vision = adapters.small_clip_vision()
    config = {name: value for name, value in clip_vision.config.items() if name != "model_type"}
    theirs: Any = CLIPVisionModelWithProjection(CLIPVisionConfig(**config)).eval()
    theirs.load_state_dict({name: weight for name, weight in clip_vision.get_sd().items() if name in theirs.state_dict()}, strict=False)
    with torch.no_grad():
        wanted = theirs(torch.zeros(1, 3, 56, 56), output_hidden_states=True).hidden_states[-2][0]
    torch.testing.assert_close(meca_adapter.zero_pixels(clip_vision), wanted, atol=1e-4, rtol=1e-4)
    black = clip_vision.encode_image(torch.zeros(1, 56, 56, 3)).penultimate_hidden_states[0]
    assert (black - wanted).abs().max() > 0.1


def test_plus_gets_the_encoding_of_zero_pixels_for_the_unconditional_half(tmp_path: Path) -> None:
    loaded = meca_adapter.load(write(adapters.plus(WIDTHS, CONTEXT), tmp_path / "plus.safetensors"))
    clip_vision = adapters.small_clip_vision()
    zero = SimpleNamespace(penultimate_hidden_states=meca_adapter.zero_pixels(clip_vision)[None])
    for k, v in loaded.pairs(zero, clip_vision).values():
        assert torch.equal(k[0], k[1])
        assert torch.equal(v[0], v[1])
    with pytest.raises(ValueError, match=r"'plus.safetensors' needs the CLIP vision model too.*Wire the same Load CLIP Vision"):
        loaded.pairs(adapters.encoded())


def test_repeated_tokens_of_patch_visibility_count_once(tmp_path: Path) -> None:
    """Pictures of a batch with fewer visible patches repeat theirs, which must not weigh more."""
    loaded = meca_adapter.load(write(adapters.plus(WIDTHS, CONTEXT), tmp_path / "plus.bin"))
    clip_vision = adapters.small_clip_vision()
    states = adapters.encoded(1).penultimate_hidden_states
    tokens = torch.tensor([[0, 1, 1, 1, 2, 4, 4], [0, 1, 2, 3, 4, 5, 6]])
    batch = SimpleNamespace(penultimate_hidden_states=torch.stack([states[0, own] for own in tokens]), tokens=tokens)
    assert len(patch_visibility.own_tokens(batch)[0]) == 4
    single = SimpleNamespace(penultimate_hidden_states=states[:, [0, 1, 2, 4]])
    for (k, _), (alone, _) in zip(loaded.pairs(batch, clip_vision).values(), loaded.pairs(single, clip_vision).values(), strict=True):
        torch.testing.assert_close(k[0], alone[0], atol=1e-6, rtol=1e-6)


def test_a_second_time_nothing_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Moving the weight's slider must not push the UNet off the GPU for the adapter's sake."""
    import comfy.model_management as management

    loaded = meca_adapter.load(write(adapters.base(WIDTHS, CONTEXT), tmp_path / "base.bin"))
    first = loaded.pairs(adapters.encoded())
    asked = []
    monkeypatch.setattr(management, "load_models_gpu", lambda models, **_: asked.append(models))
    assert loaded.pairs(adapters.encoded()) is first
    assert not asked
    assert loaded.pairs(adapters.encoded(seed=2)) is not first
    assert asked == [[loaded.patcher]]
    for seed in range(3, 10):
        loaded.pairs(adapters.encoded(seed=seed))
    assert len(loaded._kept) == meca_adapter.KEPT


def test_weights_are_comfyuis_to_move(tmp_path: Path) -> None:
    """They cast themselves, so low-VRAM modes can leave any of them on the CPU; what is handed on lies on the CPU."""
    loaded = meca_adapter.load(write(adapters.plus(WIDTHS, CONTEXT), tmp_path / "plus.bin"))
    assert loaded.patcher.model_size() == sum(weight.nbytes for weight in adapters.plus(WIDTHS, CONTEXT).values())
    leaves = [module for module in loaded.patcher.model.modules() if not list(module.children()) and list(module.parameters())]
    assert all(module.comfy_cast_weights for module in leaves)
    assert not any(weight.requires_grad for weight in loaded.patcher.model.parameters())
    with torch.inference_mode():
        pairs = loaded.pairs(adapters.encoded(), adapters.small_clip_vision())
    assert {part.device.type for pair in pairs.values() for part in pair} == {"cpu"}
    assert not any(part.is_inference() for pair in pairs.values() for part in pair)


def text_weights() -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(5)
    return {number: (torch.randn(width, CONTEXT), torch.randn(width, CONTEXT)) for number, width in WIDTHS.items()}


def test_a_fresh_network_begins_with_the_texts_keys_and_values() -> None:
    """Section 3.3: W_ki and W_vi begin as the text's. So image tokens that equal the text's are attended to as the text is."""
    network = meca_network.fresh(text_weights(), features=48, tokens=6, heads=3)
    tokens = torch.randn(2, 6, CONTEXT)
    for number, (k, v) in network(tokens).items():
        torch.testing.assert_close(k, tokens @ text_weights()[number][0].T)
        torch.testing.assert_close(v, tokens @ text_weights()[number][1].T)
    assert all(weight.requires_grad for weight in network.parameters())


def test_compression_is_equation_3() -> None:
    """Z' = Q · transpose(Z) · Z with attention's linear maps, softmax and scale, written densely."""
    network = meca_network.fresh(text_weights(), features=48, tokens=6, heads=3)
    projection: Any = network.image_proj
    states = torch.randn(2, 20, 48)
    z = torch.nn.functional.layer_norm(states, (48,))
    k = z @ projection.to_k.weight.T
    v = z @ projection.to_v.weight.T
    heads = []
    for part in (slice(0, 16), slice(16, 32), slice(32, 48)):
        heads.append(((projection.queries[:, part] @ k[..., part].transpose(1, 2)) / 4).softmax(-1) @ v[..., part])
    wanted = torch.nn.functional.layer_norm(torch.cat(heads, -1) @ projection.proj_out.weight.T + projection.proj_out.bias, (CONTEXT,))
    found = projection(states)
    assert found.shape == (2, 6, CONTEXT)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mode", ["region", "query", "global"])
def test_what_is_saved_is_what_is_loaded(tmp_path: Path, mode: Any) -> None:
    network = meca_network.fresh(text_weights(), features=48, tokens=6, heads=3)
    about = meca_file.About(mode, meca_file.ZEROS, 3, "SD 1.5")
    path = str(tmp_path / "own.safetensors")
    meca_file.save(network, about, path)
    weights, read = meca_file.read(path)
    assert read == about
    assert weights.keys() == network.state_dict().keys()
    assert all(torch.equal(weights[name], value) for name, value in network.state_dict().items())
    loaded = meca_adapter.load(path)
    assert loaded.about.mode == mode
    output = adapters.encoded()
    with torch.no_grad():
        cond = network(network.image_proj(output.penultimate_hidden_states))
        uncond = network(network.image_proj(torch.zeros(1, 1, 48)))
    for number, (k, v) in loaded.pairs(output).items():
        torch.testing.assert_close(k, torch.cat([cond[number][0], uncond[number][0]]), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(v, torch.cat([cond[number][1], uncond[number][1]]), atol=1e-5, rtol=1e-5)
    again = str(tmp_path / "again.safetensors")
    meca_file.save(loaded.patcher.model, loaded.about, again)
    twice, about_twice = meca_file.read(again)
    assert about_twice == about
    assert all(torch.equal(twice[name], value) for name, value in weights.items())
    assert [file.name for file in tmp_path.iterdir() if "unfinished" in file.name] == []


def test_the_metadata_says_what_the_file_is(tmp_path: Path) -> None:
    from safetensors import safe_open

    path = tmp_path / "own.safetensors"
    meca_file.save(meca_network.fresh(text_weights(), 48, 6, 3), meca_file.About("query", meca_file.ZEROS, 3, "SDXL"), str(path))
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {
            "format": "maskprompt-meca", "format_version": "1", "base": "SDXL", "projection": "compression", "features": "48",
            "context": "24", "tokens": "6", "layers": "32,64,96", "heads": "3", "mode": "query", "unconditional": "zeros",
        }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": "2"}, "format 2; this pack reads format 1. Update MaskPrompt"),
        ({"mode": "sideways"}, "metadata cannot be read.*sideways"),
        ({"heads": "5"}, "48 features cannot be split into 5 heads"),
        ({"tokens": "8"}, "does not fit its weights .*'8', but the weights say '6'"),
    ],
)
def test_metadata_that_is_wrong_is_refused(tmp_path: Path, changes: dict[str, str], message: str) -> None:
    network = meca_network.fresh(text_weights(), 48, 6, 3)
    metadata = meca_file.metadata_of(network, meca_file.About(heads=3)) | changes
    save_file(network.state_dict(), tmp_path / "own.safetensors", metadata=metadata)
    with pytest.raises(ValueError, match=message):
        meca_file.read(str(tmp_path / "own.safetensors"))
