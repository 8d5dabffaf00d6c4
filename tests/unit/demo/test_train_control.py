"""The tiny model's depth ControlNet: what learns, what it starts as, and that the stock loader takes it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from maskprompt.images import depth_hint
from maskprompt.nodes.depth_hint import DepthHint
from safetensors import safe_open

from demo import control_examples, registration, scenes, tiny_model, train_control
from demo.scenes import Paint, Scene, Thing

from ...support.models import Sample

registration.register()


@pytest.fixture
def unet(model: Any) -> dict[str, torch.Tensor]:
    """The random UNet's weights."""
    return {name: value.clone() for name, value in model.get_model_object("diffusion_model").state_dict().items()}


@pytest.fixture(scope="module")
def hint() -> torch.Tensor:
    return torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(7))


def loaded(control: torch.nn.Module, file: Path) -> Any:
    """The control network through a file and the stock loader."""
    import comfy.controlnet

    train_control.export(file, control.state_dict(), {"step": "3"})
    return comfy.controlnet.load_controlnet(str(file))


def applied(net: Any, hint: torch.Tensor) -> dict[str, Any]:
    """What Apply ControlNet writes into both conditionings, at strength 1."""
    control = {"control": net.copy().set_cond_hint(hint, 1.0), "control_apply_to_uncond": False}
    return {"positive": control, "negative": dict(control)}


def controlled(unet: dict[str, torch.Tensor], seed: int = 1) -> train_control.Controlled:
    torch.manual_seed(seed)
    base = tiny_model.build_unet()
    base.load_state_dict(unet)
    return train_control.Controlled(base, train_control.started(unet))


