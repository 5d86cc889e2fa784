/* See policy.h. The layers are those of arXiv 2503.14858: dense, LayerNorm, activation; every fourth
   one adds its output to a residual sum. In a pre-norm network LayerNorm is before dense, and before
   the output; activations are between the four layers. All sums are fp32. */

#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200112L
#endif

#include "policy.h"

#ifdef __FAST_MATH__
#error "compile without -ffast-math: it removes the rounding that the exponential is made of"
#endif

#include <math.h>
#include <string.h>

#if defined(__unix__) || defined(__APPLE__)
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#define HAS_MMAP 1
#endif

#define LANES 8
/* Rows of numbers begin at multiples of LANES in the file; what fills them up is 0. */
#define PADDED(n) (((n) + LANES - 1) / LANES * LANES)
#define INPUTS (POLICY_STATE_SIZE + POLICY_GOAL_SIZE)
#define OUTPUTS (POLICY_CHUNK * POLICY_ACTION_SIZE)
#define WIDTH POLICY_WIDTH
#define WIDE PADDED(WIDTH)
#define BLOCK 4

typedef struct {
    uint32_t magic, version, checksum, task_hash;
    uint32_t state, goal, action, chunk, width;
    uint32_t layers, depth, relu, clip, pairs;
    float branch_scale;
    uint32_t floats;
    unsigned char sha256_of_weights[32];
    uint32_t pre_norm;
    float tolerance;
    uint32_t unused[6];
} header_t;

typedef float lanes_t __attribute__((vector_size(4 * LANES), aligned(4)));
typedef int32_t bits_t __attribute__((vector_size(4 * LANES), aligned(4)));

static const header_t *header(const policy_t *p) { return (const header_t *)p->bytes; }
static const float *numbers(const policy_t *p) { return (const float *)(p->bytes + sizeof(header_t)); }

static float sum_of(const lanes_t *lanes) {
    const float *v = (const float *)lanes;
    return ((v[0] + v[4]) + (v[1] + v[5])) + ((v[2] + v[6]) + (v[3] + v[7]));
}

/* y = W x + b for rows of n numbers, filled up with zeros; four rows at a time share the loads of x. */
static void dense(const float *w, const float *b, const float *x, float *y, int rows, int n) {
    int r = 0;
    for (; r + 4 <= rows; r += 4) {
        const float *w0 = w + (size_t)r * n, *w1 = w0 + n, *w2 = w1 + n, *w3 = w2 + n;
        lanes_t s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0};
        for (int k = 0; k < n; k += LANES) {
            lanes_t v = *(const lanes_t *)(x + k);
            s0 += v * *(const lanes_t *)(w0 + k);
            s1 += v * *(const lanes_t *)(w1 + k);
            s2 += v * *(const lanes_t *)(w2 + k);
            s3 += v * *(const lanes_t *)(w3 + k);
        }
        y[r] = sum_of(&s0) + b[r];
        y[r + 1] = sum_of(&s1) + b[r + 1];
        y[r + 2] = sum_of(&s2) + b[r + 2];
        y[r + 3] = sum_of(&s3) + b[r + 3];
    }
    for (int left = rows % 4; left > 0; left--, r++) {
        lanes_t s = {0};
        for (int k = 0; k < n; k += LANES)
            s += *(const lanes_t *)(x + k) * *(const lanes_t *)(w + (size_t)r * n + k);
        y[r] = sum_of(&s) + b[r];
    }
}

/* exp of each lane within 2 units of the last place, for -87 <= x <= 87: 2^n times a polynomial. */
static void exponential(lanes_t *lanes) {
    lanes_t x = *lanes;
    bits_t above = x > 87.0f, below = x < -87.0f;
    x = (lanes_t)(((bits_t)x & ~above & ~below) | ((bits_t)((lanes_t){0} + 87.0f) & above)
                  | ((bits_t)((lanes_t){0} - 87.0f) & below));
    /* Adding 1.5 * 2^23 rounds to the nearest whole number. */
    lanes_t shifted = x * 1.44269504f + 12582912.0f, n = shifted - 12582912.0f;
    lanes_t r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    lanes_t p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    bits_t power = (__builtin_convertvector(n, bits_t) + 127) << 23;
    *lanes = p * (lanes_t)power;
}

/* LN(x) in place; what fills up the row stays 0. */
static void normalise(float *x, const float *g, const float *b) {
    lanes_t total = {0}, squares = {0};
    for (int k = 0; k < WIDE; k += LANES) total += *(lanes_t *)(x + k);
    float mean = sum_of(&total) / WIDTH;
    for (int k = 0; k < WIDTH; k++) x[k] -= mean;
    for (int k = 0; k < WIDE; k += LANES) {
        lanes_t v = *(lanes_t *)(x + k);
        squares += v * v;
    }
    float scale = 1.0f / sqrtf(sum_of(&squares) / WIDTH + 1e-6f);
    for (int k = 0; k < WIDE; k += LANES)
        *(lanes_t *)(x + k) = *(lanes_t *)(x + k) * scale * *(const lanes_t *)(g + k)
                              + *(const lanes_t *)(b + k);
}

