/* Preloaded into an emulated runner while its instructions are counted: every look at the clock is marked for
 * count_plugin.c, and the time is how often anybody looked, in microseconds. So a profile's times tell which two of
 * the plugin's lines an operator lies between.
 */
#include <time.h>

static unsigned long looks;

__attribute__((visibility("default"))) int clock_gettime(clockid_t clock, struct timespec *now) {
  (void)clock;
  __asm__ volatile("hint #120" ::: "memory");
  unsigned long ns = ++looks * 1000;
  now->tv_sec = (time_t)(ns / 1000000000);
  now->tv_nsec = (long)(ns % 1000000000);
  return 0;
}
