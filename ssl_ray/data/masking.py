"""What a masked-image method hides of a view, drawn per sample. numpy only; masks are applied on the device."""

from typing import Protocol

import numpy as np
import numpy.typing as npt


class UniformDraws(Protocol):
    """A sample's random generator, as far as masking needs it."""

    def random(self, shape: tuple[int, ...], /) -> npt.NDArray[np.floating]:
        """Uniform numbers in [0, 1) of this shape."""
        ...


def mask_noise(draws: UniformDraws, num_patches: int) -> npt.NDArray[np.float32]:
    """MAE's noise: one uniform number per patch, (L,); the patches with the smallest are kept, the others removed.

    Noise rather than a mask, so that one batch serves every mask ratio. Source: arXiv 2111.06377, section 3.
    """
    return draws.random((num_patches,)).astype(np.float32)
