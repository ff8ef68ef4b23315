"""Small folders of class folders."""

import numpy as np
from PIL import Image

COLOURS = {"apple": (200, 30, 30), "leaf": (30, 200, 30), "sea": (30, 30, 200), "sun": (220, 220, 40)}


def write_folder(path, per_class=10, classes=("apple", "leaf", "sea"), size=20, seed=0):
    """Coloured noise, a colour a class: easy to learn."""
    rng = np.random.default_rng(seed)
    for name in classes:
        (path / name).mkdir(parents=True)
        colour = COLOURS.get(name, tuple(rng.integers(0, 255, 3)))
        for number in range(per_class):
            noise = rng.integers(-25, 25, (size, size + 4, 3))
            pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(path / name / f"{name}_{number:04d}.png")
    return path
