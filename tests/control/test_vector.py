"""Environments over scripted vector environments: one sequence of transitions, whatever the autoreset mode."""

import gymnasium
import numpy as np
import pytest

from scope_rlhf.control.vector import Environments, every_end
from tests.control.scripted import MODES, SPOILT, ScriptedEnv, ScriptedVector, place

SCRIPT = [
    [([1.0, 2.0, 4.0], "terminated"), ([0.5], "truncated"), ([8.0, -16.0], "both")],
    [([3.0, -1.0], "truncated"), ([0.25, 0.75, 32.0, 1.0], "terminated")],
    [([7.0], "both")],
]


def act(observations):
    """An action that depends on the state alone, so that all modes do the same."""
    return (observations @ np.array([100.0, 10.0, 1.0]) % 1000).astype(np.int64)


def play(environments, steps):
    """Counted transitions (s, a, r, terminated, truncated, s') of each environment; s' None at a termination."""
    found = [[] for _ in range(environments.num_envs)]
    taken, observations = [], environments.reset(0)
    for _ in range(steps):
        actions = act(observations)
        step = environments.step(actions)
        taken.append(step)
        for i in np.flatnonzero(step.counts):
            after = step.observations[i]
            if step.truncated[i]:
                assert step.final_observations is not None
                after = step.final_observations[i]
            after = None if step.terminated[i] else after.tolist()
            end = bool(step.terminated[i]), bool(step.truncated[i])
            found[i].append((observations[i].tolist(), int(actions[i]), float(step.rewards[i]), *end, after))
        observations = step.observations
    return found, taken


def expected_transitions(i, count, prefix=True):
    """The first `count` transitions of environment i, from the script alone."""
    found, number = [], 0
    where = place if prefix else lambda _, episode, t: place(0, episode, t)[1:]
    while len(found) < count:
        planned, end = SCRIPT[i][number % len(SCRIPT[i])]
        for t, reward in enumerate(planned):
            last = t + 1 == len(planned)
            terminated, truncated = last and end in ("terminated", "both"), last and end == "truncated"
            before, after = where(i, number, t), where(i, number, t + 1)
            found.append((before, reward, terminated, truncated, None if terminated else after))
        number += 1
    return found[:count]


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_gives_the_transitions_of_the_script_and_termination_wins_over_truncation(mode):
    found, _ = play(Environments(ScriptedVector(SCRIPT, mode)), 30)
    for i, transitions in enumerate(found):
        # A step of reset after each episode is lost with next_step only.
        assert len(transitions) == 30 if mode != "NEXT_STEP" else 15 <= len(transitions) < 30
        without_actions = [(s, r, *rest) for s, _, r, *rest in transitions]
        assert without_actions == expected_transitions(i, len(transitions))
        assert all(a == act(np.array(s)) for s, a, *_ in transitions)


def test_all_modes_give_the_same_sequence_of_counted_transitions():
    sequences = [play(Environments(ScriptedVector(SCRIPT, mode)), 40)[0] for mode in MODES]
    for one, other in zip(sequences[0] + sequences[0], sequences[1] + sequences[2], strict=True):
        common = min(len(one), len(other))
        assert common >= 20 and one[:common] == other[:common]


def test_the_step_after_an_end_is_no_transition_and_its_reward_and_flags_never_leak():
    _, steps = play(Environments(ScriptedVector(SCRIPT, "NEXT_STEP")), 30)
    counts = np.stack([step.counts for step in steps])
    ended = np.stack([step.terminated | step.truncated for step in steps])
    assert (counts[1:] == ~ended[:-1]).all() and counts[0].all()
    assert (~counts).sum(axis=0).tolist() == [9, 7, 15]
    for step in steps:
        assert (step.rewards[~step.counts] == 0).all() and (step.rewards < SPOILT).all()
        assert not (step.terminated | step.truncated)[~step.counts].any()
        assert not (step.terminated & step.truncated).any()


