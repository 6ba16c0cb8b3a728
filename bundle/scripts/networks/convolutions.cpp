// How are a 3 x 3 convolution and its gradients had in bfloat16 with fewer products?
//
// By Winograd's algorithm F(2, 3) and its transposed F(3, 2) along the rows (Lavin and Gray 2016, arXiv:1509.09308,
// section 4.1): two neighbours in a row, whose three taps take six products each way, take four of sums and differences
// of their numbers. Those are rounded to bfloat16, once more than the numbers themselves. Along the columns taps are
// taken one by one, and so are weights' gradients with a stride of 2.
//
// Tensors are channels last in memory: [sample][row][column][channel]. The processor multiplies pairs of bfloat16
// numbers and adds both products to a float32 number: what is summed has to lie in pairs. A row is transformed once; as
// many rows are kept as the taps down need. All that is read repeatedly stays in the L2 cache, and what is read from
// memory next is fetched meanwhile. Threads share the rows.

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

namespace {

using at::Tensor;
constexpr int64_t kTaps = 3;      // down, and across
constexpr int64_t kChannels = 32; // as many as a register has bfloat16 numbers
constexpr int64_t kTile = 8;      // of channels or pixels, whose sums with 32 channels leave registers over
constexpr int64_t kProducts = 4;  // across, of two neighbours in a row with three taps

inline __m512i load(const uint16_t* from) { return _mm512_loadu_si512(from); }

inline __m512 widen(const uint16_t* from) {
  const __m256i numbers = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(numbers), 16));
}

inline __m512i narrow(__m512 low, __m512 high) { return (__m512i)_mm512_cvtne2ps_pbh(high, low); }

// Writes 16 numbers and 16 others side by side, rounded: a0 b0 a1 b1 ...
inline void interleave(__m512 a, __m512 b, __m512i* to) {
  alignas(64) static constexpr uint16_t kOrder[] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                    8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  _mm512_store_si512(to, _mm512_permutexvar_epi16(_mm512_load_si512(kOrder), narrow(a, b)));
}

// The same for 32 and 32, as they are.
inline void interleave(__m512i a, __m512i b, __m512i* to) {
  const __m512i low = _mm512_unpacklo_epi16(a, b), high = _mm512_unpackhi_epi16(a, b); // by 128 bits
  _mm512_store_si512(to, _mm512_permutex2var_epi64(low, _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), high));
  _mm512_store_si512(to + 1, _mm512_permutex2var_epi64(low, _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15), high));
}

// Writes a tile's sums to [8][32].
[[gnu::always_inline]] inline void store(const __m512 (&sum)[kTile][2], float* to) {
#pragma GCC unroll 8
  for (int64_t i = 0; i < kTile; ++i) {
    _mm512_store_ps(to + i * kChannels, sum[i][0]);
    _mm512_store_ps(to + i * kChannels + 16, sum[i][1]);
  }
}

// Fetches one of some shares of what will be read into the L2 cache.
inline void fetch(const uint16_t* from, int64_t numbers, int64_t share, int64_t shares) {
  for (int64_t i = numbers * share / shares / 32; i < numbers * (share + 1) / shares / 32; ++i)
    _mm_prefetch(reinterpret_cast<const char*>(from + i * 32), _MM_HINT_T1);
}

Tensor checked(const Tensor& one) {
  TORCH_CHECK(one.scalar_type() == at::kBFloat16 && one.numel() > 0 && one.size(1) % kChannels == 0,
              "all must be bfloat16 and not empty, with a multiple of 32 channels.");
  return one.contiguous(at::MemoryFormat::ChannelsLast);
}

inline const uint16_t* numbers_of(const Tensor& one) { return static_cast<const uint16_t*>(one.const_data_ptr()); }

// Channels of an image, all or some of those that are taken together.
struct Part {
  const uint16_t* start;
  int64_t channels;
};

