"""Ask about one video or several: `python describe_videos.py --model FOLDER talk.mp4 --question "Who speaks?"`"""

# transformers' annotations of AutoModel are too narrow:
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false
import argparse

import eagle_model  # noqa: F401  # makes the Auto classes know Eagle 2.5
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default="nvidia/Eagle-2.5-8B")
parser.add_argument("videos", nargs="+")
parser.add_argument("--question", default="What happens?")
parser.add_argument("--fps", type=float, help="frames sampled per second of video (default: the checkpoint's, 2 in the release)")
parser.add_argument("--max-frames", type=int, default=256, help="of each video; longer videos are sampled more thinly")
parser.add_argument("--max-new-tokens", type=int, default=256)
options = parser.parse_args()

device = "cuda" if torch.cuda.is_available() else "cpu"
model = AutoModelForImageTextToText.from_pretrained(options.model, dtype="auto").to(device)
processor = AutoProcessor.from_pretrained(options.model)

sampling = {"max_frames": options.max_frames} | ({"fps": options.fps} if options.fps else {})
content = [{"type": "video", "video": video, **sampling} for video in options.videos]
messages = [{"role": "user", "content": [*content, {"type": "text", "text": options.question}]}]
prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
# Rates and times of the frames are printed in the prompt: hand them on.
images, videos, video_kwargs = processor.process_vision_info(messages, return_video_kwargs=True)
inputs = processor(text=[prompt], images=images, videos=videos, videos_kwargs=video_kwargs, return_tensors="pt").to(device)
answer = model.generate(**inputs, max_new_tokens=options.max_new_tokens)
print(processor.decode(answer[0], skip_special_tokens=True))
