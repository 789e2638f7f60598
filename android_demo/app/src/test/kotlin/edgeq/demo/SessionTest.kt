package edgeq.demo

import edgeq.store.Behaviour
import edgeq.store.DiskFiles
import edgeq.store.Library
import edgeq.store.ModelKey
import edgeq.store.PHONE
import edgeq.store.QNNPACK
import edgeq.store.Reason
import edgeq.store.Rules
import edgeq.store.StandIn
import edgeq.store.TestBundle
import edgeq.store.Tensor
import edgeq.store.XNNPACK
import edgeq.store.LoadedModel
import edgeq.store.Loader
import edgeq.store.Manifest
import edgeq.store.ota.NOW
import edgeq.store.ota.TestChannel
import edgeq.store.ota.Update
import edgeq.store.ota.Updater
import edgeq.store.ota.Via
import edgeq.store.ota.channel
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertInstanceOf
import org.junit.jupiter.api.Assertions.assertNull
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.io.TempDir
import java.io.File

/** Answers as [StandIn] for the golden samples, and that it is a seven for anything else. */
class Sevens(behaviour: (String) -> Behaviour = { Behaviour() }) : Loader {
    private val inner = listOf(XNNPACK, QNNPACK).associate { it.manifest.target.name to StandIn(it, behaviour) }

    override fun load(manifest: Manifest, location: String): LoadedModel {
        val model = inner.getValue(manifest.target.name).load(manifest, location)
        return object : LoadedModel by model {
            override fun run(inputs: List<Tensor>): List<Tensor> = try {
                model.run(inputs)
            } catch (_: NoSuchElementException) {
                listOf(Tensor.of(FloatArray(10) { if (it == 7) 4f else if (it == 1) 2f else 0f }, listOf(1, 10)))
            }
        }
    }
}

class SessionTest {
    @TempDir
    lateinit var folder: File

    private val key = ModelKey("digits", "android-arm64-xnnpack")
    private val waiting = ArrayDeque<Runnable>()

    private fun session(loader: Loader = Sevens(), library: Library = Library(DiskFiles(folder), PHONE)) =
        Session(library, loader, background = { it.run() }, main = { it.run() })

    @Test
    fun `it starts with what the app brings along`() {
        val session = session()
        session.start(listOf({ XNNPACK }), null)
        assertEquals(key, session.screen.selected)
        assertEquals("digits", session.screen.manifest?.modelName)
        assertTrue((session.screen.event as Event.Checked).report!!.passed)
        assertTrue(!session.screen.busy)
        // the next process
        session().also { it.start(listOf({ XNNPACK }), key) }.let { assertNull((it.screen.event as Event.Checked).report) }
    }

    @Test
    fun `a drawing gets an answer, a cleared one loses it`() {
        val session = session().also { it.start(listOf({ XNNPACK }), null) }
        session.recognise(DRAWN.getValue("7"))
        assertEquals(listOf("7", "1", "0"), session.screen.prediction!!.best.map { it.label })
        assertEquals(1, session.screen.timing!!.count)
        session.recognise(Sketch())
        assertNull(session.screen.prediction)
        assertEquals(1, session.screen.timing!!.count)
    }

    @Test
    fun `only the newest of several drawings is run`() {
        val session = Session(Library(DiskFiles(folder), PHONE), Sevens(), background = { waiting.add(it) }, main = { it.run() })
        session.start(listOf({ XNNPACK }), null)
        repeat(5) { session.recognise(DRAWN.getValue("1")) }
        while (waiting.isNotEmpty()) waiting.removeFirst().run()
        assertEquals(1, session.screen.timing!!.count)
    }

    @Test
    fun `the self-test is shown`() {
        val session = session(Sevens { Behaviour(gain = 1.01f) }).also { it.start(listOf({ XNNPACK }), null) }
        session.selfTest()
        val report = assertInstanceOf(Event.Tested::class.java, session.screen.event).report
        assertEquals(40.0, report.sqnrDb, 0.01)
    }

    @Test
    fun `a bad update is rolled back and said so`() {
        val loader = Sevens { version -> Behaviour(gain = if (version == "2") Float.NaN else 1f) }
        val session = session(loader).also { it.start(listOf({ XNNPACK }), null) }
        session.import { XNNPACK.version("2") }
        val event = assertInstanceOf(Event.RolledBack::class.java, session.screen.event)
        assertEquals(Reason.NOT_FINITE, event.rejected.reason)
        assertEquals("1", session.screen.manifest?.modelVersion)
        session.recognise(DRAWN.getValue("7"))
        assertEquals("7", session.screen.prediction!!.best.first().label)
    }

    @Test
    fun `a damaged update is rolled back and said so`() {
        val session = session().also { it.start(listOf({ XNNPACK }), null) }
        session.import { XNNPACK.version("2") }
        val slot = File(folder, "${key.model}/${key.target}/slots/${session.screen.manifest!!.digest}")
        File(slot, "model.pte").writeBytes(ByteArray(3))
        val next = session().also { it.start(listOf({ XNNPACK }), null) }
        val event = assertInstanceOf(Event.RolledBack::class.java, next.screen.event)
        assertEquals("2" to Reason.FILE_SIZE, event.rejected.version to event.rejected.reason)
        assertEquals("1", next.screen.manifest?.modelVersion)
    }