// Checks the parts of an image; keeps what is made for it in `tensors`.
std::vector<Part> parts_of(at::TensorList x, std::vector<Tensor>& tensors) {
  TORCH_CHECK(!x.empty(), "x must have a part or more.");
  std::vector<Part> parts;
  for (const Tensor& one : x) {
    TORCH_CHECK(one.dim() == 4 && one.size(0) == x[0].size(0) && one.size(2) == x[0].size(2) &&
                    one.size(3) == x[0].size(3),
                "the parts of x must be (samples, channels, height, width), alike but for channels.");
    tensors.push_back(checked(one));
    parts.push_back({numbers_of(tensors.back()), one.size(1)});
  }
  return parts;
}

int64_t channels_of(const std::vector<Part>& parts) {
  int64_t found = 0;
  for (const Part& part : parts) found += part.channels;
  return found;
}

c10::SymInt channels_of(at::TensorList x) {
  c10::SymInt found = 0;
  for (const Tensor& part : x) found = found + part.sym_size(1);
  return found;
}

namespace of_images {

// The convolution, and the gradient of its input, which is that of grad with the taps turned round.
struct Shapes {
  int64_t samples, in, out; // in: channels of all parts; out: of the result
  int64_t height, width;
  int64_t pairs; // of columns, a multiple of kTile

  int64_t plane() const { return pairs * in; } // a row, for one of the products
  int64_t row() const { return kProducts * plane(); }
  // The weights: [out / 32][product][tap down][in / 2][32][2]
  int64_t weights(int64_t o, int64_t product, int64_t down) const {
    return ((o / kChannels * kProducts + product) * kTaps + down) * in * kChannels;
  }
};

// Writes a row to [product][pair][in], 0 where there are no pixels.
void transform(const Shapes& s, const std::vector<Part>& x, int64_t row, uint16_t* to) {
  for (const Part& part : x) {
    const uint16_t* from = part.start + row * s.width * part.channels;
    for (int64_t p = 0; p < s.pairs; ++p)
      for (int64_t c = 0; c < part.channels; c += kChannels) {
        __m512 d[4][2];
        for (int64_t k = 0; k < 4; ++k) {
          const int64_t column = 2 * p - 1 + k;
          const bool is_there = column >= 0 && column < s.width;
          for (int64_t half = 0; half < 2; ++half)
            d[k][half] = is_there ? widen(from + column * part.channels + c + half * 16) : _mm512_setzero_ps();
        }
        uint16_t* const at = to + p * s.in + c;
        _mm512_store_si512(at, narrow(d[0][0] - d[2][0], d[0][1] - d[2][1]));
        _mm512_store_si512(at + s.plane(), narrow(d[1][0] + d[2][0], d[1][1] + d[2][1]));
        _mm512_store_si512(at + 2 * s.plane(), narrow(d[2][0] - d[1][0], d[2][1] - d[1][1]));
        _mm512_store_si512(at + 3 * s.plane(), narrow(d[1][0] - d[3][0], d[1][1] - d[3][1]));
      }
    to += part.channels;
  }
}

// Takes the three taps across of 16 weights, `apart` numbers from one another, to those of the products.
inline void transform_taps(const uint16_t* first, int64_t apart, __m512 (&to)[kProducts]) {
  const __m512 middle = widen(first + apart), half = _mm512_set1_ps(0.5f);
  to[0] = widen(first);
  to[3] = widen(first + 2 * apart);
  const __m512 outer = to[0] + to[3];
  to[1] = (outer + middle) * half;
  to[2] = (outer - middle) * half;
}

// Writes the weights as the products need them: in pairs of channels. Those of the convolution are [out][tap down][tap
// across][in]; for the gradient of its input they are turned round, and in and out change places.
void transform_weights(const Shapes& s, const uint16_t* weight, bool of_gradient, uint16_t* to) {
  const __m256i next_pair = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7) * static_cast<int>(kChannels);
  const auto of_rows = [&](int64_t o, int64_t down) { // 32 channels of the result, which are rows of weight
    for (int64_t k = 0; k < s.in; k += 16)
      for (int64_t i = 0; i < kChannels; ++i) {
        __m512 taps[kProducts];
        transform_taps(weight + ((o + i) * kTaps + down) * kTaps * s.in + k, s.in, taps);
        for (int64_t product = 0; product < kProducts; ++product) {
          const __m256i pairs = (__m256i)_mm512_cvtneps_pbh(taps[product]);
          uint16_t* const first = to + s.weights(o, product, down) + k * kChannels + i * 2;
          _mm256_i32scatter_epi32(reinterpret_cast<int*>(first), next_pair, pairs, 4);
        }
      }
  };
  const auto of_columns = [&](int64_t o, int64_t down) { // the same where they are columns
    for (int64_t k = 0; k < s.in; k += 2)
      for (int64_t i = 0; i < kChannels; i += 16) {
        __m512 taps[2][kProducts];
        for (int64_t j = 0; j < 2; ++j) {
          const uint16_t* last = weight + (((k + j) * kTaps + kTaps - 1 - down) * kTaps + 2) * s.out + o + i;
          transform_taps(last, -s.out, taps[j]);
        }
        for (int64_t product = 0; product < kProducts; ++product) {
          uint16_t* const pairs = to + s.weights(o, product, down) + k * kChannels + i * 2;
          interleave(taps[0][product], taps[1][product], reinterpret_cast<__m512i*>(pairs));
        }
      }
  };
  at::parallel_for(0, s.out / kChannels * kTaps, 1, [&](int64_t begin, int64_t end) {
    for (int64_t at = begin; at < end; ++at) {
      const int64_t o = at / kTaps * kChannels, down = at % kTaps;
      of_gradient ? of_columns(o, down) : of_rows(o, down);
    }
  });
}

