"""Load Mask-ControlNet, Object Hint and Save Mask-ControlNet, called as ComfyUI calls them, wired to its own Apply ControlNet."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import folder_paths
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from maskprompt.models import files
from maskprompt.models.mask_controlnet import control as mask_controlnet
from maskprompt.models.mask_controlnet.adapter import MaskConcat as Layer
from maskprompt.models.mask_controlnet.control import Adapter, MaskControl
from maskprompt.models.mask_controlnet.file import About
from maskprompt.nodes import mask_controlnet as nodes
from maskprompt.nodes.mask_controlnet import LoadMaskControlNet, MaskConcat, SaveMaskControlNet
from torch import Tensor

from ...support.mask_controlnet import control, control_of, depth, reference, untrained, vae
from ...support.masked_sampling import confined, corner
from ...support.meca import adapter as meca_adapter
from ...support.meca import applied as with_meca
from ...support.models import Sample
from ...support.schemas import explains_itself

FIXTURES = (control, depth, vae, meca_adapter)
WEIGHTS = "diffusion_pytorch_model.safetensors"


def learned(seed: int = 5) -> Adapter:
    """An adapter that is not the untrained one."""
    layer = Layer().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for value in layer.parameters():
        value.copy_(torch.randn(value.shape, generator=generator) * 0.5)
    return Adapter(layer)


def concat(image: Tensor, mask: Any, adapter: Adapter | None = None) -> tuple[Tensor, Tensor]:
    """(hint, object image) of Object Hint."""
    with torch.inference_mode():
        hint, object_image = MaskConcat.execute(adapter or Adapter(Layer()), image, mask).args
    return hint, object_image


def masks(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(2))


def apply_controlnet(net: Any, hint: Tensor, vae: Any = None, strength: float = 1.0, end: float = 1.0) -> dict[str, Any]:
    """The stock Apply ControlNet, for the `sample` fixture."""
    import nodes as stock

    empty = [[torch.zeros(1, 77, 128), {}]]
    positive, negative = stock.ControlNetApplyAdvanced().apply_controlnet(empty, empty, net, hint, strength, 0.0, end, vae)
    return {"positive": positive[0][1], "negative": negative[0][1]}


@pytest.fixture
def output(folders: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An output folder of our own."""
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(folders / "output"))
    (folders / "output").mkdir()
    return folders / "output"


@pytest.mark.parametrize("node", nodes.NODES)
def test_they_explain_themselves(node: Any) -> None:
    explains_itself(node)


def test_the_hint_is_half_object_half_reference() -> None:
    image = reference(2, 40, 56)
    mask = masks(2, 40, 56)
    hint, object_image = concat(image, mask)
    assert torch.equal(object_image, image * mask[..., None])
    assert torch.equal(hint, 0.5 * object_image + 0.5 * image)


def test_a_learned_adapter_makes_the_hint() -> None:
    """Always a picture; the object's image is what the mask cuts out, whatever was learned."""
    image = reference(1, 40, 56)
    mask = masks(1, 40, 56)
    mine = learned()
    hint, object_image = concat(image, mask, mine)
    assert torch.equal(hint, mine.hint(image, mask))
    assert (hint.shape, float(hint.min()), float(hint.max())) == (image.shape, 0.0, 1.0)
    assert torch.equal(object_image, concat(image, mask)[1])
    bare, cut = concat(image, mask, Adapter(Layer(), masked=False))
    assert torch.equal(bare, image)
    assert torch.equal(cut, object_image)


def test_every_form_of_image_and_mask_is_taken() -> None:
    image = reference(1, 40, 56)
    mask = masks(1, 40, 56).round()
    hint, object_image = concat(image, mask)
    forms = [mask[0], mask[None], mask[..., None], mask.bool(), (mask * 255).byte(), mask.half()]
    assert all(torch.equal(concat(image, form)[0], hint) for form in forms)
    with_alpha = torch.cat([image, torch.rand(1, 40, 56, 1)], -1)
    assert torch.equal(concat(with_alpha, mask)[0], hint)
    assert torch.equal(concat(with_alpha, mask)[1], object_image)
    torch.testing.assert_close(concat(image.half(), mask)[0], hint, atol=1e-3, rtol=0)
    assert concat(image.half(), mask)[0].dtype == torch.float32
    for wrong in (None, image, torch.zeros(0, 8, 8)):
        with pytest.raises(ValueError, match="mask"):
            concat(image, wrong)


