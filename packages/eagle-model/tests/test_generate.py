"""Generation: the released contract, caches, padding and reuse of encoded images."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from eagle_model import PACKED_SDPA
from PIL import Image
from transformers import GenerationMixin, TextIteratorStreamer

NEW = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}


def inputs_for(processor: Any, texts: list[str], sizes: list[list[tuple[int, int]]]) -> Any:
    conversations = []
    shade = 40
    for text, row in zip(texts, sizes, strict=True):
        content: list[dict[str, Any]] = []
        for size in row:
            shade += 50
            content.append({"type": "image", "image": Image.new("RGB", size, (shade, 255 - shade, shade // 2))})
        conversations.append([{"role": "user", "content": [*content, {"type": "text", "text": text}]}])
    return processor.apply_chat_template(
        conversations, tokenize=True, return_dict=True, add_generation_prompt=True, padding=True, return_tensors="pt"
    )


def test_generate_returns_only_new_tokens_equal_to_step_by_step_argmax(make_model: Any, processor: Any):
    model = make_model()
    inputs = inputs_for(processor, ["What is this?"], [[(64, 32)]])
    new = model.generate(**inputs, **NEW)
    ids = inputs["input_ids"]
    for step in range(new.shape[1]):
        logits = model(input_ids=ids, pixel_values=inputs["pixel_values"]).logits
        assert int(logits[0, -1].argmax()) == int(new[0, step])
        ids = torch.cat([ids, new[:, step : step + 1]], dim=1)
    assert new.shape == (1, NEW["max_new_tokens"])


@pytest.mark.parametrize("attention", ["eager", "sdpa", PACKED_SDPA])
@pytest.mark.parametrize("use_cache", [True, False])
def test_attention_and_cache_do_not_change_the_answer(make_model: Any, processor: Any, attention: str, use_cache: bool):
    inputs = inputs_for(processor, ["What is this?"], [[(32, 32)]])
    expected = make_model().generate(**inputs, **NEW)
    assert torch.equal(make_model(attention=attention).generate(**inputs, **NEW, use_cache=use_cache), expected)


def test_a_left_padded_batch_answers_like_each_prompt_alone(make_model: Any, processor: Any):
    model = make_model(attention=PACKED_SDPA)
    texts = ["What is this?", "Read the digits. 0 1 2 3 4 5 6 7 8 9", "no picture"]
    sizes = [[(32, 32)], [(64, 32), (32, 32)], []]
    batch = inputs_for(processor, texts, sizes)
    assert batch["attention_mask"][0, 0] == 0
    together = model.generate(**batch, **NEW)
    shade = 0
    for row, (text, size) in enumerate(zip(texts, sizes, strict=True)):
        alone = inputs_for(processor, [text], [size])
        if shade and size:  # the same shades as in the batch: pictures differ by their position in it
            alone["pixel_values"] = batch["pixel_values"][shade : shade + len(alone["pixel_values"])]
        shade += len(alone.get("pixel_values", []))
        assert torch.equal(model.generate(**alone, **NEW)[0], together[row]), text


def test_encoded_images_are_reused_across_turns(make_model: Any, processor: Any):
    model = make_model()
    inputs = inputs_for(processor, ["What is this?"], [[(64, 32)]])
    expected = model.generate(**inputs, **NEW)
    features = model.get_image_features(inputs["pixel_values"])
    del inputs["pixel_values"]
    assert torch.equal(model.generate(**inputs, visual_features=features, **NEW), expected)


def test_features_given_beside_pixels_are_used_as_in_the_released_code(make_model: Any, processor: Any):
    model = make_model()
    inputs = inputs_for(processor, ["What is this?"], [[(64, 32)]])
    expected = model.generate(**inputs, **NEW)
    features = model.get_image_features(inputs["pixel_values"])
    inputs["pixel_values"] = torch.zeros_like(inputs["pixel_values"])
    assert torch.equal(model.generate(**inputs, visual_features=features, **NEW), expected)


def test_a_second_turn_with_another_picture_encodes_only_that_one(make_model: Any, processor: Any):
    model = make_model()
    options = {"tokenize": True, "return_dict": True, "add_generation_prompt": True, "return_tensors": "pt"}
    first, second = ({"type": "image", "image": Image.new("RGB", (64, 32), (shade, 9, 200))} for shade in (50, 190))
    chat = [{"role": "user", "content": [first, {"type": "text", "text": "What is this?"}]}]
    inputs = processor.apply_chat_template(chat, **options)
    seen = model.get_image_features(inputs["pixel_values"])
    chat += [
        {"role": "assistant", "content": "A cat."},
        {"role": "user", "content": [second, {"type": "text", "text": "And this?"}]},
    ]
    inputs = processor.apply_chat_template(chat, **options)
    expected = model.generate(**inputs, **NEW)
    encoded: list[int] = []
    encode = model.get_image_features

    def counted(pixel_values: torch.Tensor) -> torch.Tensor:
        encoded.append(len(pixel_values))
        return encode(pixel_values)

    model.get_image_features = counted
    pixels = inputs.pop("pixel_values")
    features = torch.cat([seen, model.get_image_features(pixels[len(seen) :])])
    assert torch.equal(model.generate(**inputs, visual_features=features, **NEW), expected)
    assert encoded == [len(pixels) - len(seen)]


def test_sampling_is_fixed_by_the_seed(make_model: Any, processor: Any):
    model = make_model()
    inputs = inputs_for(processor, ["What is this?"], [[(32, 32)]])
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(model.generate(**inputs, max_new_tokens=12, do_sample=True, top_k=0, pad_token_id=0).tolist())
    assert drawn[0] == drawn[1] != drawn[2]


def test_generate_takes_pixels_first_as_the_released_code_does(make_model: Any, processor: Any):
    model = make_model()
    inputs = inputs_for(processor, ["What is this?"], [[(64, 32)]])
    by_name = model.generate(**inputs, **NEW)
    assert torch.equal(model.generate(inputs["pixel_values"], inputs["input_ids"], inputs["attention_mask"], **NEW), by_name)
    with pytest.raises(TypeError, match="first positional argument of generate is pixel_values"):
        model.generate(inputs["input_ids"])
    with pytest.raises(ValueError, match="needs input_ids"):
        model.generate(pixel_values=inputs["pixel_values"])


@pytest.mark.parametrize("attention", ["sdpa", PACKED_SDPA])
def test_a_long_prefill_makes_no_mask_of_tokens_by_tokens(make_model: Any, attention: str):
    from torch.utils._python_dispatch import TorchDispatchMode

    tokens = 1500
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            for value in result if isinstance(result, (tuple, list)) else [result]:
                if isinstance(value, torch.Tensor):
                    largest = max(largest, value.numel())
            return result

    model = make_model(attention=attention)
    inputs = {"input_ids": torch.randint(1, 200, (1, tokens)), "attention_mask": torch.ones(1, tokens, dtype=torch.long)}
    with Watch():
        model.generate(**inputs, **NEW)
    assert largest < tokens**2 / 4
    model.set_attn_implementation("eager")
    with Watch():
        model.generate(**inputs, **NEW)
    assert largest >= tokens**2


def test_streaming_yields_the_new_text_only(make_model: Any, processor: Any):
    model = make_model()
    inputs = inputs_for(processor, ["What is this?"], [[(32, 32)]])
    streamer = TextIteratorStreamer(processor.tokenizer, skip_prompt=True, timeout=30)
    new = model.generate(**inputs, **NEW, streamer=streamer)
    assert "".join(streamer) == processor.tokenizer.decode(new[0])


def test_beams_and_several_samples_keep_the_contract(make_model: Any, processor: Any):
    model = make_model()
    inputs = inputs_for(processor, ["What is this?"], [[(32, 32)]])
    beams = model.generate(**inputs, max_new_tokens=4, num_beams=3, num_return_sequences=2, do_sample=False, pad_token_id=0)
    assert beams.shape == (2, 4)
    output = model.generate(**inputs, **NEW, return_dict_in_generate=True, output_logits=True)
    assert output.sequences.shape == (1, 6)
    assert len(output.logits) == 6


def test_a_mismatch_of_prompt_and_pixels_is_an_error_before_generating(make_model: Any, processor: Any):
    inputs = inputs_for(processor, ["What is this?"], [[(64, 32)]])
    with pytest.raises(ValueError, match="image context tokens"):
        make_model().generate(input_ids=inputs["input_ids"], pixel_values=inputs["pixel_values"][:1], **NEW)


def test_the_plain_generation_loop_of_transformers_sees_pixels_at_the_prefill_only(make_model: Any, processor: Any):
    model = make_model()
    inputs = inputs_for(processor, ["What is this?"], [[(32, 32)]])
    calls: list[bool] = []
    encode = model.get_image_features

    def counted(pixel_values: torch.Tensor) -> torch.Tensor:
        calls.append(True)
        return encode(pixel_values)

    model.get_image_features = counted
    plain: Any = GenerationMixin
    full = plain.generate(model, inputs["input_ids"], pixel_values=inputs["pixel_values"], **NEW)
    assert len(calls) == 1
    model.get_image_features = encode
    assert torch.equal(full[:, inputs["input_ids"].shape[1] :], model.generate(**inputs, **NEW))


def test_a_context_token_that_the_model_generates_is_a_token_like_any_other(make_model: Any, processor: Any):
    model = make_model()
    inputs = inputs_for(processor, ["What is this?"], [[(32, 32)]])
    model.get_output_embeddings().weight.data.zero_()
    with torch.no_grad():  # every logit is 0, so force the context token through a processor of scores
        new = model.generate(
            **inputs,
            max_new_tokens=3,
            do_sample=False,
            pad_token_id=0,
            forced_bos_token_id=None,
            logits_processor=[_always(model)],
        )
    assert new.tolist() == [[model.config.image_token_index] * 3]


def _always(model: Any) -> Any:
    def score(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores[:, model.config.image_token_index] = 1.0
        return scores

    return score
