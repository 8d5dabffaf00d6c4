"""The real frontend in headless Chromium, before a real server that has every model file under the workflows' own names."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from maskprompt.conditioning import handles
from maskprompt.conditioning.handles import Handle
from maskprompt.models.mcgm import file as mask_encoder_file
from maskprompt.models.mcgm import mask_encoder
from maskprompt.models.mcgm.file import About
from playwright.sync_api import Page, sync_playwright
from safetensors.torch import save_file

from demo import browser, run, stand_ins, tiny_model
from demo.server import Server

from ..support.pointing_page import BUILD

TEXT_WIDTH: int = tiny_model.UNET["context_dim"]
OWN = ("clip_name", "mask_controlnet_name", "blip_name")
"""Inputs whose files have no address under the name that the workflows give them."""


def required() -> bool:
    """Whether a missing Chromium is a failure: in CI it is."""
    return os.environ.get("CI", "").lower() in ("1", "true") or os.environ.get("MASKPROMPT_REQUIRE_CHROMIUM") == "1"


@pytest.fixture(scope="session")
def browser_path() -> str:
    path = browser.chromium()
    if path is None and required():
        pytest.fail("no Chromium found, and these tests must run here: install one, or name it in CHROMIUM")
    if path is None:
        pytest.skip("no Chromium found: install one, or name it in CHROMIUM, to test in the real frontend")
    return path


@pytest.fixture(scope="session")
def model_inputs() -> dict[str, tuple[str, Path]]:
    """The inputs that name model files to download, with the model folder of each and the file that stands in for it here."""
    return {field: model for field, model in stand_ins.MODEL_FILES.items() if field not in OWN}


@pytest.fixture(scope="session")
def embeddings(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The handles that belong to the mask encoder which artists make with workflow 22."""
    folder = tmp_path_factory.mktemp("embeddings")
    vector = {"l": torch.zeros(1, TEXT_WIDTH)}
    return [Path(handles.save(str(folder), f"scene-{word}", vector, word)) for word in ("ball", "fish")]


@pytest.fixture(scope="session")
def own_inputs(embeddings: list[Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, Path]]:
    """The same of files that artists make or name themselves: a LoRA and a mask encoder that have learned nothing, a Mask-ControlNet,
    BLIP's folder, and the CLIP vision model, which everybody gives another name than the one that it is downloaded under.
    """
    folder = tmp_path_factory.mktemp("files")
    save_file({"diffusion_model.out.2.diff": torch.zeros(4, 32, 3, 3)}, folder / "lora.safetensors")
    known = tuple(Handle(file.stem, file.stem.removeprefix("scene-")) for file in embeddings)
    mask_encoder_file.save(mask_encoder.fresh(TEXT_WIDTH, len(known)), About(known), str(folder / "mcgm.safetensors"))
    return {
        "lora_name": ("loras", folder / "lora.safetensors"),
        "mcgm_name": ("mcgm", folder / "mcgm.safetensors"),
        **{field: stand_ins.MODEL_FILES[field] for field in OWN},
    }


@pytest.fixture(scope="package")
def server(
    browser_path: str,
    model_inputs: dict[str, tuple[str, Path]],
    own_inputs: dict[str, tuple[str, Path]],
    embeddings: list[Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Server]:
    staged = run.stage(tmp_path_factory.mktemp("comfyui"))
    any_file = stand_ins.TINY_MODEL  # what is only looked for and never loaded
    for file in embeddings:
        staged.add_model("embeddings", file)
    for prompt in run.workflows().values():  # their pictures are there by the pack's own doing
        for node in prompt.values():
            for field, kind in stand_ins.PUBLISHED.get(node["class_type"], {}).items():
                staged.add_model(kind, any_file, node["inputs"][field])
            for field, (kind, file) in (model_inputs | own_inputs).items():
                if field in node["inputs"] and node["class_type"] not in stand_ins.PUBLISHED:
                    staged.add_model(kind, file, node["inputs"][field])
    with staged as started:
        started.post("/settings", {"Comfy.TutorialCompleted": True})
        yield started


@pytest.fixture(scope="package")
def page(server: Server, browser_path: str) -> Iterator[Page]:
    """A page that is closed after these tests: it draws without end, which would take half a core from all others."""
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=browser_path, args=browser.FLAGS)
        opened = started.new_page(viewport={"width": 1920, "height": 1080})
        browser.open_frontend(opened, server.url)
        yield opened
        started.close()


@pytest.fixture(scope="module", params=[False, True], ids=["classic", "nodes-2"])
def pointing(page: Page, server: Server, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A page of its own in one of the two renderers, with the graph of `pointing_page`."""
    server.post("/settings", {"Comfy.VueNodes.Enabled": request.param})
    started = page.context.browser
    assert started is not None
    opened = started.new_page(viewport={"width": 1600, "height": 1100})
    browser.open_frontend(opened, server.url)
    opened.wait_for_timeout(2000)
    yield opened
    opened.close()
    server.post("/settings", {"Comfy.VueNodes.Enabled": False})


@pytest.fixture
def fresh(pointing: Page) -> Page:
    """The page with the graph built anew and the picture shown."""
    pointing.evaluate(BUILD)
    pointing.wait_for_function("() => document.querySelector('.maskprompt-picture [role=status]')?.textContent.startsWith('Click')")
    return pointing
