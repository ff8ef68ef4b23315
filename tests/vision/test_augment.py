import numpy as np
import pytest
from PIL import Image, ImageEnhance

from scope_rlhf.vision.augment import Augmenter, centre_crop
from scope_rlhf.vision.config import VisionConfig
from scope_rlhf.vision.data import make_augmenter

PIXELS = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)


def test_a_view_is_a_function_of_seed_epoch_and_position():
    augment = Augmenter(12, 1, color_std=0.3, contrast_std=0.1, brightness_std=0.1, sharpness_std=0.3)
    one = augment(PIXELS, 3, 7)
    assert one.shape == (12, 12, 3)
    assert np.array_equal(one, augment(PIXELS, 3, 7))
    assert not np.array_equal(one, augment(PIXELS, 4, 7))
    assert not np.array_equal(one, augment(PIXELS, 3, 8))


def test_crops_are_everywhere_and_half_of_them_are_mirrored():
    augment = Augmenter(14, 1)
    places, mirrored = set(), 0
    for number in range(400):
        view = augment(PIXELS, 0, number)
        found = [
            (y, x, flip) for y in range(3) for x in range(3) for flip in (False, True)
            if np.array_equal(view, PIXELS[y : y + 14, x : x + 14][:, :: -1 if flip else 1])
        ]  # fmt: skip
        assert len(found) == 1
        places.add(found[0][:2])
        mirrored += found[0][2]
    assert len(places) == 9
    assert 160 < mirrored < 240


@pytest.mark.parametrize("name", ["color", "contrast", "brightness", "sharpness"])
def test_factors_are_drawn_from_a_normal_around_one_and_clipped_at_zero(monkeypatch, name):
    enhancer = getattr(ImageEnhance, name.capitalize())
    drawn = []
    original = enhancer.enhance
    monkeypatch.setattr(enhancer, "enhance", lambda self, factor: drawn.append(factor) or original(self, factor))
    augment = Augmenter(16, 1, flip_probability=0.0, **{f"{name}_std": 0.6})
    for number in range(500):
        augment(PIXELS, 0, number)
    assert np.mean(drawn) == pytest.approx(1.0, abs=0.08)
    assert min(drawn) == 0.0
    assert np.std(drawn) == pytest.approx(0.6, abs=0.08)


def test_a_factor_is_that_of_pil():
    dark = PIXELS // 3  # nothing is cut off at 255
    view = Augmenter(16, 1, crop=False, flip_probability=0.0, brightness_std=0.5)(dark, 0, 5)
    brightness = float(np.median(view[dark > 50] / dark[dark > 50]))
    assert abs(brightness - 1) > 0.05
    expected = np.asarray(ImageEnhance.Brightness(Image.fromarray(dark)).enhance(brightness))
    assert np.abs(view.astype(int) - expected.astype(int)).max() <= 3


def test_evaluations_see_the_middle_and_nothing_random():
    assert np.array_equal(centre_crop(PIXELS[None], 12)[0], PIXELS[2:14, 2:14])
    assert make_augmenter(VisionConfig(network="cnn", image_size=8)) is None


def test_the_papers_augmentation_has_its_published_factors():
    augment = make_augmenter(VisionConfig(augmentation="paper"))
    stds = [augment.color_std, augment.contrast_std, augment.brightness_std, augment.sharpness_std]
    assert stds == [0.3, 0.1, 0.1, 0.3]
    assert augment.flip_probability == 0.5
    assert VisionConfig(augmentation="paper").stored_size == 256


def test_grey_images_have_no_colour_to_change():
    augment = Augmenter(8, 1, color_std=0.5, contrast_std=0.5)
    assert augment(PIXELS[:8, :8, :1], 0, 0).shape == (8, 8, 1)
