"""ComfyUI's ways of memory, each in a process of its own, as they are chosen at its start: the patches must paint the same in all.

Plain loading, a reserve so large that a part of the UNet stays out, --lowvram, --novram, and dynamic memory (comfy-aimdo), alone and
with a reserve. In each a UNet is read from a file by ComfyUI's own loader, has a weight patch as LoRAs make them, and is sampled twice
under masked attention and an image prompt, and twice without. After the second step other memory takes all but a quarter of a GB of what is
free; between the two samplings the VAE decodes and everything is unloaded.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from demo.pack import ROOT

from .. import figures as results
from . import shapes
from .checks import Check, Setting, figure

MODES: dict[str, dict[str, Any]] = {
    "plain": {"disable_dynamic_vram": True},
    "a large reserve": {"disable_dynamic_vram": True, "reserve_vram": "all but 1.2 GB"},
    "--lowvram": {"disable_dynamic_vram": True, "lowvram": True},
    "--novram": {"disable_dynamic_vram": True, "novram": True},
    "dynamic memory": {"enable_dynamic_vram": True},
    "dynamic memory, a large reserve": {"enable_dynamic_vram": True, "reserve_vram": "all but 1.2 GB"},
}
"""What is set of ComfyUI's command line."""
FAR = 0.02
"""Half precision may differ so much, of the latent's largest value, where weights are cast at another time."""
AGAIN = 1e-3
"""Two samplings in one mode may differ so much in any case."""
VAE: dict[str, Any] = {
    "double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128, "ch_mult": [1, 2, 4, 4],
    "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0,
}  # fmt: skip


def painted(mode: str) -> Callable[[Setting], list[results.Figure]]:
    """Sample in this mode, in a process of its own, and compare with what `plain` gave."""

    def run(setting: Setting) -> list[results.Figure]:
        file = unet_file(setting)
        task = {
            "mode": mode, "small": setting.small, "cpu": setting.device.type == "cpu", "unet": str(file), "folder": str(setting.folder),
        }  # fmt: skip
        command = [sys.executable, "-m", f"{__package__}.memory_worker", json.dumps(task)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}, timeout=600)
        if done.returncode:
            said = "\n".join(line for line in done.stderr.splitlines() if not line.startswith("aimdo:"))
            raise RuntimeError(f"{mode}: the process ended with {done.returncode}. {said[-1500:]}")
        told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        wanted_file = setting.folder / "plain.pt"
        if not wanted_file.is_file():
            raise RuntimeError("there is nothing to compare with: the mode `plain` failed")
        wanted = torch.load(wanted_file, weights_only=True)
        found = torch.load(setting.folder / f"{mode}.pt", weights_only=True)
        scale = float(wanted.abs().max())
        figures = [
            figure(f"{mode}: largest difference to plain loading, of the latent", float((found - wanted).abs().max()) / scale, FAR),
            figure(f"{mode}: the same sampling after everything was unloaded, largest difference", told["again"], _usual(told)),
            figure(f"{mode}: the same without the patches", told["again without"]),
            figure(f"{mode}: seconds for a sampling of {told['steps']} steps", told["seconds"]),
        ]
        if told["peak"]:
            figures.append(figure(f"{mode}: peak memory in GB", told["peak"] / 1e9))
        if told["loaded"] is not None:
            figures.append(figure(f"{mode}: part of the UNet on the device while it sampled", told["loaded"]))
        return figures

    return run


def _usual(told: dict[str, Any]) -> float:
    """Gives what two samplings may differ by: twice what they do without the patches, as kernels are chosen by free memory."""
    return max(AGAIN, 2 * told["again without"])


def unet_file(setting: Setting) -> Path:
    """An SD 1.5 UNet of random weights in half precision on disk; of the demo's tiny model's shape for toys."""
    from safetensors.torch import save_file

    file = setting.folder / "unet.safetensors"
    if file.is_file():
        return file
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    from demo import tiny_model

    config = {**tiny_model.UNET} if setting.small else shapes.SD15.config
    unet = UNetModel(**config, dtype=torch.float32, device=setting.device, operations=comfy.ops.disable_weight_init)
    shapes.fill(unet)
    half = torch.float32 if setting.device.type == "cpu" else torch.float16
    state = {f"model.diffusion_model.{name}": value.to("cpu", half).contiguous() for name, value in unet.state_dict().items()}
    save_file(state, file)
    return file


def checks(setting: Setting) -> list[Check]:
    # On a CPU ComfyUI knows no other mode than plain loading; one more shows that modes are compared.
    modes = list(MODES) if setting.device.type == "cuda" else ["plain", "--lowvram"]
    return [Check(f"memory: {mode}", painted(mode), 25) for mode in modes]
