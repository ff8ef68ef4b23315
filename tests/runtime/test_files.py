import json
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
import pytest

from scope_rlhf.runtime.files import read_json_lines, write_json, write_text


class Strategy(StrEnum):
    STEPS = "steps"


@dataclass
class Settings:
    alpha: float
    folder: Path


def test_json_is_strict_and_takes_what_arguments_hold(tmp_path):
    file = tmp_path / "deep" / "config.json"
    write_json(
        file,
        {
            "nan": float("nan"),
            "infinite": np.float64("inf"),
            "array": np.arange(3),
            "enum": Strategy.STEPS,
            "set": {"b", "a"},
            "tuple": (1, True, None),
            "settings": Settings(0.5, Path("runs/x")),
            3: "ü",
        },
    )
    assert json.loads(file.read_text(), parse_constant=pytest.fail) == {
        "nan": None,
        "infinite": None,
        "array": [0, 1, 2],
        "enum": "steps",
        "set": ["a", "b"],
        "tuple": [1, True, None],
        "settings": {"alpha": 0.5, "folder": "runs/x"},
        "3": "ü",
    }


def test_a_failed_write_leaves_the_old_file_and_no_draft(tmp_path, monkeypatch):
    file = tmp_path / "evaluation.json"
    write_text(file, "old")

    def full(_):
        raise OSError("No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_text(file, "new")
    assert file.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["evaluation.json"]


def test_a_cut_off_last_line_is_left_out_and_another_bad_line_is_named(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1}\n{"step": 2}\n{"step": 3, "lo')
    assert read_json_lines(file) == [{"step": 1}, {"step": 2}]
    file.write_text('{"step": 1}\nnot json\n{"step": 3}\n')
    with pytest.raises(ValueError, match="line 2 is not JSON"):
        read_json_lines(file)
    file.write_text("[1]\n")
    with pytest.raises(ValueError, match="line 1 is not a JSON object"):
        read_json_lines(file)
