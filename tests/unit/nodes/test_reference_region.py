"""Reference Region as a node: what it gives to core, that nothing of what is hidden gets through, and what it refuses."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from maskprompt.attention import reference_regions
from maskprompt.nodes.reference_region import ReferenceRegionNode, check_wired

from ...support.tiny_transformers import TINIES, Tiny

FLUX, FLUX2 = (next(tiny for tiny in TINIES if tiny.name == name) for name in ("Flux.1", "Flux.2"))
Z_IMAGE = next(tiny for tiny in TINIES if tiny.name == "Z-Image")
SIZE = (8, 12)
"""Of the painted latent."""


@pytest.fixture(scope="module")
def vae() -> Any:
    """ComfyUI's VAE on a tiny autoencoder of random weights with Flux's 16 channels."""
    import comfy.sd
    from comfy.taesd.taesd import TAESD

    generator = torch.Generator().manual_seed(0)
    state = TAESD(latent_channels=16).state_dict()
    weights = {
        name: torch.randn(value.shape, generator=generator) * (value.numel() / len(value)) ** -0.5
        for name, value in state.items()
        if value.ndim > 0
    }
    found = comfy.sd.VAE(sd={**weights, "vae_scale": torch.tensor(1.0), "vae_shift": torch.tensor(0.0)})
    found.throw_exception_if_invalid()
    return found


def picture(height: int = 80, width: int = 64, batch: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.rand(batch, height, width, 3, generator=torch.Generator().manual_seed(seed))


def prompt(tiny: Tiny = FLUX, seed: int = 10) -> list[Any]:
    return [[tiny.words(7, seed), {**tiny.options}]]


def left(height: int, width: int) -> torch.Tensor:
    mask = torch.zeros(1, height, width)
    mask[:, :, : width // 2] = 1
    return mask


def through(model: Any, positive: Any, vae: Any = None, **given: Any) -> tuple[Any, ...]:
    return ReferenceRegionNode.execute(model=model, positive=positive, vae=vae, **given).args


def sample(model: Any, positive: Any, tiny: Tiny = FLUX, batch: int = 1, steps: int = 2) -> torch.Tensor:
    import comfy.sample

    noise = tiny.latent(SIZE, batch)
    return comfy.sample.sample(
        model, noise, steps, 1.0, "euler", "simple", positive, prompt(tiny, 90), torch.zeros_like(noise), seed=3, disable_pbar=True
    )  # fmt: skip


def cores(vae: Any, image: torch.Tensor, positive: Any) -> Any:
    """VAE Encode and Set Reference Latent."""
    from comfy_extras.nodes_edit_model import ReferenceLatent

    import nodes  # pyright: ignore[reportMissingImports]

    (latent,) = nodes.VAEEncode().encode(vae, image)
    return ReferenceLatent.execute(positive, latent).args[0]


@pytest.mark.parametrize("size", [(80, 64), (77, 109), (8, 200)])
def test_with_nothing_masked_it_is_what_core_does(vae: Any, size: tuple[int, int]) -> None:
    model, image = FLUX.model(), picture(*size)
    given, positive, negative, preview = through(model, prompt(), vae, image=image, negative=prompt(seed=90))
    assert given is model
    wanted = cores(vae, image, prompt())
    for found in (positive, negative):
        assert torch.equal(found[0][1]["reference_latents"][0], wanted[0][1]["reference_latents"][0])
        assert reference_regions.REGIONS not in found[0][1]
    assert torch.equal(sample(given, positive), sample(model, wanted))
    assert torch.equal(preview, image[:, (size[0] % 8) // 2 :, (size[1] % 8) // 2 :][:, : size[0] // 8 * 8, : size[1] // 8 * 8])


def test_a_region_and_a_shown_part_change_the_picture_and_leave_the_given_alone(vae: Any) -> None:
    model, image, positive = FLUX.model(), picture(), prompt()
    plain = sample(model, cores(vae, image, positive))
    given: dict[str, Any] = {"image": image, "region": left(64, 96), "show": left(80, 64)}
    patched, found, none, preview = through(model, positive, vae, **given)
    assert none is None
    assert reference_regions.REFERENCES not in positive[0][1]
    result = sample(patched, found)
    assert not torch.allclose(result, plain, rtol=1e-3)
    assert torch.equal(sample(patched, cores(vae, image, positive)), plain)
    assert torch.equal(preview[:, :, :32], image[:, :, :32])
    assert (preview[:, :, 32:] == 0.5).all()
    inverted = through(model, positive, vae, **{**given, "show": 1 - left(80, 64)}, invert=True)
    assert torch.equal(sample(inverted[0], inverted[1]), result)


@pytest.mark.parametrize("megapixels", [1.0, 0.002])
def test_what_is_hidden_is_not_in_the_painted_picture(vae: Any, megapixels: float) -> None:
    """To the bit, for any hidden pixels, while the picture that core encodes whole tells of them by its edge."""
    model, image, show = FLUX.model(), picture(), left(80, 64)
    other = torch.where(show[..., None] > 0, image, picture(seed=5))
    results = [sample(*through(model, prompt(), vae, image=one, show=show, megapixels=megapixels)[:2]) for one in (image, other)]
    assert torch.equal(*results)
    encoded = [{"samples": vae.encode(one)} for one in (image, other)]
    told = [sample(*through(model, prompt(), latent=one, show=show)[:2]) for one in encoded]
    assert not torch.equal(*told)


def test_two_references_chain_and_each_has_its_own(vae: Any) -> None:
    model, masks = FLUX.model(), (left(64, 96), 1 - left(64, 96))
    patched, positive = model, prompt()
    for number, mask in enumerate(masks):
        patched, positive, *_ = through(patched, positive, vae, image=picture(seed=number), region=mask)
    options = positive[0][1]
    assert len(options["reference_latents"]) == len(options[reference_regions.REGIONS]) == 2
    swapped, other = model, prompt()
    for number, mask in enumerate(reversed(masks)):
        swapped, other, *_ = through(swapped, other, vae, image=picture(seed=number), region=mask)
    assert not torch.allclose(sample(patched, positive), sample(swapped, other), rtol=1e-3)
    # The model's line may be one node's or the other's: both hear.
    first, *_ = through(model, prompt(), vae, image=picture(), region=masks[0])
    assert torch.equal(sample(first, positive), sample(patched, positive))


def test_a_batch_of_references_is_one_for_each_picture(vae: Any) -> None:
    model, images = FLUX.model(), picture(batch=2)
    shows = torch.cat([left(80, 64), 1 - left(80, 64)])
    patched, positive, *_ = through(model, prompt(), vae, image=images, show=shows)
    result = sample(patched, positive, batch=2, steps=1)
    for number in range(2):
        alone = through(model, prompt(), vae, image=images[number : number + 1], show=shows[number : number + 1])
        other = sample(alone[0], alone[1], batch=2, steps=1)
        torch.testing.assert_close(result[number], other[number], atol=1e-5, rtol=1e-4)
    several, positive, *_ = through(model, prompt(), vae, image=images[:1], show=shows)
    assert positive[0][1]["reference_latents"][0].shape[0] == 2
    assert torch.isfinite(sample(several, positive, batch=2, steps=1)).all()


@pytest.mark.parametrize(("size", "megapixels", "latent"), [
    ((80, 64), 1.0, (10, 8)), ((1100, 2000), 1.0, (94, 172)), ((1100, 2000), 0.0, (137, 250)), ((300, 17), 0.002, (24, 2)),
])  # fmt: skip
def test_a_large_reference_is_made_smaller(vae: Any, size: tuple[int, int], megapixels: float, latent: tuple[int, int]) -> None:
    vae = SimpleNamespace(spacial_compression_encode=lambda: 8, encode=lambda x: torch.zeros(1, 16, x.shape[1] // 8, x.shape[2] // 8))
    _, positive, *_ = through(FLUX.model(), prompt(), vae, image=torch.zeros(1, *size, 3), megapixels=megapixels)
    assert positive[0][1]["reference_latents"][0].shape[-2:] == latent


def test_z_image_gets_whole_tokens(vae: Any) -> None:
    model = Z_IMAGE.model()
    patched, positive, *_ = through(model, prompt(Z_IMAGE), vae, image=picture(77, 109), show=left(77, 109), region=left(64, 96))
    assert positive[0][1]["reference_latents"][0].shape[-2:] == (8, 12)
    assert torch.isfinite(sample(patched, positive, Z_IMAGE)).all()
    with pytest.raises(ValueError, match="takes only multiples of 2"):
        through(model, prompt(Z_IMAGE), latent={"samples": torch.zeros(1, 16, 9, 8)})
    with pytest.raises(ValueError, match="the whole reference is hidden"):
        through(model, prompt(Z_IMAGE), vae, image=picture(77, 109), show=torch.zeros(1, 64, 64))


def test_strength_and_part_of_the_sampling(vae: Any) -> None:
    model, positive, image = FLUX.model(), prompt(), picture()
    off = through(model, positive, vae, image=image, strength=0.0)
    assert off[0] is model
    assert off[1] is positive
    never = through(model, positive, vae, image=image, start_percent=1.0, end_percent=1.0)
    torch.testing.assert_close(sample(never[0], never[1], steps=1), sample(model, positive, steps=1), atol=1e-5, rtol=1e-4)
    half = through(model, positive, vae, image=image, strength=0.5)
    assert not torch.allclose(sample(half[0], half[1]), sample(model, cores(vae, image, positive)), rtol=1e-3)


def test_bad_input_is_refused_in_words(vae: Any, model: Any) -> None:
    flux, image = FLUX.model(), picture()
    given: dict[str, Any] = {"model": flux, "positive": prompt(), "vae": vae, "image": image}
    refused: list[tuple[str, dict[str, Any]]] = [
        ("no VAE was given", {"vae": None}),
        ("neither of image and latent is wired", {"image": None}),
        ("both of image and latent is wired", {"latent": {"samples": torch.zeros(1, 16, 8, 8)}}),
        ("Use Image Prompt Region, or an IP-Adapter", {"model": model}),
        (r"this model \(Chroma\) takes no reference pictures", {"model": next(t for t in TINIES if t.name == "Chroma").model()}),
        (r"\(Flux.1, Fill, Kontext and Flux.2\) takes no ref", {"model": next(t for t in TINIES if t.name == "Flux.1 Fill").model()}),
        ("show is 64x40 but the reference is 64x80", {"show": torch.ones(1, 40, 64)}),
        ("show has 3 masks for 2 references", {"image": picture(batch=2), "show": torch.ones(3, 80, 64)}),
        ("the whole reference is hidden", {"show": torch.zeros(1, 80, 64)}),
        ("the whole reference is hidden", {"show": torch.ones(1, 80, 64), "invert": True}),
        ("the whole reference number 2 of 2 is hidden", {"show": torch.stack([torch.ones(80, 64), torch.zeros(80, 64)])}),
        ("the region is empty", {"region": torch.zeros(1, 64, 96)}),
        ("smaller than one cell of the VAE", {"image": picture(4, 4)}),
        ("the VAE belongs to another model: its latents have 16 channels, this model's have 128", {"model": FLUX2.model()}),
        ("start_percent", {"start_percent": 0.6, "end_percent": 0.2}),
    ]  # fmt: skip
    for message, changed in refused:
        with pytest.raises(ValueError, match=message):
            ReferenceRegionNode.execute(**{**given, **changed})
    wide = ReferenceRegionNode.execute(**given, region=torch.ones(1, 64, 256)).args
    with pytest.raises(ValueError, match="shapes differ"):
        sample(wide[0], wide[1])


def test_more_references_than_the_model_was_trained_with_are_a_warning(vae: Any, caplog: pytest.LogCaptureFixture) -> None:
    model, positive = FLUX.model(), prompt()
    for number in range(2):
        assert len(caplog.records) == 0
        _, positive, *_ = through(model, positive, vae, image=picture(seed=number))
    assert "has 2 reference pictures, but this model was trained with at most 1" in caplog.text
    caplog.clear()
    through(Z_IMAGE.model(), prompt(Z_IMAGE), vae, image=picture())
    assert "was not trained with reference pictures" in caplog.text


def graph(*used: int) -> Any:
    """A graph in which node 5 is a Reference Region, and these of its outputs are wired."""
    nodes = {"5": {"class_type": "MaskPromptReferenceRegion", "inputs": {"model": ["1", 0], "strength": 1.0}}}
    nodes |= {str(10 + output): {"class_type": "Other", "inputs": {"value": ["5", output]}} for output in used}
    return SimpleNamespace(prompt=nodes, unique_id="5")


def test_an_output_that_is_forgotten_is_an_error() -> None:
    refused: list[tuple[Sequence[int], bool, str]] = [
        ((1,), False, "output `model` is wired to nothing"),
        ((0,), False, "output `positive` is wired to nothing"),
        ((0, 1), True, "output `negative` is wired to nothing"),
        ((0, 1, 2), False, "no negative prompt goes in"),
    ]
    for used, negative, message in refused:
        with pytest.raises(ValueError, match=message):
            check_wired(graph(*used), negative)
    check_wired(graph(0, 1), False)
    check_wired(graph(0, 1, 2, 3), True)
    check_wired(graph(3), True)  # a look at the preview alone
    check_wired(SimpleNamespace(prompt=graph(1).prompt, unique_id="5.0.1"), False)  # a node of an expanded one: not in this graph
    check_wired(None, True)
