"""What a reader of a family says, and what the readers share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn, Protocol

from torch import Tensor

from ..arguments import Arguments
from ..layers import Layer
from ..layout import Counted, Grid, Layout, spans_of

Words = tuple[Tensor, ...]
"""A text as a model takes it: [B, n, ...] for each stream of words that it sees. Most see one, some those of several encoders."""


class UnreadableError(RuntimeError):
    """A call of attention whose tokens do not add up to what is known of the model."""


@dataclass(frozen=True)
class Scene:
    """One run of the model: how many words it is given (all texts together), and the grid of the picture being painted.

    `before` and `after` are further tokens that the call tells of, around the words (where the picture sees itself alone, before the cells)
    and behind the cells; `aside` are those that the picture sees in a call of their own.
    """

    words: int
    grid: Grid
    before: tuple[Counted, ...] = ()
    after: tuple[Counted, ...] = ()
    aside: int = 0


@dataclass(frozen=True)
class Seen:
    """One call of attention: which layer (and which of how many), and what its tokens are."""

    layer: Layer
    number: int
    layers: int
    layout: Layout


class Family(Protocol):
    """A family of transformers. `name` is what an artist calls it."""

    @property
    def name(self) -> str: ...

    @property
    def outer(self) -> bool:
        """Whether its model asks no DIFFUSION_MODEL wrappers, so that the chain stands around `apply_model` in place of it."""
        ...

    @property
    def counts_words(self) -> bool:
        """Whether the picture's places depend on how many words there are, so that rows with further words run apart from those without."""
        ...

    @property
    def filled_in_front(self) -> bool:
        """Whether a prompt that is too short for the model is filled up before its words, not behind them."""
        ...

    def fits(self, model: Any) -> bool:
        """Whether a diffusion model is of this family."""
        ...

    def layers(self, model: Any) -> tuple[Layer, ...]:
        """The layers in which words and picture meet, in the order in which they run."""
        ...

    def patch_of(self, model: Any) -> int:
        """How many pixels of the latent a cell is wide and high."""
        ...

    def words(self, model: Any, text: Tensor, options: Mapping[str, Any]) -> Words:
        """A text [B, T, width] of a CONDITIONING as the model takes it beside others."""
        ...

    def joined(self, model: Any, arguments: Arguments, words: Words, counts: Sequence[int]) -> Arguments:
        """The call with further words after its text, which are texts of so many words each (of the first stream)."""
        ...

    def alone(self, arguments: Arguments, words: Words) -> Arguments:
        """The call with these words in place of its text, as if they were the prompt."""
        ...

    def text(self, arguments: Arguments) -> Words:
        """The prompt's text in the call."""
        ...

    def scene(self, model: Any, arguments: Arguments) -> Scene:
        """What the call shows before the model runs."""
        ...

    def announced(self, model: Any, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Options under which each call of attention tells what `seen` has to know; most models tell it by themselves."""
        ...

    def seen(self, model: Any, scene: Scene, options: Mapping[str, Any], count: int, queries: int, keys: int) -> Seen | None:
        """What one call of attention shows: the `count`th of this run, with so many tokens.

        None for a call that mixes neither texts nor cells with each other. Raises UnreadableError.
        """
        ...


class OneStream:
    """What families share that see a text as one stream of words: it is an argument of the call, and further words stand behind it.

    `unpads`: of a text that has an attention mask the model takes only what that leaves in.
    """

    argument: ClassVar[str] = "context"
    unpads: ClassVar[bool] = False

    def words(self, model: Any, text: Tensor, options: Mapping[str, Any]) -> Words:
        return (unpadded(text, options) if self.unpads else text,)

    def text(self, arguments: Arguments) -> Words:
        return (arguments.get(self.argument),)

    def joined(self, model: Any, arguments: Arguments, words: Words, counts: Sequence[int]) -> Arguments:
        return with_words(arguments, words[0], self.argument)

    def alone(self, arguments: Arguments, words: Words) -> Arguments:
        return with_text(arguments, words[0], self.argument)

    def announced(self, model: Any, options: Mapping[str, Any]) -> Mapping[str, Any]:
        return options


def is_class(model: Any, module: str, *names: str) -> bool:
    """Whether a model is of one of these classes themselves: of a class derived from it, nothing is known."""
    return type(model).__module__ == module and type(model).__name__ in names


def unpadded(text: Tensor, options: Mapping[str, Any]) -> Tensor:
    """A text [B, T, width] without the tokens that its attention mask leaves out in every row."""
    mask = options.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.shape[-1] != text.shape[1]:
        return text
    wanted = (mask.reshape(-1, text.shape[1]) > 0).any(0)
    return text[:, wanted.to(text.device)] if bool(wanted.any()) else text


def with_words(arguments: Arguments, words: Tensor, name: str = "context") -> Arguments:
    """The call with words after its text, and with its text mask, if it has one, extended by ones.

    Raises ValueError where something else than a mask of the text stands there (a dense mask of core's regional conditioning).
    """
    import torch

    context: Tensor = arguments.get(name)
    joined = arguments.having(**{name: torch.cat([context, words.to(context)], dim=1)})
    ones = _mask_of(words, arguments, name)
    if ones is None:
        return joined
    return joined.having(attention_mask=torch.cat([arguments.get("attention_mask"), ones], dim=1))


def with_text(arguments: Arguments, words: Tensor, name: str = "context") -> Arguments:
    """The call with words in place of its text, and of its text mask, if it has one. Raises ValueError as `with_words`."""
    alone = arguments.having(**{name: words.to(arguments.get(name))})
    ones = _mask_of(words, arguments, name)
    return alone if ones is None else alone.having(attention_mask=ones)


def _mask_of(words: Tensor, arguments: Arguments, name: str) -> Tensor | None:
    """What the call's text mask says of words that are all seen: ones, or zeros where it is added to scores. None without a mask."""
    mask = arguments.get("attention_mask")
    if mask is None:
        return None
    if mask.shape[-1] != arguments.get(name).shape[1] or mask.ndim != 2:
        raise ValueError(
            "the prompt already has an attention mask for the whole picture (Conditioning with attention_mask). It cannot be joined with "
            "Prompt Region: use one of them."
        )
    added = mask.is_floating_point() and bool((mask <= 0).all())
    return mask.new_full((len(mask), words.shape[1]), 0 if added else 1)


def grid_of(x: Tensor, patch: int | tuple[int, int, int]) -> Grid:
    """The grid of a latent [B, C, (frames,) h, w] whose patches have this size; a last patch reaches over the edge."""
    steps = (1, patch, patch) if isinstance(patch, int) else patch
    sizes = (x.shape[2] if x.ndim == 5 else 1, x.shape[-2], x.shape[-1])
    frames, height, width = (-(-size // step) for size, step in zip(sizes, steps, strict=True))
    return frames, height, width


def cells_in(grid: Grid) -> int:
    return grid[0] * grid[1] * grid[2]


def layout_of(grid: Grid, tokens: int, what: str, *counted: Counted) -> Layout:
    """The layout of a call in which queries and keys are these tokens. Raises UnreadableError if they are not all of its tokens."""
    spans = spans_of(*counted)
    if not spans or spans[-1].stop != tokens:
        refuse(what, tokens, tokens, ", ".join(f"{span.count} of {span.kind}" for span in spans))
    return Layout(spans, spans, grid)


def refuse(what: str, queries: int, keys: int, expected: str) -> NoReturn:
    """Raises UnreadableError in words."""
    raise UnreadableError(
        f"MaskPrompt does not know what the {queries} tokens and {keys} keys of {what} are: expected were {expected}. Another node adds or "
        "removes tokens, or this ComfyUI builds the model in another way. Bypass that node, or MaskPrompt's."
    )


def numbered(name: str, count: int) -> tuple[Layer, ...]:
    return tuple((name, number, 0) for number in range(count))


def texts_restarting(prompt: int, counts: Sequence[int]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A `post_input` patch that gives joined texts, of so many words each behind a prompt of so many, the positions they have alone."""

    def restarted(values: dict[str, Any]) -> dict[str, Any]:
        ids = values["txt_ids"]
        moved = ids.clone()
        place = prompt
        for count in counts:
            moved[:, place : place + count] = ids[:, :count]
            place += count
        return {**values, "txt_ids": moved}

    return restarted


def with_patch(arguments: Arguments, name: str, patch: Callable[..., Any]) -> Arguments:
    """The call with a patch before all other patches of this name."""
    options = arguments.get("transformer_options", {})
    patches = options.get("patches", {})
    patched = {**options, "patches": {**patches, name: [patch, *patches.get(name, [])]}}
    return arguments.having(transformer_options=patched)
