"""ONNX Runtime's own format, for its mobile builds: written by the runtime itself, after its optimizations."""

from __future__ import annotations

from pathlib import Path

from edgeq.errors import UnsupportedError, first_line


def write_ort(source: Path) -> Path:
    """Turn `model.onnx` into `model.ort` beside it, and take the former away.

    Fused as far as no kernel is asked for that only some CPUs have (ORT_ENABLE_EXTENDED: the layouts of x86 come at the
    level above), since a reduced build cannot fuse.

    Raises:
        UnsupportedError: ONNX Runtime does not take the model.
    """
    import onnxruntime

    target = source.with_suffix(".ort")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(target)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.add_session_config_entry("session.save_model_format", "ORT")
    try:
        onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
    except Exception as err:  # onnxruntime raises a type for each of its codes
        what = f"ONNX Runtime cannot write the model in its own format: {first_line(err)}"
        raise UnsupportedError(what, "use a target whose file_format is onnx") from err
    source.unlink()
    return target
