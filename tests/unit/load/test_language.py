"""Language models of transformers with a cache in buffers, and texts as data."""

from __future__ import annotations

import copy
import dataclasses
import shutil

import language_models
import pytest
import torch

from edgeq.core.errors import UnsupportedError, UsageError
from edgeq.load.language import open_text
from edgeq.load.model import load_model
from edgeq.quantize.capture import capture

LENGTH = 48


def cached(kind="Llama", place=None, length=LENGTH):
    source = f"hf:{place or language_models.folder(kind)}"
    return load_model(source, weights=None, inputs=(), name=None, seed=0, context_length=length)


@pytest.mark.parametrize("kind", language_models.KINDS)
def test_a_prompt_and_each_token_after_it_have_the_logits_of_the_whole_text(kind):
    model = cached(kind)
    assert [spec.shape_text() for spec in model.inputs] == ["[1, 1..48]", "[1]"]
    text = torch.randint(0, 300, (1, LENGTH), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = language_models.module(kind)(text, use_cache=False).logits
        for _ in range(2):  # what an earlier text left in the buffers does not show
            came = [model.model(text[:, :20], torch.tensor([0]))]
            came += [model.model(text[:, place : place + 1], torch.tensor([place])) for place in range(20, LENGTH)]
            assert torch.allclose(torch.cat(came, 1), expected, atol=1e-3 * float(expected.abs().max()))
            model.model(text.flip(1), torch.tensor([0]))


def test_a_captured_model_can_be_copied():
    model = cached()
    capture(model)
    copied = copy.deepcopy(model.model)  # as schemes that exchange modules do
    inputs = (torch.tensor([[5, 6, 7]]), torch.tensor([0]))
    with torch.no_grad():
        assert torch.equal(copied(*inputs), model.model(*inputs))


def test_what_runners_ask_for_is_known(tmp_path):
    language = cached().language
    assert (language.context_length, language.most_tokens, language.vocabulary) == (LENGTH, LENGTH, 300)
    assert (language.bos_id, language.eos_ids) == (0, (1,))
    assert language.tokenizer == language_models.folder("Llama") / "tokenizer.json"
    # several tokens may end a text, and a folder may have no tokenizer
    other = shutil.copytree(language_models.folder("Llama"), tmp_path / "other")
    (other / "tokenizer.json").unlink()
    settings = other / "generation_config.json"
    settings.write_text(settings.read_text().replace('"eos_token_id": 1', '"eos_token_id": [1, 7]'))
    language = cached(place=other).language
    assert (language.eos_ids, language.tokenizer) == ((1, 7), None)
    plain = load_model(f"hf:{language_models.folder('Llama')}", weights=None, inputs=(), name=None, seed=0)
    assert plain.language is None


def test_what_has_no_such_cache_is_refused(tmp_path):
    import transformers

    with pytest.raises(UsageError, match="--context-length 65 is beyond the 64 positions of LlamaForCausalLM"):
        cached(length=65)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    transformers.BertModel(transformers.BertConfig(vocab_size=50, **sizes)).save_pretrained(tmp_path / "bert")
    with pytest.raises(UsageError, match=r"is for causal language models, but .*bert has a BertModel"):
        cached(place=tmp_path / "bert")


def test_an_architecture_whose_cache_has_no_fixed_size_is_refused(monkeypatch):
    from transformers.integrations import executorch

    def refused(*_args, **_options):
        raise ValueError("no cache of this kind")

    monkeypatch.setattr(executorch.TorchExportableModuleWithStaticCache, "__init__", refused)
    with pytest.raises(UnsupportedError, match="LlamaForCausalLM: no cache of this kind"):
        cached()


def opened(tmp_path, text, limit=None, **changes):
    model = cached()
    path = tmp_path / "text.txt"
    path.write_bytes(text)
    language = dataclasses.replace(model.language, **changes)
    return open_text(path, language, model.inputs, limit=limit, seed=0)


def test_a_text_is_windows_with_the_tokens_that_follow(tmp_path):
    text = language_models.TEXT.encode()
    data = opened(tmp_path, text)
    assert (data.count, data.labelled) == ((len(text) - 1) // LENGTH, True)
    first, second = data.read(0), data.read(1)
    tokens, place = first.inputs
    assert (tokens.shape, place.shape, int(place)) == ((LENGTH,), (), 0)
    assert (first.label[:-1] == tokens[1:]).all()
    assert first.label[-1] == second.inputs[0][0]
    assert len({*tokens.tolist()}) > 10
    assert opened(tmp_path, text, limit=5).count == 5
    short = opened(tmp_path, b"Hello!")  # shorter than a window
    assert (short.count, short.read(0).inputs[0].shape, short.read(0).label.shape) == (1, (5,), (5,))


def test_a_text_that_cannot_be_used_is_refused(tmp_path):
    with pytest.raises(UsageError, match="has 1 tokens, expected at least 2"):
        opened(tmp_path, b"a")
    with pytest.raises(UsageError, match="as text in UTF-8"):
        opened(tmp_path, b"\xff\xfe\xff")
    with pytest.raises(UsageError, match="has no tokenizer"):
        opened(tmp_path, b"Hello!", tokenizer=None)
    broken = tmp_path / "broken" / "tokenizer.json"
    broken.parent.mkdir()
    broken.write_text("{")
    with pytest.raises(UsageError, match=r"tokenizer\.json cannot be loaded"):
        opened(tmp_path, b"Hello!", tokenizer=broken)
