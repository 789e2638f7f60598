"""The decoder of the count plugin against what the cross assembler makes of each instruction."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from edgeq.core.results.measured import CLASSES
from edgeq.verify.emulate.install import SOURCES

ASSEMBLER = "aarch64-linux-gnu-as"
pytestmark = pytest.mark.skipif(shutil.which(ASSEMBLER) is None, reason="apt-get install g++-aarch64-linux-gnu")

# instruction: class, bytes loaded, bytes stored
KNOWN = {
    # vector multiplies
    "fmla v0.4s, v1.4s, v2.4s": "fp_mac",
    "fmla v0.2s, v1.2s, v2.2s": "fp_mac",
    "fmls v0.2d, v1.2d, v2.2d": "fp_mac",
    "fmla v16.4s, v1.4s, v2.s[3]": "fp_mac",
    "fmla v16.8h, v1.8h, v2.h[7]": "fp_mac",
    "fmla v0.8h, v1.8h, v2.8h": "fp_mac",
    "fmls v0.8h, v1.8h, v2.8h": "fp_mac",
    "fmul v0.4s, v1.4s, v2.4s": "fp_mac",
    "fmul v0.4s, v1.4s, v2.s[0]": "fp_mac",
    "fmul v0.8h, v1.8h, v2.8h": "fp_mac",
    "fmulx v0.4s, v1.4s, v2.4s": "fp_mac",
    "fmlal v0.4s, v1.4h, v2.4h": "fp_mac",
    "fmlal2 v0.4s, v1.4h, v2.h[1]": "fp_mac",
    "fcmla v0.4s, v1.4s, v2.4s, #90": "fp_mac",
    "bfdot v0.4s, v1.8h, v2.8h": "fp_mac",
    "bfmmla v0.4s, v1.8h, v2.8h": "fp_mac",
    "bfmlalb v0.4s, v1.8h, v2.8h": "fp_mac",
    "smlal v0.4s, v1.4h, v2.4h": "int_mac",
    "smlal2 v0.4s, v1.8h, v2.h[5]": "int_mac",
    "umlsl v0.8h, v1.8b, v2.8b": "int_mac",
    "smull v0.8h, v1.8b, v2.8b": "int_mac",
    "umull2 v0.4s, v1.8h, v2.h[0]": "int_mac",
    "sqdmlal v0.4s, v1.4h, v2.4h": "int_mac",
    "mla v0.4s, v1.4s, v2.4s": "int_mac",
    "mla v0.4s, v1.4s, v2.s[1]": "int_mac",
    "mls v0.16b, v1.16b, v2.16b": "int_mac",
    "mul v0.8h, v1.8h, v2.8h": "int_mac",
    "mul v0.4s, v1.4s, v2.s[1]": "int_mac",
    "sdot v0.4s, v1.16b, v2.16b": "dot",
    "udot v0.2s, v1.8b, v2.8b": "dot",
    "sdot v0.4s, v1.16b, v2.4b[3]": "dot",
    "udot v0.4s, v1.16b, v2.4b[0]": "dot",
    "usdot v0.4s, v1.16b, v2.16b": "dot",
    "usdot v0.4s, v1.16b, v2.4b[1]": "dot",
    "sudot v0.4s, v1.16b, v2.4b[1]": "dot",
    "smmla v0.4s, v1.16b, v2.16b": "i8mm",
    "ummla v0.4s, v1.16b, v2.16b": "i8mm",
    "usmmla v0.4s, v1.16b, v2.16b": "i8mm",
    # other vector instructions that lie beside them
    "sadalp v0.4s, v1.8h": "neon",
    "saddw v0.8h, v1.8h, v2.8b": "neon",
    "sabal v0.8h, v1.8b, v2.8b": "neon",
    "pmul v0.8b, v1.8b, v2.8b": "neon",
    "sqrdmulh v0.4s, v1.4s, v2.4s": "neon",
    "sqrdmulh v0.4s, v1.4s, v2.s[0]": "neon",
    "sqrdmlah v0.4s, v1.4s, v2.4s": "neon",
    "fadd v0.4s, v1.4s, v2.4s": "neon",
    "fmax v0.4s, v1.4s, v2.4s": "neon",
    "fcvtns v0.4s, v1.4s": "neon",
    "sqxtn v0.4h, v1.4s": "neon",
    "sshr v0.4s, v1.4s, #3": "neon",
    "movi v0.16b, #0": "neon",
    "dup v0.4s, w1": "neon",
    "tbl v0.16b, {v1.16b}, v2.16b": "neon",
    "ext v0.16b, v1.16b, v2.16b, #3": "neon",
    "aese v0.16b, v1.16b": "neon",
    "fmov v0.4s, #1.0": "neon",
    # loads
    "ldr w0, [x1]": ("load", 4, 0),
    "ldr x0, [x1, #8]!": ("load", 8, 0),
    "ldrb w0, [x1, x2]": ("load", 1, 0),
    "ldrsh x0, [x1], #2": ("load", 2, 0),
    "ldrsw x0, [x1, #4]": ("load", 4, 0),
    "ldursb w0, [x1, #-1]": ("load", 1, 0),
    "ldp x0, x1, [x2]": ("load", 16, 0),
    "ldp w0, w1, [x2], #8": ("load", 8, 0),
    "ldpsw x0, x1, [x2]": ("load", 8, 0),
    "ldp q0, q1, [x2], #32": ("load", 32, 0),
    "ldp d0, d1, [x2]": ("load", 16, 0),
    "ldp s0, s1, [x2]": ("load", 8, 0),
    "ldr q0, [x1]": ("load", 16, 0),
    "ldr d0, [x1, #8]": ("load", 8, 0),
    "ldr s0, [x1], #4": ("load", 4, 0),
    "ldr b0, [x1]": ("load", 1, 0),
    "ldur q0, [x1, #-16]": ("load", 16, 0),
    "ldr q0, 0": ("load", 16, 0),
    "ldr x0, 0": ("load", 8, 0),
    "ldrsw x0, 0": ("load", 4, 0),
    "ld1 {v0.16b}, [x0]": ("load", 16, 0),
    "ld1 {v0.8b}, [x0], #8": ("load", 8, 0),
    "ld1 {v0.4s, v1.4s, v2.4s, v3.4s}, [x0], #64": ("load", 64, 0),
    "ld1 {v0.4s, v1.4s, v2.4s}, [x0], x1": ("load", 48, 0),
    "ld2 {v0.4s, v1.4s}, [x0]": ("load", 32, 0),
    "ld3 {v0.8b, v1.8b, v2.8b}, [x0]": ("load", 24, 0),
    "ld4 {v0.4s, v1.4s, v2.4s, v3.4s}, [x0]": ("load", 64, 0),
    "ld1 {v0.s}[2], [x0], #4": ("load", 4, 0),
    "ld1 {v0.d}[1], [x0]": ("load", 8, 0),
    "ld1 {v0.b}[5], [x0]": ("load", 1, 0),
    "ld1 {v0.h}[5], [x0]": ("load", 2, 0),
    "ld2 {v0.s, v1.s}[1], [x0]": ("load", 8, 0),
    "ld1r {v0.4s}, [x0]": ("load", 4, 0),
    "ld1r {v0.2d}, [x0], #8": ("load", 8, 0),
    "ld2r {v0.8h, v1.8h}, [x0]": ("load", 4, 0),
    "ldxr x0, [x1]": ("load", 8, 0),
    "ldaxrb w0, [x1]": ("load", 1, 0),
    "ldxp x0, x1, [x2]": ("load", 16, 0),
    "ldar w0, [x1]": ("load", 4, 0),
    "ldapr x0, [x1]": ("load", 8, 8),  # counted like the atomics that it stands among
    "ldapur w0, [x1]": ("load", 4, 0),
    "prfm pldl1keep, [x0, #64]": ("load", 0, 0),
    "prfum pldl1keep, [x0, #-1]": ("load", 0, 0),
    "cas x0, x1, [x2]": ("load", 8, 8),
    "casp w0, w1, w2, w3, [x4]": ("load", 8, 8),
    "ldadd w0, w1, [x2]": ("load", 4, 4),
    "swp x0, x1, [x2]": ("load", 8, 8),
    # stores
    "str w0, [x1]": ("store", 0, 4),
    "strh w0, [x1], #2": ("store", 0, 2),
    "stp x0, x1, [sp, #-16]!": ("store", 0, 16),
    "stp q0, q1, [x2]": ("store", 0, 32),
    "str q0, [x1], #16": ("store", 0, 16),
    "str d0, [x1, x2]": ("store", 0, 8),
    "st1 {v0.16b, v1.16b}, [x0], #32": ("store", 0, 32),
    "st1 {v0.s}[0], [x0]": ("store", 0, 4),
    "stlr w0, [x1]": ("store", 0, 4),
    "stxr w0, x1, [x2]": ("store", 0, 8),
    "stlur x0, [x1]": ("store", 0, 8),
    # branches
    "b .": "branch",
    "bl .": "branch",
    "b.ne .": "branch",
    "cbz x0, .": "branch",
    "cbnz w0, .": "branch",
    "tbz x0, #3, .": "branch",
    "tbnz w0, #3, .": "branch",
    "br x0": "branch",
    "blr x0": "branch",
    "ret": "branch",
    # the rest
    "add x0, x1, x2": "scalar",
    "add x0, x1, #5": "scalar",
    "subs x0, x0, #8": "scalar",
    "madd x0, x1, x2, x3": "scalar",
    "adrp x0, .": "scalar",
    "movz x0, #7": "scalar",
    "csel x0, x1, x2, hi": "scalar",
    "nop": "scalar",
    "hint #120": "scalar",
    "svc #0": "scalar",
    "mrs x0, fpcr": "scalar",
    "fmadd s0, s1, s2, s3": "scalar",
    "fadd s0, s1, s2": "scalar",
    "fcvtzs w0, s0": "scalar",
    "fmov s0, w0": "scalar",
    "add z0.s, z1.s, z2.s": "other",
    "fmla z0.s, p0/m, z1.s, z2.s": "other",
    "ld1w {z0.s}, p0/z, [x0]": "other",
}


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    folder = tmp_path_factory.mktemp("decoder")
    source = folder / "known.s"
    source.write_text("\n".join(KNOWN) + "\n")
    march = "-march=armv8.6-a+sve+bf16+i8mm+fp16fml+crypto"
    subprocess.run([ASSEMBLER, march, str(source), "-o", str(folder / "known.o")], check=True)
    copy = ["aarch64-linux-gnu-objcopy", "-O", "binary", "-j", ".text", str(folder / "known.o"), str(folder / "known")]
    subprocess.run(copy, check=True)
    data = (folder / "known").read_bytes()
    return [int.from_bytes(data[i : i + 4], "little") for i in range(0, len(data), 4)]


@pytest.fixture(scope="module")
def decode(tmp_path_factory):
    folder = tmp_path_factory.mktemp("decoder")
    source, program = folder / "decode.c", folder / "decode"
    source.write_text(
        """
        #include <stdio.h>
        #include "a64_classes.h"
        int main(void) {
          for (unsigned word; scanf("%u", &word) == 1;) {
            struct a64_insn insn = a64_decode(word);
            printf("%d %u %u\\n", insn.class, insn.bytes_loaded, insn.bytes_stored);
          }
        }
        """
    )
    subprocess.run(["gcc", "-Wall", "-Wextra", "-Werror", f"-I{SOURCES}", str(source), "-o", str(program)], check=True)

    def run(words):
        said = subprocess.run([program], input="\n".join(map(str, words)), capture_output=True, text=True, check=True)
        rows = [tuple(map(int, line.split())) for line in said.stdout.splitlines()]
        return [(CLASSES[index], loaded, stored) for index, loaded, stored in rows]

    return run


def test_every_instruction_has_its_class_and_bytes(words, decode):
    assert len(words) == len(KNOWN)
    wanted = {text: (told, 0, 0) if isinstance(told, str) else told for text, told in KNOWN.items()}
    assert dict(zip(KNOWN, decode(words), strict=True)) == wanted


def test_every_word_decodes(decode):
    odd = [0, 0xFFFFFFFF, 0x0E000000, 0xDEADBEEF, *(1 << bit for bit in range(32)), *range(0, 2**32, 7_919_999)]
    found = decode(odd)
    assert len(found) == len(odd)
    assert max(max(loaded, stored) for _, loaded, stored in found) <= 64
