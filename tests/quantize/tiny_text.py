"""Make a tiny random causal language model: `python tiny_text.py OUT [DTYPE]`, in the quantizer's interpreter."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from tiny_omni import tokenizer
from transformers import LlamaConfig, LlamaForCausalLM


def main(out: Path, dtype: str = "bfloat16") -> None:
    tok = tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tok), hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).to(getattr(torch, dtype)).save_pretrained(out)
    tok.save_pretrained(out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
