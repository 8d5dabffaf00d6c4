"""The tiny model's file: of the words it holds those that have a meaning, and every loader makes the whole table of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.sd
import torch
from safetensors.torch import load_file

from demo import tiny_model
from demo.registration.words import WORD_IDS, WORDS, whole_words

PREFIX = "cond_stage_model.transformer."


def test_saved_and_loaded_all_parts_are_the_same(tmp_path: Path) -> None:
    unet, text, autoencoder = tiny_model.load_checkpoint(tiny_model.CHECKPOINT)
    tiny_model.save_checkpoint(tmp_path / "again.safetensors", unet, text, autoencoder, {})
    again = tiny_model.load_checkpoint(tmp_path / "again.safetensors")
    for before, after in zip((unet, text, autoencoder), again, strict=True):
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_stock_loader_gives_known_words_their_embeddings_and_others_zeros() -> None:
    state = load_file(tiny_model.CHECKPOINT)
    ids = state[PREFIX + WORD_IDS].tolist()
    _, clip, _, _ = comfy.sd.load_checkpoint_guess_config(str(tiny_model.CHECKPOINT), output_vae=False, output_model=False)
    assert clip is not None
    encoder: Any = clip.cond_stage_model
    table = encoder.clip_l.transformer.get_input_embeddings().weight
    assert table.shape == (49408, 128)
    for row, number in enumerate(ids):
        assert torch.equal(table[number], state[PREFIX + WORDS][row].to(table))
    others = torch.ones(len(table), dtype=torch.bool)
    others[ids] = False
    assert not table[others].any()
    assert table[~others].any(dim=1).all()


def test_a_file_with_all_words_is_left_as_it_is() -> None:
    state = {PREFIX + WORDS: torch.ones(4, 2)}
    assert whole_words(state, PREFIX) is state
