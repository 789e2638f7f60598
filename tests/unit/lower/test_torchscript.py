from __future__ import annotations

import functools
import hashlib
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from scheme_models import Steps
from small_models import IMAGE, SmallNet, artifact, dataset, folder, forward, loaded, lowered, quantized, small_net
from torch import nn
from torch.jit.mobile import _load_for_lite_interpreter

import edgeq.check
from edgeq.core.errors import UnsupportedError
from edgeq.core.results.model import TensorSpec
from edgeq.core.samples import batches
from edgeq.demo import digits
from edgeq.lower.torchscript import _root, _traced
from edgeq.verify.kernels import kernel_share
from edgeq.verify.runtimes import RUNNERS

ENGINES = ("qnnpack", "x86", "fbgemm")
SCHEMES = ("static-int8", "fp32")
MACS = [("conv", 16 * 16 * 8 * 3 * 9), ("depth", 16 * 16 * 8 * 9), ("hidden.0", 8 * 16), ("head", 16 * 5)]


def small(scheme, backend):
    return artifact("torchscript", scheme, backend)[1]


def outputs(path, batch, backend):
    """Load for the engine, which packs the weights then, and run."""
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = backend
    try:
        module = (_load_for_lite_interpreter if path.suffix == ".ptl" else torch.jit.load)(str(path))
        return forward(module, backend)(batch)
    finally:
        torch.backends.quantized.engine = before


@functools.cache
def digits_int8():
    spec = TensorSpec(name="image", dtype="float32", shape=(1, 1, 32, 32))
    model = loaded(digits.model(), spec)
    return lowered(quantized(model), model.inputs, folder() / "digits")


@pytest.mark.parametrize("backend", ENGINES)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_archive_loads_and_gives_the_graphs_outputs(scheme, backend):
    graph, low = artifact("torchscript", scheme, backend)
    (batch,) = batches(dataset((IMAGE,), 1), (IMAGE,))
    (expected,) = forward(graph.graph, backend)(batch)
    (came,) = outputs(low.path, batch, backend)
    if scheme == "fp32":  # folding conv-bn rounds otherwise
        np.testing.assert_allclose(came, expected, rtol=1e-4, atol=1e-5)
    else:
        assert np.array_equal(came, expected)


@pytest.mark.parametrize("backend", ENGINES)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_layers_have_their_modules_names_and_macs_in_order(scheme, backend):
    low = small(scheme, backend)
    assert [(layer.name, layer.macs) for layer in low.layers] == MACS
    width = 1 if scheme == "static-int8" else 4
    assert [layer.weight_bytes for layer in low.layers] == [width * count for count in (216, 72, 128, 80)]
    assert low.delegated_macs is None


def test_mobile_takes_the_lite_form_and_hosts_the_smaller():
    assert small("static-int8", "qnnpack").path.name == "model.ptl"
    for backend in ("x86", "fbgemm"):
        low = small("static-int8", backend)
        assert [path.name for path in low.path.parent.iterdir()] == [low.path.name]
        # packed for these engines, the lite form holds the weights twice
        assert low.path.name == "model.pt"


def test_versions_passes_and_operators_are_recorded():
    low = small("static-int8", "qnnpack")
    assert low.bytecode_version == 8
    assert low.passes == ("trace", "freeze", "fuse_add_relu")
    assert "quantized::conv2d_relu.new" in low.operators
    assert low.runtime_version == torch.__version__.partition("+")[0]


@pytest.mark.slow
def test_digits_need_no_operator_that_the_last_android_runtime_lacks():
    known = set(Path("edgeq/check/torch-2.1.0.ops.txt").read_text().split())
    assert set(digits_int8().operators) <= known
    assert "quantized::conv2d_relu.new" in digits_int8().operators


@pytest.mark.parametrize("backend", ENGINES)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_no_path_and_no_time_of_this_machine_is_in_the_archive(scheme, backend):
    path = small(scheme, backend).path
    own = [str(Path.cwd()), "site-packages", "/tmp", path.parent.name, str(Path.home()), "small_models"]  # noqa: S108
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            assert entry.date_time == (1980, 1, 1, 0, 0, 0)
            assert not entry.filename.endswith(".debug_pkl")
            found = [text for text in own if text.encode() in archive.read(entry) or text in entry.filename]
            assert not found, entry.filename


