"""What training a subject takes on a UNet of SD 1.5's size: an inpainting one of random weights, in float32, on the CPU.

In a process of its own, whose peak is then all there is: ComfyUI, the given model, the copy that learns, and the steps.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from typing import Any

import torch

from demo import pack

from ..figures import Figure
from .measure import SD15

SIZE = 256
STEPS = 2
AT_MOST = 10.0
"""Side of the crops in pixels, and the peak memory in GB (10^9 bytes) that so many steps may take."""


def sd15() -> Any:
    """A MODEL as ComfyUI loads a checkpoint's, not yet used."""
    import comfy.supported_models
    from comfy.model_patcher import ModelPatcher

    cpu = torch.device("cpu")
    config = comfy.supported_models.SD15(SD15)
    config.set_inference_dtype(torch.float32, None)
    base = config.get_model({}, device=cpu)
    base.set_inpaint()
    with torch.no_grad():
        for value in base.diffusion_model.parameters():
            if value.ndim > 1:
                bound = math.sqrt(3 / value[0].numel())
                value.uniform_(-bound, bound)
            else:
                value.fill_(1.0)
    return ModelPatcher(base, cpu, cpu)


def train() -> list[float]:
    """LoRA steps with gradient checkpointing on random crops; their losses."""
    from maskprompt.training.dreamcom.examples import Examples
    from maskprompt.training.dreamcom.job import ready
    from maskprompt.training.dreamcom.options import Options
    from maskprompt.training.engine import job, learner

    side = SIZE // 8
    given = sd15()
    boxes = torch.zeros(STEPS, SIZE, SIZE, dtype=torch.bool)
    boxes[:, SIZE // 4 : SIZE // 2, SIZE // 4 : SIZE // 2] = True
    latents, masked = torch.randn(2, STEPS, 4, side, side)
    examples = Examples(latents, masked, boxes, torch.ones(STEPS, 1, side, side))
    options = Options(noun="ball", steps=STEPS, method="lora", size=SIZE)
    learns = learner.Learner(given, "lora", options.rank, checkpointing=options.checkpointing)
    text = [[torch.randn(1, 77, 768), {}]]
    progress, _ = job.run(ready(learns, [text, text], options, examples=examples))
    return progress.losses


def most() -> int:
    """The most memory that this process has had, in bytes."""
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def training() -> list[Figure]:
    """The peak of a whole process that trains."""
    run = subprocess.run([sys.executable, "-m", __name__], cwd=pack.ROOT, stdout=subprocess.PIPE, text=True, check=True)
    peak, losses = json.loads(run.stdout.splitlines()[-1])
    if len(losses) != STEPS or not all(map(math.isfinite, losses)):
        raise RuntimeError(f"the steps' losses are {losses}")
    name = f"DreamCom, SD 1.5, {SIZE} px, {STEPS} steps of a LoRA: the process's peak memory in GB"
    return [Figure(name, peak / 1e9, peak / 1e9, peak / 1e9, 1, f"\u2264 {AT_MOST:g}", peak / 1e9 <= AT_MOST)]


if __name__ == "__main__":
    pack.load_pack()
    found = train()
    print(json.dumps([most(), found]))
