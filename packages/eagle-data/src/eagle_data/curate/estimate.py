"""What a run will ask and cost, before it asks: exact for what is known, stated guesses for what depends on answers.

Requests that the journal has are counted as finished and cost nothing. Words are taken at four characters a token; a caption
that is not there yet at 300 tokens, a question with its answer at 45. Repeated attempts are not foreseen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from eagle_data.curate.annotate import clip_caption, clip_questions, story_captions, story_questions
from eagle_data.curate.asking import Asker, cost
from eagle_data.curate.clips import Clip
from eagle_data.curate.journal import Usage
from eagle_data.curate.prompts import Caption, Chapter, Request
from eagle_data.curate.recipe import CurateRecipe, EndpointSettings

__all__ = ["Estimate", "estimate"]

_CAPTION_TOKENS, _PAIR_TOKENS, _CHARACTERS = 300, 45, 4
_NOT_YET = Caption(brief="-", detailed="-")


@dataclass(frozen=True)
class Estimate:
    """What is left to ask.

    Attributes:
        requests: to ask, by kind.
        finished: that the journal has.
        pictures: to send.
        input_tokens: about.
        output_tokens: about; `most_output_tokens` when every answer is as long as it may be.
        cost: about, by the recipe's prices; `most_cost` with the longest answers.
        spent: what the journal says has been paid.
    """

    requests: dict[str, int] = field(default_factory=dict)
    finished: int = 0
    pictures: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    most_output_tokens: int = 0
    cost: float = 0.0
    most_cost: float = 0.0
    spent: float = 0.0

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.requests.items()) or "none"
        return (
            f"requests to ask: {sum(self.requests.values())} ({kinds}); {self.finished} finished earlier\n"
            f"tokens, about: {self.input_tokens:,} in ({self.pictures:,} pictures), {self.output_tokens:,} out "
            f"(at most {self.most_output_tokens:,})\n"
            f"cost, about: {self.cost:.2f}, at most {self.most_cost:.2f} without repeats; spent so far: {self.spent:.2f}"
        )


def estimate(recipe: CurateRecipe, asker: Asker, clips: Sequence[Clip], stories: dict[str, tuple[Chapter, ...]]) -> Estimate:
    """Count what `annotate` of the same arguments would ask."""
    count = _Count(asker)
    if recipe.clip_level is not None:
        for clip in clips:
            caption = count.add(clip_caption(recipe, recipe.clip_level, clip), _CAPTION_TOKENS)
            unknown = 0 if caption else _CAPTION_TOKENS
            asked = clip_questions(recipe, recipe.clip_level, clip, caption or _NOT_YET)
            count.add(asked, recipe.clip_level.questions * _PAIR_TOKENS, unknown)
    if recipe.story_level is not None:
        for video, chapters in stories.items():
            requests = story_captions(recipe, recipe.story_level, video, chapters)
            captions = [count.add(request, _CAPTION_TOKENS) for request in requests]
            told = [(chapter, caption or _NOT_YET) for chapter, caption in zip(chapters, captions, strict=True)]
            asked = story_questions(recipe, recipe.story_level, video, told)
            count.add(asked, recipe.story_level.questions * _PAIR_TOKENS, captions.count(None) * _CAPTION_TOKENS)
    return count.total(asker.settings)


class _Count:
    """Adds up requests; `add` gives a finished caption back."""

    def __init__(self, asker: Asker) -> None:
        self._asker = asker
        self._requests: dict[str, int] = {}
        self._finished = self._pictures = 0
        self._input = self._output = 0

    def add(self, request: Request, output: int, unknown: int = 0) -> Caption | None:
        """Count a request whose answer takes about `output` tokens, and which holds `unknown` tokens more than its text."""
        answer = self._asker.finished(request) if not unknown else None
        if answer is not None:
            self._finished += 1
            return answer if isinstance(answer, Caption) else None
        pictures = len(request.pictures.seconds) if request.pictures else 0
        self._requests[request.kind] = self._requests.get(request.kind, 0) + 1
        self._pictures += pictures
        words = (len(request.system) + len(request.text)) // _CHARACTERS
        self._input += words + unknown + pictures * self._asker.settings.tokens_per_picture
        self._output += output
        return None

    def total(self, settings: EndpointSettings) -> Estimate:
        """The sums with what they cost."""
        most = sum(self._requests.values()) * settings.max_tokens
        return Estimate(
            self._requests,
            self._finished,
            self._pictures,
            self._input,
            self._output,
            most,
            cost(Usage(self._input, self._output), settings),
            cost(Usage(self._input, most), settings),
            cost(self._asker.journal.spent, settings),
        )
