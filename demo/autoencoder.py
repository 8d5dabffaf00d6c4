"""The tiny model's autoencoder: TAESD's layout (which the stock VAE loader knows), trained narrow.

TAESD is 64 channels wide at every resolution, which is slow to train on a CPU. It has no
normalisation layers, so a network that is narrower at the fine resolutions is exactly a TAESD whose
other weights are zero: `NarrowAutoencoder` is what learns, `padded` is what is saved.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

WIDTH = 64
FINE = 16
MIDDLE = 32


class Clamp(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


class Block(nn.Module):
    """Three convolutions around a residual, at one width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for index in range(3):
            layers += [nn.Conv2d(width, width, 3, padding=1)] + ([nn.ReLU()] if index < 2 else [])
        self.conv = nn.Sequential(*layers)
        self.fuse = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.fuse(self.conv(x) + x)


def _conv(inside: int, outside: int, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inside, outside, 3, stride=stride, padding=1, bias=bias)


class NarrowAutoencoder(nn.Module):
    """Pictures [B, 3, H, W] in 0..1 to latents [B, C, H/8, W/8] and back. A block left out is a ReLU: a block of zero weights."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        fine = FINE
        middle = MIDDLE
        wide = WIDTH
        to_latent = _conv(wide, channels)
        to_picture = _conv(fine, 3)
        self.encoder = nn.Sequential(
            _conv(3, fine), Block(fine),
            _conv(fine, middle, 2, False), Block(middle), nn.ReLU(), nn.ReLU(),
            _conv(middle, wide, 2, False), Block(wide), Block(wide), nn.ReLU(),
            _conv(wide, wide, 2, False), Block(wide), Block(wide), Block(wide),
            to_latent,
        )  # fmt: skip
        self.decoder = nn.Sequential(
            Clamp(), _conv(channels, wide), nn.ReLU(),
            Block(wide), Block(wide), Block(wide), nn.Upsample(scale_factor=2), _conv(wide, wide, bias=False),
            Block(wide), Block(wide), nn.ReLU(), nn.Upsample(scale_factor=2), _conv(wide, middle, bias=False),
            Block(middle), Block(middle), nn.ReLU(), nn.Upsample(scale_factor=2), _conv(middle, fine, bias=False),
            Block(fine), to_picture,
        )  # fmt: skip
        self._start(to_latent, to_picture)

    def _start(self, to_latent: nn.Conv2d, to_picture: nn.Conv2d) -> None:
        """Every block starts as the identity; PyTorch's own start shrinks the signal to nothing over 40 layers."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, Block):
                nn.init.zeros_(cast(nn.Conv2d, module.conv[-1]).weight)
        nn.init.xavier_normal_(to_latent.weight)
        nn.init.xavier_normal_(to_picture.weight, gain=0.3)
        if to_picture.bias is not None:
            nn.init.constant_(to_picture.bias, 0.5)

    def encode(self, pictures: Tensor) -> Tensor:
        return self.encoder(pictures)

    def decode(self, latents: Tensor) -> Tensor:
        return self.decoder(latents)


def padded(narrow: NarrowAutoencoder, latent_scale: float, reference: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same autoencoder as a TAESD state dict of `reference`'s keys and shapes, zeros where `narrow` has nothing.

    `latent_scale` is the deviation of the latents times the latent format's scale factor, so that what
    the UNet sees has deviation one.
    """
    have = {f"taesd_{key}": value for key, value in narrow.state_dict().items()}
    state = {}
    for key, like in reference.items():
        weight = torch.zeros_like(like, dtype=torch.float32)
        if key in have:
            weight[tuple(slice(0, n) for n in have[key].shape)] = have[key].float()
        state[key] = weight
    unused = have.keys() - reference.keys()
    if unused:
        raise KeyError(f"TAESD's layout has no place for {sorted(unused)}")
    state["vae_scale"] = torch.tensor(latent_scale)
    state["vae_shift"] = torch.tensor(0.0)
    return state


def narrowed(state: dict[str, Tensor]) -> NarrowAutoencoder:
    """The narrow autoencoder out of the TAESD state dict that `padded` made of it."""
    narrow = NarrowAutoencoder(state["taesd_decoder.1.weight"].shape[1])
    like = narrow.state_dict()
    narrow.load_state_dict({key: state[f"taesd_{key}"][tuple(slice(0, n) for n in weight.shape)].float() for key, weight in like.items()})
    return narrow
