"""Handles: where they begin, what they say, where they stand."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from maskprompt.conditioning import handles
from maskprompt.training.engine.text_learner import PLACEHOLDER, TextLearner
from torch import Tensor

from ...support.text_learners import KINDS, LONG, TOKENIZER, WIDTHS, X, clip_of, loaded, same, small_clip, stock


def rows_of(clip: Any, letter: str, word: str) -> Tensor:
    """The word's rows in the table, by the stock tokenizer of `transformers`."""
    table = clip.cond_stage_model.state_dict()[f"clip_{letter}.transformer.text_model.embeddings.token_embedding.weight"]
    return table[TOKENIZER(word).input_ids[1:-1]]


@pytest.mark.parametrize(("kind", "dtype"), [("l", torch.float16), ("h", torch.float32), ("lg", torch.float16)])
def test_handles_begin_as_the_mean_of_their_words(kind: str, dtype: torch.dtype) -> None:
    clip = clip_of(kind, dtype)
    words = ["cat", "fox terrier", "Xyloquark", "\u72ac", "!", "cat"]
    assert [len(rows_of(clip, "l" if kind == "lg" else kind, word)) for word in words[:3]] == [1, 2, 4]
    text = TextLearner(clip, words)
    assert "".join(sorted(text.vectors)) == "".join(sorted(kind))
    for letter, rows in text.vectors.items():
        wanted = torch.stack([rows_of(clip, letter, word).double().mean(0) for word in words])
        assert (rows.dtype, rows.requires_grad, rows.is_leaf) == (torch.float32, True, True)
        torch.testing.assert_close(rows.detach().double(), wanted, atol=1e-7, rtol=1e-6)
    assert not any(torch.equal(rows[0], rows[1]) for rows in text.vectors.values())


def test_a_handle_is_handed_out_as_a_copy() -> None:
    text = TextLearner(clip_of("lg"), ["cat", "dog"])
    found = text.handle(1)
    assert {letter: tuple(vector.shape) for letter, vector in found.items()} == {"l": (1, 32), "g": (1, 48)}
    for letter, vector in found.items():
        assert torch.equal(vector[0], text.vectors[letter][1])
        assert not vector.requires_grad
        vector += 1
        assert not torch.equal(vector[0], text.vectors[letter][1])


@pytest.mark.parametrize("kind", KINDS)
def test_a_word_may_be_an_embedding(tmp_path: Path, kind: str) -> None:
    """One trained before; of several vectors their mean. One that is not there, or is for another text encoder, is refused in words."""
    clip = small_clip(kind, folder=tmp_path)
    trained = {letter: torch.randn(3, WIDTHS[letter]) for letter in kind}
    handles.save(str(tmp_path), "one", {letter: rows[:1] for letter, rows in trained.items()}, "cat")
    handles.save(str(tmp_path), "three", trained, "cat")
    handles.save(str(tmp_path), "other", {"l": torch.randn(1, 20)}, "cat")
    text = TextLearner(clip, ["embedding:one", "embedding:three", "embedding:one cat"])
    for letter, rows in text.vectors.items():
        both = torch.cat([trained[letter][:1], rows_of(clip, letter, "cat")]).mean(0)
        wanted = torch.stack([trained[letter][0], trained[letter].mean(0), both])
        torch.testing.assert_close(rows.detach(), wanted, atol=1e-6, rtol=1e-6)
    for word in ("embedding:none", "", "  "):
        with pytest.raises(ValueError, match=f"reads nothing where a subject's word says '{word}'"):
            TextLearner(clip, ["cat", word])
    with pytest.raises(ValueError, match=r"'embedding:other' is an embedding for another text encoder: it has 20 .* needs"):
        TextLearner(clip, ["embedding:other"])


@pytest.mark.parametrize("kind", KINDS)
def test_saved_handles_say_the_same_in_stock_text_nodes(tmp_path: Path, kind: str) -> None:
    """To the bit: handles are stored in float32. With a weight, twice, and beyond the 77th token."""
    clip = small_clip(kind, folder=tmp_path)
    with loaded(TextLearner(clip, ["cat", "fox terrier"], "lora", 2)) as text:
        for rows in text.vectors.values():
            rows.data.add_(torch.randn(rows.shape, generator=torch.Generator().manual_seed(1)))
        for number in (0, 1):
            handles.save(str(tmp_path), f"own-{number}", text.handle(number), "cat")
        found = {}
        for prompt, order in (("a photo of x and (x:1.4)", (1, 0)), (LONG, (0, 0)), ("x", (1,))):
            named = prompt
            for number in order:
                named = named.replace("x", f"embedding:own-{number}", 1)
            with torch.no_grad():
                found[named] = text.encode(text.tokens(prompt, order)[0])
    for named, encoded in found.items():
        assert "own" in named
        assert same(encoded, stock(clip, named))


