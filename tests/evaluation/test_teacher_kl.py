import numpy as np
import pytest
import torch

from scope_rlhf.evaluation.teacher_kl import kl_to_teacher
from tests.tiny import SENTENCES, tiny_gpt2, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
COMPLETIONS = [" was great", "", " film of the year", " bad"]


def one_by_one(student, teacher, prompt, completion, temperature):
    """Each row alone and without padding, the sum over the vocabulary as a loop."""
    start = TOKENIZER(prompt)["input_ids"]
    ids = start + (TOKENIZER(completion)["input_ids"] if completion else [])
    total = []
    with torch.no_grad():
        ours, theirs = (
            (model(input_ids=torch.tensor([ids])).logits[0].double() / temperature).softmax(-1)
            for model in (student, teacher)
        )
    for state in range(len(start) - 1, len(ids)):
        total.append(sum(float(p * (p / q).log()) for p, q in zip(ours[state], theirs[state], strict=True)))
    return np.mean(total)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_kl_equals_a_loop_over_rows_states_and_tokens(temperature):
    student, teacher = tiny_gpt2(TOKENIZER).train(), tiny_gpt2(TOKENIZER, seed=1).eval()
    found = kl_to_teacher(
        student, teacher, TOKENIZER, SENTENCES[:4], COMPLETIONS, temperature=temperature, batch_size=3
    )
    assert student.training and not teacher.training
    student.eval()
    pairs = zip(SENTENCES, COMPLETIONS, strict=False)
    assert found == pytest.approx([one_by_one(student, teacher, *pair, temperature) for pair in pairs], rel=1e-4)
    assert found.min() > 0.01


def test_a_student_that_is_its_teacher_has_no_distance():
    model = tiny_gpt2(TOKENIZER)
    assert kl_to_teacher(model, model, TOKENIZER, SENTENCES[:4], COMPLETIONS) == pytest.approx(0, abs=1e-6)
    assert len(kl_to_teacher(model, model, TOKENIZER, [], [])) == 0


def test_rows_of_a_padded_head_are_left_out():
    student, teacher = tiny_gpt2(TOKENIZER).eval(), tiny_gpt2(TOKENIZER, seed=1).eval()
    before = kl_to_teacher(student, teacher, TOKENIZER, SENTENCES[:4], COMPLETIONS)
    teacher.resize_token_embeddings(len(TOKENIZER) + 20)
    assert kl_to_teacher(student, teacher, TOKENIZER, SENTENCES[:4], COMPLETIONS) == pytest.approx(before, rel=1e-5)


def test_rows_that_do_not_pair_up_and_empty_prompts_are_refused():
    model = tiny_gpt2(TOKENIZER)
    with pytest.raises(ValueError, match="2 prompts and 1 completions"):
        kl_to_teacher(model, model, TOKENIZER, ["a", "b"], ["c"])
    with pytest.raises(ValueError, match="prompt 1 has no tokens"):
        kl_to_teacher(model, model, TOKENIZER, ["a", ""], ["c", "d"])
