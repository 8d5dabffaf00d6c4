"""Train Image Prompt Adapter in a real server: what it shows, what it leaves behind, and that the saved file paints as what was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from demo import run, vision
from demo.server import Prompt, Server, WorkflowError

from ..support.graphs import CHECKPOINT, PICTURES, in_list, node
from ..support.live_training import Shown, interrupt_and_go_on, latent

pytestmark = pytest.mark.thorough

TRAIN = "MaskPromptTrainMECA"
SMALL: dict[str, Any] = {
    "captions": "a heart", "steps": 4, "learning_rate": 0.003, "batch_size": 2, "size": 64, "tokens": 4, "mode": "region", "seed": 0,
    "preview_every": 0, "resume": True, "gradient_checkpointing": False,
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def pictures(server: Server) -> None:
    run.add_photographs(server, PICTURES)
    server.add_model("clip_vision", vision.FILE)


def training(**settings: Any) -> Prompt:
    """A few small steps, saved."""
    return {
        **{f"picture {index}": node("LoadImage", image=name) for index, name in enumerate(PICTURES)},
        "pictures": in_list([f"picture {index}" for index in range(len(PICTURES))]),
        "clip": CHECKPOINT,
        "vision": node("CLIPVisionLoader", clip_name=vision.FILE.name),
        "train": node(
            TRAIN, model=["clip", 0], clip=["clip", 1], vae=["clip", 2], clip_vision=["vision", 0], images=["pictures", 0],
            **{**SMALL, **settings},
        ),
        "saved": node("MaskPromptSaveMECA", adapter=["train", 0], filename_prefix="ipadapter/live"),
    }  # fmt: skip


def painting(adapter: list[Any]) -> Prompt:
    """Three steps into an empty latent, with the first picture in the left half. Needs the nodes of `training`, but for the training."""
    sampler = {"steps": 3, "cfg": 3.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0, "seed": 1}
    return {
        "square": node("EmptyImage", width=64, height=64, batch_size=1, color=0),
        "left": node("MaskPromptBoxMask", image=["square", 0], x=0, y=0, width=32, height=64),
        "seen": node("CLIPVisionEncode", clip_vision=["vision", 0], image=["picture 0", 0], crop="center"),
        "applied": node(
            "MaskPromptApplyMECA", model=["clip", 0], adapter=adapter, clip_vision_output=["seen", 0], weight=1.0, mode="auto",
            region=["left", 0],
        ),
        "text": node("CLIPTextEncode", clip=["clip", 1], text="a heart on grass"),
        "empty": node("EmptyLatentImage", width=64, height=64, batch_size=1),
        "sampler": node(
            "KSampler", model=["applied", 0], positive=["text", 0], negative=["text", 0], latent_image=["empty", 0], **sampler
        ),
        "latent": node("SaveLatent", samples=["sampler", 0], filename_prefix="meca-training"),
    }  # fmt: skip


def files(server: Server) -> list[Path]:
    return sorted((server.output / "ipadapter").glob("live_*.safetensors"))


def test_it_shows_how_far_it_is_and_the_saved_file_paints_the_same(server: Server) -> None:
    shown = Shown()
    trained = latent(server, server.run({**training(steps=6, preview_every=2), **painting(["train", 0])}, on_bytes=shown))
    assert shown.steps == [1, 2, 3, 4, 5, 6]
    first = [line.split("\n")[0] for line in shown.lines]
    assert first.index("Encoding pictures: 12 of 12") < next(i for i, line in enumerate(first) if line.startswith("Step 1 of 6"))
    assert len(shown.previews) >= 2
    (file,) = files(server)
    graph = {name: entry for name, entry in training().items() if name not in ("train", "saved", "pictures")}
    graph["loaded"] = node("MaskPromptLoadMECA", adapter_name=file.name)
    again = latent(server, server.run({**graph, **painting(["loaded", 0])}))
    assert trained.isfinite().all()
    assert (trained - again).abs().max() < 1e-4
    plain = {**graph, **painting(["loaded", 0])}
    plain["sampler"]["inputs"]["model"] = ["clip", 0]
    assert (latent(server, server.run(plain)) - again).abs().max() > 1e-3


def test_an_interrupted_training_goes_on_where_it_was(server: Server) -> None:
    before = files(server)
    interrupt_and_go_on(server, training(seed=3, steps=26), TRAIN, "meca")
    assert len(files(server)) == len(before) + 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"captions": "one\ntwo"}, "3 pictures but 2 lines of captions"),
        ({"captions": ""}, "captions is empty"),
        ({"size": 1536}, "too small for crops of 1536"),
    ],
)
def test_it_is_refused_in_plain_words(server: Server, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(WorkflowError, match=f"(?s){message}") as refused:
        server.run(training(**settings))
    assert not any(word in str(refused.value) for word in ("Traceback", "torch.", "Tensor"))
