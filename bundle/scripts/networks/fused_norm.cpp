// How do InstanceNorm and LeakyReLU take two passes over memory instead of five?
//
// Tensors are (samples, channels, height, width), channels last in memory: [sample][pixel][channel]. A sample is cut
// into chunks of pixels, which threads share; the cut depends on the shape alone and results of chunks are merged in
// their order, so that results don't depend on the number of threads. Within a chunk, `group` pixels make a row of
// `width` numbers: long enough to be vectorised whatever the number of channels is. What belongs to a channel (mean,
// scale, ...) is repeated along the row. Sums: float32 within a chunk (about a shift: a large mean costs no digits),
// double across chunks. bfloat16 is widened to float32 for every calculation.

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <tuple>
#include <utility>
#include <vector>

namespace {

using at::Tensor;
constexpr int64_t kRow = 128;            // numbers in a row, about, unless there are more channels
constexpr int64_t kChunk = 32768;        // numbers in a chunk, about: read twice, so it has to stay in the L2 cache
constexpr int64_t kSmallSample = 1 << 18; // numbers in a sample that one thread does alone, if there are enough samples
constexpr int64_t kLargeSample = 1 << 22; // likewise, if all threads get as many samples; more would leave the cache
constexpr int64_t kRows = 8;             // rows that are summed in registers before the sum goes to memory

struct BFloat16 {
  uint16_t bits;
};

inline float widen(float value) { return value; }

inline float widen(BFloat16 value) {
  return std::bit_cast<float>(static_cast<uint32_t>(value.bits) << 16);
}

inline void narrow(float value, float& result) { result = value; }

inline void narrow(float value, BFloat16& result) { // to the nearest, ties to even; NaN stays NaN
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  result.bits = static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}

// How the pixels of one sample are cut.
struct Cut {
  int64_t channels, pixels, group, width, chunk_pixels, chunks;

  Cut(int64_t channels, int64_t pixels) : channels(channels), pixels(pixels) {
    group = std::max<int64_t>(1, kRow / channels);
    width = group * channels;
    chunk_pixels = std::max<int64_t>(1, kChunk / width) * group;
    chunks = (pixels + chunk_pixels - 1) / chunk_pixels;
  }

  int64_t first(int64_t chunk) const { return chunk * chunk_pixels; }
  int64_t count(int64_t chunk) const { return std::min(chunk_pixels, pixels - first(chunk)); }

