// The LSTM of VeLO, Celo and celo-adam (SPEC §4, §5), except its matrix products, which are torch's.
#pragma once

#include "plan.h"

namespace {

constexpr int HORIZONS = 10, RUN_FEATURES = 9, RANKS = 5, TENSOR_FEATURES = 12;
constexpr float FRACTIONS[RUN_FEATURES] = {0.03f, 0.1f, 0.2f, 0.4f, 0.6f, 0.8f, 0.9f, 1.0f, 1.1f};

// As in torch, NaN propagates.
inline float smaller(float a, float b) { return a != a || a < b ? a : b; }
inline float larger(float a, float b) { return a != a || a > b ? a : b; }
inline float limited(float x, float low, float high) { return x < low ? low : x > high ? high : x; }

// Adds a loss to the run's averages, and writes the features of the fraction [9] and of the loss [9] to `out`.
// `powers` are the decays to the power of the number of losses, this one included.
inline void advance_run(float* average, float* minimum, const float* decays, const float* powers, Index losses,
                        Index horizon, float loss, float* out) {
    float largest = -HUGE_VALF, corrected[HORIZONS];
    for (int k = 0; k < HORIZONS; ++k) largest = larger(largest, average[k] / (1.0f - powers[k]));
    loss = smaller(2.0f * std::fabs(losses == 1 ? loss : largest), loss);
    for (int k = 0; k < HORIZONS; ++k) {
        // Volatile: rounded one by one, as in torch, because the features are differences of nearly equal numbers.
        volatile float before = average[k] * decays[k], added = (1.0f - decays[k]) * loss;
        average[k] = before + added;
        corrected[k] = average[k] / (1.0f - powers[k]);
        minimum[k] = smaller(minimum[k], corrected[k]);
    }
    const float fraction = float(std::min(losses, horizon) - 1) / float(horizon);
    for (int k = 0; k < RUN_FEATURES; ++k) {
        out[k] = float(std::tanh(double(10.0f * (fraction - FRACTIONS[k]))));
        const float below = corrected[k + 1] - minimum[k];
        const float ratio = (corrected[k] - minimum[k]) / (below < 1e-8f ? 1e-8f : below);
        out[RUN_FEATURES + k] = losses <= 2 ? 0.0f : limited(ratio - 1.0f, -1.0f, 1.0f);
    }
}

// ½·clip(ln(1e-8 + |10·x|), −5, 5)
inline float squashed(float x) { return 0.5f * limited(std::log(1e-8f + std::fabs(10.0f * x)), -5.0f, 5.0f); }

// The LSTM's inputs for a tensor: the run's features, mean_rms, rank, var_m and var_rms (ops/conditioning.py).
inline void lstm_input(const float* run, const float* moments, const float* rank, float* out) {
    const float *mean_m = moments + 1, *var_m = moments + 4, mean_v = moments[7], var_v = moments[8];
    const float square = moments[0], scale = 1.0f / std::sqrt(square < 1e-9f ? 1e-9f : square);
    out = std::copy_n(run, 2 * RUN_FEATURES, out);
    *out++ = squashed(scale * mean_v);
    out = std::copy_n(rank, RANKS, out);
    for (int k = 0; k < 3; ++k) *out++ = squashed(scale * scale * var_m[k]);
    for (int k = 0; k < 3; ++k) {
        const float around = mean_v - mean_m[k];
        *out++ = squashed(scale * scale * (var_v + around * around));
    }
}

// Gates i, g, f, o of one tensor, in rows of `units`: `gates` plus `shift`, which all tensors share.
struct Gates {
    const float *gates, *shift, *cell;
    float *new_hidden, *new_cell;  // may be the old ones
    Index units;
};

INLINE V sigmoid(V x) { return 1.0f / (1.0f + exponential(-x)); }

INLINE void gate_vector(const V* x, V cell, V& new_hidden, V& new_cell) {
    new_cell = sigmoid(x[2] + 1.0f) * cell + sigmoid(x[0]) * hyperbolic_tangent(x[1]);
    new_hidden = sigmoid(x[3]) * hyperbolic_tangent(new_cell);
}

inline void gate_row(const Gates& g) {
    V x[4], hidden, cell;
    Index i = 0;
    for (; i + W <= g.units; i += W) {
        for (int k = 0; k < 4; ++k) x[k] = load(g.gates + k * g.units + i) + load(g.shift + k * g.units + i);
        gate_vector(x, load(g.cell + i), hidden, cell);
        store(g.new_hidden + i, hidden);
        store(g.new_cell + i, cell);
    }
    const Index rest = g.units - i;
    if (rest == 0) return;
    float lanes[9][W] = {};
    for (int k = 0; k < 4; ++k) {
        std::copy_n(g.gates + k * g.units + i, rest, lanes[k]);
        std::copy_n(g.shift + k * g.units + i, rest, lanes[4 + k]);
    }
    std::copy_n(g.cell + i, rest, lanes[8]);
    for (int k = 0; k < 4; ++k) x[k] = load(lanes[k]) + load(lanes[4 + k]);
    gate_vector(x, load(lanes[8]), hidden, cell);
    for (Index k = 0; k < rest; ++k) g.new_hidden[i + k] = hidden[k], g.new_cell[i + k] = cell[k];
}

// --- the whole LSTM for few tensors, whose products are too small for calls of a library -----------------------------

// All weights are [inputs, outputs], and numbers of outputs are multiples of W.
struct Weights {
    const float *pooled, *pooled_bias, *hidden, *input, *shared, *gate_bias, *head, *head_bias;
};

// y[o] = start[o] + sum over i of x[i]·w[i][o]. `y` may be `start`.
inline void affine(const float* x, Index inputs, const float* w, const float* start, Index outputs, float* y) {
    constexpr int N = 4;
    for (Index first = 0; first < outputs; first += N * W) {
        const int n = int(std::min<Index>(N, (outputs - first) / W));
        V total[N];
        for (int k = 0; k < n; ++k) total[k] = load(start + first + k * W);
        if (n == N)
            for (Index i = 0; i < inputs; ++i)
                UNROLL for (int k = 0; k < N; ++k) total[k] += splat(x[i]) * load(w + i * outputs + first + k * W);
        else
            for (Index i = 0; i < inputs; ++i)
                for (int k = 0; k < n; ++k) total[k] += splat(x[i]) * load(w + i * outputs + first + k * W);
        for (int k = 0; k < n; ++k) store(y + first + k * W, total[k]);
    }
}

// One step of `count` tensors with `rows` inputs: one for all of them, or one each.
inline void step_few(const Weights& w, const float* x, Index rows, Index inputs, Index count, Index units, Index heads,
                     const float* hidden, const float* cell, float* new_hidden, float* new_cell, float* out) {
    std::vector<float> memory(2 * units + 8 * units);
    float *pooled = memory.data(), *each = pooled + units, *shift = each + units, *gates = shift + 4 * units;
    for (Index row = 0; row < rows; ++row) {
        affine(x + row * inputs, inputs, w.pooled, w.pooled_bias, units, each);
        for (Index k = 0; k < units; ++k) pooled[k] = larger(pooled[k], each[k]);
    }
    affine(pooled, units, w.shared, w.gate_bias, 4 * units, shift);
    if (rows == 1) affine(x, inputs, w.input, shift, 4 * units, shift);
    for (Index i = 0; i < count; ++i) {
        std::fill_n(gates, 4 * units, 0.0f);
        affine(hidden + i * units, units, w.hidden, gates, 4 * units, gates);
        if (rows > 1) affine(x + i * inputs, inputs, w.input, gates, 4 * units, gates);
        gate_row({gates, shift, cell + i * units, new_hidden + i * units, new_cell + i * units, units});
        affine(new_hidden + i * units, units, w.head, w.head_bias, heads, out + i * heads);
    }
}

}  // namespace
