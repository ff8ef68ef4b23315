"""What the learner sees of a reward: sign, flips, scale and noise in their order; actions that stick."""

import numpy as np
import pytest
import torch

from scope_rlhf.control.normalisation import RewardNormaliser
from scope_rlhf.control.rewards import RewardShaper, StickyActions

N = 5000
ALL, NONE = np.ones(N, dtype=bool), np.zeros(N, dtype=bool)


def shape(rewards, **given):
    rewards = np.asarray(rewards, dtype=np.float32)
    shaper = RewardShaper(len(rewards), 0.99, 0, **given)
    return shaper(rewards, NONE[: len(rewards)], ALL[: len(rewards)])


def test_without_options_rewards_are_what_they_were():
    rewards = np.array([-3.5, 0.0, 1e-3, 400.0], dtype=np.float32)
    shaped = shape(rewards)
    np.testing.assert_array_equal(shaped, rewards)
    assert shaped.dtype == np.float32


def test_clipped_rewards_are_their_signs():
    assert shape([-3.5, 0.0, 1e-3, 400.0], clip_rewards=True).tolist() == [-1.0, 0.0, 1.0, 1.0]


def test_signs_are_flipped_at_the_rate_asked_for_and_sizes_are_kept():
    rewards = np.random.default_rng(3).uniform(1, 2, N).astype(np.float32)
    shaped = shape(rewards, reward_flip_probability=0.1)
    np.testing.assert_array_equal(np.abs(shaped), rewards)
    flipped = (shaped < 0).mean()
    assert abs(flipped - 0.1) < 4 * (0.1 * 0.9 / N) ** 0.5
    assert (shape(rewards, reward_flip_probability=1.0) == -rewards).all()


def test_noise_is_gaussian_with_the_spread_asked_for():
    noise = shape(np.full(N, 2.0), reward_noise_std=0.05) - 2.0
    assert abs(noise.mean()) < 4 * 0.05 / N**0.5
    assert noise.std() == pytest.approx(0.05, rel=0.05)


def test_each_step_and_each_seed_has_noise_of_its_own_and_a_seed_repeats_it():
    def stream(seed):
        shaper = RewardShaper(N, 0.99, seed, reward_flip_probability=0.5)
        return [shaper(np.ones(N), NONE, ALL) for _ in range(2)]

    one, again, other = stream(1), stream(1), stream(2)
    np.testing.assert_array_equal(one, again)
    for pair in ((one[0], one[1]), (one[0], other[0])):
        assert (pair[0] == pair[1]).mean() == pytest.approx(0.5, abs=0.05)


def test_noise_leaves_the_generators_of_torch_and_numpy_where_they_were():
    torch.manual_seed(0)
    np.random.seed(0)
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    shape(np.ones(N), reward_flip_probability=0.3, reward_noise_std=1.0, normalize_rewards=True)
    StickyActions(0.5, 0)(np.zeros(N, dtype=np.int64))
    assert torch.equal(state, torch.get_rng_state())
    np.testing.assert_array_equal(numpy_state, np.random.get_state()[1])


def test_the_noise_and_the_sticking_of_one_seed_are_not_the_same_draws():
    noise, sticky = RewardShaper(N, 0.99, 7, reward_flip_probability=0.5), StickyActions(0.5, 7)
    flipped = noise(np.ones(N), NONE, ALL) < 0
    sticky(np.zeros(N, dtype=np.int64))
    sticky.observe(NONE, ALL)
    noise_again = noise(np.ones(N), NONE, ALL) < 0
    stuck = sticky(np.ones(N, dtype=np.int64)) == 0
    for draws in (flipped, noise_again):
        assert (draws == stuck).mean() == pytest.approx(0.5, abs=0.05)


def test_the_sign_comes_first_then_the_flip_then_the_scale_then_the_noise():
    rng = np.random.default_rng(0)
    rewards = rng.normal(0, 5, (20, N))
    given = {"reward_flip_probability": 0.3, "reward_noise_std": 0.05}
    shaper = RewardShaper(N, 0.99, 4, clip_rewards=True, normalize_rewards=True, **given)
    found = [shaper(r, NONE, ALL) for r in rewards]
    draws = np.random.default_rng()
    draws.bit_generator.state = RewardShaper(N, 0.99, 4).state_dict()["generator"]
    scale = RewardNormaliser(N, 0.99)
    for r, shaped in zip(rewards, found, strict=True):
        flipped = np.where(draws.random(N) < 0.3, -1, 1) * np.sign(r)
        expected = scale(flipped, NONE, ALL) + 0.05 * draws.standard_normal(N)
        np.testing.assert_allclose(shaped, expected, rtol=1e-5, atol=1e-6)


