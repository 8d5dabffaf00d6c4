"""The estimate of a training's memory against what a real step takes, and what is decided by it."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from maskprompt.training.engine import memory
from maskprompt.training.engine.learner import Learner

from demo.pack import ROOT

GIB = memory.GIB
CASES = [(32, True), (24, False)]
"""Side of the latents, and whether blocks are computed twice."""
MEASURE = """
import ctypes, gc, json, sys
sys.path.insert(0, {root!r})
from demo.pack import load_pack
load_pack()
sys.path.insert(0, {root!r})
import tempfile, folder_paths, torch
from demo.painter import Painter
from tests.support.dreamcom import run_node
from maskprompt.training.engine.learner import Learner
from maskprompt.training.dreamcom.loss import Loss
from maskprompt.training.dreamcom.options import Options
from tests.support.learners import conditioning, examples, unet_of
from maskprompt.training.engine import loop
from maskprompt.training.engine import memory
torch.set_num_threads(1)
model, steps, sizes = unet_of(64), [], []

def status(key):
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key))

for side, checkpointing in {cases!r}:
    learner = Learner(model, "lora", 4, checkpointing=checkpointing)
    with learner.loaded():
        for measured in (8, side, side):  # libraries make room for themselves in the first steps, and again for each size
            loss_of = Loss(learner, examples(2, measured), conditioning(), Options(size=8 * measured))
            before = status("VmRSS")
            open("/proc/self/clear_refs", "w").write("5")
            loss_of(0, loop.random_numbers(0, 0)).backward()
            taken = status("VmHWM") - before
            gradients = sum(4 * value.numel() for value in learner.parameters.values())
            for value in learner.parameters.values():
                value.grad = None
        steps.append((taken - gradients, memory.activations(learner.patcher, (1, 4, side, side), checkpointing, "lora")))
    del learner, loss_of
tiny, model = Painter(), unet_of(96, small=True)
with tempfile.TemporaryDirectory() as folder:
    folder_paths.set_output_directory(folder)
    for _ in range(3):
        for method in ("lora", "full"):
            run_node(tiny, model=model, method=method, rank=16, gradient_checkpointing=True)
        sizes.append(status("VmRSS"))
