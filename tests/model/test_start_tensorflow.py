"""What a process says while TensorFlow starts: nothing where there is no GPU, and everything where something is wrong."""

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from batchverify.model.start_tensorflow import LogLine, has_nvidia_gpu, messages_to_show, why_gpu_is_unusable
from batchverify.model.stderr_relay import Relay

ROOT = Path(__file__).resolve().parents[2]
ONE_DNN = "I0000 00:00:1795923925.548792   16906 port.cc:153] oneDNN custom operations are on."
NO_DRIVER = "I0000 00:00:1795923925.549563   16906 cudart_stub.cc:31] Could not find cuda drivers on your machine."
BEFORE_INIT = "WARNING: All log messages before absl::InitializeLog() is called are written to STDERR"
CUINIT = "E0000 00:00:1795923928.792946   16906 cuda_platform.cc:52] failed call to cuInit: INTERNAL: no device (100)"
NO_LIBRARIES = (
    "2026-11-29 03:45:25.548792: W tensorflow/core/common_runtime/gpu_device.cc:2431] Cannot dlopen some GPU libraries."
)
REAL_ERROR = "E0000 00:00:1795923928.792946   16906 env.cc:52] the file system is read-only"
NOISE = (BEFORE_INIT, ONE_DNN, NO_DRIVER, CUINIT)
START = "from batchverify.model.start_tensorflow import start_tensorflow; start_tensorflow()"
# The first lines of a stand-in for TensorFlow.
WRITE = """
    import os, sys, threading

    def write(*lines):
        os.write(2, "".join(f"{line}\\n" for line in lines).encode())

"""


