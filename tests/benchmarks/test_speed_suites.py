"""The speed suites run, find a wrong result before they time it, and measure the memory that a variant adds."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from benchmarks import run
from benchmarks.speed import head, padding, ppo, step
from benchmarks.speed.measure import ROOT, Options, Row, Section, fresh_peaks, offered, slope
from scope_rlhf.models import sampling

TINY = ["--rows", "64", "--vocabulary", "512", "--width", "32", "--repetitions", "2", "--skip-peaks"]


def test_the_head_suite_runs_from_the_command_line_and_writes_its_table_and_what_it_measured(tmp_path):
    words = [sys.executable, "-m", "benchmarks.run", "--suite", "head", *TINY, "--output-dir", str(tmp_path)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    written = json.loads((tmp_path / "speed_head.json").read_text())
    frozen, trained = (section["rows"] for section in written["sections"])
    assert [row["variant"] for row in frozen] == offered(head.FROZEN, Options())
    assert [row["variant"] for row in trained] == list(head.TRAINED)
    assert all(len(row["seconds"]) == 2 for row in frozen + trained)
    assert all(set(row["errors"]) == set(head.BOUNDS) for row in trained)
    assert {"torch", "trl", "transformers", "peft", "python"} <= set(written["versions"])
    assert written["machine"].endswith("one thread") and "load before" in written and "date" in written
    page = (tmp_path / "speed_head.md").read_text()
    assert "--rows 64" in page and written["machine"] in page and "| jacobian |" in page
    assert "jacobian" in done.stdout and "median ms" in done.stdout


def test_a_variant_that_is_wrong_fails_the_suite_and_gets_no_time(monkeypatch, tmp_path, capsys):
    score = head.SCORES["jacobian"]

    def wrong(batch):
        log_probs, entropy = score(batch)
        return log_probs + 0.01, entropy

    monkeypatch.setitem(head.SCORES, "jacobian", wrong)
    assert run.main(["--suite", "head", *TINY, "--output-dir", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "jacobian: log p is off by 1.00e-02, allowed 5.0e-06" in " ".join(printed.split())
    rows = {
        row["variant"]: row for row in json.loads((tmp_path / "speed_head.json").read_text())["sections"][0]["rows"]
    }
    assert rows["jacobian"]["seconds"] == [] and rows["jacobian"]["peak_mib"] is None
    assert len(rows["trl"]["seconds"]) == 2


@pytest.mark.parametrize("part", ["entropy", "gradient"])
def test_a_wrong_entropy_or_gradient_is_found_too(part):
    options = Options(repetitions=1, skip_peaks=True)
    batch = head.make_batch(64, 512, 32, options)
    result = head.forward_and_backward("jacobian", batch)
    expected = head.compute_reference(batch)[1]
    assert all(error <= head.BOUNDS[name] for name, error in head.find_errors(result, expected).items())
    off = replace(result, **{part: getattr(result, part) * 1.01})
    broken = {name for name, error in head.find_errors(off, expected).items() if error > head.BOUNDS[name]}
    assert broken == {part}


def test_a_result_that_is_no_number_is_wrong():
    assert Row("case", "variant", {"log p": (float("nan"), 1.0)}).faults
    assert not Row("case", "variant", {"log p": (1.0, 1.0)}).faults


def test_the_jacobian_head_needs_at_most_half_the_memory_of_trl():
    options = Options(rows=512, vocabulary=20000, width=64)
    trl, jacobian = fresh_peaks("head", "frozen", ["trl", "jacobian"], options)
    assert 0 < jacobian <= 0.5 * trl


def test_a_ratio_is_the_median_of_ratios_within_a_repetition():
    # Within repetitions 2/2, 3/4 and 10/9: median 1. The ratio of the medians would be 3/4.
    rows = [Row("a", "trl", seconds=[2.0, 4.0, 9.0]), Row("a", "ours", seconds=[2.0, 3.0, 10.0])]
    rows += [Row("b", "trl", seconds=[8.0]), Row("b", "ours", seconds=[2.0])]
    section = Section("", rows)
    assert [section.ratio(row, "trl") for row in rows] == [1.0, 1.0, 1.0, 0.25]
    assert section.ratio(rows[1], "floor") is None


def test_the_slope_of_a_power_law_is_its_exponent():
    assert slope([1.0, 2.0, 8.0], [3.0, 12.0, 192.0]) == pytest.approx(2.0)


SMALL = ["--shape", "1x32", "--vocabulary", "128", "--prompt", "4", "--completion", "8", "--batch", "4"]


def test_the_suites_of_trainers_find_all_sides_right_and_rate_each(tmp_path):
    words = ["--suite", "train", "objectives", "generate", "padding", *SMALL, "--repetitions", "1", "--skip-peaks"]
    assert run.main([*words, "--output-dir", str(tmp_path)]) == 0
    for name, variants in (("train", 4), ("padding", 3), ("generate", 2)):
        for section in json.loads((tmp_path / f"speed_{name}.json").read_text())["sections"]:
            assert len(section["rows"]) >= variants
            assert all(len(row["seconds"]) == 1 and row["errors"] for row in section["rows"])
    rows = json.loads((tmp_path / "speed_objectives.json").read_text())["sections"][0]["rows"]
    assert rows[0]["variant"] == "ppo" and "policy_entropy" not in {row["variant"] for row in rows}
    tokens = {
        row["variant"]: int(row["more"]["processed tokens"].replace(",", ""))
        for row in json.loads((tmp_path / "speed_padding.json").read_text())["sections"][0]["rows"]
    }
    prompts, completions = padding.draw_lengths(Options(batch=4, completion=8))
    assert tokens["trl"] == 32 * (prompts.max() + completions.max()) > tokens["scope"] > (prompts + completions).sum()


def test_a_gptj_is_measured_with_its_tokens_per_second(tmp_path):
    words = ["--suite", "train", "generate", *SMALL, "--shape", "gptj1x32", "--repetitions", "1", "--skip-peaks"]
    assert run.main([*words, "--output-dir", str(tmp_path)]) == 0
    section = json.loads((tmp_path / "speed_train.json").read_text())["sections"][0]
    assert {row["case"] for row in section["rows"]} == {"gptj1x32 train"}
    rows = [Row(**row) for row in section["rows"]]
    assert all(row.tokens == 4 * (4 + 8) for row in rows)
    assert float(Section("", rows).lines()[0]["tokens/s"].replace(",", "")) == pytest.approx(
        48 / rows[0].median, rel=0.01
    )


def test_a_trainer_whose_loss_is_off_gets_no_time(monkeypatch, tmp_path, capsys):
    from scope_rlhf.trainers import ScopeGRPOTrainer

    reduce = ScopeGRPOTrainer._reduce
    monkeypatch.setattr(ScopeGRPOTrainer, "_reduce", lambda *args: 1.01 * reduce(*args))
    words = ["--suite", "train", "padding", *SMALL, "--repetitions", "1", "--skip-peaks", "--output-dir", str(tmp_path)]
    assert run.main(words) == 1
    assert "jacobian: loss is off by 1.00e-02" in " ".join(capsys.readouterr().out.split())
    for name, section, ours in (("train", 0, ("jacobian", "scope, dense")), ("padding", 0, ("scope",))):
        rows = json.loads((tmp_path / f"speed_{name}.json").read_text())["sections"][section]["rows"]
        timed = {row["variant"] for row in rows if row["seconds"]}
        assert timed == {"trl"} and set(ours) <= {row["variant"] for row in rows}


def test_a_sampler_that_always_takes_the_likeliest_token_gets_no_time(monkeypatch, tmp_path):
    def take_likeliest(p):
        return p.argmax(dim=1, keepdim=True), p.sum(dim=1, keepdim=True).double()

    monkeypatch.setattr(sampling, "draw", take_likeliest)
    words = ["--suite", "generate", *SMALL, "--repetitions", "1", "--skip-peaks", "--output-dir", str(tmp_path)]
    assert run.main(words) == 1
    rows = json.loads((tmp_path / "speed_generate.json").read_text())["sections"][0]["rows"]
    assert {row["variant"] for row in rows if row["seconds"]} == {"trl"}
    # Its log-probs are those of the tokens that it took: only the test of the draws tells.
    assert all(row["errors"]["log p"][0] < 1e-4 for row in rows if row["variant"] in ("sampler", "merged"))


def test_processes_that_did_other_work_than_trl_get_no_time():
    one = {"tokens": [512, 512], "steps": [1, 1], "gap": None, "seconds": 1.0, "sampling": 0.5, "peak_mib": 1.0}
    assert step.row_of("4x256", "scope", [one, one], [one, one], Options()).seconds == [1.0, 1.0]
    for other in ({"tokens": [512, 511]}, {"steps": [1, 2]}, {"gap": 0.01}, {"gap": float("nan")}):
        assert step.row_of("4x256", "scope", [one, one | other], [one, one], Options()).seconds == []
    assert step.row_of("4x256", "scope, bfloat16 rollout", [one | {"gap": 0.01}], [one], Options()).seconds == [1.0]


def test_a_ppo_update_is_rated_without_its_sampling_and_only_on_equal_work():
    def run_of(side, tokens):
        update = {"cpu_seconds": 5.0, "sampling_cpu_seconds": 2.0, "tokens": tokens, "steps": 8}
        return {"side": side, "critic": "model", "updates": [update], "peak_mib": 1, "median_cpu_seconds": 5.0}

    assert ppo.row_of("4x256", ("scope", "model"), [run_of("scope", 64), run_of("trl", 64)]).seconds == [3.0]
    row = ppo.row_of("4x256", ("scope", "model"), [run_of("scope", 63), run_of("trl", 64)])
    assert row.seconds == [] and "tokens unlike TRL's is off by 1.00e+00" in row.faults[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--shape", "12"], "--shape 12 is not layers x width"),
        (["ppo", "--shape", "gptj1x32"], "the suite ppo has GPT-2 models only"),
        (["--repetitions", "0"], "--repetitions must be at least 1, got 0"),
        (["ppo", "--trl-python", "/none/python"], "venv trl112"),
        (["ppo", "--trl-python", sys.executable], "(it has TRL 1.16"),
        (["--beta", "-1"], "--beta must be at least 0, got -1.0"),
    ],
)
def test_settings_that_cannot_work_are_refused(words, message, capsys):
    with pytest.raises(SystemExit):
        run.main(["--suite", "head", *words])
    assert message in capsys.readouterr().err
