"""The life of a thread that serves: each kind of it is opened, woken and ended in the same way."""
import threading
import time

import pytest

from passthru import threads


class Kind(threads.ServingThread):
    """It writes down what happens to it; it ends with the wake-up number `sleep`."""

    def __init__(self, error: OSError | None = None, sleep: int = 1):
        super().__init__("kind", lambda: self.life.append("end"))
        self.life: list[str] = []
        self.fails, self.sleep = error, sleep
        self.wakes = 0
        self.over = threading.Event()

    def open(self):
        self.life.append("open")
        if self.fails is not None:
            raise self.fails

    def serve(self):
        self.life.append("serve")
        self.over.wait(60)

    def close(self):
        self.life.append("close")
        assert not self.done

    def wake(self):
        self.wakes += 1
        if self.wakes >= self.sleep:
            self.over.set()


def soon() -> float:
    return time.monotonic() + 20


def test_life():
    thread = Kind()
    thread.start()
    thread.opened.wait()
    assert thread.error is None and not thread.done
    threads.end([thread], soon())
    assert thread.life == ["open", "serve", "close", "end"] and thread.done and not thread.is_alive()


def test_one_that_cannot_be_opened():
    """It serves nothing, gives up what it has, and tells."""
    error = OSError(5, "broken")
    thread = Kind(error)
    thread.start()
    assert thread.opened.wait(20)
    threads.join([thread], soon())
    assert thread.error is error and thread.life == ["open", "close", "end"]


def test_wake_ups_that_are_lost():
    """One is repeated, and nobody waits for the first before the others are woken."""
    all_ = [Kind(sleep=5), Kind(sleep=1), Kind(sleep=3)]
    for thread in all_:
        thread.start()
    threads.end(all_, soon())
    assert not any(thread.is_alive() for thread in all_)
    assert [thread.wakes for thread in all_] == [5, 1, 3]


@pytest.mark.parametrize("late", [0.0, 0.05])
def test_one_that_does_not_end(late):
    """It is left behind when the time is over, but has been woken at least once, and so has the next."""
    hangs, other = Kind(sleep=1 << 30), Kind()
    hangs.start()
    other.start()
    threads.end([hangs, other], time.monotonic() + late)
    assert hangs.wakes >= 1 and hangs.is_alive() and other.wakes == 1
    threads.join([hangs], time.monotonic() - 1)  # no error
    hangs.over.set()
    threads.join([hangs, other], soon())
    assert not hangs.is_alive() and not other.is_alive()
