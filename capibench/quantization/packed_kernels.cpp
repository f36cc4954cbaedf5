// Products with packed low-bit weights on a CPU: y = x · Wᵀ without ever holding W unpacked.
//
// PyTorch's own packed kernels are vectorised for bf16 activations only, and decode one row of
// activations at a time; where a CPU has no bf16 units they are no faster than plain fp32. These
// unpack a group of weights into registers once and use it for up to MAX_TILE rows, in fp32.
//
// Layout: int32 words [out / BLOCK][in / per][BLOCK] with per = 32 / bits. Word (b, w, l) holds
// the inputs w*per .. w*per+per-1 of the output channel b*BLOCK+l, lowest bits first: the words of
// a GPTQ checkpoint, with the channels of a block side by side. Scales (float) and zeros (uint8):
// [out / BLOCK][num_groups][BLOCK].
//
// Plain C++ with vector extensions of GCC and Clang; compiled for the machine that it runs on.

#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__AVX512F__)
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif
constexpr int VECTORS = 2;              // registers that hold one number of every channel
constexpr int BLOCK = VECTORS * LANES;  // output channels that stand side by side
constexpr int MAX_TILE = 6;  // rows of x that share one unpacking: 12 sums fill 16 registers

// Sums that grow side by side: one row alone would wait for the latency of its additions.
template <int TILE>
constexpr int CHAINS = TILE == 1 ? 4 : TILE == 2 ? 2 : 1;

typedef float Floats __attribute__((vector_size(LANES * 4)));
typedef int32_t Ints __attribute__((vector_size(LANES * 4)));
typedef uint8_t Bytes __attribute__((vector_size(LANES)));
typedef uint16_t Halves __attribute__((vector_size(LANES * 2)));

static inline Floats load_floats(const float* at) {
  Floats v;
  std::memcpy(&v, at, sizeof v);
  return v;
}

static inline Floats load_zeros(const uint8_t* at) {
  Bytes v;
  std::memcpy(&v, at, sizeof v);
  return __builtin_convertvector(v, Floats);
}

static inline Ints load_ints(const int32_t* at) {
  Ints v;
  std::memcpy(&v, at, sizeof v);
  return v;
}

static inline void store(float* at, Floats v) { std::memcpy(at, &v, sizeof v); }

// bf16, rounded to nearest even; weights are finite.
static inline void store(uint16_t* at, Floats v) {
  typedef uint32_t Words __attribute__((vector_size(LANES * 4)));
  Words bits;
  std::memcpy(&bits, &v, sizeof bits);
  bits = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  Halves half = __builtin_convertvector(bits, Halves);
  std::memcpy(at, &half, sizeof half);
}

template <int BITS, int POSITION>
static inline Floats unpack(Ints words) {
  constexpr int32_t mask = (1 << BITS) - 1;
  return __builtin_convertvector((words >> (POSITION * BITS)) & mask, Floats);
}

// Adds the products of one word's inputs, position by position (unrolled by the compiler).
template <int BITS, int TILE, int POSITION>
static inline void multiply_word(const Ints* words, const float* x, int64_t x_stride,
                                 Floats (*sums)[TILE][VECTORS]) {
  if constexpr (POSITION < 32 / BITS) {
    Floats weights[VECTORS];
    for (int v = 0; v < VECTORS; ++v) weights[v] = unpack<BITS, POSITION>(words[v]);
    for (int m = 0; m < TILE; ++m) {
      const float value = x[m * x_stride + POSITION];
      for (int v = 0; v < VECTORS; ++v) sums[POSITION % CHAINS<TILE>][m][v] += weights[v] * value;
    }
    multiply_word<BITS, TILE, POSITION + 1>(words, x, x_stride, sums);
  }
}

// y[m, channels of one block] for TILE rows. x_sums [TILE][num_groups]: sum of each group's inputs.
template <int BITS, int TILE>
static void multiply_block(const float* x, int64_t num_in, const int32_t* packed,
                           const float* scales, const uint8_t* zeros, const float* x_sums,
                           int64_t group_size, float* y, int64_t num_out) {
  constexpr int per = 32 / BITS;
  const int64_t num_groups = num_in / group_size;
  Floats totals[TILE][VECTORS] = {};
  for (int64_t g = 0; g < num_groups; ++g) {
    Floats chains[CHAINS<TILE>][TILE][VECTORS] = {};
    for (int64_t i = g * group_size; i < (g + 1) * group_size; i += per) {
      Ints words[VECTORS];
      for (int v = 0; v < VECTORS; ++v)
        words[v] = load_ints(packed + (i / per) * BLOCK + v * LANES);
      multiply_word<BITS, TILE, 0>(words, x + i, num_in, chains);
    }
    for (int v = 0; v < VECTORS; ++v) {
      const Floats scale = load_floats(scales + g * BLOCK + v * LANES);
      const Floats zero = load_zeros(zeros + g * BLOCK + v * LANES);
      for (int m = 0; m < TILE; ++m) {
        Floats sum = chains[0][m][v];
        for (int c = 1; c < CHAINS<TILE>; ++c) sum += chains[c][m][v];
        totals[m][v] += scale * (sum - zero * x_sums[m * num_groups + g]);
      }
    }
  }
  for (int m = 0; m < TILE; ++m)
    for (int v = 0; v < VECTORS; ++v) store(y + m * num_out + v * LANES, totals[m][v]);
}

