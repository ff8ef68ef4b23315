import json

import pytest

from scope_rlhf.cli import main
from scope_rlhf.experiments.vision_arguments import parse_vision
from scope_rlhf.experiments.vision_table import ROW_SETS, expand_rows, row_flags
from tests.vision.folders import write_folder

SHORT = ["--num_train_epochs", "1", "--disable_tqdm", "true"]


def said(capsys, *argv):
    """Exit status and the error, on one line."""
    status = main(["vision", *argv])
    return status, " ".join(capsys.readouterr().err.split())


def test_the_defaults_are_those_of_the_data(tmp_path):
    digits = parse_vision([])
    assert (digits.network, digits.image_size, digits.imbalance_ratio) == ("cnn", 8, 50.0)
    folder = parse_vision(["--dataset_name", str(tmp_path)])
    assert (folder.network, folder.image_size, folder.imbalance_ratio) == ("resnet101", 224, 1.0)
    assert parse_vision(["--imbalance-ratio", "7"]).imbalance_ratio == 7.0


def test_a_file_gives_defaults_and_its_parameters_go_with_its_objective(tmp_path):
    file = tmp_path / "x.yaml"
    file.write_text('objective: scope\nobjective_kwargs: {"alpha": 0.3}\nseed: 5\n')
    config = parse_vision(["--config", str(file)])
    assert (config.make_objective().alpha, config.seed) == (0.3, 5)
    assert parse_vision(["--config", str(file), "--objective", "focal"]).make_objective().alpha == 1.0


def test_rows_are_sets_or_an_objective_with_a_remedy():
    assert expand_rows(["paper", "ppo"]) == ["ppo", "policy_entropy", "focal", "scope"]
    assert row_flags('scope {"alpha": 0.3} + ldam_drw {"scale": 10}') == [
        "--objective", "scope", "--objective_kwargs", '{"alpha": 0.3}',
        "--long_tail", "ldam_drw", "--long_tail_kwargs", '{"scale": 10}',
    ]  # fmt: skip
    assert len(ROW_SETS["all"]) == len(set(ROW_SETS["all"])) == 18


def test_a_table_goes_on_with_what_it_has_and_has_one_split_a_seed(tmp_path, capsys):
    flags = ["table", "--rows", "ppo", "scope", "--seeds", "2", "--jobs", "1", *SHORT]
    flags += ["--output_dir", str(tmp_path / "t")]
    assert main(["vision", *flags]) == 0
    printed = capsys.readouterr().out
    assert "0.281 / 0.244" in printed
    assert "cannot be told" in printed or "none differs" in printed or "higher" in printed or "lower" in printed
    splits = [json.loads((tmp_path / "t" / row / "seed-1" / "split.json").read_text()) for row in ("ppo", "scope")]
    assert splits[0]["train"] == splits[1]["train"]
    made = (tmp_path / "t" / "ppo" / "seed-2" / "model" / "model.safetensors").stat().st_mtime_ns
    assert main(["vision", *flags[:4], "ppo + class_balanced", *flags[4:]]) == 0
    assert (tmp_path / "t" / "ppo" / "seed-2" / "model" / "model.safetensors").stat().st_mtime_ns == made
    rows = {json.loads(line)["row"] for line in (tmp_path / "t" / "table.jsonl").read_text().splitlines()}
    assert rows == {"ppo", "scope", "ppo + class_balanced"}
    status, error = said(capsys, *flags, "--learning_rate", "0.1")
    assert status == 2
    assert "is of another table (learning_rate 0.003 -> 0.1); set another --output_dir" in error


def test_another_table_in_the_same_folder_is_refused_whatever_its_rows(tmp_path, capsys):
    """Rows of another ratio were trained on the first table's splits, without a word."""
    flags = ["table", "--seeds", "1", "--jobs", "1", *SHORT, "--output_dir", str(tmp_path / "t")]
    assert main(["vision", *flags, "--rows", "ppo"]) == 0
    status, error = said(capsys, *flags, "--rows", "scope", "--imbalance_ratio", "5")
    assert status == 2
    assert "is of another table (imbalance_ratio 50.0 -> 5.0); set another --output_dir" in error


