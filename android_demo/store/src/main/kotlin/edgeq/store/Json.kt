package edgeq.store

import com.fasterxml.jackson.core.JsonFactory
import com.fasterxml.jackson.core.JsonParser
import com.fasterxml.jackson.core.JsonProcessingException
import com.fasterxml.jackson.core.JsonToken
import com.fasterxml.jackson.core.StreamReadConstraints
import com.fasterxml.jackson.core.StreamReadFeature
import java.io.IOException
import java.nio.ByteBuffer

private const val MAX_DEPTH = 64

private val factory: JsonFactory = JsonFactory.builder()
    .enable(StreamReadFeature.STRICT_DUPLICATE_DETECTION)
    .streamReadConstraints(StreamReadConstraints.builder().maxNestingDepth(MAX_DEPTH).build())
    .build()

/** The bytes are not JSON, or not of the form that was expected. */
internal class JsonProblem(message: String, cause: Throwable? = null) : Exception(message, cause)

/**
 * Reads strict JSON: UTF-8, no key twice, no number beyond Long or Double, nothing after the value.
 *
 * Returns a Map, List, String, Long, Double, Boolean or null.
 */
internal fun parseJson(bytes: ByteArray): Any? = try {
    // the decoder refuses bytes that are not UTF-8, which String(bytes) would replace
    val text = Charsets.UTF_8.newDecoder().decode(ByteBuffer.wrap(bytes)).toString()
    factory.createParser(text).use { parser ->
        parser.nextToken() ?: throw JsonProblem("it is empty")
        val value = read(parser)
        if (parser.nextToken() != null) throw JsonProblem("something follows the JSON value")
        value
    }
} catch (err: JsonProcessingException) {
    throw JsonProblem(err.originalMessage, err)
} catch (err: IOException) {
    throw JsonProblem("it is not UTF-8 text", err)
}

private fun read(parser: JsonParser): Any? = when (parser.currentToken()) {
    JsonToken.START_OBJECT -> buildMap {
        while (parser.nextToken() != JsonToken.END_OBJECT) {
            val key = parser.currentName()
            parser.nextToken()
            put(key, read(parser))
        }
    }
    JsonToken.START_ARRAY -> buildList { while (parser.nextToken() != JsonToken.END_ARRAY) add(read(parser)) }
    JsonToken.VALUE_STRING -> parser.text
    JsonToken.VALUE_NUMBER_INT -> parser.longValue
    JsonToken.VALUE_NUMBER_FLOAT -> parser.doubleValue.also {
        if (!it.isFinite()) throw JsonProblem("${parser.text.take(40)} is not a finite number")
    }
    JsonToken.VALUE_TRUE -> true
    JsonToken.VALUE_FALSE -> false
    JsonToken.VALUE_NULL -> null
    else -> throw JsonProblem("it ends too early")
}

/** An object of a JSON document, whose fields are asked for by name and type; [where] names it in messages. */
internal class JsonObject(private val fields: Map<*, *>, private val where: String) {
    /** The names of its fields, where they are data themselves. */
    val keys: Set<String> get() = fields.keys.mapTo(mutableSetOf()) { it.toString() }

    /** Refuses fields that are not among [known]. */
    fun only(vararg known: String): JsonObject = apply {
        val unknown = fields.keys.firstOrNull { it !in known } ?: return this
        throw JsonProblem("unknown key '${at(unknown.toString())}'")
    }

    fun text(key: String): String = typed(key, "text")

    fun textOrNull(key: String): String? = if (fields[key] == null) null else text(key)

    fun text(key: String, pattern: Regex): String =
        text(key).also { if (!pattern.matches(it)) throw JsonProblem("${at(key)} may not be '${it.take(80)}'") }

    fun flag(key: String): Boolean = typed(key, "true or false")

    fun count(key: String, least: Long = 0, most: Long = MAX_COUNT): Long =
        range(key, typed(key, "a whole number"), least, most)

    fun countOrNull(key: String, most: Long = MAX_COUNT): Long? = if (fields[key] == null) null else count(key, most = most)

    fun counts(key: String): List<Long> = list(key).map { range(key, whole(key, it), 0, MAX_COUNT) }

    fun number(key: String): Double = asNumber(key, fields[key])

    fun numbers(key: String): List<Double> = list(key).map { asNumber(key, it) }

    /** A number, or one of the words that JSON has no number for. */
    fun measure(key: String): Double = when (fields[key]) {
        "inf" -> Double.POSITIVE_INFINITY
        "-inf" -> Double.NEGATIVE_INFINITY
        "nan" -> Double.NaN
        else -> number(key)
    }

    fun texts(key: String): List<String> =
        list(key).map { it as? String ?: throw JsonProblem("${at(key)} must hold text") }

    fun child(key: String): JsonObject = childOrNull(key) ?: throw JsonProblem("${at(key)} is missing")

    fun childOrNull(key: String): JsonObject? = when (val value = fields[key]) {
        null -> null
        is Map<*, *> -> JsonObject(value, at(key))
        else -> throw JsonProblem("${at(key)} must be an object")
    }

    fun childrenOrEmpty(key: String): List<JsonObject> = if (fields[key] == null) emptyList() else children(key)

    fun children(key: String): List<JsonObject> = list(key).mapIndexed { index, value ->
        JsonObject(value as? Map<*, *> ?: throw JsonProblem("${at(key)} must hold objects"), "${at(key)}[$index]")
    }

    /** One whole number as a list of one, a list as it is, null as null. */
    fun sides(key: String): List<Int>? = when (val value = fields[key]) {
        null -> null
        is List<*> -> value.map { side(key, it) }
        else -> listOf(side(key, value))
    }

    private fun side(key: String, value: Any?) = range(key, whole(key, value), 1, MAX_SIDE).toInt()

    private fun list(key: String): List<*> = typed(key, "a list")

    private fun whole(key: String, value: Any?) =
        value as? Long ?: throw JsonProblem("${at(key)} must hold whole numbers")

    private fun asNumber(key: String, value: Any?): Double =
        (value as? Number ?: throw JsonProblem("${at(key)} must be a number")).toDouble()

    private fun range(key: String, value: Long, least: Long, most: Long): Long {
        if (value in least..most) return value
        throw JsonProblem("${at(key)} must be $least to $most, got $value")
    }

    private inline fun <reified T> typed(key: String, what: String): T =
        fields[key] as? T ?: throw JsonProblem("${at(key)} must be $what")

    private fun at(key: String) = if (where.isEmpty()) key.take(80) else "$where.${key.take(80)}"

    private companion object {
        const val MAX_COUNT = (1L shl 53) - 1 // exact in every JSON reader
        const val MAX_SIDE = 16384L
    }
}
