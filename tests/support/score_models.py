"""CLIP, DINO, LPIPS and Inception of random weights for tests, in the files and folders that the real ones come in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torchvision
import transformers

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def _spread(network: Any, seed: int) -> None:
    """Weights so large that pictures are told apart."""
    generator = torch.Generator().manual_seed(seed)
    for _, weight in sorted(network.named_parameters()):
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.2, generator=generator)


def clip_folder(folder: Path, size: int = 32) -> Path:
    """A CLIP of 32 px whose tokenizer knows letters."""
    folder.mkdir(parents=True)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{one}</w>" for one in letters)]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer: Any = transformers.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    tokenizer.save_pretrained(folder)
    text = SMALL | {"vocab_size": len(words), "max_position_embeddings": 20, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    vision = SMALL | {"image_size": size, "patch_size": 8}
    torch.manual_seed(3)  # class embeddings are no matrices
    network: Any = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
    _spread(network, 3)
    network.save_pretrained(folder)
    processor: Any = transformers.CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    processor.save_pretrained(folder)
    return folder


def dino_folder(folder: Path, kind: str = "vit", size: int = 32) -> Path:
    """A DINO ("vit") or a DINOv2 ("dinov2") of 32 px."""
    folder.mkdir(parents=True)
    sizes: dict[str, Any] = {name: value for name, value in SMALL.items() if name != "intermediate_size"}
    torch.manual_seed(4)
    if kind == "vit":
        network: Any = transformers.ViTModel(transformers.ViTConfig(**sizes, image_size=size, patch_size=8), add_pooling_layer=False)
    else:
        network = transformers.Dinov2Model(transformers.Dinov2Config(**sizes, image_size=size, patch_size=8))
    _spread(network, 4)
    network.save_pretrained(folder)
    processor: Any = transformers.ViTImageProcessor(size={"height": size, "width": size})
    processor.save_pretrained(folder)
    return folder


def alexnet_file(file: Path) -> Path:
    """torchvision's AlexNet, without the classifier that LPIPS has no use for (55 of its 61 million weights)."""
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(5)
    state = torchvision.models.alexnet(weights=None).state_dict()
    torch.save({name: weight for name, weight in state.items() if name.startswith("features.")}, file)
    return file


def inception_file(file: Path) -> Path:
    """torch-fidelity's Inception; its own constructor would fetch weights, so its layers are filled without it."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    file.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(6)
    kept: dict[str, torch.Tensor] = {}

    class Shapes(FeatureExtractorInceptionV3):
        def load_state_dict(self, *_: Any, **__: Any) -> Any:
            for name, value in self.state_dict().items():
                if value.ndim > 1:  # Kaiming's spread, so that signals neither die nor grow
                    value.normal_(std=(2 / value[0].numel()) ** 0.5)
                kept[name] = value.clone()

    empty = file.with_suffix(".empty")
    torch.save({}, empty)
    with torch.no_grad():
        Shapes("shapes", ["2048"], str(empty))
    empty.unlink()
    torch.save(kept, file)
    return file


def coarse(count: int, height: int = 40, width: int = 60, seed: int = 0) -> torch.Tensor:
    """A batch [B, H, W, 3] of coarse coloured patches, as different as a small network needs them; whole numbers of 255."""
    generator = torch.Generator().manual_seed(seed)
    patches = torch.rand(count, 3, 4, 4, generator=generator)
    large = torch.nn.functional.interpolate(patches, (height, width), mode="nearest").permute(0, 2, 3, 1)
    return (large * 255).round() / 255
