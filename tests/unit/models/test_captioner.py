"""Caption Image and what is below it, against `transformers` itself on a tiny BLIP of random weights."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import comfy.model_management as management
import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from maskprompt.models.blip import captioner
from maskprompt.models.blip import folder as blip_folder
from maskprompt.models.blip.captioner import LoadedBlip, Search
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from ...support.blip import BRIEF, blip, blips, folder, no_network, original, pictures, settings_of, write

__all__ = ["blip", "blips", "folder", "no_network", "original"]  # fixtures


def expected(folder: Path, images: list[Any], prefix: str, search: Search) -> list[str]:
    """The same by transformers' own processor and loader, one picture at a time."""
    processor: Any = transformers.BlipProcessor.from_pretrained(folder)
    network: Any = transformers.BlipForConditionalGeneration.from_pretrained(folder)
    lines = []
    for image in images:
        shown = Image.fromarray((image[..., :3].expand(-1, -1, 3).numpy() * 255).round().astype(np.uint8))
        inputs = processor(images=shown, text=prefix, return_tensors="pt") if prefix else processor(images=shown, return_tensors="pt")
        length = {"min_new_tokens": search.least, "max_new_tokens": search.most}
        found = network.eval().generate(**inputs, num_beams=search.beams, do_sample=False, **length)
        lines.append(processor.decode(found[0], skip_special_tokens=True).strip())
    return lines


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("prefix", ["", "a photo of"])
def test_captions_equal_those_of_transformers(original: Path, blip: LoadedBlip, prefix: str, beams: int) -> None:
    """Of any sizes, grey, coloured and with alpha, all in one call."""
    search = Search(beams, 2, 9)
    images = [
        *pictures(3), *pictures(2, 90, 33, seed=1), *pictures(1, 32, 32, seed=2), *pictures(1, 50, 50, 1, 3), *pictures(1, 20, 70, 4, 4),
    ]  # fmt: skip
    lines = captioner.captions(blip, images, prefix, search, batch=3)
    assert lines == expected(original, images, prefix, search)
    assert len(set(lines)) >= 5  # the pictures are told apart, so a mixed-up order would be seen
    assert all(line.startswith(prefix) for line in lines)


def test_lengths_and_beams_count(original: Path, blip: LoadedBlip) -> None:
    images = list(pictures(4))
    found = {search: captioner.captions(blip, images, "", search) for search in (BRIEF, Search(1, 2, 9), Search(3, 2, 3), Search(3, 9, 9))}
    for search, lines in found.items():
        assert lines == expected(original, images, "", search)
    assert len({tuple(lines) for lines in found.values()}) == 4


@given(height=st.integers(4, 70), width=st.integers(4, 70), channels=st.sampled_from([1, 3, 4]), seed=st.integers(0, 99))
@settings(max_examples=8, deadline=None)
def test_any_size_gives_the_pixels_that_transformers_takes(blip: LoadedBlip, height: int, width: int, channels: int, seed: int) -> None:
    image = pictures(1, height, width, channels, seed)[0]
    rows = (image[..., :3].expand(-1, -1, 3).numpy() * 255).round().astype(np.uint8)
    assert np.array_equal(np.asarray(captioner.picture(image)), rows)
    assert captioner.captions(blip, [image], "", BRIEF) == captioner.captions(blip, [image[..., :3]], "", BRIEF)


@pytest.mark.parametrize("size", [(1, 500), (3, 500), (500, 3), (1, 1), (2, 3)])
def test_the_thinnest_pictures_are_what_they_are_when_enlarged(blip: LoadedBlip, size: tuple[int, int]) -> None:
    """Of three rows a library may take each for a colour."""
    image = pictures(1, *size)[0]
    thick = image.repeat_interleave(4 if size[0] < 4 else 1, 0).repeat_interleave(4 if size[1] < 4 else 1, 1)
    for axis in (0, 1):
        if size[axis] < 4:  # the same picture in 4 rows: each takes the row that its middle lies in
            middle = ((torch.arange(4) + 0.5) * size[axis] / 4).long() * 4
            thick = thick.index_select(axis, middle)
    assert captioner.captions(blip, [image], "", BRIEF) == captioner.captions(blip, [thick], "", BRIEF)


