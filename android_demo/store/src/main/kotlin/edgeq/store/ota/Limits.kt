package edgeq.store.ota

/**
 * The limits of an update.
 *
 * @property maxBytes the largest bundle, and the largest download, that the device takes.
 * @property maxPatchedBytes the largest bundle that is patched, since base and result lie in memory; larger ones come as
 *   full downloads.
 * @property spareBytes that stay free on the disk.
 * @property maxTries how often it is begun to unpack a release that never gets into its place.
 * @property maxRepeats how often a device without a clock takes the same index.
 * @property graceMs after so many milliseconds of waiting for a file [leastBytesPerS] counts, as its average.
 */
data class Limits(
    val maxBytes: Long = 1_000_000_000,
    val maxPatchedBytes: Long = 64L shl 20,
    val spareBytes: Long = 1_000_000,
    val maxTries: Int = 3,
    val maxRepeats: Int = 30,
    val graceMs: Long = 20_000,
    val leastBytesPerS: Long = 1024,
    val chunkBytes: Int = 1 shl 16,
)
