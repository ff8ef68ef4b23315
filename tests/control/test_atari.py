"""Atari's protocols on the real games: lost lives, whole episodes, unclipped rewards, and gymnasium's wrappers."""

import gymnasium
import numpy as np
import pytest

pytest.importorskip("ale_py")

from scope_rlhf.control.atari import ATARI_PROTOCOLS, AtariProtocol, _gymnasium_episode_end, atari_games, make_atari
from scope_rlhf.control.environments import make_environments, make_parts, resolve_environment, single_atari
from scope_rlhf.control.vector import Environments

NO_FRAMESKIP = ATARI_PROTOCOLS["NoFrameskip-v4"]


class Watched:
    """Environments whose infos are kept beside the steps."""

    def __init__(self, environments):
        self.environments, self.infos = environments, {}
        inner = environments.episode_end

        def watch(terminated, truncated, infos):
            self.infos = {key: np.array(infos[key]) for key in ("lives", "episode_frame_number") if key in infos}
            return inner(terminated, truncated, infos)

        environments.episode_end = watch

    def play(self, steps, seed=0):
        """(step, infos) of random play."""
        rng = np.random.default_rng(seed)
        self.environments.reset(seed)
        for _ in range(steps):
            actions = rng.integers(self.environments.action_space.n, size=self.environments.num_envs)
            yield self.environments.step(actions), self.infos


def breakout(training, **kwargs):
    return make_atari("Breakout", "ale", NO_FRAMESKIP, 2, 0, training=training, kwargs={"num_threads": 1, **kwargs})


def test_the_protocols_are_those_of_the_table():
    assert {
        "v5": AtariProtocol(0.25, 4, 0, False, False, False),
        "NoFrameskip-v4": AtariProtocol(0.0, 4, 30, True, True, False),
        "v0": AtariProtocol(0.25, 4, 0, False, False, True),
    } == ATARI_PROTOCOLS


def test_a_lost_life_terminates_for_the_learner_the_next_step_counts_and_the_game_goes_on():
    watched = Watched(breakout(training=True))
    returns, lengths, lives, frames = np.zeros(2), np.zeros(2, dtype=int), np.full(2, 5), np.zeros(2)
    lost, over, was_over = 0, 0, np.zeros(2, dtype=bool)
    for step, infos in watched.play(600):
        returns += step.rewards
        lengths += step.counts
        ended = {episode.environment: episode for episode in step.episodes}
        for i in range(2):
            # Only a finished game is followed by a step of reset, with all its lives.
            assert step.counts[i] == (not was_over[i])
            if was_over[i]:
                assert infos["lives"][i] == 5 and not step.terminated[i]
            else:
                assert infos["lives"][i] == lives[i] - step.terminated[i]
                assert infos["episode_frame_number"][i] > frames[i]
            if i in ended:
                assert step.terminated[i] and infos["lives"][i] == 0
                assert (ended[i].episodic_return, ended[i].length) == (returns[i], lengths[i])
                returns[i], lengths[i] = 0, 0
            assert (i in ended) == (step.terminated[i] and infos["lives"][i] == 0)
            lost += step.terminated[i] and i not in ended
            over += i in ended
            was_over[i] = i in ended
        lives, frames = infos["lives"], infos["episode_frame_number"]
        assert not step.truncated.any() and step.final_observations is None
    assert over >= 4 and lost >= 4 * over  # five lives to a game
    watched.environments.close()


def test_in_evaluation_a_lost_life_ends_nothing():
    watched = Watched(breakout(training=False))
    terminations, episodes, least = 0, 0, 5
    for step, infos in watched.play(400):
        terminations += int(step.terminated.sum())
        episodes += len(step.episodes)
        least = min(least, int(infos["lives"][step.counts & ~step.terminated].min(initial=5)))
    assert terminations == episodes >= 2 and least == 1
    watched.environments.close()


def test_observations_are_stacks_of_which_a_lost_life_clears_nothing():
    environments = breakout(training=True)
    watched, before, seen = Watched(environments), None, 0
    for step, _ in watched.play(150):
        if before is not None and step.counts[0]:
            np.testing.assert_array_equal(step.observations[0, :-1], before[1:])
            seen += bool(step.terminated[0])
        before = step.observations[0].copy()
    assert seen >= 2 and before.shape == (4, 84, 84)
    environments.close()


@pytest.mark.parametrize("protocol", ["v5", "NoFrameskip-v4"])
def test_rewards_are_the_points_of_the_game(protocol):
    spec = resolve_environment("atari", "MsPacman", protocol=protocol, env_kwargs={"num_threads": 1})
    assert spec.backend == "ale"
    environments = make_environments(spec, 1, 0)
    rewards = np.concatenate([step.rewards for step, _ in Watched(environments).play(150)])
    assert set(np.unique(rewards)) >= {0.0, 10.0} and (rewards % 10 == 0).all()
    environments.close()


