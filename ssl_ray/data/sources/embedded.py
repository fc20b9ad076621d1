"""Data sets that come with the package or its dependencies: no download."""

from dataclasses import replace
from functools import lru_cache

import cv2
import numpy as np

from ssl_ray.data.plan import Int64
from ssl_ray.data.sources.base import Dataset, DatasetInfo, Subset, digest
from ssl_ray.data.sources.location import EMBEDDED, Location
from ssl_ray.data.sources.parquet import ParquetSource

FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


def fashion() -> Dataset:
    """10,000 Fashion-MNIST images, 28 x 28 gray: the first 7,000 to train on, 3,000 held out."""
    source = ParquetSource(Location(EMBEDDED + "fashion.parquet"), [""], name="fashion")
    source.info = replace(source.info, class_names=FASHION_CLASSES)
    return Dataset(Subset(source, 0, 7000), Subset(source, 7000, 10000))


def digits() -> Dataset:
    """1,797 handwritten digits of scikit-learn, scaled to 32 x 32 gray: the first 1,297 to train on, 500 held out."""
    source = DigitsSource()
    return Dataset(Subset(source, 0, 1297), Subset(source, 1297, 1797))


class DigitsSource:
    """scikit-learn's 8 x 8 digits (UCI ML), as PNG of 32 x 32 pixels."""

    def __init__(self) -> None:
        images, labels = _digits()
        self.info = DatasetInfo(
            "digits", len(images), (32, 32), 10, digest(*images, labels.tobytes()), tuple("0123456789")
        )

    def read(self, indices: Int64) -> list[bytes]:
        """As Source.read."""
        return [_digits()[0][i] for i in indices]

    def labels(self) -> Int64 | None:
        """As Source.labels."""
        return _digits()[1]

    def path(self, index: int) -> str:
        """As Source.path."""
        return f"digits {index}"


@lru_cache(maxsize=1)
def _digits() -> tuple[list[bytes], Int64]:
    from sklearn.datasets import load_digits  # Costs a second, which only this data set should pay.

    data = load_digits()
    gray = np.rint(data.images * (255 / 16)).astype(np.uint8)
    large = [cv2.resize(image, (32, 32), interpolation=cv2.INTER_LINEAR) for image in gray]
    return [cv2.imencode(".png", image)[1].tobytes() for image in large], data.target.astype(np.int64)
