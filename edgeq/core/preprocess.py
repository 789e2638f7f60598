"""Preprocessing: defined once, written into the manifest, and simple enough for an app to repeat exactly.

Order: decode to uint8 [H, W, C] → colour → resize → crop → multiply by `scale` → subtract `mean` → divide by
`std` → layout. All arithmetic is float32. A model that takes uint8 normalises it itself: there the order ends with
rounding half up to uint8, and layout.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from edgeq.core.errors import UsageError, nearest
from edgeq.core.lazy import NDArray, np
from edgeq.core.schema import explain, read_toml

_MOST_SIDE = 16384

Side = Annotated[int, Field(ge=1, le=_MOST_SIDE)]

Finite = Annotated[float, Field(allow_inf_nan=False)]


class Preprocess(BaseModel):
    """How an image becomes a model input."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    color: Literal["rgb", "gray"] = Field(default="rgb", description="gray is 0.299 R + 0.587 G + 0.114 B (BT.601)")
    resize: Side | tuple[Side, Side] | None = Field(
        default=None,
        description="[height, width], or the shorter side (the longer one keeps the ratio, rounded down); "
        "half-pixel bilinear without antialiasing",
    )
    crop: tuple[Side, Side] | None = Field(default=None, description="[height, width] from the centre")
    scale: Finite = Field(default=1 / 255, gt=0, description="factor from 0..255 to the model's range")
    mean: tuple[Finite, ...] = Field(
        default=(0.0,), description=("subtracted after scaling: one value, or one per channel")
    )
    std: tuple[Finite, ...] = Field(default=(1.0,), description="divided by last: one value, or one per channel")
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    dtype: Literal["float32", "uint8"] = Field(
        default="float32",
        exclude_if=lambda dtype: dtype == "float32",  # older apps refuse this key, so the default is not written
        description="dtype of the model's input; uint8: the pixels, rounded half up, with scale 1, mean 0, std 1",
    )

    @field_validator("resize", mode="before")
    @classmethod
    def _check_resize(cls, value: object) -> object:
        """Refuse a wrong value once, and not once for each form that it can have."""
        sides = value if isinstance(value, (list, tuple)) else [value]
        are_sides = all(type(side) is int and 1 <= side <= _MOST_SIDE for side in sides)
        if value is None or (are_sides and len(sides) == (2 if sides is value else 1)):
            return tuple(sides) if sides is value else value  # a manifest is read strictly, and then no list is a tuple
        side = sides[0] if are_sides and sides else 224
        raise ValueError(f"give {side} or [height, width], with sides of 1 to {_MOST_SIDE}")

    def model_post_init(self, _context: object) -> None:
        """Check conditions that involve several fields."""
        channels = 3 if self.color == "rgb" else 1
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, channels):
                raise ValueError(f"{name} has {len(values)} values, expected 1 or {channels}")
        if any(value <= 0 for value in self.std):
            raise ValueError("std must be positive")
        neutral = self.scale == 1 and set(self.mean) == {0} and set(self.std) == {1}
        if self.dtype == "uint8" and not neutral:
            raise ValueError("dtype uint8 allows no arithmetic: scale must be 1, mean 0 and std 1")

    @property
    def as_bytes(self) -> Preprocess:
        """The same up to the pixels, for a model that normalises them itself."""
        return self.model_copy(update={"dtype": "uint8", "scale": 1.0, "mean": (0.0,), "std": (1.0,)})

    def takes(self, dtype: str) -> bool:
        """Whether the preprocessing can produce an input of this dtype."""
        return dtype == "uint8" if self.dtype == "uint8" else dtype.startswith("float")

    @property
    def value_range(self) -> tuple[float, float]:
        """The least and the greatest value that a preprocessed image can hold."""
        channels = max(len(self.mean), len(self.std))
        means = self.mean * (channels // len(self.mean))
        stds = self.std * (channels // len(self.std))
        lows = [-mean / std for mean, std in zip(means, stds, strict=True)]
        highs = [(255 * self.scale - mean) / std for mean, std in zip(means, stds, strict=True)]
        return min(lows), max(highs)


PRESETS: dict[str, Preprocess] = {
    # torchvision's reference evaluation: resize 256, crop 224, ImageNet mean and standard deviation
    "imagenet": Preprocess(resize=256, crop=(224, 224), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    "unit": Preprocess(),
}


def load_preprocess(name_or_path: str) -> Preprocess:
    """Return a preset by name, or the preprocessing in a TOML file.

    Raises:
        UsageError: neither a preset nor a file, or the file has an unknown key or value.
    """
    if name_or_path in PRESETS:
        return PRESETS[name_or_path]
    path = Path(name_or_path)
    if not path.is_file():
        hint = nearest(name_or_path, PRESETS)
        known = ", ".join(PRESETS)
        raise UsageError(f"unknown preprocessing {name_or_path!r}.{hint}", f"presets: {known}; or give a .toml file")
    try:
        return Preprocess.model_validate(read_toml(path))
    except ValidationError as err:
        raise explain(err, str(path), Preprocess) from err


def apply(spec: Preprocess, image: NDArray[np.uint8]) -> NDArray[Any]:
    """Preprocess one image.

    Args:
        spec: what to do.
        image: uint8 [H, W, C], C is 1 (gray) or 3 (RGB).

    Returns:
        `spec.dtype`, [C, H, W] or [H, W, C], by `spec.layout`.
    """
    pixels = _crop(_resize(_color(image.astype(np.float32), spec.color), spec.resize), spec.crop)
    ready: NDArray[Any]
    if spec.dtype == "uint8":
        ready = np.clip(np.floor(pixels + np.float32(0.5)), 0, 255).astype(np.uint8)
    else:
        mean, std = np.asarray(spec.mean, np.float32), np.asarray(spec.std, np.float32)
        ready = (pixels * np.float32(spec.scale) - mean) / std
    return np.ascontiguousarray(ready.transpose(2, 0, 1) if spec.layout == "NCHW" else ready)


def _color(pixels: NDArray[np.float32], color: str) -> NDArray[np.float32]:
    if color == "rgb":
        return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels
    if pixels.shape[2] == 1:
        return pixels
    weights = np.asarray([0.299, 0.587, 0.114], np.float32)
    gray: NDArray[np.float32] = (pixels * weights).sum(axis=2, keepdims=True, dtype=np.float32)
    return gray


def output_size(height: int, width: int, resize: int | tuple[int, int] | None) -> tuple[int, int]:
    """Return [height, width] after resizing; a single number is the shorter side, the longer one is rounded down."""
    if resize is None:
        return height, width
    if isinstance(resize, tuple):
        return resize
    shorter = min(height, width)
    return resize * height // shorter, resize * width // shorter


def _resize(pixels: NDArray[np.float32], resize: int | tuple[int, int] | None) -> NDArray[np.float32]:
    """Bilinear with half-pixel centres (`align_corners=False`), no antialiasing; rows first, then columns."""
    height, width = output_size(pixels.shape[0], pixels.shape[1], resize)
    return _lerp(_lerp(pixels, height, axis=0), width, axis=1)


def _lerp(pixels: NDArray[np.float32], size: int, axis: int) -> NDArray[np.float32]:
    length = pixels.shape[axis]
    if size == length:
        return pixels
    position = (np.arange(size, dtype=np.float32) + np.float32(0.5)) * np.float32(length / size) - np.float32(0.5)
    position = np.clip(position, 0, length - 1)
    low = np.floor(position).astype(np.intp)
    high = np.minimum(low + 1, length - 1)
    weight = (position - low).astype(np.float32).reshape([-1 if i == axis else 1 for i in range(3)])
    first = np.take(pixels, low, axis)
    second = np.take(pixels, high, axis)
    result: NDArray[np.float32] = first + (second - first) * weight
    return result


def _crop(pixels: NDArray[np.float32], crop: tuple[int, int] | None) -> NDArray[np.float32]:
    """Take the centre; a spare odd pixel stays at the right and the bottom."""
    if crop is None:
        return pixels
    height, width = crop
    if height > pixels.shape[0] or width > pixels.shape[1]:
        came = f"{pixels.shape[0]}x{pixels.shape[1]}"
        raise UsageError(f"cannot crop {height}x{width} from {came}", "resize the image to a larger size first")
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return pixels[top : top + height, left : left + width]


def arithmetic_source() -> str:
    """Return the source of `apply` and what it calls: Python that needs numpy alone, for programs without edgeq."""
    functions = (apply, _color, output_size, _resize, _lerp, _crop)
    return "\n\n".join(inspect.getsource(function) for function in functions)
