"""libgemmd.so.0 and its structs, as client/gemmd.h has them (tests/e2e/python_test.py compares)."""
import ctypes
from ctypes import (c_char_p, c_float, c_int, c_int32, c_int64, c_size_t, c_uint, c_uint32,
                    c_uint64, c_void_p)


class Options(ctypes.Structure):
    _fields_ = [("size", c_size_t), ("socket", c_char_p), ("autostart", c_int),
                ("ring_entries", c_uint32), ("arena_bytes", c_uint64), ("spin_ns", c_int64),
                ("control_only", c_int), ("timeout_ms", c_int), ("recover_ms", c_int),
                ("keep_weights", c_int), ("reserved", c_uint64 * 7)]


class LayerDesc(ctypes.Structure):
    _fields_ = [("size", c_size_t), ("n", c_uint32), ("k", c_uint32), ("a_type", c_int),
                ("b_type", c_int), ("c_type", c_int), ("weights", c_void_p),
                ("weights_type", c_int), ("quantize_method", c_int), ("group", c_uint32),
                ("multipliers", c_void_p), ("b_zero_points", c_void_p), ("b_scales", c_void_p),
                ("scale_count", c_uint32), ("a_scale", c_float), ("c_scale", c_float),
                ("a_zero_point", c_int32), ("a_row_scales", c_int), ("quantize_mode", c_int),
                ("c_zero_point", c_int32), ("bias_type", c_int), ("bias", c_void_p),
                ("activation", c_int), ("clip_lo", c_float), ("clip_hi", c_float),
                ("residual_type", c_int), ("residual_zero_point", c_int32),
                ("residual_scale", c_float), ("name", c_char_p), ("progress", c_void_p),
                ("progress_context", c_void_p), ("reserved", c_uint64 * 6)]


class JobStruct(ctypes.Structure):
    _fields_ = [("layer", c_void_p), ("m", c_uint32), ("a", c_void_p), ("c", c_void_p),
                ("residual", c_void_p), ("a_stride_bytes", c_uint32),
                ("c_stride_bytes", c_uint32), ("user_data", c_uint64), ("deadline_ns", c_uint64),
                ("priority", c_int), ("reserved", c_uint32)]


class Completion(ctypes.Structure):
    _fields_ = [("user_data", c_uint64), ("status", c_int), ("error", c_int),
                ("queue_ns", c_uint32), ("exec_ns", c_uint32)]


STRUCTS = {"gemmd_options": Options, "gemmd_layer_desc": LayerDesc, "gemmd_job": JobStruct,
           "gemmd_completion": Completion}
_P = ctypes.POINTER


def _declare(library, result, names, *arguments):
    for name in names.split():
        function = getattr(library, "gemmd_" + name)
        function.restype, function.argtypes = result, arguments


def _load():
    """The library twice: calls that may block release the interpreter lock, the others do not, which
    is quicker."""
    blocking, quick = ctypes.CDLL("libgemmd.so.0"), ctypes.PyDLL("libgemmd.so.0")
    _declare(blocking, c_int, "connect", _P(Options), _P(c_void_p))
    _declare(blocking, c_int, "layer_create", c_void_p, _P(LayerDesc), _P(c_void_p))
    _declare(blocking, c_int, "layer_open", c_void_p, c_char_p, _P(c_void_p))
    _declare(blocking, c_int, "layer_close", c_void_p, _P(c_void_p))
    _declare(blocking, c_int, "wait", c_void_p, _P(Completion), c_uint, c_int)
    _declare(blocking, c_int, "run", c_void_p, _P(JobStruct), c_int)
    _declare(blocking, c_int, "get_fd", c_void_p)
    _declare(quick, None, "close", _P(c_void_p))
    _declare(quick, None, "options_init", c_void_p)
    _declare(quick, None, "layer_desc_init", c_void_p)
    _declare(quick, c_char_p, "version")
    _declare(quick, c_char_p, "error_text", c_void_p)
    _declare(quick, c_char_p, "strerror status_name status_text", c_int)
    _declare(quick, c_void_p, "buffer_alloc", c_void_p, c_size_t)
    _declare(quick, None, "buffer_free", c_void_p, c_void_p)
    _declare(quick, c_int, "submit", c_void_p, _P(JobStruct), c_uint)
    _declare(quick, c_int, "flush", c_void_p)
    _declare(quick, c_int, "poll", c_void_p, _P(Completion), c_uint)
    _declare(quick, c_int, "cancel", c_void_p, c_uint64)
    _declare(quick, c_uint32, "layer_n layer_k layer_a_row_bytes", c_void_p)
    _declare(quick, c_int, "layer_a_type layer_b_type layer_c_type layer_residual_type", c_void_p)
    _declare(quick, c_uint64, "layer_bytes_new", c_void_p)
    for init, struct in ((quick.gemmd_options_init, Options),
                         (quick.gemmd_layer_desc_init, LayerDesc)):
        room = ctypes.create_string_buffer(4096)  # another version's may be larger
        init(room)
        if c_size_t.from_buffer(room).value != ctypes.sizeof(struct):
            raise ImportError("libgemmd.so.0 and the package gemmd are of different versions")
    return blocking, quick


blocking, quick = _load()
