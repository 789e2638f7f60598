package edgeq.store

/** Why a bundle was refused, or a model taken out of use. The names are stable: apps report them home. */
enum class Reason {
    /** There is no manifest, or no model is installed. */
    NO_MODEL,

    /** The manifest is not what edgeq writes. */
    MANIFEST_BROKEN,

    /** A newer edgeq wrote it than this store knows. */
    SCHEMA_TOO_NEW,

    /** A gate failed when it was packaged. */
    NOT_ACCEPTED,

    /** Its parameters are random: it can only be measured. */
    RANDOM_WEIGHTS,

    /** Made for another platform. */
    WRONG_PLATFORM,

    /** Made for another instruction set. */
    WRONG_ARCH,

    /** This app has no runtime of that name or backend. */
    RUNTIME_MISSING,

    /** This app's runtime is older than the one that wrote the artifact. */
    RUNTIME_TOO_OLD,

    /** A file that the manifest lists is not there. */
    FILE_MISSING,

    /** A file has another size than the manifest says. */
    FILE_SIZE,

    /** A file has other content than the manifest says. */
    FILE_HASH,

    /** A file is there that the manifest does not list. */
    FILE_NOT_LISTED,

    /** Larger than the store takes. */
    TOO_LARGE,

    /** The golden samples cannot be read, or do not fit the model. */
    GOLDEN_BROKEN,

    /** It was rolled back on this device before. */
    REJECTED_BEFORE,

    /** The disk is full, or cannot be written. */
    DISK,

    /** The process died during its first starts. */
    CRASHED,

    /** The runtime would not load it. */
    LOAD_FAILED,

    /** The runtime failed while running it. */
    RUN_FAILED,

    /** It gave NaN or infinity in its self-test. */
    NOT_FINITE,

    /** It fell under the manifest's floor in its self-test. */
    BELOW_FLOOR,
}

/** What the store throws: a [reason] for programs, a message for people. */
class Refusal(val reason: Reason, message: String, cause: Throwable? = null) : Exception(message, cause)
