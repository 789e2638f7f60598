/* A QEMU TCG plugin that counts A64 instructions by class, and the bytes that they load and store.
 *
 *   qemu-aarch64 -plugin count_plugin.so,out=counts.txt …
 *
 * Counts are summed when a block is translated and added each time it runs. A marker, an unallocated HINT that every
 * A64 core runs as NOP, writes a line to `out`: the marker's number, then the counters so far. What one run costs is
 * the difference between two lines of the same marker, so that start-up and first-run work never count. The block of
 * a marker counts as a whole before its line is written; that cancels in the difference.
 *
 * What a program does before its first marker is neither counted nor slowed down: that is libtorch's start, 97% of all
 * instructions of a small model's run. At that marker QEMU forgets what it translated, and translates it anew to count.
 *
 * Written against plugin API version 1 (QEMU 7.2). Debian ships no qemu-plugin.h, so what is used is declared here.
 */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "a64_classes.h"
#include "caches.h"

typedef uint64_t qemu_plugin_id_t;
typedef struct {
  const char *target_name;
  struct { int min, cur; } version;
  bool system_emulation;
  union { struct { int smp_vcpus, max_vcpus; } system; };
} qemu_info_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
enum qemu_plugin_op { QEMU_PLUGIN_INLINE_ADD_U64 };
enum qemu_plugin_cb_flags { QEMU_PLUGIN_CB_NO_REGS };
enum qemu_plugin_mem_rw { QEMU_PLUGIN_MEM_R = 1, QEMU_PLUGIN_MEM_W, QEMU_PLUGIN_MEM_RW };
typedef uint32_t qemu_plugin_meminfo_t;
void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, void (*)(qemu_plugin_id_t, struct qemu_plugin_tb *));
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *, enum qemu_plugin_op, void *, uint64_t);
void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *, void (*)(unsigned int, void *),
                                            enum qemu_plugin_cb_flags, void *);
void qemu_plugin_register_vcpu_mem_cb(struct qemu_plugin_insn *,
                                      void (*)(unsigned int, qemu_plugin_meminfo_t, uint64_t, void *),
                                      enum qemu_plugin_cb_flags, enum qemu_plugin_mem_rw, void *);
unsigned int qemu_plugin_mem_size_shift(qemu_plugin_meminfo_t);
void qemu_plugin_reset(qemu_plugin_id_t, void (*)(qemu_plugin_id_t));
void qemu_plugin_register_atexit_cb(qemu_plugin_id_t, void (*)(qemu_plugin_id_t, void *), void *);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *);

__attribute__((visibility("default"))) int qemu_plugin_version = 1;

enum { BYTES_LOADED = A64_CLASSES, BYTES_STORED, LINES, COUNTERS = LINES + CACHE_LEVELS };

/* HINT #120 to #127, of which none is allocated */
#define FIRST_MARKER 0xd5032f1fu

static uint64_t counters[COUNTERS];
static FILE *out;

static void on_marker(unsigned int vcpu, void *marker) {
  (void)vcpu;
  fprintf(out, "%lu", (unsigned long)(uintptr_t)marker);
  for (size_t i = 0; i < COUNTERS; i++) fprintf(out, " %llu", (unsigned long long)counters[i]);
  fputc('\n', out);
}

/* The marker's number, 0 to 7, or -1. */
static int marker_of(uint32_t word) {
  return (word & 0xffffff1fu) == FIRST_MARKER ? (int)a64_bits(word, 7, 5) : -1;
}

static void on_access(unsigned int vcpu, qemu_plugin_meminfo_t info, uint64_t address, void *data) {
  (void)vcpu, (void)data;
  cache_access(address, 1u << qemu_plugin_mem_size_shift(info), &counters[LINES]);
}

static void on_translated(qemu_plugin_id_t id, struct qemu_plugin_tb *tb) {
  uint64_t sums[COUNTERS] = {0};
  (void)id;
  for (size_t i = 0, n = qemu_plugin_tb_n_insns(tb); i < n; i++) {
    struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);
    uint32_t word;
    memcpy(&word, qemu_plugin_insn_data(insn), sizeof word);
    struct a64_insn decoded = a64_decode(word);
    sums[decoded.class]++;
    sums[BYTES_LOADED] += decoded.bytes_loaded;
    sums[BYTES_STORED] += decoded.bytes_stored;
    if (decoded.bytes_loaded || decoded.bytes_stored)
      qemu_plugin_register_vcpu_mem_cb(insn, on_access, QEMU_PLUGIN_CB_NO_REGS, QEMU_PLUGIN_MEM_RW, NULL);
    int marker = marker_of(word);
    if (marker >= 0)
      qemu_plugin_register_vcpu_insn_exec_cb(insn, on_marker, QEMU_PLUGIN_CB_NO_REGS, (void *)(uintptr_t)marker);
  }
  for (size_t i = 0; i < COUNTERS; i++)
    if (sums[i]) qemu_plugin_register_vcpu_tb_exec_inline(tb, QEMU_PLUGIN_INLINE_ADD_U64, &counters[i], sums[i]);
}

static qemu_plugin_id_t self;

static void start_counting(qemu_plugin_id_t id);

static void on_first_marker(unsigned int vcpu, void *marker) {
  static bool is_starting; /* QEMU resets once the block has ended */
  on_marker(vcpu, marker);
  if (!is_starting) qemu_plugin_reset(self, start_counting);
  is_starting = true;
}

static void on_translated_before(qemu_plugin_id_t id, struct qemu_plugin_tb *tb) {
  (void)id;
  for (size_t i = 0, n = qemu_plugin_tb_n_insns(tb); i < n; i++) {
    struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);
    uint32_t word;
    memcpy(&word, qemu_plugin_insn_data(insn), sizeof word);
    int marker = marker_of(word);
    if (marker >= 0)
      qemu_plugin_register_vcpu_insn_exec_cb(insn, on_first_marker, QEMU_PLUGIN_CB_NO_REGS, (void *)(uintptr_t)marker);
  }
}

static void finish(qemu_plugin_id_t id, void *data) {
  (void)id, (void)data;
  fclose(out);
}

static void start_counting(qemu_plugin_id_t id) {
  qemu_plugin_register_vcpu_tb_trans_cb(id, on_translated);
  qemu_plugin_register_atexit_cb(id, finish, NULL);
}

__attribute__((visibility("default"))) int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int argc,
                                                               char **argv) {
  if (strcmp(info->target_name, "aarch64") != 0) {
    fprintf(stderr, "count_plugin: made for aarch64, this is %s\n", info->target_name);
    return 1;
  }
  if (argc != 1 || strncmp(argv[0], "out=", 4) != 0) {
    fprintf(stderr, "count_plugin: expected out=FILE\n");
    return 1;
  }
  out = fopen(argv[0] + 4, "w");
  if (!out) {
    perror(argv[0] + 4);
    return 1;
  }
  self = id;
  qemu_plugin_register_vcpu_tb_trans_cb(id, on_translated_before);
  qemu_plugin_register_atexit_cb(id, finish, NULL);
  return 0;
}
