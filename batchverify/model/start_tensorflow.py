"""Imports TensorFlow and looks for GPUs, without what TensorFlow prints where there is none."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from batchverify import shutdown
from batchverify.model import stderr_relay

_LOG = logging.getLogger(__name__)
_LEVEL = "TF_CPP_MIN_LOG_LEVEL"
_STDERR = 2
_LOG_LINE = re.compile(r"(?:(\w)\d{4} \S+ +\d+|\S+ \S+: (\w)) (\S+?):\d+\] (.*)", re.S)
# The source files of TensorFlow's messages about GPUs.
_GPU_SOURCE = re.compile(r"cuda|cudnn|cublas|cufft|gpu|rocm|tensorrt|tf2tensorrt|computation_placer", re.I)
_lock = threading.Lock()
_current: list[_HeldStderr] = []
_is_started = False
# What Keras imports where it is installed, and uses only for its wrappers of estimators and for galleries of pictures.
_UNUSED_BY_THE_PROGRAM = ("sklearn", "matplotlib.pyplot")
_left_out: tuple[str, ...] = ()


class LogLine(NamedTuple):
    """A line of TensorFlow's log.

    Attributes:
        level: The letter of its level: I, W, E or F.
        source: The source file that it comes from.
        text: The message.
        line: The whole line.
    """

    level: str
    source: str
    text: str
    line: str

    @classmethod
    def parse_all(cls, log: str) -> list[LogLine]:
        """Returns the lines of a log that have a level."""
        matches = [(line, _LOG_LINE.match(line)) for line in log.splitlines()]
        return [cls(found[1] or found[2], found[3], found[4], line) for line, found in matches if found]


def leave_out_unused() -> None:
    """Has Keras start without packages that the program does not use, which take a second to import.

    It is for a process that is the program alone: Keras' `SKLearnClassifier` and `plot_image_gallery` do not work there.
    """
    global _left_out
    _left_out = _UNUSED_BY_THE_PROGRAM


def start_tensorflow() -> None:
    """Imports TensorFlow and looks for GPUs, once in a process; call it before a module that imports Keras or TensorFlow.

    TensorFlow writes to the file descriptor of stderr before its log can be told to be silent. On a machine without a GPU it
    reports an error there, which is none. Its messages are therefore held back, and judged when it has started. Everything
    comes out if it raises an exception or crashes. Whoever has set TF_CPP_MIN_LOG_LEVEL to 0 or 1 sees all messages as they
    come. Where a GPU is there that TensorFlow cannot use, a warning says why.

    TensorFlow then keeps the memory of a batch for the next one, unless the environment has TF_CPU_ALLOCATOR_USE_BFC.
    """
    global _is_started
    with _lock:
        if _is_started:
            return
        _keep_freed_memory()
        if os.environ.get(_LEVEL, "2") in ("0", "1"):
            _list_gpus()
        else:
            with _level_2(), _held_stderr() as held:
                gpus = _list_gpus()
            _report(LogLine.parse_all(held.text), gpus)
        _is_started = True


def messages_to_show(log: Sequence[LogLine], has_gpu: bool) -> list[str]:
    """Returns the lines of a log that tell something on this machine.

    Args:
        log: What TensorFlow has logged while it started.
        has_gpu: Whether TensorFlow can use a GPU; without one, messages about GPUs tell nothing.
    """
    if has_gpu:
        return [line.line for line in log if line.level != "I"]
    return [line.line for line in log if line.level not in "IW" and not _GPU_SOURCE.search(line.source)]


def why_gpu_is_unusable(log: Sequence[LogLine], is_built_with_cuda: bool) -> str:
    """Returns why TensorFlow cannot use a GPU that the machine has, with the remedy, from what it logged."""
    texts = [line.text for line in log if _GPU_SOURCE.search(line.source)]
    if not is_built_with_cuda:
        return "this TensorFlow is built without CUDA; install one with it, pip install 'tensorflow[and-cuda]'"
    if any("Could not find cuda drivers" in text for text in texts):
        return "NVIDIA's driver (libcuda.so.1) is not to be found here; install it, or start the container with --gpus all"
    if any("Cannot dlopen some GPU libraries" in text for text in texts):
        return "CUDA's libraries are not to be found; pip install 'tensorflow[and-cuda]'"
    failed = [text.partition("cuInit: ")[2].strip() for text in texts if "cuInit: " in text]
    if failed:
        return f"NVIDIA's driver refuses ({failed[0]}); check it with nvidia-smi"
    return f"TensorFlow does not say why; set {_LEVEL}=0 to see all that it says"


def has_nvidia_gpu(root: Path = Path("/")) -> bool:
    """Returns whether this machine has an NVIDIA GPU, with or without a driver.

    Args:
        root: The root of the file system.
    """
    if any((root / "proc/driver/nvidia/gpus").glob("*")):
        return True
    devices = (root / "sys/bus/pci/devices").glob("*")
    return any(_read(path / "vendor") == "0x10de" and _read(path / "class").startswith("0x03") for path in devices)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:  # A device may be gone, or be hidden.
        return ""


def _keep_freed_memory() -> None:
    """Has TensorFlow keep the memory of a batch for the next one, unless the environment says otherwise.

    The C library gives large blocks back to the system, which then has to clear each page of the next batch. With TensorFlow's
    own allocator, MobileNetV2 of full size took 0.7 of the time, and 1.2 times the memory (docs/performance.md). Where
    TensorFlow uses oneDNN, which it does by itself on processors with AVX512_VNNI or AVX_VNNI, it has that allocator anyway.
    """
    machine_mib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    os.environ.setdefault("TF_CPU_ALLOCATOR_USE_BFC", "1")
    os.environ.setdefault("TF_CPU_BFC_MEM_LIMIT_IN_MB", str(machine_mib))  # Its own limit is 64 GiB.


def _list_gpus() -> int:
    """Imports TensorFlow, and returns how many GPUs it can use."""
    with _without(_left_out):
        import tensorflow as tf

    return len(tf.config.list_physical_devices("GPU"))


@contextlib.contextmanager
def _without(packages: Sequence[str]) -> Iterator[None]:
    """Has imports of packages fail in its block as if these were not installed; but not of those that are imported already."""
    hidden = [name for name in packages if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None is how Python itself marks what cannot be imported.
    try:
        yield
    finally:
        for name in hidden:
            if sys.modules.get(name) is None:
                sys.modules.pop(name, None)


def _report(log: list[LogLine], gpus: int) -> None:
    _write("".join(f"{line}\n" for line in messages_to_show(log, has_gpu=gpus > 0)))
    is_hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1", "NoDevFiles")
    if not gpus and not is_hidden and has_nvidia_gpu():
        import tensorflow as tf

        _LOG.warning(
            "This machine has a GPU that TensorFlow cannot use, so the processor does the work: %s. (CUDA_VISIBLE_DEVICES=-1 "
            "says that no GPU is meant to be used.)", why_gpu_is_unusable(log, tf.test.is_built_with_cuda()),
        )  # fmt: skip


@contextlib.contextmanager
def _level_2() -> Iterator[None]:
    """Has TensorFlow's log, which reads its level once, tell errors only."""
    earlier = os.environ.get(_LEVEL)
    os.environ.setdefault(_LEVEL, "2")
    try:
        yield
    finally:
        if earlier is None:
            os.environ.pop(_LEVEL, None)


