"""Random models of a few thousand parameters and a tokenizer, made in memory: what tests of the trainers run on."""

import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, GPTJConfig, GPTJForCausalLM, PreTrainedTokenizerFast

SENTENCES = [
    "the film was good and the cast was great",
    "a bad film",
    "nothing in this movie works at all",
    "great acting, great plot, and a very good ending",
    "I liked it",
    "the worst movie of the year by far",
]


def tiny_tokenizer(pad: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level BPE of about 300 tokens; without `pad`, pad is missing as in GPT-2 and becomes EOS."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", *(["<pad>"] if pad else [])]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        SENTENCES, trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet)
    )
    names = {"bos_token": special[0], "eos_token": special[0], "pad_token": special[-1]}
    return PreTrainedTokenizerFast(tokenizer_object=bpe, padding_side="left", model_max_length=64, **names)


def tiny_gpt2(
    tokenizer: PreTrainedTokenizerFast, seed: int = 0, dropout: float = 0.1, positions: int = 64
) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    end = tokenizer.eos_token_id
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=positions, n_embd=32, n_layer=2, n_head=2, bos_token_id=end,
        eos_token_id=end, resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout, initializer_range=0.2,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def tiny_gptj(tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> GPTJForCausalLM:
    torch.manual_seed(seed)
    end = tokenizer.eos_token_id
    config = GPTJConfig(
        vocab_size=len(tokenizer), n_positions=64, n_embd=32, n_layer=2, n_head=2, rotary_dim=8, bos_token_id=end,
        eos_token_id=end, initializer_range=0.2, tie_word_embeddings=False,
    )  # fmt: skip
    model = GPTJForCausalLM(config)
    torch.nn.init.normal_(model.lm_head.bias, std=0.3)
    return model


def prompt_dataset(repeats: int = 4) -> Dataset:
    return Dataset.from_dict({"prompt": SENTENCES * repeats})


def length_reward(prompts, completions, **kwargs) -> list[float]:
    """Longer completions with more a's are better: varies within a group and needs no model."""
    return [0.1 * len(c) + c.count("a") for c in completions]
