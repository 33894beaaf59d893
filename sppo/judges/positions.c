/* DeBERTa's relative positions and the softmax over them, for a row of scores while it is in the cache.

   scores[q][k] += by_query[q][p] + by_key[p][k],   p = apart[q - k + tokens - 1]
   scores[q] = softmax(scores[q])

   scores (heads, tokens, tokens), by_query (heads, tokens, positions), by_key (heads, positions, tokens), all contiguous.
   apart (2 tokens - 1): the position of each distance q - k, from 1 - tokens on. A nan stays a nan.
   room: floats, `tokens` of them; for bfloat16, tokens + 2 tokens positions. */

#include <math.h>
#include <stdint.h>
#include <string.h>

/* e^x for x <= 0, relative error below 3e-7, without a call, so that compilers vectorise the loop around it:
   x = n ln 2 + r with |r| <= ln 2 / 2, e^r by its Taylor series, 2^n by the bits of an exponent. */
static inline float exponential(float x)
{
    const float clamped = x < -87.0f ? -87.0f : x;
    const float n = (clamped * 1.44269504f + 12582912.0f) - 12582912.0f; /* to the nearest whole number */
    const float r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
    const float series = 0.5f + r * (1.6666667e-1f + r * (4.1666667e-2f + r * (8.3333333e-3f + r * 1.3888889e-3f)));
    const int32_t bits = ((int32_t)n + 127) * 8388608;
    float power;
    memcpy(&power, &bits, sizeof power);
    return (1.0f + r * (1.0f + r * series)) * power;
}

static inline float from_bfloat16(uint16_t value)
{
    const uint32_t bits = (uint32_t)value << 16;
    float found;
    memcpy(&found, &bits, sizeof found);
    return found;
}

static inline uint16_t to_bfloat16(float value) /* to the nearest, of two the even one */
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

/* row: scores of a query, replaced by their softmax. own: its products with all positions. table: the keys'. */
static inline void one_row(float *restrict row, const float *restrict own, const float *restrict table,
                           const int32_t *restrict position, int64_t tokens)
{
    float highest = -INFINITY, sum = 0.0f;
#pragma omp simd reduction(max : highest)
    for (int64_t k = 0; k < tokens; k++) {
        const int32_t p = position[-k];
        row[k] += own[p] + table[p * tokens + k];
        highest = row[k] > highest ? row[k] : highest;
    }
#pragma omp simd reduction(+ : sum)
    for (int64_t k = 0; k < tokens; k++) {
        row[k] = exponential(row[k] - highest);
        sum += row[k];
    }
    const float share = 1.0f / sum;
#pragma omp simd
    for (int64_t k = 0; k < tokens; k++)
        row[k] *= share;
}

void softmax_float32(float *restrict scores, const float *restrict by_query, const float *restrict by_key,
                     const int32_t *restrict apart, float *restrict room, int64_t heads, int64_t tokens, int64_t positions)
{
    (void)room;
    for (int64_t row = 0; row < heads * tokens; row++)
        one_row(scores + row * tokens, by_query + row * positions, by_key + row / tokens * positions * tokens,
                apart + row % tokens + tokens - 1, tokens);
}

void softmax_bfloat16(uint16_t *restrict scores, const uint16_t *restrict by_query, const uint16_t *restrict by_key,
                      const int32_t *restrict apart, float *restrict room, int64_t heads, int64_t tokens, int64_t positions)
{
    const int64_t entries = tokens * positions;
    float *row = room, *own = room + tokens, *table = room + tokens + entries;
    for (int64_t head = 0; head < heads; head++) {
#pragma omp simd
        for (int64_t entry = 0; entry < entries; entry++)
            own[entry] = from_bfloat16(by_query[head * entries + entry]);
#pragma omp simd
        for (int64_t entry = 0; entry < entries; entry++)
            table[entry] = from_bfloat16(by_key[head * entries + entry]);
        for (int64_t q = 0; q < tokens; q++) {
            uint16_t *found = scores + (head * tokens + q) * tokens;
#pragma omp simd
            for (int64_t k = 0; k < tokens; k++)
                row[k] = from_bfloat16(found[k]);
            one_row(row, own + q * positions, table, apart + q + tokens - 1, tokens);
#pragma omp simd
            for (int64_t k = 0; k < tokens; k++)
                found[k] = to_bfloat16(row[k]);
        }
    }
}
