"""Reward models from pairs: the end token is read, references centre the score, and what is saved scores the same."""

import math

import pytest
import torch
from datasets import Dataset
from trl import RewardConfig

from scope_rlhf.models.reward import END_TOKEN, OFFSET, RewardScorer
from scope_rlhf.objectives import make_critic_loss
from scope_rlhf.trainers.reward import PAD, ScopeRewardTrainer, load_classifier, reward_lora
from tests.tiny import SENTENCES, tiny_gpt2, tiny_gptj, tiny_tokenizer


def pairs() -> Dataset:
    """The chosen completion is the one with "good"."""
    rows = [{"prompt": s, "chosen": " good", "rejected": " bad"} for s in SENTENCES * 4]
    return Dataset.from_list(rows)


def save(folder, model, tokenizer):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def base(tmp_path):
    """Pads with its end token, as GPT-2 does."""
    tokenizer = tiny_tokenizer()
    return save(tmp_path / "base", tiny_gpt2(tokenizer, dropout=0.0), tokenizer)


def make(base, tmp_path, lora=False, steps=12, data=None, **settings):
    model, tokenizer = load_classifier(base)
    given = {"per_device_train_batch_size": 8, "learning_rate": 1e-2, "max_length": 60, **settings}
    config = RewardConfig(
        str(tmp_path / "out"), max_steps=steps, use_cpu=True, bf16=False, report_to="none", save_strategy="no",
        gradient_checkpointing=False, disable_tqdm=True, **given,
    )  # fmt: skip
    peft_config = reward_lora(model, 4, 16) if lora else None
    return ScopeRewardTrainer(
        model,
        config,
        processing_class=tokenizer,
        train_dataset=pairs() if data is None else data,
        peft_config=peft_config,
    )


def test_the_pad_token_is_not_the_end_token_so_the_end_is_read(base):
    model, tokenizer = load_classifier(base)
    assert tokenizer.pad_token == PAD != tokenizer.eos_token
    end = tokenizer.eos_token_id
    ids = torch.tensor([[5, 6, end]])
    with torch.no_grad():
        whole = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        padded = torch.tensor([[5, 6, end, tokenizer.pad_token_id]])
        mask = torch.tensor([[1, 1, 1, 0]])
        assert torch.allclose(model(input_ids=padded, attention_mask=mask).logits, whole, atol=1e-5)
        without = model(input_ids=ids[:, :2], attention_mask=torch.ones(1, 2)).logits
    assert not torch.allclose(whole, without)


def test_the_score_layer_begins_with_variance_one_over_width_plus_one(tmp_path):
    tokenizer = tiny_tokenizer(pad=True)
    base = save(tmp_path / "b", tiny_gpt2(tokenizer), tokenizer)
    weights = torch.cat([load_classifier(base)[0].score.weight.detach().flatten() for _ in range(60)])
    assert weights.std() == pytest.approx(math.sqrt(1 / 33), rel=0.05)


def test_a_pad_token_that_is_the_end_token_is_refused(base, tmp_path):
    model, tokenizer = load_classifier(base)
    tokenizer.pad_token = tokenizer.eos_token
    with pytest.raises(ValueError, match="its end token"):
        ScopeRewardTrainer(
            model, RewardConfig(str(tmp_path), use_cpu=True, bf16=False), processing_class=tokenizer,
            train_dataset=pairs(),
        )  # fmt: skip


@pytest.mark.parametrize("lora", [False, True])
def test_training_tells_chosen_from_rejected_and_what_is_saved_scores_the_same(base, tmp_path, lora):
    trainer = make(base, tmp_path, lora)
    trainer.train()
    texts = [row["prompt"] + row["chosen"] for row in pairs()]
    offset = trainer.centre(texts)
    scorer = trainer.scorer()
    scores = scorer(texts)
    assert scores.mean().abs() < 1e-5 and offset != 0
    worse = scorer([row["prompt"] + row["rejected"] for row in pairs()])
    assert (scores > worse).all()
    trainer.save_scorer(tmp_path / "saved")
    loaded = RewardScorer.from_pretrained(str(tmp_path / "saved"))
    assert loaded.end_token and loaded.offset == pytest.approx(offset)
    assert torch.allclose(loaded(texts), scores, atol=1e-4)


