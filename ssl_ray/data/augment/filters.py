"""Spatial filters on (H, W, 3) uint8."""

import math

import cv2
import numpy as np


def gaussian_blur(image: np.ndarray, sigma: float, out: np.ndarray | None = None) -> np.ndarray:
    """Gaussian of standard deviation `sigma` pixels, cut off at 2.5 sigma, borders mirrored.

    Writes to `out` (a new image by default; the image itself is allowed) and returns it.
    """
    side = 2 * max(1, math.ceil(2.5 * sigma - 0.5)) + 1
    kernel = cv2.getGaussianKernel(side, sigma, cv2.CV_32F)
    blurred: np.ndarray = cv2.sepFilter2D(image, -1, kernel, kernel, out)
    return blurred
