"""Image files as arrays that a network takes: sizes, layout, and the numbers that pixels become."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import DataError
from ..ir.graph import Value
from ..ir.host import Array

LAYOUTS = ("NCHW", "NHWC")


@dataclass(frozen=True)
class Images:
    """How a folder of images becomes arrays. ``mean`` and ``std``: of each channel (or one for all), subtracted and
    divided by; of pixels from 0 to 1, or of 0 to 255 where any is above 1. ``layout``: NCHW or NHWC, by default where
    the model has an axis of 1 or 3. ``resize``: the shorter side becomes so many pixels and the middle is cut out;
    by default images are stretched to the model's size. Raises DataError for what is none of these."""

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    layout: str = ""
    resize: int = 0

    def __post_init__(self) -> None:
        if self.layout not in ("", *LAYOUTS):
            raise DataError(f"layout={self.layout} is none of images", f"one of: {', '.join(LAYOUTS)}")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if not isinstance(values, Sequence):
                raise DataError(f"{name}={values} is not numbers, one for each channel", f"{name}=({values},)")
            if len(values) not in (0, 1, 3):
                raise DataError(f"{name} has {len(values)} numbers", "give one for each channel: 3, or 1")
        if self.std and not min(self.std) > 0:
            raise DataError(f"std={min(self.std):g} divides by nothing", "give what pixels are divided by, above 0")
        if self.resize < 0:
            raise DataError(f"resize={self.resize} is no size", "give the pixels of the shorter side, such as 256")

    def read(self, file: Path, value: Value, shape: Sequence[object]) -> Array:
        """One image, without the batch axis, for an input of ``shape`` (open axes as text). Raises DataError."""
        from PIL import Image

        layout = self.layout or next((one for one in LAYOUTS if _channels(one, shape) in (1, 3)), "")
        channels = _channels(layout, shape) if layout else None
        if channels not in (1, 3) and self.layout:
            raise DataError(f"{file}: as {layout} `{value.name}` has {channels} channels", "is it the other layout?")
        if channels not in (1, 3):
            raise DataError(
                f"{file}: the model takes no images", f"`{value.name}` is {'x'.join(map(str, shape))}; write .npy files"
            )
        size = shape[2:] if layout == "NCHW" else shape[1:3]
        if not all(isinstance(n, int) for n in size):
            said = f"1x{channels}x224x224" if layout == "NCHW" else f"1x224x224x{channels}"
            raise DataError(
                f"{file}: the model leaves the size of its images open",
                f"say which: --input {value.name}={said}, or write .npy files",
            )
        height, width = (int(str(n)) for n in size)
        try:
            with Image.open(file) as image:
                fitted = self._fitted(image.convert("RGB" if channels == 3 else "L"), width, height)
        except OSError as error:
            raise DataError(f"{file}: not an image ({error})", "remove it from the folder") from error
        pixels = self._normalised(np.asarray(fitted, np.float32).reshape(height, width, channels))
        return pixels.transpose(2, 0, 1) if layout == "NCHW" else pixels

    def _fitted(self, image: object, width: int, height: int) -> object:
        from PIL import Image

        assert isinstance(image, Image.Image)
        if not self.resize:
            return image.resize((width, height))
        if self.resize < max(width, height):
            raise DataError(
                f"resize={self.resize} is less than the model's {height}x{width}",
                f"give {max(width, height)} or more, or leave it out",
            )
        scale = self.resize / min(image.size)
        larger = image.resize((max(width, round(image.width * scale)), max(height, round(image.height * scale))))
        left, top = (larger.width - width) // 2, (larger.height - height) // 2
        return larger.crop((left, top, left + width, top + height))

    def _normalised(self, pixels: Array) -> Array:
        """From 0..255 to what the network was trained on."""
        scale = 1 if max((*self.mean, *self.std), default=0) > 1 else 255
        mean, std = np.array(self.mean or (0,), np.float32), np.array(self.std or (1,), np.float32)
        return np.asarray((pixels / np.float32(scale) - mean) / std)


def _channels(layout: str, shape: Sequence[object]) -> object:
    return shape[1 if layout == "NCHW" else 3] if len(shape) == 4 else None
