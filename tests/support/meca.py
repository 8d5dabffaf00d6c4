"""An adapter of random weights, and how it is applied."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from maskprompt.attention import ip_adapter_layers
from maskprompt.models.ip_adapter import adapter as meca_adapter
from maskprompt.nodes.meca import ApplyMECA
from safetensors.torch import save_file

from . import adapters


@pytest.fixture(scope="session")
def adapter(model: Any, tmp_path_factory: pytest.TempPathFactory) -> meca_adapter.LoadedAdapter:
    """A base IP-Adapter for the small model."""
    widths, context = ip_adapter_layers.widths(model.get_model_object("diffusion_model"))
    path = tmp_path_factory.mktemp("ipadapter") / "base.safetensors"
    save_file(adapters.base(widths, context), path)
    return meca_adapter.load(str(path))


def applied(
    model: Any, adapter: Any, region: torch.Tensor | None = None, weight: float = 1.0, mode: str = "auto", output: Any = None, **more: Any
) -> Any:
    """The MODEL that Image Prompt Region gives."""
    output = adapters.encoded() if output is None else output
    (result,) = ApplyMECA.execute(model, adapter, output, weight, mode, region, **more).args
    return result