// to[8][32] = the products of 8 pairs' numbers and 32 channels' weights, summed over channels and some rows. Not
// inlined: it takes all registers for itself.
[[gnu::noinline]] void multiply(const Shapes& s, const uint16_t* const* x, const uint16_t* const* weights, int64_t rows,
                                float* to) {
  __m512 sum[kTile][2];
#pragma GCC unroll 8
  for (int64_t p = 0; p < kTile; ++p) sum[p][0] = sum[p][1] = _mm512_setzero_ps();
  const int64_t step = s.in / 2;
  for (int64_t r = 0; r < rows; ++r) {
    // Three addresses, as the processor adds one or two steps by itself.
    const uint32_t *a = reinterpret_cast<const uint32_t*>(x[r]), *b = a + 3 * step, *c = a + 6 * step;
    const uint16_t* w = weights[r];
    for (int64_t k = 0; k < step; ++k, ++a, ++b, ++c, w += 2 * kChannels) {
      const __m512bh w0 = (__m512bh)_mm512_load_si512(w), w1 = (__m512bh)_mm512_load_si512(w + kChannels);
#pragma GCC unroll 8
      for (int64_t p = 0; p < kTile; ++p) {
        const __m512bh pair = (__m512bh)_mm512_set1_epi32((p < 3 ? a : p < 6 ? b : c)[p % 3 * step]);
        sum[p][0] = _mm512_dpbf16_ps(sum[p][0], pair, w0);
        sum[p][1] = _mm512_dpbf16_ps(sum[p][1], pair, w1);
      }
    }
  }
  store(sum, to);
}

// Writes 32 channels of a row from their products, [product][pair][32].
void write_row(const Shapes& s, const float* products, const uint16_t* bias, uint16_t* to) {
  const int64_t apart = s.pairs * kChannels;
  __m512 b[2];
  for (int64_t half = 0; half < 2; ++half) b[half] = bias ? widen(bias + half * 16) : _mm512_setzero_ps();
  for (int64_t column = 0; column < s.width; column += 2, products += kChannels) {
    __m512 left[2], right[2];
    for (int64_t half = 0; half < 2; ++half) {
      __m512 m[kProducts];
      for (int64_t i = 0; i < kProducts; ++i) m[i] = _mm512_load_ps(products + i * apart + half * 16);
      left[half] = m[0] + m[1] + m[2] + b[half];
      right[half] = m[1] - m[2] - m[3] + b[half];
    }
    _mm512_storeu_si512(to + column * s.out, narrow(left[0], left[1]));
    if (column + 1 < s.width) _mm512_storeu_si512(to + (column + 1) * s.out, narrow(right[0], right[1]));
  }
}

