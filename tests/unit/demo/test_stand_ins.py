"""What the demo puts in the place of a transformer: tiny-edit's files, its sizes and its words, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from demo import run, stand_ins
from demo.tiny_edit import sentences
from demo.tiny_edit.transformer import TEXT_LENGTH

EDIT = {name: prompt for name, prompt in run.workflows().items() if stand_ins.of_transformer(prompt)}
PAINTED = [name for name, prompt in EDIT.items() if stand_ins.for_tiny_edit(prompt)]


@pytest.mark.parametrize("name", PAINTED)
def test_only_files_sizes_sampling_and_words_change(name: str) -> None:
    words = set(sentences.vocabulary())
    for node, entry in stand_ins.changed(EDIT[name]).items():
        before = EDIT[name][node]
        kind = before["class_type"]
        assert entry["class_type"] == stand_ins.EDIT_NODES.get(kind, kind)
        assert entry["inputs"].keys() == before["inputs"].keys()
        for field, value in entry["inputs"].items():
            old = before["inputs"][field]
            if field in stand_ins.PUBLISHED.get(kind, {}):
                assert value == stand_ins.TINY_EDIT[stand_ins.PUBLISHED[kind][field]].name
            elif field == "text" and kind == "CLIPTextEncode":
                assert set(value.split()) <= words
                assert len(value.split()) < TEXT_LENGTH - 4
            elif field in stand_ins.EDIT_SIZES.get(kind, ()) and isinstance(old, int):
                assert 64 <= value <= stand_ins.EDIT_SIDE
                assert value % 16 == 0
            elif (kind, field) == ("MaskPromptCropAroundBox", "context"):
                assert value == min(old, stand_ins.EDIT_CONTEXT)
            elif (kind, field) in stand_ins.EDIT_CHANGES:
                assert value == stand_ins.EDIT_CHANGES[kind, field]
            else:
                assert value == old


def test_every_change_is_needed() -> None:
    met = {(entry["class_type"], field) for name in PAINTED for entry in EDIT[name].values() for field in entry["inputs"]}
    assert stand_ins.EDIT_CHANGES.keys() <= met
    said = {entry["inputs"]["text"] for name in PAINTED for entry in EDIT[name].values() if entry["class_type"] == "CLIPTextEncode"}
    assert stand_ins.EDIT_TEXTS.keys() == said
    assert {kind for kind, _ in met} >= {*stand_ins.EDIT_NODES, *stand_ins.EDIT_SIZES}


@pytest.mark.parametrize(
    ("asked", "expected"), [((1024, 1024), (256, 256)), ((1328, 1328), (256, 256)), ((1024, 768), (256, 192)), ((832, 1248), (176, 256))]
)
def test_sizes_keep_their_proportions(asked: tuple[int, int], expected: tuple[int, int]) -> None:
    assert stand_ins.fitted(*asked) == expected


def test_transformers_are_painted_where_tiny_edit_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never in parts: one file alone is none."""
    files = {kind: tmp_path / file.name for kind, file in stand_ins.TINY_EDIT.items()}
    monkeypatch.setattr(stand_ins, "TINY_EDIT", files)
    for file in files.values():
        assert not set(run.paintable(run.workflows())) & set(EDIT)
        file.touch()
    assert set(run.paintable(run.workflows())) & set(EDIT) == set(PAINTED)


def test_a_new_text_needs_its_words() -> None:
    with pytest.raises(KeyError, match="an unknown sentence"):
        stand_ins.changed(
            {
                "1": {"class_type": "UNETLoader", "inputs": {"unet_name": "a"}},
                "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "an unknown sentence"}},
            }
        )
