"""The models of `scripts/zoo`, with random weights that compute something, and data with structure.

Nothing is downloaded. Layers are initialized so that their outputs neither vanish nor grow, and batch norms get the
statistics of a few images: an architecture as its library leaves it answers nearly the same to every input, and an
artifact of it can be neither right nor wrong.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
# the folder shared/ lies beside the checkout, or further up beside a folder of worktrees
CASES = next((path for one in ROOT.parents if (path := one / "shared/cases/models").is_dir()), None)

Arrays = dict[str, NDArray[Any]]
Data = Callable[[np.random.Generator, int], Arrays]


@dataclass(frozen=True, slots=True)
class ZooModel:
    """A model and its data.

    Attributes:
        name: `library.architecture`, as results have it.
        make: returns the module in eval mode, the same one each time.
        data: returns samples, their number given, by the names of the arguments of `forward`.
    """

    name: str
    make: Callable[[], Any]
    data: Data

    @property
    def library(self) -> str:
        """The library that the architecture comes from; `cases` for shared/cases/models."""
        return self.name.partition(".")[0]


# --- Data


def pictures(rng: np.random.Generator, count: int, size: int, width: int | None = None) -> NDArray[np.float32]:
    """Return RGB images of a slope, soft blobs, boxes with edges, a digit and little noise, some dark, some bright."""
    from sklearn.datasets import load_digits

    width = width or size
    digits = load_digits().images / 16
    rows, columns = np.mgrid[0 : 1 : size * 1j, 0 : 1 : width * 1j]
    images = np.empty((count, 3, size, width))
    for image in images:
        slope = rng.normal(size=(3, 2))
        image[:] = slope[:, :1, None] * rows + slope[:, 1:, None] * columns + rng.normal(size=(3, 1, 1))
        for _ in range(4):
            y, x, wide = rng.random(), rng.random(), rng.uniform(0.05, 0.3)
            image += rng.normal(0, 2, (3, 1, 1)) * np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (2 * wide**2))
        for _ in range(3):
            top, left = rng.integers(0, size - 8), rng.integers(0, width - 8)
            high, broad = rng.integers(4, size // 2), rng.integers(4, width // 2)
            image[:, top : top + high, left : left + broad] = rng.normal(0, 1.5, (3, 1, 1))
        scale = max(1, min(size, width) // 16)
        digit = np.kron(digits[rng.integers(len(digits))], np.ones((scale, scale)))
        top, left = rng.integers(0, size - 8 * scale + 1), rng.integers(0, width - 8 * scale + 1)
        image[:, top : top + 8 * scale, left : left + 8 * scale] += 3 * digit
        image += rng.normal(0, 0.05, image.shape)
        image -= image.mean()
        image *= rng.uniform(0.3, 1.0) / image.std()
        image += rng.normal(0, 0.8, (3, 1, 1))  # dark and bright ones: a model's answers differ as images do
    return images.astype(np.float32)


def waves(rng: np.random.Generator, count: int, length: int) -> NDArray[np.float32]:
    """Return sums of four sines that swell and fade, and a little noise."""
    time = np.arange(length) / 16000
    found = np.empty((count, length), np.float32)
    for wave in found:
        tones = sum(rng.uniform(0.1, 0.5) * np.sin(2 * np.pi * rng.uniform(90, 3000) * time) for _ in range(4))
        swell = np.exp(-((np.linspace(0, 1, length) - rng.random()) ** 2) / rng.uniform(0.02, 0.3))
        wave[:] = tones * swell + 0.02 * rng.normal(size=length)
    return found


def spectra(rng: np.random.Generator, count: int, bands: int, frames: int) -> NDArray[np.float32]:
    """Return [N, bands, frames] with ridges that wander through the bands."""
    time, band = np.linspace(0, 1, frames), np.arange(bands)[:, None]
    found = np.empty((count, bands, frames), np.float32)
    for one in found:
        one[:] = 0.05 * rng.normal(size=one.shape) - 0.7
        for _ in range(3):
            ridge = rng.uniform(0, bands) + bands / 8 * np.sin(7 * time * rng.uniform(0.5, 2) + rng.uniform(0, 6))
            one += rng.uniform(0.5, 2.5) * np.exp(-((band - ridge) ** 2) / rng.uniform(2, 12))
    return found


def texts(rng: np.random.Generator, count: int, length: int, words: int) -> Arrays:
    """Return token ids with their masks, of texts between a quarter and all of the length."""
    mask = np.arange(length) < rng.integers(length // 4, length + 1, (count, 1))
    return {"input_ids": rng.integers(1, words, (count, length)) * mask, "attention_mask": mask.astype(np.int64)}


def images_of(size: int, *, width: int | None = None, name: str = "x") -> Data:
    """Return the data of a model of images."""
    return lambda rng, count: {name: pictures(rng, count, size, width)}


# --- Weights


def live(net: nn.Module, data: Data) -> nn.Module:
    """Give a module weights that keep the size of what they multiply, and batch norms the statistics of 16 samples."""
    for module in net.modules():
        weight = module._parameters.get("weight")  # what a parametrization computes is left as it is
        if weight is not None and weight.requires_grad:
            _initialize(module, weight)
        if isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
            nn.init.normal_(module.in_proj_weight, std=module.in_proj_weight.shape[1] ** -0.5)
    for parameter in net.parameters():
        # LayerScale and the gates of residual branches start at or near 0
        if parameter.requires_grad and parameter.squeeze().dim() <= 1 and 0 <= parameter.abs().max() < 1e-3:
            nn.init.uniform_(parameter, 0.3, 0.7)
    net.eval()
    norms = [one for one in net.modules() if isinstance(one, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
        norm.train()
    if norms:
        samples = {name: torch.from_numpy(array) for name, array in data(np.random.default_rng(77), 16).items()}
        with torch.no_grad():
            call(net, samples)
    return net.eval()


def _initialize(module: nn.Module, weight: torch.Tensor) -> None:
    kind = type(module).__name__
    if isinstance(module, nn.Embedding):
        nn.init.normal_(weight, std=0.5)
    elif weight.dim() == 1:  # a norm
        nn.init.uniform_(weight, 0.7, 1.3)
        if module._parameters.get("bias") is not None:
            # about 0, each ReLU behind a batch norm would add 1.7 dB to what it gets as noise; about 1 it adds 0.5 dB
            is_batch = isinstance(module, nn.modules.batchnorm._BatchNorm)
            nn.init.uniform_(module.bias, *((0.5, 1.5) if is_batch else (-0.2, 0.2)))
    elif weight.dim() > 3 and weight[0, 0].numel() > 1 and "Conv" in kind:
        _smooth(weight)
    elif weight.dim() > 1:
        incoming = weight.shape[0] if kind == "Conv1D" else weight[0].numel()  # transformers' is [in, out]
        nn.init.normal_(weight, std=(2.0 if "Conv" in kind and kind != "Conv1D" else 1.0) ** 0.5 * incoming**-0.5)


def _smooth(weight: torch.Tensor) -> None:
    """Fill kernels of images with blurs, each with noise and a size and sign of its own.

    Trained kernels mostly blur, so that they keep what lies in many pixels and lose the noise of each. Random ones keep
    both alike, and behind some ten layers the rounding to eight bits is as large as what differs between images.
    """
    window = functools.reduce(
        lambda a, b: a[..., None] * b, (torch.hann_window(size + 2, periodic=False)[1:-1] for size in weight.shape[2:])
    )
    window = window / window.sum()
    with torch.no_grad():
        size = torch.randn(weight.shape[:2]) * (2 / weight.shape[1]) ** 0.5
        if weight.shape[1] == 1:  # depthwise: no channel may vanish
            size = (torch.rand(weight.shape[:2]) + 0.5) * torch.randn(weight.shape[:2]).sign()
        weight.copy_(
            size.reshape(*size.shape, *(1,) * window.dim()) * (window + 0.5 * window.mean() * torch.randn(weight.shape))
        )


def call(net: Any, samples: dict[str, torch.Tensor]) -> Any:
    """Call a module with arguments by name, the only one by position."""
    return net(*samples.values()) if len(samples) == 1 else net(**samples)


def built(name: str, build: Callable[[], nn.Module], data: Data) -> ZooModel:
    """Return a model of an architecture."""

    def make() -> nn.Module:
        torch.manual_seed(0)
        return live(build(), data)

    return ZooModel(name, make, data)


def small(library: str, name: str, **sizes: Any) -> Callable[[], nn.Module]:
    """Return what builds a class of a library with sizes of one's own."""
    return lambda: getattr(importlib.import_module(library), name)(**sizes)