template <int BITS>
static void multiply_rows(const float* x, int64_t rows, int64_t num_in, const int32_t* packed,
                          const float* scales, const uint8_t* zeros, const float* x_sums,
                          int64_t group_size, float* y, int64_t num_out, int num_threads) {
  const int64_t num_groups = num_in / group_size;
  const int64_t block_words = num_in / (32 / BITS) * BLOCK;
#pragma omp parallel for schedule(static) num_threads(num_threads) if (num_threads > 1)
  for (int64_t b = 0; b < num_out / BLOCK; ++b) {
    for (int64_t m = 0; m < rows;) {
      auto call = [&](auto tile) {
        constexpr int TILE = decltype(tile)::value;
        multiply_block<BITS, TILE>(x + m * num_in, num_in, packed + b * block_words,
                                   scales + b * num_groups * BLOCK, zeros + b * num_groups * BLOCK,
                                   x_sums + m * num_groups, group_size, y + m * num_out + b * BLOCK,
                                   num_out);
        m += TILE;
      };
      if (rows - m >= MAX_TILE) call(std::integral_constant<int, MAX_TILE>{});
      else if (rows - m >= 4) call(std::integral_constant<int, 4>{});
      else if (rows - m >= 2) call(std::integral_constant<int, 2>{});
      else call(std::integral_constant<int, 1>{});
    }
  }
}

template <int BITS, int POSITION, typename Out>
static inline void dequantize_word(const Ints* words, const Floats* scale, const Floats* offset,
                                   Out* out, int64_t out_stride) {
  if constexpr (POSITION < 32 / BITS) {
    for (int v = 0; v < VECTORS; ++v)
      store(out + POSITION * out_stride + v * LANES,
            (unpack<BITS, POSITION>(words[v]) - offset[v]) * scale[v]);
    dequantize_word<BITS, POSITION + 1>(words, scale, offset, out, out_stride);
  }
}

// Wᵀ [in, num_blocks * BLOCK] of the blocks from first_block on, row-major.
template <int BITS, typename Out>
static void dequantize_blocks(const int32_t* packed, const float* scales, const uint8_t* zeros,
                              int64_t num_in, int64_t group_size, int64_t first_block,
                              int64_t num_blocks, Out* out, int num_threads) {
  constexpr int per = 32 / BITS;
  const int64_t num_groups = num_in / group_size;
  const int64_t out_stride = num_blocks * BLOCK;
#pragma omp parallel for schedule(static) num_threads(num_threads) if (num_threads > 1)
  for (int64_t n = 0; n < num_blocks; ++n) {
    const int64_t b = first_block + n;
    const int32_t* words_at = packed + b * (num_in / per) * BLOCK;
    for (int64_t g = 0; g < num_groups; ++g) {
      Floats scale[VECTORS], offset[VECTORS];
      for (int v = 0; v < VECTORS; ++v) {
        scale[v] = load_floats(scales + (b * num_groups + g) * BLOCK + v * LANES);
        offset[v] = load_zeros(zeros + (b * num_groups + g) * BLOCK + v * LANES);
      }
      for (int64_t i = g * group_size; i < (g + 1) * group_size; i += per) {
        Ints words[VECTORS];
        for (int v = 0; v < VECTORS; ++v)
          words[v] = load_ints(words_at + (i / per) * BLOCK + v * LANES);
        dequantize_word<BITS, 0>(words, scale, offset, out + i * out_stride + n * BLOCK,
                                 out_stride);
      }
    }
  }
}

extern "C" {

// bits: 2, 4 or 8; in and group_size multiples of 32 / bits; out a multiple of BLOCK.
int multiply(int bits, const float* x, int64_t rows, int64_t num_in, const int32_t* packed,
             const float* scales, const uint8_t* zeros, const float* x_sums, int64_t group_size,
             float* y, int64_t num_out, int num_threads) {
  auto* rows_of = bits == 2   ? multiply_rows<2>
                  : bits == 4 ? multiply_rows<4>
                  : bits == 8 ? multiply_rows<8>
                              : nullptr;
  if (!rows_of) return 1;
  rows_of(x, rows, num_in, packed, scales, zeros, x_sums, group_size, y, num_out, num_threads);
  return 0;
}

int dequantize(int bits, int to_bf16, const int32_t* packed, const float* scales,
               const uint8_t* zeros, int64_t num_in, int64_t group_size, int64_t first_block,
               int64_t num_blocks, void* out, int num_threads) {
  if (bits != 2 && bits != 4 && bits != 8) return 1;
  auto run = [&](auto* typed) {
    using Out = std::remove_pointer_t<decltype(typed)>;
    auto* blocks = bits == 2   ? dequantize_blocks<2, Out>
                   : bits == 4 ? dequantize_blocks<4, Out>
                               : dequantize_blocks<8, Out>;
    blocks(packed, scales, zeros, num_in, group_size, first_block, num_blocks, typed, num_threads);
  };
  if (to_bf16) run(static_cast<uint16_t*>(out));
  else run(static_cast<float*>(out));
  return 0;
}

int block() { return BLOCK; }
}
