from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeq.core.results.model import Layer
from edgeq.verify.kernels import _precision, kernel_share, npu_share

INT8 = (
    "Convolution (NHWC, QC8) IGEMM #1",
    "Convolution (NHWC, QS8, QC8W) DWConv #3",
    "Convolution (NHWC, QU8) GEMM #1",
    "Deconvolution (NHWC, QS8, QC8W) SubConv #1",
    "Fully Connected (NC, QS8, QC8W) GEMM #9",
    "Fully Connected (NC, QD8, F32, QC8W) GEMM #2",
    # on a host with AVX-VNNI, and on cores with KleidiAI's packed kernels
    "Fully Connected (NC, QDU8, F32, QC8W) GEMM #1",
    "Batch Matrix Multiply (NC, QP8, F32, QC8W) GEMM #1",
    "Convolution (NHWC, PQS8, QS8, QC8W) IGEMM #1",
)
FLOAT = (
    "Convolution (NHWC, F32) IGEMM #1",
    "Convolution (NHWC, F16) GEMM #1",
    "Deconvolution (NHWC, F32) SubConv #1",
    "Fully Connected (NC, F32) GEMM #1",
    # int8 weights that are multiplied in float
    "Fully Connected (NC, F32, QC8W) GEMM #1",
    "Dynamic Fully Connected (NC, F32) GEMM #1",
    "Batch Matrix Multiply (NC, F32) GEMM #1",
    "Batch Matrix Multiply (NC, BF16_F32) GEMM #1",
    "Fully Connected (NC, PF32) GEMM #1",
    "native_call_convolution.out",
    "native_call_addmm.out",
    "native_call_bmm.out",
)
NEITHER = (
    "Convert (NC, F32, QS8) #1",
    "Add (ND, QS8) #1",
    "Global Average Pooling (NWC, QS8) #1",
    "Copy (NC, X8) #1",
    "Transpose (ND, X32) #1",
    "native_call_quantize_per_tensor.out",
    "native_call_convolution_backward.out",
    "Method::execute",
    "DELEGATE_CALL",
    "",
)
TORCH_INT8 = ("quantized::conv2d", "quantized::conv2d_relu", "quantized::linear", "quantized::linear_dynamic")
TORCH_FLOAT = ("aten::_convolution", "aten::convolution", "aten::addmm", "aten::bmm", "aten::mkldnn_rnn_layer")
TORCH_FLOAT += ("aten::_native_multi_head_attention", "aten::_scaled_dot_product_flash_attention_for_cpu")
TORCH_NEITHER = ("quantized::add", "quantized::conv2d_prepack", "quantized::linear_unpack", "aten::mkldnn_convolution")


LITERT_INT8 = (
    "CONV_2D (int8, int8, int32) features.0",
    "DEPTHWISE_CONV_2D (int8, int8, int32) depth",
    "FULLY_CONNECTED (float32, int8, float32) head",  # quantizes its input as it runs
    "TRANSPOSE_CONV (int32, int8, int8, int32) up",
    "BATCH_MATMUL (int8, int8) attention",
)
LITERT_FLOAT = (
    "CONV_2D (float32, float32, float32) features.0",
    "FULLY_CONNECTED (float32, float32) head",
    "TRANSPOSE_CONV (int32, float32, float32) up",
    "BATCH_MATMUL (float32, float32) attention",
)
LITERT_NEITHER = ("ADD (int8, int8) sum", "DEQUANTIZE (int8) /3", "RESHAPE (int8, int32) CONV_2D")


def layer(macs, name="l"):
    return Layer(name=name, op="convolution", macs=macs, weight_bytes=0, delegated=True)


def share(kernels, macs, runtime="executorch"):
    return kernel_share(runtime, kernels, [layer(count) for count in macs])


@pytest.mark.parametrize("name", INT8)
def test_int8_kernels_of_xnnpack(name):
    assert share([name], [10]).int8_macs == 1


@pytest.mark.parametrize("name", FLOAT)
def test_float_kernels_of_xnnpack_and_portable_ones(name):
    assert share([name], [10]).int8_macs == 0


@pytest.mark.parametrize("name", NEITHER)
def test_names_that_multiply_no_matrices(name):
    assert _precision("executorch", name) is None


