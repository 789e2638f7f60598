package edgeq.demo

import edgeq.store.Tensor
import kotlin.math.exp

/** A class and its share, 0 to 1. */
data class Score(val label: String, val share: Double)

/** The best three classes of one inference, best first. */
data class Prediction(val best: List<Score>)

private const val SHOWN = 3

/** Reads the first output as scores of classes: softmax of logits, as float64. */
fun prediction(outputs: List<Tensor>, labels: List<String>): Prediction {
    val logits = outputs.first().toDoubles()
    val most = logits.maxOrNull() ?: return Prediction(emptyList())
    val weights = logits.map { exp(it - most) }
    val sum = weights.sum()
    val best = weights.indices.sortedByDescending { weights[it] }.take(SHOWN)
    return Prediction(best.map { Score(labels.getOrElse(it) { _ -> "$it" }, weights[it] / sum) })
}

/** Times of the last inferences. */
class Latencies(private val kept: Int = 50) {
    private val times = ArrayDeque<Double>()

    val count: Int get() = times.size
    val lastMs: Double? get() = times.lastOrNull()

    /** The lower middle one, so that it is a time that was seen. */
    val medianMs: Double? get() = times.sorted().let { it.getOrNull((it.size - 1) / 2) }

    fun add(ms: Double) {
        times.addLast(ms)
        if (times.size > kept) times.removeFirst()
    }
}