@pytest.mark.parametrize("backend", ENGINES)
def test_entries_are_stored_and_aligned(backend):
    path = small("static-int8", backend).path
    data = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            assert entry.compress_type == zipfile.ZIP_STORED
            name, extra = (int.from_bytes(data[entry.header_offset + at :][:2], "little") for at in (26, 28))
            assert (entry.header_offset + 30 + name + extra) % 64 == 0
            assert archive.read(entry) == data[entry.header_offset + 30 + name + extra :][: entry.file_size]


def test_archives_do_not_depend_on_what_was_traced_before(tmp_path):
    for scheme in SCHEMES:
        first, again = (lowered(quantized(small_net(), scheme=scheme), (IMAGE,), tmp_path / scheme / n) for n in "ab")
        assert first.path.read_bytes() == again.path.read_bytes()


AGAIN = """
import sys, hashlib
sys.path.insert(0, {unit!r})
from small_models import artifact
for backend in ("x86", "qnnpack"):
    path = artifact("torchscript", "static-int8", backend)[1].path
    print(hashlib.sha256(path.read_bytes()).hexdigest())
"""


@pytest.mark.slow
def test_archives_are_byte_identical_in_another_process_and_folder():
    text = AGAIN.format(unit=str(Path(__file__).parent.parent))
    ran = subprocess.run([sys.executable, "-W", "ignore", "-c", text], capture_output=True, text=True, check=True)
    ours = [small("static-int8", backend).path.read_bytes() for backend in ("x86", "qnnpack")]
    assert ran.stdout.split() == [hashlib.sha256(data).hexdigest() for data in ours]


def test_the_engine_is_restored_and_an_unknown_one_refused(tmp_path):
    before = torch.backends.quantized.engine
    small("fp32", next(name for name in ENGINES if name != before))
    assert torch.backends.quantized.engine == before
    with pytest.raises(UnsupportedError, match="no quantized engine 'hexagon'"):
        lowered(quantized(loaded(SmallNet), scheme="fp32"), (IMAGE,), tmp_path, backend="hexagon")


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.register_buffer("gain", torch.tensor(2.0))

    def forward(self, x):
        y = self.conv(x) * float(self.gain)  # of a buffer: the same in every run
        if y.shape[1] != 4:
            return y
        return self.ending(y)

    def ending(self, y):
        return y


class Deciding(Branching):
    def ending(self, y):
        return -y if y.mean() > 0 else y  # a trace would keep one of the two


class Reading(Branching):
    def ending(self, y):
        return y * y.max().item()


class Leaving(Branching):
    def ending(self, y):
        return torch.from_numpy(y.numpy() * 2)


@pytest.mark.parametrize("kind", [Deciding, Reading, Leaving])
def test_a_trace_that_would_keep_one_runs_values_is_refused(tmp_path, kind):
    model = loaded(kind)
    with pytest.raises(UnsupportedError, match=r"test_torchscript\.py:\d+"):
        lowered(quantized(model, scheme="fp32"), model.inputs, tmp_path)


def test_that_holds_for_what_fx_left_in_float_too(tmp_path):
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(3, 3, 1)
            self.opaque = Deciding()

        def forward(self, x):
            return self.opaque(self.first(x))

    model = loaded(Wrapped)
    with pytest.raises(UnsupportedError, match=r"in Deciding\.ending"):
        lowered(quantized(model, keep=["opaque"]), model.inputs, tmp_path)


def test_shapes_and_constants_in_python_are_no_obstacle(tmp_path):
    model = loaded(Branching)
    assert lowered(quantized(model, scheme="fp32"), model.inputs, tmp_path).path.exists()


class Blocks(nn.Module):
    """Blocks that run as one operator, in float, whatever is quantized around them."""

    def __init__(self):
        super().__init__()
        self.memory = nn.LSTM(8, 16, batch_first=True)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        y, _ = self.memory(x)
        y, _ = self.attention(y, y, y, need_weights=False)
        return self.head(torch.nn.functional.scaled_dot_product_attention(y[:, None], y[:, None], y[:, None])[:, 0])


