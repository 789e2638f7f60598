package edgeq.store.ota

import edgeq.store.Behaviour
import edgeq.store.Device
import edgeq.store.Files
import edgeq.store.Library
import edgeq.store.Loader
import edgeq.store.MemoryFiles
import edgeq.store.ModelKey
import edgeq.store.PHONE
import edgeq.store.Reason
import edgeq.store.Refusal
import edgeq.store.Rules
import edgeq.store.StandIn
import edgeq.store.XNNPACK
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertThrows
import java.time.Instant

val KEY = ModelKey("digits", "android-arm64-xnnpack")

/** A phone with an app that follows a channel; each call is a start of the process on the same disk. */
class Phone(
    val disk: MemoryFiles = MemoryFiles(),
    private val device: Device = PHONE,
    private val deviceId: String = "phone-1",
    private val root: ByteArray? = channel("good/first").files.getValue("metadata/1.root.json"),
    private val limits: Limits = Limits(chunkBytes = 20_000),
    private val nanoTime: () -> Long = System::nanoTime,
    wrap: (Files) -> Files = { it },
    private val behaviour: (String) -> Behaviour = { Behaviour() },
) {
    val models: Files = Under(disk, "models")
    val updates: Files = wrap(Under(disk, "updates"))
    val library get() = Library(models, device, Rules(chunkBytes = 20_000, maxStarts = 3))
    val loader: Loader get() = StandIn(XNNPACK, behaviour)
    val version: String? get() = library.store(KEY).manifest()?.modelVersion

    fun update(channel: Channel, now: Instant? = NOW, key: ModelKey = KEY): Update =
        Updater(updates, library, device, channel, root, deviceId, limits, { now }, nanoTime).update(key)

    /** Updates, and starts what came; the version that runs afterwards. */
    fun follow(channel: Channel, now: Instant? = NOW): String {
        update(channel, now)
        return open()
    }

    fun open(): String = library.store(KEY).open(loader).use { it.manifest.modelVersion }

    /** Asserts the refusal, and that the model that was there is untouched and opens. */
    fun refuses(reason: Reason, channel: Channel, now: Instant? = NOW, key: ModelKey = KEY): Refusal {
        val before = library.store(KEY).state
        val slots = models.list("$FOLDER/slots")
        val refusal = assertThrows(Refusal::class.java) { update(channel, now, key) }
        assertEquals(reason, refusal.reason, refusal.message)
        assertEquals(before, library.store(KEY).state)
        assertEquals(slots, models.list("$FOLDER/slots"))
        return refusal
    }

    companion object {
        const val FOLDER = "digits/android-arm64-xnnpack"
    }
}
