import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from scope_rlhf.experiments.command_line import read_config
from scope_rlhf.experiments.vision_table import make_settings

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "recipes" / "configs"


def recipe(folder, *flags, timeout=280):
    command = [sys.executable, str(ROOT / "recipes" / "caltech256.py"), *flags]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=timeout)


def test_two_updates_of_every_row_of_the_recipe(tmp_path):
    done = recipe(tmp_path, "--num_train_epochs", "1", "--seeds", "1", "--jobs", "1", "--output_dir", "table")
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in ("ppo", "policy_entropy", "focal", "scope", "0.281 / 0.244"))
    assert (tmp_path / "table" / "table.md").exists()


@pytest.mark.parametrize(("name", "optim"), [("table1", "adam"), ("table2", "sgd")])
def test_the_files_have_the_settings_of_the_paper(name, optim):
    config = read_config(str(CONFIGS / f"caltech256_scope_{name}.yaml"))
    assert config["published"] == name
    config = {key: value for key, value in config.items() if key not in ("rows", "seeds", "jobs", "published")}
    settings = make_settings("scope", [], config, "x")
    assert (settings.optim, settings.network, settings.num_train_epochs) == (optim, "resnet101", 100)
    assert settings.learning_rate == (1e-3 if name == "table1" else 1e-2)
    assert settings.make_objective().alpha == 1.0
    stds = (settings.color_std, settings.contrast_std, settings.brightness_std, settings.sharpness_std)
    if name == "table2":
        assert (settings.lr_scheduler_type, settings.augmentation, stds) == ("cosine", "paper", (0.3, 0.1, 0.1, 0.3))


def test_without_the_folder_the_recipe_says_where_it_goes(tmp_path):
    done = recipe(tmp_path, "--config", str(CONFIGS / "caltech256_scope_table1.yaml"), "--bf16", "false")
    assert done.returncode == 2
    assert "./256_ObjectCategories" in done.stderr
    assert "expected <folder>/<class>/<image>, as in Caltech-256; set --dataset_name" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_resnet_101_trains_on_a_folder_of_257_classes_end_to_end(tmp_path):
    rng = np.random.default_rng(0)
    for label in range(257):
        place = tmp_path / "256_ObjectCategories" / f"{label + 1:03d}.class"
        place.mkdir(parents=True)
        colour = rng.integers(0, 256, 3)
        for number in range(4):
            pixels = np.clip(colour + rng.integers(-20, 20, (40, 50, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(place / f"{label + 1:03d}_{number + 1:04d}.jpg")
    settings = yaml.safe_load((CONFIGS / "caltech256_scope_table2.yaml").read_text())
    settings |= {"dataset_name": str(tmp_path / "256_ObjectCategories"), "image_size": 32, "resize_size": 36}
    settings |= {"num_train_epochs": 2, "rows": ["scope"], "seeds": 1, "dataloader_num_workers": 2, "bf16": False}
    settings |= {"cache_dir": str(tmp_path / "cache"), "output_dir": "table"}
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(settings))
    done = recipe(tmp_path, "--config", "x.yaml", timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    evaluation = json.loads((tmp_path / "table/scope/seed-1/evaluation.json").read_text())
    assert evaluation["images"] == len(evaluation["per_class"]) == 257
    assert len(evaluation["confusion"]["classes"]) == 12
    rows = [json.loads(line) for line in (tmp_path / "table/scope/seed-1/metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2]
    assert np.log(257) * 2 > rows[1]["train/loss"] > 0
