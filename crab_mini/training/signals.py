"""Ctrl-C and SIGTERM while a stage trains: a request to stop after the step, not an exception."""

import contextlib
import signal
import threading

from .distributed import Processes


@contextlib.contextmanager
def catch_stop_signals(processes: Processes):
    """Yields an event that Ctrl-C and SIGTERM set. Afterwards the handlers are what they were.

    A second Ctrl-C stops a lone process at once. Among several processes it does nothing more:
    torchrun forwards a Ctrl-C that the terminal has sent to them already. The traceback that it
    prints then is its own: its process is not ours, and nothing here can prevent it.
    """
    stop = threading.Event()
    # Python delivers signals to the main thread only; in another one there is nothing to catch.
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def request(number, frame):
        stop.set()
        if processes.world_size == 1:
            signal.signal(signal.SIGINT, before[signal.SIGINT])

    for number in before:
        signal.signal(number, request)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
