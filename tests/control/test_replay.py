"""The replay against a plain list of transitions, over ends, lost lives, truncations and many rounds of both rings."""

from collections import deque

import numpy as np
import pytest
import torch

from scope_rlhf.control.replay import Replay, check_memory

FRAME = (5, 4)


class Play:
    """N environments that make random episodes: stacks of frames, or vectors.

    A life is lost now and then: terminated, and the stack goes on. `mode`: next_step spends a step on each reset;
    same_step starts anew in the step of the end.
    """

    def __init__(self, num_envs, depth, seed, mode="next_step", mean_length=9):
        self.rng, self.n, self.depth, self.mode, self.mean = (
            np.random.default_rng(seed),
            num_envs,
            depth,
            mode,
            mean_length,
        )
        self.stacks = [self._first() for _ in range(num_envs)]
        self.resetting = np.zeros(num_envs, dtype=bool)

    def _frame(self):
        return self.rng.integers(0, 256, FRAME, dtype=np.uint8) if self.depth else self.rng.normal(size=3).astype("f4")

    def _first(self):
        if not self.depth:
            return self._frame()
        # As different environments do it: zeros before the first frame, or the first frame in all places.
        frame = self._frame()
        older = np.zeros_like(frame) if self.rng.random() < 0.5 else frame
        return np.stack([older] * (self.depth - 1) + [frame])

    def _following(self, stack):
        return np.concatenate([stack[1:], self._frame()[None]]) if self.depth else self._frame()

    def step(self):
        """(observations, actions, rewards, terminated, next observations, counts) of one step."""
        before = np.stack(self.stacks)
        actions, rewards = self.rng.integers(6, size=self.n), self.rng.normal(size=self.n).astype("f4")
        terminated, following, counts = np.zeros(self.n, dtype=bool), [], ~self.resetting
        for i in range(self.n):
            if self.resetting[i]:
                self.stacks[i], self.resetting[i] = self._first(), False
                following.append(self.stacks[i])
                continue
            after = self._following(self.stacks[i])
            following.append(after)
            draw = self.rng.random()
            terminated[i] = draw < 1 / self.mean
            lost_life = draw < 0.3 / self.mean
            if draw < 1.5 / self.mean and not lost_life:  # over, by termination or truncation
                if self.mode == "same_step":
                    after = self._first()
                else:
                    self.resetting[i] = True
            self.stacks[i] = after
        return before, actions, rewards, terminated, np.stack(following), counts


class Naive:
    """The newest transitions of each environment, whole."""

    def __init__(self, slots, num_envs):
        self.rows = [deque(maxlen=slots) for _ in range(num_envs)]

    def add(self, observations, actions, rewards, terminated, following, counts):
        for i in np.flatnonzero(counts):
            row = (observations[i].tobytes(), int(actions[i]), float(rewards[i]), bool(terminated[i]))
            self.rows[i].append((*row, following[i].tobytes()))


def rows_of(batch):
    names = ("observations", "actions", "rewards", "terminated", "next_observations")
    columns = [batch[name].numpy() for name in names]
    return [(o.tobytes(), int(a), float(r), bool(t), f.tobytes()) for o, a, r, t, f in zip(*columns, strict=True)]


def make(capacity, num_envs, depth):
    shape = (depth, *FRAME) if depth else (3,)
    return Replay(capacity, num_envs, shape, np.dtype("uint8" if depth else "f4"), stacked=bool(depth))


@pytest.mark.parametrize("mode", ["next_step", "same_step"])
@pytest.mark.parametrize(("num_envs", "depth"), [(1, 4), (3, 4), (2, 1), (3, 0)])
def test_sampled_transitions_are_bit_for_bit_among_the_newest_ones_of_a_plain_list(num_envs, depth, mode):
    slots = 40
    replay, naive = make(slots * num_envs, num_envs, depth), Naive(slots, num_envs)
    play, rng = Play(num_envs, depth, 0, mode, mean_length=40), np.random.default_rng(1)
    found = set()
    for number in range(12 * slots):
        step = play.step()
        replay.add(*step)
        naive.add(*step)
        kept = {row for rows in naive.rows for row in rows}
        assert len(replay) == sum(map(len, naive.rows)) == len(kept)
        if number in (3, slots - 1) or number % 37 == 36:
            sampled = set(rows_of(replay.sample(64 * num_envs, rng)))
            assert sampled <= kept
            found |= sampled
    assert len(found) > 5 * slots * num_envs  # what was sampled really went round
    assert len({row[3] for row in found}) == 2


@pytest.mark.parametrize("depth", [4, 0])
def test_every_stored_transition_can_be_drawn_and_all_are_equally_likely(depth):
    replay, naive = make(60, 2, depth), Naive(30, 2)
    play = Play(2, depth, 3, mean_length=100)
    for _ in range(200):
        step = play.step()
        replay.add(*step)
        naive.add(*step)
    drawn = rows_of(replay.sample(6000, np.random.default_rng(0)))
    kept = [row for rows in naive.rows for row in rows]
    counts = np.array([drawn.count(row) for row in kept])
    assert counts.sum() == 6000 and len(kept) == 60
    assert (np.abs(counts - 100) < 5 * 10).all()


