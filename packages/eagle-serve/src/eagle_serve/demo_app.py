"""The Streamlit page: upload images and videos, chat over several turns, see what the model saw.

`eagle-serve demo` starts it and names the checkpoint in the environment (`demo_server`). Uploads stay in memory and go with
the browser's session; nothing is written to disk. The conversation itself is `session`; this file only draws it.
"""

from __future__ import annotations

import mimetypes
import os
from contextlib import closing
from typing import Any

import streamlit as st
from eagle_data.images import image_size
from PIL import Image

from eagle_serve.conversation import Media, Turn, media_from_bytes
from eagle_serve.demo_examples import Example, quickstart_examples
from eagle_serve.demo_panel import panel_html
from eagle_serve.demo_server import DEVICE_VARIABLE, MODEL_VARIABLE
from eagle_serve.errors import ServeError
from eagle_serve.loading import Checkpoint, load_checkpoint
from eagle_serve.prompt import VisualSettings
from eagle_serve.quiet import quiet
from eagle_serve.session import Session

UPLOADS = ["png", "jpg", "jpeg", "webp", "gif", "mp4", "mov", "mkv", "webm"]
_ANIMATIONS = (".gif", ".webp", ".png")
_RELEASED_MAX_FRAMES = 256
# Streamlit leaves six rem above the title, a sixth of a phone's screen, and cuts long button labels.
_STYLE = "<style>.stMainBlockContainer { padding-top: 3rem; } .stButton p { white-space: normal; }</style>"


def main() -> None:
    st.set_page_config(page_title="Eagle 2.5", page_icon=_icon(), layout="centered")
    model = os.environ.get(MODEL_VARIABLE)
    if not model:
        st.error("No checkpoint was named. Start this page with `eagle-serve demo --model FOLDER`.")
        st.stop()
    try:
        checkpoint = _checkpoint(model, os.environ.get(DEVICE_VARIABLE, "auto"))
    except ServeError as error:
        st.error(str(error))
        st.stop()
    if "session" not in st.session_state:
        st.session_state.session = Session(checkpoint)
        st.session_state.error = None
    session: Session = st.session_state.session

    generation = _sidebar(session)
    st.html(_STYLE)
    st.title("Eagle 2.5", anchor=False)
    submitted = st.chat_input("Ask about images and videos", accept_file="multiple", file_type=UPLOADS)
    if submitted:
        _take(session, submitted.text or "", submitted.files)
    if not session.turns and not st.session_state.error:
        _welcome(session, model)
    for turn in session.turns:
        _show_turn(turn)
    if session.unanswered and not st.session_state.error:
        _answer(session, generation)
    _after_last_turn(session)


def _icon() -> Image.Image:
    """Four tiles. Streamlit would fetch a named icon or emoji from the network."""
    icon = Image.new("RGBA", (32, 32))
    for x, y, colour in ((1, 1, "#0d8577"), (17, 1, "#12a594"), (1, 17, "#12a594"), (17, 17, "#6e7bf2")):
        icon.paste(colour, (x, y, x + 14, y + 14))
    return icon


@st.cache_resource(show_spinner="Loading the model …")
def _checkpoint(model: str, device: str) -> Checkpoint:
    with quiet():
        return load_checkpoint(model, device=device)


@st.cache_resource(show_spinner=False)
def _examples(model: str) -> tuple[Example, ...]:
    return quickstart_examples(model)


