import json

import pytest

from scope_rlhf.reports import write_report
from scope_rlhf.reports.run_report import honest_notes

pytestmark = pytest.mark.usefixtures("known_defaults")


def notes_of(**metrics):
    return " ".join(honest_notes({"metrics": {"judge": {}, **metrics}}, [], {}))


def test_report_says_what_was_run_and_what_came_of_it(make_run, markdown_tables):
    folder = make_run(seed=3)
    text = write_report(folder).read_text()
    settings, result, objective, samples, environment = markdown_tables(text)
    assert text.startswith("# scope(alpha=0.3), seed 3\n")
    assert ["policy", "embedded/reviews-gpt2"] in settings
    assert ["steps", "120"] in settings
    assert ["held-out judge, P(positive)", "0.504", "0.824", "+0.320", "[+0.286, +0.354]"] in result
    assert ["perplexity under the reference", "44.31", "51.87", "+7.560", "[+4.360, +10.76]"] in result
    assert ["alpha", "0.3"] in objective
    assert ["trl", "1.16.0"] in environment
    assert "-min(r A, clip(r) A) + alpha p log p" in text
    assert "python recipes/imdb_scope.py --beta 0.05 --seed 3" in text
    assert "0123456789abcdef0123456789abcdef01234567 with uncommitted changes" in text
    assert len(samples) == 1 + 5


def test_samples_stand_side_by_side_whatever_they_contain(make_run, markdown_tables):
    samples = markdown_tables(write_report(make_run()).read_text())[3]
    assert samples[0] == ["prompt", "before", "after"]
    assert samples[1] == [
        "I watched this film | twice and",
        "it was *dull*. The end <br /> drags onreward 0.310, judge 0.280",
        "it was wonderful, a real gemreward 0.970, judge 0.934",
    ]
    assert all(len(row) == 3 for row in samples)


def test_the_picture_is_linked_only_where_it_exists(make_run):
    folder = make_run()
    assert "curves.png" not in write_report(folder).read_text()
    (folder / "curves.png").touch()
    assert "](curves.png)" in write_report(folder).read_text()


def test_an_unfinished_run_has_a_report_without_results(make_run):
    folder = make_run()
    for name in ("evaluation.json", "samples.jsonl", "metrics.jsonl"):
        (folder / name).unlink()
    text = write_report(folder).read_text()
    assert "has no evaluation.json" in text
    assert "## Samples" not in text


def test_a_config_with_nothing_but_the_objective_has_a_report(tmp_path):
    (tmp_path / "config.json").write_text('{"objective": {"name": "own", "class": "Own", "file": "own.py"}}')
    text = write_report(tmp_path).read_text()
    assert "Own" in text
    assert "not a git checkout" in text


def test_a_users_own_objective_is_named_with_its_hash(make_run, edit, markdown_tables):
    folder = make_run()
    own = {"name": "mine.py:Mine", "class": "Mine", "parameters": {"tau": 2.0}, "file": "mine.py", "sha256": "ab" * 32}
    edit(folder / "config.json", lambda config: config.update(objective=own))
    objective = markdown_tables(write_report(folder).read_text())[2]
    assert ["SHA-256 of the file", "ab" * 32] in objective
    assert ["tau", "2"] in objective


def test_a_run_without_kl_penalty_still_reports_its_kl(make_run):
    assert "KL to the reference" in write_report(make_run(beta=0.0)).read_text()


def test_a_resumed_run_says_so(make_run, edit):
    folder = make_run()
    edit(folder / "config.json", lambda config: config.update(earlier=[{"command": ["a"]}]))
    assert "resumed 1 time" in write_report(folder).read_text()


def test_notes_name_what_is_doubtful_and_only_that():
    fine = {
        "reward": {"difference": 0.4},
        "judge": {"difference": 0.35, "low": 0.3, "high": 0.4},
        "kl": {"after": 9.0},
        "perplexity": {"before": 44.0, "after": 50.0},
        "distinct_2": {"before": 0.68, "after": 0.64},
    }
    assert "was optimised" in notes_of(**fine)
    doubts = ("contains 0", "fits the reward model", "far from the reference", "times its start", "Distinct-2 changed")
    assert not any(doubt in notes_of(**fine) for doubt in doubts)
    assert "contains 0" in notes_of(**fine | {"judge": {"difference": 0.3, "low": -0.01, "high": 0.4}})
    assert "fits the reward model" in notes_of(**fine | {"judge": {"difference": 0.1, "low": 0.05, "high": 0.2}})
    assert "far from the reference" in notes_of(**fine | {"kl": {"after": 15.1}})
    assert "1.6 times its start" in notes_of(**fine | {"perplexity": {"before": 40.0, "after": 64.0}})
    assert "changed by -20%" in notes_of(**fine | {"distinct_2": {"before": 0.5, "after": 0.4}})


def test_a_run_without_any_judge_is_told_what_it_cannot_see():
    assert "No held-out judge" in " ".join(honest_notes({}, [{"step": 1, "rewards/a/mean": 0.1}], {}))
    assert "No held-out judge" not in " ".join(honest_notes({}, [{"step": 1, "rewards/my_judge/mean": 0.1}], {}))


def test_a_judge_that_is_the_reward_model_is_called_so(make_run, edit):
    folder = make_run()
    assert "reward model itself" not in write_report(folder).read_text()
    edit(folder / "config.json", lambda c: c["arguments"].update(judge_model_name_or_path="embedded/sentiment-reward"))
    assert "reward model itself" in write_report(folder).read_text()


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="config.json"):
        write_report(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps([1]))
    with pytest.raises(ValueError, match="not a JSON object"):
        write_report(tmp_path)