@pytest.mark.parametrize(
    ("names", "expected"), [(TORCH_INT8, 1), (TORCH_FLOAT, 0), (("quantized::linear_dynamic_fp16",), 0)]
)
def test_kernels_of_torchscript(names, expected):
    for name in names:
        assert share([name], [10], "torchscript").int8_macs == expected
    assert all(_precision("torchscript", name) is None for name in TORCH_NEITHER)
    assert {_precision("litert", name) for name in LITERT_INT8} == {"int8"}
    assert {_precision("litert", name) for name in LITERT_FLOAT} == {"other"}
    assert {_precision("litert", name) for name in LITERT_NEITHER} == {None}


def test_the_share_is_by_macs_not_by_count():
    assert share([INT8[0], NEITHER[0], FLOAT[0], INT8[4]], [600, 300, 100]).int8_macs == pytest.approx(0.7)


@pytest.mark.parametrize("macs", [[1], [1, 1, 1], []])
def test_a_profile_that_does_not_match_claims_nothing(macs):
    result = share([INT8[0], FLOAT[0]], macs)
    assert result.int8_macs is None
    assert f"2 convolutions and matrix products, the program {len(macs)}" in result.why_unmatched


def test_of_unknown_layers_only_all_and_none_can_be_told():
    assert share(INT8, []).int8_macs == 1
    assert share(FLOAT, []).int8_macs == 0
    assert share([*INT8, FLOAT[0]], []).int8_macs is None
    assert share(NEITHER, []).int8_macs is None


@given(st.lists(st.tuples(st.sampled_from(INT8 + FLOAT), st.integers(1, 10**9)), min_size=1), st.randoms())
def test_names_that_multiply_nothing_change_nothing(pairs, random):
    names = [name for name, _ in pairs]
    for name in NEITHER:
        names.insert(random.randint(0, len(names)), name)
    total = sum(macs for _, macs in pairs)
    int8 = sum(macs for name, macs in pairs if name in INT8)
    assert share(names, [macs for _, macs in pairs]).int8_macs == pytest.approx(int8 / total)


def test_half_kernels_are_told_from_float_and_from_int8():
    names = [
        "Convolution (NHWC, F16) IGEMM #1",
        "Fully Connected (NC, F32) GEMM #1",
        "Fully Connected (NC, QD8, F16, QC8W) GEMM #1",
    ]
    found = share(names, [50, 30, 20])
    assert (found.half_macs, found.int8_macs) == (0.5, 0.2)


def test_the_share_of_linear_layers_leaves_attentions_products_and_convolutions_out():
    layers = [
        Layer(name=op, op=op, macs=macs, weight_bytes=0, delegated=False)
        for op, macs in (
            ("linear_dynamic", 60),
            ("bmm", 500),
            ("quantized_lstm", 30),
            ("addmm", 10),
            ("convolution", 7),
        )
    ]
    names = ["quantized::linear_dynamic", "aten::bmm", "aten::quantized_lstm", "aten::addmm", "aten::_convolution"]
    assert kernel_share("torchscript", names, layers).int8_linear_macs == pytest.approx(0.9)
    assert share([FLOAT[0]], [10]).int8_linear_macs is None


ORT = ("QLinearConv a_token_1", "QuantizeLinear QuantizeLinear_3", "Conv relu_nchwc", "QGemm c/MatMulAddFusion")


def test_onnx_runtimes_kernels_are_matched_by_their_nodes_in_any_order():
    layers = [layer(1, "c"), layer(2, "b"), layer(5, "a")]
    found = kernel_share("onnx", ORT, layers)
    assert (found.int8_macs, found.precisions) == (6 / 8, ("int8", "other", "int8"))


def test_names_of_onnx_files_have_slashes_and_commas_of_their_own():
    names = ("/a, b/Conv_0", "/a, b/Conv_1", "/a, b")
    kernels = ("QLinearConv /a, b/Conv_0_token_1", "QLinearConv /a, b/Conv_1", "QGemm /a, b/MatMulAddFusion")
    found = kernel_share("onnx", kernels, [layer(1, name) for name in names])
    assert (found.int8_macs, found.why_unmatched) == (1.0, "")


