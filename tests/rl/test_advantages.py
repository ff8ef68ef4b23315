"""GAE against a loop over one sequence at a time, whitening over a masked batch, group baselines."""

import math
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from scope_rlhf.rl import gae, group_relative, leave_one_out, whiten


def slow_gae(row, gamma, lam):
    """One row as a list of steps (reward, value, counted, terminated, truncated, truncation value) and a last value."""
    steps, last = row
    advantages = [0.0] * len(steps)
    carried = 0.0
    for t in reversed(range(len(steps))):
        reward, value, counted, terminated, truncated, cut_value = steps[t]
        if not counted:
            carried = 0.0
            continue
        follows = t + 1 < len(steps) and steps[t + 1][2]
        if terminated:
            next_value, carried = 0.0, 0.0
        elif truncated:
            next_value, carried = cut_value, 0.0
        elif follows:
            next_value = steps[t + 1][1]
        else:
            next_value, carried = (last if t + 1 == len(steps) and last is not None else 0.0), 0.0
        carried = reward + gamma * next_value - value + gamma * lam * carried
        advantages[t] = carried
    return advantages


def random_batch(seed, rows=7, steps=9):
    generator = torch.Generator().manual_seed(seed)
    rewards, values, cut = (torch.randn(rows, steps, generator=generator, dtype=torch.float64) for _ in range(3))
    mask, terminated, truncated = (torch.rand(rows, steps, generator=generator) < p for p in (0.8, 0.15, 0.15))
    return rewards, values, mask, terminated, truncated, cut, torch.randn(rows, generator=generator).double()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("bootstrap", [True, False])
def test_gae_with_flags_holes_and_bootstraps_equals_a_loop_per_row(seed, bootstrap):
    rewards, values, mask, terminated, truncated, cut, last = random_batch(seed)
    flags = {"terminated": terminated, "truncated": truncated, "truncation_values": cut}
    advantages, returns = gae(rewards, values, mask, 0.97, 0.9, **flags, last_values=last if bootstrap else None)
    columns = [x.tolist() for x in (rewards, values, mask, terminated, truncated, cut)]
    for row in range(len(rewards)):
        steps = list(zip(*(column[row] for column in columns), strict=True))
        expected = slow_gae((steps, last[row].item() if bootstrap else None), 0.97, 0.9)
        assert advantages[row].tolist() == pytest.approx(expected, abs=1e-12)
    torch.testing.assert_close(returns, torch.where(mask, advantages + values, 0.0), rtol=0, atol=1e-12)


def test_gae_of_unequal_completions_ends_at_the_last_counted_token_whatever_the_padding_holds():
    rewards = torch.tensor([[0.1, 0.2, 1.0, math.nan], [2.0, math.nan, math.inf, math.nan]])
    values = torch.tensor([[0.5, 0.4, 0.3, math.nan], [0.7, 9.0, math.nan, -math.inf]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]])
    advantages, returns = gae(rewards, values, mask, 1.0, 0.5)
    a2 = 1.0 - 0.3
    a1 = 0.2 + 0.3 - 0.4 + 0.5 * a2
    a0 = 0.1 + 0.4 - 0.5 + 0.5 * a1
    assert advantages[0].tolist() == pytest.approx([a0, a1, a2, 0.0])
    assert advantages[1].tolist() == pytest.approx([1.3, 0.0, 0.0, 0.0])
    assert returns[0].tolist() == pytest.approx([a0 + 0.5, a1 + 0.4, a2 + 0.3, 0.0])


def test_with_gamma_and_lambda_1_the_return_is_the_sum_of_the_rewards_to_come():
    rewards, values, *_ = random_batch(0)
    _, returns = gae(rewards, values, torch.ones_like(rewards), 1.0, 1.0)
    torch.testing.assert_close(returns, rewards.flip(1).cumsum(1).flip(1))


def test_with_lambda_0_the_advantage_is_the_one_step_error():
    rewards, values, mask, *_ = random_batch(1)
    mask = torch.ones_like(mask)
    advantages, _ = gae(rewards, values, mask, 0.9, 0.0)
    after = torch.cat([values[:, 1:], torch.zeros(len(values), 1)], dim=1)
    torch.testing.assert_close(advantages, rewards + 0.9 * after - values)


def test_truncation_bootstraps_and_termination_does_not():
    one = torch.ones(1, 1)
    zero = torch.zeros(1, 1)
    cut = torch.full((1, 1), 10.0)
    assert gae(one, zero, one, 0.5, 1.0, terminated=one)[0].item() == 1.0
    assert gae(one, zero, one, 0.5, 1.0, truncated=one, truncation_values=cut)[0].item() == 6.0
    both = gae(one, zero, one, 0.5, 1.0, terminated=one, truncated=one, truncation_values=cut)
    assert both[0].item() == 1.0


def test_half_precision_inputs_are_computed_in_float32_and_carry_no_gradient():
    rewards, values = torch.randn(2, 300).bfloat16(), torch.randn(2, 300).bfloat16().requires_grad_()
    advantages, returns = gae(rewards, values, torch.ones(2, 300), 0.99, 0.95)
    assert advantages.dtype == returns.dtype == torch.float32
    exact, _ = gae(rewards.double(), values.double(), torch.ones(2, 300), 0.99, 0.95)
    torch.testing.assert_close(advantages.double(), exact, rtol=1e-5, atol=1e-5)
    assert not advantages.requires_grad and not returns.requires_grad


