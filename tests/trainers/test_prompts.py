"""Prompts that cannot be trained on: one error at construction that names the row, for both trainers."""

import pytest
from datasets import Dataset

from scope_rlhf.trainers.prompts import check_dataset, check_lengths, check_templates
from tests.tiny import tiny_tokenizer
from tests.trainers.makers import make_trainer


@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (
            " film" * 60,
            r"train_dataset: the prompt of row 5 has 60 tokens and max_completion_length is 6",
        ),
        ("", "the prompt of row 5 is ''"),
        ("  ", "the prompt of row 5 is '  '"),
        (None, "the prompt of row 5 is None"),
    ],
)
def test_a_prompt_that_does_not_fit_is_refused_by_its_row(tmp_path, monkeypatch, algorithm, prompt, message):
    rows = ["This film was good."] * 5 + [prompt] + ["The plot."] * 10
    monkeypatch.setattr("tests.trainers.makers.prompt_dataset", lambda repeats=4: Dataset.from_dict({"prompt": rows}))
    with pytest.raises(ValueError, match=message):
        make_trainer(algorithm, tmp_path)


def conversations(*texts):
    return Dataset.from_dict({"prompt": [[{"role": "user", "content": text}] for text in texts]})


def test_a_conversation_is_counted_as_its_template_writes_it():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %} film film film film{{ m.content }}{% endfor %}"
    data = conversations(" film", " film" * 10)
    check_lengths(data, "train_dataset", tokenizer, 20, 6)
    with pytest.raises(ValueError, match=r"the prompt of row 1 has 14 tokens"):
        check_lengths({"one": data}, "eval_dataset", tokenizer, 19, 6)
    check_lengths(data, "train_dataset", tokenizer, None, 6)


def test_conversations_need_a_chat_template_of_the_policy_and_of_each_reward_model():
    tokenizer, data = tiny_tokenizer(), conversations("a film")
    with pytest.raises(ValueError, match="train_dataset holds conversations, but the policy's tokenizer has no chat"):
        check_lengths(data, "train_dataset", tokenizer, 64, 6)
    check_templates(data, ["length"], [None])
    with pytest.raises(ValueError, match="the tokenizer of the reward model my-rm has no chat template"):
        check_templates(data, ["length", "my-rm"], [None, tokenizer])
    check_templates(Dataset.from_dict({"prompt": ["text"]}), ["my-rm"], [tokenizer])


def test_an_empty_conversation_is_refused():
    with pytest.raises(ValueError, match=r"the prompt of row 1 is \[\]"):
        check_dataset(Dataset.from_dict({"prompt": [[{"role": "user", "content": "a"}], []]}), "train_dataset")
