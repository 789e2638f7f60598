"""Lowering to Core ML: what is delegated, in which precision, and that equal inputs give equal bytes."""

from __future__ import annotations

import pytest
import torch
from small_models import Silent, dataset, forward, loaded, lowered, quantized, small_net
from torch import nn

from edgeq.core.errors import EnvironmentProblem, ExitCode
from edgeq.core.results.model import QuantizedModel, TensorSpec
from edgeq.lower import coreml
from edgeq.lower.executorch import check_delegates
from edgeq.verify.spec import VerifySpec
from edgeq.verify.verify import judge_graph


@pytest.fixture(scope="module")
def half() -> QuantizedModel:
    return quantized(small_net(), "executorch", "fp16", backend="coreml")


@pytest.mark.slow
def test_a_half_precision_program_is_delegated_whole_and_repeats_byte_for_byte(half, tmp_path, capfd):
    first, again = (
        lowered(half, small_net().inputs, tmp_path / name, "executorch", backend="coreml")
        for name in ("first", "again")
    )
    data = first.path.read_bytes()
    assert again.path.read_bytes() == data
    assert b"CoreMLBackend" in data
    assert b"conversion_date" not in data
    assert (first.delegated_macs, first.undelegated) == (1.0, ())
    assert [dtype for dtype, _ in first.stored] == ["float16"]
    assert "CoreMLPartitioner" in first.passes
    assert "MIL" not in capfd.readouterr().err  # coremltools draws bars of its own


@pytest.mark.slow
def test_precision_follows_the_scheme_and_what_stays_in_float():
    from executorch.backends.apple.coreml.compiler import CoreMLBackend

    for scheme, keep, precision in (("fp16", (), "float16"), ("fp16", ("head",), "float32"), ("fp32", (), "float32")):
        model = quantized(small_net(), "executorch", scheme, backend="coreml", keep=keep)
        specs = coreml.partitioner(model).delegation_spec.compile_specs
        assert CoreMLBackend.model_compute_precision_from_compile_specs(specs).value == precision


def test_without_coremltools_it_ends_before_anything_is_done(monkeypatch):
    monkeypatch.setattr(coreml.importlib.util, "find_spec", lambda _name: None)
    check_delegates(("xnnpack", "qnnpack"))
    with pytest.raises(EnvironmentProblem) as raised:
        check_delegates(("xnnpack", "coreml"))
    assert raised.value.exit_code == ExitCode.ENVIRONMENT
    assert "coreml]'" in raised.value.fix


@pytest.mark.slow
def test_the_graph_is_judged_and_nothing_is_said_of_the_artifact(half):
    model = small_net()
    spec = VerifySpec(
        lowered=None,  # type: ignore[arg-type]  # nothing may look at it
        inputs=model.inputs,
        graph=forward(half.graph),
        fp32=forward(model.model),
        output_steps=half.output_steps,
        samples=dataset(model.inputs, labels=[0, 1, 2, 3, 4, 0, 1, 2]),
        is_evaluation=True,
        metric=None,
        metric_name="top1",
        scheme="fp16",
        backend="coreml",
        threads=1,
        progress=Silent(),
        label="small",
    )
    report, golden = judge_graph(spec, why="elsewhere")
    measured = (report.parity, report.fidelity, report.timing, report.kernels, report.load_ms, report.flips)
    assert measured == (None,) * 6
    assert [(out.dtype, out.shape) for out in report.outputs] == [("float32", (1, 5))]
    assert report.graph_only is not None
    assert report.graph_only.findings == ()
    assert 40 < report.graph_only.fidelity.sqnr_db < 100  # half precision: near fp32, and not fp32 itself
    assert (golden.made_by, golden.made_on, len(golden.outputs[0])) == ("graph", None, 4)


class _Normed(nn.Module):
    """A convolution, a position embedding that forward resizes, a layer norm and a linear layer."""

    def __init__(self):
        super().__init__()
        self.patches, self.positions = nn.Conv2d(3, 32, 4, 4), nn.Parameter(torch.randn(1, 32, 3, 3))
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 256)

    def forward(self, image):
        x = self.patches(image)
        grid = nn.functional.interpolate(self.positions, x.shape[-2:], mode="bicubic", antialias=True)
        return self.head(self.norm((x + grid).flatten(2).transpose(1, 2)))


@pytest.mark.slow
@pytest.mark.parametrize("keep", [(), ("head",)])
def test_a_layer_norm_in_half_precision(keep, tmp_path):
    torch.manual_seed(0)
    image = TensorSpec(name="image", dtype="float32", shape=(1, 3, 16, 16))
    model = loaded(_Normed().eval(), image)
    sizes = {}
    for scheme in ("fp32", "fp16"):
        result = quantized(model, "executorch", scheme, backend="coreml", keep=keep if scheme == "fp16" else ())
        made = lowered(result, (image,), tmp_path / scheme, "executorch", backend="coreml")
        assert (made.delegated_macs, made.undelegated) == (1.0, ())
        sizes[scheme] = len(made.path.read_bytes())
    stored = dict(made.stored)
    assert stored["float16"] > stored.get("float32", 0) if not keep else stored["float32"] > 256 * 32
    if not keep:
        assert sizes["fp32"] - sizes["fp16"] > 1.8 * (32 * 48 + 256 * 32)  # two bytes of each weight