def test_a_mask_of_another_size_is_scaled() -> None:
    image = reference(1, 40, 56)
    fine = torch.zeros(1, 120, 168)
    fine[:, 30:90, 42:126] = 1
    wanted = torch.zeros(1, 40, 56)
    wanted[:, 10:30, 14:42] = 1
    _, object_image = concat(image, fine)
    inside = wanted.bool()
    inside[:, [10, 29]] = False
    inside[:, :, [14, 41]] = False
    torch.testing.assert_close(object_image[inside], image[inside], atol=1e-5, rtol=0)
    outside = wanted.bool()
    outside[:, 9:31, 13:43] = True
    assert not object_image[~outside].any()


@given(
    height=st.integers(200, 400),
    width=st.integers(200, 800),
    first=st.floats(0.2, 2),
    second=st.floats(0.2, 2),
    up=st.sampled_from([0, 0.5, 0.99]),
)
@settings(max_examples=200, deadline=None)
def test_rounding_is_no_other_shape(height: int, width: int, first: float, second: float, up: float) -> None:
    """Picture and mask may each be scaled from one picture and rounded; a mask that is turned, or of a part, is none of that picture.

    Sides of 40 pixels and more: of fewer, a part of 0.7 is within what rounding to 8 pixels does.
    """

    def scaled(height: float, width: float, by: float, up: float) -> tuple[int, int]:
        return int(height * by + up), int(width * by + up)

    rows, columns = scaled(height, width, first, up)

    def fitted(size: tuple[int, int]) -> tuple[int, ...]:
        return tuple(nodes.fitting(torch.ones(1, *size), torch.zeros(1, 1, 1, 1).expand(1, rows, columns, 3)).shape)

    assert fitted(scaled(height, width, second, 0.5)) == (1, rows, columns)
    others = [(width, height)] if max(height, width) > 1.4 * min(height, width) else []
    for part in [(height, width * 0.7), (height * 0.7, width), *others]:
        with pytest.raises(ValueError, match="make the mask from the same picture"):
            fitted(scaled(part[0], part[1], second, 0.5))


@pytest.mark.parametrize("size", [(128, 192), (192, 128), (64, 64), (128, 120), (131, 192)])
def test_a_mask_of_another_shape_is_refused(size: tuple[int, int]) -> None:
    message = rf"the picture is 192 x 123 pixels but its mask {size[1]} x {size[0]}: make the mask from the same picture"
    with pytest.raises(ValueError, match=message):
        concat(reference(1, 123, 192), torch.ones(1, *size))


@pytest.mark.parametrize("size", [(64, 64), (128, 192)], ids=["Load Image's empty mask", "the picture's size"])
def test_an_empty_mask_warns_and_keeps_no_object(caplog: pytest.LogCaptureFixture, size: tuple[int, int]) -> None:
    image = reference(1, 128, 192)
    with caplog.at_level(logging.WARNING):
        hint, object_image = concat(image, torch.zeros(1, *size))
    assert "the mask of picture 1 marks nothing, so no object is kept" in caplog.text
    assert torch.equal(hint, 0.5 * image)
    assert not object_image.any()


def test_which_of_a_batch_is_empty(caplog: pytest.LogCaptureFixture) -> None:
    mask = torch.ones(4, 16, 16)
    mask[1] = 0
    mask[3] = 0.4
    with caplog.at_level(logging.WARNING):
        concat(reference(4, 16, 16), mask)
    assert "the mask of picture 2, 4 marks nothing" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        concat(reference(2, 16, 16), mask[:1])
    assert not caplog.records


