"""Hide in Reference: a CLIP vision model that sees only the patches of a picture that a mask shows.

From "Patch-enhanced Mask Encoder Prompt Image Generation", section 3.2. The model is ComfyUI's own; its parts are called one by one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from . import patch_grid, patch_input

if TYPE_CHECKING:
    from comfy.clip_vision import ClipVisionModel

Visibility = Literal["hide", "paper"]
"""What happens to hidden patches, as `encode` says."""
HIDE: Visibility = "hide"
PAPER: Visibility = "paper"
MODES = get_args(Visibility)


class Seen(NamedTuple):
    """A CLIP_VISION_OUTPUT, what the encoder saw [B, S, S, 3], and the visible patches at the same resolution, float [B, S, S]."""

    output: Any
    preview: Tensor
    visible: Tensor


@torch.no_grad()
def encode(clip_vision: ClipVisionModel, image: Tensor, mask: Tensor, threshold: float = 0.5, mode: str = HIDE, fit: str = "crop") -> Seen:
    """Encodes IMAGE [B, H, W, C] in 0..1, seeing only what MASK shows: one for all pictures, one for each, or several for one.

    A patch is hidden if more than `threshold` of its pixels are outside of the mask (below 0.5). `hide` takes it out of the sequence;
    `paper` is eq. 1: its pixels (after normalisation) and so its embedding are zero, only its position embedding remains. Where all is
    visible, both give `clip_vision.encode_image` to the bit. With nothing visible, `hide` encodes the class token alone.

    The output has that function's attributes, and two more: `visible`, bool [B, n, n], and `tokens`, int64 [B, T]: which token of the
    model's full sequence each one is. Pictures of a batch with fewer visible patches than the others repeat theirs, spread evenly over
    the picture, to the common length T; `own_tokens` gives them without. ValueError for what cannot be encoded so.
    """
    import comfy.model_management as management
    from comfy.clip_vision import Output

    if mode not in MODES or fit not in patch_grid.FITS or not 0.0 <= threshold <= 1.0:
        raise ValueError(
            f"mode is one of {', '.join(MODES)}, fit one of {', '.join(patch_grid.FITS)}, threshold a part of a patch from 0 to 1; "
            f"got {mode}, {fit} and {threshold:g}."
        )
    encoder = patch_input.describe(clip_vision)
    inside = patch_input.masks_for(image, mask)
    where = patch_grid.place(image.shape[1], image.shape[2], encoder.size, fit)
    patches = patch_grid.visible(inside, where, encoder.size, encoder.patch, threshold)
    patch_input.tell(inside, patches, where, encoder, may_be_empty=mode == PAPER or encoder.has_class)

    management.load_models_gpu([clip_vision.patcher])
    pixels = patch_input.pixels_of(clip_vision, image, where, fit).expand(len(patches), -1, -1, -1)
    model: Any = clip_vision.model
    vision = model.vision_model
    patches = patches.to(pixels.device)
    embedded, tokens = _embedded(vision.embeddings, pixels, patches, encoder.has_class, mode)
    every = bool(getattr(clip_vision, "return_all_hidden_states", False))
    last, middle = _run(vision, embedded, tokens, encoder.has_class, "all" if every else -2)
    last = vision.post_layernorm(last) if vision.output_layernorm else last
    pooled = last if vision.output_layernorm else vision.post_layernorm(last[:, 0, :])

    device = management.intermediate_device()
    output: Any = Output()
    output.last_hidden_state = last.to(device)
    output.image_embeds = model.visual_projection(pooled).to(device)
    output.image_sizes = [pixels.shape[1:]] * len(pixels)
    output.penultimate_hidden_states = (middle[:, -2] if every else middle).to(device)
    if every:
        output.all_hidden_states = middle.to(device)
    output.mm_projected = None if model.multi_modal_projector is None else model.multi_modal_projector(middle)
    output.visible = patches.to(device)
    output.tokens = torch.stack([_spread(own, encoder.has_class, last.shape[1]) for own in tokens]).to(device)
    mean, std = (torch.tensor(numbers, device=pixels.device).view(3, 1, 1) for numbers in (clip_vision.image_mean, clip_vision.image_std))
    picture = patch_grid.preview(pixels * std + mean, patches, encoder.patch)
    return Seen(output, picture.to(device), patch_grid.enlarged(patches, encoder.size, encoder.patch).float().to(device))


def own_tokens(output: Any, name: str = "penultimate_hidden_states") -> list[Tensor]:
    """Each picture's tokens [t, D] in a CLIP_VISION_OUTPUT without the repeated ones; all of them if it is not from `encode`."""
    states = getattr(output, name)
    tokens = getattr(output, "tokens", None)
    if tokens is None:
        return list(states)
    first = torch.ones_like(tokens, dtype=torch.bool)
    first[:, 1:] = tokens[:, 1:] != tokens[:, :-1]
    return [one[own.to(one.device)] for one, own in zip(states, first, strict=True)]


def _embedded(embeddings: Any, pixels: Tensor, patches: Tensor, has_class: bool, mode: str) -> tuple[Tensor, list[Tensor]]:
    """The tokens [B, 1 + n * n, D] with their positions (without the 1 for SigLIP), and which of them each picture keeps, in order."""
    import comfy.ops

    always = torch.ones(len(patches), int(has_class), dtype=torch.bool, device=patches.device)
    kept = torch.cat((always, patches.flatten(1)), dim=1)
    embedded = embeddings(pixels)
    if mode == HIDE:
        return embedded, [one.nonzero()[:, 0] for one in kept]
    # Eq. 1, Projection(I * D_p) * D_z: no patch sees another one here, so D_z alone decides, even if the projection has a bias (SigLIP).
    embedded = torch.where(kept[..., None], embedded, comfy.ops.cast_to_input(embeddings.position_embedding.weight, embedded))
    return embedded, [torch.arange(kept.shape[1], device=kept.device)] * len(kept)


def _run(vision: Any, embedded: Tensor, tokens: list[Tensor], has_class: bool, wanted: int | str) -> tuple[Tensor, Tensor]:
    """The encoder's last and intermediate states: pictures with equally many tokens run together, then all get the longest's length."""
    lengths = [len(own) for own in tokens]
    results: list[tuple[Tensor, Tensor]] = []
    order: list[int] = []
    for length in sorted(set(lengths)):
        rows = [row for row, own in enumerate(lengths) if own == length]
        chosen = torch.stack([embedded[row, tokens[row]] for row in rows])
        last, middle = vision.encoder(vision.pre_layrnorm(chosen), mask=None, intermediate_output=wanted)
        spread = _spread(torch.arange(length, device=last.device), has_class, max(lengths))
        results.append((last[:, spread], middle[..., spread, :]))
        order += rows
    back = torch.tensor(order, device=embedded.device).argsort()
    return torch.cat([last for last, _ in results])[back], torch.cat([middle for _, middle in results])[back]


def _spread(own: Tensor, has_class: bool, length: int) -> Tensor:
    """A picture's tokens [t] repeated evenly, in order, to [length]. The class token comes once, unless it is the only one."""
    first = int(has_class and len(own) > 1)
    patches = own[first:]
    steps = torch.arange(length - first, device=own.device) * len(patches) // max(1, length - first)
    return torch.cat((own[:first], patches[steps]))
