package edgeq.store.ota

import edgeq.store.JsonProblem

/**
 * The bytes that a signature of The Update Framework covers: OLPC's canonical JSON, as securesystemslib writes it. Keys
 * are sorted by code point, only quotes and backslashes are escaped, and there are no fractions.
 */
internal fun canonical(value: Any?): ByteArray = buildString { canonical(value, this) }.toByteArray()

private fun canonical(value: Any?, out: StringBuilder) {
    when (value) {
        is String -> out.append('"').append(value.replace("\\", "\\\\").replace("\"", "\\\"")).append('"')
        is List<*> -> joined(value, out, "[" to "]") { canonical(it, out) }
        is Map<*, *> -> joined(sorted(value), out, "{" to "}") { (key, item) ->
            canonical(key, out)
            out.append(':')
            canonical(item, out)
        }
        else -> out.append(plain(value))
    }
}

/**
 * The bytes of a metadata file, as python-tuf writes it. Spaces and escapes are not covered by a signature, so that the
 * file is compared with these.
 */
internal fun written(value: Any?): ByteArray = buildString { written(value, this, "\n") }.toByteArray()

private fun written(value: Any?, out: StringBuilder, line: String) {
    val deeper = "$line "
    when (value) {
        is String -> quoted(value, out)
        is List<*> -> joined(value, out, "[" to "]", deeper, line) { written(it, out, deeper) }
        is Map<*, *> -> joined(sorted(value), out, "{" to "}", deeper, line) { (key, item) ->
            quoted(key, out)
            out.append(": ")
            written(item, out, deeper)
        }
        else -> out.append(plain(value))
    }
}

private fun <T> joined(
    items: List<T>,
    out: StringBuilder,
    brackets: Pair<String, String>,
    before: String = "",
    after: String = "",
    each: (T) -> Unit,
) {
    out.append(brackets.first)
    items.forEachIndexed { index, item ->
        if (index > 0) out.append(',')
        out.append(before)
        each(item)
    }
    if (items.isNotEmpty()) out.append(after)
    out.append(brackets.second)
}

// UTF-8 sorts as code points do, UTF-16 does not
private fun sorted(map: Map<*, *>): List<Pair<String, Any?>> =
    map.entries.map { it.key as String to it.value }.sortedWith { (left, _), (right, _) ->
        compareUnsigned(left.toByteArray(), right.toByteArray())
    }

private fun compareUnsigned(left: ByteArray, right: ByteArray): Int {
    for (i in 0 until minOf(left.size, right.size)) {
        val difference = (left[i].toInt() and 0xff) - (right[i].toInt() and 0xff)
        if (difference != 0) return difference
    }
    return left.size - right.size
}

private fun plain(value: Any?): String = when (value) {
    null, is Boolean, is Long -> value.toString()
    else -> throw JsonProblem("it holds a fraction")
}

/** A string as Python's json.dumps has it: ASCII. */
private fun quoted(text: String, out: StringBuilder) {
    out.append('"')
    for (char in text) {
        when (char) {
            '"', '\\' -> out.append('\\').append(char)
            '\n' -> out.append("\\n")
            '\r' -> out.append("\\r")
            '\t' -> out.append("\\t")
            '\b' -> out.append("\\b")
            '\u000c' -> out.append("\\f")
            in ' '..'~' -> out.append(char)
            else -> out.append("\\u%04x".format(char.code))
        }
    }
    out.append('"')
}
