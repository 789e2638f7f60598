package edgeq.store

import java.util.Locale
import kotlin.math.abs
import kotlin.math.max

/**
 * The golden samples of a bundle, run on this device, and judged as `edgeq verify` judges them.
 *
 * @property finite whether no output was NaN or infinite.
 * @property sqnrDb 10 log10(sum expected² / sum difference²) of the worst output; infinite where all are equal.
 * @property worstOutput the index of that output.
 * @property maxAbs the largest difference.
 * @property floorDb the least [sqnrDb] that the manifest accepts.
 * @property lost the channels whose values are gone, though their output as a whole is above the floor, in words.
 */
data class SelfTestReport(
    val samples: Int,
    val finite: Boolean,
    val sqnrDb: Double,
    val worstOutput: Int,
    val maxAbs: Double,
    val floorDb: Double,
    val lost: List<String>,
) {
    val passed: Boolean get() = finite && sqnrDb >= floorDb && lost.isEmpty()

    /** What failed, for messages. */
    val failure: String
        get() = when {
            !finite -> "output $worstOutput holds NaN or infinity"
            !(sqnrDb >= floorDb) -> "output $worstOutput: SQNR %.1f dB, expected at least %.1f dB".format(Locale.ROOT, sqnrDb, floorDb)
            else -> "lost: ${lost.joinToString()}"
        }
}

/**
 * What golden.npz holds: for each sample the model's inputs, ready to run, and the expected outputs.
 *
 * @property imageSize [height, width] of its images before preprocessing; empty where there are none.
 * @property states by input, the output of the sample before that it takes; null for an input that is no state. Samples
 *   of a model with states are steps of one sequence.
 */
class Golden internal constructor(
    val samples: List<Pair<List<Tensor>, List<Tensor>>>,
    val imageSize: List<Int>,
    private val states: List<Int?> = emptyList(),
) {
    /**
     * Runs all samples and compares each output and each channel, as edgeq's own verification does
     * (`golden_gate` of edgeq/check/bundle.py).
     *
     * @throws Refusal RUN_FAILED: the outputs have other shapes or dtypes than the golden ones.
     */
    fun test(model: LoadedModel, floorDb: Double): SelfTestReport {
        val sums = samples.first().second.mapIndexed(::OutputSums)
        var before: List<Tensor>? = null
        for ((inputs, expected) in samples) {
            val came = model.run(inputs.mapIndexed { index, given -> fed(index, given, before) })
            before = came
            if (came.size != expected.size) {
                throw Refusal(Reason.RUN_FAILED, "expected ${expected.size} outputs, the model gave ${came.size}")
            }
            sums.forEachIndexed { index, sum -> sum.add(expected[index], came[index]) }
        }
        val worst = sums.minWith { one, other -> compareValuesBy(one, other, { !it.sqnrDb.isNaN() }, { it.sqnrDb }) }
        return SelfTestReport(
            samples = samples.size,
            finite = sums.all { it.finite },
            sqnrDb = worst.sqnrDb,
            worstOutput = worst.index,
            maxAbs = sums.maxOf { it.maxAbs },
            floorDb = floorDb,
            lost = sums.filter { it.finite }.flatMap { it.channels?.lost().orEmpty() }.take(MOST_LOST),
        )
    }

    /** What an input takes: a state the output of the sample [before], which this device computed; others what is [given]. */
    private fun fed(index: Int, given: Tensor, before: List<Tensor>?): Tensor {
        val source = states.getOrNull(index) ?: return given
        val state = (before ?: return given)[source]
        if (state.dtype != given.dtype || state.shape != given.shape) {
            val what = "output $source is ${state.dtype.text} ${state.shape}, the state takes ${given.dtype.text} ${given.shape}"
            throw Refusal(Reason.RUN_FAILED, what)
        }
        return state
    }
}

private const val MOST_LOST = 4

/** Running sums of one output over the samples; [channels] of floats only. */
private class OutputSums(val index: Int, sample: Tensor) {
    val channels = if (sample.dtype in FLOATS) OutputChannels(index, sample.shape) else null
    var finite = true
    var maxAbs = 0.0
    private var signal = 0.0
    private var noise = 0.0

    val sqnrDb: Double get() = if (finite && (signal + noise).isFinite()) ratioDb(signal, noise) else Double.NaN