print(json.dumps([steps, sizes]))
"""


@pytest.fixture(scope="module")
def measured() -> tuple[list[tuple[int, int]], list[int]]:
    """What single steps take, and how large the process is after each of three runs of Train a Subject with either method.

    On mid-size UNets, in a process whose memory goes back to the system when it is freed, so that what is seen was in use.
    """
    script = MEASURE.format(root=str(ROOT), cases=CASES)
    freed_at_once = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, env={**os.environ, **freed_at_once}
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


linux = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells a process's peak since a moment")


@linux
@pytest.mark.thorough
def test_the_estimate_is_near_what_a_step_takes(measured: tuple[list[tuple[int, int]], list[int]]) -> None:
    for case, (taken, estimated) in zip(CASES, measured[0], strict=True):
        assert 0.9 < estimated / taken < 1.6, (case, taken, estimated)


@linux
@pytest.mark.thorough
def test_training_again_and_again_does_not_grow(measured: tuple[list[tuple[int, int]], list[int]]) -> None:
    """After the first, which fills caches. A copy of the model that stayed would be about a twenty-fifth of the process."""
    first, *later = measured[1]
    assert max(later) < 1.01 * first, measured[1]


def test_what_learns_is_counted_four_times(model: Any) -> None:
    full = Learner(model, "full")
    count = sum(value.numel() for value in model.model.diffusion_model.parameters())
    shape = (1, 4, 16, 16)
    found = memory.estimate(full, shape, True)
    assert (found.weights, found.learning) == (0, 16 * count)
    assert memory.estimate_full(model, shape, True) == found
    assert memory.estimate(full, shape, True, average=True).learning == 20 * count
    lora = memory.estimate(Learner(model, "lora", 4), shape, True)
    assert lora.weights == pytest.approx(4 * count, rel=0.01)
    assert lora.learning < found.learning / 4
    assert lora.activations == found.activations
    assert memory.estimate(full, (2, 4, 16, 16), True).activations == 2 * found.activations
    assert memory.estimate(full, shape, False).activations > 4 * found.activations
    assert f"{found.total / GIB:.1f} GB (weights 0.0, what learns" in str(found)


@pytest.mark.parametrize(
    ("there", "method", "message"),
    [
        (4, "full", r"needs about 8.5 GB \(weights 0.0, what learns 8.0, a step 0.5\), but the device \(cpu\) has 4.0 GB.*`method` lora"),
        (4, "lora", "a smaller rank, or a smaller model"),
    ],
)
def test_what_cannot_be_held_is_refused(there: int, method: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "total_memory", lambda device: there * GIB)
    with pytest.raises(ValueError, match=message):
        memory.check(memory.Estimate(0, 8 * GIB, GIB // 2), torch.device("cpu"), method)


def test_what_is_tight_is_warned_about(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(memory, "total_memory", lambda device: 12 * GIB)
    with caplog.at_level(logging.WARNING):
        memory.check(memory.Estimate(GIB, 8 * GIB, GIB), torch.device("cpu"), "full")
        assert not caplog.records
        memory.check(memory.Estimate(GIB, 8 * GIB, 4 * GIB), torch.device("cpu"), "full")
    assert "may run out of memory. A smaller size or batch needs less" in caplog.text


def test_auto_trains_all_weights_where_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """SD 1.5 on 16 GB and more, SDXL on no card below 48; never on a CPU, however much memory it has."""
    gpu = torch.device("cuda")
    cpu = torch.device("cpu")
    sd15 = memory.Estimate(0, int(12.8 * GIB), GIB // 2)
    sdxl = memory.Estimate(0, 40 * GIB, GIB)
    for there, needed, wanted in ((15.99, sd15, "full"), (12, sd15, "lora"), (24, sdxl, "lora"), (48, sdxl, "full"), (24, None, "full")):
        monkeypatch.setattr(memory, "total_memory", lambda device, there=there: there * GIB)
        monkeypatch.setattr(memory, "available_memory", lambda device, there=there: there * GIB)
        assert memory.method_for(gpu, needed) == wanted
        assert memory.method_for(cpu, needed) == "lora"


def test_auto_decides_by_what_is_free_and_says_so(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A card of 16 GB with 2 GB in use ran out at the first optimizer step; a disk that is too small lost the training's state."""
    gpu = torch.device("cuda")
    needed = memory.Estimate(0, int(12.8 * GIB), GIB // 2)
    monkeypatch.setattr(memory, "total_memory", lambda device: 16 * GIB)
    monkeypatch.setattr(memory, "available_memory", lambda device: 14 * GIB)
    with caplog.at_level(logging.INFO):
        assert memory.method_for(gpu, needed) == "lora"
    assert "auto trains a LoRA: all weights need about 13.3 GB" in caplog.text
    assert "cuda has 14.0 GB free" in caplog.text
    monkeypatch.setattr(memory, "available_memory", lambda device: 15 * GIB)
    assert memory.method_for(gpu, needed, disk=30 * GIB) == "full"
    with caplog.at_level(logging.INFO):
        assert memory.method_for(gpu, needed, disk=15 * GIB) == "lora"
    assert "the state of all weights needs 20.5 GB of disk, and 15.0 GB are free" in caplog.text


def test_the_room_that_other_models_make_is_free(monkeypatch: pytest.MonkeyPatch, model: Any) -> None:
    from comfy import model_management

    cpu = torch.device("cpu")
    monkeypatch.setattr(model_management, "get_free_memory", lambda device: 5 * GIB)
    monkeypatch.setattr(model_management, "current_loaded_models", [])
    assert memory.available_memory(cpu) == 5 * GIB
    model_management.load_models_gpu([model])
    assert memory.available_memory(cpu) == 5 * GIB + model.loaded_size() > 5 * GIB
    assert memory.available_memory(torch.device("meta")) == 5 * GIB


@pytest.mark.parametrize(
    ("stored", "method", "cast"), [(torch.float16, "lora", 2), (torch.bfloat16, "lora", 0), (torch.bfloat16, "full", 2)]
)
def test_weights_that_are_cast_in_every_layer_are_counted(
    stored: torch.dtype, method: Any, cast: int, monkeypatch: pytest.MonkeyPatch, model: Any
) -> None:
    """Without checkpointing every layer keeps its weights as they were cast for the gradient of its input."""
    monkeypatch.setattr(memory, "compute_dtype", lambda model: torch.bfloat16)
    monkeypatch.setattr(model.model, "get_dtype", lambda: stored)
    count = sum(value.numel() for value in model.model.diffusion_model.parameters())
    shape = (1, 4, 16, 16)
    without = memory.activations(model, shape, False, method)
    monkeypatch.setattr(memory, "compute_dtype", lambda model: torch.float32)
    monkeypatch.setattr(model.model, "get_dtype", lambda: torch.float32)
    assert without == pytest.approx(memory.activations(model, shape, False, method) * 4.5 / 4 + cast * count, abs=2)


def test_auto_goes_on_with_what_a_training_was_begun_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """The state of all weights takes the very disk that was free for it, so that what is free now would say otherwise."""
    monkeypatch.setattr(memory, "total_memory", lambda device: 24 * GIB)
    monkeypatch.setattr(memory, "available_memory", lambda device: 24 * GIB)
    gpu, needed = torch.device("cuda"), memory.Estimate(0, int(12.8 * GIB), GIB // 2)
    assert memory.chosen(gpu, needed, 15 * GIB, lambda method: method == "full") == "full"
    assert memory.chosen(gpu, needed, 15 * GIB, lambda method: False) == "lora"
    assert memory.chosen(gpu, needed, 30 * GIB, lambda method: method == "lora") == "lora"
    assert memory.chosen(gpu, needed, 30 * GIB, lambda method: False) == "full"
