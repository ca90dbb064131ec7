// The factor pass: sums of squared gradients along rows and columns, and the update of the factored second moment (SPEC §1).
#pragma once

#include "features.h"

namespace {

constexpr double STATISTIC_EPS = 1e-9, FACTOR_EPS = 1e-8;

// out[c] = sum over y of x[y·period + c]. Reads up to 2·W floats past the end of x.
inline void fold(const float* x, Index n, Index period, float* out) {
    if (period == 1) {
        V total[4] = {};
        Index i = 0;
        for (; i + 4 * W <= n; i += 4 * W)
            for (int k = 0; k < 4; ++k) total[k] += load(x + i + k * W);
        float rest = 0;
        for (; i < n; ++i) rest += x[i];
        out[0] = sum((total[0] + total[1]) + (total[2] + total[3])) + rest;
        return;
    }
    for (Index c = 0; c < period; c += W) {
        V total[2] = {};
        Index i = c;
        for (; i + period < n; i += 2 * period) {
            total[0] += load(x + i);
            total[1] += load(x + i + period);
        }
        if (i < n) total[0] += load(x + i);
        const V all = total[0] + total[1];
        std::memcpy(out + c, &all, sizeof(float) * std::min<Index>(W, period - c));
    }
}

struct SquaresScratch {
    ALIGNED float squares[LONGEST + TILE], along[LONGEST + TILE];
};

// For a run: squares = g² + 1e-30, along += squares.
inline void square(const float* g, Index n, const Conditioning& condition, SquaresScratch& s) {
    const auto lanes = [&](Index i, V x) {
        x = condition(x);
        x = x * x + 1e-30f;
        store(s.squares + i, x);
        store(s.along + i, load(s.along + i) + x);
    };
    Index i = 0;
    for (; i + W <= n; i += W) lanes(i, load(g + i));
    if (i < n) {
        V x = {};
        std::memcpy(&x, g + i, sizeof(float) * (n - i));
        lanes(i, x);
    }
}

inline void sum_squares(const Plan& plan, Index unit, const float* scale, SquaresScratch& s) {
    const Task& t = *plan.task;
    const Extent e = extent_of(plan, unit);
    const Conditioning condition = conditioning_of(t, scale);
    const Index line = t.y * t.c;  // elements per C entries of the outer factor
    for (Index group = e.first_group; group < e.last_group; ++group) {
        std::fill_n(s.along, e.length + W, 0.0f);
        for (Index run = e.first_run; run < e.last_run; ++run) {
            square(t.g + plan.start(group, run) + e.offset, e.length, condition, s);
            if (plan.flat) {
                float* outer = plan.outer.sums + plan.along(group) + e.offset / t.y;
                for (Index i = 0; i < e.length / line; ++i) fold(s.squares + i * line, line, t.c, outer + i * t.c);
                float* inner = plan.inner.sums + e.length_block * plan.inner.entries() + plan.across(group, run);
                fold(s.squares, e.length, plan.period, inner);
            } else {
                float* outer = plan.outer.sums + e.length_block * plan.outer.entries() + plan.across(group, run);
                fold(s.squares, e.length, t.c, outer);
            }
        }
        if (!plan.flat) {
            float* inner = plan.inner.sums + e.run_block * plan.inner.entries() + plan.along(group) + e.offset;
            std::copy_n(s.along, e.length, inner);
        }
    }
}

// value ← decay·value + (1 − decay)·mean, for each of three decays.
inline void advance_factor(const Factor& f, const float* decay) {
    constexpr Index CHUNK = 256;
    const Index n = f.entries();
    for (Index first = 0; first < n; first += CHUNK) {
        const Index count = std::min(CHUNK, n - first);
        double total[CHUNK] = {};
        for (Index block = 0; block < f.blocks; ++block)
            for (Index i = 0; i < count; ++i) total[i] += f.sums[block * n + first + i];
        for (int k = 0; k < 3; ++k) {
            float* value = f.value + k * n + first;
            for (Index i = 0; i < count; ++i)
                value[i] = decay[k] * value[i] + (1.0f - decay[k]) * float(total[i] / f.averaged);
        }
    }
}

// row_factor uses row relative to its mean over d1; col_factor uses col.
inline void make_factor(const Factor& f, bool is_row) {
    const Index n = f.entries(), each = f.along * f.after;
    const Index width = f.after == 1 ? f.along : f.after;  // length of the inner loops
    std::vector<float> mean(width, 1.0f);
    std::vector<double> total(f.after);
    for (Index first = 0; first < 3 * n; first += each) {
        const float* value = f.value + first;
        if (is_row) {
            std::fill(total.begin(), total.end(), 0.0);
            for (Index j = 0; j < each; j += f.after)
                for (Index c = 0; c < f.after; ++c) total[c] += value[j + c];
            for (Index c = 0; c < width; ++c) mean[c] = float(total[f.after == 1 ? 0 : c] / f.along + STATISTIC_EPS);
        }
        for (Index j = 0; j < each; j += width)
            for (Index c = 0; c < width; ++c) {
                const float v = value[j + c], x = v / mean[c];
                f.factor[first + j + c] = 1.0f / std::sqrt(x < 1e-9f ? 1e-9f : x);
                f.rsqrt[first + j + c] = 1.0f / std::sqrt(v + 1e-8f);
            }
    }
}

inline double sum_of_squares(const float* x, Index n) {
    double lanes[W] = {};
    for (Index i = 0; i < n; i += W)
        for (Index k = 0; k < std::min<Index>(W, n - i); ++k) lanes[k] += double(x[i + k]) * x[i + k];
    return std::accumulate(lanes, lanes + W, 0.0);
}

// Writes the normalizer's scales (SPEC §2) of a factor and its inverse root to `scales[first ... first + 6]` of each
// batch. Expanding a feature along a constant axis does not change its mean square.
inline void scale_factor(const Plan& plan, const Factor& f, float eps, int first) {
    const Index n = f.entries(), per_batch = n / plan.batches;
    std::vector<double> total(plan.batches);
    for (int channel = 0; channel < 6; ++channel) {
        const float* plane = (channel < 3 ? f.value : f.rsqrt) + channel % 3 * n;
        std::fill(total.begin(), total.end(), 0.0);
        if (plan.batches == 1)
            total[0] = sum_of_squares(plane, n);
        else
            for (Index i = 0; i < f.before; ++i)
                for (Index j = 0; j < f.along; ++j)
                    for (Index c = 0; c < f.after; ++c, ++plane) total[i * plan.cycle + c] += double(*plane) * *plane;
        for (Index batch = 0; batch < plan.batches; ++batch)
            plan.scales[batch * SCALES + first + channel] = float(1.0 / std::sqrt(eps + total[batch] / per_batch));
    }
}

inline void advance_factors(const Plan& plan, const Rule& rule) {
    for (const Factor* f : {&plan.outer, &plan.inner}) {
        advance_factor(*f, plan.task->adafactor_decay);
        make_factor(*f, (f == &plan.outer) == (plan.task->outer_is_row != 0));
        scale_factor(plan, *f, rule.norm_eps, f == &plan.outer ? OUTER : INNER);
    }
}

}  // namespace
