#!/usr/bin/python3
"""The Python package: its structs are gemmd.h's, results are exact, memory outlives its views, and
errors, signals, threads, fork and asyncio do what they should.

usage: python_test.py GEMMD SOURCE-ROOT CC...     (libgemmd.so.0 in LD_LIBRARY_PATH)
"""
import asyncio
import contextlib
import ctypes
import gc
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from array import array
from unittest import mock

GEMMD, ROOT, CC = sys.argv[1], sys.argv[2], sys.argv[3:]
sys.path.insert(0, os.path.join(ROOT, "client", "python"))
import gemmd # noqa: E402
from gemmd import _library # noqa: E402

HANG_S = 60


@contextlib.contextmanager
def worker():
    """A private worker; yields its socket and process."""
    with tempfile.TemporaryDirectory() as folder:
        socket = os.path.join(folder, "gemmd.sock")
        ready, write = os.pipe()
        process = subprocess.Popen([GEMMD, "--socket", socket, "--ready-fd", str(write),
                                    "--pool-bytes", "64M"], pass_fds=[write])
        os.close(write)
        try:
            assert os.read(ready, 64).startswith(b"READY"), "the worker did not start"
            yield socket, process
        finally:
            os.close(ready)
            process.send_signal(signal.SIGCONT)
            process.terminate()
            assert process.wait(HANG_S) in (0, -signal.SIGKILL)


def stop(process):
    """SIGSTOP, and waits until each thread has stopped."""
    process.send_signal(signal.SIGSTOP)
    folder = f"/proc/{process.pid}/task"
    running = True
    while running:
        running = False
        for task in os.listdir(folder):
            with open(f"{folder}/{task}/stat", encoding="ascii") as file:
                running |= file.read().rsplit(")", 1)[1].split()[0] != "T"


@contextlib.contextmanager
def raises(kind, text=""):
    try:
        yield
    except kind as error:
        assert text in str(error), f"{text!r} is not in {error!r}"
    else:
        raise AssertionError(f"no {kind.__name__}")


def matrix(rows, columns, low, high, seed):
    form = "b" if low < 0 else "B"
    generator = random.Random(seed)
    numbers = array(form, (generator.randint(low, high) for _ in range(rows * columns)))
    return memoryview(numbers).cast("B").cast(form, (rows, columns))


def product(a, b, column):
    return [[sum(x * y for x, y in zip(row, other)) + column[j] for j, other in enumerate(b)]
            for row in a.tolist()]


def fill(buffer, values):
    memoryview(buffer).cast("B")[:] = memoryview(values).cast("B")


def test_structs():
    """Offsets and sizes of all fields, as the compiler has them."""
    lines = []
    for name, struct in _library.STRUCTS.items():
        lines.append(f'printf("{name} %zu\\n", sizeof(struct {name}));')
        for field, _ in struct._fields_:
            at = f"offsetof(struct {name}, {field}), sizeof(((struct {name} *)0)->{field})"
            lines.append(f'printf("{name}.{field} %zu %zu\\n", {at});')
    with tempfile.TemporaryDirectory() as folder:
        source, program = os.path.join(folder, "offsets.c"), os.path.join(folder, "offsets")
        with open(source, "w", encoding="ascii") as file:
            file.write('#include <stdio.h>\n#include "client/gemmd.h"\nint main(void)\n{\n'
                       + "\n".join(lines) + "\n}\n")
        subprocess.run([*CC, "-I", ROOT, "-o", program, source], check=True)
        printed = subprocess.run([program], check=True, stdout=subprocess.PIPE, text=True).stdout
    expected = []
    for name, struct in _library.STRUCTS.items():
        expected.append(f"{name} {ctypes.sizeof(struct)}")
        for field, _ in struct._fields_:
            place = getattr(struct, field)
            expected.append(f"{name}.{field} {place.offset} {place.size}")
    assert printed.split("\n")[:-1] == expected


def test_results(socket, _):
    """Exact results of s32, f32 with ReLU, s8 rows with a zero point, and a residual."""
    weights, rows = matrix(19, 37, -128, 127, 1), matrix(5, 37, 0, 255, 2)
    bias = array("i", range(-9, 10))
    with gemmd.connect(socket, autostart=0) as session:
        layer = session.create_layer(weights, bias=bias, c_type="s32", name="python")
        assert (layer.n, layer.k, layer.a_type, layer.c_type) == (19, 37, "u8", "s32")
        assert not layer.attached and layer.bytes_new > 0
        a, c = session.buffer((5, 37)), session.buffer((5, 19), "s32")
        fill(a, rows)
        job = layer.job(a, c)
        job.run(HANG_S)
        assert c.tolist() == product(rows, weights.tolist(), bias)
        again = session.open_layer("python")
        assert again.attached and again.bytes_new == 0 and again.n == 19
        real = session.create_layer(weights, bias=[0.5] * 19, b_scales=0.25, activation="relu")
        c = session.buffer((5, 19), "f32")
        real.job(a, c).run(HANG_S)
        assert c.tolist() == [[max(0.0, x * 0.25 + 0.5) for x in row]
                              for row in product(rows, weights.tolist(), [0] * 19)]
        added = session.create_layer(weights, c_type="f32", a_type="s8", a_zero_point=-7,
                                     residual_type="f32", b_scales=[0.5] * 19)
        signed = matrix(5, 37, -128, 127, 3)
        fill(a, signed)
        residual = session.buffer((5, 19), "f32")
        fill(residual, array("f", range(95)))
        added.job(a, c, residual).run(HANG_S)
        sums = [7 * sum(row) for row in weights.tolist()]
        assert c.tolist() == [[x * 0.5 + 19 * i + j for j, x in enumerate(row)]
                              for i, row in enumerate(product(signed, weights.tolist(), sums))]