def test_an_episode_is_cut_at_the_limit_of_frames_with_its_last_observation():
    watched = Watched(breakout(training=True, max_num_frames_per_episode=60, noop_max=0, use_fire_reset=False))
    steps = list(watched.play(20))
    (cut,) = (t for t, (step, _) in enumerate(steps) if step.truncated[0])
    step, infos = steps[cut]
    assert infos["lives"][0] > 0 and infos["episode_frame_number"][0] >= 60
    assert step.final_observations is not None
    np.testing.assert_array_equal(step.final_observations[0, :-1], steps[cut - 1][0].observations[0, 1:])
    assert [e.length for e in step.episodes if e.environment == 0] == [cut + 1]
    assert not steps[cut + 1][0].counts[0]
    watched.environments.close()


def test_a_seed_repeats_the_games_and_its_environments_differ():
    def play(seed):
        environments = breakout(training=True)
        last = [step.observations for step, _ in Watched(environments).play(20, seed)][-1]
        environments.close()
        return last

    one, again, other = play(3), play(3), play(4)
    np.testing.assert_array_equal(one, again)
    assert (one != other).any() and (one[0] != one[1]).any()


def test_the_two_parts_of_a_game_play_as_one_and_a_run_takes_two():
    spec = resolve_environment("atari", "Breakout", protocol="NoFrameskip-v4")
    whole, parts = [make_environments(spec, 5, 0)], make_parts(spec, 5, 0)
    assert [part.num_envs for part in parts] == [2, 3] and all(part.background for part in parts)
    rng = np.random.default_rng(0)
    games = [
        [[part.reset(3 + at) for part, at in zip(made, starts, strict=True)]]
        for made, starts in ((whole, [0]), (parts, [0, 2]))
    ]
    for _ in range(150):
        actions = rng.integers(4, size=5)
        for made, seen, cuts in ((whole, games[0], [0, 5]), (parts, games[1], [0, 2, 5])):
            for part, start, stop in zip(made, cuts, cuts[1:], strict=False):
                part.send(actions[start:stop])
            steps = [part.receive() for part in made]
            seen.append([x for step in steps for x in (step.observations, step.rewards[:, None], step.counts[:, None])])
    for a, b in zip(*games, strict=True):
        kinds = 3 if len(a) == 3 else 1
        for kind in range(kinds):
            np.testing.assert_array_equal(np.concatenate(a[kind::kinds]), np.concatenate(b[kind::kinds]))
    for environments in (*whole, *parts):
        environments.close()


def test_games_have_the_names_of_their_roms():
    games = atari_games()
    assert len(games) > 100
    assert {games[name] for name in ("Breakout", "MsPacman", "MontezumaRevenge")} == {
        "breakout",
        "ms_pacman",
        "montezuma_revenge",
    }


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("breakout", {}, "'breakout' is not in suite atari, did you mean Breakout"),
        ("MsPackman", {}, "did you mean MsPacman"),
        ("BreakoutNoFrameskip-v4", {}, "expected the game alone, 'Breakout'; its protocol is --protocol v5 or"),
        ("ALE/Pong-v5", {}, "expected the game alone, 'Pong'"),
        ("Pong", {"protocol": "v4"}, "protocol 'v4' is unknown"),
        ("Pong", {"repeat_action_probability": 1.5}, "repeat_action_probability must lie in [0, 1], got 1.5"),
        ("Pong", {"protocol": "v0", "backend": "envpool"}, "draws its frameskip, backend envpool takes one number"),
        ("Pong", {"backend": "c++"}, "backend 'c++' given, suite atari has ale, envpool, gymnasium; set --backend."),
    ],
)
def test_a_game_or_a_protocol_that_is_not_there_is_refused_with_what_is(name, given, message, monkeypatch):
    if given.get("backend") == "envpool":
        monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    with pytest.raises(ValueError) as error:
        resolve_environment("atari", name, **given)
    assert message in str(error.value)


def test_options_replace_what_the_protocol_says():
    spec = resolve_environment("atari", "Pong", episodic_life=True, repeat_action_probability=0.5)
    assert spec.protocol == "v5" and spec.atari == AtariProtocol(0.5, 4, 0, True, False, False)
    kept = resolve_environment("atari", "Pong", protocol="NoFrameskip-v4", episodic_life=False)
    assert kept.atari == AtariProtocol(0.0, 4, 30, False, True, False)