def _sidebar(session: Session) -> dict[str, Any]:
    """Draw the settings, put them into the session, and return those of generation."""
    checkpoint = session.checkpoint
    with st.sidebar:
        if st.button("New conversation", icon=":material/add:", width="stretch", key="clear"):
            session.clear()
            st.session_state.error = None
        session.system = st.text_area("System prompt", placeholder="The checkpoint's own", height=80, key="system")
        longest = min(4096, checkpoint.context_length // 2)
        tokens = st.slider("Max new tokens", 1, longest, min(512, longest), key="max_new_tokens")
        temperature = st.slider(
            "Temperature", 0.0, 1.5, 0.0, 0.1, "%.1f", help="0 takes the likeliest token each time.", key="temperature"
        )
        st.divider()
        tiles = st.slider(
            "Max tiles per image",
            1,
            max(12, checkpoint.max_tiles),
            checkpoint.max_tiles,
            help="Thumbnail not counted.",
            key="max_tiles",
        )
        fps = st.slider("Video frames per second", 0.1, 8.0, checkpoint.video_fps, 0.1, "%.1f", key="fps")
        frames = st.slider("Max frames per video", 4, _RELEASED_MAX_FRAMES, _frames_that_fit(checkpoint), 2, key="max_frames")
        session.visual = VisualSettings(max_tiles=tiles, fps=fps, max_frames=frames)
        st.divider()
        st.caption(f"`{checkpoint.name}`")
        precision = str(checkpoint.dtype).removeprefix("torch.")
        st.caption(f"{checkpoint.device} · {precision} · context of {checkpoint.context_length:,} tokens")
    return {"max_new_tokens": tokens, "temperature": temperature}


def _frames_that_fit(checkpoint: Checkpoint) -> int:
    """An even number of frames that leaves a quarter of the context to everything else."""
    frames = checkpoint.context_length * 3 // 4 // checkpoint.processor.tokens_per_tile
    return max(4, min(_RELEASED_MAX_FRAMES, frames // 2 * 2))


def _take(session: Session, text: str, files: list[Any]) -> None:
    """Make a turn of what was submitted, or an error of the first file or text that cannot be used."""
    try:
        session.add(text, [media_from_bytes(file.name, file.getvalue()) for file in files])
        st.session_state.error = None
    except ValueError as error:
        kept = f"\n\nYour question was: {text}" if text else ""
        st.session_state.error = f"Not sent. {error}{kept}"


def _welcome(session: Session, model: str) -> None:
    st.markdown("Attach images or videos, ask a question, and look at what the model saw.")
    examples = _examples(model)
    if not examples:
        return
    st.caption("Or try one of the held-out questions of this run:")
    for number, (column, example) in enumerate(zip(st.columns(len(examples)), examples, strict=True)):
        with column:
            st.image(example.preview, width="stretch")
            if st.button(example.question, key=f"example-{number}", help=f"The true answer is {example.truth}", width="stretch"):
                session.add(example.question, example.media)
                st.rerun()


def _show_turn(turn: Turn) -> None:
    with st.chat_message(turn.role):
        _show_media(turn.media)
        if turn.text:
            st.markdown(turn.text)
        elif turn.role == "assistant":
            st.caption("(no text)")
        if turn.stopped:
            st.caption("Stopped.")


def _show_media(media: tuple[Media, ...]) -> None:
    images = [item for item in media if item.kind == "image" or item.name.lower().endswith(_ANIMATIONS)]
    if images:
        most = 120 if len(images) > 1 else 220
        with st.container(horizontal=True):
            for item in images:
                st.image(_data(item), width=_width(_data(item), most), caption=item.name)
    for item in media:
        if item not in images:
            st.video(_data(item), format=mimetypes.guess_type(item.name)[0] or "video/mp4", width=240)


def _width(data: bytes, most: int) -> int:
    """Pixels wide at which the longer side is shown `most` pixels long."""
    width, height = image_size(data)
    return max(24, most * width // max(width, height))


def _data(media: Media) -> bytes:
    assert isinstance(media.source, bytes)  # every media of this page is an upload or an example
    return media.source


def _answer(session: Session, generation: dict[str, Any]) -> None:
    """Stream the answer. Any press of a button meanwhile ends this run, which closes the stream and stops the model."""
    place = st.empty()
    with place.container(), st.chat_message("assistant"):
        words, stop = st.empty(), st.empty()
        stop.button("Stop", icon=":material/stop_circle:", key="stop")
        text = ""
        try:
            with closing(session.answer(**generation)) as pieces:
                with st.spinner("Looking …"):
                    text = next(pieces, "")
                words.markdown(text)
                for piece in pieces:
                    text += piece
                    words.markdown(text + " ▍")
        except ValueError as error:
            st.session_state.error = str(error)
        except Exception as error:
            st.session_state.error = f"The model failed while answering ({type(error).__name__}: {error})"
        words.markdown(text)
        if not text and not st.session_state.error:
            words.caption("(no text)")
        stop.empty()
    if not text and st.session_state.error:
        place.empty()


def _after_last_turn(session: Session) -> None:
    """The error or the panel, and what can be done next."""
    if st.session_state.error:
        st.error(st.session_state.error, icon=":material/error:")
    if session.unanswered:
        with st.container(horizontal=True):
            st.button("Try again", icon=":material/refresh:", key="retry", on_click=_forget_error)
            st.button("Take the question back", icon=":material/undo:", key="take_back", on_click=_take_back)
        return
    if not session.turns:
        return
    if session.seen is not None:
        with st.expander(f"What the model saw · {session.seen.total_tokens:,} tokens", icon=":material/visibility:"):
            st.html(_panel(session))
    st.button("Regenerate", icon=":material/refresh:", key="regenerate", type="tertiary", on_click=_regenerate)


def _panel(session: Session) -> str:
    """The panel of the latest prompt, drawn once per prompt: a long video has hundreds of frames to encode."""
    seen = session.seen
    assert seen is not None
    kept = st.session_state.get("panel")
    if kept is None or kept[0] is not seen:
        kept = st.session_state.panel = (seen, panel_html(seen))
    return kept[1]


def _forget_error() -> None:
    st.session_state.error = None


def _take_back() -> None:
    st.session_state.session.retract_question()
    st.session_state.error = None


def _regenerate() -> None:
    st.session_state.session.retract_answer()
    st.session_state.error = None


if __name__ == "__main__":
    main()
