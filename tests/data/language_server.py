"""A small OpenAI-compatible server in a thread, good or as bad as a test wants, and flags for data.generate."""

import contextlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from data import generate
from tests.conftest import write_jsonl

KEY = "sk-planted-0123456789abcdef"
Reply = tuple[int, dict, object]  # status, headers, body: JSON, or text as it is
LETTERS = "abcdefghij"


def words_of(number: int, count: int = 5) -> str:
    """Words that no other number has."""
    name = "".join(LETTERS[int(digit)] for digit in str(number))
    return " ".join(f"{name}{letter}" for letter in "vwxyz"[:count])


def completion(text: str | None, finish: str = "stop", usage: tuple | None = (100, 10)) -> dict:
    """A chat completion."""
    made = {"object": "chat.completion", "model": "m"}
    made["choices"] = [
        {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    ]
    names = "prompt_tokens", "completion_tokens"
    return made | ({"usage": dict(zip(names, usage, strict=True))} if usage else {})


def good(request: dict) -> Reply:
    """A new text for each seed."""
    return 200, {}, completion(words_of(request["body"]["seed"]))


def trouble(status: int, message: str = "try again", headers: dict | None = None, **more: object) -> Reply:
    """An error as servers send it."""
    return (
        status,
        headers or {},
        {"error": {"message": message, "type": "error", "param": None, "code": None} | more},
    )


def once(reply: Reply | str, then: Callable = good) -> Callable:
    """A first reply, then others. hang: nothing for a second; drop: the connection is cut."""
    replies = [reply]
    return lambda request: replies.pop() if replies else then(request)


class LanguageServer:
    """What a running server was asked."""

    def __init__(self, port: int):
        self.url, self.requests = f"http://127.0.0.1:{port}/v1", []


@contextlib.contextmanager
def serving(reply: Callable[[dict], Reply | str] = good) -> Iterator[LanguageServer]:
    """A server that answers with reply({"path", "headers", "body"})."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            headers = {name.lower(): value for name, value in self.headers.items()}
            request = {"path": self.path, "headers": headers, "body": body}
            with lock:
                told.requests.append(request)
                found = reply(request)
            if found == "hang":
                time.sleep(1)
            if isinstance(found, str):
                self.close_connection = True
                return
            status, headers, body = found
            content = (body if isinstance(body, str) else json.dumps(body)).encode()
            self.send_response(status)
            for name, value in ({"Content-Type": "application/json"} | headers).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if headers.get("X-Cut") else content)

        def do_GET(self) -> None:
            with lock:
                told.requests.append({"path": self.path, "headers": {}, "body": {}})
            self.send_error(404)

        def log_message(self, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    told = LanguageServer(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield told
    finally:
        server.shutdown()
        server.server_close()


ROWS = [{"text": f"red is rose number {words_of(k, 3)}", "label": "red"} for k in range(6)]
ROWS += [{"text": f"blue is the sea at {words_of(50 + k, 3)}", "label": "blue"} for k in range(6)]


def flags(folder: Path, url: str = "", rows: list[dict] | None = None, **more: object) -> list[str]:
    """Flags of data.generate: training rows and output in the folder; more: flags, None leaves one out."""
    train = folder / "train.jsonl"
    if not train.exists():
        write_jsonl(train, ROWS if rows is None else rows)
    given = {"train_data": train, "output": folder / "out.jsonl", "model": "tiny", "base_url": url or None}
    given |= {"rows_per_label": 3, "concurrency": 2} | more
    made = []
    for name, value in given.items():
        if value is not None:
            made += [f"--{name}", *(map(str, value) if isinstance(value, list) else [str(value)])]
    return made


def made_rows(folder: Path, name: str = "out") -> list[dict]:
    """The rows that a command wrote."""
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def generated(
    folder: Path, reply: Callable = good, **more: object
) -> tuple[dict, list[dict], LanguageServer]:
    """Run data.generate against a server; what it returns, the rows, what the server was asked."""
    with serving(reply) as server:
        result = generate.main(flags(folder, server.url, **more))
    return result, made_rows(folder), server


def seen(folder: Path) -> str:
    """The content of every file below a folder."""
    return "\n".join(path.read_text(errors="replace") for path in sorted(folder.rglob("*")) if path.is_file())


def shown_texts(request: dict) -> list[str]:
    """The texts that a request's turns of the assistant show."""
    return [turn["content"] for turn in request["body"]["messages"] if turn["role"] == "assistant"]


def asked_label(request: dict) -> str:
    """The label that a request asks for."""
    return re.search(r'with the labels? "([^"]*)"', request["body"]["messages"][-1]["content"]).group(1)
