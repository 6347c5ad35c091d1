"""The trained CIFAR-10 networks and images of ../shared/data (see its README), for benchmarks and tests."""

from __future__ import annotations

import importlib.util
import io
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

DATA = Path(os.environ.get("GRAPHPRUNE_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
TRAINED = ("resnet20", "resnet32", "resnet56", "densenet40")
MEAN, STD = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)


def images(part: str, chosen: Any = None) -> tuple[Any, Any]:
    """All of ``"train"`` or ``"test"``, or those ``chosen`` by number: uint8 (N, 32, 32, 3), labels (N,)."""
    from PIL import Image

    with zipfile.ZipFile(DATA / f"cifar10_jpeg_{part}.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".jpg"))
        classes = sorted({name.split("/")[-2] for name in names})
        names = names if chosen is None else [names[k] for k in chosen]
        pixels = np.stack([np.asarray(Image.open(io.BytesIO(archive.read(name)))) for name in names])
    return pixels, np.array([classes.index(name.split("/")[-2]) for name in names])


def normalised(pixels: Any) -> Any:
    """float32 (N, 3, 32, 32), as the networks take it."""
    return np.ascontiguousarray(((pixels.astype(np.float32) / 255 - MEAN) / STD).transpose(0, 3, 1, 2))


TRAIN_IMAGES = 50_000


def calibration(count: int = 512, seed: int = 0) -> tuple[Any, Any]:
    """A random sample of the training images, normalised, with labels."""
    pixels, labels = images("train", np.random.default_rng(seed).choice(TRAIN_IMAGES, count, replace=False))
    return normalised(pixels), labels


def network(name: str) -> torch.nn.Module:
    from safetensors.torch import load_file

    spec = importlib.util.spec_from_file_location("cifar_nets", DATA / "cifar_nets.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    net: torch.nn.Module = module.NETS[name]()
    net.load_state_dict(load_file(DATA / f"{name}_cifar10.safetensors"))
    return net.eval()


@torch.no_grad()
def accuracy(model: torch.nn.Module, x: Any, labels: Any, batch: int = 250) -> float:
    """In percent."""
    right = 0
    for k in range(0, len(x), batch):
        right += int((model(torch.from_numpy(x[k : k + batch])).argmax(1).numpy() == labels[k : k + batch]).sum())
    return 100 * right / len(x)
