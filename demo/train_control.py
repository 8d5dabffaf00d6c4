"""A small depth ControlNet for the tiny model, which the stock Load ControlNet Model takes.

    python -m demo.train_control --minutes 40

Base, text encoder and autoencoder stay as they are. The control network is ComfyUI's own class: it starts with the base's
encoder and learns from rendered scenes and hints drawn as Depth Hint draws them, half of them whole pictures from text alone,
half of them boxes painted anew. One process; saves every few minutes, resumes, and ends with `evaluate`.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from . import fp8, judge, scenes, tiny_model
from .control_examples import HINT, Examples, draw_hint, encode
from .painter import CFG, SAMPLER, SCHEDULER, STEPS, Painter
from .train_tiny import loss_of
from .trainer import Log, cosine, device_of

if TYPE_CHECKING:
    from comfy.cldm.cldm import ControlNet

tiny_model.comfyui_on_path()

FILE = tiny_model.ROOT / "demo" / "tiny-depth-control.safetensors"
LATENT = 4
NEW = ("input_hint_block.", "zero_convs.", "middle_block_out.")
"""The parts of a control network that its base does not have."""
IOU = 0.6
GAIN = 0.3
"""The gates: overlap of painted object and hint, and how much of it is the control network's doing."""


def build_control() -> ControlNet:
    """The control network that fits the tiny UNet, not initialised. It sees the noisy latent alone, as ComfyUI feeds every ControlNet."""
    import comfy.ops
    from comfy.cldm.cldm import ControlNet

    config = {**tiny_model.UNET, "in_channels": LATENT, "hint_channels": HINT}
    return ControlNet(**config, dtype=torch.float32, device="cpu", operations=comfy.ops.disable_weight_init)


def started(unet: dict[str, Tensor]) -> ControlNet:
    """A control network with the encoder of a 9-channel UNet's weights, which changes nothing yet: its last convolutions are zero.

    The base's first convolution also reads mask and masked picture; what it makes of a text-to-image's constant ones goes into the
    bias, so that the encoder begins with what it knows.
    """
    control = build_control()
    state = {name: unet[name].float() for name in control.state_dict() if not name.startswith(NEW)}
    weight = state["input_blocks.0.0.weight"]
    constant = torch.tensor([1.0, *tiny_model.BLANK])
    state["input_blocks.0.0.weight"] = weight[:, :LATENT]
    state["input_blocks.0.0.bias"] = state["input_blocks.0.0.bias"] + weight[:, LATENT:].sum((2, 3)) @ constant
    control.load_state_dict(state, strict=False)
    for name, value in control.named_parameters():
        if name.startswith(NEW[0]) and value.ndim == 4:
            nn.init.kaiming_normal_(value, nonlinearity="relu")
        elif name.startswith(NEW):
            nn.init.zeros_(value)
    return control


class Controlled(nn.Module):
    """The UNet [B, 9, h, w] to [B, 4, h, w] under control. Only `control` learns; set `hint` [B, 3, 8h, 8w] in 0..1 before each call."""

    def __init__(self, unet: nn.Module, control: nn.Module) -> None:
        super().__init__()
        self.unet = unet.requires_grad_(False)
        self.control = control.requires_grad_(True)
        self.hint = torch.zeros(1, HINT, 8, 8)

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        control = self.control(x=x[:, :LATENT], hint=self.hint, timesteps=timesteps, context=context)
        return self.unet(x, timesteps, context=context, control=control)


def export(file: Path, weights: dict[str, Tensor], about: dict[str, str]) -> None:
    """Writes a file that the stock loader takes, its large kernels in fp8 and all else in half precision."""
    from safetensors.torch import save_file

    state = {key: value.detach().to("cpu", torch.float16).contiguous() for key, value in weights.items()}
    save_file(fp8.in_fp8(state), file, metadata={"format": "maskprompt tiny depth control 1", **about})


def train(options: argparse.Namespace) -> Path:
    """Trains and gives the file written, of the averaged weights."""
    work = options.work
    minutes = options.minutes
    device = device_of()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    log = Log(work / "control.log")
    unet_state, text_state, autoencoder = tiny_model.load_checkpoint(options.base)
    unet = tiny_model.build_unet()
    text = tiny_model.TextEncoder()
    unet.load_state_dict(unet_state)
    text.load_comfyui_state(text_state)
    text.to(device).requires_grad_(False)
    data = Examples(encode(work, autoencoder, options.scenes, options.seed, log), device)
    controlled = Controlled(unet, started(unet_state)).to(device)
    control = controlled.control
    optimizer = torch.optim.AdamW(control.parameters(), options.rate, betas=(0.9, 0.99), weight_decay=1e-3, fused=True)
    average = {key: value.detach().clone() for key, value in control.state_dict().items()}
    resume = work / "control.pt"
    file = work / FILE.name
    step = 0
    spent = 0.0
    if resume.is_file():
        state = torch.load(resume, weights_only=True, map_location=device)
        control.load_state_dict(state["control"])
        optimizer.load_state_dict(state["optimizer"])
        average = state["average"]
        step = state["step"]
        spent = state["spent"]
        log(f"resumed at step {step}, minute {spent:.1f} of {minutes}")

    def save() -> None:
        partial = resume.with_suffix(".partial")
        state = {"control": control.state_dict(), "optimizer": optimizer.state_dict(), "average": average, "step": step, "spent": spent}
        torch.save(state, partial)
        partial.replace(resume)
        about = {"step": str(step), "minutes": f"{spent:.1f}", "seed": str(options.seed), "base": options.base.name}
        export(file, average, about)

    generator = torch.Generator().manual_seed(options.seed + step)
    alphas = tiny_model.alphas()
    last = time.monotonic()
    saved = spent
    running = 0.0
    first = step
    while spent < minutes:
        for settings in optimizer.param_groups:
            settings["lr"] = cosine(spent / minutes, options.rate, options.rate / 30)
        batch, controlled.hint = data.batch(generator, options.batch)
        with sdpa_kernel(SDPBackend.MATH):  # twice as fast as the fused one on a CPU, at 16 channels a head
            loss = loss_of(controlled, text, batch, alphas, generator)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(control.parameters(), 1.0)
        optimizer.step()
        step += 1
        running += loss.item()
        now = time.monotonic()
        spent = spent + (now - last) / 60
        last = now
        if step % 10 == 0:
            with torch.no_grad():
                for key, value in control.state_dict().items():
                    average[key].lerp_(value, max(0.02, 1 / (step / 10 + 1)))
        if step % 100 == 0:
            mean = running / min(100, step - first)
            log(f"step {step} minute {spent:.1f} of {minutes} loss {mean:.4f} rate {optimizer.param_groups[0]['lr']:.2e}")
            running = 0.0
        if spent - saved > 3:
            saved = spent
            save()
    save()
    log(f"done at step {step}, minute {spent:.1f}")
    return file


