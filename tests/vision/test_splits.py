import json

import numpy as np
import pytest

from scope_rlhf.vision.sources import load_source
from scope_rlhf.vision.splits import PARTS, counts_of, make_split, read_split, tail_sizes, write_split
from tests.vision.folders import write_folder

FRACTIONS = {"validation_fraction": 0.1, "test_fraction": 0.2}


@pytest.fixture(scope="module")
def digits():
    return load_source("digits")


def split_of(source, **more):
    return make_split(source, np.arange(len(source.names)), **{"seed": 1, **FRACTIONS, **more})


def test_a_split_is_stratified_whole_and_without_overlap(digits):
    split = split_of(digits)
    everything = np.concatenate([split.part(name) for name in PARTS])
    assert sorted(everything.tolist()) == list(range(1797))
    counts = np.bincount(digits.labels)
    assert np.abs(counts_of(digits, split.test) - 0.2 * counts).max() <= 0.5
    assert np.abs(counts_of(digits, split.validation) - 0.1 * counts).max() <= 0.5


def test_a_split_depends_on_its_seed_alone(digits):
    one, same, other = split_of(digits), split_of(digits), split_of(digits, seed=2)
    assert all(np.array_equal(one.part(name), same.part(name)) for name in PARTS)
    assert not np.array_equal(one.test, other.test)


@pytest.mark.parametrize(("ratio", "kind"), [(50, "exp"), (100, "exp"), (10, "step")])
def test_the_long_tail_has_the_sizes_of_its_formula_and_leaves_the_other_parts_alone(digits, ratio, kind):
    whole, split = split_of(digits), split_of(digits, imbalance_ratio=ratio, imbalance_type=kind)
    assert np.array_equal(whole.test, split.test)
    assert np.array_equal(whole.validation, split.validation)
    assert set(split.train) < set(whole.train)
    largest = int(counts_of(digits, whole.train).min())
    found = sorted(counts_of(digits, split.train).tolist(), reverse=True)
    if kind == "exp":
        assert found == [round(largest * ratio ** (-k / 9)) for k in range(10)]
    else:
        assert found == [largest] * 5 + [round(largest / ratio)] * 5
    assert found[0] / found[-1] == pytest.approx(ratio, rel=0.25)  # of whole images


def test_the_order_of_the_tail_is_drawn_with_the_seed(digits):
    heads = {
        int(counts_of(digits, split_of(digits, seed=seed, imbalance_ratio=50).train).argmax()) for seed in range(8)
    }
    assert len(heads) > 2


def test_no_class_is_without_an_image():
    assert min(tail_sizes(10, 20, 1000, "exp")) == 1


def test_too_few_images_of_a_class_are_told_with_its_name(tmp_path):
    write_folder(tmp_path, 5)
    for number in range(1, 5):
        (tmp_path / "leaf" / f"leaf_{number:04d}.png").unlink()
    with pytest.raises(ValueError, match="class 'leaf' has 1 image, too few for a stratified split into train, val"):
        split_of(load_source(str(tmp_path)))


def test_three_images_of_a_class_are_one_for_each_part(tmp_path):
    source = load_source(str(write_folder(tmp_path, 3)))
    split = split_of(source, validation_fraction=0.4, test_fraction=0.5)
    assert all(counts_of(source, split.part(name)).tolist() == [1, 1, 1] for name in PARTS)


def test_a_given_test_part_stays_whole_and_validation_is_drawn_from_train(tmp_path):
    write_folder(tmp_path / "train", 10)
    write_folder(tmp_path / "test", 4, seed=1)
    source = load_source(str(tmp_path))
    split = split_of(source)
    assert [source.names[i].split("/")[0] for i in split.test] == ["test"] * 12
    assert counts_of(source, split.validation).tolist() == [1, 1, 1]
    assert counts_of(source, split.train).tolist() == [9, 9, 9]


def test_a_split_file_gives_the_split_back_also_where_images_were_added(tmp_path):
    source = load_source(str(write_folder(tmp_path / "data", 6)))
    split = split_of(source)
    write_split(tmp_path / "split.json", source, split, {"seed": 1})
    record = json.loads((tmp_path / "split.json").read_text())
    assert record["counts"]["train"] == [4, 4, 4]
    (tmp_path / "data" / "apple" / "aaa.png").write_bytes((tmp_path / "data/apple/apple_0000.png").read_bytes())
    larger = load_source(str(tmp_path / "data"))
    again, settings = read_split(tmp_path / "split.json", larger, np.arange(19))
    assert settings == {"seed": 1}
    for name in PARTS:
        assert [larger.names[i] for i in again.part(name)] == [source.names[i] for i in split.part(name)]


def test_a_split_file_that_was_made_with_other_settings_says_so(tmp_path):
    source = load_source(str(write_folder(tmp_path / "data", 6)))
    write_split(tmp_path / "split.json", source, split_of(source), {"seed": 1, "imbalance_ratio": 50.0})
    with pytest.warns(UserWarning, match="holds as it was made: imbalance_ratio 50.0, not 5.0"):
        read_split(tmp_path / "split.json", source, np.arange(18), {"seed": 1, "imbalance_ratio": 5.0})


def test_a_split_file_of_something_else_is_refused(tmp_path, digits):
    source = load_source(str(write_folder(tmp_path / "data", 6)))
    file, usable = tmp_path / "split.json", np.arange(18)
    write_split(file, digits, split_of(digits), {})
    with pytest.raises(ValueError, match="is of 10 classes .* data has 3"):
        read_split(file, source, usable)
    write_split(file, source, split_of(source), {})
    with pytest.raises(ValueError, match="of its images are not in data or cannot be read, the first"):
        read_split(file, source, usable[1:])
    good = json.loads(file.read_text())
    for text, message in [
        ("{}", "is no split: KeyError"),
        ("[1]", "is no split: TypeError"),
        (json.dumps({**good, "train": [["a"]]}), "is no split: TypeError: expected lists of names"),
        (json.dumps({**good, "classes": 3}), "is no split: TypeError"),
        (json.dumps({**good, "test": good["train"]}), "12 images are there more than once, the first"),
        (json.dumps({**good, "test": []}), "has no part test"),
    ]:
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_split(file, source, usable)
