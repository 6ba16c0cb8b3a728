// How is the gradient of a 3 x 3 convolution's weights taken in bfloat16, for few channels and many pixels?
//
// Tensors are channels last in memory: [sample][row][column][channel]. For each tap (down, across) of the kernel, the
// gradient is a product of matrices, x^T grad, summed over pixels. The processor multiplies pairs of bfloat16 numbers
// and adds both products to a float32 number, so pixels that are summed have to lie in pairs, number by number: each
// row of grad is paired once, each row of x once for every tap across that pairs it otherwise. Three rows of x are
// kept, as many as the taps down need. All that is read repeatedly stays in the L2 cache, and what is read from memory
// next is fetched meanwhile. Threads share the rows and have sums of their own, which are added in their order: the
// number of threads changes the last digits.

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <tuple>
#include <vector>

namespace {

using at::Tensor;
constexpr int64_t kTaps = 3;      // down, and across
constexpr int64_t kChannels = 32; // that are paired at once: as many as a register has bfloat16 numbers
constexpr int64_t kTile = 4;      // channels of x whose sums, with 32 of grad and the taps across, fit the registers

struct Shapes {
  int64_t samples, in, out;     // in: channels of x, all parts; out: of grad
  int64_t height, width;        // of x
  int64_t rows, columns, pairs; // of grad
  int64_t stride;

  int64_t numbers() const { return in * out * kTaps * kTaps; }
  // With a stride of 1, the last tap across has the first one's pairs, one further.
  int64_t pairings() const { return stride == 1 ? 2 : 3; }
  int64_t slots() const { return pairs + 1; }
  int64_t slot(int64_t across) const { return across < pairings() ? across * slots() : 1; }
  // The sums: [out / 32][tap down][in / 4][tap across][4][32]
  int64_t sums_of_tile(int64_t o, int64_t down, int64_t tile) const {
    return ((o * kTaps + down) * (in / kTile) + tile) * kTaps * kTile * kChannels;
  }
  int64_t sum(int64_t o, int64_t down, int64_t across, int64_t i) const {
    return sums_of_tile(o / kChannels, down, i / kTile) + (across * kTile + i % kTile) * kChannels + o % kChannels;
  }
};

// A part of x's channels.
struct Part {
  const uint16_t* start;
  int64_t channels;
};

inline __m512i load(const uint16_t* from) { return _mm512_loadu_si512(from); }

// Writes the numbers of two pixels side by side: a0 b0 a1 b1 ...
inline void interleave(__m512i a, __m512i b, __m512i* to) {
  const __m512i low = _mm512_unpacklo_epi16(a, b), high = _mm512_unpackhi_epi16(a, b); // by 128 bits
  _mm512_store_si512(to, _mm512_permutex2var_epi64(low, _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), high));
  _mm512_store_si512(to + 1, _mm512_permutex2var_epi64(low, _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15), high));
}

// Pairs the pixels `first`, `first + step`, ... of a row, 0 where there are none, to [channels / 32][pair][32][2];
// there are `apart` registers from one 32 channels to the next.
void pair_up(const uint16_t* row, int64_t channels, int64_t width, int64_t first, int64_t step, int64_t pairs,
             int64_t apart, __m512i* to) {
  const __m512i nothing = _mm512_setzero_si512();
  for (int64_t j = 0; j < pairs; ++j) {
    const int64_t a = first + 2 * j * step, b = a + step;
    const bool has_a = a >= 0 && a < width, has_b = b >= 0 && b < width;
    for (int64_t c = 0; c < channels; c += kChannels)
      interleave(has_a ? load(row + a * channels + c) : nothing, has_b ? load(row + b * channels + c) : nothing,
                 to + c / kChannels * apart + 2 * j);
  }
}

