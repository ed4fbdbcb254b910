"""Reading ahead in threads: order, errors, and what becomes of a read that hangs."""

import subprocess
import sys
import threading
import time
from itertools import chain

import pytest

from batchverify.images.prefetch import Prefetcher


@pytest.mark.parametrize("together", [1, 3, 16])
def test_results_come_in_order_whatever_each_takes(together):
    def read(uri):
        time.sleep(0.02 if int(uri) % 3 == 0 else 0)
        return int(uri) ** 2

    ahead = Prefetcher(read, lambda uri: None, threads=4, timeout_s=10, together=together)
    batches = list(ahead.batches([str(n) for n in range(23)], size=5, ahead=2))
    assert [len(batch) for batch in batches] == [5, 5, 5, 5, 3]
    assert list(chain.from_iterable(batches)) == [n**2 for n in range(23)]
    assert list(ahead.batches([], size=5, ahead=2)) == []


def test_later_batches_are_read_while_one_is_used():
    read, ahead = [], Prefetcher(lambda uri: read.append(uri), lambda uri: None, threads=2, timeout_s=10)
    batches = ahead.batches([str(n) for n in range(100)], size=10, ahead=3)
    next(batches)
    deadline = time.monotonic() + 10
    while len(read) < 40 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert sorted(map(int, read)) == list(range(40))


@pytest.mark.parametrize("together", [1, 4, 16])
def test_reads_that_hang_are_given_up_and_stall_nobody(together):
    release = threading.Event()

    def read(uri):
        if uri.startswith("slow"):
            release.wait(60)
        return f"read {uri}"

    # More of them hang than there are threads.
    ahead = Prefetcher(read, lambda uri: f"gave up {uri}", threads=2, timeout_s=0.3, together=together)
    uris = [f"slow{n}" if n % 4 == 0 else f"fast{n}" for n in range(24)]
    started = time.monotonic()
    found = list(chain.from_iterable(ahead.batches(uris, size=4, ahead=1)))
    assert found == [f"gave up {uri}" if uri.startswith("slow") else f"read {uri}" for uri in uris]
    assert time.monotonic() - started < 10
    release.set()
    assert next(ahead.batches(["slow"], size=4, ahead=1)) == ["read slow"]


def test_the_limit_is_each_files_own_where_a_thread_takes_several():
    def read(uri):
        time.sleep(0.1)
        return uri

    ahead = Prefetcher(read, lambda uri: "gave up", threads=1, timeout_s=0.5, together=16)
    uris = [str(n) for n in range(16)]  # All of them take 1.6 s.
    assert list(ahead.batches(uris, size=16, ahead=0)) == [uris]


def test_files_that_hang_in_several_tasks_are_given_up_at_the_same_time():
    release = threading.Event()
    ahead = Prefetcher(lambda uri: release.wait(60), lambda uri: "gave up", threads=4, timeout_s=0.3, together=2)
    started = time.monotonic()
    assert list(ahead.batches(["x"] * 8, size=8, ahead=0)) == [["gave up"] * 8]
    assert time.monotonic() - started < 1.5  # One after another they would take 2.4 s.
    release.set()


def test_an_error_is_raised_where_the_result_is_taken_and_reading_goes_on():
    def read(uri):
        return 1 / int(uri)

    ahead = Prefetcher(read, lambda uri: None, threads=1, timeout_s=10)
    with pytest.raises(ZeroDivisionError):
        list(ahead.batches(["0"], size=1, ahead=1))
    assert list(ahead.batches(["4"], size=1, ahead=1)) == [[0.25]]


@pytest.mark.processes
def test_a_read_that_hangs_does_not_keep_the_process_alive():
    code = (
        "import threading\nfrom batchverify.images.prefetch import Prefetcher\n"
        "ahead = Prefetcher(lambda uri: threading.Event().wait(), lambda uri: 'gave up', 1, 0.1)\n"
        "print(list(ahead.batches(['x'], 1, 1)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[['gave up']]"


def test_its_threads_end_with_it():
    before = set(threading.enumerate())
    ahead = Prefetcher(str, str, threads=3, timeout_s=1)
    its = set(threading.enumerate()) - before
    assert len(its) == 3
    del ahead
    for thread in its:
        thread.join(10)
    assert not any(thread.is_alive() for thread in its)
