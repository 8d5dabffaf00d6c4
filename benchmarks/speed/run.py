"""`nox -s bench`: times and memory as ratios, both sides in one run on the same machine, taken in turns.

`nox -s bench -- attention` (or `step`, `sam`) measures one of them.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from demo import tiny_model
from demo.pack import load_pack

from .. import figures as results

SD15: dict[str, Any] = {**tiny_model.UNET, "model_channels": 320, "num_heads": 8, "num_head_channels": -1, "context_dim": 768}


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def seconds(run: Callable[[], Any]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    started = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def in_turns(first: Callable[[], Any], second: Callable[[], Any], rounds: int) -> tuple[list[float], list[float]]:
    """Times of both, after one unmeasured run of each, taken in turns so that a slow moment hits both."""
    first()
    second()
    times: tuple[list[float], list[float]] = ([], [])
    for index in range(rounds):
        for which in (0, 1) if index % 2 == 0 else (1, 0):
            times[which].append(seconds((first, second)[which]))
    return times


class Held(TorchDispatchMode):
    """Counts the bytes of the tensors that operators make and that are still held: their most at once in `most`."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[StorageWeakRef, int] = {}
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                self.storages.setdefault(StorageWeakRef(storage), storage.nbytes())
        self.storages = {storage: size for storage, size in self.storages.items() if not storage.expired()}
        self.most = max(self.most, sum(self.storages.values()))
        return result


