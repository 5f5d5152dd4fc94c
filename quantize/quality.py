"""How much a model's reading of a text changed: perplexity, KL divergence and next-token agreement, token by token.

What is kept of the original is what its lm_head is given at each position, a few kilobytes a token, so that both
models' whole distributions can be compared without either the two models or all logits being in memory at once.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantize.errors import ModelUnusable

if TYPE_CHECKING:
    import torch

_WINDOW = 512
"""Tokens of each independent piece of text."""
_CHANCE = 0.25
"""Perplexity over vocabulary size from which a model's words are no language: its weights are random."""
_SAME_LOGITS = 1e-2


def held_out() -> str:
    """A text that no calibration set has, and that every machine has alike.

    The beginning of M. Faraday, The Chemical History of a Candle (London 1861), lecture I; in the public domain.
    Transcribed by Project Gutenberg, number 14474; line breaks and footnote marks taken out.
    """
    return Path(__file__).with_name("held_out.txt").read_text()


def pieces(tokenizer: Any, text: str, windows: int) -> list[torch.Tensor]:
    """Token ids [tokens] of independent pieces, at most 512 tokens each."""
    ids = tokenizer(text, return_tensors="pt").input_ids[0]
    return [piece for piece in ids.split(_WINDOW)[:windows] if len(piece) > 1]


def states(text_part: Any, given: list[torch.Tensor]) -> list[torch.Tensor]:
    """What lm_head is given for each piece: [tokens, hidden].

    Raises ModelUnusable for a model that does more with it than multiply by lm_head's weights.
    """
    import torch

    with torch.no_grad():
        found = [text_part.model(input_ids=ids[None].to(text_part.device)).last_hidden_state[0] for ids in given]
        logits = text_part(input_ids=given[0][None].to(text_part.device)).logits[0]
        ours = torch.nn.functional.linear(found[0], head(text_part))
        if not torch.allclose(ours.float(), logits.float(), atol=_SAME_LOGITS * float(logits.abs().max())):
            raise ModelUnusable("the model changes its logits after lm_head, which is not known here")
    return found


def head(text_part: Any) -> torch.Tensor:
    """lm_head's weights [vocabulary, hidden]."""
    weight: torch.Tensor = text_part.get_output_embeddings().weight.detach()
    return weight


def compare(
    given: list[torch.Tensor], before: list[torch.Tensor], after: list[torch.Tensor], heads: tuple[torch.Tensor, ...]
) -> dict[str, float]:
    """perplexity, perplexity_before, perplexity_ratio, kl (nats a token, from the original), agreement and tokens.

    given: ids of each piece; before, after: states [tokens, hidden]; heads: lm_head's weights before and after.
    """
    rows = [
        _piece(ids, _log_probabilities(one, heads[0]), _log_probabilities(other, heads[1]))
        for ids, one, other in zip(given, before, after, strict=True)
    ]
    loss_before, loss, divergence, agreement = (sum(column) / len(rows) for column in zip(*rows, strict=True))
    return {
        "perplexity": math.exp(loss),
        "perplexity_before": math.exp(loss_before),
        "perplexity_ratio": math.exp(loss - loss_before),
        "kl": divergence,
        "agreement": agreement,
        "tokens": sum(map(len, given)),
    }


def _log_probabilities(hidden: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.nn.functional.linear(hidden, weights).float().log_softmax(-1)


def _piece(ids: torch.Tensor, old: torch.Tensor, new: torch.Tensor) -> tuple[float, float, float, float]:
    """Mean loss before, mean loss, KL and agreement. old, new: log-probabilities [tokens, vocabulary]."""
    target = ids[1:, None].to(old.device)
    before, loss = (-float(x[:-1].gather(1, target).mean()) for x in (old, new))
    divergence = float((old.exp() * (old - new)).sum(-1).mean())
    return before, loss, divergence, float((old.argmax(-1) == new.argmax(-1)).float().mean())


def by_chance(perplexity: float, vocabulary: int) -> bool:
    """Whether a model predicts no better than a random one."""
    return perplexity > _CHANCE * vocabulary
