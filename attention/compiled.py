"""Compiled models: where torch.compile would not notice that patches come, change or go, the model runs uncompiled.

ComfyUI's TorchCompileModel, and packs that do as it does, tell torch to check nothing of `transformer_options` when a compiled model is
called again (`guard_filter_fn`). All that acts on attention travels there, in ComfyUI and in every pack: regions that were added to a model
compiled before would not act at all, and others would stay where the first run had them, in silence.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

log = logging.getLogger(__name__)

COMPILE = "torch_compile_kwargs"
"""Where ComfyUI keeps, among a model's options, how it is compiled."""


def as_it_must_run(model_options: Mapping[str, Any]) -> AbstractContextManager[Any]:
    """A context in which a patched model gives what it gives uncompiled: compiled where its changes are checked, else uncompiled.

    torch takes the filter out of the options that it is given, so that of options once given it is not known whether one was among them.
    Versions of torch that have no filter (before 2.6) check everything.
    """
    set_stance = getattr(torch.compiler, "set_stance", None)
    if set_stance is None or (model_options.get(COMPILE) or {}).get("options") is None:
        return nullcontext()
    _say()
    return set_stance("force_eager")


@functools.cache
def _say() -> None:
    """Says it once, not at every step."""
    log.warning(
        "MaskPrompt: the model is compiled by a node (TorchCompileModel) that lets torch overlook changes of what acts on attention. So "
        "that masks and regions act where they should, it runs uncompiled here. Bypass that node to be rid of this message."
    )
