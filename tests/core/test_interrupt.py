"""core/interrupt.py: a signal in the loop is a wish, a second one and any other the end; handlers are given back."""

import os
import signal
import threading

import pytest

from core.interrupt import HEARD, Stopped, agree, end_of_loop, stop_requests, stopped_text


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_the_loop_is_told_by_the_next_agreement(number):
    with stop_requests():
        assert agree() == (0, 0)
        send(number)
        assert agree(3) == (3, number)
        assert agree() == (0, number)  # it stays said: a step that is done again does not lose it


@pytest.mark.parametrize(("number", "kind"), [(signal.SIGTERM, Stopped), (signal.SIGINT, KeyboardInterrupt)])
def test_a_second_signal_ends_at_once(number, kind):
    with stop_requests():
        agree()
        send(signal.SIGTERM)
        with pytest.raises(kind):
            send(number)


@pytest.mark.parametrize("where", ["before", "behind"])
def test_outside_of_the_loop_a_signal_ends_at_once(where):
    with stop_requests():
        if where == "behind":
            agree()
            end_of_loop()
        with pytest.raises(Stopped) as caught:
            send(signal.SIGTERM)
        assert caught.value.code == 143


def test_handlers_are_given_back_and_nothing_is_remembered():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with stop_requests():
        agree()
        send(signal.SIGTERM)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    assert HEARD == {"is_in_loop": False, "signal": 0}


def test_a_signal_that_is_ignored_stays_ignored():
    """jobs.tune's trainings ignore Ctrl-C, which is for the search."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop_requests():
            agree()
            send(signal.SIGINT)
            assert agree() == (0, 0)
    finally:
        signal.signal(signal.SIGINT, before)


def test_in_another_thread_nothing_is_set():
    found = []

    def work():
        with stop_requests():
            found.append(agree())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(0, 0)]


def test_what_is_said():
    assert stopped_text(15, 7, "runs/x") == "SIGTERM: stopped after step 7, saved; --resume runs/x goes on"
