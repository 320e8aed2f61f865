"""What sfumato says of a call in Python, in the words of the command line.

Messages name the call that mends them; whoever typed a command has options, not arguments. Sizes change their order
too: (height, width) in Python, WIDTHxHEIGHT here.
"""

from __future__ import annotations

import re

__all__ = ["as_options"]

_WORDS = (
    (r"\bsize=\((\d+), (\d+)\)", r"--size \2x\1"),
    (r"\btile=(\d+)", r"--tile \1"),
    (r"\bleave tile out\b", "leave --tile out"),
    (r"\bfused is True\b", "--fused is given"),
    (r"\bleave fused out\b", "leave --fused out"),
    (r"\bpass prompt=…", "give a PROMPT"),
    (r"\bpass label=…", "give --class NUMBER"),
    (r"\bpass tokens=…", "give --tokens N,N,…"),
    (r"\ba label was given\b", "--class was given"),
    (r"\b(?:a )?tokens was given\b", "--tokens was given"),
    (r"\bpass neither prompt nor label\b", "give neither PROMPT nor --class"),
    (r"; pass prompt$", "; give a PROMPT"),
    (r"; pass label$", "; give --class NUMBER"),
    (r"; pass tokens$", "; give --tokens N,N,…"),
    (r"\bprompt='([^']*)'", r"--prompt '\1'"),
    (r"\b(source|target)_word='([^']*)'", r"--\1-word '\2'"),
    (r"\b(second|mask)=PICTURE\b", r"--\1 PICTURE"),
    (r"\boriginal is given for\b", "--original is given for"),
    (r"\bsay degraded\b", "say --degraded"),
    (r"\bguidance_scale=(\d+)", r"--guidance-scale \1"),
    (r"\battention_guidance=(\d+)", r"--attention-guidance \1"),
    (r"\bbackend='(\w+)'", r"--backend \1"),
)
"""Patterns of `runtime`'s messages and what to say instead, read from the top; others stay as they are."""


def as_options(message: str) -> str:
    """The message with arguments of Python written as options of the command."""
    for pattern, said in _WORDS:
        message = re.sub(pattern, said, message)
    return message
