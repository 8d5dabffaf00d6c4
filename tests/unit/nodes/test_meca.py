"""Load Image Prompt Adapter and Image Prompt Region, called as ComfyUI calls them, in a real sampler on a small model of random weights."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from comfy.patcher_extension import WrappersMP
from maskprompt.attention import chain, ip_adapter_layers, layers, meca
from maskprompt.models import files
from maskprompt.models.ip_adapter import adapter as meca_adapter
from maskprompt.models.ip_adapter import file as meca_file
from maskprompt.models.ip_adapter import network as meca_network
from maskprompt.nodes import depth_hint
from maskprompt.nodes import meca as nodes
from maskprompt.nodes.meca import LoadMECA
from safetensors.torch import save_file

from ...support import adapters
from ...support.masked_sampling import corner, small_sdxl
from ...support.meca import adapter, applied
from ...support.models import Sample, random_model
from ...support.schemas import explains_itself

__all__ = ["adapter"]  # fixtures

MODES: tuple[meca.Mode, ...] = ("region", "query", "global")


def patches_of(model: Any) -> tuple[chain.Patch, ...]:
    return tuple(patch for whole in model.get_wrappers(WrappersMP.DIFFUSION_MODEL, chain.KEY) for patch in whole.patches)


@pytest.mark.parametrize("node", [*nodes.NODES, *depth_hint.NODES])
def test_they_explain_themselves(node: Any) -> None:
    explains_itself(node)


def test_weight_zero_and_an_empty_region_give_the_very_model(model: Any, adapter: Any, caplog: pytest.LogCaptureFixture) -> None:
    assert applied(model, adapter, corner(), weight=0.0) is model
    with caplog.at_level(logging.WARNING):
        assert applied(model, adapter, torch.zeros(1, 64, 64)) is model
    assert "1 of 1 regions are empty" in caplog.text


@pytest.mark.parametrize("mode", MODES)
def test_the_chain_knows_the_schedule_at_the_node(model: Any, adapter: Any, mode: str) -> None:
    """For calls that tell of no running model's."""
    (whole,) = applied(model, adapter, corner(), mode=mode).get_wrappers(WrappersMP.DIFFUSION_MODEL, chain.KEY)
    level = model.get_model_object("model_sampling").percent_to_sigma(0.3)
    for sigma in (level - 1e-3, level + 1e-3):
        assert whole.moment({"sigmas": torch.tensor([sigma])}).within(0.3, 1.0) == (sigma < level)


@pytest.mark.parametrize("mode", MODES)
def test_the_given_model_stays_as_it_is_and_five_runs_are_one(model: Any, adapter: Any, sample: Sample, mode: str) -> None:
    before = sample(model)
    with_image = applied(model, adapter, corner(), mode=mode)
    first = sample(with_image)
    assert (first - before).abs().max() > 1e-3
    assert all(torch.equal(sample(with_image), first) for _ in range(4))
    assert torch.equal(sample(applied(model, adapter, corner(), mode=mode)), first)
    assert torch.equal(sample(model), before)


def test_auto_is_the_adapters_mode_and_global_without_a_region(model: Any, adapter: Any, sample: Sample) -> None:
    """Without a region and with the text outside of it only, the prompt would say nothing."""
    assert torch.equal(sample(applied(model, adapter, corner())), sample(applied(model, adapter, corner(), mode="region")))
    assert torch.equal(sample(applied(model, adapter)), sample(applied(model, adapter, mode="global")))
    trained = SimpleNamespace(about=meca_file.About("query"))
    region = nodes._region(corner())
    found: Any = trained
    assert nodes.chosen_mode("auto", found, region) == "query"
    assert nodes.chosen_mode("auto", found, None) == "global"
    for mode in MODES:
        assert nodes.chosen_mode(mode, found, None) == mode


