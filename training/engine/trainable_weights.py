"""The weights of a network that learn: a LoRA beside some of its layers, or those layers' own weights. They leave as core's LORA_MODEL."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

Method = Literal["lora", "full", "frozen"]
INJECTION = "maskprompt_lora"
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass
class Adapted:
    """Of the network of `patcher`, a ComfyUI patcher of its own weights, the modules and parameters whose names `chosen` takes.

    lora: rank-`rank` adapters (core's `weight_adapter`) on every linear and convolution layer; alpha is the rank.
    full: every weight, kept in float32 (`unfreeze` makes them so, once the network is on its device).
    frozen: nothing.
    `prefix` goes before a name in LORA_MODEL: none for a UNet, whose names begin with "diffusion_model."; "text_encoders." for a CLIP.
    """

    patcher: Any
    method: Method
    chosen: Callable[[str], bool]
    prefix: str = ""
    rank: int = 16
    seed: int = 0
    adapters: dict[str, Any] = field(default_factory=dict)
    start: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.method == "lora":
            self.adapters = self._inject()

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """What learns, by the name it has in the state that is saved."""
        if self.method == "full":
            return {f"{self.prefix}{name}": value for name, value in self.patcher.model.named_parameters() if self.chosen(name)}
        return {
            f"{self.prefix}{name}.{part}": value
            for name, adapter in self.adapters.items()
            for part, value in adapter.named_parameters()
            if part != "alpha"
        }

    def unfreeze(self) -> None:
        """Makes all weights learn, if that is the method; the first time only."""
        if self.method != "full" or self.start:
            return
        # What other LoRAs have put into the weights stays there: unloading must not bring back what was before.
        self.patcher.patches = {}
        self.patcher.backup.clear()
        self.patcher.size = 0
        for name, value in self.parameters.items():
            self.start[name] = value.detach().to("cpu", copy=True)
            value.data = value.data.float()
            value.requires_grad_(True)

    def move(self, device: torch.device) -> None:
        """The adapters to a device; the network itself is ComfyUI's to move."""
        for adapter in self.adapters.values():
            adapter.to(device)

    def learned(self) -> dict[str, Tensor]:
        """What was learned: half precision, on the CPU, for any stock LoRA loader."""
        if self.method == "full":
            return differences(self.parameters, self.start)
        state = {name: _half(value) for name, value in self.parameters.items()}
        return state | {f"{self.prefix}{name}.alpha": torch.tensor(float(adapter.alpha)) for name, adapter in self.adapters.items()}

    def _inject(self) -> dict[str, Any]:
        """A LoRA for every chosen layer, injected whenever the network is loaded."""
        from comfy.weight_adapter.bypass import BypassInjectionManager
        from comfy.weight_adapter.lora import LoRAAdapter

        manager = BypassInjectionManager()
        adapters = {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            for name, module in self.patcher.model.named_modules():
                if not (isinstance(module, LAYERS) and self.chosen(name)):
                    continue
                adapter = LoRAAdapter.create_train(module.weight, rank=self.rank, alpha=float(self.rank)).float()
                adapter.alpha.requires_grad_(False)
                adapters[name] = adapter
                manager.add_adapter(name, adapter)
        self.patcher.set_injections(INJECTION, manager.create_injections(self.patcher.model))
        return adapters


def differences(now: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Subtract what weights were from what they are, by the names that LoRA loaders know for whole differences.

    A base of half precision cannot hold most steps of a fine-tuning: added to it they would be rounded away. So the sum is rounded to the
    base's precision here, up or down at random, such that its mean is right; what is left of a difference then survives being added.
    """
    return {
        f"{name.rpartition('.')[0]}.{'diff_b' if name.endswith('.bias') else 'diff'}": _half(
            rounded(value.detach().cpu(), start[name].dtype, number) - start[name].float()
        )
        for number, (name, value) in enumerate(now.items())
    }


def rounded(value: Tensor, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Round float32 to the numbers that `dtype` has, up or down at random so that the mean stays; float32 again, any shape.

    Stochastic rounding: up as often as the value lies near the upper of the two numbers beside it. float32 stays as it is.
    """
    if dtype not in (torch.float16, torch.bfloat16):
        return value
    about = torch.finfo(dtype)
    exponent = torch.frexp(value).exponent.clamp(min=torch.frexp(torch.tensor(about.smallest_normal)).exponent)
    gap = torch.ldexp(torch.full_like(value, about.eps / 2), exponent)
    below = (value / gap).floor()
    drawn = torch.rand(value.shape, generator=torch.Generator().manual_seed(seed))
    return ((below + (drawn < value / gap - below)) * gap).to(dtype).float()


def _half(value: Tensor) -> Tensor:
    return value.detach().to("cpu", torch.float16, copy=True).contiguous()
