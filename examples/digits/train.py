#!/usr/bin/python3
"""Trains the digits classifier and quantises it to int8: model.safetensors, test.safetensors.

Data: scikit-learn's copy of the UCI optical digits (1,797 images of 8 x 8 pixels, values 0..16).
Network: 64 -> 128 -> 64 -> 10, ReLU between, trained in float.  30 % of the images (540, stratified)
are held out: neither training nor calibration sees them.

Quantisation after training, in the terms of client/gemmd.h:
  input     u8, the pixel value itself; a_scale 1/16, as training saw pixels divided by 16
  weights   s8, symmetric, one scale per output channel; the scale is the candidate between 60 % and
            100 % of max|w| / 127 with the smallest squared error
  hidden    u8 with ReLU folded in: zero point 0, scale from a percentile of the activations that
            the training images cause
  output    f32 logits
  bias      f32 in real units

Everything is seeded and runs in one thread: a second run on the same machine writes the same bytes.
Run it with Debian's python3-sklearn: /usr/bin/python3 examples/digits/train.py [DIRECTORY]
"""

import json
import os
import struct
import sys
import warnings

for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"  # before numpy: the order of BLAS sums depends on the thread count

import numpy as np
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

SEED = 20
HELD_OUT = 540
HIDDEN = (128, 64)
INPUT_SCALE = np.float32(1 / 16)
ACTIVATION_PERCENTILE = 99.9
DTYPES = {"int8": "I8", "uint8": "U8", "float32": "F32"}


def write_safetensors(path, tensors, metadata):
    """8 bytes of header length, JSON padded with spaces to 8, then the data without holes.

    Wider elements come first, so that each tensor is aligned to its element.
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
    header = {"__metadata__": metadata}
    data = b""
    for name in order:
        array = np.ascontiguousarray(tensors[name])
        raw = array.astype(array.dtype.newbyteorder("<")).tobytes()
        header[name] = {
            "dtype": DTYPES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=True).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + data)


def train(images, labels):
    """The float network as a list of (weights [n, k], bias [n])."""
    network = MLPClassifier(hidden_layer_sizes=HIDDEN, activation="relu", solver="adam", alpha=1e-3,
                            batch_size=64, learning_rate_init=1e-3, max_iter=60, tol=0.0,
                            n_iter_no_change=60, shuffle=True, random_state=SEED)
    # the length of the training is fixed: that max_iter ended it is no news
    warnings.filterwarnings("ignore", category=ConvergenceWarning)
    network.fit(images, labels)
    return [(w.T.astype(np.float32), b.astype(np.float32))
            for w, b in zip(network.coefs_, network.intercepts_)]


def run_float(layers, rows):
    """Outputs of every layer, in float."""
    outputs = []
    for index, (weights, bias) in enumerate(layers):
        rows = rows @ weights.T + bias
        if index + 1 < len(layers):
            rows = np.maximum(rows, 0)
        outputs.append(rows)
    return outputs


def quantise_weights(weights):
    """(s8 [n, k], scale [n]) with the scale of least squared error per channel."""
    quantised = np.zeros(weights.shape, np.int8)
    scales = np.zeros(len(weights), np.float32)
    for channel, row in enumerate(weights):
        best = np.inf
        largest = max(float(np.abs(row).max()), 1e-12)
        for share in np.linspace(0.6, 1.0, 41):
            scale = np.float32(share * largest / 127)
            candidate = np.clip(np.rint(row / scale), -127, 127)
            error = float(np.sum((candidate * scale - row) ** 2, dtype=np.float64))
            if error < best:
                best = error
                quantised[channel] = candidate.astype(np.int8)
                scales[channel] = scale
    return quantised, scales


def quantise(layers, training_images):
    """The int8 network as a list of dicts; activation scales come from the training set."""
    activations = run_float(layers, training_images)
    network = []
    a_scale = INPUT_SCALE
    for index, (weights, bias) in enumerate(layers):
        last = index + 1 == len(layers)
        quantised, b_scale = quantise_weights(weights)
        c_scale = np.float32(1)
        if not last:
            c_scale = np.float32(np.percentile(activations[index], ACTIVATION_PERCENTILE) / 255)
        network.append({"weight": quantised, "b_scale": b_scale, "bias": bias, "a_scale": a_scale,
                        "c_scale": c_scale, "last": last})
        a_scale = c_scale
    return network


def run_int8(network, pixels):
    """Logits by the worker's order of single-precision steps (kernels/epilogue.h)."""
    rows = pixels.astype(np.int32)
    for layer in network:
        sums = rows @ layer["weight"].astype(np.int32).T
        real = sums.astype(np.float32) * (layer["a_scale"] * layer["b_scale"]) + layer["bias"]
        if layer["last"]:
            return real
        steps = np.maximum(real, np.float32(0)) * (np.float32(1) / layer["c_scale"])
        rows = np.rint(np.minimum(steps, np.float32(255))).astype(np.int32)
    raise ValueError("the network has no last layer")