// Writes the rows from `begin` to `end`, counted through all samples.
void write_rows(const Shapes& s, const std::vector<Part>& x, const uint16_t* weights, const uint16_t* bias,
                int64_t begin, int64_t end, uint16_t* result) {
  const Tensor memory = at::empty({kTaps * s.row() * 2 + kProducts * s.pairs * kChannels * 4}, at::kByte);
  uint16_t* const kept = static_cast<uint16_t*>(memory.mutable_data_ptr()); // [row % 3][product][pair][in]
  float* const products = reinterpret_cast<float*>(kept + kTaps * s.row()); // [product][pair][32]
  const int64_t shares = s.out / kChannels * kProducts * (s.pairs / kTile);
  int64_t next = 0; // the row of x that is transformed next
  for (int64_t r = begin; r < end; ++r) {
    const int64_t sample = r / s.height, first = r % s.height - 1;
    next = r == begin || first < 0 ? std::max<int64_t>(first, 0) : next;
    for (; next < std::min(first + kTaps, s.height); ++next)
      transform(s, x, sample * s.height + next, kept + next % kTaps * s.row());
    int64_t share = 0;
    const auto fetch_next = [&] {
      for (const Part& part : x) {
        const int64_t length = s.width * part.channels;
        fetch(part.start + (sample * s.height + next) * length, length, share, shares);
      }
      ++share;
    };
    for (int64_t o = 0; o < s.out; o += kChannels) {
      for (int64_t product = 0; product < kProducts; ++product) {
        const uint16_t *of_x[kTaps], *of_weights[kTaps];
        int64_t rows = 0;
        for (int64_t down = 0; down < kTaps; ++down)
          if (first + down >= 0 && first + down < s.height) {
            of_x[rows] = kept + (first + down) % kTaps * s.row() + product * s.plane();
            of_weights[rows++] = weights + s.weights(o, product, down);
          }
        for (int64_t p = 0; p < s.pairs; p += kTile) {
          if (r + 2 < end) fetch_next();
          multiply(s, of_x, of_weights, rows, products + (product * s.pairs + p) * kChannels);
          for (int64_t i = 0; i < rows; ++i) of_x[i] += kTile * s.in;
        }
      }
      write_row(s, products, bias ? bias + o : nullptr, result + r * s.width * s.out + o);
    }
  }
}

void convolve(const std::vector<Part>& x, const Tensor& weight, const uint16_t* bias, bool of_gradient,
              Tensor& result) {
  const int64_t width = result.size(3), tiles = (width + 2 * kTile - 1) / (2 * kTile);
  const Shapes s{result.size(0), channels_of(x), result.size(1), result.size(2), width, tiles * kTile};
  const Tensor memory = at::empty({s.weights(s.out, 0, 0)}, weight.options());
  uint16_t* const weights = static_cast<uint16_t*>(memory.mutable_data_ptr());
  transform_weights(s, numbers_of(weight), of_gradient, weights);
  uint16_t* const to = static_cast<uint16_t*>(result.mutable_data_ptr());
  const int64_t rows = s.samples * s.height, threads = std::min<int64_t>(at::get_num_threads(), rows);
  at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      write_rows(s, x, weights, bias, rows * i / threads, rows * (i + 1) / threads, to);
  });
}

Tensor like(const Tensor& x, const c10::SymInt& channels) {
  const std::vector<c10::SymInt> sizes{x.sym_size(0), channels, x.sym_size(2), x.sym_size(3)};
  return at::empty_symint(sizes, x.options(), at::MemoryFormat::ChannelsLast);
}

Tensor meta_convolution(at::TensorList x, const Tensor& weight, const std::optional<Tensor>&) {
  return like(x[0], weight.sym_size(0));
}

