"""PSNR, SSIM and LPIPS against known values, scikit-image and torchmetrics; FID and IS against SciPy, torchmetrics and known sets."""

from __future__ import annotations

import math
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import skimage.metrics
import torch
from maskprompt.models.scores import libraries, pairs, pictures, sets

from ...support.score_models import alexnet_file, coarse, inception_file


@pytest.fixture(scope="module")
def alexnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return alexnet_file(tmp_path_factory.mktemp("lpips") / "alexnet-owt-7be5be79.pth")


@pytest.fixture(scope="module")
def inception(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return inception_file(tmp_path_factory.mktemp("inception") / "weights-inception-2015-12-05-6726825d.pth")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("a score reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_psnr_of_a_known_error() -> None:
    picture = torch.full((7, 9, 3), 0.5)
    assert pairs.psnr(picture + 0.1, picture) == pytest.approx(20.0, abs=1e-5)  # 10 log10(1 / 0.1^2)
    assert pairs.psnr(picture, picture) == math.inf


def test_psnr_inside_a_mask() -> None:
    """An error that only half of the picture has: 3 dB more over all of it, all of it inside, none outside."""
    picture, changed = torch.full((8, 10, 3), 0.5), torch.full((8, 10, 3), 0.5)
    changed[:, :5] += 0.1
    left = torch.zeros(8, 10)
    left[:, :5] = 1
    assert pairs.psnr(changed, picture) == pytest.approx(20.0 + 10 * math.log10(2), abs=1e-5)
    assert pairs.psnr(changed, picture, left) == pytest.approx(20.0, abs=1e-5)
    assert pairs.psnr(changed, picture, 1 - left) == math.inf


_similarity: Any = skimage.metrics.structural_similarity
_square_root: Any = scipy.linalg.sqrtm


def _skimage(one: torch.Tensor, other: torch.Tensor) -> np.ndarray:
    """scikit-image's map [H, W], with the window that SSIM's paper has."""
    _, every = _similarity(
        one.double().numpy(), other.double().numpy(), data_range=1.0, channel_axis=-1, gaussian_weights=True, sigma=1.5,
        use_sample_covariance=False, full=True,
    )  # fmt: skip
    return every.mean(-1)


def test_ssim_is_scikit_images() -> None:
    """Inside a mask that stays 5 pixels off the border, where each fills its windows up in its own way."""
    torch.manual_seed(0)
    one = coarse(1, 33, 47)[0]
    other = (one + 0.2 * torch.randn_like(one)).clamp(0, 1)
    mask = torch.zeros(33, 47)
    mask[5:-5, 5:20] = 1
    expected = _skimage(one, other)[5:-5, 5:20].mean()
    assert pairs.ssim(one, other, mask) == pytest.approx(expected, abs=1e-6)
    assert pairs.ssim(one, one) == pytest.approx(1.0, abs=1e-9)


def test_ssim_without_a_mask_is_torchmetrics_own() -> None:
    one, other = coarse(1, 20, 24)[0], coarse(1, 20, 24, seed=1)[0]
    own = libraries.torchmetrics().structural_similarity_index_measure(*(pictures.batch_of([x]) for x in (one, other)), data_range=1.0)
    assert pairs.ssim(one, other) == pytest.approx(float(own), abs=1e-5)
    assert pairs.ssim(one, other, torch.ones(20, 24)) == pytest.approx(float(own), abs=1e-5)


def test_lpips_is_torchmetrics_own(alexnet: Path) -> None:
    """The same network with torchvision's weights put in by torchvision's own order of layers."""
    network = pairs.load_lpips(str(alexnet))
    own = libraries.lpips()(net="alex", pnet_rand=True)
    layers = torch.load(alexnet, weights_only=True)
    for part, place in ((1, 0), (2, 3), (3, 6), (4, 8), (5, 10)):
        for kind in ("weight", "bias"):
            getattr(getattr(own.net, f"slice{part}")._modules[str(place)], kind).data.copy_(layers[f"features.{place}.{kind}"])
    one, other = coarse(1, 64, 80)[0], coarse(1, 64, 80, seed=1)[0]
    expected = float(own(*(pictures.batch_of([x]) for x in (one, other)), normalize=True))
    assert expected > 1e-4
    assert network.distance(one, other) == pytest.approx(expected, rel=1e-5)
    assert network.distance(one, one) == 0.0
    assert expected == pytest.approx(network.distance(other, one), rel=1e-5)


def test_lpips_counts_inside_a_mask(alexnet: Path) -> None:
    network = pairs.load_lpips(str(alexnet))
    one = coarse(1, 128, 128)[0]
    other = one.clone()
    other[:, 100:] = coarse(1, 128, 28, seed=2)[0]
    left, right = torch.zeros(128, 128), torch.zeros(128, 128)
    left[:, :32], right[:, 96:] = 1, 1
    assert network.distance(one, other, right) > 10 * network.distance(one, other, left)


def test_identical_sets_have_no_distance(inception: Path) -> None:
    network = sets.load_inception(str(inception))
    done: list[int] = []
    seen = network.see([*coarse(3), *coarse(2, 30, 30, seed=5)], done.append)
    assert done == [1, 2, 3, 4, 5]
    assert seen.features.std(0).max() > 0.01
    assert sets.frechet_distance(seen.features, seen.features) < 1e-6 * float(seen.features.square().sum())
    assert sets.frechet_distance(seen.features, seen.features.flip(0)) < 1e-6 * float(seen.features.square().sum())
    assert sets.frechet_distance(seen.features[:3], seen.features[2:]) > 0.01


def test_inception_is_torch_fidelitys_own(inception: Path) -> None:
    network, _ = libraries.inception()
    own = network("own", ["2048", "logits_unbiased"], str(inception))
    pictures_ = coarse(2, 50, 70)
    features, logits = own((pictures_ * 255).round().byte().movedim(-1, 1))
    seen = sets.load_inception(str(inception)).see(list(pictures_))
    torch.testing.assert_close(seen.features, features, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(seen.logits, logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("first", "second", "width"), [(40, 30, 8), (5, 7, 12), (9, 30, 8)])
def test_frechet_distance_is_scipys(first: int, second: int, width: int) -> None:
    """The textbook's formula with a square root of a matrix, for more and for fewer pictures than features."""
    generator = np.random.default_rng(0)
    one, other = generator.normal(size=(first, width)), generator.normal(0.3, 1.4, size=(second, width))
    covariances = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    root = _square_root(covariances[0] @ covariances[1]).real
    expected = ((one.mean(0) - other.mean(0)) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)
    found = sets.frechet_distance(torch.from_numpy(one), torch.from_numpy(other))
    assert found == pytest.approx(expected, rel=1e-4)


def test_frechet_distance_is_torchmetrics() -> None:
    from torchmetrics.image.fid import FrechetInceptionDistance

    torch.manual_seed(1)
    one, other = torch.randn(60, 16), torch.randn(50, 16) * 1.3 + 0.2
    network: Any = torch.nn.Identity()
    network.num_features = 16
    metric = FrechetInceptionDistance(feature=network)
    metric.update(one, real=True)
    metric.update(other, real=False)
    assert sets.frechet_distance(one, other) == pytest.approx(float(metric.compute()), rel=1e-4)


def test_frechet_distance_of_a_shift_is_its_square() -> None:
    torch.manual_seed(2)
    one = torch.randn(30, 6, dtype=torch.float64)
    assert sets.frechet_distance(one, one + 2) == pytest.approx(6 * 4, rel=1e-9)


def test_inception_score_of_known_sets() -> None:
    """Of sure and evenly spread classes it is their number; of one class, or of no idea at all, 1."""
    sure = torch.eye(4).repeat(5, 1) * 100
    assert sets.inception_score(sure, 1)[0] == pytest.approx(4.0, rel=1e-4)
    assert math.isnan(sets.inception_score(sure, 1)[1])
    assert sets.inception_score(sure[:1].repeat(6, 1), 2) == pytest.approx((1.0, 0.0), abs=1e-5)
    assert sets.inception_score(torch.zeros(6, 4), 2)[0] == pytest.approx(1.0, abs=1e-6)


def test_inception_score_leaves_the_random_state_alone() -> None:
    logits = torch.randn(12, 5)
    state = torch.get_rng_state()
    first = sets.inception_score(logits, 3, seed=7)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    assert sets.inception_score(logits, 3, seed=7) == first


def test_bad_input_is_told() -> None:
    small = torch.rand(4, 4, 3)
    with pytest.raises(ValueError, match=r"4 x 4 pixels are too few for SSIM"):
        pairs.ssim(small, small)
    with pytest.raises(ValueError, match=r"picture 2 and its reference differ in size \(9 x 8 and 7 x 8 pixels\)"):
        pairs.score_pairs([torch.rand(8, 9, 3)] * 2, [torch.rand(8, 9, 3), torch.rand(8, 7, 3)])
    with pytest.raises(ValueError, match=r"images holds 1 pictures and references 2"):
        pairs.score_pairs([torch.rand(8, 9, 3)], [torch.rand(8, 9, 3)] * 2)
    with pytest.raises(ValueError, match=r"picture 1: the mask shows nothing"):
        pairs.score_pairs([torch.rand(8, 9, 3)], [torch.rand(8, 9, 3)], [torch.zeros(8, 9)])
    with pytest.raises(ValueError, match=r"of 1 and 5 pictures there is none"):
        sets.frechet_distance(torch.rand(1, 3), torch.rand(5, 3))
    with pytest.raises(ValueError, match=r"in 4 parts of 3 pictures"):
        sets.inception_score(torch.rand(3, 4), 4)


def test_wrong_files_are_told(tmp_path: Path, alexnet: Path, inception: Path) -> None:
    with pytest.raises(ValueError, match=r"holds neither torchvision's AlexNet nor its VGG-16"):
        pairs.load_lpips(str(inception))
    with pytest.raises(ValueError, match=r"is not the Inception network of FID"):
        sets.load_inception(str(alexnet))
    state = torch.load(alexnet, weights_only=True)
    del state["features.8.bias"]
    torch.save(state, tmp_path / "cut.pth")
    with pytest.raises(ValueError, match=r"lacks weights of the network that LPIPS needs, such as net.slice4.8.bias"):
        pairs.load_lpips(str(tmp_path / "cut.pth"))
    state = torch.load(inception, weights_only=True)
    del state["Mixed_5b.branch1x1.conv.weight"]
    torch.save(state, tmp_path / "part.pth")
    with pytest.raises(ValueError, match=r"does not fit the Inception network"):
        sets.load_inception(str(tmp_path / "part.pth"))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torchmetrics", "torchmetrics.functional.image", "torch_fidelity.feature_extractor_inceptionv3"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(RuntimeError, match=r"SSIM and PSNR need .*pip install torchmetrics"):
        libraries.torchmetrics()
    with pytest.raises(RuntimeError, match=r"FID and IS need .*pip install torchmetrics torch-fidelity"):
        libraries.inception()
