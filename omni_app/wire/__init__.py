"""vllm-omni 0.30's chat-completions dialect, both directions. Nothing outside this package knows its chunk formats.

It is OpenAI's chat completions with these differences, which clients and servers here rely on:

- a chunk says what it carries in a top-level `modality`, `"text"` or `"audio"`;
- speech is base64 in `choices[0].delta.content` (not in `delta.audio`), each chunk encoded on its own: headerless
  16-bit PCM for `audio.format` `pcm` or `pcm16`, a whole WAV file per chunk for `wav` (the default);
  `choices[0].audio_metadata` holds `format, sample_rate_hz, frame_count, channels`; a chunk may be empty;
- one chunk carries `finish_reason`: the last one of the modality that ends last. When an asked modality never came,
  it is a chunk with no `modality` at all;
- speech chunks carry a `usage` of the prompt alone; the whole count comes in a chunk without choices, when
  `stream_options.include_usage` asks for it; `metrics` come with `return_stage_metrics`;
- a failure in mid-stream is a chunk `{"error": {...}}`; the stream always closes with `[DONE]`;
- `modalities` left out means text and speech; the voice is the top-level `voice` or `speaker`.

One addition of ours: what the engine understood of the user's sound goes out as a top-level `heard` on a text chunk
whose delta is empty (streaming), or on the body (not streaming). Clients that do not know it see an empty delta.
"""

from omni_app.wire.connection import MODELS, Connection, NotServed
from omni_app.wire.decode import ReplyDecoder, decode_body
from omni_app.wire.encode import DONE, ReplyEncoder, completion_body
from omni_app.wire.faults import error_body, error_from, error_in_stream, words_in
from omni_app.wire.request import ChatRequest, MediaRef, MessageSpec, parse_request
from omni_app.wire.sending import DEFAULT_MAX_TOKENS, build_request, content_of, data_url, token_limit

__all__ = [
    "DEFAULT_MAX_TOKENS",
    "DONE",
    "MODELS",
    "ChatRequest",
    "Connection",
    "MediaRef",
    "MessageSpec",
    "NotServed",
    "ReplyDecoder",
    "ReplyEncoder",
    "build_request",
    "completion_body",
    "content_of",
    "data_url",
    "decode_body",
    "error_body",
    "error_from",
    "error_in_stream",
    "parse_request",
    "token_limit",
    "words_in",
]
