"""Colour operations on (H, W, 3) uint8 RGB, with torchvision's meaning.

Parameters are explicit; values outside 0..255 are clipped. Each operation writes to `out` (a new image by default; the
image itself is allowed) and returns it.
"""

from collections.abc import Sequence

import cv2
import numpy as np

from ssl_ray.data.augment.scratch import scratch

LUMA = (0.299, 0.587, 0.114)
"""Weights of R, G, B in Rec. 601 luma."""


def mean_luma(image: np.ndarray) -> float:
    """Luma averaged over the pixels."""
    red, green, blue, _ = cv2.sumElems(image)
    total = LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue
    return float(total / (image.shape[0] * image.shape[1]))


def blend(
    image: np.ndarray, gain: float, luma: float, offset: float, out: np.ndarray | None = None
) -> np.ndarray:
    """Gain * pixel + luma * (the pixel's luma) + offset, rounded once.

    Brightness, contrast and saturation are of this form, and so is every product of them.
    """
    red, green, blue = luma * LUMA[0], luma * LUMA[1], luma * LUMA[2]
    rows = (
        (red + gain, green, blue, offset),
        (red, green + gain, blue, offset),
        (red, green, blue + gain, offset),
    )
    blended: np.ndarray = cv2.transform(image, np.array(rows, np.float32), out)
    return blended


def adjust_brightness(image: np.ndarray, factor: float, out: np.ndarray | None = None) -> np.ndarray:
    """Blends with black: 0 is black, 1 the image, above 1 brighter."""
    return blend(image, factor, 0.0, 0.0, out)


def adjust_contrast(image: np.ndarray, factor: float, out: np.ndarray | None = None) -> np.ndarray:
    """Blends with one grey, the image's mean luma: 0 is that grey, 1 the image."""
    return blend(image, factor, 0.0, (1.0 - factor) * mean_luma(image), out)


def adjust_saturation(image: np.ndarray, factor: float, out: np.ndarray | None = None) -> np.ndarray:
    """Blends each pixel with its luma: 0 is grey, 1 the image."""
    return blend(image, factor, 1.0 - factor, 0.0, out)


def adjust_hue(image: np.ndarray, shift: float, out: np.ndarray | None = None) -> np.ndarray:
    """Turns the hue by `shift` turns (-0.5 .. 0.5) at constant saturation and value of HSV.

    Computed without HSV. Over the circle a channel goes from the pixel's minimum m up to its maximum M within one
    sixth, stays for two, goes down and stays: with C = M - m, p the channel before and n the one after in the
    cycle R, G, B, a turn by d sixths (0 <= d <= 1) makes of channel c

        clip(c + max(0, p - n - (1 - d) C) - max(0, n - p - (1 - d) C), m, M);

    a negative turn swaps p and n, and two sixths more or less exchange the channels. Saturating byte arithmetic takes
    the max(0, .) for free, and only (1 - d) C is rounded.
    """
    sixths = 6.0 * shift
    thirds = round(sixths / 2.0)
    rest = sixths - 2.0 * thirds
    red, green, blue, high, low, keep, *buffers, down = scratch("hue", (13, *image.shape[:2]))
    planes, kept, turned = (red, green, blue), buffers[:3], buffers[3:]
    cv2.split(image, planes)
    cv2.max(cv2.max(red, green, high), blue, high)
    cv2.min(cv2.min(red, green, low), blue, low)
    if not cv2.countNonZero(cv2.subtract(high, low, keep)):  # a grey image, which has no hue
        return blend(image, 1.0, 0.0, 0.0, out)
    cv2.convertScaleAbs(keep, keep, 1.0 - abs(rest))
    for plane, plus in zip(planes, kept, strict=True):
        cv2.add(plane, keep, plus)
    for i, channel in enumerate(turned):
        before, after = (i - 1, i - 2) if rest >= 0 else (i - 2, i - 1)
        cv2.subtract(planes[before], kept[after], channel)
        cv2.subtract(planes[after], kept[before], down)
        cv2.min(cv2.add(planes[i], channel, channel), high, channel)
        cv2.max(cv2.subtract(channel, down, channel), low, channel)
    merged: np.ndarray = cv2.merge([turned[(i - thirds) % 3] for i in range(3)], out)
    return merged


def color_jitter(
    image: np.ndarray,
    brightness: float,
    contrast: float,
    saturation: float,
    hue: float,
    order: Sequence[int] = (0, 1, 2, 3),
    out: np.ndarray | None = None,
) -> np.ndarray:
    """The four adjustments in `order` (0 brightness, 1 contrast, 2 saturation, 3 hue), as torchvision's ColorJitter.

    Neighbouring blends are one blend, and one pass over the image, as long as nothing is clipped between them: a
    factor of at most 1 interpolates between valid images and cannot leave 0..255.
    """
    gain, luma, offset = 1.0, 0.0, 0.0
    for operation in order:
        factor = (brightness, contrast, saturation, 1.0)[operation]
        if operation == 0:
            gain, luma, offset = gain * factor, luma * factor, offset * factor
        elif operation == 1:
            mean = (gain + luma) * mean_luma(image) + offset if factor != 1.0 else 0.0
            gain, luma, offset = gain * factor, luma * factor, offset * factor + (1.0 - factor) * mean
        elif operation == 2:
            gain, luma = gain * factor, luma + (1.0 - factor) * gain
        if (factor > 1.0 or operation == 3) and (gain, luma, offset) != (1.0, 0.0, 0.0):
            image = out = blend(image, gain, luma, offset, out)
            gain, luma, offset = 1.0, 0.0, 0.0
        if operation == 3 and hue:
            image = out = adjust_hue(image, hue, out)
    if (gain, luma, offset) != (1.0, 0.0, 0.0) or out is None:
        return blend(image, gain, luma, offset, out)
    if out is not image:
        out[...] = image
    return out


def to_grayscale(image: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """Luma in all three channels."""
    luma = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY, scratch("luma", image.shape[:2]))
    gray: np.ndarray = cv2.cvtColor(luma, cv2.COLOR_GRAY2RGB, out)
    return gray


def solarize(image: np.ndarray, threshold: int = 128, out: np.ndarray | None = None) -> np.ndarray:
    """Inverts every value that is at least `threshold`."""
    values = np.arange(256, dtype=np.uint8)
    inverted: np.ndarray = cv2.LUT(image, np.where(values < threshold, values, 255 - values), out)
    return inverted