def test_weights(socket, _):
    """Weights of floats, of 4 bits, and of memory that is read-only."""
    with gemmd.connect(socket) as session:
        a, c = session.buffer((1, 32)), session.buffer((1, 2), "f32")
        fill(a, bytes(range(32)))
        floats = memoryview(array("f", [1.0] * 32 + [-2.0] * 32)).cast("B").cast("f", (2, 32))
        layer = session.create_layer(floats, weights_type="f32")
        layer.job(a, c).run(HANG_S)
        assert all(abs(x - y) < 0.01 for x, y in zip(c.tolist()[0], (496, -992))), c.tolist()
        halves = memoryview(bytes([0x21] * 16 + [0xf8] * 16)).cast("B", (2, 16))
        layer = session.create_layer(halves, b_type="s4", group=32, k=32,
                                     multipliers=array("H", [3, 1]))
        assert layer.b_type == "s4" and layer.k == 32
        layer.job(a, c).run(HANG_S)
        even, odd = sum(range(0, 32, 2)), sum(range(1, 32, 2))
        assert c.tolist() == [[3.0 * (even + 2 * odd), -8.0 * even - odd]]


def test_mistakes(socket, _):
    """What would read or write wrong memory is refused here, the rest by the library."""
    weights = matrix(4, 8, -8, 7, 4)
    with raises(ConnectionRefusedError):
        gemmd.connect(socket + ".none", autostart=0)
    with raises(TypeError, "depth"):
        gemmd.connect(socket, depth=3)
    session = gemmd.connect(socket)
    for fields, text in (({"bias": array("f", [0] * 3)}, "bias"), ({"b_scales": [1, 2]}, "b_scales"),
                         ({"activation": "tanh"}, "activation"), ({"c_type": "f64"}, "c_type"),
                         ({"b_zero_points": array("b", [0])}, "b_zero_points"),
                         ({"b_type": "s4", "group": 32, "multipliers": array("H", [1])},
                          "multipliers")):
        with raises(ValueError, text):
            session.create_layer(weights if "b_type" not in fields else weights.cast("B"
                                 ).cast("B", (4, 8)), **fields)
    with raises(ValueError, "two dimensions"):
        session.create_layer(weights.cast("B"))
    with raises(TypeError, "colour"):
        session.create_layer(weights, colour=1)
    with raises(OSError, "c_scale"):
        session.create_layer(weights, c_scale=-1.0)
    with raises(OSError):
        session.buffer(1 << 40)
    layer = session.create_layer(weights)
    a, c = session.buffer((2, 8)), session.buffer((2, 4), "f32")
    with raises(ValueError, "c:"):
        layer.job(a, c[:1] if c.ndim == 1 else session.buffer((1, 4), "f32"))
    with raises(ValueError, "a:"):
        layer.job(a.cast("B")[:9], c)
    with raises(ValueError, "no buffer of a session"):
        layer.job(a.toreadonly(), c)
    with raises(ValueError, "residual"):
        layer.job(a, c, session.buffer((2, 4), "f32"))
    with raises(OSError, "not in a buffer of this session"):
        layer.job(bytearray(16), c).run()
    job = layer.job(a, c)
    late = layer.job(a, c, deadline_ns=1)
    assert session.submit(late) == 1
    with raises(ValueError, "in flight"):
        session.submit(late)
    (done, error), = session.wait(HANG_S)
    assert done is late and isinstance(error, gemmd.JobError) and error.status == "DEADLINE"
    layer.close()
    with raises(ValueError, "closed"):
        job.run()
    other = gemmd.connect(socket)
    with raises(ValueError, "another session"):
        other.submit(job)
    session.close()
    with raises(ValueError, "closed"):
        session.buffer(4)


