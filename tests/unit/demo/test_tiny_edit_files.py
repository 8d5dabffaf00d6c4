"""tiny-edit's files in ComfyUI's own loaders and its own sampler, of random weights."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from demo import registration, tiny_model
from demo.tiny_edit import files, folders, latents, painter, stages, text, train
from demo.tiny_edit.transformer import Flux

from ...support import tiny_edit_world

tiny_model.comfyui_on_path()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training folder whose weights are random everywhere, and its files in half precision (`fp16`) and with fp8 (`fp8`)."""
    folder = tmp_path_factory.mktemp("training")
    run = tiny_edit_world.random_weights(folder)
    files.write(folder, folder / "fp8")
    for file in (folder / "fp8").iterdir():
        (folder / "fp16").mkdir(exist_ok=True)
        (folder / "fp16" / file.name).symlink_to(file)
    (folder / "fp16" / files.TRANSFORMER).unlink()
    save_file(files.transformer_state(run.average, fp8=False), folder / "fp16" / files.TRANSFORMER)
    save_file(files.autoencoder_state(latents.Latents.load(folder)), folder / "fp16" / files.AUTOENCODER)
    return folder


def load_model(file: Path) -> Any:
    import comfy.sd

    registration.register()
    return comfy.sd.load_diffusion_model(str(file), model_options={"dtype": torch.float32})


def load_clip(file: Path) -> Any:
    import comfy.sd

    registration.register()
    return comfy.sd.load_clip([str(file)], clip_type=comfy.sd.CLIPType.STABLE_DIFFUSION)


def test_the_files_are_small(folder: Path) -> None:
    written = sorted((folder / "fp8").iterdir())
    assert [file.name for file in written] == sorted([files.TRANSFORMER, files.TEXT, files.AUTOENCODER])
    assert sum(file.stat().st_size for file in written) < files.LIMIT
    assert (folder / "fp8" / files.TEXT).stat().st_size < 2**21, "of the words those that it knows"


def test_what_is_read_is_what_was_written(folder: Path) -> None:
    """Out of the files without fp8: the weights, rounded to half precision, and an autoencoder that does the same."""
    vocabulary = text.Vocabulary(text.tokenized())
    average = torch.load(folder / train.STATE, weights_only=True)["average"]
    found, autoencoder, _ = files.read(folder / "fp16", vocabulary)
    assert average.keys() == found.keys()
    for name, value in found.items():
        assert name.startswith("places.") or torch.equal(value, average[name].half().float()), name
    assert files.read(folder / "fp8", vocabulary)[2]["samples"] == "0"
    pictures = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    expected = latents.Latents.load(folder).encode(pictures)
    torch.testing.assert_close(autoencoder.encode(pictures), expected, atol=2e-2, rtol=2e-2)


def test_a_word_that_the_files_do_not_know_is_begun_anew(folder: Path) -> None:
    words = text.tokenized()
    found, _, _ = files.read(folder / "fp8", text.Vocabulary({**words, "zebra": [22548]}))
    known, _, _ = files.read(folder / "fp8", text.Vocabulary(words))
    name = "text.embeddings.token_embedding.weight"
    row = text.Vocabulary({**words, "zebra": [22548]}).ids.index(22548)
    assert torch.equal(torch.cat([found[name][:row], found[name][row + 1 :]]), known[name])
    assert found["places.1.weight"].std() > 0
    assert 0.1 < float(found[name][row].std()) < 0.3


def test_a_training_begins_with_files(folder: Path, tmp_path: Path) -> None:
    (tmp_path / folders.SHARDS).mkdir()
    files.begin(folder / "fp8", tmp_path)
    assert not (tmp_path / folders.SHARDS).exists(), "its latents would be another encoder's"
    run = train.Training(tmp_path, stages.stages_of("64:2"), 1e-3, 0, 64, make=False)
    assert run.resume()
    weights, _, _ = files.read(folder / "fp8", run.vocabulary)
    state = run.networks.state_dict()
    trained = {name: value for name, value in weights.items() if not name.startswith("places.")}
    assert all(torch.equal(state[name], value) and torch.equal(run.average[name], value) for name, value in trained.items())
    latents.Latents.load(tmp_path)
    with pytest.raises(FileExistsError, match="goes on by itself"):
        files.begin(folder / "fp8", tmp_path)


def test_load_clip_reads_the_words_as_the_training_does(folder: Path) -> None:
    clip = load_clip(folder / "fp8" / files.TEXT)
    sentence = "a photo of a fox and an umbrella on rippling water"
    words, extra = clip.encode_from_tokens_scheduled(clip.tokenize(sentence))[0]
    vocabulary = text.Vocabulary.load(folder)
    encoder = tiny_edit_world.text_of(folder / "fp8" / files.TEXT, folder)
    with torch.no_grad():
        expected, pooled = encoder(vocabulary.batch([sentence]))
    assert words.shape == (1, 24, 128)
    torch.testing.assert_close(words.float(), expected, atol=2e-3, rtol=1e-2)
    torch.testing.assert_close(extra["pooled_output"].float(), pooled, atol=2e-3, rtol=1e-2)


def test_a_loader_of_two_takes_it_twice(folder: Path) -> None:
    """As the workflow for FLUX.1 Kontext loads two text encoders."""
    import comfy.sd

    registration.register()
    one = load_clip(folder / "fp8" / files.TEXT)
    two = comfy.sd.load_clip([str(folder / "fp8" / files.TEXT)] * 2, clip_type=comfy.sd.CLIPType.FLUX)
    found, expected = (clip.encode_from_tokens_scheduled(clip.tokenize("a fox on a beach"))[0] for clip in (two, one))
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1]["pooled_output"], expected[1]["pooled_output"])


