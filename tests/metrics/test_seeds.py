import pytest

from scope_rlhf.metrics import SeedResult, compare, significance


def results(shift=0.03, seeds=6):
    """ppo, a row that is higher by `shift` in every seed, and one that is not."""
    found = []
    for seed in range(seeds):
        base = 0.8 + 0.01 * seed
        wobble = 0.004 * (-1) ** seed
        for row, value in (("ppo", base), ("ppo + ldam_drw", base + shift + wobble / 2), ("scope", base + wobble)):
            found.append(SeedResult(row, seed, {"macro_precision": value}))
    return found


def test_differences_are_paired_by_seed():
    found = compare(results(), "macro_precision")
    mean, gap = found["ppo + ldam_drw"]
    assert gap is not None
    assert gap.value == pytest.approx(0.03)
    # Paired: the spread of the seeds themselves, ten times as wide, does not enter.
    assert gap.high - gap.low < 0.2 * (mean.high - mean.low)
    assert found["ppo"][1] is None


def test_seeds_that_the_first_row_lacks_do_not_enter_a_difference():
    some = [r for r in results() if not (r.row == "ppo" and r.seed == 5)]
    gap = compare(some, "macro_precision")["scope"][1]
    assert gap is not None
    assert gap.n == 5


def test_what_can_be_told_is_said_and_what_cannot_as_well():
    said = significance(results(), "macro_precision")
    assert "95 % over 2 comparisons (Bonferroni)" in said
    assert "ppo + ldam_drw higher; the other 1 cannot be told from it" in said
    assert "none differs" in significance(results(shift=0.0), "macro_precision")
    assert "one seed tells no difference" in significance(results(seeds=1), "macro_precision")
    lower = [SeedResult(r.row, r.seed, {"macro_precision": -r.metrics["macro_precision"]}) for r in results()]
    assert "ppo + ldam_drw lower" in significance(lower, "macro_precision")


def test_another_control_than_the_first_row_has_the_differences_turned_around():
    ours = compare(results(), "macro_precision", control="ppo + ldam_drw")
    first, (_, gap) = ours["ppo + ldam_drw"], ours["ppo"]
    assert first[1] is None and gap is not None and gap.value == pytest.approx(-0.03)
    assert "against ppo + ldam_drw" in significance(results(), "macro_precision", "precision", "ppo + ldam_drw")