def test_memory(socket, _):
    """Buffers go with their last view; views outlive their session."""
    with gemmd.connect(socket, arena_bytes=1 << 20) as session:
        for _ in range(50):
            session.buffer(600000)[0] = 1
        layer = session.create_layer(matrix(4, 8, -8, 7, 5))
        job = layer.job(session.buffer((1000, 8)), session.buffer((1000, 4), "f32"))
        gc.collect()
        with raises(OSError, "arena"):  # the job keeps its own
            session.buffer((1 << 20) - 20000)
        kept = session.buffer(600000)
        with raises(OSError, "arena"):
            session.buffer(600000)
        part = kept[599990:]
        del kept
        with raises(OSError, "arena"):
            session.buffer(600000)
        assert session.submit(job) == 1
        del job
        (job, error), = session.wait(HANG_S)
        assert error is None and job.rows == 1000
    part[:] = bytes(range(10))
    assert bytes(part) == bytes(range(10))


def test_many(socket, _):
    """More jobs than the ring holds, as they come; cancelled ones end once."""
    with gemmd.connect(socket, ring_entries=8) as session:
        layer = session.create_layer(matrix(256, 512, -8, 7, 6))
        a = session.buffer((64, 512))
        jobs = [layer.job(a, session.buffer((64, 256), "f32")) for _ in range(40)]
        left, ended = list(jobs), []
        while left or session.in_flight:
            del left[:session.submit(*left)]
            ended += [job for job, error in session.wait(HANG_S) if not error]
        assert sorted(map(id, ended)) == sorted(map(id, jobs)) and session.wait() == []
        assert not session.cancel(jobs[0])
        assert session.submit(jobs[0]) == 1
        session.cancel(jobs[0])
        (job, error), = session.wait(HANG_S)
        assert job is jobs[0] and (error is None or error.status == "CANCELLED")


def test_signals_and_threads(socket, process):
    """A handler runs while a call waits; another thread's call is refused meanwhile."""
    with gemmd.connect(socket) as session:
        layer = session.create_layer(matrix(4, 8, -8, 7, 7))
        job = layer.job(session.buffer((1, 8)), session.buffer((1, 4), "f32"))
        refused, handled = [], []

        def other():
            time.sleep(0.2)
            try:
                session.poll()
            except RuntimeError as error:
                refused.append(error)
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(0.2)
            process.send_signal(signal.SIGCONT)

        signal.signal(signal.SIGUSR1, lambda *_: handled.append(True))
        stop(process)
        thread = threading.Thread(target=other)
        thread.start()
        job.run(HANG_S)
        thread.join()
        assert len(refused) == 1 and "thread" in str(refused[0]) and handled == [True]
        stop(process)
        with raises(TimeoutError):
            job.run(0.05)
        process.send_signal(signal.SIGCONT)
        assert session.wait(HANG_S) == [(job, None)]


def test_fork(socket, _):
    """The child is told to connect again, and can."""
    session = gemmd.connect(socket)
    layer = session.create_layer(matrix(4, 8, -8, 7, 8))
    job = layer.job(session.buffer((1, 8)), session.buffer((1, 4), "f32"))
    child = os.fork()
    if child == 0:
        status = 1
        try:
            with raises(OSError, "fork"):
                job.run()
            with gemmd.connect(socket) as own:
                attached = own.create_layer(matrix(4, 8, -8, 7, 8))
                attached.job(own.buffer((1, 8)), own.buffer((1, 4), "f32")).run(HANG_S)
                status = 0 if attached.attached else 2
            del session, layer, job
            gc.collect()
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    job.run(HANG_S)


def test_asyncio(socket, process):
    """Many awaited jobs over a small ring; a cancelled one; the worker's death."""
    async def main():
        with gemmd.connect(socket, ring_entries=8) as session:
            layer = session.create_layer(matrix(16, 32, -8, 7, 9))
            a = session.buffer((1, 32))
            jobs = [layer.job(a, session.buffer((1, 16), "f32")) for _ in range(100)]
            await asyncio.wait_for(asyncio.gather(*map(session.run_async, jobs)), HANG_S)
            assert all(job.exec_ns > 0 for job in jobs) and session.in_flight == 0
            stop(process)
            task = asyncio.ensure_future(session.run_async(jobs[0]))
            await asyncio.sleep(0.05)
            with mock.patch.object(session, "cancel", wraps=session.cancel) as cancel:
                task.cancel()
                with raises(asyncio.CancelledError):
                    await task
            cancel.assert_called_once_with(jobs[0])
            assert session.in_flight == 1
            process.send_signal(signal.SIGCONT)
            deadline = time.monotonic() + HANG_S
            while session.in_flight and time.monotonic() < deadline:
                await asyncio.sleep(0.01)
            assert session.in_flight == 0
            stop(process)
            task = asyncio.ensure_future(session.run_async(jobs[0]))
            await asyncio.sleep(0.05)
            process.kill()
            with raises(OSError):
                await asyncio.wait_for(task, HANG_S)
    asyncio.run(main())


def main():
    signal.alarm(2 * HANG_S)
    test_structs()
    for test in (test_results, test_weights, test_mistakes, test_memory, test_many,
                 test_signals_and_threads, test_fork, test_asyncio):
        with worker() as (socket, process):
            test(socket, process)
        print(f"ok: {test.__name__}", flush=True)


main()
