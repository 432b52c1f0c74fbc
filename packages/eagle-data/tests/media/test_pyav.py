"""Videos opened by many threads at once in a process that has not loaded PyAV yet."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from ..media_files import write_video

PROCESSES = 6
"""Where threads name modules of PyAV before the package, about every second process fails."""

SCRIPT = """
import sys, threading
from eagle_data.video import open_video
assert "av" not in sys.modules
sys.setswitchinterval(1e-6)
start, failed = threading.Barrier(8), []
def work(file):
    start.wait()
    try:
        with open_video(file) as video:
            assert video.frames_at([0]).pixels.any()
    except BaseException as error:
        failed.append(repr(error))
threads = [threading.Thread(target=work, args=(sys.argv[1 + i % 2],)) for i in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
sys.exit("; ".join(failed) or 0)
"""


def test_threads_that_open_the_first_videos_of_a_process_at_once_all_can(tmp_path: Path):
    """One kind of file is decoded from its own tables, the other opened by FFmpeg: both ways into PyAV."""
    files = [tmp_path / "a.mp4", tmp_path / "a.avi"]
    write_video(files[0], 3)
    write_video(files[1], 3, codec="mpeg4")
    for _ in range(PROCESSES):
        command = [sys.executable, "-c", SCRIPT, *map(str, files)]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
