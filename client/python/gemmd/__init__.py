"""gemmd: int8 matrix products by a worker process that all processes of a machine share.

    import gemmd

    session = gemmd.connect()
    layer = session.create_layer(weights, bias=bias, activation="relu")  # weights: int8, n x k
    a = session.buffer((m, layer.k), "u8")
    c = session.buffer((m, layer.n), "f32")
    job = layer.job(a, c)
    job.run()                                # c = relu(a * weights^T + bias)

Operands are whatever has the buffer protocol: NumPy arrays, memoryviews, array.array.  A buffer of
a session is a memoryview of memory that the worker sees, too: nothing is copied, and
numpy.asarray(a) is an array over it.  Rows from elsewhere the program copies into one.

What layers and jobs mean is written in gemmd.h; arguments have the names of its fields, element
types and activations are the words of its enums in lower case.  A failed call raises OSError, or
the subclass of its errno (TimeoutError, ConnectionRefusedError, ...), with the library's text; a
job that fails ends with a JobError.

A session belongs to one thread at a time (another one's call raises RuntimeError), and to the
process that opened it: after fork() connect again.  Calls that block release the interpreter lock.
This package needs libgemmd.so.0 and Python's standard library, nothing else.
"""
from gemmd._layer import Job, JobError, Layer
from gemmd._session import Session, connect, version

__all__ = ["Job", "JobError", "Layer", "Session", "connect", "version"]
