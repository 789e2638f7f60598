"""`edgeq package digits --dry-run` for every shipped target and every scheme: a plan or a refusal, never an error."""

import io
from contextlib import redirect_stderr, redirect_stdout

import numpy as np
import onnx
import pytest

from edgeq.cli.main import run
from edgeq.core.errors import ExitCode
from edgeq.core.profiles import profile_files
from edgeq.core.schemes import AUTO, SCHEMES
from edgeq.core.targets import load_target
from edgeq.quantize import METHODS


def plan(*args):
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        # mixed-int8 needs a limit to search for
        code = run(["package", *args, "--limit", "accuracy_drop=1pp", "--dry-run", "--quiet"])
    return code, out.getvalue(), err.getvalue()


@pytest.mark.parametrize("name", profile_files())
@pytest.mark.parametrize("scheme", [*SCHEMES, AUTO])
def test_every_pair_has_a_plan_or_a_refusal(name, scheme):
    target = load_target(name)
    code, out, err = plan("digits", "--target", name, "--scheme", scheme)
    if scheme in target.schemes and (target.runtime, scheme) in METHODS:
        assert (code, err) == (ExitCode.OK, "")
        assert f"\n{name}, {scheme}\n" in out
        assert ("\n  quantize " in out) == (scheme != "fp32")
    elif scheme == AUTO:
        assert (code, err) == (ExitCode.OK, "")
        assert "\n  choose " in out
    else:
        assert (code, out) == (ExitCode.UNSUPPORTED, "")
        is_refused_by_target = scheme not in target.schemes
        refuser = f"target {name}" if is_refused_by_target else target.runtime
        fix = "its schemes: " if is_refused_by_target else f"{target.runtime} supports: "
        assert err.startswith(f"error: {refuser} does not support the scheme {scheme}\n  fix: {fix}")


NET = onnx.helper.make_model(
    onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["logits"])],
        "net",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 4])],
        [onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, [1, 2])],
        [onnx.numpy_helper.from_array(np.eye(4, 2, dtype=np.float32), "w")],
    ),
    opset_imports=[onnx.helper.make_opsetid("", 21)],
    ir_version=10,
)


@pytest.mark.parametrize("name", [name for name in profile_files() if load_target(name).runtime == "onnx"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_of_an_onnx_file_has_a_plan_or_a_refusal(name, scheme, tmp_path):
    target = load_target(name)
    file, calibration, evaluation = (tmp_path / name for name in ("net.onnx", "calibration.npz", "evaluation.npz"))
    onnx.save(NET, file)
    for seed, path in enumerate((calibration, evaluation)):
        x = np.random.default_rng(seed).normal(size=(8, 4)).astype(np.float32)
        np.savez(path, x=x, y=np.arange(8) % 2)
    code, out, err = plan(
        str(file),
        "--target",
        name,
        "--scheme",
        scheme,
        "--calibration-data",
        str(calibration),
        "--eval-data",
        str(evaluation),
    )
    if scheme in target.schemes and scheme not in ("qat-int8", "weight-only-int4"):  # of PyTorch models alone
        assert (code, err) == (ExitCode.OK, "")
        assert f"\n{name}, {scheme}\n" in out
    else:
        assert (code, out) == (ExitCode.UNSUPPORTED, "")
        assert "internal error" not in err
