"""The patch chain: how this pack changes attention without overwriting anybody.

A patch is an immutable object that may change q, k, v, mask the result or add a branch, and calls `inner` for the attention
beneath it. `install` puts the patch on a clone of a MODEL, under one key of ours. When the UNet runs, the chain composes its
patches, in the graph's order, on top of whatever replacement other packs have put on a layer, and hands the UNet a fresh
dict. A layer on which no patch acts at this step is left exactly as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from torch import Tensor

from . import surplus
from .arguments import Arguments
from .grid import Size
from .layers import Layer, is_unet, layers_of
from .moment import Moment, Schedule, schedule_of
from .rows import KEY, Row, moment_of, remember_halves, remember_view, rows_of

Kind = Literal["self", "cross"]
Half = Literal["both", "positive", "negative"]
Inner = Callable[[Tensor, Tensor, Tensor], Tensor]

SLOTS: dict[Kind, str] = {"self": "attn1", "cross": "attn2"}


@dataclass(frozen=True)
class Scope:
    """Where a patch works: which layers (None is all), from which share of the sampling, 0..1, to which, which half of CFG."""

    layers: frozenset[Layer] | None = None
    start: float = 0.0
    end: float = 1.0
    half: Half = "both"

    def covers(self, layer: Layer, moment: Moment) -> bool:
        """Says whether it is this part of the sampling, and one of these layers."""
        return (self.layers is None or layer in self.layers) and self.holds_at(moment)

    def holds_at(self, moment: Moment) -> bool:
        """Says whether it is this part of the sampling."""
        return moment.within(self.start, self.end)


EVERYWHERE = Scope()
"""Every layer, the whole sampling, both halves."""


@dataclass(frozen=True)
class Call:
    """What a patch may know of the attention it changes.

    `grid` is the layer's true grid (height, width) with `grid[0] * grid[1]` tokens; `latent` the whole latent's size;
    `plain` says that `inner` is ComfyUI's own attention and nobody's patch, so that tokens may be left out of a call to it.
    `options` are ComfyUI's for this layer: what `attention` needs for a branch that a patch adds.
    """

    kind: Kind
    layer: Layer
    heads: int
    grid: Size
    latent: Size
    rows: tuple[Row, ...]
    moment: Moment
    plain: bool
    options: Mapping[str, Any] = field(default_factory=dict[str, Any], compare=False, repr=False)


class Scoped(Protocol):
    """Whatever stands in a chain: a `Patch` of a UNet's layers, a region of text, a rule, a probe."""

    @property
    def kind(self) -> str: ...

    @property
    def scope(self) -> Scope: ...


class Patch(Protocol):
    """An attention patch. `attend` takes and returns [B, N, C] (q and result), [B, M, C] (k and v)."""

    @property
    def kind(self) -> Kind: ...

    @property
    def scope(self) -> Scope: ...

    def attend(self, q: Tensor, k: Tensor, v: Tensor, call: Call, inner: Inner) -> Tensor: ...


