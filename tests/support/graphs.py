"""Workflows in API form that several of the tests here start from, and what interrupts them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from demo import stand_ins
from demo.server import Prompt, Server, Step

PICTURES = ("subject-1.png", "subject-2.png", "subject-3.png")
SMALL: dict[str, Any] = {
    "token": "sks", "noun": "heart", "steps": 4, "method": "lora", "learning_rate": 0.0, "rank": 4, "batch_size": 1, "size": 64,
    "seed": 0, "preview_every": 0, "resume": True,
}  # fmt: skip


def node(name: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": name, "inputs": inputs}


def choices(declared: Sequence[Any]) -> list[Any] | None:
    """Lists what an input offers, by what the server says of it: of files that are not there nothing. None if it is no combo."""
    if isinstance(declared[0], list):
        return declared[0]
    return declared[1].get("options", []) if declared[0] == "COMBO" else None


def default(declared: Sequence[Any]) -> Any:
    """Gives what a widget holds at first; of a combo without a default its first choice, if it has one. None if the input is no widget."""
    options: dict[str, Any] = declared[1] if len(declared) > 1 else {}
    offered = choices(declared)
    if offered is not None:
        return options.get("default", offered[0] if offered else "")
    if declared[0] in ("INT", "FLOAT", "STRING", "BOOLEAN"):
        return options.get("default", "" if declared[0] == "STRING" else 0)
    return None


CHECKPOINT = node("CheckpointLoaderSimple", ckpt_name=stand_ins.TINY_MODEL.name)


def solid(value: float, width: int = 600, height: int = 400) -> dict[str, Any]:
    return node("SolidMask", value=value, width=width, height=height)


def in_list(names: Sequence[str]) -> dict[str, Any]:
    """The first outputs of these nodes as a list."""
    return node("CreateList", **{f"inputs.input{index}": [name, 0] for index, name in enumerate(names)})


def training(
    masks: Sequence[dict[str, Any]] = (), pictures: Sequence[str] = PICTURES, model: dict[str, Any] = CHECKPOINT, **settings: Any
) -> Prompt:
    """Train a Subject for a few small steps on pictures in which their middle is marked, or what `masks` says; the LoRA is saved."""
    graph: Prompt = {f"picture {index}": node("LoadImage", image=name) for index, name in enumerate(pictures)}
    marks = {f"mask {index}": mask for index, mask in enumerate(masks)}
    graph |= marks
    return graph | {
        "pictures": in_list(list(graph)[: len(pictures)]),
        "masks": in_list(list(marks)) if marks else node("MaskPromptBoxMask", image=["pictures", 0], x=130, y=130, width=250, height=250),
        "clip": CHECKPOINT,
        "model": model,
        "train": node(
            "MaskPromptTrainDreamCom", model=["model", 0], clip=["clip", 1], vae=["clip", 2], images=["pictures", 0], masks=["masks", 0],
            **{**SMALL, **settings},
        ),
        "lora": node("SaveLoRA", lora=["train", 1], prefix="loras/test"),
    }  # fmt: skip


def painting(model: Sequence[Any], text: str = "a photo of sks heart") -> Prompt:
    """Three steps of a MODEL into a box of a plain picture; the latent is kept as it is. Needs a node "clip" that loads the checkpoint."""
    sampler = {"steps": 3, "cfg": 3.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0, "seed": 1}
    return {
        "ground": node("EmptyImage", width=64, height=64, batch_size=1, color=0x4080C0),
        "box": node("MaskPromptBoxMask", image=["ground", 0], x=16, y=16, width=32, height=32),
        "text": node("CLIPTextEncode", clip=["clip", 1], text=text),
        "hidden": node(
            "InpaintModelConditioning", positive=["text", 0], negative=["text", 0], vae=["clip", 2], pixels=["ground", 0],
            mask=["box", 0], noise_mask=True,
        ),
        "sampler": node(
            "KSampler", model=list(model), positive=["hidden", 0], negative=["hidden", 1], latent_image=["hidden", 2], **sampler
        ),
        "latent": node("SaveLatent", samples=["sampler", 0], filename_prefix="test"),
    }  # fmt: skip


class Interrupt:
    """Interrupts a server once, when the node of class `train` has got so far on its progress bar."""

    def __init__(self, server: Server, train: str, value: int) -> None:
        self.server = server
        self.train = train
        self.value = value
        self.done = False

    def __call__(self, step: Step) -> None:
        if not self.done and step.name == self.train and step.value >= self.value:
            self.done = True
            self.server.interrupt()
