"""ComfyUI's own nodes that change a MODEL, beside this pack's, in running ComfyUI: before ours and after, the same picture.

`python -m tests.live.beside_core` tries every node that needs nothing but a MODEL, a CLIP, a VAE, a prompt, a picture or a mask, on both
tiny models, and writes docs/beside-core-nodes.md if none is wrong; else it ends with 1. With `--only NAME …` it tries these nodes and
writes nothing.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from demo import run, stand_ins
from demo.server import ROOT, Prompt, Server, WorkflowError

from ..support.graphs import choices, default, node

PAGE = ROOT / "docs" / "beside-core-nodes.md"
NEWLINE = "\n"
SIDE = 128
STEPS = 6
Model = Literal["UNet", "transformer"]
MODELS: tuple[Model, ...] = ("UNet", "transformer")
Place = Literal["nowhere", "before", "after", "alone"]
Answer = np.ndarray | str
"""A picture [H, W, 3], or the words of an error."""
REFUSED = "ypass that node"
"""What our own words say where another node cannot stand beside ours."""

SETTINGS: dict[str, dict[str, Any]] = {
    "EasyCache": {"reuse_threshold": 1.0, "start_percent": 0.0, "end_percent": 1.0},
    "FreSca": {"scale_low": 0.9, "scale_high": 1.4, "freq_cutoff": 4},
    "LazyCache": {"reuse_threshold": 1.0, "start_percent": 0.0, "end_percent": 1.0},
    "ModelSamplingDiscrete": {"zsnr": True},
    "ScaleROPE": {"scale_x": 1.5, "scale_y": 1.5, "shift_x": 3.0},
    "SkipLayerGuidanceDiT": {"double_layers": "1", "single_layers": "2", "start_percent": 0.0, "end_percent": 1.0, "scale": 1.0},
    "SkipLayerGuidanceDiTSimple": {"double_layers": "1", "single_layers": "2", "start_percent": 0.0, "end_percent": 1.0},
    "UNetCrossAttentionMultiply": {"q": 1.2, "k": 1.2, "v": 0.9, "out": 1.1},
    "UNetSelfAttentionMultiply": {"q": 1.2, "k": 1.2, "v": 0.9, "out": 1.1},
}
"""What makes a node act in a few steps on a tiny model, where its defaults do not."""
COMPILES = "TorchCompileModel"
"""The node whose compiled model would overlook ours (`attention/compiled.py`)."""
GOOD: dict[str, str] = {
    "same": "it acts, ours act beside it, and the order changes nothing in the picture",
    "words": "refused in words that say what to bypass",
    "uncompiled": "beside ours its model runs uncompiled, and the log says so",
    "idle": "does nothing on this model by itself",
    "fails": "fails on this model without our nodes too",
}
"""How a node beside ours may turn out, and what that means."""


@dataclass(frozen=True)
class Outcome:
    """How a node of core's turned out on a model; `kind` is one of GOOD's, or says what is wrong."""

    name: str
    model: Model
    kind: str
    said: str = ""


class Graphs:
    """Graphs of ours with one node of core's, from what the server says of that node."""

    def __init__(self, info: Mapping[str, dict[str, Any]]) -> None:
        self.info = info
        self.names = sorted(name for name in info if self._takes_only_what_is_there(name))

    def _takes_only_what_is_there(self, name: str) -> bool:
        wanted = [declared[0] for declared in self._inputs(name).values()]
        there = {*_wires("UNet"), "MODEL"}
        changes_a_model = wanted.count("MODEL") == 1 and "MODEL" in self.info[name]["output"]
        declared = [one for one in self._inputs(name).values() if not (isinstance(one[0], str) and one[0] in there)]
        known = all(default(one) is not None and choices(one) != [] for one in declared)
        return not name.startswith("MaskPrompt") and changes_a_model and known

    def _inputs(self, name: str) -> dict[str, Any]:
        return self.info[name]["input"].get("required", {})

    def around(self, name: str, model: Model, place: Place) -> Prompt:
        """Makes the graph of a picture under our nodes with core's before or after them, without it, or with it alone."""
        prompt = _base(model)
        line: list[Any] = ["model", 0]
        if place in ("before", "alone"):
            line = self._with(prompt, name, line, model)
        halves = _halves(model)
        if place != "alone":
            line, halves = _with_ours(prompt, line, model)
        if place == "after":
            line = self._with(prompt, name, line, model)
        latent = ["inpainting", 2] if model == "UNet" else ["empty", 0]
        sampling = {"seed": 3, "steps": STEPS, "cfg": 3.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
        prompt["sample"] = node("KSampler", model=line, latent_image=latent, **halves, **sampling)
        prompt["decode"] = node("VAEDecode", samples=["sample", 0], vae=_wires(model)["VAE"])
        prompt["save"] = node("SaveImage", images=["decode", 0], filename_prefix="beside")
        return prompt

    def _with(self, prompt: Prompt, name: str, line: Sequence[Any], model: Model) -> list[Any]:
        """Puts core's node behind a MODEL, at its defaults and SETTINGS."""
        given: dict[str, Any] = {}
        wires: dict[str, list[Any]] = {**_wires(model), "MODEL": list(line)}
        for field, declared in self._inputs(name).items():
            kind = declared[0]
            given[field] = wires[kind] if isinstance(kind, str) and kind in wires else default(declared)
        prompt["core's"] = node(name, **{**given, **SETTINGS.get(name, {})})
        return ["core's", self.info[name]["output"].index("MODEL")]


def _wires(model: Model) -> dict[str, list[Any]]:
    """Says where a graph of `_base` has each type that a node may ask for."""
    place = {"CLIP": ["model", 1], "VAE": ["model", 2]} if model == "UNet" else {"CLIP": ["clip", 0], "VAE": ["vae", 0]}
    return {**place, "IMAGE": ["picture", 0], "MASK": ["left", 0], "CONDITIONING": _halves(model)["positive"], "LATENT": ["empty", 0]}


def _halves(model: Model) -> dict[str, list[Any]]:
    """Says where a graph of `_base` has its two prompts."""
    if model == "UNet":
        return {"positive": ["inpainting", 0], "negative": ["inpainting", 1]}
    return {"positive": ["prompt and picture", 0], "negative": ["nothing and picture", 0]}


def _base(model: Model) -> Prompt:
    """Loads the model, two regions' masks, three prompts, and what to paint on; a transformer's prompts have the picture as a reference."""
    prompt: Prompt = {
        "picture": node("EmptyImage", width=SIDE, height=SIDE, batch_size=1, color=0x4080C0),
        "left": node("MaskPromptBoxMask", image=["picture", 0], x=0, y=0, width=SIDE // 2, height=SIDE),
        "right": node("MaskPromptBoxMask", image=["picture", 0], x=SIDE // 2, y=0, width=SIDE // 2, height=SIDE),
        "empty": node("EmptyLatentImage", width=SIDE, height=SIDE, batch_size=1),
    }
    if model == "UNet":
        prompt["model"] = node("CheckpointLoaderSimple", ckpt_name=stand_ins.TINY_MODEL.name)
        texts = ("on grass", "a red ball on grass", "a blue cup on grass")
    else:
        files = {folder: file.name for folder, file in stand_ins.TINY_EDIT.items()}
        prompt["model"] = node("UNETLoader", unet_name=files["diffusion_models"], weight_dtype="default")
        prompt["clip"] = node("CLIPLoader", clip_name=files["text_encoders"], type="flux2")
        prompt["vae"] = node("VAELoader", vae_name=files["vae"])
        texts = tuple(f"{thing} in a green meadow" for thing in ("nothing", "a fox", "a penguin"))
    wires = _wires(model)
    for name, text in zip(("prompt", "left text", "right text", "nothing"), (*texts, ""), strict=True):
        prompt[name] = node("CLIPTextEncode", clip=wires["CLIP"], text=text)
    if model == "UNet":
        prompt["inpainting"] = node(
            "InpaintModelConditioning", positive=["prompt", 0], negative=["nothing", 0], vae=wires["VAE"], pixels=wires["IMAGE"],
            mask=["left", 0], noise_mask=True,
        )  # fmt: skip
        return prompt
    prompt["latent"] = node("VAEEncode", pixels=["picture", 0], vae=wires["VAE"])
    for name in ("prompt", "nothing"):
        prompt[f"{name} and picture"] = node("ReferenceLatent", conditioning=[name, 0], latent=["latent", 0])
    return prompt


def _with_ours(prompt: Prompt, line: Sequence[Any], model: Model) -> tuple[list[Any], dict[str, list[Any]]]:
    """Puts our nodes behind a MODEL: two regions of text, a masked attention in a part of the sampling, and a picture in its region."""
    for number, side in enumerate(("left", "right")):
        name = f"region {number}"
        prompt[name] = node(
            "MaskPromptPromptRegion", model=list(line), text=[f"{side} text", 0], mask=[side, 0], strength=1.0, base="everywhere",
            apart=0.0, own_pass=0.4 if number else 0.0,
        )  # fmt: skip
        line = [name, 0]
    prompt["masked"] = node(
        "MaskPromptMaskedAttention", model=list(line), mask=["left", 0], cross_attention=True, self_attention="paper", layers="all",
        start_percent=0.1, end_percent=0.7,
    )  # fmt: skip
    if model == "UNet":
        prompt["vision"] = node("CLIPVisionLoader", clip_name=stand_ins.TINY_CLIP_VISION.name)
        prompt["seen"] = node("CLIPVisionEncode", clip_vision=["vision", 0], image=["picture", 0], crop="center")
        prompt["adapter"] = node("MaskPromptLoadMECA", adapter_name=stand_ins.TINY_MECA.name)
        prompt["image"] = node(
            "MaskPromptApplyMECA", model=["masked", 0], adapter=["adapter", 0], clip_vision_output=["seen", 0], weight=1.0, mode="region",
            region=["right", 0],
        )  # fmt: skip
        return ["image", 0], _halves(model)
    prompt["image"] = node(
        "MaskPromptReferenceRegion", model=["masked", 0], **_halves(model), image=["picture", 0], vae=_wires(model)["VAE"],
        region=["left", 0], show=["right", 0], invert=False, strength=1.0, megapixels=0.0625, end_percent=0.8,
    )  # fmt: skip
    return ["image", 0], {"positive": ["image", 1], "negative": ["image", 2]}


def answer(server: Server, prompt: Prompt) -> Answer:
    """Gives the picture that a graph paints, or ComfyUI's words."""
    try:
        saved = server.run(prompt).outputs["save"]["images"][0]
    except WorkflowError as error:
        return " ".join(str(error).split())
    return np.asarray(Image.open(server.file_of(saved)).convert("RGB"))


def alike(one: np.ndarray, other: np.ndarray) -> bool:
    """Says whether two pictures [H, W, 3] are the same but for rounding: a node's extra pass alone may move a value by one of 255."""
    return one.shape == other.shape and int(np.abs(one.astype(int) - other).max()) <= 1


def judged(name: str, model: Model, plain: np.ndarray, ours: np.ndarray, alone: Answer, before: Answer, after: Answer) -> Outcome:
    """Says what a node did: without ours (`plain` is the picture with neither), before ours and after (`ours` is that without it)."""
    if isinstance(alone, str):
        return Outcome(name, model, "fails", alone)
    for place, found in (("before", before), ("after", after)):
        if isinstance(found, str) and REFUSED not in found:
            return Outcome(name, model, f"an error {place} ours", found)
    if isinstance(before, str) and isinstance(after, str):
        return Outcome(name, model, "words", before)
    if isinstance(before, str) or isinstance(after, str):
        return Outcome(name, model, "refused in one order alone", str(before if isinstance(before, str) else after))
    if not alike(before, after):
        return Outcome(name, model, "the order matters", f"by {np.abs(before.astype(int) - after).mean():.2f} of 255")
    if alike(before, alone):
        return Outcome(name, model, "ours is lost")
    if name == COMPILES and alike(before, ours):
        return Outcome(name, model, "uncompiled")
    if alike(alone, plain):
        return Outcome(name, model, "idle" if alike(before, ours) else "acts beside ours alone")
    return Outcome(name, model, "lost beside ours" if alike(before, ours) else "same")


def tried(server: Server, model: Model, names: Iterable[str] = ()) -> list[Outcome]:
    """Tries each node, or those of the given names, beside ours on a model. RuntimeError if ours do nothing there by themselves."""
    graphs = Graphs(server.object_info())
    chosen = list(names) or graphs.names
    painted = graphs.around("", model, "nowhere")
    ours = answer(server, painted)
    painted["sample"]["inputs"] |= {"model": ["model", 0], **_halves(model)}
    plain = answer(server, painted)
    if isinstance(plain, str) or isinstance(ours, str) or alike(plain, ours):
        raise RuntimeError(f"our nodes do not act on the {model}: {plain if isinstance(plain, str) else ours}")
    outcomes: list[Outcome] = []
    for name in chosen:
        alone, before, after = (answer(server, graphs.around(name, model, place)) for place in ("alone", "before", "after"))
        outcome = judged(name, model, plain, ours, alone, before, after)
        outcomes.append(outcome)
        print(f"{model}: {name}: {outcome.kind}{': ' + outcome.said[:300] if outcome.said else ''}", flush=True)
    return outcomes


def page(outcomes: Sequence[Outcome]) -> str:
    """Gives the text of docs/beside-core-nodes.md: what each node did on each model, and what the words for it mean."""
    named: dict[str, dict[str, str]] = {}
    for outcome in outcomes:
        named.setdefault(outcome.name, {})[outcome.model] = outcome.kind
    rows = [f"| {name} | {' | '.join(found.get(model, '') for model in MODELS)} |" for name, found in sorted(named.items())]
    meant = [f"- **{kind}**: {meaning}." for kind, meaning in GOOD.items()]
    return f"""# Beside ComfyUI's own nodes

`python -m tests.live.beside_core` writes this page. It puts each node of ComfyUI's that changes a MODEL, and needs nothing else but a
prompt, a picture or a mask, before two *Prompt Region*s, *Masked Attention* (from 0.1 to 0.7 of the sampling) and a picture in its
region (*Image Prompt Region* on the UNet, *Reference Region* on the transformer), and then after them, in running ComfyUI on the two
tiny models.

{NEWLINE.join(meant)}

*Flux KV Cache* is made for FLUX.2, which neither of the two is: there, and on Qwen-Image, a test on random weights holds regions and
references beside it to a dense mask.

| node | UNet (tiny-sd-inpaint) | transformer (tiny-edit, of Flux's layout) |
|---|---|---|
{NEWLINE.join(rows)}
"""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="node ids of ComfyUI's")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder, run.stage(Path(folder)) as server:
        outcomes = [outcome for model in MODELS for outcome in tried(server, model, options.only)]
    good = all(outcome.kind in GOOD for outcome in outcomes)
    if good and not options.only:
        PAGE.write_text(page(outcomes), "utf-8")
    return int(not good)


if __name__ == "__main__":
    raise SystemExit(main())
