"""Policies against enumeration of all actions, torch.distributions, and frequencies of samples."""

import itertools

import gymnasium
import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import nn
from torch.distributions import Categorical, Normal

from scope_rlhf.control.policies import (
    BinnedPolicy,
    CategoricalPolicy,
    GaussianHead,
    GaussianPolicy,
    describe_policy,
    make_policy,
)

spaces = gymnasium.spaces
LOW, HIGH = np.array([-1.0, 0.0, -3.0], dtype=np.float32), np.array([1.0, 0.7, 5.0], dtype=np.float32)


def binned(**kwargs):
    return BinnedPolicy(LOW, HIGH, 4, **kwargs)


def gaussian(**kwargs):
    return GaussianPolicy(LOW, HIGH, **kwargs)


def test_the_joint_log_prob_of_bins_is_a_distribution_over_all_actions_with_that_entropy():
    torch.manual_seed(0)
    policy = binned()
    actions = torch.tensor(list(itertools.product(range(4), repeat=3)))
    outputs = torch.randn(1, 12, dtype=torch.float64) * 2
    log_probs = policy.log_probs(outputs.expand(64, -1), actions)
    assert log_probs.shape == (64,)
    assert log_probs.exp().sum().item() == pytest.approx(1, abs=1e-12)
    entropy = -(log_probs.exp() * log_probs).sum()
    assert policy.entropy(outputs).tolist() == pytest.approx([entropy.item()], abs=1e-12)
    assert actions[log_probs.argmax()].tolist() == policy.mode(outputs)[0].tolist()
    # One action by hand: the product of the softmaxes of each dimension's own logits.
    by_hand = [outputs[0, 4 * k : 4 * k + 4].softmax(0)[bin_].item() for k, bin_ in enumerate((3, 0, 2))]
    index = actions.tolist().index([3, 0, 2])
    assert log_probs[index].exp().item() == pytest.approx(np.prod(by_hand), abs=1e-12)


@pytest.mark.parametrize("make", [binned, gaussian])
def test_per_dimension_is_the_joint_before_its_sum(make):
    torch.manual_seed(0)
    joint, each = make(), make(per_dimension=True)
    outputs = torch.randn(5, 12 if make is binned else 6)
    actions = joint.sample(outputs)
    for name, arguments in (("log_probs", (outputs, actions)), ("entropy", (outputs,))):
        parts = getattr(each, name)(*arguments)
        assert parts.shape == (5, 3)
        torch.testing.assert_close(parts.sum(1), getattr(joint, name)(*arguments))
    assert (joint.decisions, each.decisions) == (1, 3)


def test_gaussian_log_prob_and_entropy_are_those_of_torch_distributions_with_their_gradients():
    torch.manual_seed(0)
    policy = gaussian(per_dimension=True)
    outputs = torch.randn(7, 6, dtype=torch.float64, requires_grad=True)
    actions = torch.randn(7, 3, dtype=torch.float64) * 2
    normal = Normal(outputs[:, :3], outputs[:, 3:].exp())
    log_probs, expected = policy.log_probs(outputs, actions), normal.log_prob(actions)
    torch.testing.assert_close(log_probs, expected, rtol=1e-12, atol=1e-12)
    entropy = policy.entropy(outputs)
    torch.testing.assert_close(entropy, normal.entropy(), rtol=1e-12, atol=1e-12)
    for ours, theirs in ((log_probs, expected), (entropy, normal.entropy())):
        gradients = [torch.autograd.grad(x.sum(), outputs, retain_graph=True)[0] for x in (ours, theirs)]
        torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-10)


def test_categorical_log_prob_and_entropy_are_those_of_torch_distributions():
    torch.manual_seed(0)
    policy = CategoricalPolicy(6)
    outputs = torch.randn(9, 6, dtype=torch.float64) * 3
    actions = torch.randint(6, (9,))
    expected = Categorical(logits=outputs)
    torch.testing.assert_close(policy.log_probs(outputs, actions), expected.log_prob(actions))
    torch.testing.assert_close(policy.entropy(outputs), expected.entropy())
    assert policy.mode(outputs).tolist() == [max(range(6), key=lambda a: row[a]) for row in outputs.tolist()]


def test_samples_of_a_categorical_have_its_frequencies():
    torch.manual_seed(0)
    logits = torch.tensor([0.0, 1.0, -2.0, 0.5, -1.0])
    drawn = CategoricalPolicy(5).sample(logits.expand(20_000, -1))
    expected = logits.softmax(0).double().numpy() * 20_000
    assert chisquare(drawn.bincount(minlength=5).numpy(), expected * 20_000 / expected.sum()).pvalue > 0.01


def test_samples_of_bins_have_their_joint_frequencies():
    torch.manual_seed(0)
    policy = BinnedPolicy(LOW[:2], HIGH[:2], 3)
    logits = torch.tensor([0.0, 1.0, -1.0, 0.5, -0.5, 0.2])
    drawn = policy.sample(logits.expand(20_000, -1))
    joint = torch.outer(logits[:3].softmax(0), logits[3:].softmax(0)).flatten().double()
    counts = (drawn[:, 0] * 3 + drawn[:, 1]).bincount(minlength=9).numpy()
    assert chisquare(counts, (joint / joint.sum()).numpy() * 20_000).pvalue > 0.01


