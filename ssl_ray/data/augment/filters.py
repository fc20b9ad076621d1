"""Spatial filters on (H, W, 3) uint8."""

import cv2
import numpy as np


def gaussian_blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian of standard deviation `sigma` pixels, borders mirrored."""
    side = 2 * max(1, round(3 * sigma)) + 1
    return cv2.GaussianBlur(image, (side, side), sigma)
