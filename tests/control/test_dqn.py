import pytest
import torch

from scope_rlhf.control.config import DQNConfig
from scope_rlhf.control.dqn import crossed, due, exploration
from scope_rlhf.runtime import RunFolder
from tests.control import makers

SUPPORT = {"v_min": -0.5, "v_max": 1.5, "bins": 21}


@pytest.mark.parametrize(
    ("critic", "kwargs"),
    [("mse", None), ("two_hot", SUPPORT), ("c51", SUPPORT), ("hl_gauss", {**SUPPORT, "bins": 27, "padding_bins": 3})],
)
def test_every_critic_learns_the_values_of_the_arms(tmp_path, critic, kwargs):
    double = critic in ("mse", "c51")
    folder = makers.train("dqn", tmp_path, critic=critic, critic_kwargs=kwargs, double=double, exploration_final=0.5)
    run = RunFolder(folder)
    assert (run.read_evaluation() or {})["eval/episodic_return"] == 1.0
    weights = makers.learner(folder)["model"]
    config = DQNConfig(critic=critic, critic_kwargs=kwargs)
    from scope_rlhf.control.networks import QNetwork

    space = type("Space", (), {"shape": (3,), "low": -1, "dtype": torch.zeros(1).numpy().dtype})()
    network = QNetwork(space, 3, config.make_critic(), None, config.hidden_sizes)
    network.load_state_dict(weights)
    values = config.make_critic().decode(network(torch.tensor([[1.0, 0.0, -0.5]])))
    torch.testing.assert_close(values, torch.tensor([[0.0, 1.0, 0.3]]), atol=0.12, rtol=0)


def test_exploration_is_linear_after_the_random_start():
    config = DQNConfig(learning_starts=100, exploration_steps=200, exploration_final=0.1, total_timesteps=1000)
    assert [exploration(config, step) for step in (0, 99, 100, 200, 300, 900)] == pytest.approx(
        [1, 1, 1, 0.55, 0.1, 0.1]
    )


def test_updates_are_due_once_in_train_frequency_steps_however_many_environments_step_at_once():
    config = DQNConfig(learning_starts=10, train_frequency=4, total_timesteps=1000)
    for at_once in (1, 3, 8):
        steps = range(0, 240, at_once)
        done = sum(due(config, step, step + at_once) for step in steps)
        assert abs(done - (240 - 10) / 4) <= 2
    assert due(config, 0, 10) == 0
    assert [crossed(8, a, a + 3) for a in (0, 3, 5, 6, 8)] == [False, False, True, True, False]
