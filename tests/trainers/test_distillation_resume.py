"""Resume of a distillation: bit-equal at every step, and refused where the run would become another one."""

import json
import shutil

import pytest
import torch

from tests.trainers.makers import logged, make_distillation, weights
from tests.trainers.resume_script import make_trainer, trained_weights
from tests.trainers.test_distillation import VERDICTS
from tests.trainers.test_distillation_teachers import by_name

KEYS = ("distillation/correct", "distillation/log_ratio", "distillation/teacher_weight_entropy", "entropy")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder, the weights and the log of a run that nothing interrupts, twelve updates long."""
    folder = tmp_path_factory.mktemp("whole")
    trainer = make_trainer("distillation", folder, max_steps=12)
    trainer.train()
    return folder, trained_weights(trainer), trainer.state.log_history


def rows_after(log, step, key):
    return [row[key] for row in log if row["step"] > step and key in row]


# A rollout of 8 completions serves 4 updates, and the log is written every 4.
@pytest.mark.parametrize("step", [4, 5, 7, 10])
def test_a_run_resumed_on_or_inside_a_generation_batch_is_the_uninterrupted_one(tmp_path, whole, step):
    folder, weights, log = whole
    resumed = make_trainer("distillation", tmp_path, max_steps=12)
    resumed.train(resume_from_checkpoint=str(folder / f"checkpoint-{step}"))
    found = trained_weights(resumed)
    assert all(torch.equal(weight, found[name]) for name, weight in weights.items())
    for key in KEYS:
        assert rows_after(log, step, key) == rows_after(resumed.state.log_history, step, key) != [], key
    assert 0 < rows_after(log, 0, "distillation/correct")[0] < 1


@pytest.mark.parametrize(
    ("settings", "changed"),
    [
        ({"weights": "student"}, "weights"), ({"reverse_weights": "teacher"}, "reverse_weights"), ({"tau": 2.0}, "tau"),
        ({"normalization": "sum"}, "normalization"), ({"reduction": "sequence_mean"}, "reduction"),
        ({"correct_threshold": 0.7}, "correct_threshold"), ({"teacher_temperature": 0.5}, "teacher_temperature"),
        ({"mode": "opd"}, "mode"),
    ],
)  # fmt: skip
def test_a_run_with_another_setting_of_the_distillation_is_refused_by_its_name(tmp_path, whole, settings, changed):
    folder, _, _ = whole
    trainer = make_trainer("distillation", tmp_path, max_steps=12, **settings)
    with pytest.raises(ValueError, match=rf"has changed since .*checkpoint-8.*{changed}.*--allow_objective_change"):
        trainer.train(resume_from_checkpoint=str(folder / "checkpoint-8"))


def test_a_changed_setting_is_taken_where_one_says_so(tmp_path, whole):
    trainer = make_trainer("distillation", tmp_path, max_steps=9, tau=2.0, allow_objective_change=True)
    trainer.train(resume_from_checkpoint=str(whole[0] / "checkpoint-8"))
    assert trainer.state.global_step == 9


def test_the_checkpoint_of_another_trainer_is_refused(tmp_path):
    make_trainer("grpo", tmp_path / "grpo", max_steps=4).train()
    with pytest.raises(ValueError, match="has changed since .*checkpoint-4"):
        make_trainer("distillation", tmp_path, max_steps=8).train(
            resume_from_checkpoint=str(tmp_path / "grpo" / "checkpoint-4")
        )


def test_a_checkpoint_without_its_rollout_inside_a_generation_batch_is_refused(tmp_path, whole):
    shutil.copytree(whole[0] / "checkpoint-6", tmp_path / "checkpoint-6")
    (tmp_path / "checkpoint-6" / "rollout_rank0.pt").unlink()
    with pytest.raises(ValueError, match="within a generation batch and holds no rollout.*multiple of 4"):
        make_trainer("distillation", tmp_path, max_steps=8).train(resume_from_checkpoint=True)


def test_a_run_with_an_adapter_teacher_is_resumed_with_that_teacher_and_trains_the_student_on(tmp_path):
    settings = {"max_steps": 4, "minibatches": 2, "passes": 2, "save_strategy": "steps", "save_steps": 3}
    settings |= by_name(tmp_path / "adapter")
    runs = []
    for name in ("whole", "resumed"):
        trainer = make_distillation(tmp_path / name, VERDICTS * 2, **settings)
        trainer.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3") if runs else None)
        runs.append((weights(trainer), logged(trainer, "loss")[-1]))
    (ours, loss), (again, found) = runs
    assert ours.keys() == again.keys() and all(torch.equal(weight, again[name]) for name, weight in ours.items())
    assert loss == found
    record = json.loads((tmp_path / "whole" / "checkpoint-3" / "objective.json").read_text())["distillation"]
    assert record["teacher_adapter_name"] == "teacher" and record["tau"] == 1.0