def test_the_scorer_reads_the_end_token_that_training_put_behind_every_text(base, tmp_path):
    """The score of a text is that of its tokens and the end token, minus the offset; by hand."""
    trainer = make(base, tmp_path, steps=1)
    trainer.train()
    offset = trainer.centre(["the film"])
    model, tokenizer = trainer.model, tiny_tokenizer()
    ids = torch.tensor([[*tokenizer("a bad film")["input_ids"], tokenizer.eos_token_id]])
    with torch.no_grad():
        by_hand = model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, 0] - offset
    assert trainer.scorer()(["a bad film"])[0] == pytest.approx(by_hand.item(), abs=1e-5)


def test_a_critic_that_begins_as_a_centred_reward_model_begins_with_its_scores(base, tmp_path):
    """Also where the reward model has one more token embedding, for its pad token."""
    from scope_rlhf.models.critic_backbones import model_value_head

    trainer = make(base, tmp_path, steps=3)
    trainer.train()
    trainer.centre(["the film was good"])
    trainer.save_scorer(tmp_path / "saved")
    policy = tiny_gpt2(tiny_tokenizer(), dropout=0.0)
    head = model_value_head(str(tmp_path / "saved"), policy, make_critic_loss("mse"))
    end = tiny_tokenizer().eos_token_id
    ids = torch.tensor([[*tiny_tokenizer()("a bad film")["input_ids"], end]])
    with torch.no_grad():
        states = head.states(policy, torch.zeros(1), input_ids=ids, attention_mask=torch.ones_like(ids))
        value = torch.nn.functional.linear(states, head.weight, head.bias)[0, -1, 0]
    score = RewardScorer.from_pretrained(str(tmp_path / "saved"))(["a bad film"])[0]
    assert float(value) == pytest.approx(float(score), abs=1e-3)


def test_gptj_trains_by_lora(tmp_path):
    tokenizer = tiny_tokenizer(pad=True)
    base = save(tmp_path / "j", tiny_gptj(tokenizer), tokenizer)
    trainer = make(base, tmp_path, lora=True, steps=2)
    trainer.train()
    assert trainer.centre(["the film"]) != 0
    trainer.save_scorer(tmp_path / "saved")
    assert RewardScorer.from_pretrained(str(tmp_path / "saved"))(["the film"])[0].abs() < 1e-3


def test_long_pairs_are_left_out_with_a_warning_and_none_left_is_an_error(base, tmp_path):
    long = Dataset.from_list([*pairs().to_list(), {"prompt": "film " * 50, "chosen": " good", "rejected": " bad"}])
    with pytest.warns(UserWarning, match="1 of 25 pairs are longer than 40 tokens"):
        make(base, tmp_path, data=long, max_length=40)
    with pytest.raises(ValueError, match="every pair has more than max_length=2 tokens"):
        make(base, tmp_path, max_length=2)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Dataset.from_list([{"prompt": "a", "chosen": "b"}]), "no column rejected"),
        (Dataset.from_dict({"prompt": [], "chosen": [], "rejected": []}), "is empty"),
    ],
)
def test_pairs_that_are_none_are_refused(base, tmp_path, data, message):
    with pytest.raises(ValueError, match=message):
        make(base, tmp_path, data=data)


def test_an_adapter_and_a_tokenizer_without_end_are_refused(tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="is an adapter"):
        load_classifier(str(tmp_path / "adapter"), "--x")
    tokenizer = tiny_tokenizer(pad=True)
    base = save(tmp_path / "b", tiny_gpt2(tokenizer), tokenizer)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(base)
    with pytest.raises(ValueError, match="no end token"):
        load_classifier(base)


def test_the_settings_of_a_scorer_are_those_of_its_config(base, tmp_path):
    trainer = make(base, tmp_path, steps=1)
    config = trainer.model.config
    assert getattr(config, OFFSET, 0.0) == 0.0 and not getattr(config, END_TOKEN, False)
    trainer.centre(["the film"])
    assert getattr(config, END_TOKEN) is True and getattr(config, OFFSET) != 0
