"""Running moments against numpy on all rows, over splits and over processes; the two normalisers against slow loops."""

import threading
from concurrent.futures import ThreadPoolExecutor

import gymnasium
import numpy as np
import pytest
import torch

from scope_rlhf.control.normalisation import ObservationNormaliser, RewardNormaliser, RunningMeanStd
from tests.control.scripted import ScriptedVector


def rows(count, shape=(3,), seed=0, offset=5.0):
    return np.random.default_rng(seed).normal(offset, 2.0, (count, *shape))


def assert_moments(moments, seen):
    assert moments.count == len(seen)
    np.testing.assert_allclose(moments.mean, seen.mean(0), rtol=1e-10)
    np.testing.assert_allclose(moments.variance, seen.var(0), rtol=1e-9)


@pytest.mark.parametrize("shape", [(), (3,), (2, 2)])
@pytest.mark.parametrize("cuts", [[], [1], [1, 2, 3, 4], [13, 13, 40]])
def test_moments_are_numpys_over_all_rows_in_any_split(shape, cuts):
    seen = rows(50, shape)
    moments = RunningMeanStd(shape)
    for part in np.split(seen, cuts):
        moments.update(part)
    assert_moments(moments, seen)


def test_a_large_mean_costs_no_precision():
    seen = rows(1000, offset=1e7)
    moments = RunningMeanStd((3,))
    for part in np.split(seen, 100):
        moments.update(part)
    np.testing.assert_allclose(moments.variance, seen.var(0), rtol=1e-6)


def test_before_the_first_row_the_variance_is_1_and_no_rows_change_nothing():
    moments = RunningMeanStd((2,))
    moments.update(np.zeros((0, 2)))
    assert moments.count == 0 and moments.variance.tolist() == [1.0, 1.0] and moments.mean.tolist() == [0.0, 0.0]


def together(processes, parts):
    """Update each process with its part and synchronise all, threads in the place of processes."""
    barrier, sent = threading.Barrier(len(processes), timeout=60), [torch.zeros(0)] * len(processes)

    def run(rank):
        def all_reduce(tensor):
            sent[rank] = tensor
            barrier.wait()
            total = torch.stack(sent).sum(0)
            barrier.wait()
            return total

        processes[rank].update(parts[rank])
        processes[rank].synchronise(all_reduce)

    with ThreadPoolExecutor(len(processes)) as pool:
        list(pool.map(run, range(len(processes))))


@pytest.mark.parametrize("shape", [(), (3,)])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_after_each_synchronisation_every_process_has_the_moments_of_all_rows_of_all(shape, offset):
    processes = [RunningMeanStd(shape), RunningMeanStd(shape)]
    seen = np.zeros((0, *shape))
    # The third time one process has seen nothing, the fourth time nobody has.
    for number, (first, second) in enumerate([(7, 4), (1, 12), (0, 5), (0, 0), (3, 3)]):
        parts = [rows(first, shape, 2 * number, offset), rows(second, shape, 2 * number + 1, offset + number)]
        together(processes, parts)
        seen = np.concatenate([seen, *parts])
        for moments in processes:
            assert moments.count == len(seen)
            np.testing.assert_allclose(moments.mean, seen.mean(0), rtol=1e-9, atol=1e-9)
            np.testing.assert_allclose(moments.variance, seen.var(0), rtol=1e-6)
        np.testing.assert_array_equal(processes[0].mean, processes[1].mean)
        np.testing.assert_array_equal(processes[0].squares, processes[1].squares)


def test_moments_move_between_synchronisations_and_are_still_common_after_the_next_one():
    processes = [RunningMeanStd(), RunningMeanStd()]
    together(processes, [rows(4, ()), rows(4, (), 1)])
    processes[0].update(rows(6, (), 2))
    assert processes[0].count == 14 and processes[1].count == 8
    together(processes, [rows(2, (), 3), rows(1, (), 4)])
    seen = np.concatenate([rows(4, ()), rows(4, (), 1), rows(6, (), 2), rows(2, (), 3), rows(1, (), 4)])
    for moments in processes:
        assert_moments(moments, seen)


def test_one_process_synchronises_to_what_it_was():
    moments, twin = RunningMeanStd((3,)), RunningMeanStd((3,))
    for number in range(3):
        for m in (moments, twin):
            m.update(rows(5, seed=number))
        moments.synchronise(None)
        twin.synchronise(lambda tensor: tensor)
    assert_moments(moments, np.concatenate([rows(5, seed=n) for n in range(3)]))
    np.testing.assert_allclose(twin.squares, moments.squares, rtol=1e-12)


