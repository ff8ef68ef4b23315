"""Random views of a training image: the augmentation of Scope Loss's second classification table, with PIL alone."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Augmenter:
    """Random crop to `size` and mirroring; for the paper (arXiv 2308.04024) also colour, contrast, brightness and
    sharpness, whose factors are drawn from N(1, std) and clipped at 0 (PIL.ImageEnhance: 1 is the image itself).

    Every view is drawn from (seed, epoch, position of the image) alone: whoever makes it, in whatever order, and after
    a resume, makes the same one.
    """

    size: int
    seed: int
    crop: bool = True
    flip_probability: float = 0.5
    color_std: float = 0.0
    contrast_std: float = 0.0
    brightness_std: float = 0.0
    sharpness_std: float = 0.0

    def __call__(self, pixels: np.ndarray, epoch: int, position: int) -> np.ndarray:
        """A view [size, size, C] of the bytes [S, S, C], S >= size."""
        rng = np.random.default_rng([self.seed, epoch, position])
        spare = pixels.shape[0] - self.size
        top, left = rng.integers(spare + 1, size=2) if self.crop else (spare // 2, spare // 2)
        view = pixels[top : top + self.size, left : left + self.size]
        if rng.random() < self.flip_probability:
            view = view[:, ::-1]
        stds = (self.color_std, self.contrast_std, self.brightness_std, self.sharpness_std)
        return self._enhance(view, np.maximum(0.0, rng.normal(1.0, stds))) if any(stds) else view

    def _enhance(self, view: np.ndarray, factors: np.ndarray) -> np.ndarray:
        from PIL import Image, ImageEnhance

        grey = view.shape[-1] == 1
        image = Image.fromarray(np.ascontiguousarray(view[..., 0] if grey else view))
        enhancers = (ImageEnhance.Color, ImageEnhance.Contrast, ImageEnhance.Brightness, ImageEnhance.Sharpness)
        for enhancer, factor in zip(enhancers, factors, strict=True):
            if factor != 1.0 and not (grey and enhancer is ImageEnhance.Color):
                image = enhancer(image).enhance(float(factor))
        return np.asarray(image).reshape(view.shape)


def centre_crop(pixels: np.ndarray, size: int) -> np.ndarray:
    """The middle [B, size, size, C] of [B, S, S, C]: what evaluations see."""
    spare = pixels.shape[1] - size
    return pixels[:, spare // 2 : spare // 2 + size, spare // 2 : spare // 2 + size]