@dataclass(frozen=True)
class Chain:
    """The patches on a MODEL, in graph order: a wrapper of the diffusion model (`WrappersMP.DIFFUSION_MODEL`).

    `schedule` is what the MODEL had when the last of them was put on it: for calls that tell of none.
    """

    patches: tuple[Any, ...]
    schedule: Schedule | None = field(default=None, compare=False, repr=False)
    _plans: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)
    came: set[type] = field(default_factory=set[type], compare=False, repr=False)
    """The classes of transformers whose attention came by."""

    def __call__(self, executor: Any, *args: Any, **kwargs: Any) -> Tensor:
        from . import families, region_passes

        family = families.find(executor.class_obj)
        if family is not None and family.outer:
            return executor(*args, **kwargs)
        return region_passes.run(self, executor, executor.class_obj, Arguments.of(executor.original, args, kwargs))

    def around(self, executor: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Wrapper of `apply_model`, for transformers that ask no wrappers of the diffusion model (SD 3)."""
        from . import region_passes

        # Under TorchCompileModel the compiled module stands there for the call, around the model.
        model = executor.class_obj.diffusion_model
        model = getattr(model, "_orig_mod", model)
        return region_passes.run(self, executor, model, Arguments.of(executor.original, args, kwargs))

    def moment(self, options: Mapping[str, Any]) -> Moment:
        """Gives the point of the sampling at which a call is, by its transformer options."""
        return moment_of(options, self.schedule)

    def once(self, executor: Any, model: Any, arguments: Arguments) -> Any:
        """One pass of a diffusion `model` under the patches; `executor` takes the arguments."""
        from . import joint, unet_regions

        if not is_unet(model):
            return joint.run(self, executor, model, arguments, self._plans)
        patches = self.patches
        if any(patch.kind == "region" for patch in patches):
            moment = self.moment(arguments.get("transformer_options", {}))
            arguments, patches = unet_regions.joined(patches, model, arguments, moment, self._plans)
        options = arguments.get("transformer_options", {})
        options = replace(self, patches=patches).composed(model, arguments.get("x"), options)
        return arguments.having(transformer_options=options).call(executor)

    def composed(self, unet: Any, x: Tensor, options: dict[str, Any]) -> dict[str, Any]:
        """A copy of the transformer options in which every layer that a patch acts on runs through the chain."""
        moment = self.moment(options)
        active: dict[Kind, tuple[Patch, ...]] = {kind: tuple(patch for patch in self.patches if patch.kind == kind) for kind in SLOTS}
        blocks_of = {slot: dict(blocks) for slot, blocks in options.get("patches_replace", {}).items()}
        for layer in layers_of(unet):
            for kind, slot in SLOTS.items():
                patches = tuple(patch for patch in active[kind] if patch.scope.covers(layer, moment))
                if not patches:
                    continue
                blocks = blocks_of.setdefault(slot, {})
                beneath = blocks.get(layer, blocks.get(layer[:2]))
                blocks[layer] = _Replacement(patches, kind, layer, moment, beneath, x.shape[0], (x.shape[2], x.shape[3]))
        return {**options, "patches_replace": blocks_of}


@dataclass(frozen=True)
class _Replacement:
    """What ComfyUI calls instead of a layer's attention: `fn(q, k, v, extra_options)`."""

    patches: tuple[Patch, ...]
    kind: Kind
    layer: Layer
    moment: Moment
    beneath: Callable[..., Tensor] | None
    batch: int
    size: Size

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, extra_options: dict[str, Any], **kwargs: Any) -> Tensor:
        height, width = extra_options["activations_shape"][2:4]
        if q.shape[1] != height * width:
            raise RuntimeError(
                f"layer {self.layer} runs on {q.shape[1]} tokens where the picture has {height}x{width}: another node merges or "
                "tiles tokens (ToMe, HyperTile). A mask cannot be placed there; bypass that node, or MaskPrompt's."
            )
        latent, rows = rows_of(extra_options, self.batch, self.size)
        heads = extra_options["n_heads"]
        plain = self.beneath is None
        call = Call(self.kind, self.layer, heads, (height, width), latent, rows, self.moment, plain, extra_options)

        def bottom(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            if self.beneath is not None:
                return self.beneath(q, k, v, extra_options, **kwargs)
            return attention(q, k, v, extra_options)

        run: Inner = bottom
        for patch in self.patches:
            run = _on_half(patch, call, run)
            call = replace(call, plain=False)
        return run(q, k, v)


def _on_half(patch: Patch, call: Call, inner: Inner) -> Inner:
    """The patch over `inner`, for the rows of its half of CFG only."""
    wanted = {"both": {0, 1}, "positive": {0}, "negative": {1}}[patch.scope.half]
    rows = [index for index, row in enumerate(call.rows) if min(row.half, 1) in wanted]
    if not rows:
        return inner
    if len(rows) == len(call.rows):
        return lambda q, k, v: patch.attend(q, k, v, call, inner)

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if len(q) != len(call.rows):
            raise RuntimeError(
                f"another node runs layer {call.layer} on {len(q)} rows where the batch has {len(call.rows)} (attention couple?), so it is "
                "not known which row is the positive prompt's. Bypass that node, or set apply_to to both."
            )
        result = inner(q, k, v).clone()
        result[rows] = patch.attend(q, k, v, call, inner)[rows]
        return result

    return run


def attention(q: Tensor, k: Tensor, v: Tensor, extra_options: Mapping[str, Any]) -> Tensor:
    """ComfyUI's attention as its own layers call it, so that Sage, Flash and xformers go on serving."""
    from comfy.ldm.modules.attention import optimized_attention

    precision = extra_options.get("attn_precision")
    return optimized_attention(q, k, v, extra_options["n_heads"], attn_precision=precision, transformer_options=extra_options)


def install(model: Any, *patches: Scoped) -> Any:
    """A clone of the MODEL with the patches at the end of its chain; the given MODEL stays as it is."""
    from comfy.patcher_extension import WrappersMP

    from . import families

    check_model(model, patches)
    clone = model.clone()
    before = tuple(patch for chain in clone.get_wrappers(WrappersMP.DIFFUSION_MODEL, KEY) for patch in chain.patches)
    whole = Chain((*before, *patches), schedule_of(model.get_model_object("model_sampling")))
    clone.remove_wrappers_with_key(WrappersMP.DIFFUSION_MODEL, KEY)
    clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, whole)
    family = families.find(model.get_model_object("diffusion_model"))
    if family is not None and family.outer:
        clone.remove_wrappers_with_key(WrappersMP.APPLY_MODEL, KEY)
        clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, whole.around)
    clone.remove_wrappers_with_key(WrappersMP.CALC_COND_BATCH, KEY)
    clone.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, KEY, remember_view)
    clone.remove_wrappers_with_key(WrappersMP.PREDICT_NOISE, KEY)
    clone.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, KEY, remember_halves)
    clone.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, KEY)
    clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, surplus.tell)
    return clone


def check_model(model: Any, patches: Sequence[Any]) -> None:
    """Raises TypeError in words for a MODEL on which the patches cannot act: an unknown one, or a UNet's patches on a transformer."""
    from . import families

    diffusion_model = model.get_model_object("diffusion_model")
    if is_unet(diffusion_model) or any(patch.kind in SLOTS for patch in patches):
        layers_of(diffusion_model)
    else:
        families.of(diffusion_model)


def with_patches(wrappers: dict[str, dict[str, list[Any]]], *patches: Scoped) -> dict[str, dict[str, list[Any]]]:
    """A model's wrappers with the patches at the end of its chain: what `install` does, for one run of a MODEL and without a clone."""
    from comfy.patcher_extension import WrappersMP

    chains = wrappers.get(WrappersMP.DIFFUSION_MODEL, {})
    there: list[Chain] = chains.get(KEY, [])
    before = tuple(patch for chain in there for patch in chain.patches)
    schedule = there[-1].schedule if there else None
    views = wrappers.get(WrappersMP.CALC_COND_BATCH, {})
    return {
        **wrappers,
        WrappersMP.DIFFUSION_MODEL: {**chains, KEY: [Chain((*before, *patches), schedule)]},
        WrappersMP.CALC_COND_BATCH: {**views, KEY: [remember_view]},
    }