@pytest.mark.parametrize("mode", ["SAME_STEP", "DISABLED"])
def test_every_step_counts_where_nothing_is_spent_on_a_reset(mode):
    _, steps = play(Environments(ScriptedVector(SCRIPT, mode)), 30)
    assert all(step.counts.all() for step in steps)


@pytest.mark.parametrize("mode", MODES)
def test_final_observations_are_those_of_the_episode_that_was_cut(mode):
    _, steps = play(Environments(ScriptedVector(SCRIPT, mode)), 30)
    cut = 0
    for step in steps:
        assert (step.final_observations is not None) == step.truncated.any()
        for i in np.flatnonzero(step.truncated):
            _, episode, length = step.final_observations[i]
            planned, end = SCRIPT[i][int(episode) % len(SCRIPT[i])]
            assert end == "truncated" and length == len(planned) and step.final_observations[i][0] == i
            # What is acted on next is the start of the next episode, or for next_step a step of reset comes first.
            follows = place(i, episode, length) if mode == "NEXT_STEP" else place(i, episode + 1, 0)
            assert step.observations[i].tolist() == follows
            cut += 1
    assert cut >= 7


@pytest.mark.parametrize("mode", MODES)
def test_returns_and_lengths_are_those_of_the_script(mode):
    _, steps = play(Environments(ScriptedVector(SCRIPT, mode)), 60)
    for i, episodes in enumerate(SCRIPT):
        found = [e for step in steps for e in step.episodes if e.environment == i]
        assert len(found) > 10
        for number, episode in enumerate(found):
            planned, _ = episodes[number % len(episodes)]
            assert (episode.episodic_return, episode.length) == (sum(planned), len(planned))


def test_a_reset_forgets_the_running_return_and_the_pending_reset():
    environments = Environments(ScriptedVector(SCRIPT, "NEXT_STEP"))
    environments.reset(0)
    environments.step(np.zeros(3, dtype=np.int64))
    environments.reset(0)
    steps = [environments.step(np.zeros(3, dtype=np.int64)) for _ in range(3)]
    assert steps[0].counts.all()
    assert [e.episodic_return for step in steps for e in step.episodes if e.environment == 0] == [7.0]


def test_an_end_of_the_learner_only_goes_on_counting_the_return_and_is_followed_by_a_transition():
    def lives(terminated, truncated, infos):
        # Environment 0 loses a life in its first step, and the game goes on.
        over = (terminated | truncated) & np.array([False, True, True])
        return over, over

    class Game(ScriptedVector):
        def step(self, actions):
            observations, rewards, terminated, truncated, infos = super().step(actions)
            if self.episode[0] == 0 and self.t[0] == 1:
                terminated[0] = True
            return observations, rewards, terminated, truncated, infos

    script = [[([1.0, 2.0, 4.0, 8.0], "truncated")], *SCRIPT[1:]]
    environments = Environments(Game(script, "NEXT_STEP"), episode_end=lives)
    environments.reset(0)
    first, second = (environments.step(np.zeros(3, dtype=np.int64)) for _ in range(2))
    assert first.terminated[0] and not any(e.environment == 0 for e in first.episodes)
    assert second.counts[0] and second.rewards[0] == 2.0 and not second.terminated[0]
    assert environments._returns[0] == 3.0


def test_a_same_step_truncation_without_final_obs_raises():
    class Silent(ScriptedVector):
        def step(self, actions):
            return *super().step(actions)[:4], {}

    environments = Environments(Silent(SCRIPT, "SAME_STEP"))
    environments.reset(0)
    environments.step(np.zeros(3, dtype=np.int64))
    with pytest.raises(RuntimeError, match="gave no final_obs"):
        environments.step(np.zeros(3, dtype=np.int64))


def test_the_mode_is_read_from_the_metadata_or_given_and_an_unknown_one_is_refused():
    envs = ScriptedVector(SCRIPT, "SAME_STEP")
    assert Environments(envs).autoreset == "same_step"
    assert Environments(envs, autoreset="disabled").autoreset == "disabled"
    envs.metadata = {}
    assert Environments(envs).autoreset == "next_step"
    with pytest.raises(ValueError, match="autoreset mode 'sometimes' given, expected next_step, same_step or disabled"):
        Environments(envs, autoreset="sometimes")


