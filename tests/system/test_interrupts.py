"""Signals are remembered until the program can end well."""

import signal

from openjepa.system.interrupts import Interrupts


def test_a_signal_is_remembered_and_the_handlers_given_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Interrupts() as interrupts:
        signal.raise_signal(signal.SIGTERM)
        assert interrupts.requested == "SIGTERM"
    assert signal.getsignal(signal.SIGTERM) is before