/* act(x) in place. */
static void activate(float *x, uint32_t relu) {
    for (int k = 0; k < WIDE; k += LANES) {
        lanes_t n = *(lanes_t *)(x + k);
        if (relu) {
            *(lanes_t *)(x + k) = (lanes_t)((bits_t)n & ~(n < 0.0f));
        } else {
            lanes_t e = -n;
            exponential(&e);
            *(lanes_t *)(x + k) = n / (1.0f + e);
        }
    }
}

void policy_act(const policy_t *policy, const float *state, const float *goal, float *action) {
    const header_t *h = header(policy);
    const float *w = numbers(policy), *norm, *first;
    float input[PADDED(INPUTS)] = {0}, x[WIDE] = {0}, inner[2][WIDE] = {{0}};
    memcpy(input, state, sizeof(float) * POLICY_STATE_SIZE);
    memcpy(input + POLICY_STATE_SIZE, goal, sizeof(float) * POLICY_GOAL_SIZE);
    dense(w, w + (size_t)WIDTH * PADDED(INPUTS), input, x, WIDTH, PADDED(INPUTS));
    norm = w + (size_t)WIDTH * PADDED(INPUTS) + WIDE;
    if (!h->pre_norm) {
        normalise(x, norm, norm + WIDE);
        activate(x, h->relu);
    }
    first = norm + 2 * WIDE;
    for (uint32_t k = 0; k < h->depth; k++) {
        w = first + (size_t)(k % h->layers) * ((size_t)WIDTH * WIDE + 3 * WIDE);
        const float *bias = w + (size_t)WIDTH * WIDE;
        float *from = k % BLOCK ? inner[(k + 1) % 2] : x, *to = inner[k % 2];
        if (h->pre_norm) {
            if (k % BLOCK) activate(from, h->relu);
            else from = memcpy(inner[(k + 1) % 2], x, sizeof x);
            normalise(from, bias + WIDE, bias + 2 * WIDE);
        }
        dense(w, bias, from, to, WIDTH, WIDE);
        if (!h->pre_norm) {
            normalise(to, bias + WIDE, bias + 2 * WIDE);
            activate(to, h->relu);
        }
        if (k % BLOCK == BLOCK - 1)
            for (int i = 0; i < WIDTH; i++) x[i] += h->branch_scale * to[i];
    }
    if (h->pre_norm) normalise(x, norm, norm + WIDE);
    w = first + (size_t)h->layers * ((size_t)WIDTH * WIDE + 3 * WIDE);
    dense(w, w + (size_t)OUTPUTS * WIDE, x, action, OUTPUTS, WIDE);
    for (int i = 0; i < OUTPUTS; i++)
        /* A comparison with NaN is false, so that NaN stays NaN. */
        action[i] = !h->clip ? tanhf(action[i])
                    : action[i] < -1.0f ? -1.0f : action[i] > 1.0f ? 1.0f : action[i];
}

enum policy_status policy_self_test(const policy_t *policy) {
    const header_t *h = header(policy);
    size_t pair = POLICY_STATE_SIZE + POLICY_GOAL_SIZE + OUTPUTS;
    const float *p = numbers(policy) + h->floats - h->pairs * pair;
    /* Files of earlier versions do not name it. */
    float action[OUTPUTS], tolerance = h->tolerance ? h->tolerance : 1e-5f;
    for (uint32_t k = 0; k < h->pairs; k++, p += pair) {
        policy_act(policy, p, p + POLICY_STATE_SIZE, action);
        for (int i = 0; i < OUTPUTS; i++)
            if (!(fabsf(action[i] - p[INPUTS + i]) <= tolerance)) return POLICY_WRONG_ACTIONS;
    }
    return POLICY_OK;
}

/* CRC-32 as zlib has it, without the four bytes of the checksum itself. */
static uint32_t checksum_of(const unsigned char *bytes, size_t size) {
    uint32_t table[256], value = 0xFFFFFFFFu;
    for (uint32_t i = 0; i < 256; i++) {
        table[i] = i;
        for (int bit = 0; bit < 8; bit++) table[i] = table[i] >> 1 ^ (table[i] & 1 ? 0xEDB88320u : 0);
    }
    for (size_t k = 0; k < size; k++)
        if (k < 8 || k >= 12) value = table[(value ^ bytes[k]) & 255] ^ value >> 8;
    return ~value;
}

