"""Caption Image and what is below it, against `transformers` itself on a tiny BLIP of random weights."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import comfy.model_management as management
import comfy.utils
import folder_paths
import numpy as np
import pytest
import torch
import transformers
from comfy_api.latest import io
from hypothesis import given, settings
from hypothesis import strategies as st
from maskprompt.models import files
from maskprompt.models.blip import captioner
from maskprompt.models.blip.captioner import LoadedBlip, Search
from maskprompt.nodes.caption import NO_FOLDERS, CaptionImage
from maskprompt.training.data import captions as training_captions
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

WORDS = [
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]",
    "a", "photo", "of", "red", "blue", "dog", "cat", "on", "grass", "and", "one", "two", "##s", ",", "'",
]  # fmt: skip
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
BRIEF = Search(beams=3, least=2, most=9)


def settings_of(folder: Path, name: str = "config.json") -> Any:
    return json.loads((folder / name).read_text())


def write(folder: Path, content: Any, name: str = "config.json") -> None:
    (folder / name).write_text(json.dumps(content))


def tiny_blip(folder: Path) -> Path:
    """A folder as transformers saves one. As in BLIP's own, [DEC] and [ENC] are no words of the tokenizer."""
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    write(folder, {"do_lower_case": True, "tokenizer_class": "BertTokenizer", "model_max_length": 40}, "tokenizer_config.json")
    text = SMALL | {"vocab_size": len(WORDS) + 2, "max_position_embeddings": 40, "bos_token_id": len(WORDS), "sep_token_id": 3}
    vision = SMALL | {"image_size": 32, "patch_size": 8}
    config = transformers.BlipConfig(text_config=text, vision_config=vision, projection_dim=16, image_text_hidden_size=16)
    network: Any = transformers.BlipForConditionalGeneration(config)
    generator = torch.Generator().manual_seed(3)
    for name, weight in sorted(network.named_parameters()):
        if weight.ndim > 1:  # what the text sees of the picture counts most, so that captions differ
            std = 0.5 if "crossattention.output" in name else 0.3 if "vision_model" in name else 0.1
            torch.nn.init.normal_(weight, std=std, generator=generator)
    network.text_decoder.cls.predictions.bias.data[3] = 0.7  # so that some captions end early
    network.save_pretrained(folder)
    processor: Any = transformers.BlipImageProcessor(
        size={"height": 32, "width": 32}, image_mean=[0.3, 0.5, 0.6], image_std=[0.2, 0.3, 0.4]
    )
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One BLIP for all tests; never changed."""
    return tiny_blip(tmp_path_factory.mktemp("blip") / "tiny-blip")


@pytest.fixture
def blips(folders: Path) -> Path:
    """ComfyUI's folder for them, empty."""
    (folders / "models" / "blip").mkdir()
    return folders / "models" / "blip"


@pytest.fixture
def folder(blips: Path, original: Path) -> Path:
    """A BLIP of a test's own, in ComfyUI's folder."""
    return Path(shutil.copytree(original, blips / "tiny"))


@pytest.fixture(scope="module")
def blip(original: Path) -> LoadedBlip:
    return captioner.load(original)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was looked up or connected to; none of it can succeed."""
    seen: list[Any] = []

    def refuse(*given: Any, **_: Any) -> Any:
        seen.append(given)
        raise OSError("there is no network here")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return seen


def pictures(count: int, height: int = 40, width: int = 60, channels: int = 3, seed: int = 0) -> Tensor:
    """A batch of coarse coloured patches, as different as a tiny network needs them; whole numbers of 255."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, channels, 4, 4, generator=generator)
    large = torch.nn.functional.interpolate(coarse, (height, width), mode="nearest").permute(0, 2, 3, 1)
    return (large * 255).round() / 255


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
    assert captioner.captions(captioner.load(captioner.find("tiny")), images, "", BRIEF) == captioner.captions(blip, images, "", BRIEF)