def test_a_batch_equals_one_by_one_and_is_read_as_it_goes(blip: LoadedBlip) -> None:
    images = pictures(7)
    taken = []
    done = []

    def source() -> Iterator[Tensor]:
        for number, image in enumerate(images):
            taken.append(number)
            yield image

    def after(count: int) -> None:
        done.append((count, len(taken)))

    single = [captioner.captions(blip, [image], "a", BRIEF)[0] for image in images]
    assert captioner.captions(blip, source(), "a", BRIEF, batch=3, on_group=after) == single
    assert done == [(3, 3), (6, 6), (7, 7)]
    assert len(set(single)) > 4
    assert captioner.captions(blip, []) == []


def test_alpha_is_ignored(blip: LoadedBlip) -> None:
    images = pictures(3, channels=4)
    other = images.clone()
    other[..., 3] = 1 - other[..., 3]
    assert captioner.captions(blip, list(images), "", BRIEF) == captioner.captions(blip, list(other), "", BRIEF)


def test_the_prefix_is_one_line_in_any_spacing_and_case(blip: LoadedBlip) -> None:
    images = list(pictures(3))
    assert captioner.captions(blip, images, "  A photo\n\tof ", BRIEF) == captioner.captions(blip, images, "a photo of", BRIEF)
    assert captioner.captions(blip, images, " \n ", BRIEF) == captioner.captions(blip, images, "", BRIEF)


def test_the_folders_own_way_of_searching_has_no_say(blip: LoadedBlip, original: Path, folder: Path) -> None:
    """Sampling would make every caption another, and short lengths cut them off."""
    config = settings_of(folder)
    config["text_config"] |= {"do_sample": True, "temperature": 30.0, "max_length": 4, "num_beams": 2, "repetition_penalty": 9.0}
    write(folder, config)
    write(folder, {"do_sample": True, "top_k": 3, "max_length": 4, "repetition_penalty": 9.0}, "generation_config.json")
    images = list(pictures(4))
    model = captioner.load(folder)
    assert model.blip.text_decoder.generation_config.eos_token_id == 3  # ours; transformers makes one of the folder's, where it is 2
    first, second = (captioner.captions(model, images, "", BRIEF) for _ in range(2))
    assert first == second == captioner.captions(blip, images, "", BRIEF) == expected(original, images, "", BRIEF)


def test_settings_of_the_first_files_are_understood(blip: LoadedBlip, folder: Path) -> None:
    """They were written by transformers 4.26, with much that it had in every config."""
    config = settings_of(folder)
    old = {"_commit_hash": None, "torch_dtype": "float32", "transformers_version": None, "is_encoder_decoder": False}
    every = {
        "_name_or_path": "", "add_cross_attention": False, "architectures": None, "bad_words_ids": None, "begin_suppress_tokens": None,
        "chunk_size_feed_forward": 0, "diversity_penalty": 0.0, "early_stopping": False, "encoder_no_repeat_ngram_size": 0,
        "length_penalty": 1.0, "max_length": 20, "min_length": 0, "num_beam_groups": 1, "num_beams": 1, "num_return_sequences": 1,
        "output_scores": False, "pruned_heads": {}, "tf_legacy_loss": False, "top_k": 50, "torchscript": False, "typical_p": 1.0,
        "id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "use_bfloat16": False, "return_dict": True,
    }  # fmt: skip
    config = config | old | {name: every | config[name] for name in ("text_config", "vision_config")}
    config["vision_config"] |= {"num_channels": 3, "initializer_factor": 1.0}
    write(folder, config)
    write(folder, settings_of(folder, "preprocessor_config.json") | {"size_divisor": 32}, "preprocessor_config.json")
    images = list(pictures(3))
    assert captioner.captions(captioner.load(blip_folder.find("tiny")), images, "", BRIEF) == captioner.captions(blip, images, "", BRIEF)


