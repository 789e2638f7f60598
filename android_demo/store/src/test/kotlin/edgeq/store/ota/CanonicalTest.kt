package edgeq.store.ota

import edgeq.store.JsonProblem
import edgeq.store.parseJson
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertThrows
import org.junit.jupiter.api.Test

/** Against what securesystemslib's encode_canonical and Python's json.dumps give for the same value. */
class CanonicalTest {
    // U+1F600 sorts after U+FFFD by code point, and before it in UTF-16
    private val value = parseJson(
        """{"b": [1, -2, true, null, [], {}], "a\"\\": "x\n\u007f\u00e4/\ud83d\ude00", "\ud83d\ude00": 1, "\ufffd": 2}""".toByteArray(),
    )

    @Test
    fun `canonical JSON escapes quotes and backslashes alone, and sorts by code point`() {
        val expected = "{\"a\\\"\\\\\":\"x\n\u007f\u00e4/\ud83d\ude00\",\"b\":[1,-2,true,null,[],{}],\"\ufffd\":2,\"\ud83d\ude00\":1}"
        assertEquals(expected, canonical(value).decodeToString())
    }

    @Test
    fun `a metadata file is written as python-tuf writes it`() {
        val expected = """
            {
             "a\"\\": "x\n\u007f\u00e4/\ud83d\ude00",
             "b": [
              1,
              -2,
              true,
              null,
              [],
              {}
             ],
             "\ufffd": 2,
             "\ud83d\ude00": 1
            }
        """.trimIndent()
        assertEquals(expected, written(value).decodeToString())
    }

    @Test
    fun `there are no fractions`() {
        assertThrows(JsonProblem::class.java) { canonical(parseJson("[1.5]".toByteArray())) }
    }
}
