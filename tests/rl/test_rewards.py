"""Token rewards, cut completions, running moments."""

import math

import pytest
import torch

from scope_rlhf.rl import RunningMoments, gae, score_missing_eos, token_rewards


def test_the_score_sits_on_the_end_token_and_the_penalty_on_every_token():
    log_probs = torch.tensor([[-1.0, -2.0, -3.0, math.nan], [-0.5, -0.7, -0.2, -0.1]])
    reference = torch.tensor([[-1.5, -1.0, -3.0, math.inf], [-0.5, -0.7, -0.2, -0.4]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    rewards, kl = token_rewards(torch.tensor([2.0, -1.0]), log_probs, reference, mask, 0.1)
    torch.testing.assert_close(kl, torch.tensor([[0.5, -1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.3]]))
    torch.testing.assert_close(rewards, torch.tensor([[-0.05, 0.1, 2.0, 0.0], [0.0, 0.0, 0.0, -1.03]]))


def test_a_policy_that_left_the_reference_is_penalised_not_rewarded():
    """The sign: sampled tokens that the policy likes more than the reference cost reward."""
    rewards, _ = token_rewards(torch.zeros(1), torch.tensor([[-0.1]]), torch.tensor([[-3.0]]), torch.ones(1, 1), 0.5)
    assert rewards.item() == pytest.approx(-1.45)


def test_with_gamma_and_lambda_1_the_return_at_the_end_token_is_the_score_and_at_the_first_the_score_minus_kl():
    torch.manual_seed(0)
    log_probs, reference, values = torch.randn(3, 5), torch.randn(3, 5), torch.randn(3, 5)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])
    scores = torch.tensor([1.0, 2.0, 3.0])
    rewards, kl = token_rewards(scores, log_probs, log_probs, mask, 0.3)
    _, returns = gae(rewards, values, mask, 1.0, 1.0)
    assert returns[[0, 1, 2], [4, 2, 0]].tolist() == pytest.approx([1.0, 2.0, 3.0])
    rewards, kl = token_rewards(scores, log_probs, reference, mask, 0.3)
    _, returns = gae(rewards, values, mask, 1.0, 1.0)
    torch.testing.assert_close(returns[:, 0], scores - 0.3 * kl.sum(1))


def test_without_a_reference_there_is_no_penalty_and_an_empty_row_has_no_reward():
    rewards, kl = token_rewards(torch.ones(2), torch.randn(2, 3), None, torch.tensor([[1, 1, 0], [0, 0, 0]]), 0.3)
    assert rewards.tolist() == [[0, 1, 0], [0, 0, 0]]
    assert (kl == 0).all()


def test_a_negative_coefficient_and_shapes_that_do_not_fit_are_refused():
    tensors = (torch.ones(2), torch.zeros(2, 3), None, torch.ones(2, 3))
    with pytest.raises(ValueError, match="kl_coef must be >= 0, got -0.1"):
        token_rewards(*tensors, -0.1)
    with pytest.raises(ValueError, match="do not fit"):
        token_rewards(torch.ones(2, 1), *tensors[1:], 0.1)


def test_cut_completions_are_penalised_or_replaced():
    scores, ended = torch.tensor([1.0, 2.0]), torch.tensor([True, False])
    assert score_missing_eos(scores, ended).tolist() == [1.0, 2.0]
    assert score_missing_eos(scores, ended, penalty=0.5).tolist() == [1.0, 1.5]
    assert score_missing_eos(scores, ended, replacement=-1.0).tolist() == [1.0, -1.0]
    with pytest.raises(ValueError, match="set one"):
        score_missing_eos(scores, ended, penalty=1.0, replacement=-1.0)
    with pytest.raises(ValueError, match="penalty must be >= 0, got -1"):
        score_missing_eos(scores, ended, penalty=-1)


def test_running_moments_over_batches_are_those_of_all_scores_and_survive_a_checkpoint():
    torch.manual_seed(0)
    batches = [torch.randn(n) * 3 + 100 for n in (1, 7, 2, 30)]
    moments = RunningMoments()
    for number, batch in enumerate(batches):
        if number == 2:
            state, moments = moments.state_dict(), RunningMoments()
            moments.load_state_dict(state)
        moments.update(batch)
    scores = torch.cat(batches).double()
    assert moments.mean == pytest.approx(scores.mean().item(), rel=1e-12)
    assert moments.std == pytest.approx(scores.std().item(), rel=1e-9)
    assert moments.normalise(scores).mean().abs() < 1e-9
    assert moments.normalise(scores, shift_mean=False).std().item() == pytest.approx(1)


def test_running_moments_of_one_score_or_equal_scores_divide_by_1():
    moments = RunningMoments()
    assert moments.std == 1.0
    moments.update(torch.tensor([4.0]))
    assert (moments.std, moments.mean) == (1.0, 4.0)
    moments.update(torch.tensor([4.0, 4.0]))
    assert moments.std == 1.0


def test_running_moments_over_processes_take_the_sums_of_all():
    whole, part = RunningMoments(), RunningMoments()
    first, second = torch.tensor([1.0, 5.0]), torch.tensor([2.0, 8.0, 9.0])
    whole.update(torch.cat([first, second]))
    mean = 5.0
    others = iter([torch.tensor([3.0, 19.0]), torch.tensor([(second - mean).square().sum()])])
    part.update(first, all_reduce=lambda tensor: tensor + next(others))
    assert part.state_dict() == pytest.approx(whole.state_dict())