def test_each_choice_makes_a_picture_of_its_own(model: Any, adapter: Any, sample: Sample) -> None:
    choices: list[dict[str, Any]] = [
        {}, {"mode": "query"}, {"mode": "global"}, {"weight": 0.5}, {"weight": 2.0}, {"layers": "encoder"}, {"layers": "decoder"},
        {"layers": "list", "layer_list": "middle 0"}, {"end_percent": 0.5}, {"output": adapters.encoded(seed=9)},
    ]  # fmt: skip
    found = [sample(model)] + [sample(applied(model, adapter, corner(), **choice)) for choice in choices]
    for index, one in enumerate(found):
        assert torch.isfinite(one).all()
        assert not any(torch.equal(one, other) for other in found[:index]), index


def test_the_whole_picture_as_region_is_no_region(model: Any, adapter: Any, sample: Sample) -> None:
    for mode in MODES:
        whole = sample(applied(model, adapter, torch.ones(1, 128, 128), mode=mode))
        torch.testing.assert_close(whole, sample(applied(model, adapter, None, mode=mode)), atol=1e-5, rtol=1e-5)


def test_in_the_region_the_text_says_nothing(model: Any, adapter: Any, sample: Sample) -> None:
    """Region and query with the whole picture as region: another prompt, the same picture; not so where the mode is global."""

    def texts(seed: int) -> list[Any]:
        generator = torch.Generator().manual_seed(seed)
        return [[torch.randn(1, 77, 128, generator=generator), {}]]

    def painted(mode: str, seed: int) -> torch.Tensor:
        import comfy.sample

        noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
        return comfy.sample.sample(applied(model, adapter, torch.ones(1, 128, 128), mode=mode), noise, 2, 1.0, "euler", "normal",
                                   texts(seed), texts(0), torch.zeros_like(noise), seed=1, disable_pbar=True)  # fmt: skip

    assert torch.equal(painted("region", 1), painted("region", 2))
    assert not torch.equal(painted("global", 1), painted("global", 2))


@pytest.mark.parametrize("cfg", [1.0, 5.0])
@pytest.mark.parametrize("mode", MODES)
def test_a_batch_with_images_and_regions_for_each_picture(model: Any, adapter: Any, sample: Sample, cfg: float, mode: str) -> None:
    """Each picture is what it would be alone with its own image and region; one has an empty region."""
    regions = torch.zeros(3, 128, 128)
    regions[0, :64] = 1
    regions[1, :, 64:] = 1
    output = adapters.encoded(3)
    together = sample(applied(model, adapter, regions, mode=mode, output=output), batch=3, cfg=cfg)
    for index in range(3):
        own = SimpleNamespace(image_embeds=output.image_embeds[index : index + 1])
        alike = sample(applied(model, adapter, regions[index : index + 1], mode=mode, output=own), batch=3, cfg=cfg)
        torch.testing.assert_close(together[index], alike[index], atol=1e-4, rtol=1e-4)


def test_several_regions(model: Any, adapter: Any, sample: Sample) -> None:
    """The order of the nodes does not matter (but for rounding, which random weights magnify); text patches lie beneath images."""
    one = corner()
    other = torch.flip(corner(), (1, 2))
    first = adapters.encoded(seed=1)
    second = adapters.encoded(seed=2)
    both = applied(applied(model, adapter, one, output=first), adapter, other, output=second, weight=0.7)
    swapped = applied(applied(model, adapter, other, output=second, weight=0.7), adapter, one, output=first)
    result = sample(both)
    plain = sample(model)
    assert (result - sample(swapped)).abs().max() < 1e-3 * (result - plain).abs().max()
    kinds = [type(patch) for patch in patches_of(both)]
    assert kinds == [meca.TextOutside, meca.TextOutside, meca.ImagePrompt, meca.ImagePrompt]
    assert [type(patch) for patch in patches_of(applied(model, adapter, mode="global"))] == [meca.ImagePrompt]