def test_without_opencv_the_backend_gymnasium_says_what_to_install_before_a_game_starts(monkeypatch):
    from importlib.util import find_spec

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "cv2" else find_spec(name))
    for given in ({"backend": "gymnasium"}, {"protocol": "v0"}):
        with pytest.raises(ImportError, match=r'needs cv2. Install with `pip install "scope-rlhf\[atari\]"`'):
            resolve_environment("atari", "Pong", **given)
    assert resolve_environment("atari", "Pong").backend == "ale"


class Game(gymnasium.Env):
    """A game of three lives: a life is lost every third step; step t gives the reward 2^t; action 1 fires."""

    observation_space = gymnasium.spaces.Box(0, 255, (1,), np.uint8)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self):
        self.ale, self.actions = self, []

    def lives(self):
        return 3 - self.t // 3

    def get_action_meanings(self):
        return ["NOOP", "FIRE"]

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return np.array([0], dtype=np.uint8), {}

    def step(self, action):
        self.actions.append(int(action))
        self.t += 1
        return np.array([self.t], dtype=np.uint8), 2.0 ** (self.t - 1), self.t == 9, False, {}


def lives_of(game, episodic, fire):
    from scope_rlhf.control.atari_gymnasium import _Lives

    envs = gymnasium.vector.SyncVectorEnv([lambda: _Lives(game, episodic, fire)])
    environments = Environments(envs, episode_end=_gymnasium_episode_end)
    environments.reset(0)
    return environments


def test_the_return_of_a_game_has_the_rewards_around_a_lost_life_and_no_frame_is_played_unseen():
    game = Game()
    environments = lives_of(game, True, False)
    played = []
    for _ in range(11):
        played.append(environments.step(np.array([0])))
    counted = [step for step in played if step.counts[0]]
    assert len(counted) == 9 == len(game.actions)
    assert [step.terminated[0] for step in counted] == [False, False, True] * 3
    assert [step.observations[0, 0] for step in played] == [1, 2, 3, 3, 4, 5, 6, 6, 7, 8, 9]
    assert [(e.episodic_return, e.length) for step in played for e in step.episodes] == [(511.0, 9)]


def test_without_lives_an_episode_is_the_whole_game_and_it_starts_by_firing():
    game = Game()
    environments = lives_of(game, False, True)
    assert game.actions == [1]
    steps = [environments.step(np.array([0])) for _ in range(8)]
    assert [bool(step.terminated[0]) for step in steps] == [False] * 7 + [True]
    assert game.actions == [1] + [0] * 8
    environments.step(np.array([0]))
    assert game.actions[-1] == 1 and len(game.actions) == 10


def frames_of(environments):
    return environments.envs.envs[0].unwrapped.ale.getEpisodeFrameNumber()


def test_the_protocol_v0_goes_through_gymnasium_with_2_to_4_frames_a_step():
    pytest.importorskip("cv2")
    spec = resolve_environment("atari", "Pong", protocol="v0")
    assert spec.backend == "gymnasium"
    environments = make_environments(spec, 1, 0)
    observations = environments.reset(0)
    assert observations.shape == (1, 4, 84, 84) and observations.dtype == np.uint8
    frames = [frames_of(environments)]
    for _ in range(200):
        environments.step(np.array([0]))
        frames.append(frames_of(environments))
    counts = np.bincount(np.diff(frames), minlength=6)
    assert counts[[0, 1, 5]].sum() == 0 and (counts[2:5] > 40).all()
    environments.close()


def test_gymnasiums_wrappers_play_a_game_of_five_lives_as_one_episode():
    pytest.importorskip("cv2")
    environments = make_atari("Breakout", "gymnasium", NO_FRAMESKIP, 1, 0, training=True, kwargs={})
    rng, lost, total, length, resets = np.random.default_rng(0), 0, 0.0, 0, 0
    environments.reset(0)
    episodes = []
    while not episodes:
        step = environments.step(rng.integers(4, size=1))
        lost, total, length = (
            lost + int(step.terminated[0]),
            total + float(step.rewards[0]),
            length + int(step.counts[0]),
        )
        resets += not step.counts[0]
        episodes = step.episodes
    assert (lost, resets) == (5, 4)
    assert [(e.episodic_return, e.length) for e in episodes] == [(total, length)]
    environments.close()


def test_a_single_environment_renders_and_has_the_observations_of_training():
    pytest.importorskip("cv2")
    env = single_atari("Breakout", NO_FRAMESKIP)
    observation, _ = env.reset(seed=0)
    frame = env.render()
    assert np.asarray(observation).shape == (4, 84, 84) and np.asarray(frame).shape == (210, 160, 3)
    env.close()
