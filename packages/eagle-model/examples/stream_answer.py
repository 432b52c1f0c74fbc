"""Print the answer while it is made: `python stream_answer.py --model FOLDER photo.jpg "Describe it."`"""

# transformers' annotations of AutoModel are too narrow:
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false
import argparse
import threading

import eagle_model  # noqa: F401  # makes the Auto classes know Eagle 2.5
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, TextIteratorStreamer

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default="nvidia/Eagle-2.5-8B")
parser.add_argument("image")
parser.add_argument("question", nargs="?", default="Describe this image.")
parser.add_argument("--max-new-tokens", type=int, default=256)
options = parser.parse_args()

device = "cuda" if torch.cuda.is_available() else "cpu"
model = AutoModelForImageTextToText.from_pretrained(options.model, dtype="auto").to(device)
processor = AutoProcessor.from_pretrained(options.model)

messages = [{"role": "user", "content": [{"type": "image", "image": options.image}, {"type": "text", "text": options.question}]}]
inputs = processor.apply_chat_template(
    messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
).to(device)
streamer = TextIteratorStreamer(processor.tokenizer, skip_special_tokens=True)
arguments = {**inputs, "streamer": streamer, "max_new_tokens": options.max_new_tokens}
thread = threading.Thread(target=model.generate, kwargs=arguments)
thread.start()
for piece in streamer:  # only new text: the prompt never reaches the streamer
    print(piece, end="", flush=True)
thread.join()
print()