def peak(run: Callable[[], Any]) -> int:
    """The most bytes that a run holds at once beyond what was there before it (on a CPU: in the operators' results)."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    with Held() as held:
        run()
    return held.most


def attention(rounds: int = 15) -> list[results.Figure]:
    """Masked self-attention of 4096 tokens (SD 1.5 at 512 px), 8 heads of 40, CFG's two rows."""
    from maskprompt.attention import chain, grid
    from maskprompt.attention import masked_attention as masked

    q, k, v = (torch.randn(2, 4096, 320, device=device()) for _ in range(3))
    rows = tuple(chain.Row(half, 0, (0, 0, 64, 64)) for half in (0, 1))
    call = chain.Call("self", ("input", 1, 0), 8, (64, 64), (64, 64), rows, 1.0, True)
    figures = []

    def inner(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return chain.attention(q, k, v, {"n_heads": 8})

    for share, side in (("a quarter", 256), ("half", 362)):
        mask = torch.zeros(1, 512, 512)
        mask[:, 50 : 50 + side, 50 : 50 + side] = 1
        bars: dict[masked.SelfMode, float | None] = {"paper": 1.10, "renormalised": 0.65 if share == "half" else None}
        for mode, bar in bars.items():
            patch = masked.MaskedSelfAttention(grid.RegionMask(mask), mode)
            times = in_turns(lambda patch=patch: patch.attend(q, k, v, call, inner), lambda: inner(q, k, v), rounds)
            figures.append(results.ratio(f"self-attention, {mode}, {share} masked: time", *times, at_most=bar))
            if mode == "paper":
                given = 3 * q.numel() * q.element_size()
                held = [(given + peak(lambda patch=patch: patch.attend(q, k, v, call, inner))) / (given + peak(lambda: inner(q, k, v)))]
                figures.append(results.ratio(f"self-attention, {mode}, {share} masked: peak memory", held, [1.0], at_most=1.05))
    return figures


def step(rounds: int = 3) -> list[results.Figure]:
    """One evaluation of a UNet of random weights with CFG's two rows, masked (paper) against plain.

    The tiny one, and SD 1.5's size at 512 px.
    """
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
    from comfy.patcher_extension import WrappersMP
    from maskprompt.attention import chain, grid, layers
    from maskprompt.attention import masked_attention as masked

    figures = []
    for name, config, size, context, many in (("tiny", tiny_model.UNET, 16, 128, 20), ("SD 1.5", SD15, 64, 768, 1)):
        unet = UNetModel(**config, dtype=torch.float32, device=device(), operations=comfy.ops.disable_weight_init)
        for parameter in unet.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
        mask = torch.zeros(1, size * 8, size * 8)
        mask[:, size * 2 : size * 6, size * 2 : size * 6] = 1
        region = grid.RegionMask(mask)
        scope = chain.Scope(layers.preset("paper", layers.layers_of(unet)))
        patches = (masked.MaskedCrossAttention(region), masked.MaskedSelfAttention(region, "paper", scope))
        x = torch.randn(2, 9, size, size, device=device())
        text = torch.randn(2, 77, context, device=device())

        def run(wrappers: dict[str, Any], unet: Any = unet, x: torch.Tensor = x, text: torch.Tensor = text, many: int = many) -> None:
            with torch.inference_mode():
                for _ in range(many):
                    options = {"sigmas": torch.tensor([5.0]), "cond_or_uncond": [1, 0], "wrappers": wrappers}
                    unet(x, torch.full((2,), 500.0, device=x.device), text, transformer_options=options)

        ours = {WrappersMP.DIFFUSION_MODEL: {chain.KEY: [chain.Chain(patches)]}}
        times = in_turns(lambda ours=ours, run=run: run(ours), lambda run=run: run({}), rounds if many == 1 else 3 * rounds)
        figures.append(
            results.ratio(f"a sampling step, {name}, {size * 8} px, masked: time", *times, at_most=1.03 if name == "SD 1.5" else None)
        )
        if many == 1:
            held = [peak(lambda ours=ours, run=run: run(ours)) / peak(lambda run=run: run({}))]
            figures.append(results.ratio(f"a sampling step, {name}, {size * 8} px, masked: peak memory", held, [1.0], at_most=1.05))
        del unet
        gc.collect()
    return figures


def sam(rounds: int = 5) -> list[results.Figure]:
    """A second prompt on a picture against the first, MobileSAM."""
    from maskprompt.models.sam import model as models
    from maskprompt.nodes.segment import MaskPromptSAMMask

    from demo import photos, setup

    picture = torch.from_numpy(photos.load("coffee")).float()[None] / 255
    firsts = []
    seconds_ = []
    for _ in range(rounds):
        loaded = models.load(str(setup.get_mobile_sam()))
        firsts.append(
            seconds(lambda loaded=loaded: MaskPromptSAMMask.execute(sam=loaded, image=picture, positive_coords='[{"x": 300, "y": 200}]'))
        )
        seconds_.append(
            seconds(lambda loaded=loaded: MaskPromptSAMMask.execute(sam=loaded, image=picture, positive_coords='[{"x": 320, "y": 210}]'))
        )
    return [results.ratio("SAM Mask, a second prompt against the first: time", seconds_, firsts, at_most=0.07)]


def visibility() -> list[results.Figure]:
    from . import visibility as bench_visibility

    return bench_visibility.visibility()


def meca() -> list[results.Figure]:
    from . import meca as bench_meca

    return [*bench_meca.layer(), *bench_meca.step()]


def probe() -> list[results.Figure]:
    from . import probe as bench_probe

    return bench_probe.probe()


def training() -> list[results.Figure]:
    from . import training as bench_training

    return bench_training.training()


PARTS: dict[str, Callable[[], list[results.Figure]]] = {
    "attention": attention, "step": step, "sam": sam, "visibility": visibility, "meca": meca, "training": training, "probe": probe,
}  # fmt: skip


def main(names: list[str]) -> None:
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        raise SystemExit(f"no benchmark named {', '.join(unknown)}; there are: {', '.join(PARTS)}")
    load_pack()
    for name in names or PARTS:
        results.write(f"bench-{name}", f"nox -s bench -- {name}", PARTS[name](), {"interval": "quartiles of paired ratios"})


if __name__ == "__main__":
    main(sys.argv[1:])
