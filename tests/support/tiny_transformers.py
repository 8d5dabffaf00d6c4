"""Tiny transformers of random weights: ComfyUI's own classes, as MODELs that its own sampler runs.

What a test must know of them (where words, cells and references stand) is written here by hand, from the models' papers and sources, and
does not come from the pack.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from .dense import Token, listed

Options = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Tiny:
    """A family at toy size. `patch` is the latent's pixels to a cell along one axis; `text` the width of its words."""

    name: str
    config: Callable[[], Any]
    channels: int
    text: int
    patch: int = 2
    order: tuple[str, ...] = ("words", "cells", "references")
    frames: int | None = None
    references: bool = False
    options: Options = field(default_factory=dict)
    restarts: bool = False
    """Whether the model counts its words, so that each text begins at the first place."""
    layout: Callable[..., Any] | None = None
    padded: int = 0
    """To how many words the model fills a shorter text up, in front."""
    beside: Callable[[torch.Tensor], Options] = lambda text: {}
    """What else a CONDITIONING of this text brings; of texts joined it is that of each, joined."""

    def model(self, dtype: torch.dtype = torch.float32) -> Any:
        """A MODEL on the CPU, always of the same weights."""
        return (_model(self) if dtype == torch.float32 else _converted(self, dtype)).clone()

    def latent(self, size: tuple[int, int], batch: int = 1, seed: int = 1, frames: int | None = None) -> torch.Tensor:
        time = () if self.frames is None else (frames or self.frames,)
        return torch.randn(batch, self.channels, *time, *size, generator=torch.Generator().manual_seed(seed))

    def words(self, count: int, seed: int, batch: int = 1) -> torch.Tensor:
        return torch.randn(batch, count, self.text, generator=torch.Generator().manual_seed(seed))

    def filled(self, text: torch.Tensor) -> torch.Tensor:
        """A text as the model is given it."""
        return torch.nn.functional.pad(text, (0, 0, max(0, self.padded - text.shape[1]), 0))

    def lengths(self, texts: Sequence[int]) -> list[int]:
        """How many words the model is given of texts of so many words."""
        return [max(length, self.padded) for length in texts]

    def patches(self, texts: Sequence[int]) -> dict[str, list[Any]]:
        """Patches under which the words of texts that follow one another have the places that they have alone."""
        return {"post_input": [_restarting(self.lengths(texts))]} if self.restarts else {}

    def grid(self, size: tuple[int, int], frames: int | None = None) -> tuple[int, int, int]:
        time = 1 if self.frames is None else frames or self.frames
        return time, math.ceil(size[0] / self.patch), math.ceil(size[1] / self.patch)

    def tokens(self, texts: Sequence[int], size: tuple[int, int], references: Sequence[int] = (), frames: int | None = None) -> Any:
        """What the tokens of a call are, `dense.override`'s first argument: `texts` are the lengths of the prompt and of each region."""
        count = math.prod(self.grid(size, frames))
        words = [("words", length, number) for number, length in enumerate(self.lengths(texts))]
        if self.layout is not None:
            return self.layout(words, count, references)
        every = listed(*words, ("cells", count), *(("reference", length, number) for number, length in enumerate(references)))

        def told(queries: int, keys: int, _options: Options) -> tuple[list[Token], list[Token]]:
            assert queries == keys == len(every)
            return every, every

        return told


@functools.lru_cache(maxsize=32)
def _model(tiny: Tiny) -> Any:
    torch.manual_seed(0)
    return _built(tiny, torch.float32, filled)


def _converted(tiny: Tiny, dtype: torch.dtype) -> Any:
    """The same weights rounded; not kept, as each test of them wants another one."""
    weights = iter(_model(tiny).model.diffusion_model.state_dict().values())
    return _built(tiny, dtype, lambda value: next(weights).to(value.dtype))


