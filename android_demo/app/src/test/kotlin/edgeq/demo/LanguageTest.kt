package edgeq.demo

import edgeq.store.Device
import edgeq.store.DiskFiles
import edgeq.store.FolderSource
import edgeq.store.Library
import edgeq.store.LoadedModel
import edgeq.store.Loader
import edgeq.store.Manifest
import edgeq.store.ModelKey
import edgeq.store.REPOSITORY
import edgeq.store.Reason
import edgeq.store.Tensor
import edgeq.store.Writer
import edgeq.store.arrays
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertInstanceOf
import org.junit.jupiter.api.Assertions.assertNull
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.io.TempDir
import java.io.File
import java.util.concurrent.TimeUnit

internal val LLAMA = File(REPOSITORY, "android_demo/app/src/test/resources/bundles/llama/android-arm64-xnnpack")

/**
 * Texts by ExecuTorch's own runner of language models, whose C++ is the phone's too, in a process of this machine. The
 * self-test's answers are the golden ones, which edgeq took from the phone's kernels under emulation. The bundle is what
 * `edgeq package hf:FOLDER --context-length 48 --target android-arm64-xnnpack --scheme 8da4w` wrote of a model with random
 * weights.
 */
internal class HostLanguage : Loader {
    private val golden = arrays(File(LLAMA, "golden.npz"))
    var stopped = false

    override fun load(manifest: Manifest, location: String): LoadedModel = object : LoadedModel {
        override fun run(inputs: List<Tensor>): List<Tensor> {
            assertEquals(listOf(listOf(1, 1), listOf(1)), inputs.map { it.shape })
            // each golden sample is a token at the place after the one before
            val place = inputs[1].toDoubles().single().toInt()
            assertEquals(golden.getValue("input_tokens")[place].toDoubles().single(), inputs[0].toDoubles().single())
            return listOf(golden.getValue("output_0")[place].let { it.reshape(listOf(1) + it.shape) })
        }

        override fun close() = Unit
    }

    override fun writer(manifest: Manifest, location: String, tokenizer: String) = object : Writer {
        override fun write(prompt: String, contextLength: Int, each: (String) -> Unit) {
            val python = checkNotNull(System.getProperty("edgeq.python")) { "run by Maven: edgeq.python is not set" }
            val script = File(REPOSITORY, "scripts/run_language.py").path
            val command = listOf(python, script, location, tokenizer, "$contextLength", prompt)
            val process = ProcessBuilder(command).redirectError(ProcessBuilder.Redirect.DISCARD).start()
            process.inputStream.bufferedReader().forEachLine { each(it.removeSurrounding("\"")) }
            check(process.waitFor(1, TimeUnit.MINUTES) && process.exitValue() == 0) { "the runner failed" }
        }

        override fun stop() {
            stopped = true
        }

        override fun close() = Unit
    }
}

class LanguageTest {
    @TempDir
    lateinit var folder: File

    private fun session(loader: Loader) = Session(
        Library(DiskFiles(folder), Device("android", setOf("arm64"), Runtimes.support)),
        loader,
        background = { it.run() },
        main = { it.run() },
    )

    @Test
    fun `a text is continued as the runner continues it, piece by piece`() {
        val session = session(HostLanguage())
        session.start(listOf({ FolderSource(LLAMA) }), null)
        assertEquals(ModelKey("llama", "android-arm64-xnnpack"), session.screen.selected)
        assertTrue(assertInstanceOf(Event.Checked::class.java, session.screen.event).report!!.passed)
        assertEquals(48, session.screen.manifest!!.language!!.contextLength)
        val seen = mutableListOf<Written?>()
        session.observer = { seen += it.written }
        session.write("The quick brown fox")
        val written = session.screen.written!!
        assertTrue(written.isDone)
        assertEquals("#JEErEMi8FX@CMGOEMGHCMGH8DAJGHCMEFDDksHEGJkk3", written.text)
        assertEquals(29, written.pieces) // 19 letters are the prompt's
        assertTrue(written.perSecond!! > 0)
        assertTrue(seen.map { it?.pieces }.containsAll((1..29).toList()))
        // a drawing is nothing for it, and another model takes the text away
        session.recognise(DRAWN.getValue("7"))
        assertNull(session.screen.prediction)
        session.select(ModelKey("llama", "other"))
        assertNull(session.screen.written)
    }

    @Test
    fun `a runtime without a runner is named, and stopping what does not write does nothing`() {
        val loader = HostLanguage()
        val session = session(object : Loader {
            override fun load(manifest: Manifest, location: String) = loader.load(manifest, location)
        })
        session.start(listOf({ FolderSource(LLAMA) }), null)
        session.write("The quick brown fox")
        val refused = assertInstanceOf(Event.Refused::class.java, session.screen.event)
        assertEquals(Reason.RUNTIME_MISSING, refused.reason)
        assertTrue("this app has no runner of language models for executorch" in refused.detail)
        session.stopWriting()
        assertTrue(!loader.stopped)
    }
}