Tensor meta_gradient(const Tensor& grad, const Tensor& weight) { return like(grad, weight.sym_size(1)); }

Tensor convolution(at::TensorList x, const Tensor& weight, const std::optional<Tensor>& bias) {
  std::vector<Tensor> tensors;
  const std::vector<Part> parts = parts_of(x, tensors);
  TORCH_CHECK(weight.dim() == 4 && weight.size(1) == channels_of(parts) && weight.size(2) == kTaps &&
                  weight.size(3) == kTaps && weight.size(0) % kChannels == 0,
              "weight must be (a multiple of 32, channels of x, 3, 3).");
  TORCH_CHECK(!bias || (bias->scalar_type() == at::kBFloat16 && bias->is_contiguous() && bias->dim() == 1 &&
                        bias->size(0) == weight.size(0)),
              "bias must be bfloat16, of weight's first size.");
  Tensor result = like(x[0], weight.size(0));
  convolve(parts, checked(weight), bias ? numbers_of(*bias) : nullptr, false, result);
  return result;
}

Tensor input_gradient(const Tensor& grad, const Tensor& weight) {
  TORCH_CHECK(grad.dim() == 4 && weight.dim() == 4 && weight.size(0) == grad.size(1) && weight.size(2) == kTaps &&
                  weight.size(3) == kTaps,
              "grad must be (samples, channels, height, width), and weight (channels, channels of the input, 3, 3).");
  std::vector<Tensor> tensors;
  const std::vector<Part> parts = parts_of(grad, tensors);
  Tensor result = like(grad, weight.size(1));
  convolve(parts, checked(weight), nullptr, true, result);
  return result;
}

} // namespace of_images

namespace of_weights {

// For each tap down and each product across it is a product of matrices, x^T grad, summed over pixels. Threads have
// sums of their own, which are added in their order: the number of threads changes the last digits.
constexpr int64_t kRows = 4;           // of grad at most that are summed at once: the sums are read and written once
constexpr int64_t kLength = 128;       // of them together, in pairs, which is enough
constexpr int64_t kCache = 640 * 1024; // bytes of them that stay in the L2 cache, with what of x they need

struct Shapes {
  int64_t samples, in, out; // in: channels of x, all parts; out: of grad
  int64_t height, width;    // of x
  int64_t rows, columns;    // of grad
  int64_t stride;

