"""Small causal language models of transformers with random weights, saved as people have them, with a tokenizer."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import torch

SIZES = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
KINDS = {
    "Llama": {},
    "Qwen3": {"head_dim": 16, "tie_word_embeddings": True},
    "Gemma2": {"head_dim": 16, "sliding_window": 16, "query_pre_attn_scalar": 16},
}
TEXT = "The quick brown fox jumps over the lazy dog, and the dog looks on. " * 40


@functools.cache
def folder(kind: str) -> Path:
    """Return a folder with config.json, weights and tokenizer.json: each letter of a text is a token."""
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    place = Path(tempfile.mkdtemp(prefix="language-models-")) / kind.lower()
    module(kind).save_pretrained(place)
    letters = [*map(chr, range(ord("!"), ord("~") + 1)), "Ġ"]  # the last is a space
    pairs = [left + right for left in letters[32:58] for right in letters[32:58]]
    words = {word: index for index, word in enumerate(("<s>", "</s>", *letters, *pairs)[: SIZES["vocab_size"]])}
    tokenizer = Tokenizer(models.BPE(words, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    plain = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")  # noqa: S106
    plain.save_pretrained(place)
    return place


@functools.cache
def module(kind: str):
    """Return the model, whose weights are so large that its next tokens are of many kinds."""
    import transformers

    torch.manual_seed(0)
    made = getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, f"{kind}Config")(**SIZES, **KINDS[kind]))
    for parameter in made.parameters():
        if parameter.dim() == 2:
            parameter.data.mul_(8)
    return made.eval()
