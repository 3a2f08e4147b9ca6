"""Sessions: buffers, layers, and jobs in flight."""
import asyncio
import ctypes
import errno
import threading
import time
from collections import deque

from gemmd._layer import TYPES, JobError, Layer, describe
from gemmd._library import Completion, Options, blocking, quick

_TAKEN_MAX = 64  # completions, in a call


def version():
    """Of the library."""
    return quick.gemmd_version().decode()


class _Handle:
    """The library's session; closed with the last object that needs it."""

    def __init__(self):
        self.pointer = ctypes.c_void_p()
        self.lock = threading.Lock()
        self.unused = deque()  # buffers to be freed: a view can end while another thread waits

    def __del__(self):
        quick.gemmd_close(ctypes.byref(self.pointer))

    def error(self, result):
        text = quick.gemmd_error_text(self.pointer).decode()
        return OSError(-result, text or quick.gemmd_strerror(result).decode())


class _Memory:
    """A buffer of the arena, which lives as long as any view of it."""

    def __init__(self, handle, address):
        self.handle, self.address = handle, address

    def __del__(self):
        self.handle.unused.append(self.address)


def connect(socket=None, **options):
    """A session with a worker.  options: fields of struct gemmd_options (gemmd.h)."""
    handle, struct = _Handle(), Options()
    quick.gemmd_options_init(ctypes.byref(struct))
    if socket is not None:
        struct.socket = str(socket).encode()
    for name, value in options.items():
        if name in ("size", "reserved") or not hasattr(struct, name):
            raise TypeError(f"connect: there is no option {name!r}")
        setattr(struct, name, value)
    result = blocking.gemmd_connect(ctypes.byref(struct), ctypes.byref(handle.pointer))
    if result < 0:
        raise handle.error(result)
    return Session(handle)


