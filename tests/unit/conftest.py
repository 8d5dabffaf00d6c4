"""A small SD-inpainting-shaped model of random weights, as ComfyUI loads it, a short way to sample from it, and folders of models."""

from __future__ import annotations

import gc
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch

from ..support.families_table import Table
from ..support.models import Sample, random_model

TABLE = Table()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, None]:
    outcome = yield
    TABLE.note(item, outcome.get_result())


def pytest_sessionfinish() -> None:
    TABLE.write()
    gc.unfreeze()


@pytest.fixture(scope="module", autouse=True)
def _old_objects_are_not_searched() -> None:
    """What is there before a file's tests, libraries above all, is left out by the collector, which trainings start again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def model() -> Any:
    return random_model()


@pytest.fixture(scope="session")
def sample() -> Sample:
    """`sample(model, size=(h, w), batch=1, steps=2, cfg=4.0, positive={}, negative={})` gives the latent."""

    def run(
        model: Any,
        size: tuple[int, int] = (16, 16),
        batch: int = 1,
        steps: int = 2,
        cfg: float = 4.0,
        positive: dict[str, Any] | None = None,
        negative: dict[str, Any] | None = None,
        more: list[Any] | None = None,
    ) -> torch.Tensor:
        import comfy.sample

        generator = torch.Generator().manual_seed(1)
        noise = torch.randn(batch, 4, *size, generator=generator)
        texts = torch.randn(2, 77, 128, generator=generator)
        conditioning = [[texts[:1], positive or {}], *(more or [])]
        return comfy.sample.sample(
            model, noise, steps, cfg, "euler", "normal", conditioning, [[texts[1:], negative or {}]],
            torch.zeros_like(noise), seed=1, disable_pbar=True,
        )  # fmt: skip

    return run


@pytest.fixture
def folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """ComfyUI's folder tables as at its start, with a models folder of our own."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "folder_names_and_paths", {})
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path / "models"))
    (tmp_path / "models" / "sams").mkdir(parents=True)
    return tmp_path