def test_a_saved_state_goes_on_as_the_original_and_shares_no_memory_with_it():
    original = [RunningMeanStd((3,)), RunningMeanStd((3,))]
    together(original, [rows(4), rows(6, seed=1)])
    state = original[0].state_dict()
    resumed = [RunningMeanStd((3,)), RunningMeanStd((3,))]
    for moments in resumed:
        moments.load_state_dict(state)
    for pair in (original, resumed):
        together(pair, [rows(2, seed=7), rows(3, seed=8)])
    for one, other in zip(original, resumed, strict=True):
        assert one.count == other.count == 15
        np.testing.assert_array_equal(one.mean, other.mean)
        np.testing.assert_array_equal(one.squares, other.squares)
    assert state["count"] == 10


def test_observations_are_scaled_by_all_counted_rows_so_far_and_clipped_at_10():
    normaliser = ObservationNormaliser((2,))
    seen = rows(6, (2,))
    counts = np.array([True, False, True, True, True, True])
    scaled = normaliser(seen, counts)
    counted = seen[counts]
    expected = (seen - counted.mean(0)) / np.sqrt(counted.var(0) + 1e-8)
    np.testing.assert_allclose(scaled, expected, rtol=1e-5)
    assert scaled.dtype == np.float32
    far = normaliser(np.array([[1e6, -1e6]]))
    assert far.tolist() == [[10.0, -10.0]] and normaliser.moments.count == 5


def slow_reward_scales(rewards, ended, counts, gamma):
    """Scaled rewards [T, N] by a loop over environments and all running returns so far."""
    running, everything, scaled = [0.0] * rewards.shape[1], [], []
    for r, e, c in zip(rewards, ended, counts, strict=True):
        for i in range(len(r)):
            if c[i]:
                running[i] = running[i] * gamma + r[i]
                everything.append(running[i])
        spread = np.sqrt(np.var(everything) + 1e-8)
        scaled.append([max(-10.0, min(10.0, x / spread)) for x in r])
        running = [0.0 if end else x for x, end in zip(running, e, strict=True)]
    return np.array(scaled)


def test_rewards_are_divided_by_the_spread_of_the_discounted_returns_of_a_slow_loop():
    rng = np.random.default_rng(0)
    rewards, ended = rng.normal(1, 3, (60, 4)), rng.random((60, 4)) < 0.15
    counts = np.ones((60, 4), dtype=bool)
    counts[1:] = ~ended[:-1]
    ended &= counts
    rewards[~counts] = 0
    normaliser = RewardNormaliser(4, 0.9)
    found = np.array([normaliser(*step) for step in zip(rewards, ended, counts, strict=True)])
    np.testing.assert_allclose(found, slow_reward_scales(rewards, ended, counts, 0.9), rtol=1e-5, atol=1e-6)
    assert found.dtype == np.float32 and np.abs(found).max() <= 10 and np.abs(found[-1]).max() > 0.05


def test_scaled_rewards_are_gymnasiums_where_no_episode_ends():
    """gymnasium starts its moments with a count of 1e-4: the two agree once many rewards are seen."""
    rng = np.random.default_rng(1)
    rewards = rng.normal(1, 3, (400, 3))
    script = [[(rewards[:, i].tolist(), "truncated")] for i in range(3)]

    class Vector(ScriptedVector, gymnasium.vector.VectorEnv):  # wrappers take only VectorEnvs
        pass

    theirs = gymnasium.wrappers.vector.NormalizeReward(Vector(script, "NEXT_STEP"), gamma=0.95)
    theirs.reset()
    expected = np.array([theirs.step(np.zeros(3, dtype=np.int64))[1] for _ in range(399)])
    ours, never, always = RewardNormaliser(3, 0.95), np.zeros(3, dtype=bool), np.ones(3, dtype=bool)
    found = np.array([ours(step, never, always) for step in rewards[:399]])
    np.testing.assert_allclose(found[50:], expected[50:], rtol=1e-4)


def test_a_restart_forgets_the_running_returns_and_keeps_the_moments():
    normaliser, ones, no = RewardNormaliser(2, 0.9), np.ones(2, dtype=bool), np.zeros(2, dtype=bool)
    for reward in (1.0, 5.0, -3.0):
        normaliser(np.array([reward, 2 * reward]), no, ones)
    count = normaliser.moments.count
    normaliser.restart()
    normaliser(np.array([7.0, 11.0]), no, ones)
    assert normaliser.moments.count == count + 2
    # R restarts at the reward itself: 7 and 11, beside 1, .9 + 5, 5.31 - 3 and twice those.
    seen = np.array([1, 5.9, 2.31, 2, 11.8, 4.62, 7, 11])
    assert normaliser.moments.variance == pytest.approx(seen.var())
