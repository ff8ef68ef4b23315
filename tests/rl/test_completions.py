"""Masks of completions where pad and end token are one id."""

import pytest
import torch

from scope_rlhf.rl import last_counted, mask_from_lengths, truncate_at_stop

END = 9


def test_pad_equal_to_eos_keeps_the_real_eos_and_drops_the_padding():
    ids = torch.tensor([[1, 2, END, END, END], [1, END, 3, END, END], [1, 2, 3, 4, 5], [1, 2, END, END, END]])
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    kept, stopped = truncate_at_stop(ids, mask, END)
    assert kept.tolist() == [
        [True, True, True, False, False],
        [True, True, False, False, False],
        [True, True, True, True, True],
        [True, True, False, False, False],
    ]
    # the last row was cut behind two tokens: what follows is padding, not an end that was written
    assert stopped.tolist() == [True, True, False, False]


def test_a_stop_token_at_the_first_and_last_place():
    kept, stopped = truncate_at_stop(torch.tensor([[END, 1, 2], [1, 2, END]]), torch.ones(2, 3), END)
    assert kept.tolist() == [[True, False, False], [True, True, True]]
    assert stopped.all()


def test_masks_from_lengths():
    assert mask_from_lengths(torch.tensor([0, 2, 3]), 3).tolist() == [[0, 0, 0], [1, 1, 0], [1, 1, 1]]
    with pytest.raises(ValueError, match=r"lengths \[4\] do not fit in 0 to 3"):
        mask_from_lengths(torch.tensor([4]), 3)
    with pytest.raises(ValueError, match=r"expected \[B\]"):
        mask_from_lengths(torch.zeros(1, 1), 3)


def test_last_counted_is_minus_1_for_an_empty_row_and_skips_holes():
    mask = torch.tensor([[1, 1, 0], [0, 0, 0], [1, 0, 1]])
    assert last_counted(mask).tolist() == [1, -1, 2]
    assert last_counted(torch.zeros(2, 0)).tolist() == [-1, -1]


def test_ids_and_mask_of_different_shape_are_refused():
    with pytest.raises(ValueError, match="must both be"):
        truncate_at_stop(torch.zeros(2, 3), torch.ones(2, 4), END)
