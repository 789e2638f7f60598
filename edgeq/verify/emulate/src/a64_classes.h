/* What an A64 instruction does, read from its 32 bits.
 *
 * Encodings: Arm Architecture Reference Manual for A-profile (DDI 0487), chapter C4. Only what a count needs is told
 * apart: the class, and how many bytes are read and written. The first row that matches wins.
 */
#ifndef EDGEQ_A64_CLASSES_H
#define EDGEQ_A64_CLASSES_H

#include <stddef.h>
#include <stdint.h>

enum a64_class {
  A64_FP_MAC,  /* vector float multiply, with or without accumulation */
  A64_INT_MAC, /* vector integer multiply, widening or not, with or without accumulation */
  A64_DOT,     /* SDOT, UDOT, USDOT, SUDOT */
  A64_I8MM,    /* SMMLA, UMMLA, USMMLA */
  A64_NEON,    /* the rest of Advanced SIMD */
  A64_LOAD,    /* prefetches too, which read no bytes */
  A64_STORE,
  A64_BRANCH,
  A64_SCALAR,  /* integer, scalar float, system */
  A64_OTHER,   /* SVE, SME and what is not allocated */
  A64_CLASSES
};

struct a64_insn {
  enum a64_class class;
  uint32_t bytes_loaded;
  uint32_t bytes_stored;
};

/* How the bytes of a memory access are found. */
enum a64_size {
  A64_NONE,
  A64_REGISTER,  /* bits 31:30, and bit 23 of a vector register */
  A64_PAIR,
  A64_LITERAL,
  A64_EXCLUSIVE,
  A64_STRUCTURES, /* LD1 to LD4 of whole registers */
  A64_LANES,      /* LD1 to LD4 of one lane, or replicated */
  A64_ATOMIC,     /* reads and writes */
};

struct a64_row {
  uint32_t mask;
  uint32_t value;
  enum a64_class class;
  enum a64_size size;
};