@pytest.mark.parametrize(("precision", "latent", "pixel"), [("fp16", 2e-2, 2e-2), ("fp8", 0.2, 0.15)])
def test_load_vae_encodes_and_decodes_as_the_training_does(folder: Path, precision: str, latent: float, pixel: float) -> None:
    """In half precision nearly to the number; latents, whose deviation is about 1, and pixels a little off with fp8's three bits."""
    import comfy.sd
    import comfy.utils

    vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(folder / precision / files.AUTOENCODER)))
    held = latents.Latents.load(folder)
    pictures = torch.rand(1, 64, 48, 3, generator=torch.Generator().manual_seed(0))
    found = vae.encode(pictures)
    expected = held.encode(pictures.movedim(-1, 1))
    assert found.shape == (1, 8, 8, 6)
    torch.testing.assert_close(found.float().cpu(), expected, atol=latent, rtol=2e-2)
    torch.testing.assert_close(vae.decode(found).float().cpu().movedim(-1, 1), held.decode(expected), atol=pixel, rtol=2e-2)


def euler(network: Flux, noise: Tensor, conditions: list[tuple[Tensor, Tensor, list[Tensor]]], cfg: float, sigmas: Tensor) -> Tensor:
    """Flow matching's Euler steps with classifier-free guidance, written plainly."""
    x = noise * sigmas[0]
    for now, then in itertools.pairwise(sigmas):
        positive, negative = (network(x, now.expand(len(x)), *one) for one in conditions)
        x = x + (then - now) * (negative + cfg * (positive - negative))
    return x


@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.parametrize("precision", ["fp16", "fp8"])
def test_comfyuis_sampler_paints_what_ours_does(folder: Path, count: int, precision: str) -> None:
    """From the stock loader, with as many reference latents, of another size than what is painted."""
    import comfy.sample
    import comfy.samplers

    file = folder / precision / files.TRANSFORMER
    model = load_model(file)
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(1, 8, 12, 16, generator=generator)
    words = torch.randn(2, 24, 128, generator=generator)
    pooled = torch.randn(2, 128, generator=generator)
    references = [torch.randn(1, 8, 12, 16, generator=generator), torch.randn(1, 8, 8, 20, generator=generator)][:count]
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 4)
    extra = {"reference_latents": references} if references else {}
    positive, negative = ([[words[half : half + 1], {"pooled_output": pooled[half : half + 1], **extra}]] for half in (0, 1))
    found = comfy.sample.sample(
        model, noise, 4, 3.0, "euler", "simple", positive, negative, torch.zeros_like(noise), seed=1, disable_pbar=True
    )
    with torch.no_grad():
        own = [(words[half : half + 1], pooled[half : half + 1], references) for half in (0, 1)]
        expected = euler(tiny_edit_world.flux_of(file), noise, own, 3.0, sigmas)
    assert expected.std() > 0.1
    torch.testing.assert_close(found.float().cpu(), expected, atol=2e-3 * float(expected.std()), rtol=1e-2)


@pytest.mark.parametrize("guided", [0, 1, 2])
def test_our_painter_leaves_guided_references_out_of_the_negative(folder: Path, guided: int) -> None:
    """From the files, against the steps written plainly: the references beside no words are those that are not guided to."""
    import comfy.samplers

    held = painter.Painter.load(folder / "fp8")
    pictures = torch.rand(2, 1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    found = held.paint(["a fox on a beach"], list(pictures), seed=7, size=64, steps=2, cfg=3, spacing=1, guided=guided)
    references = [held.latents.encode(picture) for picture in pictures]
    noise = torch.randn(1, latents.CHANNELS, 8, 8, generator=torch.Generator().manual_seed(7))
    sampling = load_model(folder / "fp8" / files.TRANSFORMER).get_model_object("model_sampling")
    with torch.no_grad():
        words, silence = (held.networks.text(held.vocabulary.batch([said])) for said in ("a fox on a beach", ""))
        conditions = [(*words, references), (*silence, references[guided:])]
        latent = euler(
            tiny_edit_world.flux_of(folder / "fp8" / files.TRANSFORMER), noise, conditions, 3.0,
            comfy.samplers.calculate_sigmas(sampling, "simple", 2),
        )  # fmt: skip
    torch.testing.assert_close(found, held.latents.decode(latent), atol=2e-3, rtol=1e-2)


def test_an_empty_latent_of_four_channels_serves(folder: Path) -> None:
    """Empty Latent Image makes four channels; ComfyUI gives them the eight of the model."""
    import comfy.sample

    model = load_model(folder / "fp8" / files.TRANSFORMER)
    assert comfy.sample.fix_empty_latent_channels(model, torch.zeros(1, 4, 8, 8)).shape == (1, 8, 8, 8)


def test_other_models_load_as_before(model: Any) -> None:
    """The tiny UNet beside it, and a Flux of other sizes."""
    import comfy.supported_models

    assert type(model.model.model_config).__name__ == "TinySD"
    names = [one.__name__ for one in comfy.supported_models.models]
    config = {"image_model": "flux", "guidance_embed": False, "hidden_size": 3072, "context_in_dim": 4096}
    matching = next(one for one in comfy.supported_models.models if one.matches(config))
    assert matching.__name__ == "FluxSchnell"
    assert names.count("TinyEdit") == 1
