package edgeq.store

import kotlin.math.abs
import kotlin.math.log10
import kotlin.math.max

/**
 * The golden samples of a bundle, run on this device.
 *
 * @property finite whether no output was NaN or infinite.
 * @property sqnrDb 10 log10(sum expected² / sum difference²) of the worst output; infinite where all are equal.
 * @property maxAbs the largest difference.
 * @property floorDb the least [sqnrDb] that the manifest accepts.
 */
data class SelfTestReport(
    val samples: Int,
    val finite: Boolean,
    val sqnrDb: Double,
    val maxAbs: Double,
    val floorDb: Double,
) {
    val passed: Boolean get() = finite && sqnrDb >= floorDb
}

/**
 * What golden.npz holds: for each sample the model's inputs, ready to run, and the expected outputs.
 *
 * @property imageSize [height, width] of its images before preprocessing; empty where there are none.
 */
class Golden internal constructor(
    val samples: List<Pair<List<Tensor>, List<Tensor>>>,
    val imageSize: List<Int>,
) {
    /** Runs all samples and compares, as edgeq's own verification does (edgeq/verify/metrics.py). */
    fun test(model: LoadedModel, floorDb: Double): SelfTestReport {
        val sums = mutableListOf<Sums>()
        for ((inputs, expected) in samples) {
            val came = model.run(inputs)
            if (came.size != expected.size) {
                throw Refusal(Reason.RUN_FAILED, "expected ${expected.size} outputs, the model gave ${came.size}")
            }
            expected.zip(came).forEachIndexed { index, (left, right) ->
                if (index == sums.size) sums += Sums()
                sums[index].add(left, right)
            }
        }
        return SelfTestReport(
            samples = samples.size,
            finite = sums.all { it.finite },
            sqnrDb = sums.minOf { it.sqnrDb },
            maxAbs = sums.maxOf { it.maxAbs },
            floorDb = floorDb,
        )
    }
}

private class Sums {
    var finite = true
    var maxAbs = 0.0
    private var signal = 0.0
    private var noise = 0.0

    val sqnrDb: Double
        get() = when {
            !finite -> Double.NaN
            noise == 0.0 -> Double.POSITIVE_INFINITY
            else -> 10 * log10(signal / noise) // minus infinity where nothing was expected
        }

    fun add(expected: Tensor, came: Tensor) {
        if (expected.size != came.size) {
            throw Refusal(Reason.RUN_FAILED, "expected an output of ${expected.shape}, the model gave ${came.shape}")
        }
        val left = expected.toDoubles()
        val right = came.toDoubles()
        for (i in left.indices) {
            val difference = abs(left[i] - right[i])
            finite = finite && left[i].isFinite() && right[i].isFinite()
            maxAbs = max(maxAbs, difference) // a NaN stays one
            signal += left[i] * left[i]
            noise += difference * difference
        }
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
    require(sample.dtype == Dtype.UINT8 && sample.shape.size == 3) { "${spec.name} is no uint8 image" }
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
    val fits = sample.shape == spec.shape || listOf(1) + sample.shape == spec.shape
    require(sample.dtype == spec.dtype && fits) {
        "input ${spec.name} wants ${spec.dtype.text} ${spec.shape}, got ${sample.dtype.text} ${sample.shape}"
    }
    return sample.reshape(spec.shape)
}