def test_a_pickle_of_weights_gives_the_same_and_safetensors_come_first(blip: LoadedBlip, folder: Path) -> None:
    images = list(pictures(3))
    weights = load_file(folder / "model.safetensors")
    assert weights, "nothing would be compared"
    torch.save({name: torch.zeros_like(value) for name, value in weights.items()}, folder / "pytorch_model.bin")
    model = captioner.load(captioner.find("tiny"))
    assert captioner.captions(model, images, "", BRIEF) == captioner.captions(blip, images, "", BRIEF)
    (folder / "model.safetensors").unlink()
    # What old files have besides: a buffer, and the shared weights under their second name.
    embeddings = "text_decoder.bert.embeddings."
    bias = "text_decoder.cls.predictions.bias"
    more = {f"{embeddings}position_ids": torch.arange(40)[None], bias.replace(".bias", ".decoder.bias"): weights[bias]}
    shared = {"text_decoder.cls.predictions.decoder.weight": weights[f"{embeddings}word_embeddings.weight"]}
    torch.save(more | shared | weights, folder / "pytorch_model.bin")
    model = captioner.load(captioner.find("tiny"))
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
    assert captioner.captions(captioner.load(captioner.find("tiny")), images, "", BRIEF) == captioner.captions(blip, images, "", BRIEF)


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
    assert captioner.captions(captioner.load(captioner.find("tiny")), images, "", BRIEF) == captioner.captions(blip, images, "", BRIEF)
    assert called == [True]
    assert no_network == []
    assert not flag.exists()


@pytest.mark.parametrize("name", ["model.safetensors", "vocab.txt", "preprocessor_config.json", "config.json"])
def test_a_missing_file_is_named_with_what_to_do_and_not_looked_for(folder: Path, no_network: list[Any], name: str) -> None:
    (folder / name).unlink()
    (folder / "tokenizer.json").unlink(missing_ok=True)
    wanted = "There is no BLIP folder 'tiny'" if name == "config.json" else f"tiny is not complete: it lacks .*{name}"
    with pytest.raises(ValueError, match=f"(?s){wanted}.*Download all files of Salesforce/blip-image-captioning-base.*models/blip"):
        captioner.find("tiny")
    assert no_network == []


def test_all_that_is_missing_is_named_at_once(folder: Path) -> None:
    for one in folder.iterdir():
        if one.name != "config.json":
            one.unlink()
    with pytest.raises(ValueError, match=r"model\.safetensors or pytorch_model\.bin; tokenizer\.json or vocab\.txt; preprocessor_config"):
        captioner.find("tiny")


def test_folders_are_listed_at_any_usual_place(blips: Path, original: Path, tmp_path: Path) -> None:
    """Below a publisher's name, in a copy of the Hub's cache, through a link, and files put straight into `blip`."""
    assert captioner.folders() == {}
    assert CaptionImage.GET_SCHEMA().inputs[1].as_dict()["options"] == [NO_FOLDERS]  # pyright: ignore[reportAttributeAccessIssue]
    hub = "models--Salesforce--base/snapshots/82a37760"
    for place in ("b", "Salesforce/base", hub, "a/b/c/d/too-deep"):
        (blips / place).mkdir(parents=True)
        shutil.copy(original / "config.json", blips / place)
    (blips / "empty").mkdir()
    (blips / "other-packs.pth").touch()
    (blips / "b" / "onnx").mkdir()
    shutil.copy(original / "config.json", blips / "b" / "onnx")
    os.symlink(original, blips / "link")
    assert list(captioner.folders()) == ["Salesforce/base", "b", "link", hub]
    assert captioner.find("link") == blips / "link"
    shutil.copytree(original, blips, dirs_exist_ok=True)
    assert list(captioner.folders()) == [".", "Salesforce/base", "b", "link", hub]
    assert captioner.find(".") == blips
    extra = Path(shutil.copytree(original, tmp_path / "extra" / "mine"))
    folder_paths.add_model_folder_path("blip", str(extra.parent))
    assert captioner.find("mine") == extra


@pytest.mark.parametrize("name", ["x", "../tiny-blip", "/", "", NO_FOLDERS])
def test_an_unknown_name_lists_the_known_ones(folder: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"There is no BLIP folder '.*' in .*blip \(found there: tiny\)\. Download all files"):
        captioner.find(name)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model_type": "blip-2"}, r"tiny holds no BLIP model: its config\.json says model_type 'blip-2'"),
        ({"model_type": None}, "holds no BLIP model"),
        ({"architectures": ["BlipForQuestionAnswering"]}, r"BLIP for another task \(BlipForQuestionAnswering\)"),
    ],
)
def test_another_model_is_named_before_anything_is_read(folder: Path, changed: dict[str, Any], message: str) -> None:
    write(folder, settings_of(folder) | changed)
    with pytest.raises(ValueError, match=message):
        captioner.find("tiny")
    assert message.split(r" \(")[0].replace("\\", "") in str(CaptionImage.validate_inputs(["tiny"]))


