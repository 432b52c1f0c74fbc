"""Eagle's special tokens in a transformers tokenizer: added and found by name.

Ids differ between checkpoints (upstream section 1.6), so nothing here or elsewhere assumes one. It promises that adding
never changes an existing id and that a missing token is an error, never `unk`.
"""

from __future__ import annotations

from typing import Any

from eagle_data.special_tokens import IMG_CONTEXT, SPECIAL_TOKENS


def add_special_tokens(tokenizer: Any) -> int:
    """Add the tokens Eagle needs, in the released order; returns how many were new.

    Grow the model with `resize_token_embeddings` only where `len(tokenizer)` exceeds its rows: a padded vocabulary must
    not shrink (upstream defect 26). Then set `config.image_token_index = token_id(tokenizer)`.
    """
    from transformers import AddedToken

    # transformers strips whitespace around nothing here: the released tokens are special, plain and not normalised.
    return tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL_TOKENS])


def token_id(tokenizer: Any, name: str = IMG_CONTEXT) -> int:
    """Id of a special token by name. Raises ValueError where the tokenizer lacks it."""
    found = tokenizer.get_vocab().get(name)
    if found is None:
        raise ValueError(
            f"the tokenizer {getattr(tokenizer, 'name_or_path', '') or type(tokenizer).__name__} has no token {name!r}; add "
            "Eagle's tokens with eagle_model.add_special_tokens(tokenizer)"
        )
    return int(found)
