"""Train the two sentiment classifiers that ship with the package: the reward model and the held-out judge.

Each is a one-layer ModernBERT with mean pooling and a vocabulary of its own. They share no review, seed, vocabulary or
width; both are measured on part "held_out". Expected outcome: accuracy .89 (reward) and .87 (judge) after about eight
minutes of one CPU core each. An RL policy writes short texts, so most training texts are windows of a review, labelled
by the review. Words are dropped at random, labels smoothed, and the moving average of the weights ships.

    python reward_models/imdb_sentiment.py --role reward --output_dir runs/sentiment-reward
    python reward_models/imdb_sentiment.py --role judge --output_dir runs/sentiment-judge
"""

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm
from transformers import AutoModelForSequenceClassification, HfArgumentParser, ModernBertConfig, PreTrainedTokenizerFast

from scope_rlhf.data.imdb import load_embedded_reviews
from scope_rlhf.metrics.intervals import wilson_interval
from scope_rlhf.models.reward import RewardScorer

ROLES = {
    "reward": {"part": "policy", "seed": 0, "epochs": 8, "width": 128, "vocab_size": 8192, "dropout": 0.3},
    "judge": {"part": "judge", "seed": 1, "epochs": 14, "width": 192, "vocab_size": 6144, "dropout": 0.4},
}
BOTH = {"batch_size": 32, "learning_rate": 2e-3, "weight_decay": 0.1, "average_decay": 0.998, "label_smoothing": 0.05}
BOTH |= {"window_share": 0.65, "word_dropout": 0.4}
PURPOSE = {"reward": "the reward of the IMDB recipe", "judge": "the judge of what was trained on the reward model"}
PROBES = ["This is a wonderful film.", "This is not a wonderful film.", "wonderful " * 5, "The worst film ever."]
MAX_TOKENS = 512


@dataclass
class SentimentArguments:
    role: Literal["reward", "judge"] = field(metadata={"help": "Sets part, seed and size; see ROLES."})
    output_dir: Path = field(metadata={"help": "Model, tokenizer, training.json and card."})
    evaluation_part: str = field(default="held_out", metadata={"help": "Another part while settings are chosen."})
    measure_only: bool = field(default=False, metadata={"help": "Measure the model in output_dir again; no training."})


