package edgeq.demo

import kotlin.math.PI
import kotlin.math.cos
import kotlin.math.sin

private fun line(vararg points: Pair<Double, Double>) = points.map { (x, y) -> Point(x.toFloat(), y.toFloat()) }

/** Digits as a finger would draw them. */
val DRAWN = mapOf(
    "0" to Sketch(listOf(line(*Array(25) { 0.5 + 0.2 * cos(it * PI / 12) to 0.5 + 0.3 * sin(it * PI / 12) }))),
    "1" to Sketch(listOf(line(0.4 to 0.35, 0.52 to 0.2, 0.52 to 0.8))),
    "4" to Sketch(listOf(line(0.5 to 0.2, 0.3 to 0.55, 0.7 to 0.55), line(0.58 to 0.35, 0.58 to 0.85))),
    "7" to Sketch(listOf(line(0.3 to 0.2, 0.7 to 0.2, 0.45 to 0.8), line(0.38 to 0.5, 0.65 to 0.5))),
)