def test_noise_is_added_after_the_scaling_and_so_has_its_own_spread_whatever_the_scale():
    shaper = RewardShaper(N, 0.0, 0, normalize_rewards=True, reward_noise_std=0.05)
    rewards = np.where(np.arange(N) % 2, 1000.0, -1000.0)
    shaped = shaper(rewards, NONE, ALL)
    assert (shaped - np.sign(rewards)).std() == pytest.approx(0.05, rel=0.05)


def test_rows_that_do_not_count_give_0_and_enter_no_statistics():
    shaper = RewardShaper(
        4, 0.9, 0, normalize_rewards=True, reward_noise_std=1.0, reward_flip_probability=0.5, clip_rewards=True
    )
    counts = np.array([True, False, True, False])
    for _ in range(5):
        shaped = shaper(np.ones(4), NONE[:4], counts)
        assert (shaped[~counts] == 0).all() and (shaped[counts] != 0).all()
    assert shaper.normaliser is not None and shaper.normaliser.moments.count == 10


def test_a_saved_shaper_continues_the_same_stream_with_new_episodes():
    given = {"normalize_rewards": True, "reward_noise_std": 0.5, "reward_flip_probability": 0.2}
    rewards = np.random.default_rng(0).normal(1, 2, (6, 8))
    no, yes = NONE[:8], ALL[:8]
    original, resumed = RewardShaper(8, 0.9, 3, **given), RewardShaper(8, 0.9, 99, **given)
    for r in rewards[:2]:
        original(r, no, yes)
    original(rewards[2], yes, yes)  # all episodes end: nothing runs on
    resumed.load_state_dict(original.state_dict())
    for r in rewards[3:]:
        np.testing.assert_array_equal(original(r, no, yes), resumed(r, no, yes))


def test_a_saved_shaper_lets_no_running_return_go_on_into_the_new_episodes():
    original, resumed = (RewardShaper(2, 0.9, 0, normalize_rewards=True) for _ in range(2))
    no, yes = NONE[:2], ALL[:2]
    for shaper in (original, resumed):
        shaper(np.array([100.0, -50.0]), no, yes)
    resumed.load_state_dict(original.state_dict())
    resumed(np.array([1.0, 2.0]), no, yes)
    assert resumed.normaliser is not None
    assert resumed.normaliser.moments.variance == pytest.approx(np.var([100.0, -50.0, 1.0, 2.0]))


def test_actions_stick_at_the_rate_asked_for_to_what_was_done_not_to_what_was_chosen():
    sticky = StickyActions(0.25, 0)
    done = sticky(np.zeros(N, dtype=np.int64))
    assert (done == 0).all()  # nothing to repeat yet
    repeated = []
    for number in range(1, 6):
        sticky.observe(NONE, ALL)
        before, done = done, sticky(np.full(N, number))
        assert ((done == before) | (done == number)).all()
        repeated.append((done == before).mean())
    assert np.mean(repeated) == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / (5 * N)) ** 0.5)
    # A chain of two: .25^2 of the environments still do what they did two steps ago.
    assert (done == 3).mean() == pytest.approx(0.75 * 0.25**2, abs=0.01)


def test_continuous_actions_stick_in_all_their_dimensions_at_once():
    sticky = StickyActions(0.5, 0)
    sticky(np.zeros((N, 3)))
    sticky.observe(NONE, ALL)
    done = sticky(np.ones((N, 3)))
    assert (done == done[:, :1]).all() and done.mean() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("border", ["ended", "reset"])
def test_nothing_sticks_over_the_border_of_an_episode(border):
    sticky = StickyActions(1.0, 0)
    sticky(np.zeros(4, dtype=np.int64))
    over = np.array([True, False, True, False])
    sticky.observe(*((over, ALL[:4]) if border == "ended" else (NONE[:4], ~over)))
    assert sticky(np.ones(4, dtype=np.int64)).tolist() == [1, 0, 1, 0]
    sticky.observe(NONE[:4], ALL[:4])
    assert sticky(np.full(4, 2)).tolist() == [1, 0, 1, 0]


def test_without_a_probability_actions_pass_untouched():
    actions = np.arange(5)
    sticky = StickyActions(0.0, 0)
    assert sticky(actions) is actions and sticky(actions + 1).tolist() == [1, 2, 3, 4, 5]


def test_a_saved_stickiness_continues_the_same_stream_and_starts_with_nothing_to_repeat():
    original, resumed = StickyActions(0.5, 3), StickyActions(0.5, 4)
    for sticky in (original, original, original, resumed):
        sticky(np.zeros(N, dtype=np.int64))
    resumed.observe(NONE, ALL)  # it would repeat what it did before it was loaded
    resumed.load_state_dict(original.state_dict())
    original.observe(ALL, ALL)  # new episodes, as the resumed one has them
    for number in range(1, 4):
        done = [sticky(np.full(N, number)) for sticky in (original, resumed)]
        np.testing.assert_array_equal(*done)
        assert number > 1 or (done[0] == 1).all()
        for sticky in (original, resumed):
            sticky.observe(NONE, ALL)
    assert len(np.unique(done[0])) == 3