static enum policy_status problem_of(const unsigned char *bytes, size_t size) {
    const header_t *h = (const header_t *)bytes;
    if ((uintptr_t)bytes % sizeof(float)) return POLICY_UNALIGNED;
    if (size < sizeof(header_t)) return POLICY_CUT;
    if (h->magic != 0x4C524354u) return POLICY_NO_POLICY;
    /* 2 is of pre-norm networks. */
    if (h->version != 1 && h->version != 2) return POLICY_VERSION;
    if (size != sizeof(header_t) + 4 * (size_t)h->floats) return POLICY_CUT;
    if (checksum_of(bytes, size) != h->checksum) return POLICY_DAMAGED;
    if (h->task_hash != POLICY_TASK_HASH || h->state != POLICY_STATE_SIZE
        || h->goal != POLICY_GOAL_SIZE || h->action != POLICY_ACTION_SIZE
        || h->chunk != POLICY_CHUNK || h->width != WIDTH)
        return POLICY_OTHER;
    size_t layer = (size_t)WIDTH * WIDE + 3 * WIDE;
    size_t floats = (size_t)WIDTH * PADDED(INPUTS) + 3 * WIDE + h->layers * layer
                    + (size_t)OUTPUTS * WIDE + OUTPUTS + h->pairs * (size_t)(INPUTS + OUTPUTS);
    if (h->pre_norm != h->version - 1 || !h->layers || h->layers % BLOCK || !h->depth || h->depth % BLOCK || !h->pairs
        || floats != h->floats)
        return POLICY_NO_POLICY;
    return POLICY_OK;
}

enum policy_status policy_open_memory(policy_t *policy, const void *bytes, size_t size) {
    enum policy_status status = problem_of((const unsigned char *)bytes, size);
    policy->bytes = status == POLICY_OK ? (const unsigned char *)bytes : NULL;
    policy->size = size;
    policy->mapped = 0;
    return status;
}

#ifdef HAS_MMAP
enum policy_status policy_open(policy_t *policy, const char *path) {
    struct stat about;
    int file = open(path, O_RDONLY);
    memset(policy, 0, sizeof *policy);
    if (file < 0) return POLICY_NO_FILE;
    if (fstat(file, &about) || about.st_size <= 0) {
        close(file);
        return POLICY_CUT;
    }
    void *bytes = mmap(NULL, (size_t)about.st_size, PROT_READ, MAP_PRIVATE, file, 0);
    close(file);
    if (bytes == MAP_FAILED) return POLICY_NO_FILE;
    enum policy_status status = policy_open_memory(policy, bytes, (size_t)about.st_size);
    policy->mapped = status == POLICY_OK;
    if (status != POLICY_OK) munmap(bytes, (size_t)about.st_size);
    return status;
}

void policy_close(policy_t *policy) {
    if (policy->mapped) munmap((void *)policy->bytes, policy->size);
    policy->mapped = 0;
    policy->bytes = NULL;
}
#else
enum policy_status policy_open(policy_t *policy, const char *path) {
    (void)path;
    policy->bytes = NULL;
    return POLICY_NO_MAPPING;
}

void policy_close(policy_t *policy) { policy->bytes = NULL; }
#endif

const char *policy_message(enum policy_status status) {
    switch (status) {
    case POLICY_OK: return "ok";
    case POLICY_NO_FILE: return "the file of weights cannot be opened";
    case POLICY_NO_MAPPING: return "this system maps no files; read it and call policy_open_memory";
    case POLICY_UNALIGNED: return "the content of the file must begin at a multiple of 4 bytes";
    case POLICY_CUT: return "the file of weights is cut short or too long; copy it again";
    case POLICY_NO_POLICY: return "the file is no exported policy, or this machine is big-endian";
    case POLICY_VERSION: return "the file and policy.c are of different versions; export again";
    case POLICY_DAMAGED: return "the file of weights is damaged; copy it again";
    case POLICY_OTHER: return "the file is of another task or size than policy.h";
    case POLICY_WRONG_ACTIONS: return "the self-test failed: the actions are not the exported ones";
    }
    return "unknown status";
}

#ifdef POLICY_MAIN
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

/* cc -O3 -march=native -DPOLICY_MAIN policy.c -lm -o policy && ./policy policy.bin [calls]
   runs the self-test, and with a number of calls prints the nanoseconds of each. With "-" for it,
   reads states and goals as raw floats and writes actions. */
int main(int count, char **arguments) {
    policy_t policy;
    float state[POLICY_STATE_SIZE + 1] = {0}, goal[POLICY_GOAL_SIZE + 1] = {0}, action[OUTPUTS];
    enum policy_status status = policy_open(&policy, count > 1 ? arguments[1] : "policy.bin");
    if (status == POLICY_OK) status = policy_self_test(&policy);
    if (status != POLICY_OK) {
        fprintf(stderr, "%s\n", policy_message(status));
        return status;
    }
    if (count > 2 && !strcmp(arguments[2], "-")) {
        while (fread(state, 4, POLICY_STATE_SIZE, stdin) == POLICY_STATE_SIZE
               && fread(goal, 4, POLICY_GOAL_SIZE, stdin) == POLICY_GOAL_SIZE) {
            policy_act(&policy, state, goal, action);
            fwrite(action, 4, OUTPUTS, stdout);
        }
        return 0;
    }
    puts("self-test passed");
    for (long k = count > 2 ? atol(arguments[2]) : 0; k > 0; k--) {
        struct timespec begin, end;
        clock_gettime(CLOCK_MONOTONIC, &begin);
        policy_act(&policy, state, goal, action);
        clock_gettime(CLOCK_MONOTONIC, &end);
        printf("%lld\n", (end.tv_sec - begin.tv_sec) * 1000000000LL + end.tv_nsec - begin.tv_nsec);
        state[0] += 1e-3f * action[0];
    }
    policy_close(&policy);
    return 0;
}
#endif