# --- torchvision


class Detector(nn.Module):
    """What a detector of torchvision computes before its post-processing: backbone and head."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, x: torch.Tensor) -> Any:
        return self.head(list(self.backbone(x).values()))


def _torchvision() -> Iterator[ZooModel]:
    def named(name: str, size: int = 96, **arguments: Any) -> ZooModel:
        def build() -> nn.Module:
            return importlib.import_module("torchvision.models").get_model(name, weights=None, **arguments)

        return built(f"torchvision.{name}", build, images_of(size))

    for name in ("resnet18", "mobilenet_v2", "squeezenet1_1", "mobilenet_v3_small", "mnasnet0_5", "efficientnet_b0"):
        yield named(name)
    vit = {"num_layers": 4, "num_heads": 4, "hidden_dim": 128, "mlp_dim": 256}
    yield built(
        "torchvision.vit",
        small("torchvision.models", "VisionTransformer", image_size=96, patch_size=16, **vit),
        images_of(96),
    )
    maxvit: dict[str, Any] = {
        "stem_channels": 32,
        "partition_size": 4,
        "block_channels": [32, 64],
        "block_layers": [1, 1],
    }
    sizes = {"input_size": (64, 64), "head_dim": 16, "stochastic_depth_prob": 0.0, **maxvit}
    yield built("torchvision.maxvit", small("torchvision.models", "MaxVit", **sizes), images_of(64))
    swin = {"embed_dim": 32, "depths": [2, 2], "num_heads": [2, 4], "window_size": [4, 4], "patch_size": [4, 4]}
    block = "torchvision.models.swin_transformer"

    def swin_v2() -> nn.Module:
        module = importlib.import_module(block)
        layers = {"block": module.SwinTransformerBlockV2, "downsample_layer": module.PatchMergingV2}
        return module.SwinTransformer(stochastic_depth_prob=0.0, **swin, **layers)

    yield built("torchvision.swin_v2", swin_v2, images_of(64))

    for name in ("shufflenet_v2_x0_5", "regnet_y_400mf", "regnet_x_400mf", "mobilenet_v3_large", "resnet50"):
        yield named(name)
    for name in ("convnext_tiny", "resnext50_32x4d", "densenet121", "swin_t", "efficientnet_v2_s"):
        yield named(name)
    yield named("googlenet", aux_logits=False, init_weights=False)
    yield named("inception_v3", 128, aux_logits=False, init_weights=False)

    for name in ("deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large", "fcn_resnet50"):
        yield named(name, weights_backbone=None)


def _torchvision_detection() -> Iterator[ZooModel]:
    def detector(name: str, part: Callable[[Any], nn.Module]) -> Callable[[], nn.Module]:
        def build() -> nn.Module:
            whole = importlib.import_module("torchvision.models").get_model(name, weights=None, weights_backbone=None)
            return Detector(whole.backbone, part(whole))

        return build

    name = "fasterrcnn_mobilenet_v3_large_320_fpn"
    yield built(f"torchvision.{name}", detector(name, lambda whole: whole.rpn.head), images_of(128))
    for name, size in (
        ("ssdlite320_mobilenet_v3_large", 160),
        ("fcos_resnet50_fpn", 96),
        ("retinanet_resnet50_fpn", 128),
    ):
        yield built(f"torchvision.{name}", detector(name, lambda whole: whole.head), images_of(size))


def _torchvision_others() -> Iterator[ZooModel]:
    quantizable = "torchvision.models.quantization"
    for name in ("mobilenet_v2", "resnet18", "shufflenet_v2_x0_5", "mobilenet_v3_large"):

        def build(name: str = name) -> nn.Module:
            return getattr(importlib.import_module(quantizable), name)(weights=None, quantize=False)

        yield built(f"torchvision.quantizable_{name}", build, images_of(96))

    def clips(rng: np.random.Generator, count: int) -> Arrays:
        frames = [pictures(rng, count, 64) for _ in range(2)]
        return {"x": np.stack([frames[0] * (1 - t) + frames[1] * t for t in np.linspace(0, 1, 4, dtype=np.float32)], 2)}

    video = "torchvision.models.video"
    yield built("torchvision.mc3_18", lambda: importlib.import_module(video).mc3_18(weights=None), clips)


# --- timm


# the smallest of each family, at a size that it allows; what must be known at construction is named img_size
_TIMM: dict[str, int] = {
    "lcnet_050": 96,
    "test_vit3": 160,
    "repvgg_a0": 96,
    "mobilevit_xxs": 96,
    "convnext_atto": 96,
    "mixer_s32_224": -96,
    "mobilenetv4_conv_small_050": 96,
    "skresnet18": 96,
    "test_nfnet": 96,
    "hgnetv2_b0": 96,
    "efficientvit_b0": 96,
    "starnet_s1": 96,
    "vit_tiny_patch16_224": -96,
    "poolformer_s12": 96,
    "efficientnet_lite0": 96,
    "mambaout_femto": 96,
    "gernet_s": 96,
    "dla46_c": 96,
    "levit_128s": -96,
    "ese_vovnet19b_dw": 96,
    "tinynet_e": 96,
    "resnest14d": 96,
    "edgenext_xx_small": 96,
    "visformer_tiny": -96,
    "pit_ti_224": -96,
    "pvt_v2_b0": 96,
    "inception_next_atto": 96,
    "selecsls42b": 96,
    "resmlp_12_224": -96,
    "mobileone_s0": 96,
    "ghostnetv2_100": 96,
    "hardcorenas_a": 96,
    "fastvit_t8": 96,
    "repvit_m0_9": 96,
    "efficientformerv2_s0": -96,
    "xcit_nano_12_p16_224": 96,
    "coat_lite_tiny": -96,
    "cait_xxs24_224": -64,
    "rexnet_100": 96,
    "hrnet_w18_small": 96,
    "cspresnet50": 96,
    "nf_regnet_b0": 96,
    "resnetv2_50": 96,
    "tiny_vit_5m_224": 96,
    "mobilevitv2_050": 96,
    "convnextv2_atto": 96,
    "res2net50_14w_8s": 96,
    "botnet26t_256": -96,
    "eca_nfnet_l0": 96,
}


def _timm() -> Iterator[ZooModel]:
    for name, size in _TIMM.items():
        fixed = {"img_size": -size} if size < 0 else {}

        def build(name: str = name, fixed: dict[str, int] = fixed) -> nn.Module:
            return importlib.import_module("timm").create_model(name, pretrained=False, num_classes=100, **fixed)

        yield built(f"timm.{name}", build, images_of(abs(size)))


# --- transformers


_ENCODER = {"hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 192}
_WORDS, _LENGTH = 1000, 32
_TEXT = {**_ENCODER, "vocab_size": _WORDS, "max_position_embeddings": 64}
_VISION = {**_ENCODER, "image_size": 64, "patch_size": 16}
_SPEECH = {
    **_ENCODER,
    "conv_dim": (32, 32, 32),
    "conv_stride": (5, 2, 2),
    "conv_kernel": (10, 3, 3),
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "vocab_size": 32,
}
_STAGES = {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 32, 48, 64]}


def _bart() -> dict[str, Any]:
    sizes = {"encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 192, "d_model": 96}
    return {**sizes, **{name.replace("encoder", "decoder"): size for name, size in sizes.items()}}


def _transformers() -> Iterator[ZooModel]:
    def named(kind: str, head: str, data: Data, part: str = "", **config: Any) -> ZooModel:
        def build() -> nn.Module:
            library = importlib.import_module("transformers")
            net = getattr(library, f"{kind}{head}")(getattr(library, f"{kind}Config")(**config))
            return net.get_submodule(part)

        return built(f"transformers.{kind}{head}{part and '.'}{part}", build, data)

    def words(rng: np.random.Generator, count: int) -> Arrays:
        return texts(rng, count, _LENGTH, _WORDS)

    def ids(rng: np.random.Generator, count: int) -> Arrays:
        return {"input_ids": rng.integers(1, _WORDS, (count, _LENGTH))}

    images = images_of(64, name="pixel_values")
    speech: Data = lambda rng, count: {"input_values": waves(rng, count, 4000)}  # noqa: E731

    yield named("Bert", "Model", words, **_TEXT)
    yield named("Bert", "ForSequenceClassification", words, **_TEXT)
    distil = {"dim": 96, "n_layers": 2, "n_heads": 4, "hidden_dim": 192, "vocab_size": _WORDS}
    yield named("DistilBert", "ForTokenClassification", words, **distil, max_position_embeddings=64)
    yield named("ViT", "ForImageClassification", images, **_VISION)
    yield named("Roberta", "Model", words, **{**_TEXT, "max_position_embeddings": 80})
    yield named("Albert", "Model", words, **_TEXT, embedding_size=32)
    yield named("Electra", "ForSequenceClassification", words, **_TEXT, embedding_size=32)
    yield named("MPNet", "Model", words, **{**_TEXT, "max_position_embeddings": 80})
    yield named("DebertaV2", "Model", words, **_TEXT, relative_attention=True, pos_att_type=["p2c", "c2p"])
    squeeze = {f"{name}_groups": 2 for name in ("q", "k", "v", "post_attention", "intermediate", "output")}
    yield named("SqueezeBert", "Model", words, **_TEXT, embedding_size=96, **squeeze)
    llama = {
        **_ENCODER,
        "num_key_value_heads": 2,
        "vocab_size": _WORDS,
        "use_cache": False,
        "max_position_embeddings": 64,
    }
    yield named("Llama", "ForCausalLM", ids, **llama, tie_word_embeddings=True)
    yield named("Qwen2", "ForCausalLM", ids, **llama)
    yield named("Qwen3", "ForCausalLM", ids, **llama, head_dim=24)
    yield named("Gemma", "ForCausalLM", ids, **llama, head_dim=24)
    gpt = {"n_embd": 96, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": _WORDS, "use_cache": False}
    yield named("GPT2", "LMHeadModel", ids, **gpt)
    opt = {"ffn_dim": 192, "word_embed_proj_dim": 96, "use_cache": False}
    yield named("OPT", "ForCausalLM", ids, **{**_TEXT, **opt})
    t5 = {"d_model": 96, "d_kv": 24, "d_ff": 192, "num_layers": 2, "num_heads": 4, "vocab_size": _WORDS}
    yield named("T5", "EncoderModel", words, **t5)
    bart = {**_bart(), "vocab_size": _WORDS, "max_position_embeddings": 64, "use_cache": False}
    yield named("Bart", "Model", words, "encoder", **bart)
    whisper = {"num_mel_bins": 20, "max_source_positions": 50, "max_target_positions": 20, "pad_token_id": 0}
    starts = {"bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1, "vocab_size": 500}
    mel: Data = lambda rng, count: {"input_features": spectra(rng, count, 20, 100)}  # noqa: E731
    yield named("Whisper", "Model", mel, "encoder", **_bart(), **whisper, **starts)
    yield named("Wav2Vec2", "ForCTC", speech, **_SPEECH)
    yield named("Hubert", "Model", speech, **_SPEECH)
    yield named("WavLM", "Model", speech, **_SPEECH)
    ast: Data = lambda rng, count: {"input_values": spectra(rng, count, 64, 32).transpose(0, 2, 1).copy()}  # noqa: E731
    yield named("AST", "Model", ast, **_ENCODER, max_length=32, num_mel_bins=64)

    yield named("DeiT", "ForImageClassification", images, **_VISION)
    yield named("Beit", "ForImageClassification", images, **_VISION)
    yield named("Dinov2", "Model", images, **_VISION)
    yield named("CLIPVision", "Model", images, **_VISION)
    yield named("SiglipVision", "Model", images, **_VISION)
    yield named("CLIPText", "Model", words, **_TEXT)
    yield named("Yolos", "ForObjectDetection", images, **{**_VISION, "image_size": [64, 64]}, num_detection_tokens=10)
    swin = {"embed_dim": 24, "depths": [1, 1], "num_heads": [2, 4], "window_size": 4, "image_size": 64}
    yield named("Swin", "ForImageClassification", images, **swin)
    yield named("ConvNext", "ForImageClassification", images, **_STAGES)
    yield named("ResNet", "ForImageClassification", images, **_STAGES, embedding_size=16, layer_type="basic")
    yield named("RegNet", "ForImageClassification", images, **_STAGES, embedding_size=16, groups_width=8)
    yield named("MobileNetV2", "ForImageClassification", images, depth_multiplier=0.35)
    segformer = {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 32, 40, 64], "num_attention_heads": [1, 1, 2, 4]}
    yield named("Segformer", "ForSemanticSegmentation", images, **segformer, decoder_hidden_size=64)
    mobilevit = {"hidden_sizes": [32, 48, 64], "neck_hidden_sizes": [16, 16, 24, 32, 48, 64, 96]}
    yield named("MobileViT", "ForImageClassification", images, **mobilevit, image_size=64)
    yield named("Levit", "ForImageClassification", images, image_size=64, hidden_sizes=[32, 48, 64], depths=[1, 1, 1])
    patchtst = {"num_input_channels": 4, "context_length": 64, "prediction_length": 16, "patch_length": 8}
    d = {"d_model": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 128, "patch_stride": 8}
    series: Data = lambda rng, count: {"past_values": spectra(rng, count, 4, 64).transpose(0, 2, 1).copy()}  # noqa: E731
    yield named("PatchTST", "ForPrediction", series, **patchtst, **d)


# --- segmentation-models-pytorch, torchaudio, ultralytics


def _segmentation() -> Iterator[ZooModel]:
    kinds = (
        "Unet",
        "FPN",
        "DeepLabV3Plus",
        "Linknet",
        "PSPNet",
        "PAN",
        "UnetPlusPlus",
        "MAnet",
        "UPerNet",
        "Segformer",
    )
    for kind in kinds:
        encoder = "mobilenet_v2" if kind in ("Unet", "FPN", "DeepLabV3Plus") else "resnet18"

        def build(kind: str = kind, encoder: str = encoder) -> nn.Module:
            library = importlib.import_module("segmentation_models_pytorch")
            return getattr(library, kind)(encoder_name=encoder, encoder_weights=None, classes=4)

        yield built(f"smp.{kind}", build, images_of(128 if kind == "PAN" else 96))


def _torchaudio() -> Iterator[ZooModel]:
    def frames(rng: np.random.Generator, count: int, bands: int, length: int) -> NDArray[Any]:
        return spectra(rng, count, bands, length).transpose(0, 2, 1).copy()

    def measured(rng: np.random.Generator, count: int, bands: int, length: int, extra: int = 0) -> Arrays:
        return {"input": frames(rng, count, bands, length + extra), "lengths": np.full(count, length)}

    letters = small("torchaudio.models", "Wav2Letter", num_features=20, input_type="mfcc")
    yield built("torchaudio.wav2letter", letters, lambda rng, n: {"x": spectra(rng, n, 20, 64)})
    speech = small("torchaudio.models", "DeepSpeech", n_feature=20, n_hidden=64)
    yield built("torchaudio.deepspeech", speech, lambda rng, n: {"x": frames(rng, n, 20, 40)[:, None]})
    sizes = {"input_dim": 40, "num_heads": 4, "ffn_dim": 80, "num_layers": 2}
    conformer = small("torchaudio.models", "Conformer", **sizes, depthwise_conv_kernel_size=7)
    yield built("torchaudio.conformer", conformer, lambda rng, n: measured(rng, n, 40, 48))
    emformer = small("torchaudio.models", "Emformer", **sizes, segment_length=16, right_context_length=4)
    yield built("torchaudio.emformer", emformer, lambda rng, n: measured(rng, n, 40, 48, 4))
    tas = {
        "enc_num_feats": 32,
        "msk_num_feats": 16,
        "msk_num_hidden_feats": 32,
        "msk_num_layers": 3,
        "msk_num_stacks": 2,
    }
    yield built(
        "torchaudio.convtasnet",
        small("torchaudio.models", "ConvTasNet", **tas),
        lambda rng, n: {"x": waves(rng, n, 2000)[:, None]},
    )
    convolutions = [(32, 10, 5), (32, 3, 2), (32, 3, 2)]
    extractor = {"mode": "layer_norm", "conv_layer_config": convolutions, "conv_bias": True}
    encoder = {"embed_dim": 96, "pos_conv_kernel": 16, "pos_conv_groups": 4, "num_layers": 2, "num_heads": 4}
    drops = {f"encoder_{name}": 0.0 for name in ("projection_dropout", "attention_dropout", "ff_interm_dropout")}
    wav2vec = {f"extractor_{name}": value for name, value in extractor.items()}
    wav2vec |= {f"encoder_{name}": value for name, value in encoder.items()} | drops
    rest = {"encoder_dropout": 0.0, "encoder_layer_drop": 0.0, "encoder_ff_interm_features": 192, "aux_num_out": 32}
    wave2vec = small("torchaudio.models", "wav2vec2_model", **wav2vec, **rest, encoder_layer_norm_first=True)
    yield built("torchaudio.wav2vec2", wave2vec, lambda rng, n: {"waveforms": waves(rng, n, 4000)})


def _ultralytics() -> Iterator[ZooModel]:
    names = (
        "yolov8n",
        "yolo11n",
        "yolov8n-cls",
        "yolov8n-seg",
        "yolov5n",
        "yolov8n-pose",
        "yolo12n",
        "yolov10n",
        "yolo26n",
    )
    for name in (*names, "yolov9t", "yolov3-tiny", "yolov8n-obb", "yolo11n-seg"):

        def build(name: str = name) -> nn.Module:
            # nothing of it may look for updates, or write settings to the user's folder
            os.environ["YOLO_OFFLINE"] = "true"
            os.environ.setdefault("YOLO_CONFIG_DIR", str(ROOT / "build/zoo/ultralytics"))
            Path(os.environ["YOLO_CONFIG_DIR"]).mkdir(parents=True, exist_ok=True)
            net = importlib.import_module("ultralytics").YOLO(f"{name}.yaml", verbose=False).model
            net.model[-1].export = True  # as its own exporter sets it: no training outputs beside the prediction
            return net

        yield built(f"ultralytics.{name}", build, images_of(96))


# --- shared/cases/models


def _case_module(folder: str, file: str) -> Any:
    path = (CASES or Path()) / folder / file
    sys.path.insert(0, str(path.parent))  # it imports its neighbours
    try:
        spec = importlib.util.spec_from_file_location(f"case_{folder}_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
        sys.modules[module.__name__] = module
        spec.loader.exec_module(module)  # type: ignore[union-attr]
    finally:
        sys.path.remove(str(path.parent))
    return module


def _case(folder: str, function: str, data: Data, file: str = "m.py") -> ZooModel:
    def make() -> Any:
        made = getattr(_case_module(folder, file), function)()
        return made.eval() if hasattr(made, "eval") else made

    return ZooModel(f"cases.{folder}.{function}", make, data)


def _sampled(folder: str) -> Data:
    return lambda rng, count: _case_module(folder, "m.py").samples(count, int(rng.integers(2**31)))


def _drawn(folder: str, file: str, function: str, name: str | None, *arguments: Any) -> Data:
    def data(rng: np.random.Generator, count: int) -> Arrays:
        got = getattr(_case_module(folder, file), function)(rng, count, *arguments)
        got = got[0] if isinstance(got, tuple) else got
        return got if name is None else {name: got}

    return data


def _cases() -> Iterator[ZooModel]:
    if CASES is None:
        return

    functions = (
        "views.yolox views.shift views.then centernet.model infmask.model catfix.model siam.siam inplace.model"
        " mattex86.model pixshuf.model same1d.model same_even.model shapescale.model sigshape.getitem_s sigview.softmax"
        " softarg.model yolohead.two ceilpool.avgpad bnfold.dense convs.deform convs.warp convs.spectral"
    )
    for name in functions.split():
        folder, _, function = name.partition(".")
        yield _case(folder, function, _sampled(folder))
    for function in ("stft", "rfft"):
        yield _case("stft", function, _drawn("stft", "m.py", "waves", "wave"))
    yield _case("tabular", "one", _drawn("tabular", "m.py", "rows", "features"))
    yield _case("dlrm", "rec", _drawn("dlrm", "m.py", "rows", None))
    yield _case("tied", "lm", _drawn("tied", "m.py", "tokens", None))
    yield _case("hfbert", "sentence", _drawn("hfbert", "hf.py", "texts", None), "hf.py")

    def signals(rng: np.random.Generator, count: int) -> Arrays:
        return {"x": (np.cumsum(rng.normal(size=(count, 6, 64)), 2) * 0.2).astype(np.float32)}

    for function in ("scripted", "compiled", "lightning", "vararg"):
        yield _case("jit", function, signals)
    shaped = {"linear": (12,), "conv1d": (12, 40), "conv2d": (12, 16, 16)}
    for kind, shape in shaped.items():

        def data(rng: np.random.Generator, count: int, shape: tuple[int, ...] = shape) -> Arrays:
            made = _case_module("functional", "m.py")._d(shape, int(rng.integers(2**31)))
            return {"x": made[:count]}

        yield _case("functional", f"{kind}_n", data)


@functools.cache
def zoo() -> dict[str, ZooModel]:
    """Return all models by name; those of several libraries take turns, so that any first part has all kinds."""
    queues = [
        list(make())
        for make in (
            _torchvision,
            _torchvision_detection,
            _torchvision_others,
            _timm,
            _transformers,
            _segmentation,
            _torchaudio,
            _ultralytics,
            _cases,
        )
    ]
    places = [((index + 0.5) / len(queue), one) for queue in queues for index, one in enumerate(queue)]
    return {one.name: one for _, one in sorted(places, key=lambda place: place[0])}
