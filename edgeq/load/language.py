"""Language models that keep the keys and values of attention in buffers, and texts as their data."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edgeq.core.errors import UnsupportedError, UsageError, first_line
from edgeq.core.lazy import np
from edgeq.core.results.model import LanguageModel, TensorSpec
from edgeq.core.samples import Dataset, Sample
from edgeq.load.records import Reading, label_of, to_sample
from edgeq.load.selection import choose

# of one call: a longer text goes in as several. The memory for the logits of all of them is set aside
MOST_TOKENS = 128

_TOKENIZERS = ("tokenizer.json", "tokenizer.model")  # as ExecuTorch's runner reads them


def language_facts(module: Any, folder: Path, context_length: int) -> LanguageModel:
    """Return what a runner needs to know of a model of transformers.

    Args:
        module: a causal language model.
        folder: of its configuration and tokenizer.
        context_length: how many tokens its buffers keep.

    Raises:
        UsageError: it is beyond the model's positions.
    """
    config = module.config.get_text_config()
    most = getattr(config, "max_position_embeddings", None)
    if most is not None and context_length > most:
        what = f"--context-length {context_length} is beyond the {most} positions of {type(module).__name__}"
        raise UsageError(what, f"give --context-length {most} or less")
    eos = getattr(module.generation_config, "eos_token_id", None)
    eos = config.eos_token_id if eos is None else eos
    return LanguageModel(
        context_length=context_length,
        most_tokens=min(MOST_TOKENS, context_length),
        vocabulary=config.vocab_size,
        bos_id=config.bos_token_id,
        eos_ids=() if eos is None else (eos,) if isinstance(eos, int) else tuple(eos),
        tokenizer=next((folder / name for name in _TOKENIZERS if (folder / name).is_file()), None),
    )


def with_cache(module: Any, context_length: int) -> Any:
    """Return a causal language model as forward(tokens, input_pos), its keys and values in buffers.

    ExecuTorch's runners of language models call such programs: with a prompt, and then with each token that was chosen.

    Args:
        module: a causal language model of transformers.
        context_length: how many tokens the buffers keep.

    Returns:
        A module that takes tokens, int64 [1, T], and the place of the first one, int64 [1], and returns logits, float32
        [1, T, vocabulary].

    Raises:
        UnsupportedError: transformers has no cache of fixed size for it.
    """
    import torch
    from transformers.integrations.executorch import TorchExportableModuleWithStaticCache

    # transformers renames it (5.24 warns of the first)
    cache_name = "cache" if "cache" in inspect.signature(type(module).forward).parameters else "past_key_values"

    class WithCache(TorchExportableModuleWithStaticCache):  # type: ignore[misc]  # transformers is not followed by mypy
        """Hands the buffers to the cache in each call: a capture then sees them written, and not copies of them."""

        def forward(self, tokens: Any, input_pos: Any) -> Any:
            for index, layer in enumerate(self.static_cache.layers):
                layer.keys, layer.values = (getattr(self, f"{name}_cache_{index}") for name in ("key", "value"))
                layer.cumulative_length = input_pos[0].clone()
            logits = self.model(input_ids=tokens, use_cache=True, **{cache_name: self.static_cache}).logits
            for layer in self.static_cache.layers:  # else a capture leaves its stand-ins there, which cannot be copied
                layer.keys = layer.values = layer.cumulative_length = None
            return logits

    settings = module.generation_config
    settings.use_cache, settings.cache_implementation = True, "static"
    module.config.get_text_config().use_cache = True
    try:
        made = WithCache(module, batch_size=1, max_cache_len=context_length, device=torch.device("cpu"))
        with torch.no_grad():
            made(torch.zeros(1, 2, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
    except Exception as err:  # transformers raises many types for architectures that such a cache does not fit
        what = f"transformers makes no key-value cache of fixed size for {type(module).__name__}: {first_line(err)}"
        raise UnsupportedError(what, "omit --context-length: forward then takes all tokens of a text at once") from err
    for index in range(len(made.static_cache.layers)):  # `input_pos` says it
        del made._buffers[f"cumulative_length_{index}"]
    return made.eval()


def language_inputs(language: LanguageModel) -> tuple[str, ...]:
    """Return the inputs of `with_cache` as `--input` writes them; data begin at the first place."""
    tokens = f"tokens=int64:1x{{tokens=1..{language.most_tokens}}}:0..{language.vocabulary - 1}"
    return tokens, "input_pos=int64:1:0..0"


def is_text(origin: str) -> bool:
    """Whether the name of data is that of a text."""
    return origin.endswith(".txt")


def open_text(
    path: Path, language: LanguageModel, specs: Sequence[TensorSpec], *, limit: int | None, seed: int
) -> Dataset:
    """Return the samples of a text: windows of as many tokens as one call takes, each with the tokens that follow.

    Args:
        path: of the text, UTF-8.
        language: its tokenizer splits the text.
        specs: the model's inputs.
        limit: maximum number of windows, drawn from all; None for all.
        seed: picks them.

    Raises:
        UsageError: the text cannot be read, is too short, or there is no tokenizer.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as err:
        raise UsageError(f"cannot read {path} as text in UTF-8: {first_line(err)}", "check the file") from err
    words = np.asarray(_tokenizer(path, language)(text), np.int64)
    size = language.most_tokens
    if len(words) < 2:
        raise UsageError(f"{path} has {len(words)} tokens, expected at least 2", "give a longer text")
    starts = range(0, max(1, len(words) - size), size)  # a shorter rest is left out, where it is not all
    chosen = choose(len(starts), limit=limit, seed=seed, classes=None)
    reading = Reading(specs=tuple(specs), preprocess=None)

    def read(i: int) -> Sample:
        start = starts[chosen[i]]
        window = words[start : start + size + 1]
        arrays = {"tokens": window[:-1], "input_pos": np.zeros((), np.int64)}
        return to_sample(arrays, label_of(window[1:]), f"{path.name}[{chosen[i]}]", reading)

    return Dataset(origin=str(path), count=len(chosen), read=read, labelled=True)


def _tokenizer(path: Path, language: LanguageModel) -> Callable[[str], Sequence[int]]:
    """Return a function from a text to its tokens."""
    if language.tokenizer is None:
        what = f"{path} is a text, but the model's folder has no tokenizer ({' or '.join(_TOKENIZERS)})"
        raise UsageError(what, "save the tokenizer into the folder too, or give tokens in an .npz file")
    try:
        if language.tokenizer.suffix == ".json":  # as ExecuTorch's runner reads it
            import tokenizers

            tokenizer = tokenizers.Tokenizer.from_file(str(language.tokenizer))
            return lambda text: tokenizer.encode(text, add_special_tokens=False).ids
        import transformers

        plain = transformers.AutoTokenizer.from_pretrained(language.tokenizer.parent, local_files_only=True)
    except Exception as err:  # both libraries raise many types
        what = f"{language.tokenizer} cannot be loaded: {first_line(err)}"
        raise UsageError(what, "give the folder that tokenizer.save_pretrained() wrote too") from err
    return lambda text: plain(text, add_special_tokens=False, verbose=False)["input_ids"]
