"""The collector on scripted environments against a loop that walks the episodes; observers and minibatches."""

import gymnasium
import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from scope_rlhf.control.networks import PixelConv2d
from scope_rlhf.control.policies import CategoricalPolicy
from scope_rlhf.control.rewards import RewardShaper, StickyActions
from scope_rlhf.control.rollout import Collector, EnvironmentFailure, MinibatchLoader, Observer
from scope_rlhf.control.vector import Environments
from scope_rlhf.objectives import make_critic_loss
from tests.control.scripted import MODES, SPOILT, ScriptedVector

SCRIPT = [
    [([1.0, 2.0, 4.0], "terminated"), ([0.5], "truncated"), ([8.0, -16.0], "both")],
    [([3.0, -1.0], "truncated"), ([0.25, 0.75, 32.0, 1.0], "terminated")],
    [([7.0] * 5, "truncated")],
]
CPU = torch.device("cpu")
GAMMA, LAM = 0.9, 0.8


def value(i, episode, t):
    """The value of a state; no two states of the script have the same one."""
    return 0.3 * i + 0.7 * (episode % 7) - 0.11 * t + 1


def model(observations):
    """Logits of two actions and values, from where the observation was made."""
    i, episode, t = observations.unbind(1)
    return torch.stack([t - 1, 1 - t], dim=1) * 0.3, value(i, episode, t).unsqueeze(1)


def collector(mode, steps, envs=None, sticky=0.0, **shaping):
    environments = Environments(envs or ScriptedVector(SCRIPT, mode))
    observer = Observer(environments.observation_space, CPU, False)
    shaper = RewardShaper(3, GAMMA, 0, **shaping)
    policy, critic, repeat = CategoricalPolicy(2), make_critic_loss("mse"), StickyActions(sticky, 0)
    made = Collector([environments], model, policy, critic, observer, shaper, repeat, steps)
    made.restart(0)
    return made


def walk(i, mode, steps):
    """Rows (state, reward, end, counted) of environment i from the script; end: None, terminated or truncated."""
    rows, number = [], 0
    while len(rows) < steps + 1:
        planned, end = SCRIPT[i][number % len(SCRIPT[i])]
        for t, reward in enumerate(planned):
            last = t + 1 == len(planned)
            rows.append(((i, number, t), reward, ("truncated" if end == "truncated" else "terminated") * last, True))
        if mode == "NEXT_STEP":
            rows.append(((i, number, len(planned)), 0.0, "", False))
        number += 1
    return rows[: steps + 1]


