"""Sentences: the grammar, files of them, and a language model behind an endpoint on this machine."""

from __future__ import annotations

import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from sfumato.errors import EndpointError, ParameterError, PromptError
from sfumato.runtime.endpoint import Endpoint
from sfumato.runtime.sentences import clean_sentences, from_grammar, read_sentences


def test_the_grammar_gives_as_many_different_sentences_as_asked():
    for count in (1, 10, 1000, 1920):
        sentences = from_grammar("cat", count)
        assert len(sentences) == len(set(sentences)) == count
        assert all("cat" in sentence and "{" not in sentence for sentence in sentences)
    assert len(from_grammar("cat", 20_000)) == 1920
    assert from_grammar("cat", 1) == ["a cat"]


def test_two_words_differ_in_the_word_alone():
    cats, dogs = from_grammar("cat", 300), from_grammar("dog", 300)
    assert [sentence.replace("cat", "dog") for sentence in cats] == dogs


def test_articles():
    assert from_grammar("apple", 1) == ["an apple"]
    assert from_grammar("the moon", 1) == ["the moon"]
    everything = from_grammar("owl", 1920)
    assert "a small owl at night" in everything
    assert "a photo of an old owl in a garden" in everything
    assert not any(" a owl" in s or " a old" in s for s in everything)
    assert not any("a the" in s for s in from_grammar("the moon", 1920))


def test_own_templates():
    templates = ["{}", "{} on a blue background", "{a}, flat", "{}"]
    assert from_grammar("apple", templates=templates) == ["apple", "apple on a blue background", "an apple, flat"]
    for bad in ("cat", "{} and {}", "{x}"):
        with pytest.raises(PromptError, match="template"):
            from_grammar("cat", templates=[bad])


@pytest.mark.parametrize("word", ["", "  ", "{}", 3])
def test_words_that_are_none_are_refused(word):
    with pytest.raises(PromptError, match="word is"):
        from_grammar(word)


@pytest.mark.parametrize("count", [0, -1, True, 10**9, 2.0, "3"])
def test_counts_out_of_range_are_refused(count):
    with pytest.raises(ParameterError, match="count is"):
        from_grammar("cat", count)


def test_sentences_of_a_file(tmp_path):
    path = tmp_path / "cat.txt"
    path.write_text("\ufeff a cat \n\n# a comment\nein Kater, größer\r\n", encoding="utf-8")
    assert read_sentences(path) == ["a cat", "ein Kater, größer"]
    (tmp_path / "empty.txt").write_text("\n# nothing\n")
    (tmp_path / "latin.txt").write_bytes("größer".encode("latin-1"))
    for name, words in {
        "missing": "cannot be read",
        "empty.txt": "holds 0 sentences",
        "latin.txt": "not UTF-8",
    }.items():
        with pytest.raises(PromptError, match=words):
            read_sentences(tmp_path / name)


def test_what_a_model_writes_is_cleaned():
    text = 'Here are captions:\n1. A cat sits.\n2) "A cat, in 3 hats"\n- a cat\n• a cat!\n\n(4) a cat at home.\n'
    assert clean_sentences(text) == ["A cat sits", "A cat, in  hats", "a cat", "a cat at home"]
    assert clean_sentences("a \ud83d cat\n\udc00\nein Käter 🐈") == ["a  cat", "ein Käter 🐈"]


class Service(BaseHTTPRequestHandler):
    seen: list[tuple[str, dict, dict]]
    answers: list

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append((self.path, dict(self.headers), body))
        answer = self.answers[min(len(self.seen), len(self.answers)) - 1]
        status, content = answer if isinstance(answer, tuple) else (200, answer)
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "http://127.0.0.1:9/elsewhere")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


def said(text):
    return {"choices": [{"message": {"role": "assistant", "content": text}}]}


CUT = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\n{}"
LONG = b"HTTP/1.1 200 OK\r\n" + b"x" * 70_000 + b"\r\n\r\n"


@pytest.fixture
def service():
    handler = type("Handler", (Service,), {"seen": [], "answers": []})
    server = HTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    handler.url = f"http://127.0.0.1:{server.server_port}/v1"
    yield handler
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_endpoint_is_asked_until_there_are_enough(service):
    service.answers[:] = [said("\n".join(f"{i}. a cat {c}" for i, c in enumerate("abcdef"))), said("a cat x\na cat y")]
    found = Endpoint(service.url, "tiny", key="secret").sentences("cat", 8)
    assert found == ["a cat a", "a cat b", "a cat c", "a cat d", "a cat e", "a cat f", "a cat x", "a cat y"]
    path, headers, body = service.seen[0]
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == "Bearer secret"
    assert body["model"] == "tiny"
    assert "'cat'" in body["messages"][0]["content"]
    assert len(service.seen) == 2


def test_an_endpoint_that_repeats_itself_is_given_up(service):
    service.answers[:] = [said("a cat")]
    assert Endpoint(service.url, "tiny").sentences("cat", 5) == ["a cat"]
    assert len(service.seen) == 4
    with pytest.raises(EndpointError, match="gave 1 sentences of 100"):
        Endpoint(service.url, "tiny").sentences("cat", 100)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((401, {}), "answers 401"),
        ((500, b"oops"), "answers 500"),
        ((302, {}), "answers 302"),
        (b"<html>", "no chat completion"),
        ({"choices": []}, "no chat completion"),
        (said(None), "no chat completion"),
        ([1], "no chat completion"),
        (b" " * 4_000_001, "more than 4000000 bytes"),
    ],
)
def test_answers_that_are_none_are_told(service, answer, words):
    service.answers[:] = [answer]
    with pytest.raises(EndpointError, match=words) as caught:
        Endpoint(service.url, "tiny", key="secret").sentences("cat", 5)
    assert "secret" not in str(caught.value)


def test_nobody_there():
    with pytest.raises(EndpointError, match="cannot be reached"):
        Endpoint("http://127.0.0.1:9/v1", "tiny", timeout=5).sentences("cat", 5)


@pytest.mark.parametrize("answer", [b"SSH-2.0-garbage\x1b[2J\r\n", b"HTTP/1.1 abc\r\n\r\n", b"", CUT, LONG])
def test_servers_that_speak_something_else_are_told_in_one_line(answer):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            with server.accept()[0] as connection:
                connection.recv(65536)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(EndpointError, match=r"does not answer as HTTP has it|cannot be reached") as caught:
            Endpoint(f"http://127.0.0.1:{server.getsockname()[1]}/v1", "tiny", timeout=5).sentences("cat", 5)
        thread.join()
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://host/x",
        "127.0.0.1:80",
        "http://",
        "http://me:pw@host/",
        "http://[::1",
        "http://me:pw@[::1",
        "http://127.0.0.1:abc",
        "http://127.0.0.1:99999",
        "http://127.0.0.1:9/a b",
        "http://127.0.0.1:9/a\n",
    ],
)
def test_addresses_that_are_none_are_refused(url):
    with pytest.raises(ParameterError, match="no http or https address") as caught:
        Endpoint(url, "tiny")
    assert "pw" not in str(caught.value).replace("passwd", "")
    assert str(caught.value).isprintable()


def test_keys_are_not_shown():
    with pytest.raises(ParameterError, match="key of the endpoint holds a line break") as caught:
        Endpoint("http://host/v1", "m", key="secret\n")
    assert "secret" not in str(caught.value)
    assert "key" not in repr(Endpoint("http://host/v1", "m", key="key"))