def test_recurrent_and_attention_blocks_are_counted(tmp_path):
    spec = TensorSpec(name="x", dtype="float32", shape=(1, 5, 8))
    model = loaded(Blocks, spec)
    layers = lowered(quantized(model, scheme="fp32"), model.inputs, tmp_path).layers
    assert sum(layer.macs for layer in layers) == (
        5 * (64 * 8 + 64 * 16)  # four gates of 16, from the input and from the hidden state
        + 5 * (4 * 16 * 16 + 2 * 5 * 16)  # query, key, value and output projections; scores and their sums
        + 5 * 5 * (16 + 16)
        + 5 * 16 * 4
    )


class Kinds(nn.Module):
    def __init__(self):
        super().__init__()
        self.grouped = nn.Conv2d(3, 6, 3, padding=1, groups=3)
        self.up = nn.ConvTranspose2d(6, 4, 2, stride=2)

    def forward(self, x):
        return {"up": self.up(self.grouped(x)), "product": x @ x.transpose(-1, -2)}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_macs_of_grouped_and_transposed_convolutions_and_a_product(tmp_path, scheme):
    model = loaded(Kinds)
    low = lowered(quantized(model, scheme=scheme), model.inputs, tmp_path)
    assert sorted(layer.macs for layer in low.layers) == sorted(
        [16 * 16 * 6 * 9, 16 * 16 * 6 * 4 * 4, 3 * 16 * 16 * 16]
    )
    (batch,) = batches(dataset((IMAGE,), 1), (IMAGE,))
    assert [array.shape for array in outputs(low.path, batch, "qnnpack")] == [(1, 4, 32, 32), (1, 3, 16, 16)]


def test_the_inputs_of_the_trace_are_left_out_and_code_of_their_name_is_not(tmp_path):
    from edgeq.lower.torchscript_archive import strip_archive

    names = ["m/traced_inputs.pkl", "m/traced_inputs/0", "m/code/__torch__/traced_inputs/net.py", "m/data.pkl"]
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"")
    strip_archive(path)
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == names[2:]


