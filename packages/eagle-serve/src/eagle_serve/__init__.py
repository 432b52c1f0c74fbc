"""Talk to an Eagle 2.5 checkpoint, and see what it was shown.

`load_checkpoint` opens a folder or hub id, `Session` holds a conversation about images and videos, `Seen` tells the tiles,
frames and token counts of a prompt. Importing this package is light: torch and transformers come with the first name used.
Not for: training, and not a server for many users at once.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eagle_serve.conversation import Media, Turn, media_from_bytes, media_from_file, to_messages
    from eagle_serve.errors import CheckpointError, ContextOverflowError, PromptError, ServeError
    from eagle_serve.loading import Checkpoint, load_checkpoint
    from eagle_serve.prompt import Prompt, VisualSettings, prepare
    from eagle_serve.seen import Seen, SeenFrame, SeenPicture, SeenVideo
    from eagle_serve.session import Session
    from eagle_serve.streaming import stream, stream_prompt

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "ContextOverflowError",
    "Media",
    "Prompt",
    "PromptError",
    "Seen",
    "SeenFrame",
    "SeenPicture",
    "SeenVideo",
    "ServeError",
    "Session",
    "Turn",
    "VisualSettings",
    "load_checkpoint",
    "media_from_bytes",
    "media_from_file",
    "prepare",
    "stream",
    "stream_prompt",
    "to_messages",
]
__version__ = "0.1.0"

_HOME = {
    "conversation": ("Media", "Turn", "media_from_bytes", "media_from_file", "to_messages"),
    "errors": ("CheckpointError", "ContextOverflowError", "PromptError", "ServeError"),
    "loading": ("Checkpoint", "load_checkpoint"),
    "prompt": ("Prompt", "VisualSettings", "prepare"),
    "seen": ("Seen", "SeenFrame", "SeenPicture", "SeenVideo"),
    "session": ("Session",),
    "streaming": ("stream", "stream_prompt"),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOME.items():
        if name in names:
            return getattr(import_module(f"eagle_serve.{module}"), name)
    raise AttributeError(f"module 'eagle_serve' has no attribute {name!r}")