def test_batches(caplog: pytest.LogCaptureFixture) -> None:
    """One mask for all, one for each, fewer in turn; of too many the first are used, with a warning."""
    image = torch.cat([reference(3, 24, 16, seed=seed)[:1] for seed in (1, 2, 3)])
    mask = masks(3, 24, 16)
    single = [[concat(image[i : i + 1], mask[j : j + 1])[0] for j in range(3)] for i in range(3)]
    assert torch.equal(concat(image, mask[:1])[0], torch.cat([single[i][0] for i in range(3)]))
    assert torch.equal(concat(image, mask)[0], torch.cat([single[i][i] for i in range(3)]))
    assert torch.equal(concat(image, mask[:2])[0], torch.cat([single[0][0], single[1][1], single[2][0]]))
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        assert torch.equal(concat(image[:1], mask)[0], single[0][0])
    assert "3 masks for 1 images" in caplog.text


def test_the_mask_chooses_among_several_objects(model: Any, sample: Sample, vae: Any, control: MaskControl) -> None:
    image = reference()
    left, right = torch.zeros(2, 1, 128, 128)
    left[:, :, :64] = 1
    right[:, :, 64:] = 1
    painted = [sample(model, **apply_controlnet(control, concat(image, mask)[0], vae)) for mask in (left, right)]
    assert (painted[0] - painted[1]).abs().max() > 1e-2


def test_saved_files_are_listed_loaded_and_paint_alike(model: Any, sample: Sample, vae: Any, control: MaskControl, output: Path) -> None:
    """Both layouts; numbers are counted on and nothing is overwritten; Apply ControlNet takes what comes out."""
    given = control_of(control.network, About(0.2, "the small model", masked=True))
    choice: Any = LoadMaskControlNet.define_schema().inputs[0]
    assert choice.options == [nodes.NO_FILES]
    assert "There is no file" in str(LoadMaskControlNet.validate_inputs(nodes.NO_FILES))
    kept: dict[Path, bytes] = {}
    for count, layout in enumerate((nodes.ONE_FILE, nodes.DIFFUSERS, nodes.ONE_FILE, nodes.DIFFUSERS), 1):
        with torch.inference_mode():
            shown: Any = SaveMaskControlNet.execute(given, learned(count), "controlnet/my.product", layout).ui
        name = f"my.product_{count:05}_" + (".safetensors" if layout == nodes.ONE_FILE else "")
        made = output / "controlnet" / name
        assert shown.as_dict() == {"text": (str(made),)}
        assert made.is_file() if layout == nodes.ONE_FILE else made.is_dir()
        assert all(path.read_bytes() == content for path, content in kept.items())
        kept = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    assert len(kept) == 2 + 2 * 3

    folder_paths.filename_list_cache.clear()
    choice = LoadMaskControlNet.define_schema().inputs[0]
    names = {"my.product_00001_.safetensors": 1, str(Path("my.product_00002_", WEIGHTS)): 2}
    assert set(names) <= set(choice.options)
    image = reference()
    mask = corner()
    wanted = sample(model, **apply_controlnet(given, image, vae))
    assert not torch.equal(wanted, sample(model))
    for name, seed in names.items():
        assert LoadMaskControlNet.validate_inputs(name) is True
        stamp = LoadMaskControlNet.fingerprint_inputs(name)
        assert stamp == LoadMaskControlNet.fingerprint_inputs(name) != "none"
        with torch.inference_mode():
            found, adapter = LoadMaskControlNet.execute(name).args
        assert found.about == given.about
        assert torch.equal(sample(model, **apply_controlnet(found, image, vae)), wanted)
        assert torch.equal(concat(image, mask, adapter)[0], concat(image, mask, learned(seed))[0])
    answer = str(LoadMaskControlNet.validate_inputs("none.safetensors"))
    assert "There is no file 'none.safetensors' in" in answer
    assert "my.product_00001_.safetensors" in answer
    assert "Put a file from Train Mask-ControlNet" in answer