def test_close_closes_and_a_crashed_environment_closes_silently():
    envs = ScriptedVector(SCRIPT, "NEXT_STEP")
    Environments(envs).close()
    assert envs.closed
    envs.close = lambda: 1 / 0  # type: ignore[method-assign]
    Environments(envs, episode_end=every_end).close()


@pytest.mark.parametrize("mode", MODES)
def test_gymnasiums_own_vector_environment_gives_the_transitions_of_the_script(mode):
    made = [lambda episodes=episodes: ScriptedEnv(episodes) for episodes in SCRIPT]
    envs = gymnasium.vector.SyncVectorEnv(made, autoreset_mode=gymnasium.vector.AutoresetMode[mode])
    environments = Environments(envs)
    assert environments.autoreset == mode.lower()
    found, lengths = [[] for _ in SCRIPT], []
    observations = environments.reset(0)
    for _ in range(30):
        step = environments.step(np.zeros(3, dtype=np.int64))
        final = step.observations if step.final_observations is None else step.final_observations
        for i in np.flatnonzero(step.counts):
            after = final[i] if step.truncated[i] else step.observations[i]
            end = bool(step.terminated[i]), bool(step.truncated[i])
            after = None if step.terminated[i] else after.tolist()
            found[i].append((observations[i].tolist(), float(step.rewards[i]), *end, after))
        lengths += [e.length for e in step.episodes if e.environment == 1]
        observations = step.observations
    for i, transitions in enumerate(found):
        assert transitions == expected_transitions(i, len(transitions), prefix=False)
    assert lengths == ([2, 4] * 10)[: len(lengths)] and len(lengths) >= 7
    environments.close()


def test_cartpoles_vector_entry_point_is_the_single_environment_stepped_by_hand():
    envs = gymnasium.make_vec("CartPole-v1", num_envs=3)
    assert type(envs.unwrapped).__name__ == "CartPoleVectorEnv"
    environments = Environments(envs)
    single = gymnasium.make("CartPole-v1").unwrapped
    rng = np.random.default_rng(0)
    observations = environments.reset(0)
    ends, running = 0, np.zeros(3, dtype=int)
    for _ in range(120):
        actions = rng.integers(2, size=3)
        step = environments.step(actions)
        for i in np.flatnonzero(step.counts):
            single.reset()
            single.state = observations[i].astype(np.float64)  # type: ignore[attr-defined]
            after, reward, terminated, *_ = single.step(actions[i])
            np.testing.assert_allclose(step.observations[i], after, atol=1e-5)
            assert step.rewards[i] == reward and step.terminated[i] == terminated
        running += step.counts
        for episode in step.episodes:
            assert episode.episodic_return == episode.length == running[episode.environment]
            running[episode.environment] = 0
            ends += 1
        starts = step.observations[~step.counts]
        assert (np.abs(starts) <= 0.05).all()
        observations = step.observations
    assert ends >= 6


def test_cartpole_is_truncated_at_its_limit_with_the_last_state_as_the_final_observation():
    environments = Environments(gymnasium.make_vec("CartPole-v1", num_envs=2, max_episode_steps=5))
    environments.reset(0)
    steps = [environments.step(np.array([t % 2, 1 - t % 2])) for t in range(7)]
    assert [step.truncated.tolist() for step in steps] == [[False] * 2] * 4 + [[True] * 2] + [[False] * 2] * 2
    assert [step.counts.tolist() for step in steps] == [[True] * 2] * 5 + [[False] * 2, [True] * 2]
    assert steps[4].final_observations is not None
    np.testing.assert_array_equal(steps[4].final_observations, steps[4].observations)
    assert [(e.episodic_return, e.length) for e in steps[4].episodes] == [(5.0, 5), (5.0, 5)]
