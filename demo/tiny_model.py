"""The tiny model's networks, built from ComfyUI's own classes, and its checkpoint file.

Needs ComfyUI on the path (`COMFYUI_PATH`, else .cache/ComfyUI).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from . import setup

if TYPE_CHECKING:
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

ROOT = Path(__file__).resolve().parent.parent
CHECKPOINT = ROOT / "demo" / "tiny-sd-inpaint.safetensors"
SCALE_FACTOR = 0.18215
BLANK = (0.8223, -0.6876, 0.6364, 0.1380)
"""What ComfyUI gives an inpainting model as the masked picture when a workflow has none (`set_inpaint`)."""

UNET: dict[str, Any] = {
    "image_size": 32,
    "in_channels": 9,
    "out_channels": 4,
    "model_channels": 32,
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": (1, 2, 4, 4),
    "num_heads": -1,
    "num_head_channels": 16,
    "use_spatial_transformer": True,
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "transformer_depth_middle": 1,
    "context_dim": 128,
    "use_linear_in_transformer": False,
    "legacy": False,
}


def comfyui_on_path() -> None:
    """Puts ComfyUI on the path, with PyTorch's attention (its default on a CPU is slower and saves memory nobody lacks here)."""
    folder = setup.comfyui_path()
    if not (folder / "comfy").is_dir():
        raise FileNotFoundError(f"no ComfyUI at {folder}: run `nox -s demo` once, or set COMFYUI_PATH")
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    from comfy.cli_args import args

    args.use_pytorch_cross_attention = True
    if not torch.cuda.is_available():
        args.cpu = True


def _start(network: nn.Module) -> None:
    """ComfyUI's layers skip their own initialisation; this is the usual one, output layers of residuals at zero."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_uniform_(module.weight, a=5**0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, (nn.GroupNorm, nn.LayerNorm)):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)


def _zero(module: Any) -> None:
    nn.init.zeros_(module.weight)


def build_unet(in_channels: int = 9) -> UNetModel:
    import comfy.ops
    from comfy.ldm.modules.attention import SpatialTransformer
    from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock, UNetModel

    unet = UNetModel(**{**UNET, "in_channels": in_channels}, dtype=torch.float32, device="cpu", operations=comfy.ops.disable_weight_init)
    _start(unet)
    for module in unet.modules():
        if isinstance(module, ResBlock):
            _zero(module.out_layers[-1])
        elif isinstance(module, SpatialTransformer):
            _zero(module.proj_out)
    _zero(unet.out[-1])
    return unet


class TextEncoder(nn.Module):
    """Token ids [B, 77] to embeddings [B, 77, 128]. ComfyUI's own class adds in place and so cannot learn; `transformers`' can."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import CLIPTextConfig, CLIPTextModel

        from .registration import TEXT_CONFIG

        self.transformer = CLIPTextModel(CLIPTextConfig(**TEXT_CONFIG))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.transformer(tokens).last_hidden_state

    def load_comfyui_state(self, state: dict[str, Tensor]) -> None:
        """Takes the weights from SD 1's names."""
        own = self.transformer.state_dict()
        named = {key: f"transformer.text_model.{key.removeprefix('text_model.')}" for key in own}
        self.transformer.load_state_dict({key: state[name].float() if name in state else own[key] for key, name in named.items()})

    @property
    def table(self) -> nn.Parameter:
        """The words' embeddings [49408, 128]."""
        words: Any = self.transformer.get_input_embeddings()
        return words.weight

    def comfyui_state(self) -> dict[str, Tensor]:
        """The weights under SD 1's names."""
        state = {
            key.removeprefix("text_model."): value for key, value in self.transformer.state_dict().items() if "position_ids" not in key
        }
        width = state["final_layer_norm.weight"].shape[0]
        return {f"transformer.text_model.{key}": value for key, value in state.items()} | {
            "transformer.text_projection.weight": torch.eye(width)
        }


def tokenizer() -> Any:
    """SD 1's tokenizer, from ComfyUI's own folder."""
    import comfy.sd1_clip
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(str(Path(comfy.sd1_clip.__file__).parent / "sd1_tokenizer"))


def alphas() -> Tensor:
    """SD's cumulative alphas [1000] (linear in the square root of beta)."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0).float()


def load_checkpoint(file: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """The UNet's, the text encoder's and the autoencoder's weights of a file that `save_checkpoint` wrote."""
    from safetensors.torch import load_file

    from .registration.words import whole_words

    state = load_file(file)
    parts = ("model.diffusion_model.", "cond_stage_model.", "first_stage_model.")
    unet, text, autoencoder = ({k.removeprefix(part): v for k, v in state.items() if k.startswith(part)} for part in parts)
    return unet, whole_words(text, "transformer."), autoencoder


def save_checkpoint(
    file: Path, unet: dict[str, Tensor], text: dict[str, Tensor], autoencoder: dict[str, Tensor], about: dict[str, str]
) -> None:
    """Writes one half-precision safetensors file with SD 1.5's prefixes, and of the words' embeddings those that are not zero."""
    from safetensors.torch import save_file

    from .registration.words import packed_words

    state = {f"model.diffusion_model.{key}": value for key, value in unet.items()}
    state |= {f"cond_stage_model.{key}": value for key, value in packed_words(text, "transformer.").items()}
    state |= {f"first_stage_model.{key}": value for key, value in autoencoder.items()}
    halves = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    save_file({key: value.detach().cpu().contiguous() for key, value in halves.items()}, file, metadata=about)
