package edgeq.store

import kotlin.math.floor
import kotlin.math.min

/**
 * How an image becomes a model input, as the manifest says it: colour, resize, crop, times [scale], minus [mean], divided
 * by [std], layout. All arithmetic is float32, in edgeq's own order of operations. A model that takes [bytes] normalises
 * them itself: for it the order ends with rounding half up, and layout.
 *
 * @property resize [height, width], or the shorter side alone; half-pixel bilinear without antialiasing.
 * @property crop [height, width] from the centre.
 */
data class Preprocess(
    val gray: Boolean,
    val resize: List<Int>?,
    val crop: List<Int>?,
    val scale: Float,
    val mean: List<Float>,
    val std: List<Float>,
    val channelsFirst: Boolean,
    val bytes: Boolean = false,
) {
    val channels: Int get() = if (gray) 1 else 3
}

/** An image: [pixels] are 0 to 255, row by row, [channels] (1 gray, 3 RGB) to a pixel. */
class Image(val height: Int, val width: Int, val channels: Int, val pixels: ByteArray) {
    init {
        require(channels == 1 || channels == 3) { "expected 1 or 3 channels, got $channels" }
        require(height > 0 && width > 0) { "expected an image, got ${height}x$width" }
        require(pixels.size == height * width * channels) { "expected ${height}x${width}x$channels, got ${pixels.size}" }
    }
}

/**
 * Preprocesses one image.
 *
 * @return float32, or uint8 where the model takes bytes; [channels, height, width] or [height, width, channels].
 */
fun preprocess(spec: Preprocess, image: Image): Tensor {
    val size = outputSize(image.height, image.width, spec.resize)
    val coloured = color(Plane(image.height, image.width, image.channels, floats(image.pixels)), spec.gray)
    // rows first, then columns: the order matters in the last bit
    val pixels = crop(lerpColumns(lerpRows(coloured, size[0]), size[1]), spec.crop)
    val channels = pixels.channels
    val area = pixels.height * pixels.width
    /** Where the model's element [index] lies among the pixels. */
    fun source(index: Int) = if (spec.channelsFirst) index % area * channels + index / area else index
    val shape = if (spec.channelsFirst) listOf(channels, pixels.height, pixels.width) else
        listOf(pixels.height, pixels.width, channels)
    if (spec.bytes) {
        return Tensor.of(ByteArray(area * channels) { floor(pixels.values[source(it)] + 0.5f).toInt().coerceIn(0, 255).toByte() }, shape)
    }
    val values = FloatArray(area * channels) {
        val channel = source(it) % channels
        val mean = spec.mean[if (spec.mean.size == 1) 0 else channel]
        val std = spec.std[if (spec.std.size == 1) 0 else channel]
        (pixels.values[source(it)] * spec.scale - mean) / std
    }
    return Tensor.of(values, shape)
}

private class Plane(val height: Int, val width: Int, val channels: Int, val values: FloatArray)

private fun floats(pixels: ByteArray) = FloatArray(pixels.size) { (pixels[it].toInt() and 0xff).toFloat() }

private fun outputSize(height: Int, width: Int, resize: List<Int>?): List<Int> = when (resize?.size) {
    null -> listOf(height, width)
    2 -> resize
    else -> {
        val shorter = min(height, width)
        listOf(height, width).map { (resize[0].toLong() * it / shorter).toInt() }
    }
}

/** Gray is ITU-R BT.601's luma. */
private fun color(image: Plane, gray: Boolean): Plane {
    val area = image.height * image.width
    if (gray == (image.channels == 1)) return image
    val values = if (gray) {
        FloatArray(area) {
            image.values[3 * it] * 0.299f + image.values[3 * it + 1] * 0.587f + image.values[3 * it + 2] * 0.114f
        }
    } else {
        FloatArray(3 * area) { image.values[it / 3] }
    }
    return Plane(image.height, image.width, if (gray) 1 else 3, values)
}

/** The two neighbours and the second one's weight, for each of [size] positions along [length]. */
private class Taps(length: Int, size: Int) {
    val low = IntArray(size)
    val high = IntArray(size)
    val weight = FloatArray(size)

    init {
        val ratio = (length.toDouble() / size).toFloat()
        for (i in 0 until size) {
            val position = ((i.toFloat() + 0.5f) * ratio - 0.5f).coerceIn(0f, (length - 1).toFloat())
            low[i] = floor(position).toInt()
            high[i] = min(low[i] + 1, length - 1)
            weight[i] = position - low[i]
        }
    }
}

private fun lerpRows(image: Plane, height: Int): Plane {
    if (height == image.height) return image
    val taps = Taps(image.height, height)
    val row = image.width * image.channels
    val values = FloatArray(height * row)
    for (y in 0 until height) {
        for (x in 0 until row) {
            val first = image.values[taps.low[y] * row + x]
            val second = image.values[taps.high[y] * row + x]
            values[y * row + x] = first + (second - first) * taps.weight[y]
        }
    }
    return Plane(height, image.width, image.channels, values)
}

private fun lerpColumns(image: Plane, width: Int): Plane {
    if (width == image.width) return image
    val taps = Taps(image.width, width)
    val channels = image.channels
    val values = FloatArray(image.height * width * channels)
    for (y in 0 until image.height) {
        val row = y * image.width
        for (x in 0 until width) {
            for (channel in 0 until channels) {
                val first = image.values[(row + taps.low[x]) * channels + channel]
                val second = image.values[(row + taps.high[x]) * channels + channel]
                values[(y * width + x) * channels + channel] = first + (second - first) * taps.weight[x]
            }
        }
    }
    return Plane(image.height, width, channels, values)
}

/** The centre; a spare odd pixel stays at the right and the bottom. */
private fun crop(image: Plane, crop: List<Int>?): Plane {
    val (height, width) = crop ?: return image
    require(height <= image.height && width <= image.width) {
        "cannot crop ${height}x$width out of ${image.height}x${image.width}"
    }
    val top = (image.height - height) / 2
    val left = (image.width - width) / 2
    val row = width * image.channels
    val values = FloatArray(height * row)
    for (y in 0 until height) {
        val start = ((top + y) * image.width + left) * image.channels
        image.values.copyInto(values, y * row, start, start + row)
    }
    return Plane(height, width, image.channels, values)
}
