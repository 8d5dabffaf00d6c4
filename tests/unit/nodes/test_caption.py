"""Caption Image, the node."""

from __future__ import annotations

import shutil
import weakref
from pathlib import Path
from typing import Any

import comfy.utils
import folder_paths
import pytest
import torch
from comfy_api.latest import io
from maskprompt.models import files
from maskprompt.models.blip import captioner
from maskprompt.models.blip import folder as blip_folder
from maskprompt.models.blip.captioner import LoadedBlip
from maskprompt.nodes.caption import NO_FOLDERS, CaptionImage
from maskprompt.training.data import captions as training_captions
from torch import Tensor

from ...support.blip import BRIEF, blip, blips, folder, original, pictures

__all__ = ["blip", "blips", "folder", "original"]  # fixtures


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
    assert blip_folder.ADVICE in message
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
    assert blip_folder.folders() == {}
    assert folder_paths.get_filename_list("blip") == ["model_base_caption_capfilt_large.pth"]
    assert files.list_files("blip", frozenset({".pth"})) == ["model_base_caption_capfilt_large.pth"]


def test_several_prefixes_are_refused() -> None:
    """The captions of one run all begin alike; the second of a list was left out without a word."""
    with pytest.raises(ValueError, match="prefix holds 2 different texts"):
        CaptionImage.execute(image=[pictures(1)], blip_name=["tiny"], prefix=["a photo", "a drawing"])
