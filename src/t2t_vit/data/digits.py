"""scikit-learn's handwritten digits."""

import numpy as np

from t2t_vit.data.images import ImageSet, array_images
from t2t_vit.data.splitting import Split, Splits


def digits_splits(name: str) -> Splits:
    """1,797 handwritten digits of 8 x 8 pixels, always split: by default 360 of them are for validation."""
    return Splits(name, whole=Split(name, _read), always_split=True)


def _read() -> tuple[tuple[str, ...], ImageSet]:
    from sklearn.datasets import load_digits  # here, because it takes a second to import

    digits = load_digits()
    arrays = np.round(digits.images * (255 / 16)).astype(np.uint8)  # (1797, 8, 8), from 0..16
    names = [f"digits/{row:04d}" for row in range(len(arrays))]
    return tuple("0123456789"), array_images(arrays, names, digits.target.tolist())
