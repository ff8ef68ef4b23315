"""From scores to what PPO trains on: shaped scores, advantages, returns. No model; gradient nowhere."""

from collections.abc import Callable

import torch
from torch import Tensor

from scope_rlhf.losses import fill_masked
from scope_rlhf.objectives import CategoricalCritic, CriticLossFunction
from scope_rlhf.rl import (
    RunningMoments,
    explained_variance,
    gae,
    group_relative,
    leave_one_out,
    score_missing_eos,
    whiten,
)
from scope_rlhf.trainers.ppo_config import ScopePPOConfig

Reduce = Callable[[Tensor], Tensor]


def shape_scores(args: ScopePPOConfig, scores: Tensor, ended: Tensor, moments: RunningMoments) -> Tensor:
    """Scores [B] scaled by their running moments, clipped, and then changed where the completion was cut."""
    if args.use_score_scaling:
        scores = moments.normalise(scores, shift_mean=args.use_score_norm)
    if args.score_clip is not None:
        scores = scores.clamp(-args.score_clip, args.score_clip)
    return score_missing_eos(scores, ended, penalty=args.missing_eos_penalty, replacement=args.missing_eos_score)


def critic_targets(
    args: ScopePPOConfig, critic: CriticLossFunction, rewards: Tensor, values: Tensor, mask: Tensor, all_reduce: Reduce
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """GAE: advantages, returns, old_values, each [B, T] and 0 where masked; and the stats of the critic.

    Stats: value/explained_variance of the old values, and out_of_range, the share of returns beyond the support.
    """
    if args.whiten_rewards:
        rewards, _ = whiten(rewards, mask, shift_mean=False, all_reduce=all_reduce)
    values = fill_masked(values, mask)
    advantages, returns = gae(rewards, values, mask, args.gamma, args.lam)
    stats = {"value/explained_variance": explained_variance(values, returns, mask, all_reduce=all_reduce)}
    if isinstance(critic, CategoricalCritic):
        outside = (((returns < critic.v_min) | (returns > critic.v_max)) & mask).sum()
        outside, count = all_reduce(torch.stack([outside, mask.sum()]))
        stats["out_of_range"] = outside / count.clamp(min=1)
    return {"advantages": advantages, "returns": returns, "old_values": values}, stats


def group_targets(
    args: ScopePPOConfig, rewards: Tensor, mask: Tensor, group_size: int, gather: Reduce, share: slice
) -> dict[str, Tensor]:
    """Without a critic: advantages [B, T] from the sums of rewards of the completions of each prompt, the same on all
    tokens of a completion.

    Rows without a counted token are left out of their group. Groups may span processes: `gather` joins all rows, and
    `share` is where this process lies in them. Groups of one (an evaluation with one completion) have none: 0.
    """
    sums = gather(rewards.sum(dim=1).masked_fill(~mask.any(dim=1), torch.nan))
    if group_size < 2:
        advantages = torch.zeros_like(sums)
    elif args.advantage_estimator == "rloo":
        advantages = leave_one_out(sums, group_size)
    else:
        advantages = group_relative(sums, group_size, scale=args.scale_rewards == "group")
    return {"advantages": fill_masked(advantages[share].unsqueeze(1).expand(mask.shape), mask)}