class Session:
    """A session.  `with` closes it.  Memory of its buffers stays until no view of them is left."""

    def __init__(self, handle):
        self._handle = handle
        self._completions = (Completion * _TAKEN_MAX)()
        self._in_flight = {}  # user_data: the job, whose buffers are in use
        self._taken = []      # by the event loop, and not its own
        self._futures, self._loop, self._fd = {}, None, -1

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Jobs in flight are abandoned; later calls raise ValueError."""
        if self._loop and not self._loop.is_closed():
            self._loop.remove_reader(self._fd)
        self._loop = self._handle = None
        futures, self._futures = self._futures, {}
        for future in futures.values():
            future.cancel()
        self._in_flight.clear()

    def _call(self, function, *arguments):
        """Result of a call of the library that has this session first; raises its errors."""
        handle = self._handle
        if handle is None:
            raise ValueError("the session is closed")
        if not handle.lock.acquire(False):
            raise RuntimeError("another thread is in a call of this session")
        try:
            result = function(handle.pointer, *arguments)
            if result < 0:
                raise handle.error(result)
            return result
        finally:
            handle.lock.release()

    # ---- memory and layers

    def buffer(self, shape, type="u8"):
        """A memoryview of that shape and element type ("bf16": the upper halves of floats as
        unsigned numbers) in memory that the worker sees; contents undefined.  Freed with its last
        view."""
        _, form, size = TYPES[type]
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        for length in shape:
            size *= length
        memory = (ctypes.c_ubyte * size).from_address(self._allocate(size))
        memory.owner = _Memory(self._handle, ctypes.addressof(memory))
        return memoryview(memory).cast("B").cast(form, shape)

    def _allocate(self, size):
        def allocate(pointer):
            nonlocal address
            while handle.unused:
                quick.gemmd_buffer_free(pointer, handle.unused.popleft())
            address = quick.gemmd_buffer_alloc(pointer, size)
            return 0 if address else -errno.ENOMEM

        handle, address = self._handle, None
        self._call(allocate)
        return address

    def create_layer(self, weights, *, k=None, name=None, **fields):
        """Creates the layer in the worker, or attaches to one with the same contents.

        weights: n x k elements of int8; with weights_type "f32" or "bf16" of that type, to be
        quantised to b_type; with b_type "s4" alone n x (k + 1) / 2 bytes, and k says how many
        weights they are.  bias: 32-bit integers in accumulator units, or floats in real ones.
        b_scales: a number, or n.  fields: the others of struct gemmd_layer_desc (gemmd.h), such
        as a_type, c_type, a_scale, a_zero_point, activation, residual_type, group, multipliers.
        """
        desc, held = describe(weights, k, name, fields)
        pointer = ctypes.c_void_p()
        attached = self._call(blocking.gemmd_layer_create, ctypes.byref(desc),
                              ctypes.byref(pointer))
        del held
        return Layer(self, pointer, attached == 1)

    def open_layer(self, name):
        """The worker's layer of that name."""
        pointer = ctypes.c_void_p()
        self._call(blocking.gemmd_layer_open, name.encode(), ctypes.byref(pointer))
        return Layer(self, pointer, True)

    def close_layer(self, layer):
        """What Layer.close does."""
        self._call(blocking.gemmd_layer_close, ctypes.byref(layer.pointer))

    # ---- jobs

    @property
    def in_flight(self):
        """Jobs submitted and not yet taken."""
        return len(self._in_flight) + len(self._taken)

    def _check(self, job):
        if job.session is not self:
            raise ValueError("the job is another session's")
        if not job.layer.pointer:
            raise ValueError("the job's layer is closed")
        if id(job) in self._in_flight:
            raise ValueError("the job is in flight")

    def run(self, job, timeout=None):
        """What Job.run does."""
        self._check(job)
        end = None if timeout is None else time.monotonic() + timeout
        try:
            self._call(blocking.gemmd_run, job.reference, _milliseconds(end))
        except InterruptedError:  # by a signal whose handler has not raised: it is in flight
            self._in_flight[id(job)] = job
            self._finish(end)
        except TimeoutError:
            self._in_flight[id(job)] = job
            raise

    def _finish(self, end):
        others, self._taken = self._taken, []
        try:
            done = self.wait(None if end is None else end - time.monotonic())
        finally:
            self._taken = others
        if done[0][1]:
            raise done[0][1]

    def submit(self, *jobs):
        """Puts jobs into the ring; how many it took, from the front.  wait and flush wake a worker
        that sleeps."""
        count = 0
        for job in jobs:
            self._check(job)
            if not self._call(quick.gemmd_submit, job.reference, 1):
                break
            self._in_flight[id(job)] = job
            count += 1
        return count

    def flush(self):
        """Wakes the worker if it sleeps; True if that took a system call."""
        return self._call(quick.gemmd_flush) == 1

    def poll(self):
        """[(job, None or its error)] of jobs that have ended, without waiting."""
        return self._take(self._call(quick.gemmd_poll, self._completions, _TAKEN_MAX))

    def wait(self, timeout=None):
        """The same, but waits for at least one if any is in flight.  timeout: in seconds."""
        end = None if timeout is None else time.monotonic() + timeout
        while not self._taken and self._in_flight:
            try:
                count = self._call(blocking.gemmd_wait, self._completions, _TAKEN_MAX,
                                   _milliseconds(end))
            except InterruptedError:
                continue  # as PEP 475 has it: the handler did not raise
            done = self._take(count)
            if done:
                return done
        return self._take(0)

    def cancel(self, job):
        """Asks the worker to end it: it still ends once, with a JobError of status CANCELLED, or
        as usual when it was faster.  False: it is not in flight."""
        try:
            return self._call(quick.gemmd_cancel, id(job)) > 0
        except FileNotFoundError:
            return False

    def _take(self, count):
        """Completions of jobs nobody awaits; the others' futures get theirs."""
        done, self._taken = self._taken, []
        for completion in self._completions[:count]:
            job = self._in_flight.pop(completion.user_data)
            error = JobError(completion.status, completion.error) if completion.status else None
            job.queue_ns, job.exec_ns = completion.queue_ns, completion.exec_ns
            future = self._futures.pop(completion.user_data, None)
            if future is None:
                done.append((job, error))
            elif not future.done():
                future.set_exception(error) if error else future.set_result(None)
        return done

    # ---- asyncio

    async def run_async(self, job):
        """Runs the job beside others, in the running loop of asyncio.  Cancelled, it cancels the
        job, whose buffers stay until the worker has let go of them."""
        self._watch(asyncio.get_running_loop())
        while not self.submit(job):
            if not self._futures:
                raise BlockingIOError(errno.EAGAIN, "the ring is full of jobs nobody awaits")
            await asyncio.wait(list(self._futures.values()), return_when=asyncio.FIRST_COMPLETED)
        future = self._futures[id(job)] = self._loop.create_future()
        self.flush()
        try:
            await future
        except asyncio.CancelledError:
            if self._handle:
                self.cancel(job)
                self.flush()
            raise

    def _watch(self, loop):
        if self._loop is loop:
            return
        if self._loop and not self._loop.is_closed():
            self._loop.remove_reader(self._fd)
        self._fd = self._call(blocking.gemmd_get_fd)
        self._loop = loop
        loop.add_reader(self._fd, self._drain)

    def _drain(self):
        try:
            self._taken = self.poll()
        except OSError as error:  # the worker is gone
            self._loop.remove_reader(self._fd)
            self._loop = None
            futures, self._futures = self._futures, {}
            for future in futures.values():
                if not future.done():
                    future.set_exception(error)


def _milliseconds(end):
    """Until then, rounded up; -1: for ever."""
    if end is None:
        return -1
    return max(0, min(-int(-(end - time.monotonic()) * 1000 // 1), 2 ** 31 - 1))
