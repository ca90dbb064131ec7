// The move pass: recomputes the features, runs the network and updates the parameter.
#pragma once

#include "network.h"

namespace {

struct Move {
    const Layer* layers;
    int count;
    const float *coefficient, *shrink;  // one per parameter
    float* const* out;                  // if not null, steps are written here and parameters stay
};

template <class C, int H>
struct MoveScratch {
    Network<C, H> network;
    ALIGNED float spread[3][LONGEST + TILE], normalized[6][LONGEST + TILE], entries[H][LONGEST + TILE];
    ALIGNED float along[H][LONGEST + TILE];
    ALIGNED float factor[3][PATTERN], across[H][PATTERN], scale[C::COUNT][PATTERN];
    ALIGNED float padded[10][TILE];
};

// additions[h][i] = start[h] + the normalized contribution of the factor's entry i to the first layer. If means are
// periodic, `scales` has one set per position of the cycle; if it is null, the weights include the scales.
template <int H>
void add_factor(const float* const* values, Index n, const float (*weights)[H], const float* scales, Index cycle,
                const float* start, float (*normalized)[LONGEST + TILE], float* additions, Index stride) {
    for (int k = 0; scales && k < 6; ++k) {
        float scale[LONGEST_CYCLE];
        for (Index c = 0; c < cycle; ++c) scale[c] = scales[c * SCALES + k];
        for (Index i = 0; i < n; i += cycle)
            for (Index c = 0; c < cycle; ++c) normalized[k][i + c] = values[k][i + c] * scale[c];
    }
    const float* x[6];
    for (int k = 0; k < 6; ++k) x[k] = scales ? normalized[k] : values[k];
    for (int h = 0; h < H; ++h) {
        float w[6];
        for (int k = 0; k < 6; ++k) w[k] = weights[k][h];
        float* to = additions + h * stride;
        for (Index i = 0; i < n; ++i) {
            float total = start[h];
            for (int k = 0; k < 6; ++k) total += w[k] * x[k][i];
            to[i] = total;
        }
    }
}

template <class C, int H>
class Mover {
    static constexpr int N = Block<H>::VECTORS, SPAN = N * W;
    static constexpr bool AT_ONCE = H <= Block<H>::UNITS && H <= 4 && C::FORM == FACTORED;

    const Plan& plan;
    const Rule& rule;
    const Task& task;
    MoveScratch<C, H>& s;
    const Conditioning condition;
    const float coefficient, shrink, rms;
    const bool periodic;  // features are normalized here, not in the weights

   public:
    Mover(const Plan& plan, const Rule& rule, const Move& move, Index index, const float* scale, MoveScratch<C, H>& s)
        : plan(plan), rule(rule), task(*plan.task), s(s), condition(conditioning_of(task, scale)),
          coefficient(move.coefficient ? move.coefficient[index] : 0.0f), shrink(move.shrink ? move.shrink[index] : 0.0f),
          rms(rule.parameter_scale ? *plan.rms : 1.0f), periodic(plan.cycle > 1) {
        s.network.pack(move.layers, move.count, index);
    }

    void operator()(Index unit, float* out) {
        const Extent e = extent_of(plan, unit);
        const Factor &across = plan.flat ? plan.inner : plan.outer, &along = plan.flat ? plan.outer : plan.inner;
        const int across_scale = plan.flat ? INNER : OUTER, along_scale = plan.flat ? OUTER : INNER;
        const float none[H] = {};
        for (Index group = e.first_group; group < e.last_group; ++group) {
            const float* scales = plan.scales + (plan.batches == 1 ? 0 : group * plan.cycle) * SCALES;
            s.network.fold(periodic ? nullptr : scales, task.outer_is_row);
            const float *factors[3] = {}, *values[6];
            if (C::FORM == FACTORED) {
                for (int k = 0; k < 6; ++k) values[k] = entries_along(plan, plane(along, k), group, e.offset);
                add_factor<H>(values, plan.flat ? e.length / task.y : e.length,
                              s.network.factors + (along_scale - OUTER), periodic ? scales + along_scale : nullptr,
                              plan.cycle, none, s.normalized, plan.flat ? s.entries[0] : s.along[0], LONGEST + TILE);
                for (int h = 0; plan.flat && h < H; ++h) spread(plan, s.entries[h], e.length, s.along[h]);
                for (int k = 0; k < 3; ++k)
                    factors[k] = read_along(plan, along.factor + k * along.entries(), group, e.offset, e.length, s.spread[k]);
                if (periodic)
                    for (int k = 0; k < C::COUNT; ++k) {
                        float each[LONGEST_PERIOD];
                        for (Index i = 0; i < plan.period; ++i) each[i] = scales[i % plan.cycle * SCALES + k];
                        repeat(each, plan.period, s.scale[k]);
                    }
            }
            for (Index run = e.first_run; run < e.last_run; ++run) {
                if (C::FORM == FACTORED) {
                    const Index first = plan.across(group, run);
                    for (int k = 0; k < 3; ++k)
                        repeat(across.factor + k * across.entries() + first, plan.period, s.factor[k]);
                    float additions[H][LONGEST_PERIOD];
                    for (int k = 0; k < 6; ++k) values[k] = plane(across, k) + first;
                    add_factor<H>(values, plan.period, s.network.factors + (across_scale - OUTER),
                                  periodic ? scales + across_scale : nullptr, plan.cycle, s.network.first_bias,
                                  s.normalized, additions[0], LONGEST_PERIOD);
                    for (int h = 0; h < H; ++h) repeat(additions[h], plan.period, s.across[h]);
                }
                const Streams streams = streams_of(task, plan.start(group, run) + e.offset, out);
                if constexpr (C::VELO && C::FORM == FACTORED)
                    if (periodic) {
                        walk<true>(streams, e.length, factors);
                        continue;
                    }
                walk<false>(streams, e.length, factors);
            }
        }
    }