    @Test
    fun `a bad update is said so however many there were before`() {
        val loader = Sevens { version -> Behaviour(gain = if (version == "1") 1f else Float.NaN) }
        val library = Library(DiskFiles(folder), PHONE, Rules(maxRejected = 1))
        val session = session(loader, library).also { it.start(listOf({ XNNPACK }), null) }
        for (version in listOf("2", "3")) {
            session.import { XNNPACK.version(version) }
            assertEquals(version, assertInstanceOf(Event.RolledBack::class.java, session.screen.event).rejected.version)
        }
    }

    @Test
    fun `a refused import leaves the model that was there`() {
        val session = session().also { it.start(listOf({ XNNPACK }), null) }
        session.import { XNNPACK.version("2").with("model.pte", ByteArray(3)) }
        assertEquals(Reason.FILE_SIZE, (session.screen.event as Event.Refused).reason)
        session.recognise(DRAWN.getValue("7"))
        assertEquals("7", session.screen.prediction!!.best.first().label)
    }

    private fun following(channel: TestChannel, loader: Loader = Sevens()): Session {
        val library = Library(DiskFiles(File(folder, "models")), PHONE)
        val root = channel("good/first").files.getValue("metadata/1.root.json")
        val updater = Updater(DiskFiles(File(folder, "updates")), library, PHONE, channel, root, "phone-1", clock = { NOW })
        return Session(library, loader, { it.run() }, { it.run() }, updater, network = { waiting.add(it) })
            .also { it.start(listOf({ XNNPACK }), null) }
    }

    @Test
    fun `an update is fetched while drawings are answered, then opened`() {
        val session = following(channel("good/second"))
        assertTrue(session.hasChannel)
        session.update()
        assertTrue(session.screen.updating)
        session.update() // one at a time
        session.recognise(DRAWN.getValue("7"))
        assertEquals("7", session.screen.prediction!!.best.first().label)
        waiting.removeFirst().run()
        assertEquals(0, waiting.size)
        assertTrue(!session.screen.updating)
        val update = assertInstanceOf(Event.Updated::class.java, session.screen.event).update
        assertEquals(Via.PATCH to 2L, update.via to update.release)
        assertEquals("2", session.screen.manifest?.modelVersion)
        session.update()
        waiting.removeFirst().run()
        assertEquals(Update(2, "2", Via.NOTHING, 0, true), (session.screen.event as Event.Updated).update)
    }

    @Test
    fun `an update that fails its self-test is rolled back and said so`() {
        val session = following(channel("good/second"), Sevens { Behaviour(gain = if (it == "2") 0.2f else 1f) })
        session.update()
        waiting.removeFirst().run()
        assertEquals(Reason.BELOW_FLOOR, (session.screen.event as Event.RolledBack).rejected.reason)
        assertEquals("1", session.screen.manifest?.modelVersion)
        session.update()
        waiting.removeFirst().run()
        assertEquals(Reason.REJECTED_BEFORE, (session.screen.event as Event.Refused).reason)
    }

    @Test
    fun `a refused update leaves the model that was there`() {
        val session = following(channel("hostile/WRONG_KEY/strange"))
        session.update()
        waiting.removeFirst().run()
        assertEquals(Reason.WRONG_KEY, (session.screen.event as Event.Refused).reason)
        assertTrue(!session.screen.updating)
        session.recognise(DRAWN.getValue("7"))
        assertEquals("7", session.screen.prediction!!.best.first().label)
    }

    @Test
    fun `a model that was picked meanwhile stays`() {
        val session = following(channel("good/second"))
        session.import { QNNPACK }
        session.select(key)
        session.update()
        session.select(session.screen.models.single { it != key })
        waiting.removeFirst().run()
        assertEquals("android-arm64-qnnpack", session.screen.manifest?.target?.name)
        session.select(key)
        assertEquals("2", session.screen.manifest?.modelVersion)
    }

    @Test
    fun `an app without a channel asks nobody`() {
        val session = session().also { it.start(listOf({ XNNPACK }), null) }
        assertTrue(!session.hasChannel)
        session.update()
        assertTrue(!session.screen.updating)
    }

    @Test
    fun `models are switched`() {
        val session = session().also { it.start(listOf({ XNNPACK }, { QNNPACK }), key) }
        assertEquals(2, session.screen.models.size)
        session.recognise(DRAWN.getValue("7"))
        session.select(session.screen.models.last())
        assertEquals("android-arm64-qnnpack", session.screen.selected?.target)
        assertNull(session.screen.timing)
    }

    @Test
    fun `an app without a model says so`() {
        val session = session().also { it.start(emptyList(), null) }
        assertNull(session.screen.selected)
        session.recognise(DRAWN.getValue("7"))
        session.selfTest()
        assertNull(session.screen.prediction)
        val refused = session().also { it.start(listOf({ TestBundle(emptyMap()) }), null) }
        assertEquals(Reason.NO_MODEL, (refused.screen.event as Event.Refused).reason)
    }

    @Test
    fun `a runtime that throws is shown, not a crash`() {
        val session = session().also { it.start(listOf({ XNNPACK }), null) }
        session.import { throw IllegalStateException("boom") }
        assertEquals("boom", (session.screen.event as Event.Refused).detail)
    }
}
