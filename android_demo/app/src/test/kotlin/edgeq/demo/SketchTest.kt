package edgeq.demo

import edgeq.store.DiskFiles
import edgeq.store.FolderSource
import edgeq.store.HostModel
import edgeq.store.Library
import edgeq.store.PHONE
import edgeq.store.REPOSITORY
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.io.TempDir
import java.io.File

class SketchTest {
    private fun pixels(sketch: Sketch) = sketch.image(8, 8).pixels.map { it.toInt() and 0xff }

    @Test
    fun `an empty sketch is paper`() {
        assertTrue(Sketch().isEmpty)
        assertEquals(List(64) { 0 }, pixels(Sketch()))
    }

    @Test
    fun `a drawing fills the height and stands in the middle, wherever and however large it was drawn`() {
        val rows = pixels(DRAWN.getValue("1")).chunked(8)
        assertTrue(rows.first().any { it > 100 } && rows.last().any { it > 100 }) { "$rows" }
        val small = Sketch(DRAWN.getValue("1").strokes.map { line -> line.map { Point(it.x / 2, it.y / 2 + 0.4f) } })
        assertEquals(pixels(DRAWN.getValue("1")), pixels(small))
    }

    @Test
    fun `a dot is a dot`() {
        val inked = pixels(Sketch().begin(Point(0.1f, 0.9f))).count { it > 0 }
        assertTrue(inked in 1..9) { "$inked" }
    }

    @Test
    fun `the state that Android keeps gives the same sketch again`() {
        val sketch = Sketch().begin(Point(0.25f, 0.5f)).extend(Point(0.75f, 0.5f)).begin(Point(1f, 0f))
        assertEquals(sketch, Sketch.parse(sketch.text()))
        for (text in listOf(null, "", ";", "1", "1,2,3", "a,b", "1,2 3")) assertTrue(Sketch.parse(text).isEmpty) { "$text" }
    }

    /** From the finger to the label: the sketch, the store's preprocessing, and the artifact in its real runtime. */
    @Test
    fun `what is drawn is recognised`(@TempDir folder: File) {
        val library = Library(DiskFiles(File(folder, "models")), PHONE)
        val key = library.offer(FolderSource(File(REPOSITORY, "tests/golden/0.1.0/digits/android-arm64-xnnpack")))
        val images = DRAWN.values.map { it.image(8, 8) }
        library.store(key).open { manifest, location ->
            HostModel(File(folder, "run"), File(location), manifest, images)
        }.use { model ->
            assertEquals(listOf(8, 8), model.imageSize)
            val answers = images.map { prediction(model.run(it), model.manifest.labels).best.first() }
            assertEquals(DRAWN.keys.toList(), answers.map { it.label }, "$answers")
        }
    }
}
