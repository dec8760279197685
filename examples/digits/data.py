"""The scikit-learn digits, cut once into disjoint parts: who trains never sees the exam, and the live traffic is held out from both.

1,797 images of 8 x 8 pixels (0 to 16), real handwriting, shipped inside scikit-learn: nothing is downloaded.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

Pixels = NDArray[np.float32]
Labels = NDArray[np.int64]

TRAIN, GOLDEN = 898, 300  # the remaining 599 are live traffic
_SEED = 20


@dataclass(frozen=True)
class Part:
    """Rows of 64 pixels (float32, 0 to 16) and the digit that each shows."""

    pixels: Pixels
    labels: Labels

    def first(self, count: int) -> "Part":
        """The first `count` rows."""
        return Part(self.pixels[:count], self.labels[:count])


@dataclass(frozen=True)
class Digits:
    """The three disjoint parts."""

    train: Part
    golden: Part
    live: Part


def split_digits() -> Digits:
    """The same split at every call, on every machine."""
    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(_SEED).permutation(len(labels))
    pixels, labels = pixels[order].astype(np.float32), labels[order].astype(np.int64)
    ends = (TRAIN, TRAIN + GOLDEN)
    parts = (slice(0, ends[0]), slice(*ends), slice(ends[1], None))
    train, golden, live = (Part(pixels[part], labels[part]) for part in parts)
    return Digits(train, golden, live)
