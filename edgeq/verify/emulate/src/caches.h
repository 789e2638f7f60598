/* How many 64-byte lines a run fetches into caches of several sizes: a 32 KiB first level, and what misses there into
 * last levels of 256 KiB to 4 MiB, each by itself. Least recently used; addresses are the program's own.
 */
#ifndef EDGEQ_CACHES_H
#define EDGEQ_CACHES_H

#include <stdint.h>
#include <string.h>

enum { CACHE_LINE_BITS = 6, CACHE_WAYS = 16, CACHE_LEVELS = 6, CACHE_MOST_SETS = 4096 };

/* 32, 256, 512 KiB, 1, 2, 4 MiB */
static const uint32_t cache_sets[CACHE_LEVELS] = {32, 256, 512, 1024, 2048, 4096};
static uint64_t cache_lines[CACHE_LEVELS][CACHE_MOST_SETS][CACHE_WAYS];

/* Whether `line` was in the cache; it is its set's most recent one afterwards. */
static inline int cache_touch(int level, uint64_t line) {
  uint64_t *ways = cache_lines[level][line & (cache_sets[level] - 1)];
  uint64_t tag = line + 1; /* 0 is an empty way */
  int way = 0;
  while (way < CACHE_WAYS - 1 && ways[way] != tag) way++;
  int hit = ways[way] == tag;
  memmove(ways + 1, ways, (size_t)way * sizeof *ways);
  ways[0] = tag;
  return hit;
}

/* Count an access of `bytes` at `address` into misses[CACHE_LEVELS]. */
static inline void cache_access(uint64_t address, uint32_t bytes, uint64_t *misses) {
  static uint64_t last = UINT64_MAX;
  uint64_t first = address >> CACHE_LINE_BITS, end = (address + bytes - 1) >> CACHE_LINE_BITS;
  if (first == last && end == last) return;
  for (uint64_t line = first; line <= end; line++) {
    if (cache_touch(0, line)) continue;
    misses[0]++;
    for (int level = 1; level < CACHE_LEVELS; level++) misses[level] += !cache_touch(level, line);
  }
  last = end;
}

#endif
