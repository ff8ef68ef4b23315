import pytest

from scope_rlhf.reports.frontier import _means, plot_frontier, read_frontier

PPO = {"name": "ppo", "class": "PPO", "parameters": {"policy_coef": 1.0}}
CONTROL = {"name": "ppo", "class": "PPO", "parameters": {"policy_coef": 0.9}}

pytestmark = pytest.mark.usefixtures("known_defaults")


def test_a_point_is_kl_against_the_judge_with_the_interval_of_its_gain(make_run):
    (point,) = read_frontier([make_run(objective=CONTROL, beta=0.1, seed=2, kl=7.5, gain=0.3)])
    assert (point.label, point.beta, point.seed, point.kl) == ("ppo(policy_coef=0.9)", 0.1, 2, 7.5)
    assert point.score == pytest.approx(0.8042)
    assert (point.low, point.high) == pytest.approx((0.8042 - 0.034, 0.8042 + 0.034))
    assert point.before == pytest.approx(0.5042)


def test_another_metric_can_stand_on_the_axis(make_run):
    assert read_frontier([make_run(gain=0.3)], metric="reward")[0].score == pytest.approx(0.5213 + 0.38)


def test_the_line_of_an_objective_goes_through_the_mean_of_its_seeds(make_run):
    runs = [
        make_run(f"{beta}-{seed}", objective=PPO, beta=beta, seed=seed, kl=kl, gain=gain)
        for beta, seed, kl, gain in [(0.3, 0, 4.0, 0.2), (0.3, 1, 6.0, 0.3), (0.01, 0, 20.0, 0.4)]
    ]
    (first, second) = _means(read_frontier(runs))
    assert first == pytest.approx((5.0, 0.5042 + 0.25))
    assert second == pytest.approx((20.0, 0.5042 + 0.4))


def test_the_picture_is_written(make_run, tmp_path):
    pytest.importorskip("matplotlib")
    runs = [
        make_run(f"{name}-{beta}", objective=objective, beta=beta, kl=2 / beta, gain=0.3)
        for name, objective in (("ppo", PPO), ("control", CONTROL))
        for beta in (0.1, 0.3)
    ]
    path = plot_frontier(read_frontier(runs), tmp_path / "pictures" / "frontier.png")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_run_without_evaluation_is_named(make_run, edit):
    folder = make_run()
    edit(folder / "evaluation.json", lambda evaluation: evaluation["metrics"].pop("kl"))
    with pytest.raises(ValueError, match="evaluation.json has no kl after training"):
        read_frontier([folder])
    (folder / "evaluation.json").unlink()
    with pytest.raises(ValueError, match="no kl and no judge"):
        read_frontier([folder])


def test_a_frontier_of_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one run"):
        plot_frontier([], tmp_path / "x.png")
