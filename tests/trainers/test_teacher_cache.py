"""The file of a remote teacher's log-probs."""

import sqlite3

import numpy as np
import pytest

from scope_rlhf.trainers.teacher_cache import LogProbCache


def test_rows_come_back_bit_by_bit_and_a_key_that_is_not_there_is_left_out(tmp_path):
    values = np.array([-0.1, -12.5, -1e-7], np.float32)
    LogProbCache(tmp_path / "folder" / "cache.sqlite").write([("a", values), ("b", values[:1])])
    found = LogProbCache(tmp_path / "folder" / "cache.sqlite").read({"a": 3, "c": 2})
    assert list(found) == ["a"] and found["a"].tobytes() == values.tobytes()


@pytest.mark.parametrize("damage", ["text", "cut", "overwritten"])
def test_a_damaged_file_is_an_error_that_names_it(tmp_path, damage):
    path = tmp_path / "cache.sqlite"
    LogProbCache(path).write([(f"key {i}", np.full(50, -1.0, np.float32)) for i in range(200)])
    content = path.read_bytes()
    damaged = {"text": b"log-probs\n" * 1000, "cut": content[: len(content) // 2],
               "overwritten": content[:4096] + b"\xff" * (len(content) - 4096)}  # fmt: skip
    path.write_bytes(damaged[damage])
    with pytest.raises(ValueError, match=r"cache\.sqlite, cannot be used: .*delete it"):
        LogProbCache(path).read({f"key {i}": 50 for i in range(200)})


@pytest.mark.parametrize(
    ("value", "message"),
    [(b"\0" * 7, "a row does not hold 2 log-probs"), ("ab", "does not hold 2"),
     (np.array([-1, np.nan], "<f4").tobytes(), "not finite")],
)  # fmt: skip
def test_a_row_of_something_else_is_an_error(tmp_path, value, message):
    path = tmp_path / "cache.sqlite"
    cache = LogProbCache(path)
    with sqlite3.connect(path) as connection:
        connection.execute("INSERT INTO log_probs VALUES ('a', ?)", (value,))
    connection.close()
    with pytest.raises(ValueError, match=message):
        cache.read({"a": 2})


def test_a_folder_that_cannot_be_written_is_the_same_error(tmp_path):
    (tmp_path / "cache.sqlite").mkdir()
    with pytest.raises(ValueError, match="cannot be used: unable to open database file"):
        LogProbCache(tmp_path / "cache.sqlite")