   private:
    static const float* plane(const Factor& f, int k) { return (k < 3 ? f.value : f.rsqrt) + k % 3 * f.entries(); }

    template <bool PERIODIC>
    void walk(const Streams& streams, Index n, const float* const* factors) {
        const Index period = plan.period, advance = SPAN % period;
        Index i = 0, phase = 0;
        for (; i + SPAN <= n; i += SPAN) {
            for (int k = 0; k < N; ++k) fetch_ahead(streams, i + k * W, C::FORM != FACTORED);
            tile<PERIODIC>(shifted(streams, i), i, phase, factors);
            phase = phase + advance < period ? phase + advance : phase + advance - period;
        }
        if (i == n) return;
        const Streams rest = shifted(streams, i);
        Streams copy{};
        int used = 0;
        const auto pad = [&](auto& to, const float* from) {
            std::fill_n(s.padded[used], SPAN, 0.0f);
            std::copy_n(from, n - i, s.padded[used]);
            to = s.padded[used++];
        };
        pad(copy.p, rest.p), pad(copy.g, rest.g), pad(copy.v, rest.v);
        for (int k = 0; k < 3; ++k) pad(copy.m[k], rest.m[k]);
        for (int k = 0; C::FORM != FACTORED && k < 3; ++k) pad(copy.diag[k], rest.diag[k]);
        if (rest.out) copy.out = s.padded[used];
        tile<PERIODIC>(copy, i, phase, factors);
        std::copy_n(rest.out ? copy.out : copy.p, n - i, rest.out ? rest.out : rest.p);
    }

    template <bool PERIODIC>
    INLINE void tile(const Streams& at, Index i, Index phase, const float* const* factors) {
        V x[C::COUNT][N], hidden[H][N], y[OUTPUTS][N], p[N];
        const float low = rule.tanh ? -HUGE_VALF : 0.0f;
        const auto start = [&](int h, int k) INLINE_LAMBDA {
            if (C::FORM != FACTORED) return splat(s.network.first_bias[h]);
            return load(s.along[h] + i + k * W) + load(s.across[h] + phase + k * W);
        };
        for (int k = 0; k < N; ++k) {
            const Index lane = k * W;
            Inputs in;
            in.p = p[k] = load(at.p + lane), in.g = condition(load(at.g + lane)), in.v = load(at.v + lane);
            for (int j = 0; j < 3; ++j) {
                in.m[j] = load(at.m[j] + lane);
                if (C::FORM == FACTORED)
                    in.factor[j] = load(factors[j] + i + lane) * load(s.factor[j] + phase + lane);
                else
                    in.diag[j] = load(at.diag[j] + lane);
            }
            const auto each = [&](auto take) INLINE_LAMBDA {
                features<C>(in, rule, [&](int channel, V value) INLINE_LAMBDA {
                    take(channel, PERIODIC ? value * load(s.scale[channel] + phase + lane) : value);
                });
            };
            if constexpr (AT_ONCE) {
                V total[H];
                UNROLL for (int h = 0; h < H; ++h) total[h] = start(h, k);
                s.network.enter_at_once(k, low, total, each, hidden);
            } else {
                each([&](int channel, V value) INLINE_LAMBDA { x[channel][k] = value; });
            }
        }
        if (!AT_ONCE) s.network.enter(x, low, start, hidden);
        s.network.leave(hidden, rule.tanh, y);
        for (int k = 0; k < N; ++k) {
            V step = y[0][k] * rms;
            if (rule.exp_mult != 0) step *= exponential(y[1][k] * rule.exp_mult);
            if (at.out)
                store(at.out + k * W, step);
            else
                store(at.p + k * W, p[k] - (coefficient * step + shrink * p[k]));
        }
    }
};

}  // namespace