def test_start_end_and_layers_hold_for_text_and_image(model: Any, adapter: Any) -> None:
    changed = applied(model, adapter, corner(), layers="decoder", start_percent=0.25, end_percent=0.75)
    for patch in patches_of(changed):
        assert (patch.scope.start, patch.scope.end) == (0.25, 0.75)
        assert patch.scope.layers == {
            layer for layer in layers.layers_of(model.get_model_object("diffusion_model")) if layer[0] == "output"
        }


def test_nothing_stays_on_the_device_after_sampling(model: Any, adapter: Any, sample: Sample) -> None:
    changed = applied(model, adapter, corner())
    image = patches_of(changed)[-1]
    assert isinstance(image, meca.ImagePrompt)
    assert isinstance(image.keys, meca.StoredKeys)
    seen = []
    clone = chain.install(changed, Watch(seen, image.keys))
    sample(clone)
    assert max(seen) > 0
    assert not image.keys._ready


class Watch:
    """Notes how many copies there are while the UNet runs."""

    kind: chain.Kind = "cross"
    scope = chain.EVERYWHERE

    def __init__(self, seen: list[int], keys: meca.StoredKeys) -> None:
        self.seen = seen
        self.keys = keys

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, call: chain.Call, inner: chain.Inner) -> torch.Tensor:
        result = inner(q, k, v)
        self.seen.append(len(self.keys._ready))
        return result


@pytest.mark.parametrize("size", [(24, 40), (29, 43), (9, 7)])
@pytest.mark.parametrize("mode", MODES)
def test_any_size_samples(model: Any, adapter: Any, sample: Sample, size: tuple[int, int], mode: str) -> None:
    result = sample(applied(model, adapter, corner(size[0] * 8, size[1] * 8), mode=mode), size=size, steps=1)
    assert result.shape[-2:] == size
    assert torch.isfinite(result).all()


def test_half_precision_weights_and_inference_mode(adapter: Any, sample: Sample) -> None:
    with torch.inference_mode():
        changed = applied(random_model(dtype=torch.float16), adapter, corner())
        inside = sample(changed)
    assert torch.isfinite(inside).all()
    assert torch.equal(sample(changed), inside)


def test_sdxls_blocks_are_served(sample: Sample, tmp_path: Path) -> None:
    """With a plus adapter and its unconditional encoding."""
    model = small_sdxl()
    pooled = {"pooled_output": torch.randn(1, 16)}
    widths, context = ip_adapter_layers.widths(model.get_model_object("diffusion_model"))
    torch.save(adapters.nested(adapters.plus(widths, context)), tmp_path / "plus.bin")
    loaded = meca_adapter.load(str(tmp_path / "plus.bin"))
    changed = applied(model, loaded, corner(104, 176), clip_vision=adapters.small_clip_vision())
    result = sample(changed, size=(13, 22), steps=2, positive=pooled, negative=pooled)
    plain = sample(model, size=(13, 22), steps=2, positive=pooled, negative=pooled)
    assert torch.isfinite(result).all()
    assert (result - plain).abs().max() > 1e-4


def test_a_trained_adapter_is_served(model: Any, sample: Sample, tmp_path: Path) -> None:
    unet = model.get_model_object("diffusion_model")
    text = {number: (module.to_k.weight, module.to_v.weight) for number, module in ip_adapter_layers.cross_attention(unet).items()}
    network = meca_network.fresh(text, features=48, tokens=6, heads=3)
    path = str(tmp_path / "own.safetensors")
    meca_file.save(network, meca_file.About("query", heads=3, base="tiny"), path)
    changed = applied(model, meca_adapter.load(path), corner())
    modes = [patch.mode for patch in patches_of(changed) if isinstance(patch, (meca.ImagePrompt, meca.TextOutside))]
    assert modes == ["query", "query"]
    assert torch.isfinite(sample(changed)).all()


