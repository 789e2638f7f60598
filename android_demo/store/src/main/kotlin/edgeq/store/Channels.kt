package edgeq.store

import java.util.Locale
import kotlin.math.abs
import kotlin.math.floor
import kotlin.math.ln
import kotlin.math.log10
import kotlin.math.max
import kotlin.math.min
import kotlin.math.pow
import kotlin.math.round
import kotlin.math.sqrt

// edgeq/verify/channels.py says why these
private const val UNLIKE = 8.0
private const val NUMERIC_NOISE = 1e-6
private const val FEW_CHANNELS = 32
private const val LOST_DB = 1.0
private const val ITEM_CHANNELS = 128
private const val WORST = 4
private const val NAMED = 16
private const val MAX_CHANNELS = 100_000
private const val MAX_LEVELS = 256

/**
 * One output by channel, expected against measured, one sample at a time.
 *
 * The signal-to-noise ratio of a whole output is ruled by its largest channels: a detector that joins boxes in pixels and
 * scores of 0 to 1 reads 55 dB while every score is zero. The rule is `lost_channels` of edgeq/verify/channels.py, by
 * which `edgeq verify` judges the same samples.
 *
 * @param output its index.
 * @param shape of one sample, without the batch.
 */
internal class OutputChannels(private val output: Int, private val shape: List<Int>) {
    private val axes = setOf(0, shape.size - 1).filter { shape.getOrElse(it) { 0 } in 2..MAX_CHANNELS }.map { Axis(shape, it) }
    private val drift = DoubleArray(shape.fold(1, Int::times)) // sum of the differences from the first sample
    private val values = mutableSetOf<Double>()
    private var first: DoubleArray? = null
    private var firstMeasured = DoubleArray(0)
    private var rows = 0
    private var shares = true // all expected values lie in 0..1: probabilities have one unit, whatever their ranges

    /** Adds a sample's output; all values are finite. */
    fun add(expected: DoubleArray, measured: DoubleArray) {
        if (first == null) firstMeasured = measured
        val begin = first ?: expected.also { first = it }
        rows++
        for (i in expected.indices) {
            drift[i] += expected[i] - begin[i]
            shares = shares && expected[i] in 0.0..1.0
            if (values.size <= MAX_LEVELS) values += expected[i] + 0.0 // -0.0 is 0.0
        }
        for (axis in axes) axis.add(expected, measured, begin, firstMeasured)
    }

    /**
     * The channels that have about as much error as signal, or are the same for every sample, in words.
     *
     * An error of one step of the output is none.
     */
    fun lost(): List<String> {
        val levels = values.sorted()
        val step = if (levels.size in 2..MAX_LEVELS) levels.zipWithNext { low, high -> high - low }.min() else 0.0
        return axes.flatMap(::groups)
            .filter { (it.sqnrDb < LOST_DB || it.isConstant) && it.changeSqnrDb != null && it.errorRms > step }
            .map { "${it.name} (${"%.1f".format(Locale.ROOT, it.sqnrDb)} dB)" }
            .take(WORST)
    }

    /** The channels of an axis that are judged: the worst of a few one by one; of many, those of one spread together. */
    private fun groups(axis: Axis): List<Group> {
        val elements = rows.toDouble() * drift.size / axis.count
        val changing = axis.changing(drift, rows)
        val levels = levels(axis, elements, changing)
        val alive = levels.indices.filter { levels[it] >= 0 }
        if (axis.count > FEW_CHANNELS) {
            if (shares) return emptyList() // the scores of classes, of which most are near 0
            val alike = alive.groupBy { levels[it] }.toSortedMap().values.filter { it.size in 2 until alive.size }
            // of a list of items, such as poses with their coordinates, each channel has a meaning of its own
            val isOfItems = shape.size == 2 && axis.count <= ITEM_CHANNELS
            val still = if (isOfItems) alive.filter { levels[it] > 0 && !axis.varied[it] }.take(WORST) else emptyList()
            return (alike + still.map(::listOf)).map { Group(axis, it, elements, changing) }
        }
        if (!mayHoldChannels(axis)) return emptyList()
        return alive.map { Group(axis, listOf(it), elements, changing) }
            .sortedBy { round((it.changeSqnrDb ?: Double.POSITIVE_INFINITY) * 1e6) } // noise of sums decides no order
            .take(WORST)
    }