def test_a_pickle_of_weights_gives_the_same_and_safetensors_come_first(blip: LoadedBlip, folder: Path) -> None:
    images = list(pictures(3))
    weights = load_file(folder / "model.safetensors")
    assert weights, "nothing would be compared"
    torch.save({name: torch.zeros_like(value) for name, value in weights.items()}, folder / "pytorch_model.bin")
    model = captioner.load(blip_folder.find("tiny"))
    assert captioner.captions(model, images, "", BRIEF) == captioner.captions(blip, images, "", BRIEF)
    (folder / "model.safetensors").unlink()
    # What old files have besides: a buffer, and the shared weights under their second name.
    embeddings = "text_decoder.bert.embeddings."
    bias = "text_decoder.cls.predictions.bias"
    more = {f"{embeddings}position_ids": torch.arange(40)[None], bias.replace(".bias", ".decoder.bias"): weights[bias]}
    shared = {"text_decoder.cls.predictions.decoder.weight": weights[f"{embeddings}word_embeddings.weight"]}
    torch.save(more | shared | weights, folder / "pytorch_model.bin")
    model = captioner.load(blip_folder.find("tiny"))
    for name, value in blip.blip.state_dict().items():
        assert torch.equal(value, model.blip.state_dict()[name]), name
    assert captioner.captions(model, images, "", BRIEF) == captioner.captions(blip, images, "", BRIEF)


def test_a_folder_with_processor_config_and_tokenizer_json_works(blip: LoadedBlip, folder: Path) -> None:
    """The files that newer versions of transformers write."""
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
    processor = settings_of(folder, "preprocessor_config.json")
    for name in ("vocab.txt", "tokenizer_config.json", "preprocessor_config.json"):
        (folder / name).unlink()
    tokenizer.save_pretrained(folder)
    write(folder, {"image_processor": processor, "processor_class": "BlipProcessor"}, "processor_config.json")
    (folder / "vocab.txt").unlink(missing_ok=True)
    images = list(pictures(3))
    assert captioner.captions(captioner.load(blip_folder.find("tiny")), images, "", BRIEF) == captioner.captions(blip, images, "", BRIEF)


def test_nothing_is_looked_for_outside_and_no_code_of_the_folder_runs(
    folder: Path, blip: LoadedBlip, no_network: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the names of the Hub's models in the files, and with code that a loader could be asked to run."""
    flag = folder / "was-run"
    (folder / "evil.py").write_text(f"open({str(flag)!r}, 'w').close()\n")
    for name in ("config.json", "preprocessor_config.json", "tokenizer_config.json"):
        code = {"AutoConfig": "evil.A", "AutoModel": "evil.A", "AutoImageProcessor": "evil.A", "AutoTokenizer": ["evil.A", "evil.A"]}
        hub = {"_name_or_path": "Salesforce/blip-image-captioning-base", "name_or_path": "Salesforce/blip-image-captioning-base"}
        write(folder, settings_of(folder, name) | hub | {"auto_map": code}, name)
    called: list[Any] = []
    tokenizer: Any = getattr(transformers, "BertTokenizerFast")  # noqa: B009  (unknown to type checkers since 5.0)
    loader = tokenizer.from_pretrained

    def watched(*given: Any, **options: Any) -> Any:
        called.append(options.get("local_files_only"))
        return loader(*given, **options)

    monkeypatch.setattr(tokenizer, "from_pretrained", watched)
    images = list(pictures(2))
    assert captioner.captions(captioner.load(blip_folder.find("tiny")), images, "", BRIEF) == captioner.captions(blip, images, "", BRIEF)
    assert called == [True]
    assert no_network == []
    assert not flag.exists()


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(2, 40, 60, 3), r"picture 2 has the shape \[2, 40, 60, 3\]"),
        (torch.zeros(40, 60), r"picture 2 has the shape \[40, 60\]"),
        (torch.zeros(40, 60, 2), r"picture 2 has the shape"),
        (torch.zeros(0, 60, 3), r"picture 2 has the shape"),
        (torch.full((4, 4, 3), torch.nan), r"picture 2 holds values that are no numbers \(NaN\)"),
    ],
)
def test_what_is_no_picture_is_named_by_its_number(blip: LoadedBlip, image: Tensor, message: str) -> None:
    for batch in (1, 8):
        with pytest.raises(ValueError, match=message):
            captioner.captions(blip, [pictures(1)[0], image], "", BRIEF, batch=batch)


