package edgeq.store

/** Why a bundle or an update was refused, or a model taken out of use. The names are stable: apps report them home. */
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

    /** Its test did not run to its end on this device; it is tried again after a day, or with a new app. */
    TRY_LATER,

    /** There was not enough memory to load, test or unpack it. */
    NO_MEMORY,

    /** A file or folder of the store is a link, and what it points to may be somebody else's. */
    LINK,

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

    /** An output fell under the manifest's floor in its self-test, or lost a channel. */
    BELOW_FLOOR,

    /** An update needs a root to begin to trust from, and the app brought none. */
    NO_TRUST,

    /** The channel's index is not signed by the keys that this device trusts; a revoked key is none of them. */
    WRONG_KEY,

    /** The channel shows something older than this device has seen. */
    ROLLBACK,

    /** The channel's index has expired, or did not change for too long on a device without a clock. */
    FREEZE,

    /** Parts of the channel do not belong together. */
    MIX_AND_MATCH,

    /** The channel's index is damaged, was tampered with, or says what no index may. */
    INDEX_BROKEN,

    /** A newer edgeq signed the index than this app knows. */
    INDEX_TOO_NEW,

    /** More bytes came than a file may have. */
    ENDLESS_DATA,

    /** Bytes came too slowly. */
    SLOW_DATA,

    /** The channel cannot be reached, or broke off; what came is kept. */
    CHANNEL_UNREACHABLE,

    /** The channel's server sends elsewhere: neither to https nor to its own host. */
    WRONG_REDIRECT,

    /** The channel lacks a file that it should have. */
    CHANNEL_INCOMPLETE,

    /** The channel has nothing for this model and target. */
    NO_RELEASE,

    /** The channel's releases are for other devices. */
    WRONG_DEVICE,

    /** A download is not the file that was signed. */
    DOWNLOAD_HASH,

    /** A downloaded archive is not a bundle's ZIP, or a hostile one. */
    ARCHIVE_REFUSED,

    /** A patch does not fit, is damaged, or gives something else than the index says. */
    PATCH_REFUSED,

    /** What this device remembers of a channel is damaged. */
    UPDATES_BROKEN,
}

/** What the store throws: a [reason] for programs, a message for people. */
class Refusal(val reason: Reason, message: String, cause: Throwable? = null) : Exception(message, cause)
