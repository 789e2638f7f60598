"""Reading golden.npz: a self-test must not trust the file that it tests with."""

from __future__ import annotations

import io
import math
import zipfile
from typing import Any

from edgeq.bundle.reader import open_regular
from edgeq.core.errors import EdgeqError, IntegrityError, first_line
from edgeq.core.lazy import NDArray, np
from edgeq.core.manifest import GOLDEN_NAME, Bundle, Manifest, Tensor
from edgeq.core.preprocess import apply
from edgeq.core.results.model import TensorSpec
from edgeq.core.results.report import GoldenSet

Arrays = tuple[NDArray[Any], ...]

MAX_BYTES = 512_000_000

_MAX_ELEMENTS = 2**31  # of one input; `edgeq package` takes no larger one


def read_golden(bundle: Bundle) -> GoldenSet:
    """Return a bundle's golden samples: exactly the arrays that the manifest lists.

    Nothing is unpickled or inflated, and no array takes more memory than the file.

    Raises:
        IntegrityError: the file is too large, not a plain archive, or does not match the manifest.
        EnvironmentProblem: it cannot be read.
    """
    manifest = bundle.manifest
    with open_regular(bundle.golden) as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise _broken(f"it has more than {MAX_BYTES} bytes")
    arrays = _arrays(data)
    inputs = [f"input_{tensor.name}" for tensor in manifest.inputs]
    outputs = [f"output_{i}" for i in range(len(manifest.outputs))]
    if sorted(arrays) != sorted((*inputs, *outputs)):
        raise _broken(f"it holds {', '.join(sorted(arrays))}; expected {', '.join((*inputs, *outputs))}")
    count = manifest.golden.samples
    for name, array in arrays.items():
        if count == 0 or array.shape[:1] != (count,):
            raise _broken(f"{name} has the shape {list(array.shape)}, but the manifest states {count} samples")
    return GoldenSet(
        inputs=tuple(arrays[name] for name in inputs),
        outputs=tuple(arrays[name] for name in outputs),
        preprocessed=manifest.golden.preprocessed,
        sqnr_floor_db=float(manifest.golden.sqnr_floor_db),
    )


def model_inputs(golden: GoldenSet, manifest: Manifest) -> tuple[tuple[NDArray[Any], ...], ...]:
    """Return the model inputs of each golden sample, preprocessed: a row or the whole of each input.

    Raises:
        IntegrityError: the samples do not fit the manifest's inputs.
    """
    return tuple(_sample(golden, manifest, i) for i in range(len(golden.inputs[0])))


def test_cases(golden: GoldenSet, manifest: Manifest) -> tuple[tuple[Arrays, Arrays], ...]:
    """Return the inputs and outputs of each golden sample in the program's own shapes, [batch, …].

    A batch of several is one sample again and again. The state of a step is what the golden outputs of the step before
    have left.

    Raises:
        IntegrityError: the samples do not fit the manifest's inputs.
    """
    cases: list[tuple[Arrays, Arrays]] = []
    for index, rows in enumerate(model_inputs(golden, manifest)):
        pairs = zip(rows, manifest.inputs, strict=True)
        inputs = tuple(_whole(row, one.shape, bool(one.varying)) for row, one in pairs)
        pairs = zip((column[index] for column in golden.outputs), manifest.outputs, strict=True)
        outputs = tuple(_whole(row, one.shape, bool(one.varying)) for row, one in pairs)
        if cases:
            left = cases[-1][1]
            fed = [one.fed_from for one in manifest.inputs]
            inputs = tuple(array if source is None else left[source] for array, source in zip(inputs, fed, strict=True))
        cases.append((inputs, outputs))
    return tuple(cases)


def _whole(row: NDArray[Any], shape: tuple[int, ...], varies: bool) -> NDArray[Any]:
    """Return a row as the batch that a tensor of this shape is, if the row lacks the batch's axis."""
    if row.ndim == len(shape):
        return row
    return np.repeat(row[None], 1 if varies else shape[0], axis=0)


