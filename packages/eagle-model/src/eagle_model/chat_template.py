"""The chat template: messages to a prompt with numbered placeholders for media.

It promises the released rendering (upstream section 2.1): ChatML turns, a default system turn, `<image-k>` and
`<video-k>` in the order of appearance, counted over the whole conversation. Placeholders become tokens in `processing.py`.
"""

_TEMPLATE = """\
{%- set roles = {'human': 'user', 'gpt': 'assistant'} -%}
{%- set count = namespace(image=0, video=0) -%}
{%- if messages[0]['role'] != 'system' -%}
{{- '<|im_start|>system\\n' + DEFAULT_SYSTEM + '<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
{{- '<|im_start|>' + roles.get(message['role'], message['role']) + '\\n' -}}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for item in message['content'] -%}
{%- if item is string -%}
{{- item -}}
{%- elif item['type'] in ('image', 'image_url') or 'image' in item or 'image_url' in item -%}
{%- set count.image = count.image + 1 -%}
{%- if add_vision_id -%}{{- '<image ' ~ count.image ~ '>' -}}{%- endif -%}
{{- '<image-' ~ count.image ~ '>' -}}
{%- elif item['type'] == 'video' or 'video' in item -%}
{%- set count.video = count.video + 1 -%}
{%- if add_vision_id -%}{{- '<video ' ~ count.video ~ '>' -}}{%- endif -%}
{{- '<video-' ~ count.video ~ '>' -}}
{%- elif 'text' in item -%}
{{- item['text'] -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""


def chat_template(default_system: str) -> str:
    """The jinja source, with `default_system` as the system turn of conversations that have none."""
    quoted = default_system.replace("\\", "\\\\").replace("'", "\\'")
    return _TEMPLATE.replace("DEFAULT_SYSTEM", f"'{quoted}'")
