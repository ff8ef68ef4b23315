import json
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from scope_rlhf.vision.config import VisionConfig
from scope_rlhf.vision.data import load_data
from scope_rlhf.vision.images import StoredImages, decode, load_images
from scope_rlhf.vision.sources import load_source
from tests.vision.folders import write_folder


def opened(tmp_path, image, name="x.png", **options):
    image.save(tmp_path / name, **options)
    return Image.open(tmp_path / name)


def test_the_shorter_side_is_resized_and_the_middle_kept(tmp_path):
    pixels = np.zeros((10, 30, 3), np.uint8)
    pixels[:, 10:20] = 200
    found, note = decode(opened(tmp_path, Image.fromarray(pixels)), 10, 3)
    assert found.shape == (10, 10, 3)
    assert (found == 200).all()
    assert note is None


def test_sixteen_bits_keep_their_high_byte(tmp_path):
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    found, note = decode(opened(tmp_path, Image.fromarray(ramp)), 8, 1)
    assert np.array_equal(found[..., 0], (ramp >> 8).astype(np.uint8))  # PIL's own conversion clips at 255
    assert note == "16 bits"


def test_cmyk_is_converted_and_transparency_lies_on_white(tmp_path):
    found, note = decode(opened(tmp_path, Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "x.jpg"), 8, 3)
    assert note == "CMYK"
    assert found[4, 4, 0] > 200 > 60 > found[4, 4, 1]
    found, note = decode(opened(tmp_path, Image.new("RGBA", (8, 8), (0, 0, 0, 0))), 8, 3)
    assert note == "transparency"
    assert (found == 255).all()


def test_of_an_animation_the_first_frame_is_taken(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    found, note = decode(opened(tmp_path, frames[0], "x.gif", save_all=True, append_images=frames[1:]), 8, 3)
    assert note == "animation"
    assert found[0, 0].tolist() == [255, 0, 0]


def test_float_pixels_are_refused(tmp_path):
    with pytest.raises(ValueError, match="32-bit float pixels"):
        decode(opened(tmp_path, Image.new("F", (4, 4), 0.5), "x.tif"), 4, 3)


@pytest.fixture
def damaged(tmp_path):
    folder = write_folder(tmp_path / "data", 6)
    (folder / "leaf" / "bad.jpg").write_bytes(b"not an image")
    whole = (folder / "sea" / "sea_0000.png").read_bytes()
    (folder / "sea" / "cut.png").write_bytes(whole[: len(whole) // 2])
    Image.new("CMYK", (8, 8)).save(folder / "sea" / "print.jpg")
    return folder


def test_a_broken_link_is_an_image_that_cannot_be_read(tmp_path):
    folder = write_folder(tmp_path / "data", 6)
    (folder / "leaf" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(ValueError, match="1 of 19 images of data cannot be read: leaf/gone.png"):
        load_data(config(folder, tmp_path), show=False)


def config(folder, tmp_path, **more):
    return VisionConfig(
        dataset_name=str(folder), cache_dir=str(tmp_path / "cache"), network="cnn", image_size=8, **more
    )


def test_images_that_cannot_be_read_stop_the_run_with_their_names(damaged, tmp_path):
    with pytest.raises(ValueError, match=r"2 of 21 images of data cannot be read: leaf/bad.jpg .*; sea/cut.png .*skip"):
        load_data(config(damaged, tmp_path), show=False)


@pytest.mark.parametrize("cached", [True, False])
def test_skipped_images_are_counted_and_in_no_part(damaged, tmp_path, cached):
    data = load_data(config(damaged, tmp_path, corrupt_images="skip", cache_images=cached), show=False)
    described = data.describe()
    assert sorted(described["corrupt"]) == ["leaf/bad.jpg", "sea/cut.png"]
    assert described["converted"] == {"CMYK": 1}
    used = {data.source.names[i] for part in ("train", "validation", "test") for i in data.split.part(part)}
    assert len(used) == 19
    assert not used & {"leaf/bad.jpg", "sea/cut.png"}


def test_the_cache_is_made_once_and_has_the_pixels_of_a_decoder(damaged, tmp_path):
    source = load_source(str(damaged))
    images, report = load_images(source, 8, tmp_path / "cache", workers=2, show=False)
    assert isinstance(images, StoredImages)
    made = (images.file.stat().st_mtime_ns, images.file.stat().st_ino)
    again, same = load_images(source, 8, tmp_path / "cache", show=False)
    assert (again.file.stat().st_mtime_ns, again.file.stat().st_ino) == made
    assert report == same
    for position in (0, 7, 20):
        if source.names[position] not in report.corrupt:
            with source.read(position) as image:
                assert np.array_equal(images[position], decode(image, 8, 3)[0])
    other, _ = load_images(source, 16, tmp_path / "cache", show=False)
    assert other[[0, 1]].shape == (2, 16, 16, 3)


def test_workers_decode_what_one_process_does(tmp_path):
    source = load_source(str(write_folder(tmp_path / "data", 60)))  # several chunks
    one, _ = load_images(source, 8, tmp_path / "one", show=False)
    two, _ = load_images(source, 8, tmp_path / "two", workers=2, show=False)
    assert np.array_equal(one[np.arange(180)], two[np.arange(180)])


def test_a_cache_that_was_killed_half_way_is_made_anew(damaged, tmp_path, monkeypatch):
    source = load_source(str(damaged))

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("scope_rlhf.vision.images.write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            load_images(source, 8, tmp_path / "cache", show=False)
    assert not [f for f in (tmp_path / "cache").iterdir() if f.is_dir()]
    _, report = load_images(source, 8, tmp_path / "cache", show=False)
    assert len(report.corrupt) == 2


@pytest.mark.parametrize(("name", "content"), [("report.json", b"{"), ("images.npy", b""), ("images.npy", None)])
def test_a_damaged_cache_is_told_with_its_folder(damaged, tmp_path, name, content):
    source = load_source(str(damaged))
    images, _ = load_images(source, 8, tmp_path / "cache", show=False)
    file = images.file.parent / name
    file.write_bytes(file.read_bytes()[:500] if content is None else content)
    with pytest.raises(ValueError, match=r"are damaged \(.*remove this folder"):
        load_images(source, 8, tmp_path / "cache", show=False)


def test_a_folder_that_is_called_digits_has_a_cache(tmp_path):
    source = load_source(str(write_folder(tmp_path / "digits", 3)))
    assert isinstance(load_images(source, 8, tmp_path / "cache", show=False)[0], StoredImages)


def test_too_little_room_is_told_before_anything_is_written(damaged, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(OSError, match=r"21 images of 8 x 8 need .* set --cache_dir"):
        load_images(load_source(str(damaged)), 8, tmp_path / "cache", show=False)
    assert not [f for f in (tmp_path / "cache").iterdir() if f.is_dir()]


def test_warnings_of_damaged_metadata_stay_inside(damaged, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_images(load_source(str(damaged)), 8, tmp_path / "cache", show=False)
    report = next((tmp_path / "cache").glob("*/report.json"))
    assert json.loads(report.read_text())["converted"] == {"CMYK": 1}