def learn(network: train_control.Controlled, steps: int) -> None:
    """A few steps on noise, from the loss of the training."""
    generator = torch.Generator().manual_seed(3)

    def noise(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator)

    network.hint = noise(2, 3, 64, 64).sigmoid()
    context = noise(2, 77, 128)
    text = torch.nn.Embedding(1, 1)
    text.forward = lambda input: context
    batch = (noise(2, 4, 8, 8), noise(2, 5, 8, 8), torch.ones(2, 1, 8, 8), torch.zeros(2, 77, dtype=torch.long))
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], 1e-3)
    for _ in range(steps):
        loss = train_control.loss_of(network, text, batch, tiny_model.alphas(), generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_untrained_it_changes_nothing(
    model: Any, sample: Sample, unet: dict[str, torch.Tensor], hint: torch.Tensor, tmp_path: Path
) -> None:
    net = loaded(train_control.started(unet), tmp_path / "untrained.safetensors")
    assert torch.equal(sample(model, **applied(net, hint)), sample(model))


def test_it_starts_as_the_bases_encoder(unet: dict[str, torch.Tensor]) -> None:
    """What a text-to-image gives the base's first layer, the control network's gives too, from the latent alone."""
    control = train_control.started(unet)
    shared = {name: value for name, value in control.state_dict().items() if name in unet and not name.startswith("input_blocks.0.")}
    assert len(shared) > 100
    assert all(torch.equal(value, unet[name]) for name, value in shared.items())
    latent = torch.randn(1, 4, 9, 9, generator=torch.Generator().manual_seed(0))
    constant = torch.tensor([1.0, *tiny_model.BLANK])[None, :, None, None].expand(1, 5, 9, 9)
    weight = unet["input_blocks.0.0.weight"]
    bias = unet["input_blocks.0.0.bias"]
    wanted = torch.nn.functional.conv2d(torch.cat([latent, constant], 1), weight, bias)
    found = control.get_submodule("input_blocks.0.0")(latent)[..., 1:-1, 1:-1]
    torch.testing.assert_close(found, wanted)


def test_the_control_network_alone_learns(unet: dict[str, torch.Tensor]) -> None:
    network = controlled(unet)
    before = {name: value.clone() for name, value in network.control.state_dict().items()}
    learn(network, 2)
    assert all(p.grad is None for p in network.unet.parameters())
    assert all(torch.equal(value, unet[name]) for name, value in network.unet.state_dict().items())
    assert all(p.grad is not None for p in network.control.parameters())
    still = [name for name, value in network.control.state_dict().items() if torch.equal(value, before[name])]
    assert still == []


@pytest.mark.thorough
def test_trained_saved_and_loaded_it_is_the_same(
    model: Any, sample: Sample, unet: dict[str, torch.Tensor], hint: torch.Tensor, tmp_path: Path
) -> None:
    """The stock loader's network gives what the trained one gives with its weights in fp8; and it is at work in a sampling."""
    network = controlled(unet)
    learn(network, 3)
    file = tmp_path / "trained.safetensors"
    net = loaded(network.control, file)
    halves = network.control.half().state_dict()
    # The loader puts all of a network into the precision that most of its file has.
    network.control.float().load_state_dict({name: value.to(torch.float8_e4m3fn).float() for name, value in halves.items()})
    for name, value in net.control_model.state_dict().items():
        assert torch.equal(value.float(), network.control.state_dict()[name]), name
    inputs = {
        "x": torch.randn(1, 4, 16, 16), "hint": hint, "timesteps": torch.tensor([500.0]), "context": torch.randn(1, 77, 128),
    }  # fmt: skip
    with torch.no_grad():
        ours = network.control(**inputs)
        theirs = net.control_model.float()(**inputs)
    for one, two in zip([*ours["output"], *ours["middle"]], [*theirs["output"], *theirs["middle"]], strict=True):
        assert one.abs().max() > 0
        torch.testing.assert_close(one, two)
    assert not torch.allclose(sample(model, **applied(net, hint)), sample(model), atol=1e-3)
    with safe_open(file, "pt") as opened:
        assert opened.metadata() == {"format": "maskprompt tiny depth control 1", "step": "3"}
    assert file.stat().st_size < 10e6


def test_hints_show_the_objects() -> None:
    """White is near: an object stands out from what is right beside it, and what lies behind is the node's to fill."""
    rng = np.random.default_rng(0)
    rendered = scenes.render(Scene((Thing("star", Paint("red"), 0.5, 0.4, 0.5),), "grass"))
    mask = rendered.masks[0]
    for _ in range(20):
        drawn = control_examples.draw_hint(rng, mask)
        assert drawn.shape == mask.shape
        assert drawn.min() >= 0
        assert drawn.max() <= 1
        assert drawn[mask == 1].mean() > drawn[:64][mask[:64] == 0].mean() + 0.1


def test_a_drawn_hint_is_one_that_the_node_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without noise and blur, the node makes the same hint of the same depths."""
    made: list[Any] = []
    real = depth_hint.hint

    def keep(*given: Any) -> torch.Tensor:
        made.append((given, real(*given)))
        return made[-1][1]

    monkeypatch.setattr(depth_hint, "hint", keep)
    mask = scenes.render(Scene((Thing("moon", Paint("red"), 0.5, 0.5, 0.6),), "sand")).masks[0]
    for seed in range(5):
        control_examples.draw_hint(np.random.default_rng(seed), mask)
    monkeypatch.undo()
    assert len(made) == 5
    for (ground, _, product, given, _, _, feather), hint in made:
        behind, front = (part[..., None].expand(-1, -1, -1, 3) for part in (ground, product))
        node: Any = DepthHint.execute(behind, front, given, normalise=False, feather=feather)
        torch.testing.assert_close(node.result[0][..., 0], hint, atol=1e-6, rtol=0)


@pytest.mark.thorough
def test_a_training_stops_and_goes_on(tmp_path: Path) -> None:
    options = argparse.Namespace(
        work=tmp_path, base=tiny_model.CHECKPOINT, minutes=1e-6, scenes=4, batch=1, rate=1e-3, seed=0, threads=torch.get_num_threads()
    )
    first = train_control.train(options)
    with safe_open(first, "pt") as opened:
        assert opened.metadata()["step"] == "1"
        assert opened.metadata()["base"] == tiny_model.CHECKPOINT.name
    spent = torch.load(tmp_path / "control.pt", weights_only=True)["spent"]
    train_control.train(argparse.Namespace(**{**vars(options), "minutes": spent + 1e-6}))
    assert torch.load(tmp_path / "control.pt", weights_only=True)["step"] == 2
    assert f"resumed at step 1, minute {spent:.1f}" in (tmp_path / "control.log").read_text("utf-8")
