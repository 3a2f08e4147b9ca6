"""Layers, jobs, and the memory they point to."""
import ctypes
from array import array

from gemmd._library import JobStruct, LayerDesc, quick

# name: (enum gemmd_type, format of a memoryview, bytes); None stands for no type.
TYPES = {None: (0, None, 0), "u8": (1, "B", 1), "s8": (2, "b", 1), "s32": (3, "i", 4),
         "f32": (4, "f", 4), "bf16": (5, "H", 2), "s4": (6, "B", 0)}
_TYPE_NAMES = {number: name for name, (number, _, _) in TYPES.items()}
_TYPE_NUMBERS = {name: number for name, (number, _, _) in TYPES.items()}
_PRIORITIES = {"normal": 0, "latency": 1, "background": 2}

# Fields of struct gemmd_layer_desc: those that are a word of an enum, and plain numbers.
_WORDS = {
    "a_type": _TYPE_NUMBERS, "b_type": _TYPE_NUMBERS, "c_type": _TYPE_NUMBERS,
    "weights_type": _TYPE_NUMBERS, "residual_type": _TYPE_NUMBERS,
    "activation": {None: 0, "relu": 1, "clip": 2, "gelu_tanh": 3, "gelu_erf": 4, "silu": 5},
    "quantize_mode": {"asymmetric": 0, "symmetric": 1},
    "quantize_method": {"min_max": 0, "l2": 1},
}
_NUMBERS = {"group", "a_scale", "c_scale", "a_zero_point", "a_row_scales", "c_zero_point",
            "clip_lo", "clip_hi", "residual_zero_point", "residual_scale"}


class JobError(OSError):
    """A job that failed.  status: the name of its status ("DEADLINE")."""

    def __init__(self, status, error):
        super().__init__(-error, quick.gemmd_status_text(status).decode())
        self.status = quick.gemmd_status_name(status).decode()


def _word(value, words, what):
    if value not in words:
        raise ValueError(f"{what}: {value!r} is none of {', '.join(map(repr, words))}")
    return words[value]


def _hold(view):
    """(what keeps a contiguous memoryview's memory where it is, its address).

    Read-only memory has no address here: it is copied."""
    if view.readonly or not view.nbytes:
        held = ctypes.create_string_buffer(view.tobytes(), max(view.nbytes, 1))
    else:
        held = ctypes.c_char.from_buffer(view)
    return held, ctypes.addressof(held)


def _view(values, form, count, what):
    """A memoryview of `count` elements of that format: of a buffer, or of a copy of numbers."""
    try:
        view = memoryview(values)
    except TypeError:
        view = memoryview(array(form, values))
    if view.format.lstrip("@=<") != form or view.nbytes != count * view.itemsize:
        raise ValueError(f"{what}: {view.nbytes // view.itemsize} elements of format "
                         f"'{view.format}' where {count} of '{form}' belong")
    if not view.c_contiguous:
        raise ValueError(f"{what}: its elements do not follow each other")
    return view


def _shape(weights, fields, k):
    """(n, k, format) of the weights."""
    if weights.ndim != 2:
        raise ValueError("weights: two dimensions, n and k, are needed")
    n, columns = weights.shape
    if fields.get("b_type") != "s4" or fields.get("weights_type"):
        return n, columns, TYPES[fields.get("weights_type") or "s8"][1]
    k = 2 * columns if k is None else k
    if (k + 1) // 2 != columns:
        raise ValueError(f"weights: {k} of 4 bits are {(k + 1) // 2} bytes, not {columns}")
    return n, k, "B"


