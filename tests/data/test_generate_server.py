"""data/generate_server.py against a bad server: asked again, given up, told clearly; and no key is ever shown."""

import logging
import os
import random
import subprocess
import sys
import threading
import traceback

import pytest

from core.errors import UserError
from data import generate, generate_server
from data.generate_secrets import read_address
from data.generate_server import Server, retry_after, wait_s
from tests.conftest import write_jsonl
from tests.data.language_server import (
    KEY,
    completion,
    flags,
    generated,
    good,
    once,
    seen,
    serving,
    trouble,
    words_of,
)
from tests.helpers import ROOT


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """No test waits; no key of the machine's own is used."""
    monkeypatch.setattr(generate_server, "FIRST_WAIT_S", 0.001)
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


# -- asked again ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reply",
    [
        trouble(429, headers={"Retry-After": "0.01"}),
        trouble(500),
        trouble(503),
        trouble(408),
        "drop",
        "hang",
        (200, {}, "<html>busy</html>"),
        (200, {}, '{"choices": ['),
        (200, {}, {"choices": []}),
        (200, {}, {"error": "odd"}),
        (200, {}, completion(["no text"])),
        (200, {"X-Cut": "1"}, completion("half of it")),
        (502, {"Content-Type": "text/html"}, "<html>bad gateway</html>"),
    ],
    ids=lambda reply: reply if isinstance(reply, str) else f"{reply[0]} {str(reply[1:])[:40]}",
)
def test_a_passing_trouble_is_asked_again(tmp_path, reply):
    result, rows, server = generated(tmp_path, once(reply), timeout=0.3, rounds=1)
    assert (result["failed_requests"], len(rows)) == (0, 6)
    assert len(server.requests) == 7


def test_the_same_request_is_sent_again(tmp_path):
    _, _, server = generated(tmp_path, once(trouble(500)), concurrency=1)
    assert server.requests[0]["body"] == server.requests[1]["body"]


def test_waits_grow_are_bounded_and_differ():
    rng = random.Random(0)
    waits = [[wait_s(k, None, rng) for _ in range(200)] for k in range(12)]
    first, most = generate_server.FIRST_WAIT_S, generate_server.MOST_BACK_OFF_S
    for k, own in enumerate(waits):
        full = min(most, first * 2**k)
        assert full / 2 <= min(own) < max(own) <= full
        assert len(set(own)) == 200


def test_no_wait_is_shorter_than_the_server_asks(monkeypatch):
    monkeypatch.setattr(generate_server, "FIRST_WAIT_S", 1.0)
    for k in range(8):
        assert 20 <= wait_s(k, 20.0, random.Random(k)) <= 21


@pytest.mark.parametrize(
    "headers, seconds",
    [
        ({}, None),
        ({"retry-after": "7"}, 7),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "Thu, 01 Jan 1970 00:17:00 GMT"}, 20),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}, 0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-3"}, 0),
        ({"retry-after": "nan"}, None),
    ],
)
def test_retry_after_in_all_its_spellings(headers, seconds):
    assert retry_after(headers, now=1000.0) == seconds


def test_retry_after_holds_back_every_request(tmp_path, monkeypatch):
    waits = []
    monkeypatch.setattr(Server, "pause", lambda self, seconds: waits.append(seconds))
    generated(tmp_path, once(trouble(429, headers={"Retry-After": "30"})), concurrency=1)
    assert 30 <= waits[1] < 31  # before the second try
    assert all(
        29 < wait <= 30 for wait in waits[2:]
    )  # of the requests behind it, too: no time has passed here


def test_a_wait_that_is_too_long_ends_the_command(tmp_path):
    with pytest.raises(UserError, match="asks to wait 86400 s: start the same command again then"):
        generated(tmp_path, lambda request: trouble(429, headers={"Retry-After": "86400"}))


# -- given up ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reply, message",
    [
        (trouble(401, "Incorrect API key"), r"status 401: .*Incorrect API key.*\(is the key right\?\)"),
        (trouble(403), r"status 403: .*\(may the key do this\?\)"),
        (trouble(404, "no such model"), r"status 404: .*no such model.*\(is --model right\?\)"),
        (trouble(429, "quota", code="insufficient_quota"), r"status 429: .*\(is there money left\?\)"),
    ],
)
def test_what_no_retry_mends_ends_the_command_at_once(tmp_path, reply, message):
    with serving(lambda request: reply) as server:
        with pytest.raises(UserError, match=message):
            generate.main(flags(tmp_path, server.url, concurrency=1))
        assert len(server.requests) <= 2  # one may be under way