def test_samples_of_a_gaussian_have_its_mean_and_spread_and_the_mode_is_the_mean():
    torch.manual_seed(0)
    outputs = torch.tensor([[0.5, -1.0, 2.0, 0.0, -1.0, 1.0]])
    drawn = gaussian().sample(outputs.expand(20_000, -1))
    std = outputs[0, 3:].exp()
    assert ((drawn.mean(0) - outputs[0, :3]).abs() < 4 * std / 20_000**0.5).all()
    torch.testing.assert_close(drawn.std(0), std, rtol=0.03, atol=0)
    assert gaussian().mode(outputs).tolist() == [[0.5, -1.0, 2.0]]


def test_sampling_is_by_torchs_generator_and_repeats_with_its_seed():
    outputs = torch.randn(50, 12)
    for policy, given in ((CategoricalPolicy(12), outputs), (binned(), outputs), (gaussian(), outputs[:, :6])):
        drawn = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            drawn.append(policy.sample(given))
        assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_bins_hit_low_and_high_exactly_and_are_evenly_spaced():
    policy = BinnedPolicy(LOW, HIGH, 11)
    values = np.stack([policy.to_environment(torch.full((1, 3), b))[0] for b in range(11)])
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values[0], LOW)
    np.testing.assert_array_equal(values[10], HIGH)
    for b in range(11):
        np.testing.assert_allclose(values[b], LOW + (HIGH - LOW) * b / 10, atol=1e-6)
    mixed = policy.to_environment(torch.tensor([[0, 10, 0], [10, 0, 5]]))
    np.testing.assert_allclose(mixed, [[-1.0, 0.7, -3.0], [1.0, 0.0, 1.0]], atol=1e-6)


def test_a_gaussian_action_reaches_the_environment_clipped_and_its_log_prob_is_that_of_the_unclipped():
    policy = gaussian()
    actions = torch.tensor([[-4.0, 0.3, 9.0]])
    np.testing.assert_array_equal(policy.to_environment(actions), np.array([[-1.0, 0.3, 5.0]], dtype=np.float32))
    outputs = torch.zeros(1, 6)
    assert policy.log_probs(outputs, actions).item() == pytest.approx(Normal(0, 1).log_prob(actions).sum().item())


def test_a_discrete_space_that_does_not_start_at_0_gets_its_own_numbers():
    policy = make_policy(spaces.Discrete(3, start=-1))
    assert policy.to_environment(torch.tensor([0, 2])).tolist() == [-1, 1]
    assert policy.log_probs(torch.zeros(2, 3), torch.tensor([0, 2])).tolist() == pytest.approx([-np.log(3)] * 2)


def test_the_gaussian_head_gives_means_of_the_state_and_log_stds_that_do_not_depend_on_it():
    torch.manual_seed(0)
    head = GaussianHead(nn.Linear(4, 3))
    with torch.no_grad():
        head.log_std.copy_(torch.tensor([0.1, -0.2, 0.3]))
    x = torch.randn(5, 4)
    outputs = head(x)
    torch.testing.assert_close(outputs[:, :3], head.mean(x))
    assert outputs[:, 3:].tolist() == [pytest.approx([0.1, -0.2, 0.3])] * 5
    (gradient,) = torch.autograd.grad(outputs[:, 3:].sum(), head.log_std)
    assert gradient.tolist() == [5.0, 5.0, 5.0]


BOX = spaces.Box(LOW, HIGH)


@pytest.mark.parametrize(
    ("space", "policy", "kind", "outputs"),
    [
        (spaces.Discrete(6), None, CategoricalPolicy, 6),
        (spaces.Discrete(6), "categorical", CategoricalPolicy, 6),
        (BOX, None, GaussianPolicy, 3),
        (BOX, "gaussian", GaussianPolicy, 3),
        (BOX, "binned", BinnedPolicy, 33),
    ],
)
def test_the_policy_of_a_space(space, policy, kind, outputs):
    made = make_policy(space, policy)
    assert type(made) is kind and made.output_size == outputs
    assert describe_policy(made) == {
        "policy": kind.__name__,
        "outputs": outputs,
        "decisions": 1,
        "action_shape": [] if kind is CategoricalPolicy else [3],
    }


@pytest.mark.parametrize(
    ("space", "given", "message"),
    [
        (BOX, {"policy": "beta"}, "policy 'beta' is unknown; valid: categorical, binned, gaussian; set --policy."),
        (
            spaces.Discrete(4),
            {"policy": "binned"},
            "'binned' is for continuous actions, but Pong has 4 discrete",
        ),
        (spaces.Discrete(4), {"per_dimension": True}, "per_dimension needs several action dimensions, Pong has one"),
        (spaces.Discrete(2), {"bins": 5}, "bins=5 given, but only policy binned has bins"),
        (spaces.MultiDiscrete([2, 3]), {}, "expected Discrete or a flat Box"),
        (spaces.Box(-1, 1, (2, 2)), {}, "expected Discrete or a flat Box"),
        (BOX, {"policy": "categorical"}, "needs discrete actions, but Pong has 3 continuous ones; set --policy binned"),
        (spaces.Box(-np.inf, 1, (2,)), {}, "Pong has unbounded actions"),
        (BOX, {"policy": "binned", "bins": 1}, "bins must be at least 2, got 1; set --bins."),
    ],
)
def test_a_policy_that_does_not_fit_the_space_is_refused(space, given, message):
    with pytest.raises(ValueError) as error:
        make_policy(space, env="Pong", **given)
    assert message in str(error.value)


@pytest.mark.parametrize("policy", ["binned", "gaussian"])
def test_per_dimension_of_one_dimension_is_refused_before_its_log_probs_fail_to_fit_the_rollout(policy):
    with pytest.raises(ValueError, match="per_dimension needs several action dimensions, Pendulum-v1 has one"):
        make_policy(spaces.Box(-2, 2, (1,)), policy, per_dimension=True, env="Pendulum-v1")