  bool by_winograd() const { return stride == 1; }
  int64_t products() const { return by_winograd() ? kProducts : kTaps; }
  int64_t pairs() const { return by_winograd() ? (columns + 3) / 4 : (columns + 1) / 2; } // in a row and product
  int64_t plane(int64_t channels) const { return channels / kChannels * pairs() * 2; }    // such a row, in registers
  int64_t row_of_x() const { return products() * plane(in); }
  int64_t row_of_grad() const { return (by_winograd() ? kProducts : 1) * plane(out); } // taps share it
  int64_t rows_of_x(int64_t group) const { return (group - 1) * stride + kTaps; }
  int64_t bytes(int64_t group) const { return (rows_of_x(group) * row_of_x() + group * row_of_grad()) * 64; }
  int64_t group() const { // rows of grad that are summed at once
    int64_t found = 1;
    while (found < kRows && found * pairs() < kLength && bytes(found + 1) <= kCache) ++found;
    return found;
  }
  // The sums: [out / 32][product][tap down][in][32]
  int64_t numbers() const { return in * out * kTaps * products(); }
  int64_t sums(int64_t o, int64_t product, int64_t down, int64_t i) const {
    return (((o / kChannels * products() + product) * kTaps + down) * in + i) * kChannels + o % kChannels;
  }
};

// Pairs the pixels `first`, `first + step`, ... of a row, 0 where there are none, to [channels / 32][pair][32][2].
void pair_up(const uint16_t* row, int64_t channels, int64_t width, int64_t first, int64_t step, int64_t pairs,
             __m512i* to) {
  const __m512i nothing = _mm512_setzero_si512();
  for (int64_t j = 0; j < pairs; ++j) {
    const int64_t a = first + 2 * j * step, b = a + step;
    const bool has_a = a >= 0 && a < width, has_b = b >= 0 && b < width;
    for (int64_t c = 0; c < channels; c += kChannels)
      interleave(has_a ? load(row + a * channels + c) : nothing, has_b ? load(row + b * channels + c) : nothing,
                 to + (c / kChannels * pairs + j) * 2);
  }
}

// Writes the same for each product; they are `apart` registers from one another.
template <bool kIsX>
void transform(const uint16_t* row, int64_t channels, int64_t width, int64_t pairs, int64_t apart, __m512i* to) {
  for (int64_t half = 0; half < channels / 16; ++half) {
    const auto at = [&](int64_t column) {
      return column >= 0 && column < width ? widen(row + column * channels + half * 16) : _mm512_setzero_ps();
    };
    __m512i* place = to + half / 2 * pairs * 2 + half % 2;
    for (int64_t j = 0; j < pairs; ++j, place += 2) {
      const __m512 p0 = at(4 * j), p1 = at(4 * j + 1), p2 = at(4 * j + 2), p3 = at(4 * j + 3);
      if constexpr (kIsX) {
        const __m512 before = at(4 * j - 1), after = at(4 * j + 4);
        interleave(before - p1, p1 - p3, place);
        interleave(p0 + p1, p2 + p3, place + apart);
        interleave(p1 - p0, p3 - p2, place + 2 * apart);
        interleave(p2 - p0, after - p2, place + 3 * apart);
      } else {
        interleave(p0, p2, place);
        interleave(p0 + p1, p2 + p3, place + apart);
        interleave(p0 - p1, p2 - p3, place + 2 * apart);
        interleave(p1, p3, place + 3 * apart);
      }
    }
  }
}

// sums[8][32] += the products of 8 channels of x, from `channel` on, and 32 of grad, over some rows. Not inlined: it
// takes all registers for itself.
[[gnu::noinline]] void add_products(const __m512i* const* x, const __m512i* const* grad, int64_t rows, int64_t pairs,
                                    int64_t channel, float* sums) {
  __m512 sum[kTile][2];
#pragma GCC unroll 8
  for (int64_t c = 0; c < kTile; ++c) {
    sum[c][0] = _mm512_load_ps(sums + c * kChannels);
    sum[c][1] = _mm512_load_ps(sums + c * kChannels + 16);
  }
  for (int64_t r = 0; r < rows; ++r) {
    const uint32_t* of_x = reinterpret_cast<const uint32_t*>(x[r]) + channel;
    const __m512i* g = grad[r];
    for (int64_t j = 0; j < pairs; ++j, g += 2, of_x += kChannels) {
      const __m512bh g0 = (__m512bh)_mm512_load_si512(g), g1 = (__m512bh)_mm512_load_si512(g + 1);
#pragma GCC unroll 8
      for (int64_t c = 0; c < kTile; ++c) {
        const __m512bh pair = (__m512bh)_mm512_set1_epi32(of_x[c]);
        sum[c][0] = _mm512_dpbf16_ps(sum[c][0], pair, g0);
        sum[c][1] = _mm512_dpbf16_ps(sum[c][1], pair, g1);
      }
    }
  }
  store(sum, sums);
}

// sums[32] += grad
void add_up(const __m512i* grad, int64_t pairs, float* sums) {
  const __m512bh ones = (__m512bh)_mm512_set1_epi16(0x3f80);
  __m512 low = _mm512_load_ps(sums), high = _mm512_load_ps(sums + 16);
  for (int64_t j = 0; j < pairs; ++j) {
    low = _mm512_dpbf16_ps(low, ones, (__m512bh)_mm512_load_si512(grad + 2 * j));
    high = _mm512_dpbf16_ps(high, ones, (__m512bh)_mm512_load_si512(grad + 2 * j + 1));
  }
  _mm512_store_ps(sums, low);
  _mm512_store_ps(sums + 16, high);
}

void prepare_x(const Shapes& s, const std::vector<Part>& x, int64_t row, __m512i* to) {
  for (const Part& part : x) {
    const uint16_t* from = part.start + row * s.width * part.channels;
    if (s.by_winograd())
      transform<true>(from, part.channels, s.width, s.pairs(), s.plane(s.in), to);
    else
      for (int64_t t = 0; t < kTaps; ++t)
        pair_up(from, part.channels, s.width, t - 1, s.stride, s.pairs(), to + t * s.plane(s.in));
    to += s.plane(part.channels);
  }
}

void prepare_grad(const Shapes& s, const uint16_t* row, __m512i* to, float* bias_sums) {
  if (s.by_winograd())
    transform<false>(row, s.out, s.columns, s.pairs(), s.plane(s.out), to);
  else
    pair_up(row, s.out, s.columns, 0, 1, s.pairs(), to);
  for (int64_t o = 0; o < s.out; o += kChannels) {
    add_up(to + s.plane(o), s.pairs(), bias_sums + o);
    if (s.by_winograd()) add_up(to + 3 * s.plane(s.out) + s.plane(o), s.pairs(), bias_sums + o); // the other columns
  }
}

// Adds what the rows of grad from `begin` to `end`, counted through all samples, give to the sums.
void add_rows(const Shapes& s, const std::vector<Part>& x, const uint16_t* grad, int64_t begin, int64_t end,
              float* sums, float* bias_sums) {
  const int64_t group = s.group(), kept = s.rows_of_x(group), length = s.columns * s.out;
  const Tensor memory = at::empty({s.bytes(group)}, at::kByte);
  __m512i* const xs = static_cast<__m512i*>(memory.mutable_data_ptr()); // [row % kept][product][in / 32][pair][32][2]
  __m512i* const gs = xs + kept * s.row_of_x();                         // [row][product][out / 32][pair][32][2]
  const int64_t shares = s.numbers() / (kTile * kChannels);
  int64_t next = 0; // the row of x that is prepared next
  for (int64_t r = begin, count = 0; r < end; r += count) {
    const int64_t sample = r / s.rows, row = r % s.rows, first = row * s.stride - 1;
    count = std::min({group, end - r, s.rows - row});
    next = r == begin || row == 0 ? std::max<int64_t>(first, 0) : std::max(next, first);
    for (; next < std::min(first + s.rows_of_x(count), s.height); ++next)
      prepare_x(s, x, sample * s.height + next, xs + next % kept * s.row_of_x());
    for (int64_t k = 0; k < count; ++k) prepare_grad(s, grad + (r + k) * length, gs + k * s.row_of_grad(), bias_sums);
    int64_t share = 0;
    const auto fetch_next = [&] {
      fetch(grad + (r + count) * length, count * length, share, shares);
      for (const Part& part : x) {
        const int64_t of_part = s.width * part.channels;
        fetch(part.start + (sample * s.height + next) * of_part, count * s.stride * of_part, share, shares);
      }
      ++share;
    };
    for (int64_t o = 0; o < s.out; o += kChannels)
      for (int64_t product = 0; product < s.products(); ++product)
        for (int64_t down = 0; down < kTaps; ++down) {
          const __m512i *of_x[kRows], *of_grad[kRows];
          int64_t rows = 0;
          for (int64_t k = 0; k < count; ++k) {
            const int64_t of_tap = first + k * s.stride + down;
            if (of_tap < 0 || of_tap >= s.height) continue;
            of_x[rows] = xs + of_tap % kept * s.row_of_x() + product * s.plane(s.in);
            of_grad[rows++] = gs + k * s.row_of_grad() + s.plane(o) + (s.by_winograd() ? product * s.plane(s.out) : 0);
          }
          for (int64_t i = 0; i < s.in; i += kTile) {
            if (r + 2 * count <= end) fetch_next();
            add_products(of_x, of_grad, rows, s.pairs(), i % kChannels, sums + s.sums(o, product, down, i));
            if (i % kChannels == kChannels - kTile)
              for (int64_t k = 0; k < rows; ++k) of_x[k] += s.plane(kChannels);
          }
        }
  }
}

std::tuple<Tensor, Tensor> meta(const Tensor& grad, at::TensorList x, int64_t) {
  const c10::SymInt out = grad.sym_size(1);
  const Tensor weight = at::empty_symint({out, kTaps, kTaps, channels_of(x)}, grad.options());
  return {weight.permute({0, 3, 1, 2}), at::empty_symint({out}, grad.options())};
}

std::tuple<Tensor, Tensor> weight_gradient(const Tensor& grad, at::TensorList x, int64_t stride) {
  TORCH_CHECK(stride == 1 || stride == 2, "stride must be 1 or 2.");
  std::vector<Tensor> tensors;
  const std::vector<Part> parts = parts_of(x, tensors);
  TORCH_CHECK(grad.dim() == 4 && grad.size(0) == x[0].size(0) && grad.size(2) == (x[0].size(2) - 1) / stride + 1 &&
                  grad.size(3) == (x[0].size(3) - 1) / stride + 1,
              "grad must be (samples, channels, height, width) of the convolution's result.");
  const Tensor g = checked(grad);
  const Shapes s{g.size(0), channels_of(parts), g.size(1), x[0].size(2), x[0].size(3), g.size(2), g.size(3), stride};
  const int64_t rows = s.samples * s.rows, threads = std::min<int64_t>(at::get_num_threads(), rows);
  const int64_t each = s.numbers() + s.out;
  const Tensor memory = at::zeros({threads, each}, at::kFloat); // a multiple of 64 bytes each
  float* const sums = memory.mutable_data_ptr<float>();
  at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      add_rows(s, parts, numbers_of(g), rows * i / threads, rows * (i + 1) / threads, sums + i * each,
               sums + i * each + s.numbers());
  });
  const auto total = [&](int64_t at) {
    float sum = 0.0f;
    for (int64_t i = 0; i < threads; ++i) sum += sums[i * each + at];
    return sum;
  };
  auto [weight, bias] = meta(grad, x, stride);
  at::BFloat16 *w = weight.mutable_data_ptr<at::BFloat16>(), *b = bias.mutable_data_ptr<at::BFloat16>();
  at::parallel_for(0, s.out, 1, [&](int64_t begin, int64_t end) {
    for (int64_t o = begin; o < end; ++o) {
      b[o] = total(s.numbers() + o);
      for (int64_t down = 0; down < kTaps; ++down)
        for (int64_t i = 0; i < s.in; ++i) {
          float m[kProducts];
          for (int64_t product = 0; product < s.products(); ++product) m[product] = total(s.sums(o, product, down, i));
          if (s.by_winograd()) {
            const float sum = (m[1] + m[2]) / 2;
            m[0] += sum;
            m[1] = (m[1] - m[2]) / 2;
            m[2] = sum + m[3];
          }
          for (int64_t across = 0; across < kTaps; ++across)
            w[((o * kTaps + down) * kTaps + across) * s.in + i] = m[across];
        }
    }
  });
  return {weight, bias};
}

} // namespace of_weights

} // namespace

TORCH_LIBRARY_FRAGMENT(cyclic_committee, library) {
  library.def("convolution(Tensor[] x, Tensor weight, Tensor? bias) -> Tensor");
  library.def("input_gradient(Tensor grad, Tensor weight) -> Tensor");
  library.def("weight_gradient(Tensor grad, Tensor[] x, int stride) -> (Tensor weight, Tensor bias)");
}

TORCH_LIBRARY_IMPL(cyclic_committee, CPU, library) {
  library.impl("convolution", of_images::convolution);
  library.impl("input_gradient", of_images::input_gradient);
  library.impl("weight_gradient", of_weights::weight_gradient);
}

TORCH_LIBRARY_IMPL(cyclic_committee, Meta, library) {
  library.impl("convolution", of_images::meta_convolution);
  library.impl("input_gradient", of_images::meta_gradient);
  library.impl("weight_gradient", of_weights::meta);
}
