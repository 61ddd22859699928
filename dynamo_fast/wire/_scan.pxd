# What neither Python nor Cython code can do: look at 16 bytes at once.

cdef extern from *:
    """
    #if defined(__SSE2__) && defined(__GNUC__) /* each 64-bit x86 */
    #include <emmintrin.h>
    #include <string.h>

    /* A bit for each byte of the block that is `byte`. */
    #define WHERE(block, byte) ((unsigned)_mm_movemask_epi8(_mm_cmpeq_epi8(block, _mm_set1_epi8(byte))))

    CYTHON_UNUSED static int is_one_value_in_blocks(const char *text, Py_ssize_t size) {
        Py_ssize_t at, depth = 0;
        unsigned in_string = 0; /* all bits set: the block begins inside a string */
        for (at = 0; at < size; at += 16) {
            char rest[16] = {0};
            if (size - at < 16) memcpy(rest, text + at, size - at);
            __m128i block = _mm_loadu_si128((const __m128i *)(size - at < 16 ? rest : text + at));
            __m128i folded = _mm_or_si128(block, _mm_set1_epi8(0x20)); /* [ is { now, and ] is } */
            if (WHERE(block, 0x5c)) return -1;
            unsigned inside = WHERE(block, '"');
            if (in_string && !inside) continue;
            /* Each bit becomes the parity of the quotes up to it: 1 inside of strings. */
            inside ^= inside << 1, inside ^= inside << 2, inside ^= inside << 4, inside ^= inside << 8;
            inside = (inside ^ in_string) & 0xffff;
            in_string = inside >> 15 ? 0xffff : 0;
            unsigned begins = WHERE(folded, '{') & ~inside, ends = WHERE(folded, '}') & ~inside;
            unsigned commas = WHERE(block, ',') & ~inside;
            if (!(begins | ends)) {
                if (commas && !depth) return 0;
                continue;
            }
            for (unsigned left = begins | ends | commas; left; left &= left - 1) {
                unsigned bit = left & -left;
                if (bit & begins) depth++;
                else if (bit & ends) {
                    if (--depth < 0) return 0;
                } else if (!depth) return 0;
            }
        }
        return !in_string && !depth && size > 0;
    }
    #else
    CYTHON_UNUSED static int is_one_value_in_blocks(const char *text, Py_ssize_t size) { return -1; }
    #endif
    """
    # What `is_one_value` returns; -1 if it is to be found out byte by byte: this sees no backslashes.
    int is_one_value_in_blocks(const char *text, Py_ssize_t size) noexcept