// sums[across][4][32] += the products of 4 channels of x, as each tap across has them, and 32 of grad. Not inlined: it
// takes all registers for itself.
[[gnu::noinline]] void add_products(const Shapes& s, const uint32_t* x, const __m512i* grad, float* sums) {
  const uint32_t* taps[kTaps];
  for (int64_t t = 0; t < kTaps; ++t) taps[t] = x + s.slot(t) * kChannels;
  __m512 sum[kTaps][kTile][2];
#pragma GCC unroll 3
  for (int64_t t = 0; t < kTaps; ++t)
#pragma GCC unroll 4
    for (int64_t c = 0; c < kTile; ++c)
#pragma GCC unroll 2
      for (int64_t half = 0; half < 2; ++half)
        sum[t][c][half] = _mm512_load_ps(sums + (t * kTile + c) * kChannels + half * 16);
  for (int64_t j = 0; j < s.pairs; ++j, grad += 2) {
    const __m512bh g[] = {(__m512bh)_mm512_load_si512(grad), (__m512bh)_mm512_load_si512(grad + 1)};
#pragma GCC unroll 3
    for (int64_t t = 0; t < kTaps; ++t)
#pragma GCC unroll 4
      for (int64_t c = 0; c < kTile; ++c) {
        const __m512bh pair = (__m512bh)_mm512_set1_epi32(taps[t][j * kChannels + c]);
#pragma GCC unroll 2
        for (int64_t half = 0; half < 2; ++half) sum[t][c][half] = _mm512_dpbf16_ps(sum[t][c][half], pair, g[half]);
      }
  }
#pragma GCC unroll 3
  for (int64_t t = 0; t < kTaps; ++t)
#pragma GCC unroll 4
    for (int64_t c = 0; c < kTile; ++c)
#pragma GCC unroll 2
      for (int64_t half = 0; half < 2; ++half)
        _mm512_store_ps(sums + (t * kTile + c) * kChannels + half * 16, sum[t][c][half]);
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

// Fetches one of some shares of what will be read into the L2 cache.
inline void fetch(const uint16_t* from, int64_t numbers, int64_t share, int64_t shares) {
  for (int64_t i = numbers * share / shares / 32; i < numbers * (share + 1) / shares / 32; ++i)
    _mm_prefetch(reinterpret_cast<const char*>(from + i * 32), _MM_HINT_T1);
}

// Adds what the rows of grad from `begin` to `end`, counted through all samples, give to the sums.
void add_rows(const Shapes& s, const std::vector<Part>& x, const uint16_t* grad, int64_t begin, int64_t end,
              float* sums, float* bias_sums) {
  const int64_t apart = s.pairings() * s.slots() * 2, row_of_x = s.in / kChannels * apart; // in registers
  const int64_t row_of_grad = s.out / kChannels * s.pairs * 2;
  const Tensor memory = at::empty({kTaps * row_of_x + row_of_grad, 64}, at::kByte);
  __m512i* const xs = static_cast<__m512i*>(memory.mutable_data_ptr()); // [row % 3][in / 32][pairing][pair][32][2]
  __m512i* const gs = xs + kTaps * row_of_x;                            // [out / 32][pair][32][2]
  const int64_t shares = s.numbers() / (kTaps * kTile * kChannels);
  int64_t next = 0; // the row of x that is paired next
  for (int64_t r = begin; r < end; ++r) {
    const int64_t sample = r / s.rows, first = r % s.rows * s.stride - 1;
    next = r == begin || r % s.rows == 0 ? std::max<int64_t>(first, 0) : std::max(next, first);
    for (; next < std::min(first + kTaps, s.height); ++next) {
      __m512i* to = xs + next % kTaps * row_of_x;
      for (const Part& part : x) {
        const uint16_t* row = part.start + (sample * s.height + next) * s.width * part.channels;
        for (int64_t t = 0; t < s.pairings(); ++t)
          pair_up(row, part.channels, s.width, t - 1, s.stride, s.slots(), apart, to + t * s.slots() * 2);
        to += part.channels / kChannels * apart;
      }
    }
    pair_up(grad + r * s.columns * s.out, s.out, s.columns, 0, 1, s.pairs, s.pairs * 2, gs);
    int64_t share = 0;
    const auto fetch_next = [&] {
      fetch(grad + (r + 1) * s.columns * s.out, s.columns * s.out, share, shares);
      for (const Part& part : x) {
        const int64_t row = s.width * part.channels;
        fetch(part.start + (sample * s.height + next) * row, s.stride * row, share, shares);
      }
      ++share;
    };
    for (int64_t o = 0; o < s.out / kChannels; ++o) {
      const __m512i* g = gs + o * s.pairs * 2;
      add_up(g, s.pairs, bias_sums + o * kChannels);
      for (int64_t down = 0; down < kTaps; ++down)
        if (first + down >= 0 && first + down < s.height)
          for (int64_t i = 0; i < s.in; i += kTile) {
            if (r + 1 < end) fetch_next();
            const __m512i* of_32 = xs + (first + down) % kTaps * row_of_x + i / kChannels * apart;
            add_products(s, reinterpret_cast<const uint32_t*>(of_32) + i % kChannels, g,
                         sums + s.sums_of_tile(o, down, i / kTile));
          }
    }
  }
}

std::tuple<Tensor, Tensor> meta(const Tensor& grad, at::TensorList x, int64_t) {
  c10::SymInt in = 0;
  for (const Tensor& part : x) in = in + part.sym_size(1);
  const c10::SymInt out = grad.sym_size(1);
  const Tensor weight = at::empty_symint({out, kTaps, kTaps, in}, grad.options());
  return {weight.permute({0, 3, 1, 2}), at::empty_symint({out}, grad.options())};
}

std::tuple<Tensor, Tensor> weight_gradient(const Tensor& grad, at::TensorList x, int64_t stride) {
  TORCH_CHECK(!x.empty() && (stride == 1 || stride == 2), "x must have a part or more, and stride be 1 or 2.");
  for (const Tensor& one : x)
    TORCH_CHECK(one.dim() == 4 && one.size(0) == x[0].size(0) && one.size(2) == x[0].size(2) &&
                    one.size(3) == x[0].size(3),
                "the parts of x must be (samples, channels, height, width), alike but for channels.");
  TORCH_CHECK(grad.dim() == 4 && grad.size(0) == x[0].size(0) && grad.size(2) == (x[0].size(2) - 1) / stride + 1 &&
                  grad.size(3) == (x[0].size(3) - 1) / stride + 1,
              "grad must be (samples, channels, height, width) of the convolution's result.");
  std::vector<Tensor> tensors = x.vec();
  tensors.push_back(grad);
  for (Tensor& one : tensors) {
    TORCH_CHECK(one.scalar_type() == at::kBFloat16 && one.numel() > 0 && one.size(1) % kChannels == 0,
                "x and grad must be bfloat16 and not empty, with a multiple of 32 channels.");
    one = one.contiguous(at::MemoryFormat::ChannelsLast);
  }
  const auto numbers_of = [](const Tensor& one) { return static_cast<const uint16_t*>(one.const_data_ptr()); };
  const uint16_t* g = numbers_of(tensors.back());
  Shapes s{grad.size(0), 0, grad.size(1), x[0].size(2), x[0].size(3), grad.size(2), grad.size(3),
           (grad.size(3) + 1) / 2, stride};
  std::vector<Part> parts;
  for (size_t i = 0; i < x.size(); ++i) {
    parts.push_back({numbers_of(tensors[i]), x[i].size(1)});
    s.in += x[i].size(1);
  }
  const int64_t rows = s.samples * s.rows, threads = std::min<int64_t>(at::get_num_threads(), rows);
  const int64_t each = s.numbers() + s.out;
  const Tensor memory = at::zeros({threads, each}, at::kFloat); // a multiple of 64 bytes each
  float* const sums = memory.mutable_data_ptr<float>();
  at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      add_rows(s, parts, g, rows * i / threads, rows * (i + 1) / threads, sums + i * each,
               sums + i * each + s.numbers());
  });
  const auto total = [&](int64_t at) {
    float sum = 0.0f;
    for (int64_t i = 0; i < threads; ++i) sum += sums[i * each + at];
    return at::BFloat16(sum);
  };
  auto [weight, bias] = meta(grad, x, stride);
  at::BFloat16 *w = weight.mutable_data_ptr<at::BFloat16>(), *b = bias.mutable_data_ptr<at::BFloat16>();
  at::parallel_for(0, s.out, 1, [&](int64_t begin, int64_t end) {
    for (int64_t o = begin; o < end; ++o) {
      b[o] = total(s.numbers() + o);
      at::BFloat16* to = w + o * kTaps * kTaps * s.in;
      for (int64_t down = 0; down < kTaps; ++down)
        for (int64_t across = 0; across < kTaps; ++across)
          for (int64_t i = 0; i < s.in; ++i) *to++ = total(s.sum(o, down, across, i));
    }
  });
  return {weight, bias};
}

} // namespace

TORCH_LIBRARY_FRAGMENT(cyclic_committee, library) {
  library.def("weight_gradient(Tensor grad, Tensor[] x, int stride) -> (Tensor weight, Tensor bias)");
}

TORCH_LIBRARY_IMPL(cyclic_committee, CPU, library) { library.impl("weight_gradient", weight_gradient); }

TORCH_LIBRARY_IMPL(cyclic_committee, Meta, library) { library.impl("weight_gradient", meta); }
