"""Patches on compiled models: ComfyUI's own way to compile, as its node does it and with all of torch's checks. Traced only, not built."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from comfy_api.torch_helpers import set_torch_compile_wrapper
from comfy_extras.nodes_torch_compile import skip_torch_compile_dict
from maskprompt.attention import chain, compiled

from ...support.tiny_transformers import TINIES
from ...support.transformer_texts import masks, region, regions, sample, text_of

FLUX = next(tiny for tiny in TINIES if tiny.name == "Flux.1")
SD3 = next(tiny for tiny in TINIES if tiny.name == "SD 3")
SIZE = (8, 12)


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    """Compiled models hold themselves; ComfyUI would take one that is gone at last for a leak in some later test."""
    from comfy.model_management import unload_all_models

    torch.compiler.reset()
    compiled._say.cache_clear()
    yield
    torch.compiler.reset()
    unload_all_models()


def traced(model: Any, calls: list[int], **options: Any) -> Any:
    """The MODEL compiled by ComfyUI's function; a backend that runs the graphs as they are, and counts their calls."""

    def backend(graph: Any, _inputs: Any, **_options: Any) -> Any:
        def run(*args: Any) -> Any:
            calls.append(1)
            return graph(*args)

        return run

    clone = model.clone()
    set_torch_compile_wrapper(model=clone, backend=backend, options=options or None)  # pyright: ignore[reportArgumentType]
    return clone


def turned() -> list[Any]:
    """The regions of `regions` with their masks the other way round."""
    return [region(FLUX, patch.text, mask.flip(2)) for patch, mask in zip(regions(FLUX, SIZE), masks(SIZE), strict=True)]


def test_on_sd3_too_whose_compiled_module_stands_in_the_models_place() -> None:
    """Its chain stands around `apply_model`, where ComfyUI has put the compiled module."""
    model, patches = SD3.model(), regions(SD3, SIZE)
    network = traced(model, [])
    wanted = sample(chain.install(model, *patches), SD3, SIZE, text_of(SD3))
    assert torch.equal(sample(chain.install(network, *patches), SD3, SIZE, text_of(SD3)), wanted)


def test_regions_act_on_a_model_that_was_compiled_without_them(caplog: pytest.LogCaptureFixture) -> None:
    """As with TorchCompileModel: first the plain model, then regions, then others. Each picture is that of the model not compiled."""
    model, calls = FLUX.model(), []
    network = traced(model, calls, guard_filter_fn=skip_torch_compile_dict)
    plain = sample(model, FLUX, SIZE, text_of(FLUX))
    torch.testing.assert_close(sample(network, FLUX, SIZE, text_of(FLUX)), plain)
    assert len(calls) > 0
    assert "TorchCompileModel" not in caplog.text
    for patches in (regions(FLUX, SIZE), turned(), regions(FLUX, SIZE)):
        wanted = sample(chain.install(model, *patches), FLUX, SIZE, text_of(FLUX))
        assert not torch.allclose(wanted, plain, rtol=1e-3)
        assert torch.equal(sample(chain.install(network, *patches), FLUX, SIZE, text_of(FLUX)), wanted)
    assert caplog.text.count("a node (TorchCompileModel) that lets torch overlook changes") == 1
    before = len(calls)
    torch.testing.assert_close(sample(network, FLUX, SIZE, text_of(FLUX)), plain)
    assert len(calls) > before


def test_a_part_of_the_sampling_is_kept_to() -> None:
    model, scope = FLUX.model(), chain.Scope(None, 0.3, 0.7, "positive")
    patches = [replace(patch, scope=scope) for patch in regions(FLUX, SIZE)]
    wanted = sample(chain.install(model, *patches), FLUX, SIZE, text_of(FLUX), steps=4)
    assert not torch.equal(wanted, sample(chain.install(model, *regions(FLUX, SIZE)), FLUX, SIZE, text_of(FLUX), steps=4))
    network = traced(model, [], guard_filter_fn=skip_torch_compile_dict)
    torch.testing.assert_close(sample(chain.install(network, *patches), FLUX, SIZE, text_of(FLUX), steps=4), wanted)


def test_with_all_checks_the_model_stays_compiled(caplog: pytest.LogCaptureFixture) -> None:
    """Compiled without options, as other packs do; the stance that turns compiling off for a while is not taken."""
    model, calls = FLUX.model(), []
    network = traced(model, calls)

    @torch.compile(backend="eager")
    def compiling(x: torch.Tensor) -> torch.Tensor:
        return x + 1 if torch.compiler.is_compiling() else x

    one = torch.ones(1)
    for options in ({}, network.model_options):
        with compiled.as_it_must_run(options):
            assert float(compiling(one)) == 2
    with compiled.as_it_must_run(traced(model, calls, guard_filter_fn=skip_torch_compile_dict).model_options):
        assert float(compiling(one)) == 1
    assert float(compiling(one)) == 2
    assert caplog.text.count("TorchCompileModel") == 1