def model_file(network, scores):
    """Tensors and metadata of model.safetensors; the format wants strings in the metadata."""
    tensors = {}
    metadata = {
        "model": "digits",
        "layer_count": str(len(network)),
        "dataset": "UCI optical digits, scikit-learn load_digits: 1797 images of 8x8, values 0..16",
        "script": "examples/digits/train.py",
        "seed": str(SEED),
        **scores,
    }
    for index, layer in enumerate(network):
        prefix = f"layer{index}."
        for part in ("weight", "b_scale", "bias"):
            tensors[prefix + part] = layer[part]
        # nine digits give a float32 back exactly
        metadata[prefix + "a_scale"] = "%.9g" % layer["a_scale"]
        metadata[prefix + "c_scale"] = "%.9g" % layer["c_scale"]
        metadata[prefix + "a_type"] = "u8"
        metadata[prefix + "c_type"] = "f32" if layer["last"] else "u8"
        metadata[prefix + "activation"] = "none" if layer["last"] else "relu"
    return tensors, metadata


def main():
    directory = sys.argv[1] if len(sys.argv) > 1 else os.path.dirname(os.path.abspath(__file__))
    pixels, labels = load_digits(return_X_y=True)
    pixels = pixels.astype(np.uint8)
    train_pixels, test_pixels, train_labels, test_labels = train_test_split(
        pixels, labels, test_size=HELD_OUT, stratify=labels, random_state=SEED)

    layers = train(train_pixels.astype(np.float32) * INPUT_SCALE, train_labels)
    network = quantise(layers, train_pixels.astype(np.float32) * INPUT_SCALE)

    float_logits = run_float(layers, test_pixels.astype(np.float32) * INPUT_SCALE)[-1]
    float_predictions = float_logits.argmax(1)
    int8_predictions = run_int8(network, test_pixels).argmax(1)
    count = len(test_labels)
    scores = {
        "held_out_images": str(count),
        "float_correct": str(int((float_predictions == test_labels).sum())),
        "int8_correct": str(int((int8_predictions == test_labels).sum())),
    }
    tensors, metadata = model_file(network, scores)
    write_safetensors(os.path.join(directory, "model.safetensors"), tensors, metadata)
    write_safetensors(os.path.join(directory, "test.safetensors"), {
        "images": test_pixels,
        "labels": test_labels.astype(np.uint8),
        "float_predictions": float_predictions.astype(np.uint8),
    }, {"dataset": metadata["dataset"], "script": metadata["script"], "seed": metadata["seed"],
        "split": f"{count} of {len(labels)} images, stratified, held out of training"})
    print(f"{len(train_labels)} training images, {count} held out")
    print(f"float {100 * int(scores['float_correct']) / count:.2f} %, "
          f"int8 {100 * int(scores['int8_correct']) / count:.2f} % correct on the held-out images")


if __name__ == "__main__":
    main()