def test_files_in_the_models_folder_are_listed(folders: Path, control: MaskControl) -> None:
    place = folders / "models" / "controlnet"
    (place / "own").mkdir(parents=True)
    content = mask_controlnet.content_of(control, learned())
    mask_controlnet.mask_controlnet_file.save(content, place / "own" / "a.safetensors")
    (place / "b.pth").write_bytes(b"")
    (place / "notes.txt").write_text("no model")
    assert files.list_files(nodes.FOLDER, nodes.SUFFIXES) == [str(Path("own", "a.safetensors"))]
    found, _ = LoadMaskControlNet.execute(str(Path("own", "a.safetensors"))).args
    assert isinstance(found, MaskControl)


def test_what_cannot_be_saved_is_refused_in_words(control: MaskControl, depth: Any, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for layout in (nodes.ONE_FILE, nodes.DIFFUSERS):
        for foreign in (depth, None):
            with pytest.raises(ValueError, match="this control_net is no Mask-ControlNet: wire Train Mask-ControlNet or Load"):
                SaveMaskControlNet.execute(foreign, learned(), "controlnet/a", layout)
        for outside in ("../outside", str(output.parent / "outside")):
            with pytest.raises(ValueError, match=r"it leads out of ComfyUI's output folder\. Use a name such as controlnet/my-product"):
                SaveMaskControlNet.execute(control, learned(), outside, layout)
    assert not list(output.rglob("*"))
    assert sorted(path.name for path in output.parent.iterdir()) == ["models", "output"]

    def fail(*given: Any, **more: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    for layout in (nodes.ONE_FILE, nodes.DIFFUSERS):
        with pytest.raises(ValueError, match=r"could not be written to .*no space left.*press Run: it is still there"):
            SaveMaskControlNet.execute(control, learned(), "controlnet/a", layout)
    assert not list(output.rglob("*.safetensors*"))
    monkeypatch.undo()


def test_apply_controlnet_without_its_vae(model: Any, sample: Sample, control: MaskControl) -> None:
    hint, _ = concat(reference(), corner())
    with pytest.raises(ValueError, match="connect the checkpoint's VAE to Apply ControlNet's vae input"):
        sample(model, **apply_controlnet(control, hint))
    assert torch.equal(sample(model, **apply_controlnet(control, hint, strength=0.0)), sample(model))


def test_beside_masked_attention_and_meca(model: Any, sample: Sample, vae: Any, control: MaskControl, meca_adapter: Any) -> None:
    """Untrained it leaves what they paint as it is, to the bit; trained it adds to it."""
    hint, _ = concat(reference(), corner())
    nothing = untrained(model)
    both = with_meca(confined(model, corner()), meca_adapter, corner())
    for changed in (confined(model, corner()), with_meca(model, meca_adapter, corner()), both):
        before = sample(changed, steps=2)
        assert torch.equal(sample(changed, steps=2, **apply_controlnet(nothing, hint, vae)), before)
        after = sample(changed, steps=2, **apply_controlnet(control, hint, vae))
        assert torch.isfinite(after).all()
        assert (after - before).abs().max() > 1e-2
        assert (after - sample(model, steps=2, **apply_controlnet(control, hint, vae))).abs().max() > 1e-3


def test_one_loaded_network_serves_several_apply_nodes(model: Any, sample: Sample, vae: Any, control: MaskControl) -> None:
    """Two objects from two references: one Mask-ControlNet twice, in either order the same."""
    import nodes as stock

    hints = [concat(reference(seed=seed), corner())[0] for seed in (1, 2)]

    def painted(*order: int) -> Tensor:
        positive = negative = [[torch.zeros(1, 77, 128), {}]]
        for index in order:
            positive, negative = stock.ControlNetApplyAdvanced().apply_controlnet(
                positive, negative, control, hints[index], 0.5, 0.0, 1.0, vae
            )
        return sample(model, steps=1, positive=positive[0][1], negative=negative[0][1])

    both = painted(0, 1)
    swapped = painted(1, 0)
    alone = [painted(0), painted(1)]
    assert all((both - one).abs().max() > 1e-2 for one in alone)
    assert (both - swapped).abs().max() < 1e-2 * (both - alone[0]).abs().max()
