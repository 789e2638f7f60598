"""Core ML's part of an ExecuTorch lowering: its compile options, and packages that come out the same every time.

coremltools writes the date, random identifiers and unordered maps into its packages. Equal inputs must give equal
bytes, so each package is normalized before ExecuTorch reads it.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import json
import logging
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from edgeq.core.errors import EnvironmentProblem
from edgeq.core.files import canonical_json, sha256_bytes, sha256_file
from edgeq.core.lazy import np
from edgeq.core.results.model import QuantizedModel
from edgeq.core.schemes import COMPRESSED_ELEMENTS, PALETTE_SCHEME
from edgeq.core.system import install_command, replaced
from edgeq.lower.coreml_package import PACKAGE

_MANIFEST = "Manifest.json"

_SPECIFICATION = "Data/com.apple.CoreML/model.mlmodel"

_WITH_BARS = (
    "coremltools.converters.mil.frontend.torch.ops",
    "coremltools.converters.mil.mil.passes.pass_pipeline",
    "coremltools.optimize.coreml._quantization_passes",
)

# where each operator comes from: of a small int8 model, more than half of its bytes
_DEBUG_RECORDS = ("debug_info.json", f"{PACKAGE}/executorch_debug_handle_mapping.json")

_DAY = "com.github.apple.coremltools.conversion_date"


def check_coreml() -> None:
    """Check before a long run that Core ML models can be built here.

    Raises:
        EnvironmentProblem: coremltools is not installed.
    """
    if importlib.util.find_spec("coremltools") is None:
        what = "coremltools is missing; targets with the backend coreml need it"
        fix = f"package on Linux x86_64 or macOS, after `{install_command('coreml')}`"
        raise EnvironmentProblem(what, fix)


def partitioner(quantized: QuantizedModel, _left_out: Collection[str] = (), _spec: Any = None) -> Any:
    """Return Core ML's partitioner, for iOS 17 and newer and all compute units.

    ExecuTorch's Swift package requires iOS 17.
    """
    import coremltools
    from executorch.backends.apple.coreml.compiler import CoreMLBackend
    from executorch.backends.apple.coreml.partition import CoreMLPartitioner

    precision = coremltools.precision.FLOAT16 if _narrows(quantized) else coremltools.precision.FLOAT32
    specs = CoreMLBackend.generate_compile_specs(
        compute_unit=coremltools.ComputeUnit.ALL,
        minimum_deployment_target=coremltools.target.iOS17,
        compute_precision=precision,
    )
    return CoreMLPartitioner(compile_specs=specs)


def _without_rescaling(_specs: Any) -> Any:
    """Return coremltools' passes but those that multiply weights, which would then leave their int8 or palette values.

    It stands for ExecuTorch's reader of compile options, which would write 3 kB of names into the program.
    """
    import coremltools

    passes = coremltools.PassPipeline()
    passes.remove_passes(
        {"common::fuse_conv_scale", "common::fuse_conv_batchnorm", "common::fuse_elementwise_to_batchnorm"}
    )
    return passes


def stored(quantized: QuantizedModel, found: tuple[tuple[str, int], ...]) -> tuple[tuple[str, int], ...]:
    """Return how many elements of each dtype the package holds, of those that the lowered program has."""
    if not _narrows(quantized):
        return found
    tally: Counter[str] = Counter()
    for dtype, elements in found:
        tally["float16" if dtype == "float32" else dtype] += elements
    return tuple(sorted(tally.items()))


def _narrows(quantized: QuantizedModel) -> bool:
    """Whether Core ML narrows all of a program in float32 to half; else each value has the program's own dtype.

    The Neural Engine computes in half or int8 only.
    """
    if quantized.scheme == "fp32":
        return False
    if quantized.scheme != "fp16":
        return True
    values = (node.meta.get("val") for node in quantized.exported.graph.nodes)
    return not any(str(getattr(value, "dtype", "")) == "torch.float16" for value in values)


@contextlib.contextmanager
def repeatable(quantized: QuantizedModel, _program: Any) -> Iterator[None]:
    """Make equal inputs give equal bytes inside the block, and silence the libraries' logs and progress bars.

    The weights of a scheme that stores them smaller are compressed there, before a package is saved.
    """
    with replaced(logging.getLogger("coremltools"), "disabled", True):
        from executorch.backends.apple.coreml.compiler import coreml_preprocess
        from executorch.backends.apple.coreml.partition import coreml_partitioner

        library = coreml_preprocess.executorchcoreml
        flatten = library.flatten_directory_contents

        def ordered(folder: str) -> Any:
            if quantized.scheme not in ("fp16", "fp32"):  # whose bundles have had them since their first release
                for name in _DEBUG_RECORDS:
                    (Path(folder) / name).unlink(missing_ok=True)
            _put_in_order(Path(folder))
            return flatten(folder)

        with contextlib.ExitStack() as stack:
            stack.enter_context(replaced(library, "flatten_directory_contents", ordered))
            backend = coreml_preprocess.CoreMLBackend
            if quantized.scheme not in ("fp16", "fp32"):
                stack.enter_context(replaced(backend, "pass_pipeline_from_compile_specs", _without_rescaling))
            if quantized.scheme in ("weight-only-int8", PALETTE_SCHEME):
                convert = backend._convert_to_mlmodel

                def compressed(*args: Any, **options: Any) -> Any:
                    return _compressed(convert(*args, **options), quantized.scheme)

                stack.enter_context(replaced(backend, "_convert_to_mlmodel", compressed))
            for module in (coreml_preprocess, coreml_partitioner):
                stack.enter_context(replaced(module.logger, "disabled", True))
            for name in _WITH_BARS:
                stack.enter_context(_without_bars(importlib.import_module(name)))
            yield


def _compressed(model: Any, scheme: str) -> Any:
    """Return an MLModel with its weights in int8 by channel, or as indices into a palette.

    The weights have such values already (`edgeq/quantize/rounded.py`), so that this loses next to nothing. ExecuTorch's
    own option would leave the tables of embeddings out.
    """
    import numpy
    from coremltools.optimize import coreml

    if scheme == PALETTE_SCHEME:
        palette = coreml.OpPalettizerConfig(mode="unique", weight_threshold=COMPRESSED_ELEMENTS)
        with replaced(numpy, "unique", functools.partial(_unique, numpy.unique)):
            return coreml.palettize_weights(model, coreml.OptimizationConfig(global_config=palette))
    int8 = coreml.OpLinearQuantizerConfig(mode="linear_symmetric", weight_threshold=COMPRESSED_ELEMENTS)
    return coreml.linear_quantize_weights(model, coreml.OptimizationConfig(global_config=int8))


def _unique(unique: Callable[..., Any], values: Any, *args: Any, **options: Any) -> Any:
    """Do as np.unique does, with float16 sorted in float32.

    NumPy 2.4 sorts larger arrays of float16 wrongly on processors with AVX512 and without its half arithmetic (seen in
    2.4.6 on AMD's): of 16 values some come several times, and the indices into a palette of 17 would take 6 bits.
    """
    if np.asarray(values).dtype != np.float16:
        return unique(values, *args, **options)
    found = unique(np.asarray(values, np.float32), *args, **options)
    if isinstance(found, tuple):
        return (found[0].astype(np.float16), *found[1:])
    return found.astype(np.float16)


@contextlib.contextmanager
def _without_bars(module: Any) -> Iterator[None]:
    name = "tqdm" if hasattr(module, "tqdm") else "_tqdm"
    with replaced(module, name, functools.partial(getattr(module, name), disable=True)):
        yield


def _put_in_order(folder: Path) -> None:
    """Rewrite what coremltools saved without the day and without random names.

    Args:
        folder: it holds the package and ExecuTorch's `metadata.json`, whose identifier is the name under which a
            device keeps the compiled model: it follows from the content.
    """
    package = folder / PACKAGE
    _write_specification(package / _SPECIFICATION)
    files = sorted(path for path in package.rglob("*") if path.is_file() and path.name != _MANIFEST)
    content = {str(path.relative_to(package)): sha256_file(path) for path in files}
    _write_manifest(package / _MANIFEST)
    metadata = json.loads((folder / "metadata.json").read_text())
    metadata["identifier"] = f"executorch_{_name(sha256_bytes(canonical_json(content)))}"
    (folder / "metadata.json").write_text(json.dumps(metadata, sort_keys=True))


def _write_specification(path: Path) -> None:
    from coremltools.proto import Model_pb2

    model = Model_pb2.Model()
    model.ParseFromString(path.read_bytes())
    model.description.metadata.userDefined.pop(_DAY, None)
    path.write_bytes(model.SerializeToString(deterministic=True))


def _write_manifest(path: Path) -> None:
    """Name the package's entries by what they are."""
    manifest = json.loads(path.read_text())
    names = {old: _name(entry["path"]) for old, entry in manifest["itemInfoEntries"].items()}
    manifest["itemInfoEntries"] = {names[old]: entry for old, entry in manifest["itemInfoEntries"].items()}
    manifest["rootModelIdentifier"] = names[manifest["rootModelIdentifier"]]
    path.write_text(json.dumps(manifest, sort_keys=True))


def _name(text: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_OID, text))
