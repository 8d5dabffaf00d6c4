"""One of ComfyUI's ways of memory, in this process alone: `python -m benchmarks.gpu.memory_worker TASK` prints what it measured."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from demo import tiny_model

STEPS, CFG = 3, 4.0


def start(task: dict[str, Any]) -> None:
    """Set ComfyUI's command line before its memory management reads it, and start dynamic memory as its main program does."""
    from .memory import MODES

    folder = tiny_model.setup.comfyui_path()
    sys.path.insert(0, str(folder))
    from comfy.cli_args import args

    wanted = dict(MODES[task["mode"]])
    if task["cpu"]:
        wanted = {name: value for name, value in wanted.items() if name == "disable_dynamic_vram"}
        args.cpu = True
    if "reserve_vram" in wanted:
        import torch

        wanted["reserve_vram"] = torch.cuda.get_device_properties(0).total_memory / 1024**3 - 1.2
    for name, value in wanted.items():
        if not hasattr(args, name):
            raise RuntimeError(f"this ComfyUI has no option --{name.replace('_', '-')}")
        setattr(args, name, value)
    if wanted.get("enable_dynamic_vram"):
        _dynamic(args)


def _dynamic(args: Any) -> None:
    import comfy_aimdo.control as control

    reserve = None if args.reserve_vram is None else int(args.reserve_vram * 1024**3)
    control.init(simple_vram_headroom=reserve)
    import comfy.memory_management
    import comfy.model_management as management
    import comfy.model_patcher

    if not control.init_devices((device.index, int(args.vram_headroom * 1024**3)) for device in management.get_all_torch_devices()):
        raise RuntimeError("comfy-aimdo does not start on this machine")
    patcher: Any = comfy.model_patcher
    patcher.CoreModelPatcher = patcher.ModelPatcherDynamic
    comfy.memory_management.aimdo_enabled = True


def paint(task: dict[str, Any]) -> dict[str, Any]:
    """Sample twice, with everything unloaded between, with the patches and without them; the patched second latent goes into a file."""
    import comfy.model_management as management
    import comfy.sample
    import comfy.sd
    import torch

    from demo import registration

    from . import shapes
    from .memory import VAE

    registration.register()
    small = bool(task["small"])
    model = comfy.sd.load_diffusion_model(task["unet"])
    side, width = (16, 128) if small else (64, 768)
    state_key = "diffusion_model.out.2.weight"
    weight = dict(model.model.named_parameters())[state_key]

    def with_lora(plain: Any) -> Any:
        lora = plain.clone()
        lora.add_patches({state_key: ("diff", (torch.full(weight.shape, 0.01),))}, 1.0)
        return lora

    from comfy.ldm.models.autoencoder import AutoencoderKL

    shape: Any = {"ddconfig": {**VAE, "ch": 32} if small else VAE, "embed_dim": 4}
    network = AutoencoderKL(**shape)
    shapes.fill(network)
    vae = comfy.sd.VAE(sd=network.state_dict(), config={"params": shape} if small else None)
    generator = torch.Generator().manual_seed(4)
    noise = torch.randn(1, 4, side, side, generator=generator)
    texts = torch.randn(2, 77, width, generator=generator)
    loaded: list[float] = []
    on_gpu = torch.cuda.is_available() and not task["cpu"]

    def twice(sampled: Any) -> tuple[torch.Tensor, float, float]:
        """Gives the second latent, how far the first was from it (of its largest value), and the second's seconds."""

        def press(step: int, _denoised: Any, _x: Any, _total: int) -> None:
            if step != 1:
                return
            loaded.append(sampled.loaded_size() / max(1, sampled.model_size()))
            if on_gpu:
                held = torch.empty(max(0, torch.cuda.mem_get_info()[0] - 2**28), dtype=torch.uint8, device="cuda")
                del held
                torch.cuda.empty_cache()

        def sample() -> torch.Tensor:
            return comfy.sample.sample(
                sampled, noise, STEPS, CFG, "euler", "normal", [[texts[:1], {}]], [[texts[1:], {}]], torch.zeros_like(noise), seed=1,
                disable_pbar=True, callback=press,
            ).float()  # fmt: skip

        first = sample()
        vae.decode(first[:, :, : side // 2, : side // 2].cpu())
        management.unload_all_models()
        if on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        second = sample()
        taken = time.perf_counter() - started
        if not torch.isfinite(second).all():
            raise RuntimeError("the latent holds values that are no numbers")
        return second, float((first - second).abs().max() / second.abs().max()), taken

    _, usual, _ = twice(with_lora(model))
    latent, again, taken = twice(with_lora(patched(model, side)))
    torch.save(latent.cpu(), Path(task["folder"]) / f"{task['mode']}.pt")
    peak = torch.cuda.max_memory_allocated() if on_gpu else 0
    return {
        "seconds": taken, "steps": STEPS, "peak": peak, "loaded": loaded[-1] if on_gpu else None, "again": again, "again without": usual,
    }  # fmt: skip


def patched(model: Any, side: int) -> Any:
    """The MODEL under masked attention and an image prompt in its left half, as the nodes install them."""
    import torch
    from maskprompt.attention import chain, grid, ip_adapter_layers, layers, meca
    from maskprompt.attention import masked_attention as masked

    unet = model.get_model_object("diffusion_model")
    pixels = torch.zeros(1, 8 * side, 8 * side)
    pixels[:, :, : 4 * side] = 1
    region = grid.RegionMask(pixels)
    scope = chain.Scope(layers.preset("paper", layers.layers_of(unet)))
    widths, numbered = ip_adapter_layers.widths(unet)[0], ip_adapter_layers.numbered(unet)
    generator = torch.Generator().manual_seed(5)

    def numbers(width: int) -> torch.Tensor:
        return torch.randn(2, 16, width, generator=generator)

    keys = meca.StoredKeys({numbered[number]: (numbers(width), numbers(width)) for number, width in widths.items()})
    confined = chain.install(model, masked.MaskedCrossAttention(region), masked.MaskedSelfAttention(region, "paper", scope))
    return meca.install(confined, meca.ImagePrompt(keys, region))


def main(argument: str) -> None:
    task = json.loads(argument)
    start(task)
    from demo.pack import load_pack

    load_pack()
    print(json.dumps(paint(task)))


if __name__ == "__main__":
    main(sys.argv[1])
