"""The errors that eagle-serve raises on purpose: one readable line each, so that a terminal or a page can show it as it is.

Unreadable media raise `eagle_data.errors.MediaError`, which is a ValueError too. Not for programming mistakes.
"""

from __future__ import annotations

__all__ = ["CheckpointError", "ContextOverflowError", "PromptError", "ServeError"]


class ServeError(ValueError):
    """Base of every error that eagle-serve raises for bad input."""


class CheckpointError(ServeError):
    """A model folder or hub id that holds no usable Eagle 2.5 checkpoint."""


class PromptError(ServeError):
    """A conversation that cannot be put to the model as it is."""


class ContextOverflowError(PromptError):
    """A prompt that leaves no room for an answer.

    Attributes:
        visual_tokens, text_tokens: tokens of the prompt; their sum is the prompt's length.
        context_length: tokens that prompt and answer together may have.
    """

    def __init__(self, visual_tokens: int, text_tokens: int, context_length: int) -> None:
        self.visual_tokens = visual_tokens
        self.text_tokens = text_tokens
        self.context_length = context_length
        super().__init__(
            f"the prompt has {visual_tokens + text_tokens} tokens ({visual_tokens} visual, {text_tokens} text), "
            f"but the model's context length is {context_length}; show fewer frames, tiles or pictures, or start anew"
        )

    def __reduce__(self) -> tuple[type[ContextOverflowError], tuple[int, int, int]]:
        return type(self), (self.visual_tokens, self.text_tokens, self.context_length)