@contextlib.contextmanager
def _held_stderr() -> Iterator[_HeldStderr]:
    """Holds TensorFlow's log back in its block; after the block `text` has it, unless an exception has brought it out."""
    held = _HeldStderr()
    _current.append(held)
    try:
        yield held
    except BaseException:
        held.release()
        _write(held.text)
        raise
    finally:
        held.release()
        _current.remove(held)


class _HeldStderr:
    """The stderr of this process, led through a process that holds TensorFlow's log back.

    Attributes:
        text: What was held back, after `release`.
    """

    def __init__(self) -> None:
        self.text = ""
        self._mark = f"={secrets.token_hex(16)}="
        self._relay: subprocess.Popen[bytes] | None = None
        # Without a stderr, or where no process can be started, TensorFlow starts as it always does.
        with contextlib.suppress(OSError):
            self._original = os.dup(_STDERR)
            self._start()

    def release(self) -> None:
        """Gives this process its own stderr back; a second call does nothing."""
        relay, self._relay = self._relay, None
        if relay is None:
            return
        _write(self._mark)
        os.dup2(self._original, _STDERR)
        os.close(self._original)
        assert relay.stdout is not None
        with relay.stdout:
            self.text = relay.stdout.read().decode(errors="replace")
        # Where another thread has started a process meanwhile, the relay goes on for as long as that process.
        with contextlib.suppress(subprocess.TimeoutExpired):
            relay.wait(1)

    def _start(self) -> None:
        if not sys.executable:
            os.close(self._original)
            return
        read_end, write_end = os.pipe()
        try:
            # Its own session keeps Ctrl-C away from it.
            self._relay = subprocess.Popen(
                [sys.executable, "-I", "-S", stderr_relay.__file__, self._mark],
                stdin=read_end, stdout=subprocess.PIPE, start_new_session=True,
            )  # fmt: skip
            os.dup2(write_end, _STDERR)
        except OSError:
            os.close(self._original)
            raise
        finally:
            os.close(read_end)
            os.close(write_end)


def _write(text: str) -> None:
    """Writes to where TensorFlow itself writes."""
    with contextlib.suppress(OSError):  # Nobody reads it any more.
        os.write(_STDERR, text.encode())


def _release_stderr() -> None:
    for held in tuple(_current):
        held.release()


shutdown.register_clean_up(_release_stderr)
