"""The command as a process: the installed script, a terminal, Ctrl-C, lean imports."""

from __future__ import annotations

import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest

from sfumato import __version__


@pytest.fixture(scope="module")
def command() -> list[str]:
    """The script beside this interpreter, or the module where the package was not installed."""
    script = shutil.which("sfumato", path=sysconfig.get_path("scripts"))
    return [script] if script else [sys.executable, "-m", "sfumato"]


def test_the_command_runs(command):
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"sfumato {__version__}\n"


def test_the_command_generates(command, tiny_ldm, tmp_path):
    arguments = ["generate", tiny_ldm, "a red apple", "--steps", "2", "-o", "a.png"]
    done = subprocess.run([*command, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "wrote a.png\n"
    assert done.stderr == ""


def test_info_loads_no_heavy_library(tiny_ldm):
    code = f"""
import sys
from sfumato.cli.app import app
try:
    app(["info", {str(tiny_ldm)!r}])
except SystemExit as stop:
    assert not stop.code
heavy = {{"torch", "openvino", "onnxruntime", "onnx", "PIL", "tokenizers", "transformers"}} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_terminal_sees_progress_and_ctrl_c_leaves_nothing(command, tiny_ldm, tmp_path):
    """The bar is on stderr when that is a terminal; an interrupt ends with 130 and leaves no file, part or whole."""
    ours, theirs = pty.openpty()
    arguments = ["generate", tiny_ldm, "cat", *"-o a.png --steps 900 --num-images 500 --batch-size 1".split()]
    process = subprocess.Popen(
        [*command, *arguments],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # shells ignore it in background
    )
    os.close(theirs)
    seen, deadline = b"", time.monotonic() + 60
    try:
        while b"%" not in seen and time.monotonic() < deadline:
            if select.select([ours], [], [], 1)[0]:
                seen += os.read(ours, 4096)
        assert b"generate" in seen and b"%" in seen
        process.send_signal(signal.SIGINT)
        # What the terminal is sent must be read, or the process waits for it.
        while process.poll() is None and time.monotonic() < deadline:
            if select.select([ours], [], [], 0.1)[0]:
                try:
                    seen += os.read(ours, 4096)
                except OSError:
                    break
        assert process.wait(10) == 130
    finally:
        process.kill()
        process.communicate()
        os.close(ours)
    assert b"Traceback" not in seen
    assert not list(Path(tmp_path).iterdir())


def test_a_closed_pipe_is_no_traceback(command, tiny_ldm):
    done = subprocess.run(
        f"{' '.join(command)} info {tiny_ldm} | head -c 1", shell=True, capture_output=True, text=True, check=False
    )
    assert "Traceback" not in done.stderr


def test_export_says_which_extra_is_missing():
    code = """
import sys
sys.modules["torch"] = None
from sfumato.cli.app import app
app(["export", "latent-diffusion", "--checkpoint", "x.ckpt", "--out", "out"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == (
        "sfumato: exporting a checkpoint needs torch, which is not installed; run: pip install 'sfumato[export]'\n"
    )