@pytest.mark.parametrize("name", ["d", "c", "/c/d"])
def test_a_quantized_kernel_of_no_layer_or_twice_of_one_claims_nothing(name):
    found = kernel_share("onnx", (f"QLinearConv {name}", *ORT[1:]), [layer(1, "c"), layer(2, "b"), layer(5, "a")])
    assert found.int8_macs is None
    assert found.why_unmatched


def test_a_batch_norm_that_onnx_runtime_computes_as_a_convolution_is_no_layer():
    kernels = ("Conv getitem_2_nchwc", "MatMulInteger a", "Conv c_nchwc")
    found = kernel_share("onnx", kernels, [layer(3, "a"), layer(1, "c")])
    assert (found.int8_macs, found.why_unmatched) == (0.75, "")


def test_another_number_of_onnx_kernels_claims_nothing():
    kernels = ("QLinearConv a", "FusedConv relu", "QGemm c/MatMulAddFusion")
    for layers in ([layer(1, "a"), layer(2, "c")], [layer(1, name) for name in "abcd"]):
        assert kernel_share("onnx", kernels, layers).int8_macs is None


OPENVINO = (
    "Convolution brgconv_avx512_I8 u8 a,Multiply_7,/Add_1,/FakeQuantize_2",
    "Eltwise jit_avx512_I8 u8 /Add_3",
    "FullyConnected brgemm_avx512_I8 u8 b.0/DequantizationMultiply,/FakeQuantize_4",
    "FullyConnected brgemm_avx512_f32 i8 c,/Add_5",  # int8 weights, widened in the kernel
)


def test_openvinos_kernels_are_matched_by_the_operators_that_were_fused():
    layers = [layer(1, "c"), layer(2, "b.0"), layer(5, "a")]
    found = kernel_share("openvino", OPENVINO, layers)
    assert (found.int8_macs, found.precisions) == (7 / 8, ("other", "int8", "int8"))


def test_a_layer_that_openvino_also_runs_in_float_is_float():
    found = kernel_share(
        "openvino", (*OPENVINO, "Convolution brgconv_avx512_f32 f32 a"), [layer(2, "b.0"), layer(5, "a")]
    )
    assert found.precisions == ("int8", "other")
    assert kernel_share("openvino", OPENVINO[2:], [layer(2, "b.0"), layer(5, "a")]).precisions == ("int8", "other")


@pytest.mark.parametrize("primitive", ["jit_avx512_f32 f32", "jit_avx512_I8 u8"])
def test_of_a_compiled_part_the_scale_behind_a_product_tells_its_precision(primitive):
    names = "/FakeQuantize_4,a,a/DequantizationSubtract,a/DequantizationMultiply,/Add_5,b,/Add_6"
    found = kernel_share("openvino", [f"Subgraph {primitive} {names}"], [layer(5, "a"), layer(2, "b")])
    assert found.precisions == ("int8", "other")


def test_an_openvino_kernel_of_no_layer_or_an_artifact_without_layers_claims_nothing():
    found = kernel_share("openvino", OPENVINO, [layer(1, "c"), layer(5, "a")])
    assert (found.int8_macs, found.why_unmatched) == (
        None,
        "the profile has quantized kernels that belong to no layer of the program",
    )
    assert kernel_share("openvino", OPENVINO[:1], []).why_unmatched == "the layers of the program are not known"


def test_what_an_npu_takes_is_in_int8_where_all_its_factors_are() -> None:
    layers = [
        Layer(name="conv", op="convolution", macs=900, weight_bytes=9, delegated=True),
        Layer(name="head", op="linear", macs=100, weight_bytes=1, delegated=False),
    ]
    found = npu_share(["DEPTHWISE_CONV2D INT8 INT8", "CONV2D INT8 INT8"], layers)
    assert (found.int8_macs, found.int8_linear_macs, found.precisions) == (0.9, 0.0, ("int8", "other"))
    wide = npu_share(["CONV2D INT16 INT8"], layers)
    assert (wide.int8_macs, wide.why_unmatched) == (None, "the NPU multiplies other values too: CONV2D INT16 INT8")
    assert npu_share([], ()).int8_macs is None