def test_short_episodes_drop_the_oldest_transitions_and_never_mix_their_frames():
    """Each start takes a whole stack of frames: with episodes of two steps the frames run out before the slots."""
    replay, naive = make(50, 1, 4), Naive(50, 1)
    play = Play(1, 4, 5, mean_length=2)
    for _ in range(1500):
        step = play.step()
        replay.add(*step)
        naive.add(*step)
    drawn = set(rows_of(replay.sample(3000, np.random.default_rng(0))))
    newest_last = list(naive.rows[0])
    assert drawn <= set(newest_last)
    assert 10 < len(drawn) < 50
    assert drawn == set(newest_last[-len(drawn) :])


def test_a_lost_life_is_a_termination_after_which_the_stack_goes_on_without_new_frames():
    frames = np.arange(8, dtype=np.uint8).reshape(8, 1, 1) * np.ones(FRAME, dtype=np.uint8)
    stacks = np.stack([frames[t : t + 4] for t in range(5)])
    replay = make(20, 1, 4)
    for t in range(4):
        replay.add(
            stacks[t][None], np.array([t]), np.array([1.0]), np.array([t == 1]), stacks[t + 1][None], np.ones(1, bool)
        )
    assert replay._newest.tolist() == [7]  # eight frames for five stacks
    batch = replay.sample(200, np.random.default_rng(0))
    for t in range(4):
        rows = batch["actions"] == t
        assert rows.any() and (batch["terminated"][rows] == (t == 1)).all()
        assert (batch["observations"][rows].numpy() == stacks[t]).all()
        assert (batch["next_observations"][rows].numpy() == stacks[t + 1]).all()


def test_rows_that_do_not_count_are_left_out():
    replay = make(20, 2, 0)
    one = np.ones((2, 3), dtype="f4")
    replay.add(one, np.zeros(2), np.zeros(2), np.zeros(2, bool), 2 * one, np.array([False, True]))
    assert len(replay) == 1
    replay.add(one, np.zeros(2), np.zeros(2), np.zeros(2, bool), 2 * one, np.array([False, False]))
    assert len(replay) == 1


def test_the_observation_may_be_overwritten_by_its_environment_after_it_was_added():
    replay = make(20, 1, 0)
    first, buffer, last = (np.full((1, 3), x, dtype="f4") for x in (1, 2, 11))
    rest = np.zeros(1), np.zeros(1), np.zeros(1, bool)
    replay.add(first, *rest, buffer, np.ones(1, bool))
    buffer[:] = 10  # the next episode starts in the same memory
    replay.add(buffer, *rest, last, np.ones(1, bool))
    batch = replay.sample(50, np.random.default_rng(0))
    assert sorted(set(batch["observations"][:, 0].tolist())) == [1.0, 10.0]
    torch.testing.assert_close(batch["next_observations"], batch["observations"] + 1)


def test_memory_is_about_one_frame_for_a_transition():
    replay = Replay(10_000, 8, (4, 84, 84), np.dtype("uint8"), stacked=True)
    arrays = [x for x in vars(replay).values() if isinstance(x, np.ndarray)]
    assert 10_000 * 84 * 84 <= sum(x.nbytes for x in arrays) < 1.09 * 10_000 * 84 * 84


@pytest.mark.parametrize(("num_envs", "depth"), [(2, 4), (3, 0)])
@pytest.mark.parametrize("before", [7, 90])
def test_a_saved_replay_goes_on_as_the_original(num_envs, depth, before):
    replay, play = make(30 * num_envs, num_envs, depth), Play(num_envs, depth, 2)
    for _ in range(before):
        replay.add(*play.step())
    resumed = make(30 * num_envs, num_envs, depth)
    resumed.load_state_dict(replay.state_dict())
    for steps in (0, 1, 50):
        for _ in range(steps):
            step = play.step()
            replay.add(*step)
            resumed.add(*step)
        one, other = (r.sample(100, np.random.default_rng(5)) for r in (replay, resumed))
        assert len(replay) == len(resumed)
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_saved_replay_is_no_larger_than_what_is_filled():
    replay, play = make(4000, 1, 4), Play(1, 4, 0)
    for _ in range(10):
        replay.add(*play.step())
    assert replay.state_dict()["frames"].shape[1] < 60


def test_dtypes_are_those_a_loss_takes():
    replay, play = make(20, 2, 4), Play(2, 4, 0)
    replay.add(*play.step())
    batch = replay.sample(3, np.random.default_rng(0))
    assert batch["observations"].shape == batch["next_observations"].shape == (3, 4, *FRAME)
    found = {name: batch[name].dtype for name in batch}
    assert found == {
        "observations": torch.uint8,
        "actions": torch.int64,
        "rewards": torch.float32,
        "terminated": torch.bool,
        "next_observations": torch.uint8,
    }


def test_refusals():
    with pytest.raises(ValueError, match="buffer_size=3 is less than the 4 environments; set --buffer_size."):
        make(3, 4, 4)
    with pytest.raises(ValueError, match="the replay is empty: nothing to sample"):
        make(10, 1, 4).sample(1, np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"replay holds \(2, 10\) transitions .* this run's \(2, 15\)"):
        make(30, 2, 4).load_state_dict(make(20, 2, 4).state_dict())


def test_a_replay_that_the_machine_cannot_hold_is_refused_with_its_size():
    """numpy's traceback, or the kernel's killer once it was full."""
    with pytest.raises(ValueError, match=r"buffer_size=10000000000 needs 69,\d{3}.\d GiB .*set --buffer_size"):
        check_memory(10**10, (84, 84), np.dtype(np.uint8))
