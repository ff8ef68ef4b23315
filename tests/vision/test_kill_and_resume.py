"""A killed run goes on exactly; a checkpoint of something else is refused."""

import json
import multiprocessing
import os
import signal

import pytest
import torch

from scope_rlhf.runtime import RunFolder
from scope_rlhf.vision.session import Session
from scope_rlhf.vision.train import train_vision
from tests.vision.folders import write_folder
from tests.vision.makers import make_config

KINDS = {
    "epochs": {},
    "between": {"save_steps": 3},
    "sgd": {"optim": "sgd", "learning_rate": 0.05, "lr_scheduler_type": "cosine", "save_steps": 4},
    "sampling": {"long_tail": "balanced_sampling", "objective": "policy_entropy"},
    "ldam": {"long_tail": "ldam_drw", "long_tail_kwargs": {"drw_start": 0.4}, "early_stopping_patience": 2},
}


def child(settings, kill_at):
    torch.set_num_threads(1)
    config = make_config(**settings)
    if kill_at is not None:
        add = Session.add

        def killed(self, sums):
            if self.update == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            add(self, sums)

        Session.add = killed
    train_vision(config)
    os._exit(0)


def run(kill_at=None, **settings):
    process = multiprocessing.get_context("fork").Process(target=child, args=(settings, kill_at))
    process.start()
    process.join(120)
    return process.exitcode


def final(folder):
    newest = max(folder.glob("checkpoint-*"), key=lambda f: int(f.name[11:]))
    return newest.name, torch.load(newest / "learner.pt", weights_only=True)


def equal(one, two):
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(equal(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(equal, one, two))
    return torch.equal(one, two) if isinstance(one, torch.Tensor) else one == two


@pytest.mark.parametrize("name", KINDS)
def test_a_killed_run_that_is_resumed_ends_with_the_weights_of_an_uninterrupted_one(tmp_path, name):
    settings = {"num_train_epochs": 3, **KINDS[name]}
    assert run(folder=tmp_path / "whole", **settings) == 0
    updates = int(final(tmp_path / "whole")[0][11:]) // 3
    assert run(updates + 6, folder=tmp_path / "killed", **settings) == -9
    assert not (tmp_path / "killed" / "finished.json").exists()
    assert run(folder=tmp_path / "killed", resume=True, **settings) == 0
    assert equal(final(tmp_path / "whole"), final(tmp_path / "killed"))
    lines = []
    for folder in ("whole", "killed"):
        rows = [json.loads(line) for line in (tmp_path / folder / "metrics.jsonl").read_text().splitlines()]
        timed = ("images_per_second", "time/waiting_share")
        lines.append([{k: v for k, v in row.items() if k not in timed} for row in rows])
    assert lines[0] == lines[1]
    models = [(tmp_path / folder / "model" / "model.safetensors").read_bytes() for folder in ("whole", "killed")]
    assert models[0] == models[1]


def test_a_run_with_augmentation_and_workers_goes_on_exactly(tmp_path):
    write_folder(tmp_path / "data", 12)
    settings = {
        "dataset_name": str(tmp_path / "data"), "cache_dir": str(tmp_path / "cache"), "image_size": 16,
        "imbalance_ratio": 1.0, "per_device_train_batch_size": 4, "augmentation": "paper", "num_train_epochs": 3,
    }  # fmt: skip
    assert run(folder=tmp_path / "whole", **settings) == 0
    assert run(9, folder=tmp_path / "killed", dataloader_num_workers=2, **settings) == -9
    assert run(folder=tmp_path / "killed", dataloader_num_workers=2, resume=True, **settings) == 0
    assert equal(final(tmp_path / "whole"), final(tmp_path / "killed"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": "scope"}, "objective name is 'ppo', this run has 'scope'.*--allow_objective_change"),
        ({"seed": 2}, "training_images is .* set --dataset_name, --split_file, or the seed"),
        ({"imbalance_ratio": 5.0}, r"training_images is '\d+ images, \d+ to \d+ a class .*, this run has '\d+ images"),
        ({"long_tail": "class_balanced"}, "long_tail name is 'none'"),
        ({"per_device_train_batch_size": 16}, "batch_size is 32, this run has 16"),
        ({"optim": "sgd"}, "optim is 'adam', this run has 'sgd'"),
        ({"num_train_epochs": 1}, "beyond the .* of num_train_epochs=1"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused_with_what_differs(tmp_path, settings, message):
    assert run(folder=tmp_path / "run") == 0
    with pytest.raises(ValueError, match=message):
        Session(make_config(tmp_path / "run", **{"resume": True, **settings}))


def test_other_classes_than_the_checkpoints_are_told_by_their_number(tmp_path):
    assert run(folder=tmp_path / "run") == 0
    write_folder(tmp_path / "data", 12)
    data = {"dataset_name": str(tmp_path / "data"), "cache_dir": str(tmp_path / "cache"), "imbalance_ratio": 1.0}
    with pytest.raises(ValueError, match="classes is 10, this run has 3; set --dataset_name"):
        Session(make_config(tmp_path / "run", resume=True, **data))


def test_a_run_folder_given_as_a_checkpoint_names_the_checkpoint_in_it(tmp_path):
    assert run(folder=tmp_path / "run") == 0
    more = {"resume_from_checkpoint": str(tmp_path / "run")}
    with pytest.raises(ValueError, match="It is a run folder; set --resume_from_checkpoint .*checkpoint-26"):
        Session(make_config(tmp_path / "other", **more))


def test_a_resume_beside_a_run_that_goes_on_says_that_it_is_in_use(tmp_path):
    """It read the first run's checkpoints, which came and went meanwhile, and spoke of a damaged one."""
    assert run(folder=tmp_path / "run") == 0
    with RunFolder(tmp_path / "run"), pytest.raises(ValueError, match="in use by another run"):
        Session(make_config(tmp_path / "run", resume=True))


def test_a_second_run_in_the_same_folder_is_refused(tmp_path):
    assert run(folder=tmp_path / "run") == 0
    with pytest.raises(ValueError, match="holds another run; add --resume"):
        Session(make_config(tmp_path / "run"))