def _sample(golden: GoldenSet, manifest: Manifest, index: int) -> tuple[NDArray[Any], ...]:
    pairs = list(zip(golden.inputs, manifest.inputs, strict=True))
    arrays = tuple(_ready(column[index], tensor, preprocessed=golden.preprocessed) for column, tensor in pairs)
    specs = [
        TensorSpec(name=tensor.name, dtype=tensor.dtype, shape=tensor.shape, varying=tensor.varying_sizes())
        for tensor in manifest.inputs
    ]
    taken = [*zip(specs, (array.shape for array in arrays), strict=True)]
    is_whole = all(spec.takes(shape) for spec, shape in taken)
    if not is_whole and not all(spec.takes(shape, without=0) for spec, shape in taken):
        shapes = [list(shape) for _, shape in taken]
        takes = ", ".join(f"{one.name} {one.shape_text()}" for one in specs)
        raise _broken(f"sample {index} has the shapes {shapes}, but the model takes {takes}")
    return arrays


def _ready(array: NDArray[Any], tensor: Tensor, *, preprocessed: bool) -> NDArray[Any]:
    if math.prod(tensor.shape) > _MAX_ELEMENTS:
        raise _broken(f"input {tensor.name} has the shape {list(tensor.shape)}, which is too large")
    image = tensor.preprocessing
    is_image = tensor.dtype.startswith("float") if image is None else image.takes(tensor.dtype)
    if not preprocessed and array.dtype == np.uint8 and is_image:
        array = _preprocessed(array, tensor)
    if str(array.dtype) != tensor.dtype:
        raise _broken(f"input {tensor.name} is {array.dtype}, but the model takes {tensor.dtype}")
    return array


def _preprocessed(image: NDArray[Any], tensor: Tensor) -> NDArray[Any]:
    if tensor.preprocessing is None or image.ndim != 3 or image.shape[2] not in (1, 3) or 0 in image.shape:
        raise _broken(
            f"input {tensor.name} has pixels {list(image.shape)} but the manifest has no preprocessing for them"
        )
    try:
        return apply(tensor.preprocessing, image)
    except EdgeqError as err:
        raise _broken(f"input {tensor.name}: {err.what}") from err


def _arrays(data: bytes) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for info in archive.infolist():
                name = info.filename.removesuffix(".npy")
                # edgeq stores without deflating: a small file cannot become a large one
                if info.compress_type != zipfile.ZIP_STORED or info.file_size > len(data) or name in arrays:
                    raise ValueError(f"the entry {info.filename[:80]!r} is compressed, too large, or listed twice")
                arrays[name] = _array(archive.read(info))
    except (IntegrityError, ModuleNotFoundError):  # where NumPy is missing, the file is not to blame
        raise
    except Exception as err:  # zipfile and NumPy raise a dozen kinds on hostile bytes
        raise _broken(first_line(err)) from err
    return arrays


def _array(data: bytes) -> NDArray[Any]:
    """Return the array of an .npy file of version 1.0; `np.load` would allocate whatever the header says."""
    header = io.BytesIO(data)
    if np.lib.format.read_magic(header) != (1, 0):
        raise ValueError("an array's format is not 1.0")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(header)
    if fortran or dtype.kind not in "biuf" or dtype != dtype.newbyteorder("<"):
        raise ValueError(f"an array of {dtype}, expected little-endian numbers in C order")
    if math.prod(shape) * dtype.itemsize != len(data) - header.tell():
        raise ValueError(f"an array of the shape {list(shape)} with {len(data) - header.tell()} bytes")
    array: NDArray[Any] = np.frombuffer(data, dtype, offset=header.tell()).reshape(shape)
    return array


def _broken(why: str) -> IntegrityError:
    what = f"{GOLDEN_NAME} does not fit the manifest: {why[:300]}"
    return IntegrityError(what, "get the bundle again, or package the model again")
