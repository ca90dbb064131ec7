// The network (SPEC §3, §4, §6) for a tile of elements, with the normalizer folded into its first layer.
//
// A normalized feature is the feature times a scale, so the scale can multiply the weights instead. The contributions of
// features that are constant along an axis are precomputed per row and per column (move.h).
#pragma once

#include "moments.h"

namespace {

// An affine map with weights [outputs, inputs], one for all parameters (strides 0) or one per parameter.
struct Layer {
    const float *weight, *bias;
    Index weight_stride, bias_stride, inputs, outputs;
};

constexpr int MAX_HIDDEN = 32;
constexpr int OUTPUTS = 2;  // direction, magnitude

// The register tile of a layer of H units: VECTORS times UNITS accumulators.
template <int H>
struct Block {
    static constexpr int UNITS = W == 16 ? (H == 4 ? 4 : 8) : 4;
    static constexpr int VECTORS = W == 16 && H == 4 ? 4 : 2;
};

// y[o] = max(start(o) + sum over i of w[i][o]·x[i], low), with weights in blocks [OUT / UNITS][IN][UNITS].
template <int IN, int OUT, int UNITS, int N, class Start>
INLINE void dense(const V (*x)[N], const float* w, Start start, float low, V (*y)[N]) {
    for (int first = 0; first < OUT; first += UNITS, w += IN * UNITS) {
        V total[UNITS][N];
        UNROLL for (int o = 0; o < UNITS; ++o)
            UNROLL for (int k = 0; k < N; ++k) total[o][k] = start(first + o, k);
#pragma GCC unroll 4
        for (int i = 0; i < IN; ++i)
            UNROLL for (int o = 0; o < UNITS; ++o)
                UNROLL for (int k = 0; k < N; ++k) total[o][k] += splat(w[i * UNITS + o]) * x[i][k];
        UNROLL for (int o = 0; o < UNITS; ++o)
            UNROLL for (int k = 0; k < N; ++k) y[first + o][k] = at_least(total[o][k], low);
    }
}

inline __attribute__((noinline)) void apply_tanh(V* x, int n) {
    for (int i = 0; i < n; ++i) x[i] = hyperbolic_tangent(x[i]);
}

// One parameter's network, packed for `dense`. Missing units up to H are zero.
template <class C, int H>
struct Network {
    static constexpr int UNITS = Block<H>::UNITS, N = Block<H>::VECTORS;
    ALIGNED float first[C::COUNT * H], first_bias[H];
    float factors[12][H];  // weights of the outer and the inner factor: value [3] and rsqrt [3] each, as in scales
    std::vector<float> hidden;  // per layer: [H / UNITS][H][UNITS], then biases [H]
    float last[H * OUTPUTS], last_bias[OUTPUTS];
    int hidden_layers;
    const float *weight, *bias;
    Index inputs, units;

    void pack(const Layer* layers, int count, Index parameter) {
        hidden_layers = count - 2;
        hidden.assign(hidden_layers * (H * H + H), 0.0f);
        weight = layers[0].weight + parameter * layers[0].weight_stride;
        bias = layers[0].bias + parameter * layers[0].bias_stride;
        inputs = layers[0].inputs, units = layers[0].outputs;
        for (int k = 0; k < hidden_layers; ++k)
            blocks(layers[k + 1], parameter, UNITS, H, &hidden[k * (H * H + H)], &hidden[k * (H * H + H) + H * H]);
        std::fill_n(last, H * OUTPUTS, 0.0f);
        blocks(layers[count - 1], parameter, OUTPUTS, OUTPUTS, last, last_bias);
    }

    // Packs the first layer. `scales` of a batch normalize its channels; null if the channels are normalized already.
    void fold(const float* scales, bool outer_is_row) {
        const auto scale = [&](int k) { return scales ? scales[k] : 1.0f; };
        std::fill_n(first, C::COUNT * H, 0.0f);
        std::fill_n(&factors[0][0], 12 * H, 0.0f);
        std::fill_n(first_bias, H, 0.0f);
        for (Index h = 0; h < units; ++h) {
            const float* w = weight + h * inputs;
            first_bias[h] = bias[h];
            for (int k = 0; k < C::COUNT; ++k) {
                float x = w[input_of<C>(k)];
                if (k >= C::DIAG) x += w[input_of<C>(k) + 3];  // diag is both row and col
                first[(h / UNITS * C::COUNT + k) * UNITS + h % UNITS] = x * scale(k);
            }
            if (C::FORM == FACTORED)
                for (int k = 0; k < 12; ++k) {
                    const bool inner = k >= 6, root = k % 6 >= 3, row = inner != outer_is_row;
                    const int input = C::BEFORE_FACTORS + 6 * root + 3 * !row + k % 3;
                    factors[k][h] = w[input] * scale(OUTER + k);
                }
        }
    }

    // The first layer of a tile, from its features x, added to `start(h, k)`.
    template <class Start>
    INLINE void enter(const V (*x)[N], float low, Start start, V (*y)[N]) const {
        dense<C::COUNT, H, UNITS>(x, first, start, low, y);
    }

    // The same for vector k and few units, whose sums stay in registers while features are computed one by one.
    template <class Features>
    INLINE void enter_at_once(int k, float low, V* total, Features features, V (*y)[N]) const {
        features([&](int channel, V x) INLINE_LAMBDA {
            UNROLL for (int h = 0; h < H; ++h) total[h] += splat(first[channel * UNITS + h]) * x;
        });
        UNROLL for (int h = 0; h < H; ++h) y[h][k] = at_least(total[h], low);
    }

    // The remaining layers: direction and magnitude of a tile. Overwrites the first layer's output.
    INLINE void leave(V (*from)[N], bool tanh, V (*y)[N]) const {
        const float none = -HUGE_VALF, low = tanh ? none : 0.0f;
        V other[H][N], (*to)[N] = other;
        if (tanh) apply_tanh(from[0], H * N);
        for (int layer = 0; layer < hidden_layers; ++layer, std::swap(from, to)) {
            const float *w = hidden.data() + layer * (H * H + H), *b = w + H * H;
            dense<H, H, UNITS>(from, w, [&](int o, int) INLINE_LAMBDA { return splat(b[o]); }, low, to);
            if (tanh) apply_tanh(to[0], H * N);
        }
        const auto bias = [&](int o, int) INLINE_LAMBDA { return splat(last_bias[o]); };
        dense<H, OUTPUTS, OUTPUTS>(from, last, bias, none, y);
    }

   private:
    static void blocks(const Layer& layer, Index parameter, int width, Index most, float* w, float* b) {
        const float* from = layer.weight + parameter * layer.weight_stride;
        const Index outputs = std::min(layer.outputs, most);
        for (Index o = 0; o < outputs; ++o) {
            b[o] = layer.bias[parameter * layer.bias_stride + o];
            for (Index i = 0; i < layer.inputs; ++i)
                w[(o / width * H + i) * width + o % width] = from[o * layer.inputs + i];
        }
    }
};

}  // namespace