    fun add(expected: Tensor, came: Tensor) {
        val shape = if (came.shape.firstOrNull() == 1) came.shape.drop(1) else came.shape // without a batch of one
        if (came.dtype != expected.dtype || shape != expected.shape) {
            val what = "output $index is ${came.dtype.text} $shape, the golden one ${expected.dtype.text} ${expected.shape}"
            throw Refusal(Reason.RUN_FAILED, what)
        }
        val left = expected.toDoubles()
        val right = came.toDoubles()
        for (i in left.indices) {
            if (left[i].isInfinite() && left[i] == right[i]) { // such as the -Inf of what a mask leaves out
                left[i] = 0.0
                right[i] = 0.0
            }
            val difference = abs(left[i] - right[i])
            finite = finite && left[i].isFinite() && right[i].isFinite()
            maxAbs = max(maxAbs, difference) // a NaN stays one
            signal += left[i] * left[i]
            noise += difference * difference
        }
        if (finite) channels?.add(left, right)
    }

    private companion object {
        val FLOATS = setOf(Dtype.FLOAT16, Dtype.FLOAT32, Dtype.FLOAT64)
    }
}

/**
 * Reads golden.npz: `input_<name>` and `output_<i>`, each [samples, …].
 *
 * @throws Refusal GOLDEN_BROKEN: it is damaged, or does not fit the manifest.
 */
internal fun parseGolden(manifest: Manifest, bytes: ByteArray): Golden = try {
    val arrays = parseNpz(bytes)
    val inputs = manifest.inputs.map { spec -> spec to column(arrays, "input_${spec.name}", manifest.golden.samples) }
    val outputs = manifest.outputs.indices.map { column(arrays, "output_$it", manifest.golden.samples) }
    if (manifest.golden.samples == 0 || outputs.isEmpty()) throw NpzProblem("it has nothing to compare")
    Golden(
        List(manifest.golden.samples) { index ->
            val ready = inputs.map { (spec, array) -> modelInput(spec, array[index], manifest.golden.preprocessed) }
            ready to outputs.map { it[index] }
        },
        imageSize = inputs.find { it.first.preprocess != null }?.second?.shape?.drop(1)?.take(2).orEmpty(),
        states = manifest.inputs.map { it.fedFrom },
    )
} catch (err: NpzProblem) {
    throw Refusal(Reason.GOLDEN_BROKEN, "the golden samples cannot be used: ${err.message?.take(300)}", err)
} catch (err: IllegalArgumentException) { // a sample that preprocessing cannot take
    throw Refusal(Reason.GOLDEN_BROKEN, "the golden samples do not fit the model: ${err.message?.take(300)}", err)
}

private fun column(arrays: Map<String, Tensor>, name: String, samples: Int): Tensor {
    val array = arrays[name] ?: throw NpzProblem("$name is missing")
    if (array.shape.firstOrNull() != samples) throw NpzProblem("$name does not hold $samples samples")
    return array
}

/** One sample as the model takes it: an image is preprocessed, anything else fed as it is, in a batch of one. */
private fun modelInput(spec: TensorSpec, sample: Tensor, preprocessed: Boolean): Tensor {
    val image = spec.preprocess?.takeUnless { preprocessed } ?: return batched(spec, sample)
    require(sample.dtype == Dtype.UINT8 && sample.shape.size == 3) { "${spec.name} is not a uint8 image" }
    val (height, width, channels) = sample.shape
    val pixels = ByteArray(sample.size).also { sample.data.duplicate().get(it) }
    return batched(spec, preprocess(image, Image(height, width, channels, pixels)))
}

/**
 * A sample in the model's own shape.
 *
 * @throws IllegalArgumentException it has another dtype or number of elements.
 */
internal fun batched(spec: TensorSpec, sample: Tensor): Tensor {
    val shape = listOf(sample.shape, listOf(1) + sample.shape).find(spec::takes)
    require(sample.dtype == spec.dtype && shape != null) {
        val ranges = spec.varying.joinToString("") { ", ${it.name} from ${it.least} to ${it.most}" }
        "input ${spec.name} wants ${spec.dtype.text} ${spec.shape}$ranges, got ${sample.dtype.text} ${sample.shape}"
    }
    return sample.reshape(shape)
}
