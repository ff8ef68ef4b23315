"""Advantages: generalised advantage estimation, group-relative and leave-one-out baselines, masked whitening."""

from collections.abc import Callable

import torch
from torch import Tensor

from scope_rlhf.losses import fill_masked


def gae(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    gamma: float,
    lam: float,
    *,
    terminated: Tensor | None = None,
    truncated: Tensor | None = None,
    truncation_values: Tensor | None = None,
    last_values: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (arXiv 1506.02438, eq. 16) over rows of T steps; no gradient.

        delta_t = r_t + gamma next_t - V_t        A_t = delta_t + gamma lam A_{t+1}        return_t = A_t + V_t

    next_t is V_{t+1}, and A_{t+1} is carried, where step t+1 is counted and t does not end an episode. Else nothing is
    carried and next_t is

    - 0 where `terminated`, and where the row has no counted step t+1: without flags a row is one episode that ends at
      its last counted step (a completion), and a hole in the mask ends what is before it;
    - truncation_values_t, the value of the state that was cut off, where `truncated` and not `terminated`;
    - last_values, the value of the state after the rollout, at a counted step T-1 without a flag.

    rewards, values, truncation_values: [B, T]; last_values: [B]; mask, terminated, truncated: [B, T], not 0 counts.
    Computed in float32, or in float64 where rewards or values are. What masked steps hold is never read (NaN is fine).

    Returns (advantages, returns), [B, T], 0 at masked steps.

    Raises:
        ValueError: another shape, gamma or lam outside [0, 1], or only one of `truncated` and `truncation_values`.
    """
    if rewards.dim() != 2:
        raise ValueError(f"gae: rewards has shape {tuple(rewards.shape)}, expected [B, T]")
    for name, number in (("gamma", gamma), ("lam", lam)):
        if not 0 <= number <= 1:
            raise ValueError(f"gae: {name} must lie in [0, 1], got {number!r}")
    if (truncated is None) != (truncation_values is None):
        raise ValueError("gae: truncated and truncation_values belong together; give both or neither")
    shaped = {"values": values, "mask": mask, "terminated": terminated, "truncated": truncated}
    shaped |= {"truncation_values": truncation_values}
    for name, tensor in shaped.items():
        if tensor is not None and tensor.shape != rewards.shape:
            raise ValueError(f"gae: {name} has shape {tuple(tensor.shape)}, expected {tuple(rewards.shape)} as rewards")
    if last_values is not None and last_values.shape != rewards.shape[:1]:
        raise ValueError(f"gae: last_values has shape {tuple(last_values.shape)}, expected {tuple(rewards.shape[:1])}")

    counts = mask != 0
    dtype = torch.promote_types(torch.promote_types(rewards.dtype, values.dtype), torch.float32)
    rewards, values = (fill_masked(x.detach(), counts).to(dtype) for x in (rewards, values))
    never = torch.zeros_like(counts)
    terminated = never if terminated is None else terminated != 0
    truncated = never if truncated is None else (truncated != 0) & ~terminated
    goes_on = counts & ~terminated & ~truncated
    carries = goes_on & torch.cat([counts[:, 1:], never[:, :1]], dim=1)
    reads_next = carries.clone()
    after = torch.zeros_like(rewards[:, :1])
    if last_values is not None and rewards.shape[1]:
        reads_next[:, -1] = goes_on[:, -1]
        after = last_values.detach().to(dtype).unsqueeze(1)
    next_values = torch.where(reads_next, torch.cat([values[:, 1:], after], dim=1)[:, : rewards.shape[1]], 0.0)
    if truncation_values is not None:
        next_values = torch.where(truncated & counts, truncation_values.detach().to(dtype), next_values)

    deltas = fill_masked(rewards + gamma * next_values - values, counts)
    advantages = torch.zeros_like(deltas)
    running = deltas.new_zeros(len(deltas))
    decay = gamma * lam * carries.to(dtype)
    for step in reversed(range(deltas.shape[1])):
        running = deltas[:, step] + decay[:, step] * running
        advantages[:, step] = running
    return advantages, fill_masked(advantages + values, counts)


def whiten(
    x: Tensor, mask: Tensor, shift_mean: bool = True, *, all_reduce: Callable[[Tensor], Tensor] | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """(x - mean) / std over the counted values of the global batch, 0 elsewhere; with shift_mean=False x / std + mean.

    Without shift_mean the mean is kept: (x - mean) / std + mean, as for rewards in TRL's PPO. std is unbiased, and its
    variance gets 1e-8; zero spread and a single value give finite results.

    all_reduce sums a tensor over the processes and returns it; with it mean and spread are those of the global batch,
    and every process must call this function. Without it they are local.

    Returns the values (float32 or float64) and the stats, 0-dim tensors without gradient: mean, std, and
    normalization_sign_flip, the share of counted values whose sign the whitening changed.

    Raises ValueError for a mask of another shape.
    """
    if mask.shape != x.shape:
        raise ValueError(f"whiten: mask has shape {tuple(mask.shape)}, expected {tuple(x.shape)} as the values")
    counts = mask != 0
    dtype = torch.promote_types(x.dtype, torch.float32)
    x = fill_masked(x, counts).to(dtype)

    def total(*sums: Tensor) -> Tensor:
        stacked = torch.stack(sums)
        return stacked if all_reduce is None else all_reduce(stacked)

    count, summed = total(counts.sum().to(dtype), x.sum())
    mean = summed / count.clamp(min=1)
    centred = fill_masked(x - mean, counts)
    (squares,) = total(centred.square().sum())
    std = (squares / (count - 1).clamp(min=1)).sqrt()
    white = centred / (std.square() + 1e-8).sqrt()
    if not shift_mean:
        white = fill_masked(white + mean, counts)
    (flips,) = total((counts & (white.sign() != x.sign()) & (x != 0)).sum().to(dtype))
    stats = {"mean": mean, "std": std, "normalization_sign_flip": flips / count.clamp(min=1)}
    return white, {name: value.detach() for name, value in stats.items()}


def group_relative(rewards: Tensor, group_size: int, scale: bool = True) -> Tensor:
    """(r - mean of its group) / (std of its group + 1e-4), the advantages of GRPO (arXiv 2402.03300).

    rewards [N]: the completions of one prompt are adjacent; NaN leaves one out of its group, and its advantage is 0.
    std is unbiased and 1e-4 is added, as in TRL. scale=False leaves the division out (Dr. GRPO, arXiv 2503.20783).
    Returns [N], float32 or float64.

    Raises ValueError for rewards that are not [N], or N that is no multiple of group_size >= 2.
    """
    groups, counts, number = _groups(rewards, group_size, "group_relative")
    centred = torch.where(counts, groups - groups.sum(dim=1, keepdim=True) / number.clamp(min=1), 0.0)
    if scale:
        std = (centred.square().sum(dim=1, keepdim=True) / (number - 1).clamp(min=1)).sqrt()
        centred = centred / (std + 1e-4)
    return centred.reshape(-1)


def leave_one_out(rewards: Tensor, group_size: int) -> Tensor:
    """r minus the mean reward of the other completions of its prompt (RLOO, arXiv 2402.14740).

    rewards [N] -> [N], as in group_relative; equals group_size / (group_size - 1) times the centred reward. 0 where
    NaN rewards leave no other completion.
    """
    groups, counts, number = _groups(rewards, group_size, "leave_one_out")
    others = (groups.sum(dim=1, keepdim=True) - groups) / (number - 1).clamp(min=1)
    return torch.where(counts & (number > 1), groups - others, 0.0).reshape(-1)


def _groups(rewards: Tensor, group_size: int, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Rewards [G, K] with 0 for NaN, where they count [G, K], and how many do [G, 1]."""
    if rewards.dim() != 1:
        raise ValueError(f"{name}: rewards has shape {tuple(rewards.shape)}, expected [N], one number per completion")
    if group_size < 2 or len(rewards) % group_size:
        raise ValueError(
            f"{name}: {len(rewards)} rewards do not make groups of {group_size}; expected a multiple of a size >= 2"
        )
    groups = rewards.detach().to(torch.promote_types(rewards.dtype, torch.float32)).view(-1, group_size)
    counts = ~groups.isnan()
    return fill_masked(groups, counts), counts, counts.sum(dim=1, keepdim=True)
