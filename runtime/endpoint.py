"""Sentences from a language model behind an OpenAI-compatible endpoint that the user names.

Nothing here runs unless an address is given: sfumato itself calls no service. Standard library alone.
"""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from typing import IO, Any

from ..errors import EndpointError, ParameterError
from .sentences import check_count, clean_sentences

__all__ = ["Endpoint"]

_LIMIT = 4_000_000
"""Most bytes of an answer."""

_AT_ONCE = 50
"""Sentences asked for in one request; models lose count beyond."""


@dataclass(frozen=True)
class Endpoint:
    """A service that answers ``POST {url}/chat/completions``.

    Arguments:
        url: Its base, e.g. "http://127.0.0.1:8080/v1"; http and https only, redirects are not followed.
        model: Name of the model, as the service has it.
        key: Sent as a bearer token where given; not shown in messages.
        timeout: Seconds to wait for each answer.
    """

    url: str
    model: str
    key: str = ""
    timeout: float = 120.0

    def __post_init__(self) -> None:
        if not _is_address(self.url):
            raise ParameterError(
                f"the endpoint {self.url.rpartition('@')[2]!r} is no http or https address without a password; "
                "pass such as http://127.0.0.1:8080/v1"
            )
        if not (self.key.isascii() and self.key.isprintable()):  # else the message of http.client would show it
            raise ParameterError(
                "the key of the endpoint holds a line break, or a character that no header can carry; pass it without"
            )
        if not self.timeout > 0:
            raise ParameterError(f"timeout is {self.timeout}, need seconds above 0")

    def __repr__(self) -> str:
        return f"Endpoint({self.url!r}, {self.model!r})"

    def sentences(self, word: str, count: int = 500) -> list[str]:
        """Captions of pictures of a thing, all different; asked for in portions until there are enough.

        Raises:
            EndpointError: The service cannot be reached, refuses, or repeats itself before a tenth is there.
            ParameterError: `count` is out of range.
        """
        check_count(count)
        found: dict[str, None] = {}
        barren = 0
        while len(found) < count and barren < 3:
            wanted = min(_AT_ONCE, count - len(found))
            before = len(found)
            found |= dict.fromkeys(clean_sentences(self.ask(_request(word, wanted, barren))))
            barren = barren + 1 if len(found) == before else 0
        if len(found) < max(1, count // 10):
            raise EndpointError(
                f"{self.url}: {self.model!r} gave {len(found)} sentences of {count}; "
                "name a larger model, or leave the endpoint out and use the grammar"
            )
        return list(found)[:count]

    def ask(self, text: str) -> str:
        """The model's answer to one message."""
        body = json.dumps({"model": self.model, "messages": [{"role": "user", "content": text}]}).encode()
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        address = f"{self.url.rstrip('/')}/chat/completions"
        request = urllib.request.Request(address, body, headers, method="POST")
        try:
            with urllib.request.build_opener(_NoRedirect).open(request, timeout=self.timeout) as answer:
                data = answer.read(_LIMIT + 1)
        except urllib.error.HTTPError as error:
            with error:
                raise EndpointError(
                    f"{address}: answers {error.code} {_shown(error.reason)}; check the address, the model and the key"
                ) from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise EndpointError(f"{address}: cannot be reached ({_shown(reason)}); check the address") from error
        except http.client.HTTPException as error:
            said = _shown(f"{type(error).__name__}: {error}")
            raise EndpointError(f"{address}: does not answer as HTTP has it ({said}); check the address") from error
        return self._content(address, data)

    def _content(self, address: str, data: bytes) -> str:
        try:
            if len(data) > _LIMIT:
                raise ValueError(f"more than {_LIMIT} bytes")
            tree: Any = json.loads(data)
            content: Any = tree["choices"][0]["message"]["content"]
            if not isinstance(content, str):
                raise TypeError(f"content is a {type(content).__name__}")
        except (ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
            raise EndpointError(
                f"{address}: its answer is no chat completion ({type(error).__name__}: {error}); "
                "name the base of an OpenAI-compatible service"
            ) from error
        return content


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Redirects are errors: a key must not follow them to another host."""

    def redirect_request(self, req: Any, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str) -> None:
        return None


def _is_address(url: str) -> bool:
    """Whether `url` is a whole http or https address without user and password."""
    try:
        parts = urllib.parse.urlsplit(url)
        _ = parts.port  # read here, since a port that is no number raises
    except ValueError:
        return False
    plain = url.isprintable() and " " not in url
    return plain and parts.scheme in ("http", "https") and bool(parts.hostname) and "@" not in parts.netloc


def _shown(words: object) -> str:
    """A service's words in one line, shortened."""
    text = str(words)
    return (text if text.isprintable() else repr(text))[:200]


def _request(word: str, count: int, again: int) -> str:
    more = " Write other ones than before." if again else ""
    return (
        f"Write {count} different short captions of pictures that show {word!r}. Every caption must contain the words "
        f"{word!r}; vary place, light, style and what happens. One caption a line, no numbers.{more}"
    )
