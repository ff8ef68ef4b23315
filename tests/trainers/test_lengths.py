"""Micro-batches of like lengths: the same rows, the same gradient, less padding."""

from itertools import permutations

import pytest
import torch

from scope_rlhf.trainers.lengths import (
    length_order,
    needed_columns,
    processed_tokens,
    sort_by_length,
    spans,
    trim,
    unsort,
)

PAD = 0


def rollout(prompts, completions, width=None, prompt_width=None):
    """Left-padded prompts and right-padded completions of these lengths; every entry says which row it belongs to."""
    width, prompt_width = width or max(completions), prompt_width or max(prompts)
    rows = torch.arange(1, len(prompts) + 1)[:, None]
    prompt_mask = (torch.arange(prompt_width) >= prompt_width - torch.tensor(prompts)[:, None]).long()
    completion_mask = (torch.arange(width) < torch.tensor(completions)[:, None]).long()
    return {
        "prompt_ids": rows * prompt_mask, "prompt_mask": prompt_mask, "completion_ids": rows * completion_mask,
        "completion_mask": completion_mask, "advantages": rows.squeeze(1).float(), "returns": rows * completion_mask,
        "importance_sampling_ratio": rows.float(), "num_items_in_batch": completion_mask.sum(),
    }  # fmt: skip


def batches(whole, size):
    split = {name: x.split(size) if x.ndim else None for name, x in whole.items()}
    count = len(split["prompt_ids"])
    return [{name: parts[i] if parts else whole[name] for name, parts in split.items()} for i in range(count)]


def test_spans_count_from_the_boundary_and_see_over_holes():
    prompt = torch.tensor([[0, 0, 1, 1], [0, 0, 0, 0], [1, 0, 1, 1]])
    completion = torch.tensor([[1, 1, 0], [0, 0, 0], [1, 0, 1]])
    found = spans(prompt, completion)
    assert found[0].tolist() == [2, 0, 4] and found[1].tolist() == [2, 0, 3]


def test_processed_tokens_are_rows_times_the_longest_prompt_and_completion_of_each_batch():
    assert processed_tokens(torch.tensor([1, 3, 2]), torch.tensor([5, 1, 4]), [2, 1]) == 2 * (3 + 5) + 1 * (2 + 4)


def test_the_order_is_never_worse_than_as_given_and_the_best_of_all_for_completions_alone():
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        prompts, completions = (torch.randint(0, 9, (6,), generator=generator) for _ in range(2))
        order = length_order(prompts, completions, [2, 2, 2])
        assert order.sort().values.tolist() == list(range(6))
        cost = processed_tokens(prompts[order], completions[order], [2, 2, 2])
        assert cost <= processed_tokens(prompts, completions, [2, 2, 2])
        same = torch.full((6,), 3)
        order = length_order(same, completions, [2, 2, 2])
        every = [processed_tokens(same, completions[list(p)], [2, 2, 2]) for p in permutations(range(6))]
        assert processed_tokens(same, completions[order], [2, 2, 2]) == min(every)


@pytest.mark.parametrize("window", [1, 2, 4])
def test_sorting_keeps_every_row_whole_and_within_its_optimizer_step(window):
    completions = [7, 1, 3, 8, 2, 2, 9, 1]
    whole = rollout([3, 2, 5, 1, 4, 4, 2, 3], completions)
    dealt = sort_by_length(batches(whole, 2), window)
    assert [len(batch["advantages"]) for batch in dealt] == [2, 2, 2, 2]
    for start in range(0, 4, window):
        rows = torch.cat([batch["advantages"] for batch in dealt[start : start + window]]).sort().values
        assert rows.tolist() == [float(row) for row in range(2 * start + 1, 2 * (start + window) + 1)]
    for batch in dealt:
        for row, number in enumerate(batch["advantages"].long().tolist()):
            for name in ("completion_ids", "returns", "prompt_ids"):
                assert set(batch[name][row].tolist()) <= {0, number}, name
            assert batch["completion_mask"][row].sum() == completions[number - 1]


def test_unsort_gives_back_what_was_sorted_again_and_again():
    given = batches(rollout([3, 2, 5, 1, 4, 4, 2, 3], [7, 1, 3, 8, 2, 2, 9, 1]), 2)
    rows = [batch["advantages"].tolist() for batch in given]
    once = sort_by_length(given, 4)
    assert [batch["advantages"].tolist() for batch in once] != rows
    assert [batch["advantages"].tolist() for batch in unsort(once)] == rows
    assert [batch["advantages"].tolist() for batch in unsort(sort_by_length(unsort(once), 2))] == rows
    plain = batches(rollout([1, 2], [1, 2]), 1)
    assert unsort(plain) is plain


def test_trim_cuts_padding_only_and_every_block_that_goes_with_it():
    whole = rollout([2, 3], [4, 1], width=9, prompt_width=6)
    whole["target_ids"], whole["target_mask"] = torch.ones(2, 7), torch.tensor([[1, 1, 0, 0, 0, 0, 0], [1] + [0] * 6])
    trimmed = trim(whole)
    assert trimmed["prompt_ids"].shape == (2, 3) and trimmed["completion_ids"].shape == (2, 4)
    assert trimmed["returns"].shape == (2, 4) and trimmed["target_ids"].shape == trimmed["target_mask"].shape == (2, 2)
    assert trimmed["advantages"].shape == (2,) and trimmed["importance_sampling_ratio"].shape == (2, 1)
    for name in ("prompt_mask", "completion_mask", "target_mask", "returns", "completion_ids"):
        assert trimmed[name].sum() == whole[name].sum(), name


def test_trim_tells_the_blocks_apart_where_they_are_equally_wide():
    trimmed = trim(rollout([2, 1], [4, 5], width=6, prompt_width=6))
    assert trimmed["prompt_ids"].tolist() == [[1, 1], [0, 2]]
    assert trimmed["completion_ids"].tolist() == [[1, 1, 1, 1, 0], [2, 2, 2, 2, 2]]


def test_a_batch_without_counted_tokens_keeps_a_column():
    trimmed = trim(rollout([1, 1], [0, 0], width=3))
    assert trimmed["completion_ids"].shape == (2, 1) and trimmed["prompt_ids"].shape == (2, 1)


def test_columns_are_rounded_up_to_the_multiple_that_was_asked_for():
    assert needed_columns(torch.tensor([3, 9]), 8) == 16 and needed_columns(torch.tensor([3, 9])) == 9
    trimmed = trim(rollout([2, 3], [4, 1], width=16, prompt_width=16), 8)
    assert trimmed["prompt_ids"].shape == (2, 8) and trimmed["completion_ids"].shape == (2, 8)