@torch.no_grad()
def paint(painter: Painter, control: Any, captions: list[str], hints: Tensor, strength: float, seed: int) -> Tensor:
    """Whole pictures [B, H, W, 3] under hints [B, 3, H, W] as stock nodes paint them; Apply ControlNet does nothing at strength 0."""
    import comfy.sample

    latent = torch.zeros(len(captions), LATENT, hints.shape[2] // 8, hints.shape[3] // 8)
    values = {"control": control.copy().set_cond_hint(hints, strength), "control_apply_to_uncond": False} if strength else {}
    positive, negative = ([[painter.text(texts), dict(values)]] for texts in (captions, [""] * len(captions)))
    noise = comfy.sample.prepare_noise(latent, seed)
    done = comfy.sample.sample(
        painter.model, noise, STEPS, CFG, SAMPLER, SCHEDULER, positive, negative, latent, seed=seed, disable_pbar=True
    )
    return painter.vae.decode(done).clamp(0, 1)


def held_out_scenes(count: int, seed: int) -> tuple[list[scenes.Scene], Tensor, np.ndarray]:
    """Scenes of one object that training never showed, their hints [N, 3, 128, 128], and the objects as the judge has masks [N, 64, 64]."""
    rng = np.random.default_rng([seed, 1])
    drawn: list[scenes.Scene] = []
    while len(drawn) < count:
        scene = scenes.random_scene(rng, two=0, allow_held_out=True)
        if scenes.held_out(scene.things[0].shape, scene.things[0].paint.colour, scene.ground):
            drawn.append(scene)
    masks = np.stack([scenes.render(scene).masks[0] for scene in drawn])
    hints = torch.from_numpy(np.stack([draw_hint(rng, mask) for mask in masks]))[:, None].expand(-1, HINT, -1, -1)
    return drawn, hints, F.avg_pool2d(torch.from_numpy(masks)[None], 2)[0].numpy() > 0.5


def evaluate(file: Path, base: Path = tiny_model.CHECKPOINT, count: int = 64, seed: int = 0) -> dict[str, float]:
    """What the judge sees of held-out scenes with the control network at strength 1 and without.

    `iou`: how much the object found and the hint's overlap, mean over the pictures (0 where none is found). `shape`, `colour`: share
    of pictures where the caption's is right.
    """
    import comfy.controlnet

    painter = Painter(base)
    eye = judge.load()
    control = comfy.controlnet.load_controlnet(str(file))
    drawn, hints, masks = held_out_scenes(count, seed)
    figures: dict[str, float] = {}
    for strength in (1, 0):
        pictures = torch.cat([
            paint(painter, control, [scene.caption() for scene in drawn[i : i + 32]], hints[i : i + 32], strength, seed + i)
            for i in range(0, count, 32)
        ])  # fmt: skip
        found = [v.best(s.things[0].shape) for v, s in zip(judge.look(eye, pictures), drawn, strict=True)]
        overlap = [0.0 if f is None else float((f.mask & m).sum() / (f.mask | m).sum()) for f, m in zip(found, masks, strict=True)]
        figures[f"iou at {strength}"] = float(np.mean(overlap))
        for name, asked in (("shape", [s.things[0].shape for s in drawn]), ("colour", [s.things[0].paint.colour for s in drawn])):
            right = [f is not None and getattr(f, name) == a for f, a in zip(found, asked, strict=True)]
            figures[f"{name} right at {strength}"] = float(np.mean(right))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("demo/work"))
    parser.add_argument("--base", type=Path, default=tiny_model.CHECKPOINT, help="the tiny model's checkpoint")
    parser.add_argument("--minutes", type=float, default=40)
    parser.add_argument("--scenes", type=int, default=4_000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    file = train(options)
    log = Log(options.work / "control.log")
    figures = evaluate(file, options.base, seed=options.seed)
    for name, value in figures.items():
        log(f"{name}: {value:.3f}")
    passed = figures["iou at 1"] >= IOU and figures["iou at 1"] - figures["iou at 0"] >= GAIN
    log(f"gate (overlap at least {IOU}, and {GAIN} over strength 0): {'passed' if passed else 'NOT passed'}")


if __name__ == "__main__":
    main()
