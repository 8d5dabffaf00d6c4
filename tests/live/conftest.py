"""A real ComfyUI server, started once, with the pack in its custom_nodes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from demo import run
from demo.server import Server


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with run.stage(tmp_path_factory.mktemp("comfyui")) as started:
        yield started
