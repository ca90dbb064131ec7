// Features of one parameter element (SPEC §3, §4, §6), except those that are constant along a row or column.
#pragma once

#include <cfloat>

#include "plan.h"

namespace {

// Gradient preprocessing: scale, optionally replace non-finite values, clip.
struct Conditioning {
    float scale, limit;
    bool replace_nonfinite;

    INLINE V operator()(V g) const {
        g = g * scale;
        if (replace_nonfinite) g = clip(g == g ? g : V{}, FLT_MAX);
        return clip(g, limit);
    }
};

inline Conditioning conditioning_of(const Task& t, const float* scale) {
    return {scale ? *scale : 1.0f, t.max_gradient, t.replace_nonfinite != 0};
}

enum Form { FACTORED, UNFACTORED, BRIEF };  // BRIEF: unfactored, with the first 9 feature groups only

// A rule's channels per element, in the kernels' order: the network's inputs up to row and col, then factored_momentum,
// then diag and rsqrt_diag.
template <bool VELO_, Form FORM_>
struct Channels {
    static constexpr bool VELO = VELO_;
    static constexpr Form FORM = FORM_;
    static constexpr int BEFORE_FACTORS = VELO ? 15 : 13;
    static constexpr int FACTORED_MOMENTUM = BEFORE_FACTORS;
    static constexpr int DIAG = BEFORE_FACTORS + 3;
    static constexpr int COUNT = BEFORE_FACTORS + (FORM == BRIEF ? 0 : FORM == FACTORED ? 3 : 9);
    static constexpr int PARAMETER = VELO ? 2 : 1;
};

// The network's input for a channel. The factors' inputs start at BEFORE_FACTORS: row, col, rsqrt_row, rsqrt_col, 3 each.
template <class C>
constexpr int input_of(int channel) {
    return channel < C::FACTORED_MOMENTUM ? channel
         : channel < C::DIAG             ? channel + 12
         : channel < C::DIAG + 3         ? channel - 3
                                         : channel;
}

struct Inputs {
    V p, g, m[3], v;  // the old parameter, the gradient, the advanced moments
    V factor[3];      // row_factor · col_factor, if factored
    V diag[3];        // if not factored
};

// Pointers to an element's data in each array.
struct Streams {
    float* p;
    const float* g;
    float *m[3], *v, *diag[3], *out;
};

inline Streams streams_of(const Task& t, Index start, float* out) {
    const Index n = t.size();
    Streams s{t.p + start, t.g + start, {}, t.second_moment + start, {}, out ? out + start : nullptr};
    for (int k = 0; k < 3; ++k) {
        s.m[k] = t.momentum + k * n + start;
        if (!t.factored) s.diag[k] = t.row + k * n + start;
    }
    return s;
}

// Software prefetch: there are more streams than the hardware prefetcher follows.
INLINE void fetch_ahead(const Streams& s, Index i, bool unfactored) {
    const Index ahead = i + AHEAD;
    __builtin_prefetch(s.g + ahead);
    __builtin_prefetch(s.p + ahead);
    __builtin_prefetch(s.v + ahead);
    for (int k = 0; k < 3; ++k) __builtin_prefetch(s.m[k] + ahead);
    for (int k = 0; unfactored && k < 3; ++k) __builtin_prefetch(s.diag[k] + ahead);
}

// Calls `take(channel, value)` for each channel.
template <class C, class Take>
INLINE void features(const Inputs& x, const Rule& rule, Take take) {
    int channel = 0;
    const auto next = [&](V value) INLINE_LAMBDA { take(channel++, value); };
    const V rsqrt_v = rsqrt(x.v + rule.rsqrt_eps);
    V factor[3];
    for (int k = 0; k < 3; ++k)
        factor[k] = C::FORM == FACTORED ? x.factor[k] : rsqrt(at_least(x.diag[k] + 1e-9f, 1e-9f));

    next(x.g);
    if (C::VELO) next(clip(x.g, 0.1f));
    next(x.p);
    for (int k = 0; k < 3; ++k) next(x.m[k]);
    next(x.v);
    for (int k = 0; k < 3; ++k) next(x.m[k] * rsqrt_v);
    next(rsqrt_v);
    for (int k = 0; k < 3; ++k) next(x.g * factor[k]);
    if (C::VELO) next(x.g * rsqrt_v);
    if (C::FORM == BRIEF) return;
    for (int k = 0; k < 3; ++k)
        next(x.m[k] * (C::FORM == FACTORED ? factor[k] : rsqrt(x.diag[k] + rule.diag_eps)));
    if (C::FORM == FACTORED) return;
    for (int k = 0; k < 3; ++k) next(x.diag[k]);
    for (int k = 0; k < 3; ++k) next(rsqrt(x.diag[k] + 1e-8f));
}

}  // namespace