  void repeat(float* row) const { // from the first `channels` numbers
    for (int64_t i = channels; i < width; ++i) row[i] = row[i - channels];
  }
  void fold(float* row) const { // into the first `channels` numbers
    for (int64_t i = channels; i < width; i += channels)
      for (int64_t c = 0; c < channels; ++c) row[c] += row[i + c];
  }
};

// Calls `rows(first number, number of rows, their width)` for the whole rows of a chunk and for what is left over.
template <class Rows>
inline void for_rows(const Cut& cut, int64_t pixels, const Rows& rows) {
  const int64_t whole = pixels / cut.group;
  rows(int64_t{0}, whole, cut.width);
  if (pixels % cut.group) rows(whole * cut.width, pixels % cut.group, cut.channels);
}

// Fetches what the next step reads: it goes down rows, which the processor's own prefetcher doesn't foresee.
template <class T>
inline void prefetch(const T* x, int64_t numbers) {
  for (int64_t i = 0; i < numbers; i += 64 / sizeof(T)) __builtin_prefetch(x + i);
}

inline float leaky(float value, float z, float slope) { return z > 0.0f ? value : value * slope; }

// The loops over memory. Functions of their own with restricted pointers, or gcc doesn't vectorise them; `Row` counts
// rows that are summed in registers before they are added to what is in memory.

// sums[j] += the sum over rows of d, squares[j] += of d^2; d = x - shift
template <class T, size_t... Row>
void add_rows(int64_t width, const T* __restrict__ x, const float* __restrict__ shift, float* __restrict__ sums,
              float* __restrict__ squares, std::index_sequence<Row...>) {
#pragma omp simd
  for (int64_t j = 0; j < width; ++j) {
    const float d[] = {widen(x[Row * width + j]) - shift[j]...};
    sums[j] += (d[Row] + ...);
    squares[j] += ((d[Row] * d[Row]) + ...);
  }
}

// sums[j] += the sum over rows of g, products[j] += of g d; g is the gradient behind LeakyReLU, d = x - centre
template <class T, size_t... Row>
void add_gradients(int64_t width, const T* __restrict__ x, const T* __restrict__ grad, const float* __restrict__ centre,
                   const float* __restrict__ scale, const float* __restrict__ offset, float slope,
                   float* __restrict__ sums, float* __restrict__ products, std::index_sequence<Row...>) {
#pragma omp simd
  for (int64_t j = 0; j < width; ++j) {
    const float d[] = {widen(x[Row * width + j]) - centre[j]...};
    const float g[] = {leaky(widen(grad[Row * width + j]), d[Row] * scale[j] + offset[j], slope)...};
    sums[j] += (g[Row] + ...);
    products[j] += ((g[Row] * d[Row]) + ...);
  }
}

template <class T>
void normalise_row(int64_t width, const T* __restrict__ x, const float* __restrict__ centre,
                   const float* __restrict__ scale, const float* __restrict__ offset, float slope, T* __restrict__ y) {
#pragma omp simd
  for (int64_t j = 0; j < width; ++j) {
    const float z = (widen(x[j]) - centre[j]) * scale[j] + offset[j];
    narrow(leaky(z, z, slope), y[j]);
  }
}

template <class T>
void differentiate_row(int64_t width, const T* __restrict__ x, const T* __restrict__ grad,
                       const float* __restrict__ centre, const float* __restrict__ scale,
                       const float* __restrict__ offset, const float* __restrict__ constant,
                       const float* __restrict__ linear, float slope, T* __restrict__ dx) {
#pragma omp simd
  for (int64_t j = 0; j < width; ++j) {
    const float d = widen(x[j]) - centre[j];
    const float g = leaky(widen(grad[j]), d * scale[j] + offset[j], slope);
    narrow(scale[j] * g - constant[j] - linear[j] * d, dx[j]);
  }
}

// Runs `body(sample)` for all samples: one thread a sample where that keeps all threads busy (threads that needn't wait
// for each other twice a sample lose less where others use the processor, too), else all threads on one after another.
// Either way a sample is still in the cache when it is read again.
template <class Body>
void for_samples(int64_t samples, int64_t numbers, const Body& body) {
  const int64_t threads = at::get_num_threads();
  if (numbers <= kSmallSample ? samples >= threads : numbers <= kLargeSample && samples % threads == 0) {
    at::parallel_for(0, samples, std::max<int64_t>(1, kChunk / numbers), [&](int64_t begin, int64_t end) {
      for (int64_t sample = begin; sample < end; ++sample) body(sample);
    });
  } else {
    for (int64_t sample = 0; sample < samples; ++sample) body(sample);
  }
}

template <class Body>
void for_chunks(const Cut& cut, const Body& body) {
  at::parallel_for(0, cut.chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t chunk = begin; chunk < end; ++chunk) body(chunk);
  });
}

// sums[c], squares[c] = the sums of d and d^2 over pixels; d = x - shift
template <class T>
void add_up(const Cut& cut, int64_t pixels, const T* x, const float* shift, float* sums, float* squares) {
  std::fill_n(sums, cut.width, 0.0f);
  std::fill_n(squares, cut.width, 0.0f);
  for_rows(cut, pixels, [&](int64_t first, int64_t count, int64_t width) {
    const T* p = x + first;
    for (; count >= kRows; count -= kRows, p += kRows * width) {
      prefetch(p + kRows * width, kRows * width);
      add_rows(width, p, shift, sums, squares, std::make_index_sequence<kRows>());
    }
    for (; count > 0; --count, p += width) add_rows(width, p, shift, sums, squares, std::make_index_sequence<1>());
  });
  cut.fold(sums);
  cut.fold(squares);
}

// One sample's mean and 1 / standard deviation by channel, from chunks' sums about the mean of their first pixels,
// merged as Chan, Golub and LeVeque do. Those pixels are a thirty-second of the chunk or more, so that this mean is at
// most 6 standard deviations off, whatever the data: squares about it lose no more than two digits.
template <class T>
void statistics(const Cut& cut, const T* x, float eps, float* mean, float* rstd) {
  const int64_t channels = cut.channels;
  std::vector<double> means(cut.chunks * channels), spreads(cut.chunks * channels);
  for_chunks(cut, [&](int64_t chunk) {
    const T* first = x + cut.first(chunk) * channels;
    const int64_t pixels = cut.count(chunk), some = std::min(pixels, kRows * cut.group);
    std::vector<float> rows(3 * cut.width);
    float *shift = rows.data(), *sums = shift + cut.width, *squares = sums + cut.width;
    add_up(cut, some, first, shift, sums, squares);
    for (int64_t c = 0; c < channels; ++c) shift[c] = sums[c] / some;
    cut.repeat(shift);
    add_up(cut, pixels, first, shift, sums, squares);
    for (int64_t c = 0; c < channels; ++c) {
      const double from_shift = double(sums[c]) / pixels;
      means[chunk * channels + c] = shift[c] + from_shift;
      spreads[chunk * channels + c] = squares[c] - from_shift * sums[c];
    }
  });
  std::vector<double> total(channels), spread(channels);
  for (int64_t chunk = 0; chunk < cut.chunks; ++chunk)
    for (int64_t c = 0; c < channels; ++c) total[c] += means[chunk * channels + c] * cut.count(chunk);
  for (int64_t c = 0; c < channels; ++c) total[c] /= cut.pixels;
  for (int64_t chunk = 0; chunk < cut.chunks; ++chunk)
    for (int64_t c = 0; c < channels; ++c) {
      const double difference = means[chunk * channels + c] - total[c];
      spread[c] += spreads[chunk * channels + c] + difference * difference * cut.count(chunk);
    }
  for (int64_t c = 0; c < channels; ++c) {
    mean[c] = float(total[c]);
    rstd[c] = float(1.0 / std::sqrt(std::max(spread[c] / cut.pixels, 0.0) + eps));
  }
}