def describe(weights, k, name, fields):
    """(struct gemmd_layer_desc, what it points to) of create_layer's arguments."""
    desc, held, weights = LayerDesc(), [], memoryview(weights)

    def point(field, values, form, count):
        if values is not None:
            keeper, address = _hold(_view(values, form, count, field))
            held.append(keeper)
            setattr(desc, field, address)

    quick.gemmd_layer_desc_init(ctypes.byref(desc))
    arrays = {field: fields.pop(field, None)
              for field in ("bias", "b_scales", "b_zero_points", "multipliers")}
    for field, value in fields.items():
        if field in _WORDS:
            setattr(desc, field, _word(value, _WORDS[field], field))
        elif field in _NUMBERS:
            setattr(desc, field, value)
        else:
            raise TypeError(f"create_layer: there is no argument {field!r}")
    desc.n, desc.k, form = _shape(weights, fields, k)
    desc.name = name.encode() if name is not None else None
    point("weights", weights, form, weights.shape[0] * weights.shape[1])
    if arrays["bias"] is not None:
        try:
            whole = memoryview(arrays["bias"]).format == "i"
        except TypeError:
            whole = False
        desc.bias_type = _TYPE_NUMBERS["s32" if whole else "f32"]
        point("bias", arrays["bias"], "i" if whole else "f", desc.n)
    scales = arrays["b_scales"]
    scales = scales if scales is None or hasattr(scales, "__len__") else [scales]
    if scales is not None or fields.get("weights_type"):
        desc.scale_count = 1 if scales is not None and len(scales) == 1 else desc.n
    point("b_scales", scales, "f", desc.scale_count)
    point("b_zero_points", arrays["b_zero_points"], "b", desc.n)
    if desc.group:
        point("multipliers", arrays["multipliers"], "H", desc.n * -(-desc.k // desc.group))
    return desc, held


class Layer:
    """A layer that is open in a session."""

    def __init__(self, session, pointer, attached):
        self.session, self.pointer = session, pointer
        self.attached = attached  # it was in the worker already
        self.n, self.k = quick.gemmd_layer_n(pointer), quick.gemmd_layer_k(pointer)
        self.a_type = _TYPE_NAMES[quick.gemmd_layer_a_type(pointer)]
        self.b_type = _TYPE_NAMES[quick.gemmd_layer_b_type(pointer)]
        self.c_type = _TYPE_NAMES[quick.gemmd_layer_c_type(pointer)]
        self.residual_type = _TYPE_NAMES[quick.gemmd_layer_residual_type(pointer)]
        self.a_row_bytes = quick.gemmd_layer_a_row_bytes(pointer)
        self.bytes_new = quick.gemmd_layer_bytes_new(pointer)

    def job(self, a, c, residual=None, *, priority="normal", deadline_ns=0):
        """A job of this layer, to be run any number of times, one after the other.

        a, c, residual: buffers of the session, or parts of such whose elements follow each other;
        rows are as many as `a` has.  The job keeps them.  deadline_ns: of time.monotonic_ns().
        """
        return Job(self, a, c, residual, _word(priority, _PRIORITIES, "priority"), deadline_ns)

    def close(self):
        """Jobs of it that wait end with status LAYER_STALE; no more can be submitted."""
        self.session.close_layer(self)


class Job:
    """A layer applied to some rows.  queue_ns, exec_ns: of its last run, as the worker saw them;
    Job.run, which is quicker, does not set them."""

    def __init__(self, layer, a, c, residual, priority, deadline_ns):
        self.session, self.layer = layer.session, layer
        self.queue_ns = self.exec_ns = 0
        self.rows, rest = divmod(memoryview(a).nbytes, layer.a_row_bytes)
        c_row_bytes = layer.n * TYPES[layer.c_type][2]
        if rest:
            raise ValueError(f"a: no multiple of a row's {layer.a_row_bytes} bytes")
        if (residual is None) != (layer.residual_type is None):
            raise ValueError(f"residual: the layer's is of type {layer.residual_type}")
        self._held, addresses = [], []
        for name, buffer, row_bytes in (
                ("a", a, layer.a_row_bytes), ("c", c, c_row_bytes),
                ("residual", residual, layer.n * TYPES[layer.residual_type][2])):
            view = memoryview(b"" if buffer is None else buffer)
            if view.nbytes != self.rows * row_bytes:
                raise ValueError(f"{name}: {self.rows} rows are {self.rows * row_bytes} bytes, "
                                 f"not {view.nbytes}")
            if view.nbytes and (view.readonly or not view.c_contiguous):
                raise ValueError(f"{name}: no buffer of a session, or with gaps")
            held, address = _hold(view)
            self._held.append(held)
            addresses.append(address if view.nbytes else None)
        self.struct = JobStruct(layer=layer.pointer, m=self.rows, a=addresses[0], c=addresses[1],
                                residual=addresses[2], a_stride_bytes=layer.a_row_bytes,
                                c_stride_bytes=c_row_bytes, user_data=id(self),
                                deadline_ns=deadline_ns, priority=priority)
        self.reference = ctypes.byref(self.struct)

    def run(self, timeout=None):
        """Submits the job and waits for it; only when nothing else of the session is in flight.

        timeout: in seconds; None: for ever.  After a TimeoutError the job is still in flight:
        Session.wait will have it.
        """
        self.session.run(self, timeout)