def test_a_server_that_answers_none_ends_the_command_and_the_answers_stay(tmp_path):
    left = [1, 1]

    def reply(request):
        return good(request) if left and left.pop() else trouble(500, "broken for good")

    with serving(reply) as server:
        message = "3 requests in a row failed, the last: status 500.*after 1 retries"
        with pytest.raises(UserError, match=rf"{message}") as told:
            generate.main(flags(tmp_path, server.url, max_retries=1, concurrency=1))
        assert 2 + 3 * 2 <= len(server.requests) <= 2 + 4 * 2  # a fourth may be under way
    assert "2 answers are in" in str(told.value)
    assert "the same command goes on" in str(told.value)
    _, rows, server = generated(tmp_path)
    assert (len(rows), len(server.requests)) == (6, 4)


def test_nobody_at_the_address(tmp_path):
    with serving() as server:
        url = server.url
    with pytest.raises(UserError, match="no connection"):
        generate.main(flags(tmp_path, url, max_retries=1))


def test_answers_under_way_are_kept_when_another_request_ends_the_command(tmp_path):
    """Two at once: the first to be answered is refused for good, the other's answer was paid for."""
    both = threading.Barrier(2, timeout=5)
    numbers = iter(range(100))

    def reply(request):
        return trouble(401) if next(numbers) == 0 else good(request)

    send = Server.send

    def together(self, prompt):
        both.wait()  # neither is sent before the other is on its way
        return send(self, prompt)

    with pytest.MonkeyPatch.context() as patch, serving(reply) as server:
        patch.setattr(Server, "send", together)
        with pytest.raises(UserError, match="status 401"):
            generate.main(flags(tmp_path, server.url, rows_per_label=1, concurrency=2))
    assert len((tmp_path / "out.journal.jsonl").read_text().splitlines()) == 1


# -- what a server does not take --------------------------------------------------------------------------------


def test_the_other_name_of_max_tokens_is_found(tmp_path):
    def reply(request):
        if "max_tokens" in request["body"]:
            return trouble(400, "Unsupported parameter: 'max_tokens'", param="max_tokens")
        return good(request)

    _, rows, server = generated(tmp_path, reply, max_new_tokens=77, concurrency=1)
    assert len(rows) == 6
    assert [request["body"].get("max_completion_tokens") for request in server.requests] == [None] + [77] * 6
    assert "sent as max_completion_tokens" in seen(tmp_path)


def test_what_is_not_taken_is_left_out_and_said(tmp_path):
    def reply(request):
        for name in ("seed", "top_p"):
            if name in request["body"]:
                return trouble(422, f'extra inputs: "{name}"')
        return (
            200,
            {},
            completion(words_of(len(request["body"]["messages"][1]["content"]) * 1000 + next(numbers))),
        )

    numbers = iter(range(1000))
    _, rows, server = generated(tmp_path, reply, concurrency=1)
    assert len(rows) == 6
    assert len(server.requests) == 8
    assert "the server takes no seed: left out" in seen(tmp_path)


def test_a_prompt_that_is_repeated_in_a_complaint_leaves_nothing_out(tmp_path):
    result, _, server = generated(
        tmp_path, once(trouble(400, "bad: the seed of a temperature")), concurrency=1, rounds=1
    )
    assert result["failed_requests"] == 1
    assert all("seed" in request["body"] for request in server.requests)


# -- keys -------------------------------------------------------------------------------------------------------


def echo(status: int):
    """An error, or an answer, that repeats all headers, the path and the key in them."""

    def reply(request):
        told = f"you sent {request['headers']} to {request['path']} {request['headers'].get('Authorization', '')[7:]}"
        if status == 200:
            return 200, {}, completion(told)
        if status == 299:
            return 200, {}, told
        return trouble(status, told, headers={"X-Echo": told.replace("\n", " ")})

    return reply


def all_told(error: BaseException | None) -> str:
    """A traceback as Python would print it, causes and contexts included."""
    return "".join(traceback.format_exception(error)) if error else ""


@pytest.mark.parametrize("status", [200, 299, 400, 401, 403, 404, 422, 429, 500])
def test_a_key_is_nowhere(tmp_path, monkeypatch, capfd, caplog, status):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    error = None
    with serving(echo(status)) as server:
        try:
            generate.main(flags(tmp_path, server.url, max_retries=1, rounds=1))
        except UserError as caught:
            error = caught
        assert any(KEY in str(request["headers"]) for request in server.requests)  # it was sent
    told = all_told(error) + "".join(capfd.readouterr()) + caplog.text + seen(tmp_path)
    assert told
    assert KEY not in told
    assert KEY[:20] not in told
    assert (error is None) == (status == 200)


