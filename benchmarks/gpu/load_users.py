"""Measure a vLLM-Omni server under 1, 4, 8, 16 users who ask at the same moment; writes a table and JSON.

python load_users.py --port 8091 --model omni --users 1,4,8,16 --out users.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from omni_http import Answer, Server, ask, chat_body

TOPICS = (
    "a bicycle stays upright",
    "bread rises",
    "a kite flies",
    "soap cleans",
    "a magnet works",
    "rain forms",
    "a sail pulls",
    "glue sticks",
    "a clock keeps time",
    "snow melts",
    "a drum sounds",
    "a lens bends light",
    "yeast grows",
    "a spring stores energy",
    "ice floats",
    "a candle burns",
)


def one_round(server: Server, users: int, text_tokens: int, codec_frames: int, modalities: list[str]) -> list[Answer]:
    """Let all users ask at the same moment; each asks something else."""
    gate = threading.Barrier(users)

    def user(number: int) -> Answer:
        question = f"Explain how {TOPICS[number % len(TOPICS)]}, in simple words."
        body = chat_body(server, question, modalities=modalities, text_tokens=text_tokens, codec_frames=codec_frames)
        gate.wait()
        return ask(server, body)

    with ThreadPoolExecutor(users) as pool:
        return list(pool.map(user, range(users)))


def spread(values: list[float], *, smallest: bool = False) -> dict[str, float] | None:
    """Median and slowest (of rates and lengths the smallest), to three decimals; None where there is nothing."""
    if not values:
        return None
    slowest = min(values) if smallest else max(values)
    return {"median": round(statistics.median(values), 3), "slowest": round(slowest, 3)}


def summary(answers: list[Answer]) -> dict[str, Any]:
    """The figures of all answers given at one number of users."""
    good = [answer for answer in answers if not answer.error]

    def present(values: list[float | None]) -> list[float]:
        return [value for value in values if value is not None]

    return {
        "answers": len(answers),
        "failed": [answer.error for answer in answers if answer.error],
        "first_text_s": spread(present([answer.first("text") for answer in good])),
        "first_sound_s": spread(present([answer.first("audio") for answer in good])),
        "whole_answer_s": spread([answer.seconds for answer in good]),
        "real_time_factor": spread(present([answer.real_time_factor for answer in good])),
        "longest_silence_s": spread([answer.longest_silence for answer in good if answer.sound_seconds]),
        "text_tokens_per_s": spread(present([answer.text_rate for answer in good]), smallest=True),
        "sound_s_per_answer": spread([answer.sound_seconds for answer in good], smallest=True),
        "first_usage": good[0].usage if good else None,
        "first_arrivals": [[round(p.at, 3), p.kind, p.size] for p in good[0].pieces if p.kind == "audio"]
        if good
        else [],
    }


def cell(row: dict[str, Any], key: str, scale: float = 1.0) -> str:
    value = row[key]
    return "-" if value is None else f"{value['median'] * scale:.3g} / {value['slowest'] * scale:.3g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", required=True, help="served model name")
    parser.add_argument("--users", default="1,4,8,16", help="numbers of users, separated by commas")
    parser.add_argument("--rounds", type=int, default=2, help="counted rounds per number of users")
    parser.add_argument("--text-tokens", type=int, default=60)
    parser.add_argument("--codec-frames", type=int, default=150, help="12.5 frames are one second of speech")
    parser.add_argument("--modalities", default="text,audio")
    parser.add_argument("--warm-up", type=int, default=1, help="rounds before counting, per number of users")
    parser.add_argument("--out", type=Path, help="write all figures as JSON")
    options = parser.parse_args()
    server = Server(options.host, options.port, options.model)
    modalities = options.modalities.split(",")
    figures: dict[str, Any] = {"request": {k: str(v) for k, v in vars(options).items() if k != "out"}, "users": {}}
    print("users  first text ms  first sound ms  whole s  RTF  silence ms  tokens/s   (median / slowest)")
    for users in map(int, options.users.split(",")):
        shape = (options.text_tokens, options.codec_frames, modalities)
        first = [summary(one_round(server, users, *shape)) for _ in range(options.warm_up)]
        answers = [answer for _ in range(options.rounds) for answer in one_round(server, users, *shape)]
        row = summary(answers)
        figures["users"][str(users)] = row | {"warm_up": first}
        print(
            f"{users:5d}  {cell(row, 'first_text_s', 1e3):>13}  {cell(row, 'first_sound_s', 1e3):>14}  "
            f"{cell(row, 'whole_answer_s')}  {cell(row, 'real_time_factor')}  "
            f"{cell(row, 'longest_silence_s', 1e3)}  {cell(row, 'text_tokens_per_s')}  failed {len(row['failed'])}"
            + (f" {row['failed'][0]}" if row["failed"] else ""),
            flush=True,
        )
        if options.out:
            options.out.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
