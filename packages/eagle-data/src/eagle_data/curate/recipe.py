"""The recipe of `eagle-data curate`: which videos, how clips are cut and chosen, which endpoint writes what.

Values only, frozen, every key known. Paths are taken from the recipe file's folder. Section 4.2 of the Eagle 2.5 paper is where
the defaults come from; what it leaves open is said at the field.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, field_validator, model_validator

from eagle_data.curate.question_types import QUESTION_TYPES
from eagle_data.strict import Strict, explain, unknown_key

__all__ = ["ClipCutting", "ClipLevel", "CurateRecipe", "Diversity", "EndpointSettings", "StoryLevel", "load_curate_recipe"]

AnchorForm = Literal["time", "context", "both"]


class ClipCutting(Strict):
    """Clips of `seconds` each; a rest shorter than `shortest` joins the clip before it. `fps` frames a second are embedded."""

    seconds: float = Field(default=10.0, gt=0)
    shortest: float = Field(default=2.0, ge=0)
    fps: float = Field(default=1.0, gt=0)


class Diversity(Strict):
    """Keep a clip whose largest cosine to the existing set is below `threshold`; what a cosine means, the encoder decides.

    `within` is a second bound, against the clips that this run has kept so far; None, as in the paper, compares them not.
    `embedder` is layout, transformers or `module:factory`; `options` are its arguments.
    """

    threshold: float = Field(default=0.5, ge=-1, le=2)
    within: float | None = Field(default=None, ge=-1, le=2)
    embedder: str = "layout"
    options: dict[str, Any] = Field(default_factory=dict)


class EndpointSettings(Strict):
    """An OpenAI-compatible server: `url` ends before `/chat/completions`. Frames are sent to it, and nowhere else.

    Attributes:
        key_env: environment variable that holds the key; None sends none. The key is stored nowhere.
        concurrency: requests at the same time.
        timeout: seconds that one exchange may take, and `attempts` how often a request is asked before it is given up.
        backoff: seconds before the second attempt; doubled for each further one, at most `longest_wait`, half of it by chance.
        stop_after: requests given up one after the other because the endpoint failed, after which the run stops.
        max_tokens: of an answer, sent under the name `limit_key`.
        response_format: `schema` sends the JSON schema, `object` asks for some JSON, `none` asks in words only. All are
            validated.
        options: further fields of every request, such as temperature.
        price_in, price_out: of a million tokens, in your currency; `budget`: what a run and those before it may cost in all.
        picture: longest side of a frame that is sent, in pixels; `quality` of its JPEG; `tokens_per_picture` for the estimate.
    """

    url: str
    model: str
    key_env: str | None = None
    concurrency: int = Field(default=4, ge=1)
    timeout: float = Field(default=120.0, gt=0)
    attempts: int = Field(default=5, ge=1)
    backoff: float = Field(default=1.0, ge=0)
    longest_wait: float = Field(default=60.0, ge=0)
    stop_after: int = Field(default=5, ge=1)
    max_tokens: int = Field(default=2048, ge=1)
    limit_key: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    response_format: Literal["schema", "object", "none"] = "schema"
    options: dict[str, Any] = Field(default_factory=dict)
    price_in: float = Field(default=0.0, ge=0)
    price_out: float = Field(default=0.0, ge=0)
    budget: float | None = Field(default=None, gt=0)
    picture: int = Field(default=448, ge=16)
    quality: int = Field(default=85, ge=1, le=95)
    tokens_per_picture: int = Field(default=256, ge=1)

    @field_validator("url")
    @classmethod
    def _is_address(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is no http(s) address; write the server's, such as http://127.0.0.1:8000/v1")
        if parts.username or parts.password:
            raise ValueError("a key does not belong into the address; name an environment variable in key_env")
        return url.rstrip("/")


class _Level(Strict):
    """What both levels have: how many question types are drawn, and from which of the 63."""

    questions: int = Field(default=5, ge=1)
    types: tuple[str, ...] = tuple(QUESTION_TYPES)
    fps: float = Field(default=2.0, gt=0)

    @field_validator("types")
    @classmethod
    def _known_types(cls, types: tuple[str, ...]) -> tuple[str, ...]:
        for name in types:
            if name not in QUESTION_TYPES:
                raise ValueError(unknown_key(name, QUESTION_TYPES, "the 63 question types"))
        if len(set(types)) < len(types):
            raise ValueError("a question type is named twice; name each once")
        return types

    @model_validator(mode="after")
    def _enough_types(self) -> _Level:
        if self.questions > len(self.types):
            raise ValueError(f"questions: {self.questions} types cannot be drawn from {len(self.types)}; name more types")
        return self


class ClipLevel(_Level):
    """Questions about single clips: `questions` types drawn for each clip, asked of the clip and, anchored, of its video.

    At most `max_frames` frames, `fps` a second, are shown for the caption. The form of each anchor is drawn from `anchors`.
    """

    max_frames: int = Field(default=20, ge=1)
    anchors: tuple[AnchorForm, ...] = Field(default=("time", "context", "both"), min_length=1)


class StoryLevel(_Level):
    """Questions about whole videos that people have cut into chapters.

    `chapters` is a JSONL file: `{"video": "talks/3.mp4", "chapters": [{"start": 0, "end": 95.5, "title": "Opening"}, …]}`, videos
    relative to the recipe's `root`. Videos with fewer than `min_chapters` are left out, as are those of which no clip was kept.
    """

    chapters: Path
    questions: int = Field(default=8, ge=1)
    max_frames: int = Field(default=50, ge=1)
    min_chapters: int = Field(default=2, ge=1)


class CurateRecipe(Strict):
    """The whole of it.

    `videos` are the candidates: files, folders or glob patterns, all below `root`. The existing set that they must differ
    from is `existing_videos` (likewise, anywhere) and the kept clips of `existing_runs` (result folders of earlier runs). A
    level that is left out is not asked for; without an `endpoint` the run ends when the clips are chosen.
    """

    videos: tuple[str, ...] = Field(min_length=1)
    root: Path = Path()
    existing_videos: tuple[str, ...] = ()
    existing_runs: tuple[Path, ...] = ()
    clips: ClipCutting = ClipCutting()
    diversity: Diversity = Diversity()
    endpoint: EndpointSettings | None = None
    clip_level: ClipLevel | None = None
    story_level: StoryLevel | None = None
    seed: int = 0

    @model_validator(mode="after")
    def _levels_need_an_endpoint(self) -> CurateRecipe:
        if self.endpoint is None and (self.clip_level or self.story_level):
            raise ValueError("clip_level and story_level need an endpoint; name its url and model")
        return self


def load_curate_recipe(path: str | Path) -> CurateRecipe:
    """Read a YAML recipe; relative paths become relative to its folder. Raises ValueError naming the file and the key."""
    import yaml

    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: the recipe is not YAML ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: a recipe is a mapping with at least the key 'videos'")
    try:
        recipe = CurateRecipe.model_validate(content)
    except ValidationError as error:
        raise ValueError(f"{path}: {explain(error)}") from error
    base = path.parent
    story = recipe.story_level
    return recipe.model_copy(
        update={
            "videos": tuple(str(base / pattern) for pattern in recipe.videos),
            "root": base / recipe.root,
            "existing_videos": tuple(str(base / pattern) for pattern in recipe.existing_videos),
            "existing_runs": tuple(base / folder for folder in recipe.existing_runs),
            "story_level": story and story.model_copy(update={"chapters": base / story.chapters}),
        }
    )
