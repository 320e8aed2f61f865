"""The logger of a builder's library, which says why something failed: its calls give None and leave it at that."""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Any

from .builder_library import Api

__all__ = ["library_logger"]

_log = logging.getLogger(__name__)


@lru_cache(maxsize=2)
def library_logger(api: Api) -> Any:
    """The logger of a library, which keeps the first it is given for as long as the process lasts.

    Its ``forget()`` begins anew, its ``said()`` is the errors since then in one line, "" for none.
    """

    class Logger(api.trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            api.trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            kind = str(severity).rpartition(".")[2]
            if kind in ("ERROR", "INTERNAL_ERROR"):
                self.errors.append(" ".join(message.split()))
            _log.log(logging.INFO if kind in ("ERROR", "INTERNAL_ERROR", "WARNING") else logging.DEBUG, "%s", message)

        def forget(self) -> None:
            self.errors.clear()

        def said(self) -> str:
            return "; ".join(dict.fromkeys(self.errors[:3]))[:600]

    return Logger()