// y = LeakyReLU of x normalised by these statistics, with which the forward and the backward pass get the same bits.
template <class T>
void normalise_sample(const Cut& cut, const T* x, const float* mean, const float* rstd, const float* weight,
                      const float* bias, float slope, T* y) {
  std::vector<float> rows(3 * cut.width);
  float *centre = rows.data(), *scale = centre + cut.width, *offset = scale + cut.width;
  for (int64_t c = 0; c < cut.channels; ++c) {
    centre[c] = mean[c];
    scale[c] = rstd[c] * weight[c];
    offset[c] = bias[c];
  }
  for (float* row : {centre, scale, offset}) cut.repeat(row);
  for_chunks(cut, [&](int64_t chunk) {
    const int64_t start = cut.first(chunk) * cut.channels;
    for_rows(cut, cut.count(chunk), [&](int64_t first, int64_t count, int64_t width) {
      for (int64_t at = start + first; count > 0; --count, at += width)
        normalise_row(width, x + at, centre, scale, offset, slope, y + at);
    });
  });
}

// With d = x - mean, a = rstd * weight, z = a d + bias and g the gradient behind LeakyReLU:
// dx = a (g - mean(g) - d rstd^2 mean(g d)), dweight = rstd sum(g d), dbias = sum(g).
template <class T>
void backward_sample(const Cut& cut, const T* grad, const T* x, const float* mean, const float* rstd,
                     const float* weight, const float* bias, float slope, T* dx, double* dweight, double* dbias) {
  const int64_t channels = cut.channels;
  std::vector<float> rows(5 * cut.width);
  float *centre = rows.data(), *scale = centre + cut.width, *offset = scale + cut.width;
  float *constant = offset + cut.width, *linear = constant + cut.width;
  for (int64_t c = 0; c < channels; ++c) {
    centre[c] = mean[c];
    scale[c] = rstd[c] * weight[c];
    offset[c] = bias[c];
  }
  for (float* row : {centre, scale, offset}) cut.repeat(row);
  std::vector<float> partial(cut.chunks * 2 * channels);
  for_chunks(cut, [&](int64_t chunk) {
    const int64_t start = cut.first(chunk) * channels;
    std::vector<float> sums(2 * cut.width);
    float *plain = sums.data(), *product = plain + cut.width;
    for_rows(cut, cut.count(chunk), [&](int64_t first, int64_t count, int64_t width) {
      const T *p = x + start + first, *g = grad + start + first;
      for (; count >= 4; count -= 4, p += 4 * width, g += 4 * width) {
        prefetch(p + 4 * width, 4 * width);
        prefetch(g + 4 * width, 4 * width);
        add_gradients(width, p, g, centre, scale, offset, slope, plain, product, std::make_index_sequence<4>());
      }
      for (; count > 0; --count, p += width, g += width)
        add_gradients(width, p, g, centre, scale, offset, slope, plain, product, std::make_index_sequence<1>());
    });
    cut.fold(plain);
    cut.fold(product);
    std::copy_n(plain, channels, partial.data() + chunk * 2 * channels);
    std::copy_n(product, channels, partial.data() + (chunk * 2 + 1) * channels);
  });
  std::fill_n(dweight, channels, 0.0);
  std::fill_n(dbias, channels, 0.0);
  for (int64_t chunk = 0; chunk < cut.chunks; ++chunk)
    for (int64_t c = 0; c < channels; ++c) {
      dbias[c] += partial[chunk * 2 * channels + c];
      dweight[c] += partial[(chunk * 2 + 1) * channels + c];
    }
  for (int64_t c = 0; c < channels; ++c) {
    dweight[c] *= rstd[c];
    constant[c] = float(scale[c] * dbias[c] / cut.pixels);
    linear[c] = float(scale[c] * rstd[c] * dweight[c] / cut.pixels);
  }
  for (float* row : {constant, linear}) cut.repeat(row);
  for_chunks(cut, [&](int64_t chunk) {
    const int64_t start = cut.first(chunk) * channels;
    for_rows(cut, cut.count(chunk), [&](int64_t first, int64_t count, int64_t width) {
      for (int64_t at = start + first; count > 0; --count, at += width)
        differentiate_row(width, x + at, grad + at, centre, scale, offset, constant, linear, slope, dx + at);
    });
  });
}

