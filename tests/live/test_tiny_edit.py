"""tiny-edit in a running ComfyUI: the stock loaders, two Reference Latent nodes and the stock sampler paint what our painter does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from demo.server import Server
from demo.tiny_edit import files, latents, painter, text, train

from ..support import tiny_edit_world

SENTENCE = "the fox of the first picture on the left in the second picture"


def graph(pictures: list[str], seed: int, steps: int, cfg: float) -> dict[str, Any]:
    """Stock nodes alone: load, encode pictures as reference latents, paint 64 pixels, save."""
    nodes: dict[str, Any] = {
        "model": {"class_type": "UNETLoader", "inputs": {"unet_name": files.TRANSFORMER, "weight_dtype": "default"}},
        "clip": {"class_type": "CLIPLoader", "inputs": {"clip_name": files.TEXT, "type": "flux2"}},
        "vae": {"class_type": "VAELoader", "inputs": {"vae_name": files.AUTOENCODER}},
        "positive": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["clip", 0], "text": SENTENCE}},
        "negative": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["clip", 0], "text": ""}},
        "empty": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
    }
    ends = {"positive": "positive", "negative": "negative"}
    for number, name in enumerate(pictures):
        nodes[f"image {number}"] = {"class_type": "LoadImage", "inputs": {"image": name}}
        nodes[f"latent {number}"] = {"class_type": "VAEEncode", "inputs": {"pixels": [f"image {number}", 0], "vae": ["vae", 0]}}
        for half, end in ends.items():
            inputs = {"conditioning": [end, 0], "latent": [f"latent {number}", 0]}
            ends[half] = f"{half} {number}"
            nodes[ends[half]] = {"class_type": "ReferenceLatent", "inputs": inputs}
    sampling = {"seed": seed, "steps": steps, "cfg": cfg, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    links = {"model": ["model", 0], "positive": [ends["positive"], 0], "negative": [ends["negative"], 0], "latent_image": ["empty", 0]}
    nodes["sample"] = {"class_type": "KSampler", "inputs": {**sampling, **links}}
    nodes["decode"] = {"class_type": "VAEDecode", "inputs": {"samples": ["sample", 0], "vae": ["vae", 0]}}
    nodes["save"] = {"class_type": "SaveImage", "inputs": {"images": ["decode", 0], "filename_prefix": "tiny-edit"}}
    return nodes


def test_stock_nodes_paint_what_our_painter_does(server: Server, tmp_path: Path) -> None:
    tiny_edit_world.random_weights(tmp_path)
    written = files.write(tmp_path, tmp_path / "files")
    for file, kind in zip(written, ("diffusion_models", "text_encoders", "vae"), strict=True):
        server.add_model(kind, file)
    references = []
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 255, (4, 4, 3), dtype=np.uint8)
        picture = Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC)
        picture.save(server.input / f"tiny-edit-{number}.png")
        references.append(torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 255)
    result = server.run(graph(["tiny-edit-0.png", "tiny-edit-1.png"], seed=11, steps=4, cfg=2.0))
    saved = server.file_of(result.outputs["save"]["images"][0])
    found = torch.from_numpy(np.array(Image.open(saved).convert("RGB"))).permute(2, 0, 1) / 255
    networks = train.Networks(text.Vocabulary.load(tmp_path))
    networks.flux = tiny_edit_world.flux_of(written[0])
    networks.text = tiny_edit_world.text_of(written[1], tmp_path)
    own = painter.Painter(networks.eval(), latents.Latents.load(tmp_path), text.Vocabulary.load(tmp_path), torch.device("cpu"))
    expected = own.paint([SENTENCE], references, seed=11, size=64, steps=4, cfg=2.0, spacing=1)[0]
    assert expected.std() > 0.02
    assert (found - expected).abs().mean() < 0.02
