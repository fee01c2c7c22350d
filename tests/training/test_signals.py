import os
import signal

import pytest

from dilated_affinity.training.signals import StopRequest


def send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_is_recorded_second_stops(number):
    reached = False
    error = KeyboardInterrupt if number == signal.SIGINT else SystemExit
    with StopRequest() as request:
        with request.noted():
            send(number)
            assert request.received == number
            reached = True
            with pytest.raises(error):
                send(number)
        with pytest.raises(error) as raised:
            request.stop()
    assert reached
    if number == signal.SIGTERM:
        assert raised.value.code == 143


def test_signal_outside_of_steps(caplog):
    with pytest.raises(SystemExit), StopRequest():
        send(signal.SIGTERM)
    assert "ended by SIGTERM" in caplog.text


def test_handlers_are_restored():
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    with StopRequest():
        assert signal.getsignal(signal.SIGTERM) not in before
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before