def _built(tiny: Tiny, dtype: torch.dtype, weight: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    import comfy.model_patcher

    config = tiny.config()
    config.set_inference_dtype(dtype, None)
    model = config.get_model({}, "", device=torch.device("cpu"))
    model.diffusion_model.load_state_dict({name: weight(value) for name, value in model.diffusion_model.state_dict().items()})
    return comfy.model_patcher.ModelPatcher(model.eval(), torch.device("cpu"), torch.device("cpu"))


def filled(value: torch.Tensor) -> torch.Tensor:
    """Weights in which nothing is zero and nothing explodes."""
    if not value.is_floating_point():
        return value
    if value.ndim < 2:
        return (1 + 0.1 * torch.randn(value.shape)).to(value.dtype)
    return (torch.randn(value.shape) * 0.8 / math.sqrt(value[0].numel())).to(value.dtype)


def _flux(**more: Any) -> Any:
    import comfy.supported_models

    return comfy.supported_models.Flux({
        "image_model": "flux", "in_channels": 16, "out_channels": 16, "vec_in_dim": 24, "context_in_dim": 40, "hidden_size": 64,
        "mlp_ratio": 2.0, "num_heads": 4, "depth": 2, "depth_single_blocks": 2, "axes_dim": [4, 6, 6], "theta": 10000, "patch_size": 2,
        "qkv_bias": True, "guidance_embed": True, "txt_ids_dims": [], **more,
    })  # fmt: skip


def _flux2() -> Any:
    import comfy.supported_models

    return comfy.supported_models.Flux2({
        "image_model": "flux2", "in_channels": 128, "out_channels": 128, "vec_in_dim": None, "context_in_dim": 40, "hidden_size": 64,
        "mlp_ratio": 2.0, "num_heads": 4, "depth": 2, "depth_single_blocks": 2, "axes_dim": [4, 4, 4, 4], "theta": 2000, "patch_size": 1,
        "qkv_bias": False, "guidance_embed": True, "txt_ids_dims": [3], "global_modulation": True, "mlp_silu_act": True, "ops_bias": False,
        "default_ref_method": "index", "ref_index_scale": 10.0,
    })  # fmt: skip


def _chroma() -> Any:
    import comfy.supported_models

    return comfy.supported_models.Chroma({
        "image_model": "chroma", "in_channels": 64, "out_channels": 64, "vec_in_dim": None, "context_in_dim": 40, "hidden_size": 64,
        "mlp_ratio": 2.0, "num_heads": 4, "depth": 2, "depth_single_blocks": 2, "axes_dim": [4, 6, 6], "theta": 10000, "patch_size": 2,
        "qkv_bias": True, "txt_ids_dims": [], "in_dim": 64, "out_dim": 64, "hidden_dim": 48, "n_layers": 2,
    })  # fmt: skip


def _restarting(texts: Sequence[int]) -> Any:
    """A patch that gives each text the places of the first, which begins at the first place."""

    def moved(values: Options) -> Options:
        ids = values["txt_ids"]
        if ids.shape[1] != sum(texts):  # the negative prompt, alone
            return values
        starts = [ids[:, :count] for count in texts]
        return {**values, "txt_ids": torch.cat(starts, 1)}

    return moved


def _qwen() -> Any:
    import comfy.supported_models

    return comfy.supported_models.QwenImage({
        "image_model": "qwen_image", "in_channels": 64, "num_layers": 3, "attention_head_dim": 16, "num_attention_heads": 4,
        "joint_attention_dim": 40, "axes_dims_rope": (4, 6, 6),
    })  # fmt: skip


def _krea() -> Any:
    import comfy.supported_models

    return comfy.supported_models.Krea2({
        "image_model": "krea2", "features": 64, "channels": 16, "patch": 2, "layers": 3, "heads": 4, "kvheads": 2, "txtlayers": 3,
        "txtdim": 32, "txtheads": 4, "txtkvheads": 2, "tdim": 32, "multiplier": 2, "default_ref_method": "index",
    })  # fmt: skip


def _krea_layout(words: Any, count: int, references: Sequence[int]) -> Any:
    """The words of each text see each other in two refiner blocks; the layers of one word before that are no concern of regions."""
    text = listed(*words)
    every = listed(*words, ("cells", count), *(("reference", length, number) for number, length in enumerate(references)))

    def told(queries: int, keys: int, options: Options) -> Any:
        if "block_index" in options:
            assert queries == keys == len(every)
            return every, every
        return (text, text) if queries == len(text) else None

    return told


def _lumina(**more: Any) -> Any:
    import comfy.supported_models

    family = comfy.supported_models.ZImage if "pad_tokens_multiple" in more else comfy.supported_models.Lumina2
    return family({
        "image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 64, "cap_feat_dim": 40, "n_layers": 3, "n_refiner_layers": 2,
        "qk_norm": True, "n_heads": 4, "n_kv_heads": 2, "axes_dims": [4, 6, 6], "axes_lens": [300, 512, 512], "rope_theta": 256.0,
        "ffn_dim_multiplier": 1.0, "multiple_of": 16, **more,
    })  # fmt: skip


def _lumina_layout(multiple: int, seeing: bool = False) -> Any:
    """Words (their filling belongs to the prompt), picture, filling; first the words alone, then the picture alone, then both.

    `seeing`: a model that was trained with CLIP Vision has tokens for what it did not see, which have two layers of their own before the
    picture's.
    """

    def layout(words: Any, count: int, references: Sequence[int]) -> Any:
        total = sum(length for _, length, _ in words)
        text = listed(*words, ("words", -total % multiple, 0))
        captions = listed(*(("reference", multiple, number) for number in range(len(references))))
        pictures = listed(*(("reference", length + -length % multiple, number) for number, length in enumerate(references)))
        picture = [*pictures, *listed(("cells", count), ("reference", -count % multiple))]
        text = [*captions, *text]
        unseen = listed(("reference", multiple * (len(references) + 1), -1)) if seeing and references else []
        calls = 0

        def told(queries: int, keys: int, options: Options) -> Any:
            nonlocal calls
            if "block_index" in options:
                calls = 0
                return [*text, *unseen, *picture], [*text, *unseen, *picture]
            calls += 1
            if unseen and 2 < calls <= 4:
                assert queries == keys == len(unseen)
                return None
            alone = text if calls <= 2 else picture
            assert queries == keys == len(alone)
            return alone, alone

        return told

    return layout


def _cosmos(name: str = "CosmosT2IPredict2", image_model: str = "cosmos_predict2", width: int = 40) -> Any:
    import comfy.supported_models

    return getattr(comfy.supported_models, name)({
        "image_model": image_model, "max_img_h": 240, "max_img_w": 240, "max_frames": 128, "in_channels": 16, "out_channels": 16,
        "patch_spatial": 2, "patch_temporal": 1, "model_channels": 64, "concat_padding_mask": True, "crossattn_emb_channels": width,
        "pos_emb_cls": "rope3d", "pos_emb_learnable": True, "pos_emb_interpolation": "crop", "min_fps": 1, "max_fps": 30,
        "use_adaln_lora": True, "adaln_lora_dim": 16, "num_blocks": 3, "num_heads": 2, "extra_per_block_abs_pos_emb": False,
        "rope_h_extrapolation_ratio": 4.0, "rope_w_extrapolation_ratio": 4.0, "rope_t_extrapolation_ratio": 1.0,
    })  # fmt: skip


def _crossing(words: Any, count: int, references: Sequence[int]) -> Any:
    """Cells see cells, then cells see words."""
    text, cells = listed(*words), listed(("cells", count))

    def told(queries: int, keys: int, _options: Options) -> Any:
        assert queries == count
        if keys == count:
            return cells, cells
        return (cells, text) if keys == len(text) else None

    return told


def _sd3(twice: bool) -> Any:
    import comfy.supported_models

    return comfy.supported_models.SD3({
        "in_channels": 16, "pos_embed_scaling_factor": None, "input_size": None, "patch_size": 2, "depth": 3, "num_patches": 4096,
        "pos_embed_max_size": 64, "adm_in_channels": 24, "context_embedder_config": {
            "target": "torch.nn.Linear", "params": {"in_features": 40, "out_features": 192}
        }, "qk_norm": "rms", "x_block_self_attn_layers": [0, 1] if twice else [], "x_block_self_attn": twice,
    })  # fmt: skip


def _sd3_layout(words: Any, count: int, references: Sequence[int]) -> Any:
    every, cells = listed(*words, ("cells", count)), listed(("cells", count))
    return lambda queries, keys, _options: (cells, cells) if queries == count else (every, every) if queries == len(every) else None


def _wan(kind: str) -> Any:
    import comfy.supported_models

    config = {
        "image_model": "wan2.1", "model_type": kind, "dim": 64, "out_dim": 16, "num_heads": 2, "ffn_dim": 96, "num_layers": 2,
        "patch_size": (1, 2, 2), "freq_dim": 32, "in_dim": 16 if kind == "t2v" else 36, "text_dim": 40, "text_len": 512,
    }  # fmt: skip
    return (comfy.supported_models.WAN21_T2V if kind == "t2v" else comfy.supported_models.WAN21_I2V)(config)


def _lens() -> Any:
    import comfy.supported_models

    return comfy.supported_models.Lens({
        "image_model": "lens", "in_channels": 128, "out_channels": 32, "num_layers": 3, "attention_head_dim": 16, "num_attention_heads": 4,
        "enc_hidden_dim": 20, "axes_dims_rope": (4, 6, 6), "selected_layer_index": (5, 11),
    })  # fmt: skip


def _lens_layout(words: Any, count: int, references: Sequence[int]) -> Any:
    every = listed(("cells", count), *words)
    return lambda queries, keys, _options: (every, every) if queries == keys == len(every) else None


def _hidream() -> Any:
    import comfy.supported_models

    return comfy.supported_models.HiDream({
        "image_model": "hidream", "attention_head_dim": 16, "axes_dims_rope": [8, 4, 4], "caption_channels": [40, 24],
        "max_resolution": [128, 128], "in_channels": 16, "llama_layers": [0, 2, 1, 2], "num_attention_heads": 4, "num_routed_experts": 3,
        "num_activated_experts": 2, "num_layers": 2, "num_single_layers": 2, "out_channels": 16, "patch_size": 2, "text_emb_dim": 24,
    })  # fmt: skip


def _hidream_llama(text: torch.Tensor) -> Options:
    """Two words of Llama, in three layers, for each of T5's: the lengths of the two encoders differ, as they do in life."""
    turned = torch.randn(text.shape[-1], 2 * 3 * 24, generator=torch.Generator().manual_seed(6)) / text.shape[-1] ** 0.5
    words = (text @ turned).unflatten(2, (2, 3, 24)).flatten(1, 2)
    return {"conditioning_llama3": words.transpose(1, 2)}


def _hidream_layout(words: Any, count: int, references: Sequence[int]) -> Any:
    """The picture, T5's words, then Llama's twice; the first text's number of words is T5's."""
    llama = [(kind, 2 * length, number) for kind, length, number in words]
    every = listed(("cells", count), *words, *llama, *llama)
    return lambda queries, keys, _options: (every, every) if queries == keys == len(every) else None


POOLED = torch.randn(1, 24, generator=torch.Generator().manual_seed(5))

TINIES: tuple[Tiny, ...] = (
    Tiny("Flux.1", _flux, 16, 40, references=True, options={"pooled_output": POOLED}),
    Tiny("Flux.1 Fill", lambda: _flux(in_channels=96), 16, 40, options={"pooled_output": POOLED}),
    Tiny("Flux.2", _flux2, 128, 40, patch=1, references=True, restarts=True, padded=512),
    Tiny("Chroma", _chroma, 16, 40),
    Tiny("Qwen-Image", _qwen, 16, 40, frames=1, references=True, restarts=True),
    Tiny(
        "Z-Image",
        lambda: _lumina(pad_tokens_multiple=32, z_image_modulation=True, dim=256, n_heads=16, n_kv_heads=16),
        16,
        40,
        references=True,
        layout=_lumina_layout(32),
    ),
    Tiny(
        "Z-Image Omni",
        lambda: _lumina(pad_tokens_multiple=32, z_image_modulation=True, dim=256, n_heads=16, n_kv_heads=16, siglip_feat_dim=48),
        16,
        40,
        references=True,
        layout=_lumina_layout(32, seeing=True),
    ),
    Tiny("Lumina 2", _lumina, 16, 40, layout=_lumina_layout(1)),
    Tiny("Anima", lambda: _cosmos("Anima", "anima", 1024), 16, 1024, frames=1, layout=_crossing),
    Tiny("Cosmos Predict 2", _cosmos, 16, 40, frames=1, layout=_crossing),
    Tiny("SD 3", lambda: _sd3(False), 16, 40, layout=_sd3_layout, options={"pooled_output": POOLED}),
    Tiny("SD 3.5 medium", lambda: _sd3(True), 16, 40, layout=_sd3_layout, options={"pooled_output": POOLED}),
    Tiny("Krea 2", _krea, 16, 96, frames=1, references=True, layout=_krea_layout),
    Tiny("Wan text to video", lambda: _wan("t2v"), 16, 40, frames=3, layout=_crossing),
    Tiny("Wan image to video", lambda: _wan("i2v"), 16, 40, frames=3, layout=_crossing),
    Tiny("HiDream", _hidream, 16, 40, layout=_hidream_layout, options={"pooled_output": POOLED}, beside=_hidream_llama),
    Tiny("Lens", _lens, 128, 40, patch=1, layout=_lens_layout),
)
