// AdamW for many parameters (SPEC §5, §6, §7): p ← p − coefficient·m̂ / (sqrt(v̂ + eps_root) + eps) − shrink·p.
#pragma once

#include "features.h"

namespace {

struct Adam {
    float* p;
    const float* g;
    float *momentum, *second_moment;
    Index size;
    float beta1, beta2, eps, eps_root, coefficient, shrink, limit;
    float correction1, correction2;  // 1 / (1 − β^t)
    int32_t nesterov;
};

// Sets the numbers of a step. `numbers` are β1, β2, eps, eps_root and the limit of gradients; `count` is the step's number.
inline void set_numbers(Adam& a, const double* numbers, Index count, double coefficient, double shrink) {
    a.beta1 = float(numbers[0]), a.beta2 = float(numbers[1]);
    a.eps = float(numbers[2]), a.eps_root = float(numbers[3]), a.limit = float(numbers[4]);
    a.coefficient = float(coefficient), a.shrink = float(shrink);
    a.correction1 = float(1.0 / (1.0 - std::pow(numbers[0], double(count))));
    a.correction2 = float(1.0 / (1.0 - std::pow(numbers[1], double(count))));
}

INLINE void adam_vector(const Adam& a, const Conditioning& condition, float* p, const float* g, float* m, float* v) {
    const V gradient = condition(load(g)), old = load(p);
    V first = a.beta1 * load(m) + (1.0f - a.beta1) * gradient;
    const V second = a.beta2 * load(v) + (1.0f - a.beta2) * (gradient * gradient);
    store(m, first);
    store(v, second);
    if (a.nesterov) first = a.beta1 * first + (1.0f - a.beta1) * gradient;
    const V direction = first * a.correction1 / (square_root(second * a.correction2 + a.eps_root) + a.eps);
    store(p, old - (a.coefficient * direction + a.shrink * old));
}

inline void adam_unit(const Adam& a, Index unit, const float* scale) {
    const Conditioning condition{scale ? *scale : 1.0f, a.limit, false};
    Index i = unit * UNIT;
    const Index end = std::min(i + UNIT, a.size);
    for (; i + W <= end; i += W) adam_vector(a, condition, a.p + i, a.g + i, a.momentum + i, a.second_moment + i);
    if (i == end) return;
    float lanes[4][W] = {};
    float* from[4] = {a.p + i, const_cast<float*>(a.g) + i, a.momentum + i, a.second_moment + i};
    for (int k = 0; k < 4; ++k) std::copy_n(from[k], end - i, lanes[k]);
    adam_vector(a, condition, lanes[0], lanes[1], lanes[2], lanes[3]);
    for (int k : {0, 2, 3}) std::copy_n(lanes[k], end - i, from[k]);
}

}  // namespace
