"""Load Poseable Subjects: what belongs together comes together, and what does not is said."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from maskprompt.conditioning import handles
from maskprompt.conditioning.handles import Handle
from maskprompt.models import files
from maskprompt.models.mcgm import bundle, mask_encoder
from maskprompt.models.mcgm import file as mask_encoder_file
from maskprompt.models.mcgm.file import FOLDER, About, LoadedEncoder
from maskprompt.nodes.mcgm import NO_FILES, LoadMCGM
from safetensors.torch import save_file

from ...support.mask_encoders import blobs
from ...support.mcgm import WIDTH, encoded, painted, passes, text


@pytest.fixture
def clip(tmp_path: Path) -> Any:
    """The tiny model's CLIP, which finds embeddings in the folder of `models`."""
    import comfy.sd

    from demo import registration, tiny_model

    registration.register()
    place = str(tmp_path / "models" / "embeddings")
    return comfy.sd.load_checkpoint_guess_config(
        str(tiny_model.CHECKPOINT), output_vae=False, output_model=False, embedding_directory=[place]
    )[1]


def trained(root: Path, clip: Any, lora: dict[str, torch.Tensor] | None = None, name: str = "fox", width: int = WIDTH) -> About:
    """The files that a training leaves, in ComfyUI's folders. The handles are the vectors of their own words."""
    import folder_paths

    for kind in ("embeddings", "loras", FOLDER):
        files.register_folder(kind)
        (root / "models" / kind).mkdir(exist_ok=True)
    table = clip.cond_stage_model.clip_l.transformer.get_input_embeddings().weight
    known: list[Handle] = []
    for word in ("cat", "dog"):
        ids = [token for token, _ in clip.tokenize(word)["l"][0]]
        vectors = {"l": table[ids[1:2]].float()}
        handles.save(str(root / "models" / "embeddings"), f"{name}-{word}", vectors, word)
        known.append(Handle(f"{name}-{word}", word, handles.fingerprint(vectors)))
    about = About(tuple(known), f"{name}.safetensors" if lora else "", "tiny")
    if lora:
        save_file(lora, root / "models" / "loras" / f"{name}.safetensors")
    mask_encoder_file.save(mask_encoder.fresh(width), about, str(root / "models" / FOLDER / f"{name}.safetensors"))
    folder_paths.filename_list_cache.clear()
    return about


def test_load_mcgm_brings_together_what_belongs_together(model: Any, clip: Any, folders: Path, caplog: Any) -> None:
    about = trained(folders, clip)
    assert LoadMCGM.validate_inputs("fox.safetensors") is True
    with caplog.at_level(logging.WARNING):
        found = LoadMCGM.execute(model, clip, "fox.safetensors").args
    assert not caplog.records
    assert found[0] is model
    assert found[1] is clip
    assert found[2].about == about
    assert found[3] == "embedding:fox-cat and embedding:fox-dog"
    # The handles through the stock text encoder: these have their words' own vectors, so they say what the words say.
    prompt = f"a photo of {found[3]}"
    as_handles, as_words = (clip.encode_from_tokens_scheduled(clip.tokenize(said)) for said in (prompt, "a photo of cat and dog"))
    torch.testing.assert_close(as_handles[0][0], as_words[0][0], atol=1e-5, rtol=1e-5)
    result = encoded(blobs(2, 128, 128), as_handles, as_words, found[2], prompt=prompt)
    assert len(passes(found[0], result)) == 1
    schema: Any = LoadMCGM.define_schema().inputs[2]
    assert schema.options == ["fox.safetensors"]