def test_a_long_prefix_leaves_no_room_and_one_less_does(blip: LoadedBlip) -> None:
    """40 positions, the first of which is BLIP's own beginning."""
    image = pictures(1)[0]
    search = Search(1, 0, 9)
    (line,) = captioner.captions(blip, [image], "dog " * 30, search)
    assert line.startswith(("dog " * 30).strip())
    with pytest.raises(ValueError, match=r"the prefix has 31 tokens and max_tokens is 9, but this BLIP reads 39 in all"):
        captioner.captions(blip, [image], "dog " * 31, search)


@pytest.mark.parametrize(
    ("given", "message"), [((0, 1, 2), "beams is 0"), ((1, 5, 4), "min_tokens is 5 and max_tokens 4"), ((1, 0, 0), "max")]
)
def test_a_search_that_cannot_be_is_named(given: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Search(*given)


def test_an_interrupt_is_obeyed_at_the_next_token(blip: LoadedBlip, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens: list[int] = []

    def count() -> None:
        tokens.append(1)
        if len(tokens) == 3:
            raise management.InterruptProcessingException

    monkeypatch.setattr(management, "throw_exception_if_processing_interrupted", count)
    with pytest.raises(management.InterruptProcessingException):
        captioner.captions(blip, list(pictures(2)), "", Search(3, 9, 9))
    assert len(tokens) == 3


def test_comfyui_loads_and_keeps_account_of_the_weights(original: Path, blip: LoadedBlip, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    load_models_gpu = management.load_models_gpu

    def watched(models: list[Any], memory_required: int = 0, **options: Any) -> None:
        asked.append((models, memory_required, options))
        load_models_gpu(models, memory_required=memory_required, **options)

    monkeypatch.setattr(management, "load_models_gpu", watched)
    for count in (1, 2):
        captioner.captions(blip, list(pictures(count)), "", BRIEF)
    assert [models for models, *_ in asked] == [[blip.patcher]] * 2
    assert asked[1][1] == 2 * asked[0][1] > 0
    assert any(one.model is blip.patcher for one in management.current_loaded_models)
    assert not any(weight.requires_grad for weight in blip.patcher.model.parameters())
    assert not blip.patcher.model.training


def test_half_precision_where_the_device_computes_in_it(folder: Path, blip: LoadedBlip, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights and pixels alike; and a file in half precision is taken where the device does not."""
    monkeypatch.setattr(management, "should_use_fp16", lambda *_, **__: True)
    model = captioner.load(folder)
    assert {weight.dtype for weight in model.patcher.model.parameters()} == {torch.float16}
    images = list(pictures(4))
    lines = captioner.captions(model, images, "a photo of", BRIEF)
    assert sum(a == b for a, b in zip(lines, captioner.captions(blip, images, "a photo of", BRIEF), strict=True)) >= 3
    monkeypatch.undo()
    weights = {name: value.half() for name, value in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    model = captioner.load(folder)
    assert {weight.dtype for weight in model.patcher.model.parameters()} == {torch.float32}
    assert torch.equal(model.blip.vision_model.post_layernorm.weight, weights["vision_model.post_layernorm.weight"].float())


def test_one_that_was_loaded_in_inference_mode_works_outside_of_it(folder: Path, blip: LoadedBlip) -> None:
    """ComfyUI runs nodes in inference mode, training code leaves it."""
    images = list(pictures(2))
    with torch.inference_mode():
        model = captioner.load(folder)
        first = captioner.captions(model, images, "", BRIEF)
    assert not any(weight.is_inference() for weight in model.patcher.model.parameters())
    assert captioner.captions(model, images, "", BRIEF) == first == captioner.captions(blip, images, "", BRIEF)


def test_it_is_loaded_once_as_long_as_it_is_held_and_anew_for_other_files(folder: Path) -> None:
    first = captioner.load(folder)
    assert captioner.load(folder) is first
    weights = load_file(folder / "model.safetensors")
    save_file({name: value * 0.5 for name, value in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    os.utime(folder / "model.safetensors", (1, 1))
    assert captioner.load(folder) is not first
    gone = weakref.ref(first)
    del first
    assert gone() is None
