"""Folders of images, labels in files, and what looks wrong of either."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import graphprune as gp
from graphprune.calibration.images import Images
from graphprune.errors import DataError, RecipeError

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 12, 3)).astype(np.uint8)


class Net(nn.Module):
    """Of images, channels first or last."""

    def __init__(self, last: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head, self.last = nn.Conv2d(3, 8, 3), nn.Linear(8, 2), last

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.permute(0, 3, 1, 2) if self.last else x
        return self.head(torch.relu(self.conv(x)).mean((2, 3)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, pixels in enumerate(PIXELS):
        place = tmp_path / "images" / ("cats", "dogs")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{number}.png")
    return tmp_path / "images"


def load(data, size=(8, 12), last=False, **options) -> gp.Program:
    shape = (2, *size, 3) if last else (2, 3, *size)
    return gp.load(
        Net(last).eval(), torch.randn(shape, generator=torch.Generator().manual_seed(0)), data=data, **options
    )


ORDER = [0, 2, 4, 1, 3, 5]  # by folder


def test_mean_and_std_are_those_of_training(folder: Path) -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    want = (PIXELS[ORDER] / 255 - mean) / std
    (found,) = load(folder, images=Images(mean, std)).data[0]
    np.testing.assert_allclose(found, want.transpose(0, 3, 1, 2), atol=1e-5)
    (raw,) = load(folder, images=Images((123.0,), (58.0,))).data[0]  # of 0 to 255
    np.testing.assert_allclose(raw, ((PIXELS[ORDER] - 123.0) / 58.0).transpose(0, 3, 1, 2), atol=1e-5)
    (plain,) = load(folder).data[0]
    np.testing.assert_allclose(plain, (PIXELS[ORDER] / 255).transpose(0, 3, 1, 2), atol=1e-6)


def test_channels_last(folder: Path) -> None:
    (found,) = load(folder, last=True).data[0]
    np.testing.assert_allclose(found, PIXELS[ORDER] / 255, atol=1e-6)
    assert np.array_equal(load(folder, last=True, images=Images(layout="NHWC")).data[0][0], found)


def test_resize_cuts_out_the_middle(folder: Path) -> None:
    (found,) = load(folder, (8, 8), images=Images(resize=8)).data[0]
    np.testing.assert_allclose(found[0], (PIXELS[0][:, 2:10] / 255).transpose(2, 0, 1), atol=1e-6)
    assert load(folder, (4, 4)).data[0][0].shape == (6, 3, 4, 4)  # stretched
    with pytest.raises(DataError, match="resize=6 is less than the model's 8x8"):
        load(folder, (8, 8), images=Images(resize=6))


def test_the_report_keeps_it(folder: Path) -> None:
    images = Images((0.5,), (0.5,), resize=16)
    report = gp.compile(Net().eval(), torch.randn(2, 3, 8, 12), data=str(folder), images=images, measure=False).report
    assert report["images"] == {"mean": (0.5,), "std": (0.5,), "layout": "", "resize": 16}
    with pytest.raises(DataError, match="are for a folder of images"):
        load(np.zeros((4, 3, 8, 12), np.float32), images=images)
    for wrong, says in (({"mean": (1.0, 2.0)}, "mean has 2 numbers"), ({"std": (0.0,)}, "divides by nothing")):
        with pytest.raises(DataError, match=says):
            Images(**wrong)


# ---- labels ------------------------------------------------------------------------------------------

X = np.random.default_rng(1).normal(size=(12, 3, 8, 12)).astype(np.float32)
Y = np.arange(12) % 2
TAYLOR = "group,score{by=taylor},mask{channels=0.5x},propagate"


def taylor(data, loss="cross_entropy") -> np.ndarray:
    program = load(data, loss=loss)
    from graphprune.ir.facts import Groups, Scores

    scored = gp.run("group,score{by=taylor}", program)
    (group,) = scored.fact(Groups)
    return scored.fact(Scores)[group]


def test_labels_in_files_are_those_of_arrays(tmp_path: Path, folder: Path) -> None:
    want = taylor((X, Y), nn.functional.cross_entropy)
    np.savez(tmp_path / "both.npz", x=X, labels=Y)
    np.savez(tmp_path / "other.npz", pictures=X, y=Y)
    (tmp_path / "each").mkdir()
    for number in range(12):
        np.savez(tmp_path / "each" / f"{number:02}.npz", x=X[number], y=Y[number])
    for name in ("both.npz", "other.npz", "each"):
        np.testing.assert_allclose(taylor(tmp_path / name), want, rtol=1e-5)
    classes = np.array([0, 0, 0, 1, 1, 1])
    images = (PIXELS[ORDER] / 255).transpose(0, 3, 1, 2).astype(np.float32)
    np.testing.assert_allclose(taylor(folder), taylor((images, classes)), rtol=1e-5)


def test_labels_that_nothing_reads_are_told(tmp_path: Path) -> None:
    np.savez(tmp_path / "both.npz", x=X, labels=Y, more=Y)
    program = load(tmp_path / "both.npz")
    assert any(
        "no input reads `labels`, `more` of the data; labels are read by a loss" in note for note in program.notes
    )
    np.savez(tmp_path / "unnamed.npz", pictures=X, labels=Y)
    assert any("no input reads `labels`" in note for note in load(tmp_path / "unnamed.npz").notes)
    assert not load({"x": X}).notes


def test_a_loss_that_cannot_be(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=X)
    with pytest.raises(DataError, match="the calibration data has no more"):
        load(tmp_path / "x.npz", loss="cross_entropy")
    with pytest.raises(DataError, match="unknown loss `crossentropy`") as caught:
        load((X, Y), loss="crossentropy")
    assert "did you mean `cross_entropy`?" in caught.value.hint
    with pytest.raises(DataError, match="needs calibration data with labels"):
        load(None, loss="mse")
    with pytest.raises(RecipeError, match="no pass of the recipe reads it"):
        gp.compile(Net().eval(), torch.randn(2, 3, 8, 12), data=(X, Y), loss="cross_entropy")


# ---- what looks wrong ----------------------------------------------------------------------------------


def test_the_other_layout_is_named() -> None:
    with pytest.raises(DataError, match="takes Nx3x8x12, the calibration array is 6x8x12x3") as caught:
        load(PIXELS.astype(np.float32))
    assert "looks like NHWC" in caught.value.hint and "(0, 3, 1, 2)" in caught.value.hint
    with pytest.raises(DataError) as caught:
        load(X, last=True)
    assert "looks like NCHW" in caught.value.hint


def test_raw_pixels_are_told() -> None:
    raw = PIXELS.transpose(0, 3, 1, 2).astype(np.float32)
    (note,) = load(raw).notes
    assert "whole numbers from 0 to 255" in note and "--mean" in note
    assert not load(raw / 255).notes and not load(raw - 128).notes

    class Scaled(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x / 255)

    assert not gp.load(Scaled().eval(), torch.randn(2, 3, 8, 12), data=raw).notes
    assert not gp.load(Net().eval(), 255 * torch.rand(2, 3, 8, 12), data=raw).notes
