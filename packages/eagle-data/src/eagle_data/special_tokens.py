"""The special tokens of Eagle 2.5, by name and in the released order.

Ids are always looked up by name in the tokenizer at hand: the released checkpoint and models trained with the
public training code number them differently (upstream section 1.6, defect 26).
"""

IMG_START = "<img>"
IMG_END = "</img>"
IMG_CONTEXT = "<IMG_CONTEXT>"

IM_START = "<|im_start|>"
IM_END = "<|im_end|>"
END_OF_TEXT = "<|endoftext|>"

CHAT_TOKENS = (END_OF_TEXT, IM_START, IM_END)
"""Added first, in this order, so that a Qwen vocabulary keeps its original ids."""

GROUNDING_TOKENS = ("<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>", "<interval>", "</interval>")
"""Markers that conversations may contain as text; every other special token in a text is encoded as plain text."""

SPECIAL_TOKENS = (IMG_START, IMG_END, IMG_CONTEXT, *GROUNDING_TOKENS)
"""The tokens Eagle adds to the language model's vocabulary (ids 151665..151675 in the released checkpoint)."""