def test_the_image_encoded_by_comfyui(model: Any, adapter: Any, sample: Sample) -> None:
    """From pixels, through ComfyUI's own CLIP vision classes."""
    clip_vision = adapters.small_clip_vision()
    outputs = [clip_vision.encode_image(torch.rand(1, 80, 60, 3, generator=torch.Generator().manual_seed(seed))) for seed in (0, 1)]
    results = [sample(applied(model, adapter, corner(), output=output)) for output in outputs]
    assert (results[0] - results[1]).abs().max() > 1e-4


def test_what_cannot_be_done_is_refused_in_words(model: Any, adapter: Any, sample: Sample, tmp_path: Path) -> None:
    class Flux:
        def get_model_object(self, name: str) -> torch.nn.Module:
            return torch.nn.Linear(2, 2)

    save_file(adapters.base({1: 320, 3: 320}, 768), tmp_path / "other.safetensors")
    other = meca_adapter.load(str(tmp_path / "other.safetensors"))
    cases: list[tuple[dict[str, Any], str]] = [
        ({"model": Flux()}, r"not a UNet.*SD 1.5, SD 2.1 and SDXL"),
        ({"adapter": other}, "'other.safetensors' is made for a model with 2 .* of width 768; this model has 16 .* of width 128"),
        ({"output": adapters.encoded(pooled=768)}, "of width 64; this one's is 768"),
        ({"output": object()}, "wire a CLIP_VISION_OUTPUT"),
        ({"region": torch.zeros(1, 8, 8, 3)}, "region: a mask has the shape"),
        ({"start_percent": 0.6, "end_percent": 0.5}, "is after end_percent"),
        ({"mode": "sideways"}, "no mode 'sideways'"),
        ({"layers": "list", "layer_list": "encoder"}, "no attention layer 'encoder'.*It has: input 1"),
    ]
    for changes, message in cases:
        with pytest.raises(ValueError, match=message):
            applied(**{"model": model, "adapter": adapter, "region": corner(), **changes})
    with pytest.raises(ValueError, match=r"the mask is 192x128 but the picture .* about 128x128: their shapes differ"):
        sample(applied(model, adapter, corner(128, 192)))


def test_files_are_found_in_their_folder(model: Any, folders: Path) -> None:
    place = folders / "models" / "ipadapter"
    place.mkdir()
    choice: Any = LoadMECA.define_schema().inputs[0]
    assert choice.options == [nodes.NO_FILES]
    widths, context = ip_adapter_layers.widths(model.get_model_object("diffusion_model"))
    torch.save(adapters.nested(adapters.base(widths, context)), place / "one.bin")
    save_file(adapters.plus(widths, context), place / "two.safetensors")
    (place / "notes.txt").write_text("no model")
    import folder_paths

    folder_paths.filename_list_cache.clear()
    assert files.list_files(nodes.FOLDER, meca_file.SUFFIXES) == ["one.bin", "two.safetensors"]
    for name, unconditional in (("one.bin", meca_file.ZEROS), ("two.safetensors", meca_file.ZERO_PIXELS)):
        assert LoadMECA.validate_inputs(name) is True
        (loaded,) = LoadMECA.execute(name).args
        assert (loaded.name, loaded.about.unconditional) == (name, unconditional)
    assert "There is no file 'three.bin'" in str(LoadMECA.validate_inputs("three.bin"))
    assert "two.safetensors" in str(LoadMECA.validate_inputs("three.bin"))
    assert "ip-adapter_sd15.safetensors" in str(LoadMECA.validate_inputs(nodes.NO_FILES))


def test_a_file_that_is_written_anew_is_another_one(folders: Path) -> None:
    """As a training with --overwrite does it while ComfyUI runs."""
    path = folders / "models" / "ipadapter" / "mine.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    stamps: list[str] = []
    for content in (b"one", b"another"):
        path.write_bytes(content)
        stamps.append(LoadMECA.fingerprint_inputs("mine.safetensors"))
    assert stamps[0] != stamps[1] == LoadMECA.fingerprint_inputs("mine.safetensors")
