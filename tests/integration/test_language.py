"""`hf:FOLDER --context-length N`: a language model from its folder to a bundle that ExecuTorch's own runner takes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from edgeq.bundle.reader import read_bundle

from .conftest import XNNPACK, Project, Run

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
import language_models

HOST = "linux-x86_64-xnnpack"


@pytest.fixture
def folder(project: Project) -> Path:
    (project.root / "text.txt").write_text(language_models.TEXT)
    return language_models.folder("Llama")


def said_by_the_runner(artifact: Path, tokenizer: Path, prompt: str, count: int) -> str:
    from executorch.extension.llm.runner import GenerationConfig, TextLLMRunner

    words: list[str] = []
    runner = TextLLMRunner(str(artifact), str(tokenizer))
    settings = GenerationConfig(echo=False, max_new_tokens=count, temperature=0.0)
    runner.generate(prompt, settings, words.append, lambda _stats: None)
    return "".join(words)


def said_by_transformers(folder: Path, prompt: str, count: int) -> str:
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer(prompt, return_tensors="pt", add_special_tokens=False).input_ids
    model = transformers.LlamaForCausalLM.from_pretrained(folder)
    whole = model.generate(tokens, max_new_tokens=count, do_sample=False, pad_token_id=0)
    text: str = tokenizer.decode(whole[0, tokens.shape[1] :])
    return text


@pytest.mark.slow
def test_executorchs_runner_says_from_the_bundle_what_transformers_says(
    edgeq: Run, project: Project, folder: Path
) -> None:
    options = ("--context-length", "64", "--eval-data", "text.txt", "--on", "host", "-o", "out", "--quiet")
    made = edgeq("package", f"hf:{folder}", "-t", HOST, "--scheme", "fp32", *options, "--json")
    assert made.code == 0, made.err
    assert made.gate("continuation")["measured"] == "16 of 16"
    (row,) = made.json["rows"]
    assert row["verified"]["continuation"]["tokens"] == 16
    assert row["verified"]["fidelity"]["metric"] == "1/perplexity"
    bundle = read_bundle(Path(row["path"]))
    roles = {entry.role: entry.path for entry in bundle.manifest.files}
    assert roles["tokenizer"] == "tokenizer.json"
    language = bundle.manifest.language
    assert language is not None
    assert (language.context_length, language.vocabulary, language.eos_ids) == (64, 300, (1,))
    prompt = "The quick brown fox"
    expected = said_by_transformers(folder, prompt, 12)
    assert said_by_the_runner(bundle.artifact, bundle.folder / "tokenizer.json", prompt, 12) == expected
    again = edgeq("verify", row["path"], "--eval-data", "text.txt", "--on", "host", "--quiet")
    assert again.code == 0, again.out
    assert "score" in again.out
    shown = edgeq("inspect", row["path"])
    assert "language      64 tokens of context, 300 in the vocabulary, ends at 1" in shown.out
    # a changed tokenizer would make other words of the same tokens
    (bundle.folder / "tokenizer.json").write_text("{}")
    assert edgeq("verify", row["path"], "--on", "host", "--quiet").code == 8


@pytest.mark.slow
def test_the_phones_kernels_say_the_same_and_a_limit_on_perplexity_is_judged(
    edgeq: Run, project: Project, folder: Path
) -> None:
    options = ("--context-length", "64", "--eval-data", "text.txt", "-o", "out", "--quiet", "--json")
    limits = ("--limit", "perplexity=50%", "--limit", "agreement=99%")
    made = edgeq("package", f"hf:{folder}", "-t", XNNPACK, "--scheme", "8da4w", *options, *limits)
    assert made.gate("perplexity")["outcome"] == "ok", made.gate("perplexity")
    assert made.gate("agreement")["outcome"] == "failed"  # random weights: int4 moves many of the next tokens
    assert made.code == 5
    (row,) = made.json["rows"]
    assert [run["next_tokens"] for run in row["verified"]["emulation"]["runs"]] == [[16, 16], [16, 16]]
    assert made.gate("device")["outcome"] == "ok"


def test_other_targets_sources_and_data_are_refused(edgeq: Run, project: Project, folder: Path) -> None:
    base = ("-o", "out", "--quiet")
    made = edgeq("package", f"hf:{folder}", "-t", "linux-x86_64-ort", "--context-length", "64", *base)
    made.fails(3, "--context-length needs a target with XNNPACK, but linux-x86_64-ort has ort")
    made = edgeq("package", "digits", "-t", HOST, "--context-length", "64", *base)
    made.fails(2, "--context-length is for language models of transformers, but MODEL is digits")
    made = edgeq("package", f"hf:{folder}", "-t", HOST, "--scheme", "dynamic-int8", "--eval-data", "text.txt", *base)
    made.fails(2, "cannot take data from text.txt", "texts are for language models: hf:FOLDER with --context-length N")
    made = edgeq("package", "digits", "-t", HOST, "--limit", "perplexity=2%", "--on", "host", *base)
    assert made.code == 7
    assert "only a language model has one" in made.out