@pytest.mark.parametrize("content", ["{", "[]", "", "\x00"])
def test_a_damaged_config_is_named(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config\.json (cannot be read .*download it again|says model_type None)"):
        captioner.find("tiny")


def test_a_config_of_wrong_values_is_named(folder: Path) -> None:
    config = settings_of(folder)
    config["text_config"]["hidden_size"] = "large"
    write(folder, config)
    with pytest.raises(ValueError, match=r"tiny"):
        captioner.load(captioner.find("tiny"))


@pytest.mark.parametrize("name", ["tokenizer.json", "preprocessor_config.json"])
def test_damaged_small_files_are_named(folder: Path, name: str) -> None:
    (folder / name).write_text('{"version": "1.0", "model": {')
    with pytest.raises(ValueError, match=r"The settings or the tokenizer in .*tiny cannot be read .*Download its small files again"):
        captioner.load(captioner.find("tiny"))


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_truncated_file_of_weights_is_named(folder: Path, name: str) -> None:
    if name.endswith(".bin"):
        torch.save(load_file(folder / "model.safetensors"), folder / name)
        (folder / "model.safetensors").unlink()
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=rf"{name}' .*damaged or not complete.*download it again"):
        captioner.load(captioner.find("tiny"))


class Evil:
    """Unpickled without care, it makes a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.target),))


def test_a_pickle_with_code_is_refused_and_not_run(folder: Path) -> None:
    flag = folder / "was-run"
    torch.save({**load_file(folder / "model.safetensors"), "x": Evil(flag)}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"pytorch_model\.bin' was refused.*run any program"):
        captioner.load(captioner.find("tiny"))
    assert not flag.exists()


def test_weights_that_are_missing_or_too_large_are_named(folder: Path) -> None:
    """transformers itself would go on with random ones."""
    weights = load_file(folder / "model.safetensors")
    fewer = {name: value for name, value in weights.items() if "text_decoder.bert.encoder.layer.1" not in name}
    save_file(fewer, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks \d+ weights of a BLIP captioning model, such as text_decoder\.bert\.encoder\.layer\.1"):
        captioner.load(folder)
    larger = {
        name: torch.zeros(*value.shape[:-1], value.shape[-1] + 1) if "qkv.weight" in name else value for name, value in weights.items()
    }
    save_file(larger, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"'model\.safetensors' in .*tiny does not fit its config\.json"):
        captioner.load(folder)


def test_a_tokenizer_of_another_model_is_named(folder: Path) -> None:
    (folder / "tokenizer.json").unlink(missing_ok=True)
    (folder / "vocab.txt").write_text("\n".join([*WORDS, "three", "four", "five"]))
    with pytest.raises(ValueError, match=rf"has {len(WORDS) + 3} words, its BLIP {len(WORDS) + 2}: they are of different models"):
        captioner.load(folder)


def test_weights_that_are_no_numbers_are_an_error_and_no_caption(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["vision_model.post_layernorm.weight"].fill_(torch.nan)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    for beams in (1, 3):
        with pytest.raises(RuntimeError, match=r"'tiny' gives no usable numbers in torch\.float32"):
            captioner.captions(captioner.load(folder), list(pictures(2)), "", Search(beams, 2, 9))


def test_transformers_that_is_missing_or_too_old_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "transformers", None)
        with pytest.raises(RuntimeError, match=r"need the Python package transformers.*pip install"):
            captioner.load(folder)
        assert CaptionImage.validate_inputs(["tiny"]) is True  # ComfyUI still starts, and the node is still there
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "transformers", type(sys)("transformers"))
        with pytest.raises(RuntimeError, match=r"need the Python package transformers"):
            captioner.load(folder)


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


# The node


def ran(image: list[Tensor], name: str = "tiny", node: str | None = None, **more: Any) -> Any:
    """Its NodeOutput, called as ComfyUI's executor does: with lists, in inference mode."""
    prepared: Any = CaptionImage.PREPARE_CLASS_CLONE({"hidden_inputs": {io.Hidden.unique_id: node}})  # pyright: ignore[reportArgumentType]
    brief = {"beams": 3, "min_tokens": 2, "max_tokens": 9} | more
    with torch.inference_mode():
        return prepared.execute(image=image, blip_name=[name], **{key: [value] for key, value in brief.items()})