static const struct a64_row a64_rows[] = {
    /* loads and stores; the class is settled by the direction bit */
    {0xbfbf0000, 0x0c000000, A64_LOAD, A64_STRUCTURES},
    {0xbfa00000, 0x0c800000, A64_LOAD, A64_STRUCTURES},
    {0xbf000000, 0x0d000000, A64_LOAD, A64_LANES},
    {0x3f000000, 0x08000000, A64_LOAD, A64_EXCLUSIVE},
    {0x3b000000, 0x18000000, A64_LOAD, A64_LITERAL},
    {0x3a000000, 0x28000000, A64_LOAD, A64_PAIR},
    {0x3b200c00, 0x38200000, A64_LOAD, A64_ATOMIC},
    {0x3a000000, 0x38000000, A64_LOAD, A64_REGISTER},
    {0x3f200c00, 0x19000000, A64_LOAD, A64_REGISTER}, /* LDAPUR, STLUR */
    {0x0a000000, 0x08000000, A64_OTHER, A64_NONE},    /* tags and memory copies */
    /* vector, three registers of the same kind */
    {0xbf60fc00, 0x0e400c00, A64_FP_MAC, A64_NONE},  /* FMLA, half */
    {0xbf60fc00, 0x0ec00c00, A64_FP_MAC, A64_NONE},  /* FMLS, half */
    {0xbf60fc00, 0x2e401c00, A64_FP_MAC, A64_NONE},  /* FMUL, half */
    {0xbf20fc00, 0x0e20cc00, A64_FP_MAC, A64_NONE},  /* FMLA, FMLS */
    {0xbfa0fc00, 0x2e20dc00, A64_FP_MAC, A64_NONE},  /* FMUL */
    {0xbfa0fc00, 0x0e20dc00, A64_FP_MAC, A64_NONE},  /* FMULX */
    {0xbf20fc00, 0x0e20ec00, A64_FP_MAC, A64_NONE},  /* FMLAL, FMLSL */
    {0x9f20fc00, 0x0e209400, A64_INT_MAC, A64_NONE}, /* MLA, MLS */
    {0xbf20fc00, 0x0e209c00, A64_INT_MAC, A64_NONE}, /* MUL */
    {0x9f20cc00, 0x0e208000, A64_INT_MAC, A64_NONE}, /* SMLAL, SMLSL, SQDMLAL, SQDMLSL and U */
    {0x9f20ec00, 0x0e20c000, A64_INT_MAC, A64_NONE}, /* SMULL, SQDMULL and U */
    {0x9f20fc00, 0x0e009400, A64_DOT, A64_NONE},     /* SDOT, UDOT */
    {0xbfe0fc00, 0x0e809c00, A64_DOT, A64_NONE},     /* USDOT */
    {0x9fe0f400, 0x0e80a400, A64_I8MM, A64_NONE},    /* SMMLA, UMMLA, USMMLA */
    {0xbf20f400, 0x2e00f400, A64_FP_MAC, A64_NONE},  /* BFDOT, BFMLAL */
    {0xbfe0fc00, 0x2e40ec00, A64_FP_MAC, A64_NONE},  /* BFMMLA */
    {0xbf20e400, 0x2e00c400, A64_FP_MAC, A64_NONE},  /* FCMLA */
    /* vector by element */
    {0xbf00b400, 0x0f001000, A64_FP_MAC, A64_NONE},  /* FMLA, FMLS */
    {0x9f00f400, 0x0f009000, A64_FP_MAC, A64_NONE},  /* FMUL, FMULX */
    {0xbfc0b400, 0x0f800000, A64_FP_MAC, A64_NONE},  /* FMLAL, FMLSL */
    {0xbfc0b400, 0x2f808000, A64_FP_MAC, A64_NONE},  /* FMLAL2, FMLSL2 */
    {0xbf009400, 0x2f001000, A64_FP_MAC, A64_NONE},  /* FCMLA */
    {0xbf00b400, 0x2f000000, A64_INT_MAC, A64_NONE}, /* MLA, MLS */
    {0xbf00f400, 0x0f008000, A64_INT_MAC, A64_NONE}, /* MUL */
    {0x9f00b400, 0x0f002000, A64_INT_MAC, A64_NONE}, /* SMLAL, SMLSL and U */
    {0xbf00b400, 0x0f003000, A64_INT_MAC, A64_NONE}, /* SQDMLAL, SQDMLSL */
    {0x9f00f400, 0x0f00a000, A64_INT_MAC, A64_NONE}, /* SMULL, UMULL */
    {0xbf00f400, 0x0f00b000, A64_INT_MAC, A64_NONE}, /* SQDMULL */
    {0x9f00f400, 0x0f00e000, A64_DOT, A64_NONE},     /* SDOT, UDOT */
    {0xbf40f400, 0x0f00f000, A64_DOT, A64_NONE},     /* SUDOT, USDOT */
    {0xbf40f400, 0x0f40f000, A64_FP_MAC, A64_NONE},  /* BFDOT, BFMLAL */
    /* the rest, by the groups of bits 28:25 */
    {0x5e000000, 0x1e000000, A64_SCALAR, A64_NONE},  /* scalar float */
    {0x0e000000, 0x0e000000, A64_NEON, A64_NONE},
    {0x7c000000, 0x14000000, A64_BRANCH, A64_NONE},  /* B, BL */
    {0x7e000000, 0x34000000, A64_BRANCH, A64_NONE},  /* CBZ, CBNZ */
    {0x7e000000, 0x36000000, A64_BRANCH, A64_NONE},  /* TBZ, TBNZ */
    {0xfe000000, 0x54000000, A64_BRANCH, A64_NONE},  /* B.cond */
    {0xfe000000, 0xd6000000, A64_BRANCH, A64_NONE},  /* BR, BLR, RET */
    {0x1c000000, 0x10000000, A64_SCALAR, A64_NONE},  /* data processing, immediate */
    {0x1c000000, 0x14000000, A64_SCALAR, A64_NONE},  /* system, exceptions */
    {0x0e000000, 0x0a000000, A64_SCALAR, A64_NONE},  /* data processing, register */
    {0x00000000, 0x00000000, A64_OTHER, A64_NONE},
};