template <class T>
void forward_all(const Tensor& x, const Tensor& weight, const Tensor& bias, float eps, float slope, Tensor& y,
                 Tensor& mean, Tensor& rstd) {
  const Cut cut(x.size(1), x.size(2) * x.size(3));
  const int64_t channels = cut.channels, numbers = channels * cut.pixels;
  const T* from = static_cast<const T*>(x.const_data_ptr());
  T* to = static_cast<T*>(y.mutable_data_ptr());
  const float *w = weight.const_data_ptr<float>(), *b = bias.const_data_ptr<float>();
  float *m = mean.mutable_data_ptr<float>(), *r = rstd.mutable_data_ptr<float>();
  for_samples(x.size(0), numbers, [&](int64_t n) {
    statistics(cut, from + n * numbers, eps, m + n * channels, r + n * channels);
    normalise_sample(cut, from + n * numbers, m + n * channels, r + n * channels, w, b, slope, to + n * numbers);
  });
}

template <class T>
void again_all(const Tensor& x, const Tensor& mean, const Tensor& rstd, const Tensor& weight, const Tensor& bias,
               float slope, Tensor& y) {
  const Cut cut(x.size(1), x.size(2) * x.size(3));
  const int64_t channels = cut.channels, numbers = channels * cut.pixels;
  const T* from = static_cast<const T*>(x.const_data_ptr());
  T* to = static_cast<T*>(y.mutable_data_ptr());
  const float *w = weight.const_data_ptr<float>(), *b = bias.const_data_ptr<float>();
  const float *m = mean.const_data_ptr<float>(), *r = rstd.const_data_ptr<float>();
  for_samples(x.size(0), numbers, [&](int64_t n) {
    normalise_sample(cut, from + n * numbers, m + n * channels, r + n * channels, w, b, slope, to + n * numbers);
  });
}

template <class T>
void backward_all(const Tensor& grad, const Tensor& x, const Tensor& mean, const Tensor& rstd, const Tensor& weight,
                  const Tensor& bias, float slope, Tensor& dx, Tensor& dweight, Tensor& dbias) {
  const Cut cut(x.size(1), x.size(2) * x.size(3));
  const int64_t samples = x.size(0), channels = cut.channels, numbers = channels * cut.pixels;
  const T *g = static_cast<const T*>(grad.const_data_ptr()), *from = static_cast<const T*>(x.const_data_ptr());
  T* to = static_cast<T*>(dx.mutable_data_ptr());
  const float *w = weight.const_data_ptr<float>(), *b = bias.const_data_ptr<float>();
  const float *m = mean.const_data_ptr<float>(), *r = rstd.const_data_ptr<float>();
  std::vector<double> weights(samples * channels), biases(samples * channels);
  for_samples(samples, numbers, [&](int64_t n) {
    backward_sample(cut, g + n * numbers, from + n * numbers, m + n * channels, r + n * channels, w, b, slope,
                    to + n * numbers, weights.data() + n * channels, biases.data() + n * channels);
  });
  float *sum_weight = dweight.mutable_data_ptr<float>(), *sum_bias = dbias.mutable_data_ptr<float>();
  for (int64_t c = 0; c < channels; ++c) {
    double total_weight = 0.0, total_bias = 0.0;
    for (int64_t n = 0; n < samples; ++n) {
      total_weight += weights[n * channels + c];
      total_bias += biases[n * channels + c];
    }
    sum_weight[c] = float(total_weight);
    sum_bias[c] = float(total_bias);
  }
}

