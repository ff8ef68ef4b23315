import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value

from scope_rlhf.vision.sources import load_source
from tests.vision.folders import write_folder


def test_digits_are_those_of_scikit_learn():
    source = load_source("digits")
    assert len(source.names) == 1797
    assert np.bincount(source.labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    with source.read(0) as image:
        pixels = np.asarray(image)
    assert pixels.shape == (8, 8)
    assert pixels.max() > 200


def test_a_folder_of_class_folders_has_its_classes_in_order_and_says_what_it_leaves_out(tmp_path):
    write_folder(tmp_path / "data", 3)
    (tmp_path / "data" / "sea" / "RENAME2").write_text("x")  # as in Caltech-256
    (tmp_path / "data" / "sea" / "more").mkdir()
    (tmp_path / "data" / ".hidden").mkdir()
    source = load_source(str(tmp_path / "data"))
    assert source.classes == ["apple", "leaf", "sea"]
    assert source.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert source.names[3] == "leaf/leaf_0000.png"
    assert source.ignored == ["sea/RENAME2", "sea/more"]
    assert source.parts is None
    with source.read(3) as image:
        assert image.size == (24, 20)


def test_the_fingerprint_changes_with_a_file_and_not_with_a_second_look(tmp_path):
    write_folder(tmp_path / "data", 2)
    first = load_source(str(tmp_path / "data")).fingerprint
    assert load_source(str(tmp_path / "data")).fingerprint == first
    (tmp_path / "data" / "sea" / "sea_0001.png").unlink()
    assert load_source(str(tmp_path / "data")).fingerprint != first


def test_folders_train_and_test_are_the_parts(tmp_path):
    write_folder(tmp_path / "data" / "train", 3)
    write_folder(tmp_path / "data" / "test", 2)
    source = load_source(str(tmp_path / "data"))
    assert source.classes == ["apple", "leaf", "sea"]
    assert sorted(set(source.parts)) == ["test", "train"]
    assert source.parts.count("test") == 6


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p.mkdir(), "has no class folders; expected <folder>/<class>/<image>"),
        (lambda p: (write_folder(p, 2), (p / "void").mkdir()), "no images in void; remove the folder"),
        (lambda p: write_folder(p, 2, ("sea",)), "has one class, sea; at least two"),
        (lambda p: (p / "a").mkdir(parents=True), "no images in its 1 folders"),
        (lambda p: write_folder(p / "inner", 2), "Its folder .*inner has class folders: set --dataset_name"),
        (lambda p: (write_folder(p / "test", 2), write_folder(p / "val", 2)), "but no train"),
        (
            lambda p: (write_folder(p / "train", 2), write_folder(p / "test", 2, ("sun",))),
            "sun is in no folder of its train part",
        ),
    ],
)
def test_a_folder_that_cannot_be_classified_is_told_with_what_is_expected(tmp_path, make, message):
    make(tmp_path / "data")
    with pytest.raises(ValueError, match=message):
        load_source(str(tmp_path / "data"))


def test_a_folder_that_does_not_exist_and_a_file_are_told_as_such(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        load_source("./256_ObjectCategories")
    (tmp_path / "x.tar").write_text("x")
    with pytest.raises(ValueError, match="is a file"):
        load_source(str(tmp_path / "x.tar"))


def saved_dataset(folder, labels, feature):
    write_folder(folder / "images", 2)
    files = sorted(str(file) for file in (folder / "images").glob("*/*.png"))
    rows = {"image": files, "label": labels}
    features = Features({"image": Image(), "label": feature})
    parts = {name: Dataset.from_dict(rows, features=features) for name in ("train", "test")}
    DatasetDict(parts).save_to_disk(str(folder / "saved"))
    return str(folder / "saved")


@pytest.mark.parametrize(
    ("labels", "feature"),
    [
        ([0, 0, 1, 1, 2, 2], ClassLabel(names=["apple", "leaf", "sea"])),
        (["apple", "apple", "leaf", "leaf", "sea", "sea"], Value("string")),
    ],
)
def test_a_dataset_of_datasets_keeps_its_test_split(tmp_path, labels, feature):
    source = load_source(saved_dataset(tmp_path, labels, feature))
    assert source.classes == ["apple", "leaf", "sea"]
    assert source.labels.tolist() == [0, 0, 1, 1, 2, 2] * 2
    assert source.parts == ["train"] * 6 + ["test"] * 6
    with source.read(11) as image:  # the last of the second split
        assert np.asarray(image.convert("RGB")).mean(axis=(0, 1)).argmax() == 2


def test_a_column_that_is_not_there_and_rows_without_a_label_are_told(tmp_path):
    path = saved_dataset(tmp_path, [0, 0, 1, 1, 2, -1], ClassLabel(names=["a", "b", "c"]))
    with pytest.raises(ValueError, match="no column 'picture', but image, label; set --image_column"):
        load_source(path, image_column="picture")
    with pytest.raises(ValueError, match="rows without a label"):
        load_source(path)
    path = saved_dataset(tmp_path / "float", [0.5, 0.5, 1.0, 1.0, 2.0, 2.0], Value("float32"))
    with pytest.raises(ValueError, match="holds numbers with a fraction; set --label_column"):
        load_source(path)
    path = saved_dataset(tmp_path / "more", ["a", "a", "b", "b", "c", None], Value("string"))
    with pytest.raises(ValueError, match=r"rows without a label \(None\)"):
        load_source(path)


def test_the_missing_extra_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "sklearn" else object())
    with pytest.raises(ImportError, match=r'pip install "scope-rlhf\[vision\]"'):
        load_source("digits")
