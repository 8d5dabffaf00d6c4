"""Train nodes that are cancelled."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import comfy.utils
import pytest
from comfy.model_management import InterruptProcessingException


def cancelled_at(value: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The progress bar raises ComfyUI's interrupt when it has come so far."""

    def told(self: Any, now: int, total: int | None = None, preview: Any = None) -> None:
        if now == value:
            raise InterruptProcessingException

    monkeypatch.setattr(comfy.utils.ProgressBar, "update_absolute", told)


Told = list[tuple[int, Any]]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    """What the bar was told: how far it is, and a preview or none."""
    found: Told = []
    monkeypatch.setattr(
        comfy.utils.ProgressBar, "update_absolute", lambda self, value, total=None, preview=None: found.append((value, preview))
    )
    return found
