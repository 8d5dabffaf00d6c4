"""References with regions as a test knows them: what is said of two of them, and the dense mask of who sees whom, written out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from maskprompt.attention import reference_regions
from maskprompt.attention.grid import RegionMask
from maskprompt.attention.reference_regions import ReferenceRegion

from . import dense
from .dense import Area
from .tiny_transformers import TINIES, Tiny
from .transformer_texts import TEXTS, masks, text_of

SIZE = (9, 11)
takers = pytest.mark.parametrize("tiny", [tiny for tiny in TINIES if tiny.references], ids=lambda tiny: tiny.name)
Token = tuple[Any, ...]


@dataclass(frozen=True)
class Reference:
    """A reference as the test knows it: its tokens that may be seen, its cells (None: all), its strength."""

    tokens: torch.Tensor
    cells: torch.Tensor | None = None
    strength: float = 1.0


def sizes(tiny: Tiny) -> tuple[tuple[int, int], ...]:
    """Of the references' latents: an even one and an odd one, which core's Z-Image does not take."""
    return (6, 8), (4, 10) if tiny.name.startswith("Z-Image") else (5, 7)


def counts(tiny: Tiny) -> tuple[int, ...]:
    return tuple(math.prod(tiny.grid(size)[1:]) for size in sizes(tiny))


def latents(tiny: Tiny, batch: int = 1) -> list[torch.Tensor]:
    return [tiny.latent(size, batch, seed=30 + number) for number, size in enumerate(sizes(tiny))]


def inside(mask: torch.Tensor, tiny: Tiny) -> torch.Tensor:
    """The cells of which a mask [H, W] covers half or more."""
    _, rows, columns = tiny.grid(SIZE)
    pixels = 8 * tiny.patch
    return torch.tensor([
        bool(mask[i * pixels : (i + 1) * pixels, j * pixels : (j + 1) * pixels].mean() >= 0.5) for i in range(rows) for j in range(columns)
    ])  # fmt: skip


def left_seen(tiny: Tiny, size: tuple[int, int]) -> torch.Tensor:
    """The left half of a reference's tokens, bool [tokens]."""
    _, rows, columns = tiny.grid(size)
    return (torch.arange(columns) < (columns + 1) // 2).repeat(rows)


def detailed(tokens: Sequence[dense.Token], counted: Sequence[int], captions: int) -> list[Token]:
    """Tokens with a reference's own told apart: ("shown", number, place), ("caption", number) for captions and filling, ("other",)."""
    found: list[Token] = []
    words = any(token[0] == "words" for token in tokens)
    seen = [0] * len(counted)
    behind = False
    for token in tokens:
        behind = behind or token[0] == "cells"
        if token[0] != "reference" or token[1] < 0:
            found.append(token)
            continue
        number = token[1]
        place = seen[number] - (captions if words else 0)
        seen[number] += 1
        if captions and behind:
            found.append(("other",))
        elif 0 <= place < counted[number]:
            found.append(("shown", number, place))
        else:
            found.append(("caption", number))
    return found


def hidden(token: Token, references: Sequence[Reference]) -> bool:
    return token[0] == "shown" and not references[token[1]].tokens[token[2]]


def sees(query: Token, key: Token, references: Sequence[Reference], there: Sequence[bool]) -> bool:
    """Whether a token sees another if the references `there` are."""
    if hidden(query, references) or hidden(key, references):
        return False
    mine = query[1] if query[0] in ("shown", "caption") else None
    theirs = key[1] if key[0] in ("shown", "caption") else None
    if theirs is not None and theirs != mine:
        if not there[theirs]:
            return False
        cells = references[theirs].cells
        return cells is None or (query[0] == "cells" and bool(cells[query[1]]))
    if mine is not None and key[0] == "cells":
        cells = references[mine].cells
        return cells is None or bool(cells[key[1]])
    return True


def dense_override(tiny: Tiny, told: Any, rows: Callable[[dict[str, Any], int], Sequence[Any]], areas: Sequence[Area] = ()) -> Any:
    """An attention override with a dense mask: `rows` gives each row's references, None for a row that is left alone."""
    counted = counts(tiny)
    captions = 32 if tiny.name.startswith("Z-Image") else 0
    known: dict[Any, torch.Tensor] = {}

    def mask_of(tokens: Any, references: Any, there: list[bool]) -> torch.Tensor:
        key = (tuple(tokens[0]), id(references), *there)
        if key not in known:
            every = detailed(tokens[0], counted, captions)
            classes = sorted(set(every), key=str)
            # Words are many and all alike, so who sees whom is asked once for each kind of token.
            seen = torch.tensor([[sees(query, key, references, there) for key in classes] for query in classes])
            index = torch.tensor([classes.index(token) for token in every])
            known[key] = seen[index][:, index]
        return known[key]

    def attend(func: Any, q: Any, k: Any, v: Any, heads: int, mask: Any = None, *_: Any, **kwargs: Any) -> torch.Tensor:
        parts = [q, k, v] if kwargs.get("skip_reshape") else [x.flatten(2).unflatten(2, (heads, -1)).transpose(1, 2) for x in (q, k, v)]
        options = kwargs.get("transformer_options") or {}
        tokens = told(parts[0].shape[2], parts[1].shape[2], options)
        if tokens is None:
            return func(q, k, v, heads, mask, *_, **kwargs)
        results = []
        for row, references in enumerate(rows(options, len(q))):
            alone = [x[row : row + 1] for x in parts]
            looks = [(1.0, None)] if references is None else dense.blended([one.strength for one in references])
            total = torch.zeros_like(alone[0])
            for weight, there in looks:
                seen = torch.ones(len(tokens[0]), len(tokens[0]), dtype=torch.bool)
                if there is not None:
                    seen = mask_of(tokens, references, there)
                if areas:
                    seen = seen & dense.mask_of(tokens[0], tokens[1], areas, [True] * len(areas))
                # Under core's Flux KV Cache the references, which come last, ask nothing.
                seen = seen[: alone[0].shape[2]]
                total = total + weight * dense.softmax_attention(alone[0], alone[1], alone[2], seen)
            results.append(total)
        result = torch.cat(results)
        return result if kwargs.get("skip_output_reshape") else result.transpose(1, 2).flatten(2)

    return attend


def sample(model: Any, tiny: Tiny, positive: Any, batch: int = 1, cfg: float = 1.0, negative: Any = None, steps: int = 2) -> torch.Tensor:
    """Through ComfyUI's KSampler."""
    import comfy.sample

    noise = tiny.latent(SIZE, batch)
    other = [[tiny.words(TEXTS[0], 90), {**tiny.options}]] if negative is None else negative
    return comfy.sample.sample(
        model, noise, steps, cfg, "euler", "simple", positive, other, torch.zeros_like(noise), seed=3, disable_pbar=True
    )  # fmt: skip


def with_dense(model: Any, override: Any) -> Any:
    clone = model.clone()
    clone.model_options["transformer_options"]["optimized_attention_override"] = override
    return clone


def prompt(tiny: Tiny, pictures: Sequence[torch.Tensor], said: Sequence[ReferenceRegion | None] = (), **options: Any) -> list[Any]:
    """A CONDITIONING with references as core has them, and with what was said of them."""
    conditioning: list[Any] = [[text_of(tiny), {**tiny.options, **options}]]
    for number, picture in enumerate(pictures):
        region = said[number] if said else None
        conditioning = reference_regions.with_reference(conditioning, picture, region)
    return conditioning


def said_of(tiny: Tiny, pictures: Sequence[torch.Tensor], case: str) -> tuple[list[ReferenceRegion | None], list[Reference]]:
    """What a case says of two references, to the pack and to the test's own formula."""
    left, lower = masks(SIZE)
    all_seen = [torch.ones(count, dtype=torch.bool) for count in counts(tiny)]
    half = [left_seen(tiny, size) for size in sizes(tiny)]
    wanted = {
        "regions": [Reference(all_seen[0], inside(left[0], tiny)), Reference(all_seen[1], inside(lower[0], tiny))],
        "hidden": [Reference(half[0]), Reference(all_seen[1])],
        "both": [Reference(half[0], inside(left[0], tiny)), Reference(half[1], inside(lower[0], tiny))],
        "one": [Reference(all_seen[0]), Reference(half[1], inside(lower[0], tiny))],
        "strengths": [Reference(half[0], inside(left[0], tiny), 0.4), Reference(all_seen[1], inside(lower[0], tiny), 1.3)],
    }[case]
    given: list[ReferenceRegion | None] = []
    for picture, one, mask in zip(pictures, wanted, (left, lower), strict=True):
        free = one.cells is None and bool(one.tokens.all())
        region = ReferenceRegion(picture, one.tokens[None], None if one.cells is None else RegionMask(mask), one.strength)
        given.append(None if free else region)
    return given, wanted