def test_an_entry_that_names_a_path_is_refused(tmp_path):
    from edgeq.lower.torchscript_archive import strip_archive

    path = tmp_path / "model.ptl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data/0", b"/home/me/models/net.py")  # raw tensor bytes may hold anything
        archive.writestr("model/code/net.py.debug_pkl", b"/home/me/models/net.py")
    strip_archive(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("model/bytecode.pkl", b"\x80\x02 /home/me/models/net.py q")
    with pytest.raises(UnsupportedError, match=re.escape("bytecode.pkl holds a path")):
        strip_archive(path)
    assert [p.name for p in tmp_path.iterdir()] == ["model.ptl"]


class TwoHeads(nn.Module):
    """Picks a layer by what `pick` reads of the input, or writes into it."""

    def __init__(self, pick):
        super().__init__()
        self.few, self.many = nn.Linear(16, 4), nn.Linear(16, 4)
        self.pick = pick

    def forward(self, x):
        return self.pick(self, x)


ROWS = TensorSpec(name="x", dtype="float32", shape=(2, 16))


def in_a_table(x):
    table = torch.zeros(4)
    table[0] = x.max()
    return table


READS = {
    "nonzero's shape": lambda net, x: net.many(x) if torch.nonzero(x > 0.5).shape[0] > 4 else net.few(x),
    "len": lambda net, x: net.many(x) if len(torch.nonzero(x > 0.5)) > 4 else net.few(x),
    "mask's numel": lambda net, x: net.many(x) if x[x > 0.5].numel() else net.few(x),
    "where": lambda net, x: net.many(x) if torch.where(x > 0.5)[0].size(0) else net.few(x),
    "unique": lambda net, x: net.many(x) if len(x.unique()) > 3 else net.few(x),
    "range": lambda net, x: sum((net.few(x) for _ in range((x > 0.5).nonzero().size(0))), net.many(x)),
    "tolist": lambda net, x: net.few(x) * x[0].tolist()[0],
    "item": lambda net, x: net.few(x) * x.max().item(),
    "int": lambda net, x: net.few(x) + int(x.argmax()),
    "equal": lambda net, x: net.many(x) if torch.equal(x[0], x[1]) else net.few(x),
    "in": lambda net, x: net.many(x) if 1.0 in x else net.few(x),
    "rows": lambda net, x: net.many(x) if any(row.max() > 0.5 for row in x) else net.few(x),
    "written to": lambda net, x: net.many(x) if in_a_table(x).sum() > 0.5 else net.few(x),
}


@pytest.mark.parametrize("pick", READS.values(), ids=READS.keys())
def test_a_branch_on_the_input_is_refused_with_its_line(tmp_path, pick):
    model = loaded(TwoHeads(pick), ROWS)
    with pytest.raises(
        UnsupportedError,
        match=(
            r"input-dependent tensor into a Python value at "
            r".*test_torchscript\.py:\d+"
        ),
    ) as caught:
        lowered(quantized(model, scheme="fp32"), model.inputs, tmp_path)
    assert caught.value.exit_code == 3


TO_NUMPY = {
    "numpy": lambda net, x: net.many(x) if x.numpy().max() > 0.5 else net.few(x),
    "asarray": lambda net, x: net.many(x) if np.asarray(x).max() > 0.5 else net.few(x),
    "dlpack": lambda net, x: net.many(x) if np.from_dlpack(x).max() > 0.5 else net.few(x),
}


@pytest.mark.parametrize("pick", TO_NUMPY.values(), ids=TO_NUMPY.keys())
def test_values_that_leave_for_numpy_are_refused_with_the_line_of_forward(tmp_path, pick):
    model = loaded(TwoHeads(pick), ROWS)
    with pytest.raises(UnsupportedError, match=r"converts a tensor to NumPy at .*test_torchscript\.py:\d+"):
        lowered(quantized(model, scheme="fp32"), model.inputs, tmp_path)


KEEPS = {
    "sum of a mask": lambda net, x: net.few(x) + x[x > 0.5].sum(),
    "a count in a product": lambda net, x: net.few(x) * torch.nonzero(x > 0.5).shape[0],
    "static sizes": lambda net, x: (net.many(x) if x.size(1) > 4 else net.few(x)).view(x.shape[0], -1),
    "in place": lambda net, x: net.few(x.sub_(0.5).mul_(2.0)),
    "a view in place": lambda net, x: (x[:, :4].zero_(), net.few(x))[1],
}


@pytest.mark.parametrize("pick", KEEPS.values(), ids=KEEPS.keys())
def test_an_artifact_follows_its_input_and_leaves_it_alone(tmp_path, pick):
    model = loaded(TwoHeads(pick), ROWS)
    path = lowered(quantized(model, scheme="fp32"), model.inputs, tmp_path).path
    artifact = _load_for_lite_interpreter(str(path))
    for seed in range(3):
        given = torch.rand(2, 16, generator=torch.Generator().manual_seed(seed)) ** (seed + 1)
        kept = given.clone()
        with torch.no_grad():
            assert torch.allclose(artifact(given), model.model(kept.clone()), atol=1e-6)
        assert torch.equal(given, kept)


def test_a_module_of_an_exported_program_is_traced():
    """torch.export's modules refuse train() and eval(), also where another module passes it on."""
    inputs = (torch.rand(1, 3, 16, 16),)
    exported = torch.export.export(SmallNet().eval(), inputs).module()
    with pytest.raises(NotImplementedError):
        exported.eval()
    traced = _traced(_root(exported), inputs)
    torch.testing.assert_close(traced(*inputs), exported(*inputs))


class Newer(nn.Module):
    """Operators that came after torch 2.1.0, and a layer whose result nobody reads."""

    def __init__(self):
        super().__init__()
        self.norm, self.plain = nn.RMSNorm(16), nn.RMSNorm((16, 16), elementwise_affine=False, eps=1e-3)
        self.mix, self.pooler, self.kept = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.register_buffer("seen", torch.zeros(1, 16, 16))
        nn.init.uniform_(self.norm.weight, 0.5, 1.5)

    def forward(self, x):
        y = self.mix(self.norm(x))
        self.pooler(y[:, 0]).tanh()
        self.seen.copy_(self.kept(y[:, 0]))
        masked = y.masked_fill(torch.eye(16).bool()[:, :1], -torch.inf)
        rows = torch.zeros_like(y)
        rows[:, 1:] = torch.nn.functional.linear(y[:, 1:], self.mix.weight)
        return self.plain(y), torch.ops.aten._safe_softmax(masked, -1), rows


@pytest.mark.parametrize("backend", ["qnnpack", "x86"])
def test_newer_operators_are_written_as_older_ones_for_phones_and_dead_layers_are_not_counted(tmp_path, backend):
    model = loaded(Newer)
    low = lowered(quantized(model, scheme="fp32", backend=backend), model.inputs, tmp_path, backend=backend)
    known = set((Path(edgeq.check.__file__).parent / "torch-2.1.0.ops.txt").read_text().split())
    assert (set(low.operators) <= known) == (backend == "qnnpack")
    assert [layer.macs for layer in low.layers] == [3 * 16 * 256, 16 * 256, 2 * 16 * 256]
    (batch,) = batches(dataset((IMAGE,), 1), (IMAGE,))
    for came, expected in zip(outputs(low.path, batch, backend), forward(model.model)(batch), strict=True):
        np.testing.assert_allclose(came, expected, rtol=1e-5, atol=1e-6)


class Block(nn.Module):
    """A layer of what it gets, and one of a table of positions; it hands both on."""

    def __init__(self):
        super().__init__()
        self.table, self.mix = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x, positions):
        positions = nn.functional.dropout(positions, 0.1, self.training)
        return self.mix(x) + self.table(positions), positions