    /** Whether an axis of an image or a map is that of its channels: the shorter one, as columns are many. */
    private fun mayHoldChannels(axis: Axis) =
        shape.size < 3 || axis.index == if (shape.first() <= shape.last()) 0 else shape.size - 1

    /** Which power of [UNLIKE] each channel's spread lies below the largest; -1 for channels of float noise. */
    private fun levels(axis: Axis, elements: Double, changing: DoubleArray): IntArray {
        val means = DoubleArray(axis.count) { axis.total[it] / elements }
        val spreads = DoubleArray(axis.count) { max(axis.energy[it] / elements - means[it].pow(2), 0.0) }
        val largest = spreads.max()
        if (largest <= 0) return IntArray(axis.count)
        return IntArray(axis.count) {
            val noise = max(NUMERIC_NOISE.pow(2) * largest, (NUMERIC_NOISE * means[it]).pow(2))
            val ratio = sqrt(largest / max(spreads[it], largest * 1e-30))
            if (changing[it] / elements <= noise) -1 else floor(ln(ratio) / ln(UNLIKE) + 1e-9).toInt()
        }
    }

    private inner class Group(axis: Axis, channels: List<Int>, elementsOfEach: Double, changing: DoubleArray) {
        private val elements = elementsOfEach * channels.size
        private val error = channels.sumOf { axis.error[it] }
        private val change = channels.sumOf { changing[it] }
        private val largest = channels.maxOf { max(abs(axis.least[it]), abs(axis.most[it])) }

        val name = "output $output, ${named(channels)}"
        val sqnrDb = ratioDb(channels.sumOf { axis.energy[it] }, error)
        val errorRms = sqrt(error / elements)

        /** About the mean of each element over the samples; null where only float noise changes with the input. */
        val changeSqnrDb = if (change > elements * (NUMERIC_NOISE * largest).pow(2)) ratioDb(change, error) else null

        /** Whether the measured values are the same for every sample, and the expected ones are not. */
        val isConstant = changeSqnrDb != null && channels.none { axis.varied[it] }
    }
}

/** Sums over everything but one axis, for each of its channels. */
private class Axis(shape: List<Int>, val index: Int) {
    val count = shape[index]
    private val stride = shape.drop(index + 1).fold(1, Int::times)
    val energy = DoubleArray(count)
    val error = DoubleArray(count)
    val total = DoubleArray(count)
    val least = DoubleArray(count) { Double.POSITIVE_INFINITY }
    val most = DoubleArray(count) { Double.NEGATIVE_INFINITY }
    private val moved = DoubleArray(count)

    /** Whether a measured value differs from the first sample's. */
    val varied = BooleanArray(count)

    fun add(expected: DoubleArray, measured: DoubleArray, first: DoubleArray, firstMeasured: DoubleArray) {
        for (i in expected.indices) {
            val channel = i / stride % count
            energy[channel] += expected[i].pow(2)
            error[channel] += (expected[i] - measured[i]).pow(2)
            total[channel] += expected[i]
            moved[channel] += (expected[i] - first[i]).pow(2)
            if (measured[i] != firstMeasured[i]) varied[channel] = true
            least[channel] = min(least[channel], expected[i])
            most[channel] = max(most[channel], expected[i])
        }
    }

    /** The energy about the mean that all samples share. Of n samples' own mean, so n / (n - 1) times theirs. */
    fun changing(drift: DoubleArray, rows: Int): DoubleArray {
        val shared = DoubleArray(count)
        for (i in drift.indices) shared[i / stride % count] += drift[i].pow(2) / rows
        return DoubleArray(count) { max(moved[it] - shared[it], 0.0) * rows / max(rows - 1, 1) }
    }
}

/** 10 log10(signal / error); infinite without an error. */
internal fun ratioDb(signal: Double, error: Double): Double =
    if (error == 0.0) Double.POSITIVE_INFINITY else 10 * log10(signal / error) // minus infinity without a signal

private fun named(channels: List<Int>): String {
    val shown = channels.take(NAMED)
    if (channels.size == 1) return "channel ${shown.single()}"
    if (shown.last() - shown.first() == channels.size - 1) return "channels ${shown.first()} to ${shown.last()}"
    val more = channels.size - shown.size
    return "channels ${shown.joinToString()}" + if (more > 0) " and $more more" else ""
}
