"""Colour operations on (H, W, 3) uint8 RGB, with torchvision's meaning on PIL images.

Each returns a new image and takes its parameters explicitly.
"""

import cv2
import numpy as np


def adjust_brightness(image: np.ndarray, factor: float) -> np.ndarray:
    """factor * image, clipped; 0 is black, 1 the image."""
    return cv2.convertScaleAbs(image, alpha=factor)


def adjust_contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """Blends with the image's mean luma (one grey, rounded): 0 is that grey, 1 the image."""
    mean = int(cv2.mean(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[0] + 0.5)
    return cv2.addWeighted(image, factor, image, 0.0, (1.0 - factor) * mean)


def adjust_saturation(image: np.ndarray, factor: float) -> np.ndarray:
    """Blends each pixel with its luma: 0 is grey, 1 the image."""
    return cv2.addWeighted(image, factor, to_grayscale(image), 1.0 - factor, 0.0)


def adjust_hue(image: np.ndarray, shift: float) -> np.ndarray:
    """Turns the hue by `shift` turns, -0.5 .. 0.5, in 8-bit HSV."""
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    hsv[..., 0] += np.uint8(int(shift * 255) & 255)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


def to_grayscale(image: np.ndarray) -> np.ndarray:
    """Luma of Rec. 601 (0.299 R + 0.587 G + 0.114 B) in all three channels."""
    return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def solarize(image: np.ndarray, threshold: int = 128) -> np.ndarray:
    """Inverts every value that is at least `threshold`."""
    return np.where(image < threshold, image, 255 - image)
