"""The device's own kernels on this host: the official ARM64 runtimes under user-mode QEMU, or natively on ARM64."""