void check(const Tensor& x, const Tensor& weight, const Tensor& bias) {
  TORCH_CHECK(x.dim() == 4 && x.numel() > 0 && x.is_contiguous(at::MemoryFormat::ChannelsLast),
              "x must be (samples, channels, height, width), channels last in memory, and not empty.");
  TORCH_CHECK(x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16, "x must be float32 or bfloat16.");
  for (const Tensor& parameter : {weight, bias})
    TORCH_CHECK(parameter.scalar_type() == at::kFloat && parameter.is_contiguous() && parameter.dim() == 1 &&
                    parameter.size(0) == x.size(1),
                "weight and bias must be float32, contiguous, one number a channel.");
}

void check_statistics(const Tensor& x, const Tensor& mean, const Tensor& rstd) {
  for (const Tensor& statistic : {mean, rstd})
    TORCH_CHECK(statistic.scalar_type() == at::kFloat && statistic.is_contiguous() &&
                    statistic.numel() == x.size(0) * x.size(1),
                "mean and rstd must be float32, contiguous, (samples, channels).");
}

std::tuple<Tensor, Tensor, Tensor> forward_meta(const Tensor& x, const Tensor&, const Tensor&, double, double) {
  const auto options = x.options().dtype(at::kFloat);
  const std::vector<c10::SymInt> shape{x.sym_size(0), x.sym_size(1)};
  return {at::empty_like(x), at::empty_symint(shape, options), at::empty_symint(shape, options)};
}

std::tuple<Tensor, Tensor, Tensor> backward_meta(const Tensor&, const Tensor& x, const Tensor&, const Tensor&,
                                                 const Tensor& weight, const Tensor& bias, double) {
  return {at::empty_like(x), at::empty_like(weight), at::empty_like(bias)};
}

std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& x, const Tensor& weight, const Tensor& bias, double eps,
                                           double slope) {
  check(x, weight, bias);
  auto [y, mean, rstd] = forward_meta(x, weight, bias, eps, slope);
  const auto run = x.scalar_type() == at::kFloat ? forward_all<float> : forward_all<BFloat16>;
  run(x, weight, bias, float(eps), float(slope), y, mean, rstd);
  return {y, mean, rstd};
}

Tensor again_meta(const Tensor& x, const Tensor&, const Tensor&, const Tensor&, const Tensor&, double) {
  return at::empty_like(x);
}

Tensor again(const Tensor& x, const Tensor& mean, const Tensor& rstd, const Tensor& weight, const Tensor& bias,
             double slope) {
  check(x, weight, bias);
  check_statistics(x, mean, rstd);
  Tensor y = at::empty_like(x);
  const auto run = x.scalar_type() == at::kFloat ? again_all<float> : again_all<BFloat16>;
  run(x, mean, rstd, weight, bias, float(slope), y);
  return y;
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad, const Tensor& x, const Tensor& mean,
                                            const Tensor& rstd, const Tensor& weight, const Tensor& bias,
                                            double slope) {
  check(x, weight, bias);
  TORCH_CHECK(grad.sizes() == x.sizes(), "grad must have the shape of x.");
  check_statistics(x, mean, rstd);
  auto [dx, dweight, dbias] = backward_meta(grad, x, mean, rstd, weight, bias, slope);
  const Tensor dense = grad.to(x.scalar_type()).contiguous(at::MemoryFormat::ChannelsLast);
  const auto run = x.scalar_type() == at::kFloat ? backward_all<float> : backward_all<BFloat16>;
  run(dense, x, mean, rstd, weight, bias, float(slope), dx, dweight, dbias);
  return {dx, dweight, dbias};
}

} // namespace

TORCH_LIBRARY(cyclic_committee, library) {
  library.def(
      "instance_norm_leaky_relu(Tensor x, Tensor weight, Tensor bias, float eps, float slope)"
      " -> (Tensor y, Tensor mean, Tensor rstd)");
  library.def(
      "instance_norm_leaky_relu_again(Tensor x, Tensor mean, Tensor rstd, Tensor weight, Tensor bias, float slope)"
      " -> Tensor y");
  library.def(
      "instance_norm_leaky_relu_backward(Tensor grad, Tensor x, Tensor mean, Tensor rstd, Tensor weight, Tensor bias,"
      " float slope) -> (Tensor dx, Tensor dweight, Tensor dbias)");
}

TORCH_LIBRARY_IMPL(cyclic_committee, CPU, library) {
  library.impl("instance_norm_leaky_relu", forward);
  library.impl("instance_norm_leaky_relu_again", again);
  library.impl("instance_norm_leaky_relu_backward", backward);
}

TORCH_LIBRARY_IMPL(cyclic_committee, Meta, library) {
  library.impl("instance_norm_leaky_relu", forward_meta);
  library.impl("instance_norm_leaky_relu_again", again_meta);
  library.impl("instance_norm_leaky_relu_backward", backward_meta);
}