def test_rows_of_a_file_that_are_no_texts_are_refused(tmp_path, capsys):
    (tmp_path / "x.yaml").write_text("rows: [ppo, 3]\n")
    status, error = said(capsys, "table", "--config", str(tmp_path / "x.yaml"))
    assert status == 2
    assert "rows must be texts" in error


def test_two_runs_at_a_time_give_what_one_gives(tmp_path, capsys):
    lines = []
    for jobs in ("1", "2"):
        flags = ["--rows", "ppo", "focal", "--seeds", "1", "--jobs", jobs, *SHORT, "--num_threads", "1"]
        assert main(["vision", "table", *flags, "--output_dir", str(tmp_path / jobs)]) == 0
        lines.append((tmp_path / jobs / "table.jsonl").read_text())
    assert lines[0] == lines[1]
    capsys.readouterr()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--objektive", "scope"], "did you mean --objective"),
        (["--dataset_name", "./nowhere"], "no such folder; expected <folder>/<class>/<image>"),
        (["--objective", "scope", "--objective_kwargs", "{alpha: 1}"], "objective_kwargs must be a JSON object"),
        (["table", "--rows", "scop"], "row 'scop': unknown objective 'scop'"),
        (["table", "--rows", "ppo + ldam"], "row 'ppo + ldam': long_tail 'ldam' is unknown"),
        (["table", "--rows", "ppo+ldam_drw"], "must be `objective [JSON] [+ remedy [JSON]]`"),
        (["table", "--rows", "ppo + "], "must be `objective [JSON] [+ remedy [JSON]]`"),
        (["table", "--rows", "ppo + a + b"], "must be `objective [JSON] [+ remedy [JSON]]`"),
        (["table", "--seeds", "0"], "seeds must be a whole number >= 1"),
        (["table", "--seeds", "x"], "argument --seeds: invalid int value"),
        (["table", "--published", "table3"], "published must be table1 or table2"),
        (["table", "--resume", "--output_dir", "x"], "resume is for one run"),
        (["table", "--objective", "scope"], "objective is for the rows of a table; set --rows"),
        (["table", "--long_tail=ldam_drw"], "long_tail is for the rows of a table; set --rows"),
        (["table", "--seed", "3"], "seed is for one run; set --first_seed and --seeds"),
        (["--image_size", "20000"], "need 718.8 GB of memory"),
        (["table", "--colour", "1"], "--colour"),
    ],
)
def test_what_cannot_work_is_told_in_one_line_before_anything_is_made(tmp_path, monkeypatch, capsys, argv, message):
    monkeypatch.chdir(tmp_path)
    status, error = said(capsys, *argv)
    assert status == 2
    assert error.startswith("error: ")
    assert message in error
    assert list(tmp_path.iterdir()) == []


def test_a_users_own_objective_classifies(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\n"
        "from scope_rlhf.objectives import PolicyInputs, PolicyLoss\n"
        "@dataclass(frozen=True)\n"
        "class Mine:\n"
        "    power: float = 0.7\n"
        "    def __call__(self, inputs: PolicyInputs) -> PolicyLoss:\n"
        "        p = inputs.log_probs.exp()\n"
        "        return PolicyLoss((1 - p**self.power) / self.power * inputs.advantages, {})\n"
    )
    monkeypatch.chdir(tmp_path)
    flags = ["--objective", "mine.py:Mine", *SHORT, "--num_train_epochs", "8", "--output_dir", "run"]
    assert main(["vision", *flags]) == 0
    assert json.loads((tmp_path / "run/evaluation.json").read_text())["metrics"]["accuracy"] > 0.4


def test_a_folder_is_classified_from_the_command_line(tmp_path):
    write_folder(tmp_path / "data", 12)
    flags = ["--dataset_name", str(tmp_path / "data"), "--network", "cnn", "--image_size", "16", "--augmentation"]
    flags += ["paper", "--num_train_epochs", "6", "--per_device_train_batch_size", "8", "--disable_tqdm", "true"]
    flags += ["--cache_dir", str(tmp_path / "cache"), "--output_dir", str(tmp_path / "run")]
    assert main(["vision", *flags]) == 0
    found = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert found["metrics"]["accuracy"] > 0.8
