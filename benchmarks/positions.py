"""Log-probs of generate against those of a training pass, on a left-padded batch of unequal prompts.

    python benchmarks/positions.py                                        # random tiny GPT-2 and GPT-J, embedded GPT-2
    python benchmarks/positions.py --model_name_or_path gpt2 EleutherAI/gpt-j-6b

For each model: the largest difference in nats as TRL calls it (no position ids), and with positions derived from the
attention mask, which is what this package's policies do. Exits with 1 where the second exceeds 1e-4.
"""

import argparse
import sys

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, GPTJConfig, GPTJForCausalLM

from scope_rlhf.models.embedded import resolve_model_path
from scope_rlhf.models.positions import derive_positions

PROMPTS = ["The film", "This movie was one of the", "I", "A story about a man who goes back to his home town", "Bad"]
RANDOM = {
    "random GPT-2": lambda size: GPT2LMHeadModel(
        GPT2Config(
            vocab_size=size, n_positions=64, n_embd=32, n_layer=2, n_head=2, initializer_range=0.2, bos_token_id=0,
            eos_token_id=0,
        )
    ),
    "random GPT-J": lambda size: GPTJForCausalLM(
        GPTJConfig(
            vocab_size=size, n_positions=64, n_embd=32, n_layer=2, n_head=2, rotary_dim=8, initializer_range=0.2,
            tie_word_embeddings=False, bos_token_id=0, eos_token_id=0,
        )
    ),
}  # fmt: skip


@torch.no_grad()
def largest_gap(model, tokenizer, new_tokens: int) -> float:
    """max |log p by generate - log p by a forward pass| over the sampled tokens, nats, float32, temperature 1."""
    end = tokenizer.eos_token_id
    batch = tokenizer(PROMPTS, return_tensors="pt", padding=True, padding_side="left").to(model.device)
    torch.manual_seed(0)
    out = model.generate(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], do_sample=True, top_k=0, pad_token_id=end,
        max_new_tokens=new_tokens, min_new_tokens=new_tokens, output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    width = batch["input_ids"].shape[1]
    sampled = out.sequences[:, width:, None]
    mask = torch.cat([batch["attention_mask"], torch.ones_like(sampled[..., 0])], dim=1)
    generated = torch.stack(out.logits, dim=1).log_softmax(-1).gather(-1, sampled)
    logits = model(input_ids=out.sequences, attention_mask=mask).logits[:, width - 1 : -1]
    return float((logits.log_softmax(-1).gather(-1, sampled) - generated).abs().max())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", nargs="+", default=[*RANDOM, "embedded/reviews-gpt2"])
    parser.add_argument("--max_new_tokens", type=int, default=24)
    args = parser.parse_args()
    table = Table("model", "as TRL calls it", "positions from the mask", title="generate against training pass (nats)")
    worst = 0.0
    for name in args.model_name_or_path:
        path = resolve_model_path("embedded/reviews-gpt2" if name in RANDOM else name, "--model_name_or_path")
        tokenizer = AutoTokenizer.from_pretrained(path)
        tokenizer.pad_token = tokenizer.eos_token
        torch.manual_seed(0)
        if name in RANDOM:
            model = RANDOM[name](len(tokenizer))
        else:
            model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        model = model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
        plain = largest_gap(model, tokenizer, args.max_new_tokens)
        derive_positions(model)
        derived = largest_gap(model, tokenizer, args.max_new_tokens)
        worst = max(worst, derived)
        table.add_row(name, f"{plain:.2g}", f"{derived:.2g}")
    Console().print(table)
    return int(worst > 1e-4)


if __name__ == "__main__":
    sys.exit(main())