static inline uint32_t a64_bits(uint32_t word, unsigned high, unsigned low) {
  return (word >> low) & ((2u << (high - low)) - 1);
}

static inline uint32_t a64_structure_bytes(uint32_t word) {
  static const uint8_t registers[16] = {4, 0, 4, 0, 3, 0, 3, 1, 2, 0, 2, 0, 0, 0, 0, 0};
  return registers[a64_bits(word, 15, 12)] * (a64_bits(word, 30, 30) ? 16u : 8u);
}

static inline uint32_t a64_lane_bytes(uint32_t word) {
  uint32_t scale = a64_bits(word, 15, 14), size = a64_bits(word, 11, 10);
  uint32_t elements = (a64_bits(word, 13, 13) << 1 | a64_bits(word, 21, 21)) + 1;
  uint32_t bytes = scale == 3 ? 1u << size : scale == 2 ? (size & 1 ? 8u : 4u) : 1u << scale;
  return elements * bytes;
}

/* Bytes of a single register's access, and in `load` whether it reads. A prefetch reads none. */
static inline uint32_t a64_register_bytes(uint32_t word, int *load) {
  uint32_t size = a64_bits(word, 31, 30), opc = a64_bits(word, 23, 22);
  int authenticated = a64_bits(word, 24, 24) == 0 && a64_bits(word, 21, 21) && a64_bits(word, 10, 10);
  if (a64_bits(word, 26, 26)) {
    *load = opc & 1;
    return opc & 2 ? 16u : 1u << size;
  }
  *load = opc != 0 || authenticated;
  return size == 3 && opc == 2 && !authenticated ? 0u : 1u << size;
}

static inline uint32_t a64_pair_bytes(uint32_t word) {
  uint32_t opc = a64_bits(word, 31, 30);
  return a64_bits(word, 26, 26) ? 8u << opc : opc == 2 ? 16u : 8u;
}

static inline uint32_t a64_literal_bytes(uint32_t word) {
  uint32_t opc = a64_bits(word, 31, 30);
  if (a64_bits(word, 26, 26)) return 4u << opc;
  return opc == 3 ? 0u : opc == 1 ? 8u : 4u;
}

/* LDXR, STXR, LDAR, STLR and pairs; CAS reads and writes. */
static inline uint32_t a64_exclusive_bytes(uint32_t word, int *load, int *both) {
  uint32_t size = a64_bits(word, 31, 30), o2 = a64_bits(word, 23, 23), o1 = a64_bits(word, 21, 21);
  int pair = o1 && !o2;
  *load = (int)a64_bits(word, 22, 22);
  *both = o1 && (o2 || size < 2);
  if (pair && size < 2) return 8u << size; /* CASP: bit 30 alone tells 4 from 8 */
  return (1u << size) << pair;
}

static inline struct a64_insn a64_memory(uint32_t word, enum a64_size size) {
  int load = (int)a64_bits(word, 22, 22), both = 0;
  uint32_t bytes = 0;
  switch (size) {
    case A64_STRUCTURES: bytes = a64_structure_bytes(word); break;
    case A64_LANES: bytes = a64_lane_bytes(word); break;
    case A64_EXCLUSIVE: bytes = a64_exclusive_bytes(word, &load, &both); break;
    case A64_LITERAL: bytes = a64_literal_bytes(word); load = 1; break;
    case A64_PAIR: bytes = a64_pair_bytes(word); break;
    case A64_REGISTER: bytes = a64_register_bytes(word, &load); break;
    case A64_ATOMIC: bytes = 1u << a64_bits(word, 31, 30); both = 1; break;
    case A64_NONE: break;
  }
  struct a64_insn insn = {load || both ? A64_LOAD : A64_STORE, 0, 0};
  if (load || both) insn.bytes_loaded = bytes;
  if (!load || both) insn.bytes_stored = bytes;
  return insn;
}

static inline struct a64_insn a64_decode(uint32_t word) {
  const struct a64_row *row = a64_rows;
  while ((word & row->mask) != row->value) row++;
  if (row->size != A64_NONE) return a64_memory(word, row->size);
  return (struct a64_insn){row->class, 0, 0};
}

#endif