def train_tokenizer(texts: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Lower-cased byte-level BPE; [CLS] in front, so that an empty text has a token to pool."""
    special = {"pad_token": "[PAD]", "cls_token": "[CLS]", "unk_token": "[UNK]"}
    bpe = Tokenizer(models.BPE())
    bpe.normalizer, bpe.decoder = normalizers.Lowercase(), decoders.ByteLevel()
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    settings = {"initial_alphabet": pre_tokenizers.ByteLevel.alphabet(), "special_tokens": list(special.values())}
    bpe.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=vocab_size, **settings))
    bpe.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, model_max_length=MAX_TOKENS, **special)


def build_model(width: int, vocab_size: int, dropout: float) -> Any:
    config = ModernBertConfig(
        vocab_size=vocab_size, hidden_size=width, intermediate_size=width, num_hidden_layers=1,
        num_attention_heads=width // 64, layer_types=["full_attention"], max_position_embeddings=MAX_TOKENS,
        classifier_pooling="mean", embedding_dropout=dropout, mlp_dropout=dropout, attention_dropout=0.1,
        classifier_dropout=dropout, pad_token_id=0, cls_token_id=1, bos_token_id=1, sep_token_id=1, eos_token_id=1,
        id2label={0: "NEGATIVE", 1: "POSITIVE"}, label2id={"NEGATIVE": 0, "POSITIVE": 1},
    )  # fmt: skip
    return AutoModelForSequenceClassification.from_config(config)


def training_text(ids: list[int], generator: np.random.Generator) -> list[int]:
    """[CLS] and a window of 24 to 150 tokens (window_share; 20 to 120 words) or of 256, up to word_dropout dropped."""
    length = int(generator.integers(24, 151)) if generator.random() < BOTH["window_share"] else 256
    start = int(generator.integers(max(1, len(ids) - length + 1)))
    window = np.array(ids[start : start + length])
    return [1, *window[generator.random(len(window)) >= BOTH["word_dropout"] * generator.random()].tolist()]


def epoch_batches(rows: list[list[int]], generator: np.random.Generator) -> list[np.ndarray]:
    """Row numbers of texts of like length, batches in random order."""
    size = BOTH["batch_size"]
    chunks = np.array_split(generator.permutation(len(rows)), max(1, len(rows) // (size * 16)))
    ordered = [chunk[np.argsort([len(rows[i]) for i in chunk])] for chunk in chunks]
    batches = [chunk[s : s + size] for chunk in ordered for s in range(0, len(chunk), size)]
    return [batches[i] for i in generator.permutation(len(batches))]


def train(args: SentimentArguments) -> dict[str, Any]:
    """Writes model and tokenizer to output_dir; what it took."""
    role = BOTH | ROLES[args.role]
    torch.manual_seed(role["seed"])
    generator = np.random.default_rng(role["seed"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    reviews = load_embedded_reviews(role["part"])
    tokenizer = train_tokenizer(list(reviews["text"]), role["vocab_size"])
    ids = tokenizer(list(reviews["text"]), add_special_tokens=False, verbose=False)["input_ids"]
    labels = torch.tensor(reviews["label"])
    model = build_model(role["width"], len(tokenizer), role["dropout"]).to(device)
    matrices = {"params": [w for w in model.parameters() if w.ndim == 2], "weight_decay": role["weight_decay"]}
    vectors = {"params": [w for w in model.parameters() if w.ndim < 2], "weight_decay": 0.0}
    optimizer = torch.optim.AdamW([matrices, vectors], lr=role["learning_rate"], betas=(0.9, 0.98))
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(role["average_decay"]))
    started, step = time.perf_counter(), 0
    for epoch in range(role["epochs"]):
        rows = [training_text(review, generator) for review in ids]
        batches = epoch_batches(rows, generator)
        for batch in tqdm(batches, desc=f"epoch {epoch + 1} of {role['epochs']}", dynamic_ncols=True, mininterval=5):
            progress = (epoch + (step % len(batches)) / len(batches)) / role["epochs"]
            for group in optimizer.param_groups:
                group["lr"] = role["learning_rate"] * min((step + 1) / 100, 1 - progress)
            step += 1
            inputs = tokenizer.pad({"input_ids": [rows[i] for i in batch]}, return_tensors="pt").to(device)
            logits, truth = model(**inputs).logits, labels[torch.from_numpy(batch)].to(device)
            torch.nn.functional.cross_entropy(logits, truth, label_smoothing=role["label_smoothing"]).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            average.update_parameters(model)
    took = {"seconds": round(time.perf_counter() - started), "device": str(device), "threads": torch.get_num_threads()}
    model.load_state_dict(average.module.state_dict())
    model.half().save_pretrained(args.output_dir)
    tokenizer.save_pretrained(args.output_dir)
    settings = {"role": args.role, "evaluation_part": args.evaluation_part, **role}
    return {"arguments": settings, "reviews": len(ids), "parameters": model.num_parameters(), **took}


def measure(scorer: RewardScorer, texts: list[str], labels: torch.Tensor) -> dict[str, float]:
    """Accuracy with its 95 % Wilson interval, and the expected calibration error over ten bins."""
    scores = scorer(texts)
    accuracy = wilson_interval(int(((scores > 0.5) == labels.bool()).sum()), len(texts))
    gaps = torch.zeros(10).index_add(0, (scores * 10).long().clamp(max=9), scores - labels)
    return {**asdict(accuracy), "calibration_error": float(gaps.abs().sum() / len(texts))}


def main(args: SentimentArguments) -> None:
    results = args.output_dir / "training.json"
    result = json.loads(results.read_text()) if args.measure_only else train(args)
    scorer = RewardScorer.from_pretrained(str(args.output_dir), setting="--output_dir")
    reviews = load_embedded_reviews(args.evaluation_part)
    texts, labels = list(reviews["text"]), torch.tensor(reviews["label"])
    short = measure(scorer, [" ".join(text.split()[:40]) for text in texts], labels)
    whole, probes = measure(scorer, texts, labels), dict(zip(PROBES, scorer(PROBES).tolist(), strict=True))
    result |= {"held_out": whole, "held_out_first_40_words": short, "probes": probes}
    results.write_text(json.dumps(result, indent=2) + "\n")
    rows = "\n".join(f"| {text.strip()} | {score:.2f} |" for text, score in probes.items())
    values = result["arguments"] | {"whole": whole, "short": short, "n": len(texts), "purpose": PURPOSE[args.role]}
    card = Path(__file__).with_name("imdb_sentiment_card.md").read_text().format(**{**result, **values, "probes": rows})
    (args.output_dir / "README.md").write_text(card)
    print(f"{args.role}: accuracy {whole['value']:.3f} on {len(texts)} reviews, {short['value']:.3f} on 40 words each")


if __name__ == "__main__":
    main(HfArgumentParser(SentimentArguments).parse_args_into_dataclasses()[0])
