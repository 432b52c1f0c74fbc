"""The processor: messages and media to model inputs, in the released prompt dialect.

It promises prompts byte-identical to the released processor (upstream sections 2.1 and 2.4), left padding, tiles in the
order of their tokens, and files that both this package and the released code read. Wording and tiling are eagle_data's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from eagle_data.dialect import Dialect, get_dialect
from transformers import BatchFeature
from transformers.processing_utils import ProcessorMixin

from eagle_model.chat_template import chat_template as build_chat_template
from eagle_model.configuration import Eagle2_5_VLConfig
from eagle_model.documents import expand_documents
from eagle_model.image_processing import IMAGE_OPTIONS, Eagle2_5_VLImageProcessor, as_list
from eagle_model.prompt_expansion import Media, PromptExpander
from eagle_model.tokens import token_id
from eagle_model.vision_info import kind_of, load_image_item, load_video_item, media_items


class Eagle2_5_VLProcessor(ProcessorMixin):
    """Tokenizer and image processor of Eagle 2.5 behind the released interface.

    Args:
        image_processor: `Eagle2_5_VLImageProcessor`.
        tokenizer: any fast tokenizer with Eagle's special tokens.
        chat_template: jinja source; None means the released rendering.
        tokens_per_tile: context tokens of one tile; must equal the model's `config.num_image_token`.
        image_token, video_token, image_start_token, image_end_token, image_placeholder, video_placeholder,
            vision_feature_select_strategy: keys of the released file.
        dialect: `released` (default) or `training`, the wording around pictures (eagle_data.dialect).
        video_fps: frames sampled per second of a video file whose item says nothing; None means the released 2. A model
            trained at another rate is saved with it, so that every later use samples alike.

    Raises ValueError where the tokenizer lacks a token, or for an unknown dialect.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        vision_feature_select_strategy: str | None = None,
        chat_template: Any = None,
        image_token: str = "<IMG_CONTEXT>",
        video_token: str = "<IMG_CONTEXT>",
        tokens_per_tile: int = 256,
        image_placeholder: str = "image",
        video_placeholder: str = "video",
        image_start_token: str = "<img>",
        image_end_token: str = "</img>",
        dialect: str = "released",
        video_fps: float | None = None,
        **kwargs: Any,
    ):
        if tokenizer is None or image_processor is None:
            raise ValueError("Eagle2_5_VLProcessor needs an image_processor and a tokenizer")
        wording = get_dialect(dialect)
        if chat_template is None:
            chat_template = build_chat_template(wording.default_system)
        self.vision_feature_select_strategy = vision_feature_select_strategy
        self.image_token = image_token
        self.video_token = video_token
        self.tokens_per_tile = tokens_per_tile
        self.image_placeholder = image_placeholder
        self.video_placeholder = video_placeholder
        self.image_start_token = image_start_token
        self.image_end_token = image_end_token
        self.dialect = dialect
        self.video_fps = video_fps
        self.image_token_id = token_id(tokenizer, image_token)
        self.video_token_id = token_id(tokenizer, video_token)
        for name in (image_start_token, image_end_token):
            token_id(tokenizer, name)
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    @classmethod
    def for_config(cls, config: Eagle2_5_VLConfig, tokenizer: Any, **kwargs: Any) -> Eagle2_5_VLProcessor:
        """A processor whose tile size, tile bounds and tokens per tile are those of a model config.

        `kwargs` go to the constructor. Raises ValueError where `config.image_token_index` is not the tokenizer's
        `<IMG_CONTEXT>`.
        """
        image_processor = Eagle2_5_VLImageProcessor(
            size=config.tile_size,
            min_dynamic_tiles=config.min_dynamic_tiles,
            max_dynamic_tiles=config.max_dynamic_tiles,
            use_thumbnail=config.use_thumbnail,
        )
        processor = cls(image_processor, tokenizer, tokens_per_tile=config.num_image_token, **kwargs)
        if processor.image_token_id != config.image_token_index:
            raise ValueError(
                f"config.image_token_index is {config.image_token_index} but the tokenizer's {processor.image_token} is "
                f"{processor.image_token_id}; set it with eagle_model.token_id(tokenizer)"
            )
        return processor

    @classmethod
    def _get_arguments_from_pretrained(
        cls, pretrained_model_name_or_path: Any, processor_dict: Any = None, **kwargs: Any
    ) -> list[Any]:
        # The base class asks AutoImageProcessor, which in transformers 5.17 needs torchvision whatever it would load.
        tokenizer = cls._load_tokenizer_from_pretrained("tokenizer", pretrained_model_name_or_path, **kwargs)
        return [Eagle2_5_VLImageProcessor.from_pretrained(pretrained_model_name_or_path, **kwargs), tokenizer]

    @property
    def wording(self) -> Dialect:
        """The prompt dialect as a value."""
        return get_dialect(self.dialect)

    @property
    def model_input_names(self) -> list[str]:
        return list(dict.fromkeys([*self.tokenizer.model_input_names, *self.image_processor.model_input_names, "image_sizes"]))

    def process_vision_info(
        self, conversations: Sequence[Any], return_video_kwargs: bool = False
    ) -> tuple[list[Any] | None, list[Any] | None] | tuple[list[Any] | None, list[Any] | None, dict[str, list[Any]]]:
        """Load the media of one conversation or several, in order (upstream section 2.4); the pages of a document are images.

        Returns:
            images (PIL) or None, videos (arrays of frames or lists of pictures) or None; with `return_video_kwargs` also
            `{"fps": [...], "timestamps": [[...] or None, ...]}`, one entry per video, for `videos_kwargs`.
        """
        images: list[Any] = []
        videos: list[Any] = []
        video_kwargs: dict[str, list[Any]] = {"fps": [], "timestamps": []}
        for item in media_items(expand_documents(conversations)):
            if kind_of(item) == "image":
                images.append(load_image_item(item))
            else:
                frames, fps, timestamps = load_video_item(item, default_fps=self.video_fps)
                videos.append(frames)
                video_kwargs["fps"].append(fps)
                video_kwargs["timestamps"].append(timestamps)
        if return_video_kwargs:
            return images or None, videos or None, video_kwargs
        return images or None, videos or None

    def apply_chat_template(  # pyright: ignore[reportIncompatibleMethodOverride]  # media come by the released route
        self,
        conversation: Sequence[Any],
        chat_template: str | None = None,
        *,
        add_generation_prompt: bool = False,
        tokenize: bool = False,
        return_dict: bool = False,
        return_tensors: Any = None,
        padding: bool | str = False,
        images_kwargs: Mapping[str, Any] | None = None,
        videos_kwargs: Mapping[str, Any] | None = None,
        processor_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Render messages; with `tokenize=True` also load their media and return model inputs.

        Content items are text, images, videos (upstream section 2.4) and, here only, documents (`eagle_model.documents`).

        Returns:
            The prompt with numbered placeholders (a list of them for several conversations); or `input_ids`; or with
            `return_dict=True` everything `__call__` returns. `kwargs` reach the template (`add_vision_id`).
        """
        conversation = expand_documents(conversation)
        template = {} if chat_template is None else {"chat_template": chat_template}
        prompts = super().apply_chat_template(
            list(conversation), add_generation_prompt=add_generation_prompt, tokenize=False, **template, **kwargs
        )
        if not tokenize:
            return prompts
        images, videos, from_media = self.process_vision_info(conversation, return_video_kwargs=True)  # pyright: ignore[reportAssignmentType]
        inputs = self(
            text=prompts,
            images=images,
            videos=videos,
            padding=padding,
            return_tensors=return_tensors,
            images_kwargs=images_kwargs,
            videos_kwargs={**from_media, **(videos_kwargs or {})},
            **(processor_kwargs or {}),
        )
        return inputs if return_dict else inputs["input_ids"]

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]  # the released signature
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        audio: None = None,
        videos: Sequence[Any] | None = None,
        *,
        images_kwargs: Mapping[str, Any] | None = None,
        videos_kwargs: Mapping[str, Any] | None = None,
        text_kwargs: Mapping[str, Any] | None = None,
        return_tensors: Any = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Prompts with placeholders and media to model inputs (upstream section 2.4).

        Args:
            images: images of all prompts, in order, as `process_vision_info` returns them, or one list per prompt.
            text: one prompt or a batch. `<image-k>` and `<video-k>` count from 1 within each prompt; each must appear once.
            audio: refused; the released signature has it.
            videos: videos of all prompts, in order, as `process_vision_info` returns them.
            images_kwargs: `min_dynamic_tiles`, `max_dynamic_tiles`, `use_thumbnail`, `resize_with`.
            videos_kwargs: `fps`, `timestamps` (one entry per video) and the keys of `images_kwargs`; one tile per frame by
                default.
            text_kwargs: to the tokenizer, like `kwargs`.
            return_tensors: `pt`, `np`, or None for lists of token ids.
            **kwargs: to the tokenizer (`padding`, `truncation` …); padding is on the left unless `padding_side` says otherwise.

        Returns:
            `input_ids`, `attention_mask` [batch, tokens]; with media `pixel_values` [tiles, 3, side, side] and
            `image_sizes` [images and frames, 2] as (height, width), both in the order of the text.

        Raises:
            ValueError: placeholders and media do not match, audio, or a truncation that cuts into a picture.
        """
        if audio is not None:
            raise ValueError("Eagle 2.5 takes no audio")
        if text is None:
            if images is None and videos is None:
                raise ValueError("the processor needs text, images or videos")
            return self.image_processor(images, videos=videos, return_tensors=return_tensors or "pt", **(images_kwargs or {}))
        prompts = [text] if isinstance(text, str) else list(text)
        if not all(isinstance(prompt, str) for prompt in prompts):
            raise ValueError("text must be a string or a list of strings")
        flat = {key: kwargs.pop(key) for key in IMAGE_OPTIONS if key in kwargs}
        video_options = dict(videos_kwargs or {})
        fps, timestamps = video_options.pop("fps", None), video_options.pop("timestamps", None)
        video_list = [] if videos is None else list(videos)
        media = Media(
            images=as_list(images),
            videos=video_list,
            fps=_per_video(fps, len(video_list), "fps"),
            timestamps=_per_video(timestamps, len(video_list), "timestamps"),
            image_options={**flat, **(images_kwargs or {})},
            video_options=video_options,
        )
        expander = PromptExpander(
            self.image_processor, self.wording, self.tokens_per_tile, self.image_placeholder, self.video_placeholder
        )
        expanded, tiles, sizes = expander.expand(prompts, media)
        options = {"padding_side": "left", **kwargs, **(text_kwargs or {})}
        encoded = self.tokenizer(expanded, return_tensors=return_tensors, **options)
        if options.get("truncation"):
            self._check_truncation(expanded, encoded["input_ids"])
        data = dict(encoded)
        if tiles:
            arrays = {"pixel_values": np.concatenate(tiles), "image_sizes": np.array(sizes, dtype=np.int64)}
            as_torch = return_tensors in (None, "pt")
            data.update({key: torch.from_numpy(array) if as_torch else array for key, array in arrays.items()})
        return BatchFeature(data)

    def _check_truncation(self, expanded: Sequence[str], input_ids: Any) -> None:
        for row, (prompt, ids) in enumerate(zip(expanded, input_ids, strict=True)):
            wanted = prompt.count(self.image_token)
            kept = sum(1 for token in ids if int(token) == self.image_token_id)
            if kept != wanted:
                raise ValueError(
                    f"truncation cut prompt {row} through its pictures ({kept} of {wanted} context tokens left); "
                    "raise max_length, or show fewer tiles or frames"
                )

    def to_dict(self) -> dict[str, Any]:
        """What `processor_config.json` holds. The image processor has its own file, where the released code looks."""
        output = super().to_dict()
        output.pop("image_processor", None)
        return output

    def save_pretrained(self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any) -> Any:
        """Write tokenizer, `processor_config.json`, `preprocessor_config.json` and `chat_template.jinja`."""
        saved = super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)
        self.image_processor.save_pretrained(save_directory)
        return saved


def _per_video(values: Any, videos: int, name: str) -> list[Any]:
    """One value per video; None for all, or a single number for all, are accepted."""
    if values is None or isinstance(values, (int, float)):
        return [values] * videos
    values = list(values)
    if name == "timestamps" and values and isinstance(values[0], (int, float)):
        values = [values]
    if len(values) != videos:
        raise ValueError(f"videos_kwargs[{name!r}] has {len(values)} entries for {videos} video(s); give one per video")
    return values
