"""Make a tiny random Qwen3-Omni with every part: `python tiny_omni.py OUT [HIDDEN]`, in the quantizer's interpreter.

The tokenizer is a byte BPE trained on the licence, with Qwen3-Omni's added tokens in their order; each role word
must be one token. Router, embeddings and convolutions are drawn again: as transformers leaves them, experts never
compete and the speech is silence.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AddedToken, Qwen2Tokenizer, Qwen3OmniMoeConfig, Qwen3OmniMoeForConditionalGeneration
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

ADDED = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>",
    "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>",
    "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>", "<tool_call>", "</tool_call>", "<|fim_prefix|>",
    "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<tool_response>",
    "</tool_response>", "<think>", "</think>", "<|audio_start|>", "<|audio_end|>", "<tts_pad>",
    "<tts_text_bos>", "<tts_text_eod>", "<tts_text_bos_single>", "<|audio_pad|>",
]  # fmt: skip
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{% elif c['type'] == 'audio' %}{{ '<|audio_start|><|audio_pad|><|audio_end|>' }}"
    "{% elif 'text' in c %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ATTRIBUTES = {
    "image_token": "<|image_pad|>", "audio_token": "<|audio_pad|>", "video_token": "<|video_pad|>",
    "vision_bos_token": "<|vision_start|>", "vision_eos_token": "<|vision_end|>",
    "audio_bos_token": "<|audio_start|>", "audio_eos_token": "<|audio_end|>",
}  # fmt: skip
CODES, GROUPS, HEAD = 64, 4, 32


def tokenizer() -> Any:
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    bpe.decoder = decoders.ByteLevel()
    licence = (Path(__file__).parents[2] / "LICENSE").read_text()
    roles = [word for word in ("system", "user", "assistant") for _ in range(50_000)]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        [licence, *roles], trainers.BpeTrainer(vocab_size=991, show_progress=False, initial_alphabet=alphabet)
    )
    spec = json.loads(bpe.to_str())["model"]
    merges = [tuple(pair) for pair in spec["merges"]]
    made = Qwen2Tokenizer(vocab=spec["vocab"], merges=merges, unk_token=None, pad_token=None, eos_token=None)
    made.add_tokens([AddedToken(token, special=token.startswith("<|"), normalized=False) for token in ADDED])
    made.eos_token, made.pad_token = "<|im_end|>", "<|endoftext|>"
    made._set_model_specific_special_tokens(ATTRIBUTES)
    made.chat_template = TEMPLATE
    return made


def decoder(hidden: int, **more: Any) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [6, 5, 5], "mrope_interleaved": True}
    common = {
        "hidden_size": hidden, "moe_intermediate_size": hidden // 2, "num_hidden_layers": 2, "head_dim": HEAD,
        "num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": True, "mlp_only_layers": [],
        "rope_parameters": rope, "tie_word_embeddings": False, "dtype": "bfloat16",
    }  # fmt: skip
    return {**common, **more}


def config(tok: Any, hidden: int) -> Qwen3OmniMoeConfig:
    def one(token: str) -> int:
        return int(tok.convert_tokens_to_ids(token))

    def role(word: str) -> int:
        return int(tok.encode(word)[0])

    media = {
        "image_token_id": one("<|image_pad|>"), "video_token_id": one("<|video_pad|>"),
        "audio_token_id": one("<|audio_pad|>"), "audio_start_token_id": one("<|audio_start|>"),
        "audio_end_token_id": one("<|audio_end|>"), "vision_start_token_id": one("<|vision_start|>"),
        "vision_end_token_id": one("<|vision_end|>"), "position_id_per_seconds": 13, "seconds_per_chunk": 2,
    }  # fmt: skip
    voice = max(64, hidden // 2)
    codec = 1024 + CODES  # generate() suppresses the last 1024 ids but the codec's end
    small_rope = {"rope_type": "default", "rope_theta": 1e6}
    thinker = {
        "audio_config": {"d_model": 64, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 128,
                         "num_mel_bins": 128, "downsample_hidden_size": 16, "output_dim": hidden, "n_window": 50,
                         "n_window_infer": 800, "conv_chunksize": 500, "max_source_positions": 1500},
        "vision_config": {"depth": 3, "hidden_size": 64, "num_heads": 2, "intermediate_size": 128,
                          "out_hidden_size": hidden, "patch_size": 16, "temporal_patch_size": 2,
                          "spatial_merge_size": 2, "num_position_embeddings": 256, "image_size": 256,
                          "apply_vit_abs_pos_embed": True, "deepstack_visual_indexes": [0, 1]},
        "text_config": decoder(hidden, vocab_size=len(tok), intermediate_size=hidden, num_attention_heads=4,
                               num_key_value_heads=2, max_position_embeddings=32768),
        "user_token_id": role("user"), "tie_word_embeddings": False, "dtype": "bfloat16", **media,
    }  # fmt: skip
    talker = {
        "text_config": decoder(voice, vocab_size=codec, intermediate_size=2 * voice, num_attention_heads=2,
                               num_key_value_heads=1, shared_expert_intermediate_size=voice),
        "code_predictor_config": {"vocab_size": CODES, "hidden_size": voice, "intermediate_size": 2 * voice,
                                  "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
                                  "head_dim": HEAD, "num_code_groups": GROUPS, "dtype": "bfloat16",
                                  "rope_parameters": small_rope},
        "num_code_groups": GROUPS, "thinker_hidden_size": hidden, "accept_hidden_layer": 1,
        "codec_pad_id": codec - 10, "codec_bos_id": codec - 9, "codec_eos_token_id": codec - 8,
        "codec_nothink_id": codec - 7, "codec_think_bos_id": codec - 6, "codec_think_eos_id": codec - 5,
        "spatial_merge_size": 2, "speaker_id": {"chelsie": codec - 4, "ethan": codec - 3, "aiden": codec - 2},
        "dtype": "bfloat16", **media,
    }  # fmt: skip
    code2wav = {
        "codebook_size": CODES, "num_quantizers": GROUPS, "hidden_size": 64, "intermediate_size": 128,
        "num_attention_heads": 2, "num_key_value_heads": 2, "num_hidden_layers": 2, "decoder_dim": 64,
        "upsample_rates": [8, 5, 4, 3], "upsampling_ratios": [2, 2], "sliding_window": 72,
        "max_position_embeddings": 8000, "dtype": "bfloat16",
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    }  # fmt: skip
    return Qwen3OmniMoeConfig(
        thinker_config=thinker, talker_config=talker, code2wav_config=code2wav, enable_audio_output=True,
        im_start_token_id=one("<|im_start|>"), im_end_token_id=one("<|im_end|>"), tts_pad_token_id=one("<tts_pad>"),
        tts_bos_token_id=one("<tts_text_bos>"), tts_eos_token_id=one("<tts_text_eod>"), system_token_id=role("system"),
        user_token_id=role("user"), assistant_token_id=role("assistant"), dtype="bfloat16",
        architectures=["Qwen3OmniMoeForConditionalGeneration"],
    )  # fmt: skip


def redraw(model: Any) -> None:
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("mlp.gate.weight"):
                weight.normal_(0, weight.shape[-1] ** -0.5)
            elif name.startswith(("code2wav.decoder", "code2wav.upsample")):
                if weight.dim() == 3:
                    weight.normal_(0, (2.0 / (weight.shape[1] * weight.shape[2])) ** 0.5)
            elif weight.dim() >= 2 and "embed" not in name:
                weight.normal_(0, (weight.shape[-1] if weight.dim() < 4 else weight[0].numel()) ** -0.5)
        model.thinker.get_input_embeddings().weight.normal_(0, 1.0)
        model.code2wav.code_embedding.weight.normal_(0, 1.0)


def processor_files() -> dict[str, dict[str, Any]]:
    image = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "patch_size": 16, "temporal_patch_size": 2,
             "merge_size": 2, "size": {"shortest_edge": 3136, "longest_edge": 65536}}  # fmt: skip
    sound = {"feature_extractor_type": "WhisperFeatureExtractor", "image_processor_type": "Qwen2VLImageProcessor",
             "processor_class": "Qwen3OmniMoeProcessor", "chunk_length": 300, "dither": 0.0, "feature_size": 128,
             "hop_length": 160, "n_fft": 400, "n_samples": 4800000, "nb_max_frames": 30000, "padding_side": "right",
             "padding_value": 0.0, "return_attention_mask": True, "sampling_rate": 16000, "min_pixels": 3136,
             "max_pixels": 65536}  # fmt: skip
    video = {"video_processor_type": "Qwen2VLVideoProcessor", "processor_class": "Qwen3OmniMoeProcessor"}
    return {"preprocessor_config.json": {**image, **sound}, "video_preprocessor_config.json": {**image, **video}}


def main(out: Path, hidden: int = 128) -> None:
    tok = tokenizer()
    torch.manual_seed(0)
    model = Qwen3OmniMoeForConditionalGeneration._from_config(config(tok, hidden), dtype=torch.bfloat16)
    redraw(model)
    model.save_pretrained(out, max_shard_size="1MB")
    tok.save_pretrained(out)
    (out / "chat_template.jinja").write_text(TEMPLATE)
    for name, content in processor_files().items():
        (out / name).write_text(json.dumps(content))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
