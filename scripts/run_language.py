"""Continue a text: MODEL TOKENIZER CONTEXT PROMPT, by ExecuTorch's own runner, for tests of the app without a phone.

Each piece of the text is a line of JSON, in the order in which it came.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path


def main(model: Path, tokenizer: Path, context: int, prompt: str) -> None:
    """Print the pieces; what the runner itself prints goes to standard error."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    from executorch.extension.llm.runner import GenerationConfig, TextLLMRunner

    def say(piece: str) -> None:
        print(json.dumps(piece), file=out, flush=True)

    runner = TextLLMRunner(str(model), str(tokenizer))
    runner.generate(prompt, GenerationConfig(echo=False, seq_len=context, temperature=0.0), say, lambda _stats: None)
    sys.stdout.flush()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Continue a text by ExecuTorch's runner of language models.")
    parser.add_argument("model", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("context", type=int)
    parser.add_argument("prompt")
    arguments = parser.parse_args()
    main(arguments.model, arguments.tokenizer, arguments.context, arguments.prompt)
