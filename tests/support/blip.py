"""A BLIP of random weights in a folder of its own."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from maskprompt.models.blip import captioner
from maskprompt.models.blip.captioner import LoadedBlip, Search
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