@settings(max_examples=25, deadline=None)
@given(kind=st.sampled_from(list(KINDS)), gaps=st.lists(st.integers(0, 60), min_size=1, max_size=4), data=st.data())
def test_vectors_stand_where_tokens_says(kind: str, gaps: list[int], data: st.DataObject) -> None:
    """Any number of handles, in any order, with any number of words between them: nothing else in the prompt's tokens changes."""
    clip = clip_of(kind)
    text = learner_of(kind)
    order = data.draw(st.lists(st.integers(0, 2), min_size=len(gaps), max_size=len(gaps)))
    weight = data.draw(st.sampled_from([1.0, 1.5]))
    prompt = " ".join(f"{'house ' * gap} {PLACEHOLDER if weight == 1 else f'(x:{weight})'}" for gap in gaps) + " at sea"
    found, columns = text.tokens(prompt, order)
    places = []
    filled = 0
    for gap in gaps:  # each of these words is one token; 75 of them fit beside the beginning's and the end's
        filled += gap + 1
        places.append(77 * ((filled - 1) // 75) + (filled - 1) % 75 + 1)
    assert columns == places
    plain = clip.tokenize(prompt)
    assert found.keys() == plain.keys() == text.vectors.keys()
    for letter, rows in found.items():
        assert [len(row) for row in rows] == [77] * len(rows) == [len(row) for row in plain[letter]]
        flat = [entry for row in rows for entry in row]
        before = [entry for row in plain[letter] for entry in row]
        for column, (entry, was) in enumerate(zip(flat, before, strict=True)):
            assert len(entry) == len(was) == 2
            assert entry[1] == was[1] == (weight if column in columns else 1.0)
            if column in columns:
                index = order[columns.index(column)]
                assert torch.equal(entry[0][0], text.vectors[letter][index])
                assert entry[0].requires_grad
            else:
                assert entry == was
                assert entry[0] != X


@functools.cache
def learner_of(kind: str) -> TextLearner:
    """One with three handles, for what does not encode."""
    return TextLearner(clip_of(kind), ["cat", "dog", "fish"], "frozen")


@pytest.mark.parametrize("kind", KINDS)
def test_the_columns_are_those_of_the_encoding(kind: str) -> None:
    """Words before a handle know nothing of it, so an encoding changes from the handle's column on, until its part of 77 ends."""
    with loaded(TextLearner(clip_of(kind), ["cat", "dog"], "frozen")) as text, torch.no_grad():
        tokens, columns = text.tokens(LONG, [1, 0])
        before = text.encode(tokens)[0]
        assert before.shape == (1, 154, sum(WIDTHS[letter] for letter in kind))
        assert columns[0] < 77 < columns[1]
        for index, column, end in ((1, columns[0], 77), (0, columns[1], 154)):
            kept = {letter: rows.clone() for letter, rows in text.vectors.items()}
            for rows in text.vectors.values():
                rows[index] += torch.randn(rows.shape[1], generator=torch.Generator().manual_seed(2))
            changed = (text.encode(text.tokens(LONG, [1, 0])[0])[0] != before).any(2)[0]
            assert changed.nonzero().flatten().tolist() == list(range(column, end))
            for letter, rows in text.vectors.items():
                rows.copy_(kept[letter])


@pytest.mark.parametrize(("prompt", "order", "places"), [("a photo", [0], 0), ("x and x", [0], 2), ("x", [0, 1], 1), ("x", [], 1)])
@pytest.mark.parametrize("kind", KINDS)
def test_as_many_places_as_handles(kind: str, prompt: str, order: list[int], places: int) -> None:
    with pytest.raises(ValueError, match=f"the prompt has {places} places for {len(order)} handles"):
        learner_of(kind).tokens(prompt, order)