@pytest.mark.parametrize("status", [200, 401, 500])
@pytest.mark.parametrize(
    "place, secrets",
    [
        ("http://user:hidden%40pass@HOST/v1", ["hidden%40pass", "hidden@pass", "dXNlcjpoaWRkZW5AcGFzcw=="]),
        ("http://HOST/v1?api_key=planted%2Fsecret&api-version=7", ["planted%2Fsecret", "planted/secret"]),
        ("http://HOST/v1/?token=another-one", ["another-one"]),
    ],
)
def test_a_secret_in_the_address_is_sent_and_is_nowhere(tmp_path, capfd, caplog, status, place, secrets):
    caplog.set_level(logging.DEBUG)
    error = None
    with serving(echo(status)) as server:
        url = place.replace("HOST", server.url.split("/")[2])
        try:
            generate.main(flags(tmp_path, url, max_retries=0, rounds=1))
        except UserError as caught:
            error = caught
        sent = str([request["headers"] for request in server.requests]) + server.requests[0]["path"]
    assert any(secret in sent for secret in secrets)
    assert server.requests[0]["path"].startswith("/v1/chat/completions")
    told = all_told(error) + "".join(capfd.readouterr()) + caplog.text + seen(tmp_path)
    assert [secret for secret in secrets if secret in told] == []


def test_a_secret_in_an_address_that_is_none(tmp_path):
    url = f"htp://user:{KEY}@host?key={KEY}"
    with pytest.raises(UserError, match="is no address") as told:
        generate.main(flags(tmp_path, url))
    assert KEY not in all_told(told.value)


@pytest.mark.parametrize(
    "more",
    [
        ["--api_key", KEY],
        [f"--api_key={KEY}"],
        ["--baseurl", f"http://user:{KEY}@host/v1"],
        ["--url", f"http://host/v1?api_key={KEY}"],
        [KEY],
        ["--rows_per_label", KEY],
    ],
)
def test_a_key_among_wrong_flags_is_not_repeated(tmp_path, monkeypatch, more):
    for key in ("", KEY):
        monkeypatch.setenv("OPENAI_API_KEY", key)
        with pytest.raises(UserError) as told:
            generate.main([*flags(tmp_path), *more])
        assert KEY not in all_told(told.value)


def test_who_gives_the_key_as_a_flag_is_told_where_it_belongs(tmp_path):
    with pytest.raises(UserError, match="the key is read from OPENAI_API_KEY alone"):
        generate.main([*flags(tmp_path), "--api_key", KEY])


def test_a_key_that_no_header_can_hold_is_refused_unseen(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\nmore")
    with pytest.raises(UserError, match="OPENAI_API_KEY: holds white space") as told:
        generate.main(flags(tmp_path, "http://127.0.0.1:9/v1"))
    assert KEY not in all_told(told.value)


def test_a_key_with_a_line_break_behind_it_works(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\n")
    _, _, server = generated(tmp_path)
    assert {request["headers"]["authorization"] for request in server.requests} == {f"Bearer {KEY}"}


def test_short_placeholders_are_not_blotted_out_of_answers(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "EMPTY")
    _, rows, _ = generated(
        tmp_path, lambda request: (200, {}, completion(f"EMPTY {request['body']['seed']}"))
    )
    assert all(row["text"].startswith("EMPTY ") for row in rows)


def test_the_environments_address_is_read_and_its_secret_hidden(monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", "https://user:hidden-word@host:8/v1?key=hidden-too")
    address = read_address("")
    assert address.url == "https://host:8/v1"
    assert address.hide("hidden-word hidden-too") == "*** ***"


@pytest.mark.slow  # it loads torch a second time
def test_a_key_is_nowhere_in_what_the_command_prints_with_its_log_on(tmp_path):
    """As a process, with the client's own log at its loudest."""
    with serving(echo(401)) as server:
        env = os.environ | {"OPENAI_API_KEY": KEY, "OPENAI_LOG": "debug", "OMP_NUM_THREADS": "1"}
        command = [
            sys.executable,
            "-m",
            "data.generate",
            *flags(tmp_path, server.url + "?api_key=hidden-value"),
        ]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=env)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: http://127.0.0.1")
    told = done.stdout + done.stderr + seen(tmp_path)
    assert KEY not in told
    assert "hidden-value" not in told
    assert "Traceback" not in told


def test_a_test_row_is_in_no_request(tmp_path):
    """What is sent holds no text of the rows to be scored on."""
    val = [{"text": f"never to be sent {words_of(700 + k)}"} for k in range(4)]
    _, _, server = generated(tmp_path, exclude=[write_jsonl(tmp_path / "val.jsonl", val)])
    assert not any(row["text"] in str(request["body"]) for row in val for request in server.requests)