def test_an_empty_rollout_gives_empty_advantages():
    empty = torch.zeros(3, 0)
    assert gae(empty, empty, empty, 1.0, 1.0, last_values=torch.zeros(3))[0].shape == (3, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": torch.zeros(2, 2)}, "values has shape (2, 2), expected (2, 3)"),
        ({"rewards": torch.zeros(3)}, "rewards has shape (3,), expected [B, T]"),
        ({"gamma": 1.1}, "gamma must lie in [0, 1], got 1.1"),
        ({"lam": math.nan}, "lam must lie in [0, 1], got nan"),
        ({"truncated": torch.zeros(2, 3)}, "truncated and truncation_values belong together"),
        ({"last_values": torch.zeros(2, 1)}, "last_values has shape (2, 1), expected (2,)"),
    ],
)
def test_gae_refuses_what_would_broadcast_or_be_ignored(change, message):
    arguments = {"rewards": torch.zeros(2, 3), "values": torch.zeros(2, 3), "mask": torch.ones(2, 3), "gamma": 1.0}
    with pytest.raises(ValueError) as error:
        gae(**{**arguments, "lam": 1.0, **change})
    assert message in str(error.value)


def test_whitened_values_have_mean_0_and_spread_1_over_the_counted_ones_only():
    torch.manual_seed(0)
    x = torch.randn(5, 6) * 3 + 2
    mask = torch.rand(5, 6) < 0.7
    spoilt = torch.where(mask, x, math.nan)
    white, stats = whiten(spoilt, mask)
    assert white[mask].mean().item() == pytest.approx(0, abs=1e-6)
    assert white[mask].std().item() == pytest.approx(1, abs=1e-5)
    assert (white[~mask] == 0).all()
    assert stats["mean"].item() == pytest.approx(x[mask].mean().item())
    assert stats["std"].item() == pytest.approx(x[mask].std().item())
    flipped = (x[mask].sign() != (x[mask] - x[mask].mean()).sign()).float().mean()
    assert stats["normalization_sign_flip"].item() == pytest.approx(flipped.item())
    assert flipped > 0.1
    kept, _ = whiten(spoilt, mask, shift_mean=False)
    torch.testing.assert_close(kept[mask], white[mask] + x[mask].mean())


@pytest.mark.parametrize("values", [[0.3, 0.3, 0.3], [0.3]])
def test_whitening_is_finite_for_zero_spread_and_for_one_value(values):
    x = torch.tensor([values])
    white, stats = whiten(x, torch.ones_like(x))
    assert white.abs().max() < 1e-3
    assert stats["std"] < 1e-6
    white, stats = whiten(x, torch.zeros_like(x))
    assert (white == 0).all() and all(torch.isfinite(v) for v in stats.values())


def test_whitening_over_two_processes_equals_whitening_the_whole_batch():
    torch.manual_seed(0)
    x, mask = torch.randn(4, 5) + 1, torch.rand(4, 5) < 0.6
    whole, stats = whiten(x, mask)
    # Two threads in the place of two processes; the barrier is the collective.
    barrier, sent = threading.Barrier(2, timeout=60), [torch.zeros(0)] * 2

    def run(rank):
        def all_reduce(tensor):
            sent[rank] = tensor
            barrier.wait()
            total = sent[0] + sent[1]
            barrier.wait()
            return total

        rows = slice(0, 1) if rank == 0 else slice(1, None)
        return whiten(x[rows], mask[rows], all_reduce=all_reduce)

    with ThreadPoolExecutor(2) as pool:
        (first, _), (second, part_stats) = pool.map(run, range(2))
    torch.testing.assert_close(torch.cat([first, second]), whole)
    for name, value in stats.items():
        assert part_stats[name].item() == pytest.approx(value.item(), rel=1e-5), name


def test_group_relative_is_trls_formula():
    rewards = torch.tensor([1.0, 2.0, 4.0, 7.0, 7.0, 7.0])
    first = torch.tensor([1.0, 2.0, 4.0])
    expected = torch.cat([(first - first.mean()) / (first.std() + 1e-4), torch.zeros(3)])
    torch.testing.assert_close(group_relative(rewards, 3), expected)
    torch.testing.assert_close(group_relative(rewards, 3, scale=False)[:3], first - first.mean())


def test_leave_one_out_is_the_reward_minus_the_mean_of_the_others():
    rewards = torch.tensor([1.0, 2.0, 6.0, 0.0])
    assert leave_one_out(rewards, 4).tolist() == pytest.approx([1 - 8 / 3, 2 - 7 / 3, 6 - 1, 0 - 3])
    assert leave_one_out(rewards, 2).tolist() == pytest.approx([-1, 1, 6, -6])


@pytest.mark.parametrize("function", [group_relative, leave_one_out])
@pytest.mark.parametrize("size", [1, 4, 0])
def test_rewards_that_make_no_groups_are_refused(function, size):
    with pytest.raises(ValueError, match=f"6 rewards do not make groups of {size}"):
        function(torch.zeros(6), size)
    with pytest.raises(ValueError, match=r"expected \[N\]"):
        function(torch.zeros(6, 1), 2)