def slow_advantages(rows, gamma, lam):
    """For each step the discounted sum of one-step errors to the end of its episode or of the rollout."""
    found = []
    for start in range(len(rows) - 1):
        if not rows[start][3]:
            found.append(0.0)
            continue
        total, weight = 0.0, 1.0
        for t in range(start, len(rows) - 1):
            (i, episode, k), reward, end, _ = rows[t]
            if end == "terminated":
                following = 0.0
            elif end == "truncated":
                following = value(i, episode, k + 1)
            else:
                following = value(*rows[t + 1][0])
            total += weight * (reward + gamma * following - value(i, episode, k))
            weight *= gamma * lam
            if end:
                break
        found.append(total)
    return found


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("steps", [1, 2, 3, 8, 17])
def test_advantages_and_returns_equal_a_loop_that_walks_the_episodes(mode, steps):
    torch.manual_seed(0)
    made = collector(mode, steps)
    rollout = made.collect()
    advantages, returns = rollout.advantages(GAMMA, LAM)
    for i in range(3):
        rows = walk(i, mode, steps)
        assert rollout.observations[:, i].tolist() == [list(map(float, row[0])) for row in rows[:-1]]
        assert rollout.rewards[:, i].tolist() == [row[1] for row in rows[:-1]]
        assert rollout.counts[:, i].tolist() == [row[3] for row in rows[:-1]]
        assert rollout.last_values[i].item() == pytest.approx(value(*rows[-1][0]))
        expected = slow_advantages(rows, GAMMA, LAM)
        assert advantages[:, i].tolist() == pytest.approx(expected, abs=1e-5)
        plus_value = [a + value(*row[0]) if row[3] else 0.0 for a, row in zip(expected, rows, strict=False)]
        assert returns[:, i].tolist() == pytest.approx(plus_value, abs=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_the_second_rollout_goes_on_where_the_first_one_ended(mode):
    made = collector(mode, 5)
    made.collect()
    advantages, _ = made.collect().advantages(GAMMA, LAM)
    for i in range(3):
        rows = walk(i, mode, 10)[5:]
        assert advantages[:, i].tolist() == pytest.approx(slow_advantages(rows, GAMMA, LAM), abs=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_truncation_bootstraps_with_the_value_of_the_final_observation_and_termination_with_none(mode):
    rollout = collector(mode, 8).collect()
    assert rollout.truncated.any() and rollout.terminated.any()
    for t, i in rollout.truncated.nonzero().tolist():
        _, episode, k = rollout.observations[t, i].tolist()
        assert rollout.truncation_values[t, i].item() == pytest.approx(value(i, episode, k + 1))
    assert (rollout.truncation_values[~rollout.truncated] == 0).all()
    advantages, _ = rollout.advantages(GAMMA, LAM)
    ends = rollout.terminated
    torch.testing.assert_close(advantages[ends], rollout.rewards[ends] - rollout.values[ends])


def test_rows_of_a_reset_have_no_advantage_no_return_and_no_reward():
    rollout = collector("NEXT_STEP", 17).collect()
    resets = ~rollout.counts
    assert resets.sum() == 5 + 4 + 2
    for tensor in (*rollout.advantages(GAMMA, LAM), rollout.rewards):
        assert (tensor[resets] == 0).all() and (tensor.abs() < SPOILT / 2).all()


def test_log_probs_and_values_are_those_of_the_model_at_the_stored_rows():
    torch.manual_seed(3)
    rollout = collector("NEXT_STEP", 9).collect()
    logits, values = model(rollout.observations.flatten(0, 1))
    expected = torch.distributions.Categorical(logits=logits).log_prob(rollout.actions.flatten())
    torch.testing.assert_close(rollout.log_probs.flatten(), expected)
    torch.testing.assert_close(rollout.values.flatten(), values.squeeze(1))
    assert set(rollout.actions.unique().tolist()) == {0, 1}


def test_the_environments_get_the_stored_actions():
    envs = ScriptedVector(SCRIPT, "NEXT_STEP")
    rollout = collector("NEXT_STEP", 9, envs).collect()
    np.testing.assert_array_equal(np.stack(envs.actions), rollout.actions.numpy())


@pytest.mark.parametrize("mode", MODES)
def test_actions_that_stick_are_repeated_within_an_episode_and_the_rollout_keeps_the_chosen_ones(mode):
    torch.manual_seed(1)
    envs = ScriptedVector(SCRIPT, mode)
    rollout = collector(mode, 17, envs, sticky=1.0).collect()
    _, episodes, times = rollout.observations.unbind(2)
    done, chosen, stuck = np.stack(envs.actions), rollout.actions.numpy(), 0
    for t, i in rollout.counts.nonzero().tolist():
        assert done[t, i] == (chosen[t, i] if times[t, i] == 0 else done[t - 1, i])
        stuck += done[t, i] != chosen[t, i]
    assert stuck > 5 and len(episodes.unique()) > 3


def test_episodes_carry_the_true_return_and_the_step_they_ended_in_whatever_the_rewards_are_shaped_to():
    rollout = collector("SAME_STEP", 6, clip_rewards=True, reward_flip_probability=1.0).collect()
    assert set(rollout.rewards.flatten().tolist()) == {-1.0, 1.0}
    ends = [(t, e.environment, e.episodic_return, e.length) for t, e in rollout.episodes]
    # Environment 0 ends after 3, 1 and 2 steps, environment 1 after 2 and 4, environment 2 after 5.
    first = [(2, 0, 7.0, 3), (3, 0, 0.5, 1), (5, 0, -8.0, 2)]
    assert sorted(ends, key=lambda e: (e[1], e[0])) == [*first, (1, 1, 2.0, 2), (5, 1, 34.0, 4), (4, 2, 35.0, 5)]


def test_a_binned_policy_per_dimension_keeps_its_log_probs_per_dimension():
    from scope_rlhf.control.policies import BinnedPolicy

    policy = BinnedPolicy(np.array([-1.0, 0.0]), np.array([1.0, 2.0]), 3, per_dimension=True)
    logits = torch.randn(3, 6)
    environments = Environments(ScriptedVector(SCRIPT, "NEXT_STEP"))
    observer = Observer(environments.observation_space, CPU, False)
    made = Collector(
        [environments],
        lambda x: (logits[: len(x)], torch.zeros(len(x), 1)),
        policy,
        make_critic_loss("mse"),
        observer,
        RewardShaper(3, GAMMA, 0),
        StickyActions(0, 0),
        4,
    )
    made.restart(0)
    rollout = made.collect()
    assert rollout.log_probs.shape == rollout.actions.shape == (4, 3, 2)
    expected = logits.unflatten(1, (2, 3)).log_softmax(-1).expand(4, 3, 2, 3).gather(-1, rollout.actions.unsqueeze(-1))
    torch.testing.assert_close(rollout.log_probs, expected.squeeze(-1))


@pytest.mark.parametrize("crash", [ZeroDivisionError, SystemExit])
def test_an_environment_that_raises_ends_the_rollout_with_the_step_and_the_cause(crash):
    class Crashing(ScriptedVector):
        def step(self, actions):
            if len(self.actions) == 2:
                raise crash("the robot fell apart")
            return super().step(actions)

    with pytest.raises(EnvironmentFailure, match=f"step 2 of a rollout: {crash.__name__}: the robot fell apart") as e:
        collector("NEXT_STEP", 5, Crashing(SCRIPT, "NEXT_STEP")).collect()
    assert isinstance(e.value.__cause__, crash)


def test_an_environment_that_does_not_start_is_an_environment_failure():
    class Broken(ScriptedVector):
        def reset(self, seed=None, options=None):
            raise OSError("no ROM")

    with pytest.raises(EnvironmentFailure, match="failed to start: OSError: no ROM"):
        collector("NEXT_STEP", 5, Broken(SCRIPT, "NEXT_STEP"))


def test_observations_are_normalised_by_all_rows_so_far_and_the_final_one_by_the_same_statistics():
    envs = ScriptedVector(SCRIPT, "SAME_STEP")
    environments = Environments(envs)
    observer = Observer(environments.observation_space, CPU, True)
    seen = []

    def watching(observations):
        seen.append(observations.clone())
        return torch.zeros(len(observations), 2), observations.sum(1, keepdim=True)

    shaper, sticky = RewardShaper(3, GAMMA, 0), StickyActions(0, 0)
    critic = make_critic_loss("mse")
    made = Collector([environments], watching, CategoricalPolicy(2), critic, observer, shaper, sticky, 2)
    made.restart(0)
    made.collect()
    twin = ScriptedVector(SCRIPT, "SAME_STEP")
    rows = [twin.reset()[0], *(twin.step(np.zeros(3))[0] for _ in range(2))]
    # One call for each step, one for the final observation of environment 1 after step 1, one for the last values.
    assert [len(x) for x in seen] == [3, 3, 1, 3]
    for number, found in zip((0, 1, 2), (seen[0], seen[1], seen[3]), strict=True):
        so_far = np.concatenate(rows[: number + 1]).astype(np.float64)
        scaled = (rows[number] - so_far.mean(0)) / np.sqrt(so_far.var(0) + 1e-8)
        np.testing.assert_allclose(found, np.clip(scaled, -10, 10), atol=1e-5)
    before = np.concatenate(rows[:2]).astype(np.float64)
    final = (np.array([[1, 0, 2]]) - before.mean(0)) / np.sqrt(before.var(0) + 1e-8)
    np.testing.assert_allclose(seen[2], np.clip(final, -10, 10), atol=1e-5)


def pixels(*shape):
    return gymnasium.spaces.Box(0, 255, shape, np.uint8)


@pytest.mark.parametrize("shape", [(4, 12, 10), (12, 10, 3)])
def test_an_observer_keeps_pixels_channels_last_and_shows_them_channels_first(shape):
    observer = Observer(pixels(*shape), CPU, False)
    frames = np.random.default_rng(0).integers(0, 256, (5, *shape), dtype=np.uint8)
    first = frames if shape[0] == 4 else frames.transpose(0, 3, 1, 2)
    stored = observer.store(frames)
    assert stored.dtype == torch.uint8 and stored.shape == (5, *observer.shape) and observer.shape[:2] == (12, 10)
    np.testing.assert_array_equal(stored.numpy(), first.transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(observer.view(stored).numpy(), first)
    assert observer.view(stored).data_ptr() == stored.data_ptr()


def test_an_observer_of_vectors_gives_float32_as_they_are_and_refuses_to_normalise_pixels():
    space = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float64)
    stored = Observer(space, CPU, False).store(np.array([[1.5, -2.0, 1e3]]))
    assert stored.dtype == torch.float32 and stored.tolist() == [[1.5, -2.0, 1e3]]
    with pytest.raises(ValueError, match="normalize_observations is for vectors"):
        Observer(pixels(4, 84, 84), CPU, True)


def test_the_loader_gives_exactly_the_rows_of_pixels_as_a_float_view_channels_first():
    observer = Observer(pixels(4, 12, 10), CPU, False)
    load = MinibatchLoader(observer)
    frames = torch.randint(0, 256, (20, 12, 10, 4), dtype=torch.uint8)
    for rows in ([3, 0, 19, 3], [7], [5, 6, 1, 2, 8, 9]):  # a smaller and a larger minibatch than the first
        loaded = load(frames, torch.tensor(rows))
        assert loaded.dtype == torch.float32
        assert loaded.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(loaded, frames[rows].permute(0, 3, 1, 2).float(), rtol=0, atol=0)
    assert load(frames, torch.arange(20)).max() > 200  # 0 .. 255: the first convolution divides


def test_the_loader_may_overwrite_what_it_gave_last_but_never_the_rollout():
    observer = Observer(pixels(4, 12, 10), CPU, False)
    load = MinibatchLoader(observer)
    frames = torch.randint(0, 256, (6, 12, 10, 4), dtype=torch.uint8)
    kept = frames.clone()
    first = load(frames, torch.tensor([0, 1]))
    second = load(frames, torch.tensor([4, 5]))
    assert first.data_ptr() == second.data_ptr()
    torch.testing.assert_close(first, second)
    second.zero_()
    assert torch.equal(frames, kept)


def test_a_convolution_of_loaded_rows_has_the_gradient_of_the_plain_ones():
    torch.manual_seed(0)
    observer = Observer(pixels(4, 12, 10), CPU, False)
    layer = PixelConv2d(4, 5, 3)
    frames = torch.randint(0, 256, (6, 12, 10, 4), dtype=torch.uint8)
    rows = torch.tensor([5, 2, 2])
    (one,) = torch.autograd.grad(layer(MinibatchLoader(observer)(frames, rows)).square().sum(), layer.weight)
    plain = (frames[rows].permute(0, 3, 1, 2) / 255).contiguous()
    (other,) = torch.autograd.grad(
        torch.nn.functional.conv2d(plain, layer.weight, layer.bias).square().sum(), layer.weight
    )
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_the_loader_gives_rows_of_vectors_as_they_are():
    observer = Observer(gymnasium.spaces.Box(-1, 1, (3,), np.float32), CPU, False)
    rows = torch.randn(9, 3)
    assert torch.equal(MinibatchLoader(observer)(rows, torch.tensor([4, 4, 0])), rows[[4, 4, 0]])


@pytest.mark.parametrize("mode", ["NEXT_STEP", "SAME_STEP", "DISABLED"])
def test_environments_in_two_parts_give_the_rollout_of_one_part(mode):
    def rollouts(parts, flip):
        observer = Observer(parts[0].observation_space, CPU, False)
        shaper = RewardShaper(3, GAMMA, 0, reward_flip_probability=flip, normalize_rewards=True)
        critic = make_critic_loss("mse")
        made = Collector(parts, model, CategoricalPolicy(2), critic, observer, shaper, StickyActions(0, 0), 7)
        torch.manual_seed(0)
        made.restart(0)
        for _ in range(3):
            rollout = made.collect()
            yield {k: v.clone() for k, v in vars(rollout).items() if torch.is_tensor(v)}, rollout.episodes

    class Second(ScriptedVector):
        """Environments 1 and 2 of the script; their observations say so."""

        def _place(self, i):
            return [i + 1.0, *super()._place(i)[1:]]

    one = list(rollouts([Environments(ScriptedVector(SCRIPT, mode))], 0.3))
    halves = ScriptedVector(SCRIPT[:1], mode), Second(SCRIPT[1:], mode)
    two = list(rollouts([Environments(half) for half in halves], 0.3))
    for (whole, episodes), (parts, episodes_of_parts) in zip(one, two, strict=True):
        assert whole.keys() == parts.keys()
        for name in whole:
            torch.testing.assert_close(parts[name], whole[name], rtol=0, atol=0, msg=name)
        assert episodes == episodes_of_parts


def test_a_part_steps_while_the_network_acts_for_the_other():
    log = []

    class Background(ScriptedVector):
        def __init__(self, name):
            super().__init__([SCRIPT[0]], "NEXT_STEP")
            self.name = name

        def send(self, actions):
            log.append(f"send {self.name}")
            self.sent = actions

        def recv(self):
            log.append(f"receive {self.name}")
            return self.step(self.sent)

    parts = [Environments(Background(name), background=True) for name in "ab"]
    observer = Observer(parts[0].observation_space, CPU, False)
    shaper, sticky = RewardShaper(2, GAMMA, 0), StickyActions(0, 0)
    made = Collector(parts, model, CategoricalPolicy(2), make_critic_loss("mse"), observer, shaper, sticky, 2)
    made.restart(0)
    made.collect()
    assert log == ["send a", "send b", *["receive a", "send a", "receive b", "send b"], "receive a", "receive b"]


class CastsOf(TorchDispatchMode):
    """Counts how often tensors of this shape are cast."""

    def __init__(self, shape):
        super().__init__()
        self.shape, self.count = shape, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._to_copy.default and args[0].shape == self.shape
        return func(*args, **(kwargs or {}))


def test_weights_are_cast_to_bfloat16_once_a_rollout_and_anew_in_the_next():
    weight = torch.nn.Parameter(torch.randn(4, 3))

    def autocast_model(observations):
        with torch.autocast("cpu", torch.bfloat16):
            outputs = torch.nn.functional.linear(observations, weight)
        return outputs[:, :2], outputs[:, 2:3]

    environments = Environments(ScriptedVector(SCRIPT, "NEXT_STEP"))
    observer = Observer(environments.observation_space, CPU, False)
    shaper, sticky = RewardShaper(3, GAMMA, 0), StickyActions(0, 0)
    policy, critic = CategoricalPolicy(2), make_critic_loss("mse")
    made = Collector([environments], autocast_model, policy, critic, observer, shaper, sticky, 5)
    made.restart(0)
    for _ in range(2):
        with CastsOf(weight.shape) as casts:
            rollout = made.collect()
        assert casts.count == 1
        assert rollout.values.dtype == rollout.log_probs.dtype == torch.float32
        expected = (rollout.observations @ weight.T)[..., 2]
        torch.testing.assert_close(rollout.values, expected.detach(), rtol=0.02, atol=0.05)
        with torch.no_grad():
            weight.mul_(-2)