def test_load_mcgm_puts_the_lora_on(model: Any, clip: Any, folders: Path) -> None:
    """Found in a subfolder too; strength 0 needs no file. The given MODEL stays as it is."""
    name = "diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_v"
    width = model.get_model_object("diffusion_model").middle_block[1].transformer_blocks[0].attn2.to_v.weight.shape[0]
    lora = {
        f"{name}.lora_up.weight": torch.randn(width, 2),
        f"{name}.lora_down.weight": torch.randn(2, WIDTH),
        f"{name}.alpha": torch.tensor(2.0),
    }
    trained(folders, clip, lora)
    plain = painted(model, ([text(1)], [text(2)]))
    loras = folders / "models" / "loras"
    for place in ("", "mine"):
        (loras / place).mkdir(exist_ok=True)
        os.replace(loras / "fox.safetensors", loras / place / "fox.safetensors")
        changed, _, loaded, _ = LoadMCGM.execute(model, clip, "fox.safetensors").args
        assert loaded.about.lora == "fox.safetensors"
        assert f"{name}.weight" in changed.patches
        assert (painted(changed, ([text(1)], [text(2)])) - plain).abs().max() > 1e-3
    assert torch.equal(painted(model, ([text(1)], [text(2)])), plain)
    os.remove(loras / "mine" / "fox.safetensors")
    with pytest.raises(ValueError, match=r"trained with the LoRA 'fox.safetensors', of which there is no file .*lora_strength to 0"):
        LoadMCGM.execute(model, clip, "fox.safetensors")
    assert LoadMCGM.execute(model, clip, "fox.safetensors", 0.0).args[0] is model


def test_load_mcgm_says_what_does_not_belong_together(model: Any, clip: Any, folders: Path, caplog: Any) -> None:
    class Flux:
        def get_model_object(self, name: str) -> torch.nn.Module:
            return torch.nn.Linear(2, 2)

    trained(folders, clip)
    trained(folders, clip, name="xl", width=2048)
    embeddings = folders / "models" / "embeddings"
    with pytest.raises(ValueError, match=r"'xl.safetensors' was trained for text of width 2048 \(SDXL\); this model's text has width 128"):
        LoadMCGM.execute(model, clip, "xl.safetensors")
    with pytest.raises(ValueError, match="not a UNet"):
        LoadMCGM.execute(Flux(), clip, "fox.safetensors")
    with pytest.raises(ValueError, match="no text encoder was given"):
        LoadMCGM.execute(model, None, "fox.safetensors")
    handles.save(str(embeddings), "fox-dog", {"l": torch.randn(1, WIDTH)}, "dog")
    with caplog.at_level(logging.WARNING):
        LoadMCGM.execute(model, clip, "fox.safetensors")
    assert "'fox-dog' is not the one that was trained with 'fox.safetensors'" in caplog.text
    handles.save(str(embeddings), "fox-dog", {"l": torch.randn(1, 768), "g": torch.randn(1, 1280)}, "dog")
    with pytest.raises(ValueError, match=r"'fox-dog' is for another text encoder: it has \d+ where this one .clip_l. needs 128"):
        LoadMCGM.execute(model, clip, "fox.safetensors")
    (embeddings / "fox-dog.safetensors").unlink()
    with pytest.raises(ValueError, match=r"'fox-dog', which the text encoder does not find. Put the file fox-dog.safetensors into"):
        LoadMCGM.execute(model, clip, "fox.safetensors")
    assert "There is no file 'owl.safetensors'" in str(LoadMCGM.validate_inputs("owl.safetensors"))
    assert "fox.safetensors, xl.safetensors" in str(LoadMCGM.validate_inputs("owl.safetensors"))


def test_a_training_under_the_same_name_is_loaded_anew(clip: Any, folders: Path) -> None:
    about = trained(folders, clip)
    stamps = [LoadMCGM.fingerprint_inputs("fox.safetensors")]
    assert LoadMCGM.fingerprint_inputs("fox.safetensors", lora_strength=1.0) == stamps[0]
    for path in (folders / "models" / "embeddings" / "fox-dog.safetensors", folders / "models" / FOLDER / "fox.safetensors"):
        os.utime(path, (1, 1))
        stamps.append(LoadMCGM.fingerprint_inputs("fox.safetensors"))
    assert len(set(stamps)) == 3
    (folders / "models" / FOLDER / "fox.safetensors").write_bytes(b"no file")
    assert LoadMCGM.fingerprint_inputs("fox.safetensors") not in stamps
    assert bundle.words(LoadedEncoder(mask_encoder.fresh(4), about, "")) == "embedding:fox-cat and embedding:fox-dog"


def test_the_list_without_files_says_where_they_go(folders: Path) -> None:
    schema: Any = LoadMCGM.define_schema().inputs[2]
    assert schema.options == [NO_FILES]
    assert "Train Poseable Subjects writes such files" in str(LoadMCGM.validate_inputs(NO_FILES))