def test_the_node_gives_a_line_for_each_picture_as_train_meca_takes_it(
    folder: Path, blip: LoadedBlip, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[tuple[int, int]] = []
    monkeypatch.setattr(comfy.utils.ProgressBar, "update_absolute", lambda self, value, *_, **__: steps.append((value, self.total)))
    images = [pictures(5), pictures(4, 20, 30, seed=1), pictures(1, 33, 90, 4, seed=2)]
    result = ran(images, prefix="a photo of")
    flat = [one for batch in images for one in batch]
    lines = captioner.captions(blip, flat, "a photo of", BRIEF)
    assert result.args == ("\n".join(lines),)
    assert result.ui.as_dict() == {"text": ("\n".join(lines),)}
    assert training_captions.lines(list(result.args), 10) == lines
    assert steps == [(8, 10), (10, 10)]


def test_the_node_has_defaults_for_what_is_optional(folder: Path, blip: LoadedBlip) -> None:
    prepared: Any = CaptionImage.PREPARE_CLASS_CLONE(None)
    inputs = {part.id: part for part in CaptionImage.GET_SCHEMA().inputs}
    usual = {name: [inputs[name].as_dict()["default"]] for name in ("prefix", "max_tokens", "beams", "min_tokens")}
    given = {"image": [pictures(1)], "blip_name": ["tiny"]}
    assert prepared.execute(**given).args == prepared.execute(**given, **usual).args == (captioner.captions(blip, list(pictures(1)))[0],)


def test_the_node_keeps_its_lines_where_blip_has_no_words(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without words a first or last line would be lost, and every caption would go to a neighbour."""
    monkeypatch.setattr(LoadedBlip, "describe", lambda self, group, *_: ["", "a dog", "", ""][: len(group)])
    (text,) = ran([pictures(4)]).args
    assert text == "a picture\na dog\na picture\na picture"
    assert training_captions.lines([text], 4)[1] == "a dog"
    assert "no words for picture 1" in caplog.text
    assert "picture 2" not in caplog.text


def test_the_model_stays_between_runs_as_long_as_a_node_is_in_the_graph(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ComfyUI makes an object of a node's class, and keeps it until a graph comes without that node."""
    loader = captioner._loaded  # pyright: ignore[reportPrivateUsage]
    used: list[weakref.ref[LoadedBlip]] = []

    def watched(place: Path, weights: Path) -> LoadedBlip:
        found = loader(place, weights)
        used.append(weakref.ref(found))
        return found

    monkeypatch.setattr(captioner, "_loaded", watched)
    in_graph = CaptionImage()
    for seed in range(3):
        ran([pictures(1, seed=seed)])
    assert len(used) == 1
    del in_graph
    assert used[0]() is None
    ran([pictures(1)])
    ran([pictures(1)])
    assert len(used) == 3


def test_validation_says_what_execution_would_say(blips: Path, original: Path) -> None:
    message = CaptionImage.validate_inputs([NO_FOLDERS])
    assert isinstance(message, str)
    assert str(blips) in message
    assert captioner.ADVICE in message
    with pytest.raises(ValueError, match="There is no BLIP folder"):
        ran([pictures(1)], NO_FOLDERS)
    shutil.copytree(original, blips / "tiny")
    assert CaptionImage.validate_inputs(["tiny"]) is True
    assert CaptionImage.validate_inputs("tiny") is True
    with pytest.raises(ValueError, match="no picture was given"):
        ran([torch.zeros(0, 8, 8, 3)])
    with pytest.raises(ValueError, match="min_tokens is 20 and max_tokens 9"):
        ran([pictures(1)], min_tokens=20)


def test_the_folder_is_registered_beside_other_packs(folders: Path) -> None:
    """Other packs keep the first BLIP's .pth files in models/blip."""
    (folders / "models" / "blip").mkdir()
    (folders / "models" / "blip" / "model_base_caption_capfilt_large.pth").touch()
    folder_paths.folder_names_and_paths["blip"] = ([str(folders / "models" / "blip")], {".pth"})
    assert captioner.folders() == {}
    assert folder_paths.get_filename_list("blip") == ["model_base_caption_capfilt_large.pth"]
    assert files.list_files("blip", frozenset({".pth"})) == ["model_base_caption_capfilt_large.pth"]
