"""Read a quantized Qwen3-Omni back into transformers and let it speak: `python speak.py QUANTIZED SOURCE`.

transformers 5 cannot load compressed experts, so the source is loaded and each quantized layer's weights are put in.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from transformers import AutoTokenizer, Qwen3OmniMoeForConditionalGeneration

from quantize import reload


def main(quantized: str, source: str) -> None:
    model = Qwen3OmniMoeForConditionalGeneration.from_pretrained(source, dtype=torch.bfloat16).eval()
    layers = reload.put_weights(model, Path(quantized))
    tokenizer = AutoTokenizer.from_pretrained(quantized)
    chat = [{"role": "user", "content": "How are you?"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    torch.manual_seed(0)
    with torch.no_grad():
        ids, sound = model.generate(
            **tokenizer(text, return_tensors="pt"), return_audio=True, speaker="ethan", thinker_max_new_tokens=4,
            thinker_eos_token_id=tokenizer.eos_token_id, talker_max_new_tokens=4, talker_min_new_tokens=2,
        )  # fmt: skip
    finite = bool(torch.isfinite(sound).all())
    print(json.dumps({"layers": layers, "tokens": ids.shape[-1], "samples": sound.shape[-1], "finite": finite}))


if __name__ == "__main__":
    main(*sys.argv[1:])