def environment(**changes: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"} | changes


def run(tmp_path: Path, tensorflow: str, code: str = START, gpus: int = 0, **changes: str) -> subprocess.CompletedProcess[str]:
    """Runs code in a new process, in which the module `tensorflow` runs what is given."""
    module = f"""
        class config:
            def list_physical_devices(kind):
                return [kind] * {gpus}
    """
    text = textwrap.dedent(WRITE) + textwrap.dedent(tensorflow) + textwrap.dedent(module)
    (tmp_path / "tensorflow.py").write_text(text)
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    return subprocess.run(
        [sys.executable, "-c", code], env=environment(PYTHONPATH=path, **changes), capture_output=True, text=True, timeout=100
    )


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.skipif(has_nvidia_gpu(), reason="this machine has a GPU")
def test_the_first_run_says_nothing_of_tensorflow(tmp_path):
    command = [sys.executable, "-m", "batchverify", "--manifest", "manifests/demo.csv", "--output", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0
    # A slow machine says each half minute how far it is.
    (line,) = (line for line in done.stderr.splitlines() if not line.startswith("Images encoded: "))
    assert line.startswith("Images: rgb 96x96")


@pytest.mark.processes
def test_noise_is_dropped_and_other_text_passes(tmp_path):
    tensorflow = f"""
        write(*{NOISE!r}[:2], "a line of a thread")
        write(*{NOISE!r}[2:], {REAL_ERROR!r})
        os.write(2, b"[bar    ] 10%")
    """
    done = run(tmp_path, tensorflow, START + "; import os; os.write(2, b' after')")
    assert done.returncode == 0
    assert done.stderr == f"a line of a thread\n[bar    ] 10%{REAL_ERROR}\n after"


@pytest.mark.processes
@pytest.mark.parametrize(("end", "code"), [("import ctypes; ctypes.string_at(0)", -11), ("os.abort()", -6), ("os._exit(7)", 7)])
def test_a_crash_loses_nothing(end, code, tmp_path):
    done = run(tmp_path, f"write(*{NOISE!r}, {REAL_ERROR!r}); write('the last words'); {end}")
    assert done.returncode == code
    assert sorted(done.stderr.splitlines()) == sorted([*NOISE, REAL_ERROR, "the last words"])


@pytest.mark.processes
def test_an_exception_loses_nothing(tmp_path):
    done = run(tmp_path, f"write(*{NOISE!r}); raise ImportError('no libtensorflow')")
    assert done.returncode == 1
    assert done.stderr.splitlines()[: len(NOISE)] == list(NOISE)
    assert done.stderr.endswith("ImportError: no libtensorflow\n")


@pytest.mark.processes
def test_with_a_gpu_errors_and_warnings_are_shown(tmp_path):
    done = run(tmp_path, f"write(*{NOISE!r}, {NO_LIBRARIES!r})", gpus=1)
    assert done.stderr.splitlines() == [CUINIT, NO_LIBRARIES]


@pytest.mark.processes
def test_whoever_asks_for_the_log_gets_all_of_it_as_it_comes(tmp_path):
    done = run(tmp_path, f"write(*{NOISE!r})", TF_CPP_MIN_LOG_LEVEL="0")
    assert done.stderr.splitlines() == list(NOISE)


@pytest.mark.processes
def test_the_level_of_the_log_is_set_only_while_tensorflow_starts(tmp_path):
    look = "print(os.environ.get('TF_CPP_MIN_LOG_LEVEL'))"
    done = run(tmp_path, look, f"{START}; import os; {look}")
    assert done.stdout.split() == ["2", "None"]


@pytest.mark.processes
@pytest.mark.parametrize(("asked", "keeps"), [({}, True), ({"TF_CPU_ALLOCATOR_USE_BFC": "0"}, False)])
def test_the_memory_of_a_tensor_is_kept_for_the_next_one_unless_the_environment_says_otherwise(asked, keeps):
    """A tensor of 64 MiB is deleted; the C library gives memory of that size back to the system.

    Where TensorFlow uses oneDNN, which depends on the processor, it keeps memory in any case.
    """
    code = """
        from batchverify.model.start_tensorflow import start_tensorflow
        start_tensorflow()
        import tensorflow as tf
        def resident():
            with open("/proc/self/statm") as file:
                return int(file.read().split()[1]) * 4096
        tf.zeros(16) + 1
        before = resident()
        tf.zeros(2**24) + 1
        print(resident() - before)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    clean = {name: value for name, value in environment().items() if not name.startswith("TF_CPU_")}
    done = subprocess.run(
        command, cwd=ROOT, env=clean | {"TF_ENABLE_ONEDNN_OPTS": "0"} | asked, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert (int(done.stdout) > 2**25) == keeps


@pytest.mark.processes
def test_a_process_that_was_started_meanwhile_keeps_its_stderr_and_holds_nobody_up(tmp_path):
    child = "import os, sys; sys.stdin.read(); os.write(2, b'from the child')"
    tensorflow = f"""
        import subprocess
        child = subprocess.Popen([sys.executable, "-c", {child!r}], stdin=subprocess.PIPE)
        write({ONE_DNN!r})
    """
    code = f"{START}; import tensorflow; tensorflow.child.communicate(timeout=30)"
    assert run(tmp_path, tensorflow, code).stderr == "from the child"


@pytest.mark.processes
def test_a_process_without_a_stderr_starts(tmp_path):
    done = run(tmp_path, "", f"import os; os.close(2); {START}; print('started')")
    assert done.stdout == "started\n"


@pytest.mark.parametrize("size", [1, 3, 50])
def test_lines_are_told_apart_however_they_arrive(size):
    text = "\n".join(
        [BEFORE_INIT, "WARNING: ours", ONE_DNN, "In all 3 images", "2026-11-29 ours", NO_LIBRARIES, "end"]
    ).encode()
    relay = Relay()
    passed_on = b"".join(relay.feed(text[start : start + size]) for start in range(0, len(text), size)) + relay.end()
    assert passed_on.decode().splitlines() == ["WARNING: ours", "In all 3 images", "2026-11-29 ours", "end"]
    assert b"".join(relay.held).decode().splitlines() == [BEFORE_INIT, ONE_DNN, NO_LIBRARIES]


def test_a_fatal_error_is_never_held_back():
    fatal = CUINIT.replace("E0000", "F0000").encode() + b"\n"
    assert Relay().feed(fatal) == fatal


def test_errors_that_have_nothing_to_do_with_gpus_are_shown_without_one():
    log = LogLine.parse_all("\n".join([*NOISE, NO_LIBRARIES, REAL_ERROR]))
    assert messages_to_show(log, has_gpu=False) == [REAL_ERROR]


@pytest.mark.parametrize(
    ("log", "is_built_with_cuda", "words"),
    [
        ([ONE_DNN, NO_DRIVER, CUINIT], True, "NVIDIA's driver .libcuda.so.1. is not to be found"),
        ([CUINIT], True, r"refuses .INTERNAL: no device .100..; check it with nvidia-smi"),
        ([NO_LIBRARIES], True, r"pip install 'tensorflow\[and-cuda\]'"),
        ([], False, "built without CUDA"),
        ([ONE_DNN], True, "TF_CPP_MIN_LOG_LEVEL=0"),
    ],
)
def test_a_gpu_that_cannot_be_used_has_a_reason(log, is_built_with_cuda, words):
    assert re.search(words, why_gpu_is_unusable(LogLine.parse_all("\n".join(log)), is_built_with_cuda))


@pytest.mark.processes
@pytest.mark.parametrize("hidden", [None, "-1"])
def test_one_sentence_says_that_a_gpu_cannot_be_used(hidden, tmp_path):
    """The machine has a GPU, as far as its file system says."""
    code = f"""
        import functools, logging
        from batchverify.model import start_tensorflow as module
        logging.basicConfig(format="%(message)s")
        module.has_nvidia_gpu = lambda: True
        {START}
    """
    tensorflow = f"""
        class test:
            is_built_with_cuda = lambda: True
        write(*{NOISE!r})
    """
    done = run(tmp_path, tensorflow, textwrap.dedent(code), **({} if hidden is None else {"CUDA_VISIBLE_DEVICES": hidden}))
    lines = done.stderr.splitlines()
    assert len(lines) == (hidden is None)
    assert all(line.startswith("This machine has a GPU that TensorFlow cannot use") for line in lines)


@pytest.mark.parametrize(("vendor", "kind", "found"), [("10de", "030200", 1), ("10de", "0c0330", 0), ("8086", "030000", 0)])
def test_a_gpu_is_found_among_the_devices(vendor, kind, found, tmp_path):
    device = tmp_path / "sys/bus/pci/devices/0000:00:04.0"
    device.mkdir(parents=True)
    (device / "vendor").write_text(f"0x{vendor}\n")
    (device / "class").write_text(f"0x{kind}\n")
    assert has_nvidia_gpu(tmp_path) == bool(found)


def test_a_gpu_with_a_driver_is_found(tmp_path):
    (tmp_path / "proc/driver/nvidia/gpus/0000:00:04.0").mkdir(parents=True)
    assert has_nvidia_gpu(tmp_path) and not has_nvidia_gpu(tmp_path / "elsewhere")


@pytest.mark.processes
def test_the_program_starts_keras_without_packages_that_it_does_not_use(tmp_path):
    (tmp_path / "sklearn.py").write_text("found = True\n")
    tensorflow = """
        try:
            import sklearn
        except ImportError:
            write("left out")
        else:
            write("imported")
    """
    start = (
        "from batchverify.model import start_tensorflow as tf; {}tf.start_tensorflow(); import sklearn; print(sklearn.found)"
    )
    for first, said in (("", "imported\n"), ("tf.leave_out_unused(); ", "left out\n")):
        done = run(tmp_path, tensorflow, start.format(first))
        assert (done.stdout, done.stderr) == ("True\n", said)
