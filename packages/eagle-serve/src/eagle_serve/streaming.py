"""One answer as a stream of text.

Generation runs in a thread of its own. It promises that the caller sees every token's text as soon as its last character is
whole, that an exception over there is raised here, and that generation stops when the caller stops listening. There is no
time-out: a long prompt may take as long as it needs before the first word.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Mapping, Sequence
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer

from eagle_serve.errors import PromptError
from eagle_serve.loading import Checkpoint
from eagle_serve.prompt import Prompt, VisualSettings, prepare

__all__ = ["stream", "stream_prompt"]

_POLL_SECONDS = 0.1


class _Pieces(TextIteratorStreamer):
    """Text token by token. The base class waits for a space, so that digits or Thai would come all at once at the end."""

    def put(self, value: torch.Tensor) -> None:
        # No skip_prompt: eagle-model generates from embeddings, so the prompt arrives empty.
        self.token_cache.extend(value.flatten().tolist())
        text = str(self.tokenizer.decode(self.token_cache, **self.decode_kwargs))
        if text.endswith("\N{REPLACEMENT CHARACTER}"):
            return  # a character of several tokens
        self.on_finalized_text(text[self.print_len :])
        self.print_len = len(text)
        if text.endswith("\n"):
            # Each token decodes the whole cache; a line is the safe place to empty it.
            self.token_cache, self.print_len = [], 0


class _StopWhen(StoppingCriteria):
    def __init__(self, event: threading.Event) -> None:
        self.event = event

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return torch.full((input_ids.shape[0],), self.event.is_set(), device=input_ids.device, dtype=torch.bool)


def stream(
    checkpoint: Checkpoint, messages: Sequence[Mapping[str, Any]], visual: VisualSettings | None = None, **generation: Any
) -> Generator[str]:
    """Answer a conversation: `prepare`, then `stream_prompt`. Media are read and checked at once, not at the first piece."""
    return stream_prompt(checkpoint, prepare(checkpoint, messages, visual), **generation)


def stream_prompt(
    checkpoint: Checkpoint,
    prompt: Prompt,
    *,
    max_new_tokens: int = 512,
    temperature: float = 0.0,
    top_p: float = 0.95,
    **generation: Any,
) -> Generator[str]:
    """Answer a prepared prompt.

    Args:
        checkpoint: the model. While it answers another prompt this one waits.
        prompt: from `prepare`.
        max_new_tokens: at most this many, and never past the context length.
        temperature: 0 takes the likeliest token each time; above 0 samples.
        top_p: probability mass that sampling chooses from.
        **generation: anything else `GenerationMixin.generate` takes, e.g. `repetition_penalty`.

    Returns:
        An iterator of non-empty text pieces. Closing it, or leaving it to the garbage collector, stops the model at its next
        token.

    Raises:
        PromptError: at once, for impossible settings. While iterating: whatever generation raised.
    """
    if max_new_tokens < 1:
        raise PromptError(f"max_new_tokens is {max_new_tokens}; at least 1 is needed for an answer")
    if temperature < 0 or not 0 < top_p <= 1:
        raise PromptError(f"temperature {temperature} and top_p {top_p}: need temperature >= 0 and 0 < top_p <= 1")
    room = checkpoint.context_length - prompt.tokens
    options = {**generation, "max_new_tokens": min(max_new_tokens, room), **_sampling(temperature, top_p)}
    # The context token stands for a picture: generated, it would ask the model for features that do not exist.
    options["suppress_tokens"] = [*(generation.get("suppress_tokens") or ()), checkpoint.processor.image_token_id]
    return _pieces(checkpoint, prompt, options)


def _sampling(temperature: float, top_p: float) -> dict[str, Any]:
    if temperature == 0:
        # Explicit, because a checkpoint's generation_config may ask for sampling and transformers warns of the mixture.
        return {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    return {"do_sample": True, "temperature": temperature, "top_p": top_p}


def _pieces(checkpoint: Checkpoint, prompt: Prompt, options: dict[str, Any]) -> Generator[str]:
    stop = threading.Event()
    failures: list[BaseException] = []
    streamer = _Pieces(checkpoint.processor.tokenizer, skip_special_tokens=True)
    criteria = StoppingCriteriaList([*options.pop("stopping_criteria", ()), _StopWhen(stop)])

    def generate() -> None:
        try:
            while not checkpoint.busy.acquire(timeout=_POLL_SECONDS):
                if stop.is_set():
                    return
            try:
                if not stop.is_set():
                    inputs = prompt.inputs.to(checkpoint.device)
                    checkpoint.model.generate(**inputs, streamer=streamer, stopping_criteria=criteria, **options)
            finally:
                checkpoint.busy.release()
        except BaseException as error:
            failures.append(error)
        finally:
            streamer.text_queue.put(streamer.stop_signal)

    # Not a daemon: the interpreter waits for it at exit instead of tearing torch away underneath it.
    thread = threading.Thread(target=generate, name="eagle-serve-generate")
    thread.start()
    try:
        for piece in streamer:
            if piece:
                yield piece
        thread.join()
        if failures:
            raise failures[0]
    finally:
        # No join here: a caller who stops during a long prefill should not wait for it.
        stop.set()
