"""`nox -s gpu` at toy sizes: every check really runs here, a failure stays its own, and the time budget holds."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import figures as results
from benchmarks.figures import Figure
from benchmarks.gpu import checks, dense, layers, pack, run, shapes
from benchmarks.gpu.checks import Check, Setting


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    return Setting(True, torch.device("cpu"), (torch.float32,), tmp_path)


PARTS = ("layers", "steps: ", "transformers: ", "memory: ", "training: ", "torch.compile")
"""Words of the checks' names, so that each part has a time limit of its own."""


def test_every_check_belongs_to_a_part(setting: Setting) -> None:
    assert [check.name for check in run.checks(setting) if sum(part in check.name for part in PARTS) != 1] == []


@pytest.mark.thorough
@pytest.mark.parametrize("part", PARTS)
def test_every_check_runs_at_toy_sizes(part: str, setting: Setting, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "gpu.json"
    outcomes = run.measure(setting, 20, (part,), out)
    assert [one.name for one in outcomes] == [check.name for check in run.checks(setting) if part in check.name]
    assert {one.name: one.said for one in outcomes if one.state != checks.PASSED} == {}
    assert [figure.name for one in outcomes for figure in one.figures if figure.met is False] == []
    kept = json.loads(out.read_text("utf-8"))
    assert [one["name"] for one in kept["checks"]] == [one.name for one in outcomes]
    assert len(kept["figures"]) == sum(len(one.figures) for one in outcomes) >= len(outcomes)
    assert f"done: {outcomes[0].name}" in capsys.readouterr().out


def test_a_failure_is_recorded_and_the_rest_goes_on(setting: Setting) -> None:
    def fails(_: Setting) -> list[Figure]:
        raise ValueError("no such kernel")

    def works(_: Setting) -> list[Figure]:
        return [checks.figure("a value", 2.0, 1.0)]

    first, second = checks.run_all([Check("fails", fails), Check("works", works)], setting, 1)
    assert (first.state, second.state) == (checks.FAILED, checks.PASSED)
    assert first.said.startswith("ValueError: no such kernel (test_gpu_checks.py, line ")
    assert second.figures[0].met is False
    assert "| fails | FAILED: ValueError: no such kernel" in run.table([first, second])


def test_a_check_that_would_not_end_in_time_is_left_out(tmp_path: Path) -> None:
    real = Setting(False, torch.device("cpu"), (torch.float32,), tmp_path)
    ran: list[str] = []

    def check(name: str, seconds: float) -> Check:
        def note(_: Setting) -> list[Figure]:
            ran.append(name)
            return []

        return Check(name, note, seconds)

    outcomes = list(checks.run_all([check("long", 90), check("short", 1)], real, 1))
    assert ran == ["short"]
    assert outcomes[0].state == checks.LEFT_OUT
    assert "takes about 90 s, and 60 s were left" in outcomes[0].said


def test_a_wrong_patch_misses_its_bar(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    """A formula that is another one: the comparison must see it."""
    monkeypatch.setattr(dense, "paper_self", dense.renormalised_self)
    found = layers.correct(shapes.shapes(setting)[0], torch.float32)(setting)
    assert [figure.name.split(": ")[1] for figure in found if figure.met is False] == ["self, paper, error against its formula"]


def test_dense_attention_is_pytorchs() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, count, 12) for count in (5, 7, 7))
    parts: list[Any] = [x.unflatten(2, (3, 4)).transpose(1, 2) for x in (q, k, v)]
    seen = torch.rand(5, 7) > 0.4
    seen[:, 0] = True
    expected = torch.nn.functional.scaled_dot_product_attention(*parts, attn_mask=seen).transpose(1, 2).flatten(2)
    torch.testing.assert_close(dense.attended(q, k, v, 3, seen=seen), expected)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, so nothing is refused")
def test_real_sizes_need_a_gpu(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="PyTorch sees no GPU here"):
        run.setting_for(False, tmp_path)


def test_the_real_shapes_are_comfyuis_own() -> None:
    """ComfyUI recognises each configuration as the model that it is meant for."""
    import comfy.model_detection

    for shape in (shapes.SD15, shapes.SD21, shapes.SDXL):
        found = comfy.model_detection.model_config_from_unet_config(dict(shape.config), {})
        assert type(found).__name__ == shape.family


@pytest.mark.thorough
def test_the_pack_is_small_and_has_what_the_checks_import(tmp_path: Path) -> None:
    """The checks of attention's layers, run in the packed folder alone."""
    folder = tmp_path / "packed"
    pack.gather(folder, with_wheels=False)
    assert pack.size_of(folder) < pack.MOST
    command = [sys.executable, "-m", "benchmarks.gpu.run", "--small", "--only", "layers", "--out", "gpu.json"]
    environment = {**os.environ, "COMFYUI_PATH": str(folder / "ComfyUI"), "PYTHONPATH": ""}
    ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=500)
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-2000:]
    assert json.loads((folder / "gpu.json").read_text("utf-8"))
    assert sorted(file.name for file in (folder / "demo" / "registration").iterdir()) == sorted(
        file.name for file in (pack.ROOT / "demo" / "registration").iterdir() if file.suffix in (".py", ".json")
    )
    with pytest.raises(SystemExit, match="is not empty"):
        pack.gather(folder, with_wheels=False)


def test_a_part_does_not_take_the_place_of_the_whole(setting: Setting) -> None:
    """What `--only` measures, and toys, lie beside what the checks write; the whole at real shapes is a result."""
    real = dataclasses.replace(setting, small=False)
    assert run.file_for(real, part=False) == results.FOLDER / "gpu-cpu.json"
    assert run.file_for(real, part=True).parent == real.folder
    assert run.file_for(setting, part=False).parent == setting.folder
