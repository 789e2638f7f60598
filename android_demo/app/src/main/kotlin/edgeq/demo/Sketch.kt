package edgeq.demo

import edgeq.store.Image
import kotlin.math.hypot
import kotlin.math.max
import kotlin.math.min
import kotlin.math.roundToInt

/** A point of a stroke; the canvas is 0 to 1 in both directions. */
data class Point(val x: Float, val y: Float)

/** What was drawn: strokes, each a line through its points. */
data class Sketch(val strokes: List<List<Point>> = emptyList()) {
    val isEmpty: Boolean get() = strokes.all { it.isEmpty() }

    fun begin(point: Point) = Sketch(strokes.plusElement(listOf(point)))

    fun extend(point: Point) = Sketch(strokes.dropLast(1).plusElement(strokes.lastOrNull().orEmpty() + point))

    /** All numbers in a row, for the state that Android keeps; [parse] reads it. */
    fun text(): String = strokes.joinToString(";") { stroke -> stroke.joinToString(" ") { "${it.x},${it.y}" } }

    /**
     * The sketch as an image of [height] x [width] pixels, 0 for paper and 255 for ink.
     *
     * Drawn as the UCI digits were made, which the digits model knows: scaled to fill the height, its centre in the
     * middle, as black and white at four times the size; each pixel is the share of ink in its sixteen. (E. Alpaydin and C.
     * Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998.)
     */
    fun image(height: Int, width: Int): Image {
        val fine = fitted(FINE * height, FINE * width)
        val pixels = ByteArray(height * width) { index ->
            val row = index / width * FINE
            val column = index % width * FINE
            var ink = 0
            for (y in row until row + FINE) for (x in column until column + FINE) if (fine.inked(x, y)) ink++
            (255f * ink / (FINE * FINE)).roundToInt().toByte()
        }
        return Image(height, width, 1, pixels)
    }

    private fun fitted(height: Int, width: Int): Fitted {
        val points = strokes.flatten()
        if (points.isEmpty()) return Fitted(emptyList(), 0f)
        val radius = PEN * height / 2
        val top = points.minOf { it.y }
        val left = points.minOf { it.x }
        val tall = points.maxOf { it.y } - top
        val wide = points.maxOf { it.x } - left
        // a dot has no size to be scaled to
        val scale = min((height - 2 * radius) / max(tall, LEAST), (width - 2 * radius) / max(wide, LEAST))
        val right = (width - wide * scale) / 2 - left * scale
        val down = (height - tall * scale) / 2 - top * scale
        return Fitted(strokes.map { line -> line.map { Point(it.x * scale + right, it.y * scale + down) } }, radius)
    }

    companion object {
        private const val FINE = 4
        private const val PEN = 0.14f // width of a line, as a share of the height
        private const val LEAST = 0.1f

        /** Reads what [text] wrote; anything else is an empty sketch. */
        fun parse(text: String?): Sketch {
            if (text.isNullOrEmpty()) return Sketch()
            val strokes = text.split(';').map { stroke ->
                stroke.split(' ').map { pair ->
                    val numbers = pair.split(',').map { it.toFloatOrNull() ?: return Sketch() }
                    if (numbers.size != 2) return Sketch()
                    Point(numbers[0], numbers[1])
                }
            }
            return Sketch(strokes)
        }
    }
}

private class Fitted(private val strokes: List<List<Point>>, private val radius: Float) {
    /** Whether the centre of a pixel lies on a line. */
    fun inked(x: Int, y: Int): Boolean = strokes.any { stroke ->
        val ends = if (stroke.size == 1) stroke + stroke else stroke
        ends.zipWithNext().any { (from, to) -> distance(x + 0.5f, y + 0.5f, from, to) <= radius }
    }

    private fun distance(x: Float, y: Float, from: Point, to: Point): Float {
        val dx = to.x - from.x
        val dy = to.y - from.y
        val length = dx * dx + dy * dy
        val along = if (length == 0f) 0f else (((x - from.x) * dx + (y - from.y) * dy) / length).coerceIn(0f, 1f)
        return hypot(x - from.x - along * dx, y - from.y - along * dy)
    }
}
