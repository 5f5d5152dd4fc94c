"""Close the connection in mid-answer and measure how long the server takes to free all stages; writes JSON.

    python stop_answer.py --port 8091 --model omni --out stop.json

Two signs are watched: the server's own count of requests (vllm_omni:num_requests_running and _waiting together: a
request that is being answered counts as waiting), and the step and token counters of the stages, which stand still
once a stage works no more. The per-stage gauges vllm:num_requests_running are no sign: an idle stage keeps showing
the value of its last step.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from omni_http import Server, chat_body, pieces_of, post_lines, read_event


def read_counters(server: Server) -> tuple[float, dict[str, float]]:
    """Requests that the server still knows, and the work counters of the stages."""
    known, work = 0.0, {}
    for line in server.get("/metrics")[2].decode().splitlines():
        series, _, value = line.rpartition(" ")
        if series.startswith(("vllm_omni:num_requests_running", "vllm_omni:num_requests_waiting")):
            known += float(value)
        elif series.startswith(("vllm:generation_tokens_total", "vllm:iteration_tokens_total_count")):
            work[series] = float(value)
    return known, work


def stop_after(server: Server, kind: str, limit: float) -> dict[str, Any]:
    """Ask for a long answer, close the connection at its first piece of a kind, and watch the counters."""
    body = chat_body(
        server, "Tell a very long story.", modalities=["text", "audio"], text_tokens=1500, codec_frames=1500
    )
    lines = post_lines(server, body)
    for at, _, line in lines:
        event = read_event(line)
        if event and any(piece.kind == kind for piece in pieces_of(event, at)):
            break
    time.sleep(0.3)
    known_before, last = read_counters(server)
    closed = time.perf_counter()
    lines.close()
    freed: float | None = None
    last_work: dict[str, float] = {}
    polls = 0
    while (now := time.perf_counter() - closed) < limit:
        known, work = read_counters(server)
        polls += 1
        for series, value in work.items():
            if value != last.get(series):
                last_work[series] = round(now, 3)
        last = work
        if not known and freed is None:
            freed = round(now, 3)
        time.sleep(0.02)
    return {
        "stopped_at_first": kind,
        "known_before": known_before,
        "request_gone_after_s": freed,
        "last_work_seen_after_s": last_work,
        "polls": polls,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", required=True, help="served model name")
    parser.add_argument("--limit", type=float, default=4.0, help="seconds to watch the counters")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    server = Server(options.host, options.port, options.model)
    results = [stop_after(server, kind, options.limit) for kind in ("text", "audio")]
    for result in results:
        print(
            f"closed at the first {result['stopped_at_first']}: request gone after {result['request_gone_after_s']} s, "
            f"last work seen after {max(result['last_work_seen_after_s'].values(), default=0.0)} s"
        )
    if options.out:
        options.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