class Positions(nn.Module):
    """Tables that layers make of positions alone, as in DeBERTa and Swin V2: freezing computes them."""

    def __init__(self, *, sized):
        super().__init__()
        self.register_buffer("positions", torch.linspace(-1, 1, 256).view(16, 16))
        self.first, self.second = Block(), Block()
        self.sized = sized

    def forward(self, x):
        positions = self.positions.repeat(x.shape[0], 1, 1) if self.sized else self.positions
        return self.second(*self.first(x, positions))[0]


@pytest.mark.parametrize(
    ("sized", "layers"),
    [
        (False, ["first.mix", "second.mix"]),
        # a trace reads the batch's size from the input, and so computes tables of that size each time
        (True, ["first.mix", "first.table", "second.mix", "second.table"]),
    ],
)
@pytest.mark.parametrize("backend", ["qnnpack", "x86"])
def test_layers_of_constants_are_none_of_an_artifact(tmp_path, backend, sized, layers):
    model = loaded(Positions(sized=sized))
    low = lowered(quantized(model, scheme="dynamic-int8", backend=backend), model.inputs, tmp_path, backend=backend)
    assert [layer.name for layer in low.layers] == layers
    runner = RUNNERS["torchscript"](low.path, backend, 1, trusted=True)
    runner.load()
    (batch,) = batches(dataset(model.inputs, 1), model.inputs)
    found = kernel_share("torchscript", runner.profile(batch.inputs, tmp_path), low.layers)
    assert (found.int8_macs, found.why_unmatched) == (1.0, "")


class Fixed(Steps):
    """Steps from a first state that no input decides."""

    def forward(self, x):
        hidden = torch.zeros(1, 32)
        for step in range(4):
            hidden = self.cell(x[:, step], hidden)
        return self.head(hidden)


def test_a_product_by_a_first_state_that_is_folded_is_no_layer(tmp_path):
    spec = TensorSpec(name="x", dtype="float32", shape=(1, 4, 16))
    made = quantized(loaded(Fixed(nn.GRUCell), spec), scheme="dynamic-int8", backend="x86")
    low = lowered(made, (spec,), tmp_path, "torchscript", backend="x86")
    names = [layer.name for layer in low.layers]
    assert (names.count("cell.linear_ih"), names.count("cell.linear_hh"), names.count("head")) == (4, 3, 1)
