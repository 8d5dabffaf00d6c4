"""What the papers report, number by number, with the place where it stands; what they do not report is not here."""

from __future__ import annotations

from dataclasses import dataclass

Row = dict[str, float]


@dataclass(frozen=True)
class Published:
    """A table of a paper: its name there, what it is measured on, each method's scores by our names, and the settings that it states."""

    title: str
    source: str
    data: str
    rows: dict[str, Row]
    settings: str


DREAMCOM_MURECOM = Published(
    "DreamCom on MureCom", "Lu et al., DreamCom, Table 2", "murecom",
    {
        "ObjectStitch": {"DINO": 0.502, "CLIP-I": 0.762, "LPIPS": 0.150, "SSIM": 0.736},
        "PbE": {"DINO": 0.414, "CLIP-I": 0.733, "LPIPS": 0.172, "SSIM": 0.708},
        "DreamEdit": {"DINO": 0.301, "CLIP-I": 0.657, "LPIPS": 0.232, "SSIM": 0.692},
        "DreamCom": {"DINO": 0.584, "CLIP-I": 0.778, "LPIPS": 0.174, "SSIM": 0.731},
        "DreamCom without masked cross-attention": {"DINO": 0.566, "CLIP-I": 0.771},
        "DreamCom without masked self-attention": {"DINO": 0.573, "CLIP-I": 0.775},
        "DreamCom without both": {"DINO": 0.546, "CLIP-I": 0.764},
    },
    "SD 1.5 inpainting; all weights, 400 steps at 5e-6, batch 1, 512 px, \"a photo of sks <class>\"; five pictures for each case",
)  # fmt: skip
DREAMCOM_DREAMEDIT = Published(
    "DreamCom on DreamEditBench", "Lu et al., DreamCom, Table 1", "dreameditbench",
    {
        "ObjectStitch": {"DINO": 0.599, "CLIP-I": 0.801, "LPIPS": 0.141, "SSIM": 0.764},
        "PbE": {"DINO": 0.514, "CLIP-I": 0.768, "LPIPS": 0.149, "SSIM": 0.755},
        "DreamEdit": {"DINO": 0.490, "CLIP-I": 0.733, "LPIPS": 0.207, "SSIM": 0.740},
        "DreamCom": {"DINO": 0.669, "CLIP-I": 0.805, "LPIPS": 0.154, "SSIM": 0.776},
    },
    DREAMCOM_MURECOM.settings,
)  # fmt: skip
MASK_CONTROLNET = Published(
    "Mask-ControlNet on the DreamBooth set", "Mask-ControlNet, Tables 1, 2 and 4", "dreambooth",
    {
        "DreamBooth": {"CLIP-T": 0.171, "CLIP-I": 0.828, "DINO": 0.527},
        "ControlNet + LoRA": {
            "CLIP-T": 0.173, "CLIP-I": 0.873, "DINO": 0.607, "FID": 6.161, "PSNR": 28.06, "SSIM": 0.957, "LPIPS": 0.031,
        },
        "Outpainting": {"CLIP-T": 0.166, "CLIP-I": 0.849, "DINO": 0.423},
        "Mask-ControlNet": {
            "CLIP-T": 0.175, "CLIP-I": 0.858, "DINO": 0.593, "FID": 5.172, "PSNR": 30.67, "SSIM": 0.958, "LPIPS": 0.022,
        },
        "Mask-ControlNet without mask prompts": {"CLIP-I": 0.812, "DINO": 0.386},
        "Real images": {"CLIP-T": 0.176, "CLIP-I": 0.885, "DINO": 0.774},
    },
    "about 130,000 pictures and 300,000 masks to train on; no number of steps is stated",
)  # fmt: skip
MECA = Published(
    "Patch-enhanced mask encoder prompt against COCO", "Patch-enhanced Mask Encoder Prompt, Table 1 (FID(coco))", "coco",
    {
        "ControlNet, SDXL, text": {"FID": 332.38}, "Uni-ControlNet, image": {"FID": 330.13}, "IP-Adapter-plus, image": {"FID": 347.02},
        "Ours, image": {"FID": 317.44}, "Uni-ControlNet, image and text": {"FID": 324.60},
        "IP-Adapter-plus, image and text": {"FID": 349.73}, "Ours, image and text": {"FID": 317.13},
    },
    "SDXL, OpenCLIP ViT-H/14; DDIM, 30 steps, guidance 7.5; 512 px",
)  # fmt: skip
MCGM = Published(
    "MCGM", "Skaik et al., MCGM, Fig. 10", "folder", {"MCGM": {"preferred, %": 91.3}, "Break-a-Scene": {"preferred, %": 8.7}},
    "a study of 82 people, eight pairs; no score is reported. SD 2.1; 400 and 400 steps",
)  # fmt: skip
TABLES: dict[str, tuple[Published, ...]] = {
    "dreamcom": (DREAMCOM_MURECOM, DREAMCOM_DREAMEDIT), "mask-controlnet": (MASK_CONTROLNET,), "meca": (MECA,), "mcgm": (MCGM,),
}  # fmt: skip
