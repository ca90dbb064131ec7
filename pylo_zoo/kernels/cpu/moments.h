// The moment pass: advances momentum, second moment and diag (SPEC §1), and sums each channel's squares for the normalizer.
#pragma once

#include "factors.h"

namespace {

// One plane of a factor along a run, starting at the entry of element `offset`. An entry belongs to Y elements if runs
// are flat (see `spread`), else to one.
inline const float* entries_along(const Plan& plan, const float* plane, Index group, Index offset) {
    return plane + plan.along(group) + (plan.flat ? offset / plan.task->y : offset);
}

// Expands the entries along a flat run to `count` contiguous elements.
inline void spread(const Plan& plan, const float* entries, Index count, float* elements) {
    const Index c = plan.task->c, line = plan.task->y * c;
    for (Index i = 0; i < count; i += line, entries += c)
        if (c == 1)
            std::fill_n(elements + i, line, *entries);
        else
            for (Index j = 0; j < line; j += c) std::copy_n(entries, c, elements + i + j);
}

// The plane for `count` elements: in place, or expanded into `room`.
inline const float* read_along(const Plan& plan, const float* plane, Index group, Index offset, Index count, float* room) {
    const float* entries = entries_along(plan, plane, group, offset);
    if (!plan.flat) return entries;
    spread(plan, entries, count, room);
    return room;
}

// Repeats `period` values so that TILE values can be read from any of them on.
inline void repeat(const float* values, Index period, float* pattern) {
    if (period == 1) {
        for (Index i = 0; i <= TILE; i += W) store(pattern + i, splat(values[0]));
        return;
    }
    std::copy_n(values, period, pattern);
    for (Index have = period; have < period + TILE; have *= 2)
        std::copy_n(pattern, std::min(have, period + TILE - have), pattern + have);
}

constexpr Index PATTERN = LONGEST_PERIOD + TILE + W;

// Sums per lane. Equal addends, such as clipped gradients, round in the same direction each time, so float32 sums only a
// few vectors and float64 the rest.
struct Sums {
    static constexpr int FEW = 32;
    V now[MAX_CHANNELS + OLD_MOMENTS];
    double total[MAX_CHANNELS + OLD_MOMENTS][W];

    void clear(int statistics) {
        std::fill_n(now, statistics, V{});
        std::fill_n(total[0], statistics * W, 0.0);
    }

    void settle(int statistics) {
        for (int k = 0; k < statistics; ++k) {
            for (int lane = 0; lane < W; ++lane) total[k][lane] += now[k][lane];
            now[k] = V{};
        }
    }
};

struct MomentsScratch {
    ALIGNED float spread[3][LONGEST + TILE], pattern[3][PATTERN];
    Sums sums[LONGEST_CYCLE];  // one, or, if means are periodic, one per vector of the common period
    Index pending;              // vectors added since the last settle()
};

struct Decay {
    float old, fresh;

    INLINE V operator()(V average, V value) const { return old * average + fresh * value; }
};

// Means of the first 64 elements.
inline void take_sample(const Plan& plan) {
    const Task& t = *plan.task;
    const Index n = t.size(), few = std::min<Index>(n, 64);
    const float* planes[4] = {t.momentum, t.momentum + n, t.momentum + 2 * n, t.second_moment};
    for (int k = 0; k < 4; ++k)
        plan.sample[k] = float(std::accumulate(planes[k], planes[k] + few, 0.0) / double(few));
}

// Advances one vector of elements and adds its statistics to `sums`. In the last vector of a run, only `valid` lanes
// count. With OLD, the statistics of the old moments are relative to `sample`, which is near their means: this avoids
// cancellation in the variances.
template <class C, bool OLD, bool PARTIAL>
INLINE void advance_vector(const Streams& s, Inputs& x, const Task& t, const Rule& rule, const Conditioning& condition,
                           const float* sample, VI valid, V* sums) {
    const auto add = [&](int k, V value) INLINE_LAMBDA { sums[k] += PARTIAL ? (valid ? value : V{}) : value; };
    x.g = condition(load(s.g));
    x.p = load(s.p);
    for (int k = 0; k < 3; ++k) {
        const V old = load(s.m[k]);
        if (OLD) {
            const V from = old - sample[k];
            add(C::COUNT + k, from);
            add(C::COUNT + 3 + k, from * from);
        }
        x.m[k] = Decay{t.momentum_decay[k], 1.0f - t.momentum_decay[k]}(old, x.g);
        store(s.m[k], x.m[k]);
    }
    const V old = load(s.v), square = x.g * x.g;
    if (OLD) {
        const V from = old - sample[3];
        add(C::COUNT + 6, from);
        add(C::COUNT + 7, from * from);
    }
    x.v = Decay{t.rms_decay, 1.0f - t.rms_decay}(old, square);
    store(s.v, x.v);
    if (C::FORM != FACTORED)
        for (int k = 0; k < 3; ++k) {
            x.diag[k] = Decay{t.adafactor_decay[k], 1.0f - t.adafactor_decay[k]}(load(s.diag[k]), square + 1e-30f);
            store(s.diag[k], x.diag[k]);
        }
    features<C>(x, rule, [&](int channel, V value) INLINE_LAMBDA { add(channel, value * value); });
}

// Copies of the last elements of a run, padded with zeros to a whole vector.
struct Padded {
    ALIGNED float lanes[9][W];

    Streams in(const Streams& s, Index count, bool unfactored) {
        Streams copy{};
        int k = 0;
        const auto pad = [&](auto& to, const float* from) {
            std::fill_n(lanes[k], W, 0.0f);
            std::copy_n(from, count, lanes[k]);
            to = lanes[k++];
        };
        pad(copy.p, s.p), pad(copy.g, s.g), pad(copy.v, s.v);
        for (int j = 0; j < 3; ++j) pad(copy.m[j], s.m[j]);
        for (int j = 0; unfactored && j < 3; ++j) pad(copy.diag[j], s.diag[j]);
        return copy;
    }

    void out(const Streams& copy, const Streams& s, Index count, bool unfactored) {
        std::copy_n(copy.v, count, s.v);
        for (int j = 0; j < 3; ++j) std::copy_n(copy.m[j], count, s.m[j]);
        for (int j = 0; unfactored && j < 3; ++j) std::copy_n(copy.diag[j], count, s.diag[j]);
    }
};

INLINE Streams shifted(const Streams& s, Index i) {
    Streams to{s.p + i, s.g + i, {}, s.v + i, {}, s.out ? s.out + i : nullptr};
    for (int k = 0; k < 3; ++k) to.m[k] = s.m[k] + i, to.diag[k] = s.diag[k] + i;
    return to;
}

// Advances a run and adds its statistics to the sums of `scratch`.
template <class C, bool OLD, bool PERIODIC>
void advance_run(const Plan& plan, const Rule& rule, const Conditioning& condition, const Streams& s, Index n,
                 const float* const* along, MomentsScratch& scratch) {
    constexpr bool UNFACTORED_ = C::FORM != FACTORED;
    constexpr int STATISTICS = C::COUNT + OLD_MOMENTS;
    const Index period = plan.period, advance = W % period, slots = PERIODIC ? std::lcm(plan.cycle, W) / W : 1;
    V sums[STATISTICS] = {};
    Index phase = 0, slot = 0, i = 0;
    const auto vector = [&](const Streams& at, auto partial, VI valid) INLINE_LAMBDA {
        Inputs x;
        if (!UNFACTORED_)
            for (int k = 0; k < 3; ++k) x.factor[k] = load(along[k] + i) * load(scratch.pattern[k] + phase);
        advance_vector<C, OLD, decltype(partial)::value>(at, x, *plan.task, rule, condition, plan.sample, valid,
                                                    PERIODIC ? scratch.sums[slot].now : sums);
    };
    const auto gather = [&](Index vectors) {
        for (int k = 0; !PERIODIC && k < STATISTICS; ++k) scratch.sums[0].now[k] += sums[k], sums[k] = V{};
        scratch.pending += vectors;
        if (scratch.pending < Sums::FEW) return;
        scratch.pending = 0;
        for (Index k = 0; k < slots; ++k) scratch.sums[k].settle(STATISTICS);
    };
    Index since = 0;
    for (; i + W <= n; i += W) {
        if (++since == Sums::FEW * slots) gather(Sums::FEW), since = 0;
        fetch_ahead(s, i, UNFACTORED_);
        vector(shifted(s, i), std::false_type{}, VI{});
        phase = phase + advance < period ? phase + advance : phase + advance - period;
        if (PERIODIC) slot = slot + 1 == slots ? 0 : slot + 1;
    }
    if (i < n) {
        Padded padded;
        const Streams rest = shifted(s, i), copy = padded.in(rest, n - i, UNFACTORED_);
        vector(copy, std::true_type{}, first_lanes(int(n - i)));
        padded.out(copy, rest, n - i, UNFACTORED_);
    }
    gather(since / slots + 1);
}

template <class C, bool OLD, bool PERIODIC>
void advance_moments(const Plan& plan, const Rule& rule, Index unit, const float* scale, MomentsScratch& s) {
    constexpr int STATISTICS = C::COUNT + OLD_MOMENTS;
    const Task& t = *plan.task;
    const Extent e = extent_of(plan, unit);
    const Conditioning condition = conditioning_of(t, scale);
    const Factor &across = plan.flat ? plan.inner : plan.outer, &along = plan.flat ? plan.outer : plan.inner;
    const Index slots = PERIODIC ? std::lcm(plan.cycle, W) / W : 1;
    for (Index group = e.first_group; group < e.last_group; ++group) {
        const float* factors[3] = {};
        if (C::FORM == FACTORED)
            for (int k = 0; k < 3; ++k)
                factors[k] = read_along(plan, along.factor + k * along.entries(), group, e.offset, e.length, s.spread[k]);
        for (Index slot = 0; slot < slots; ++slot) s.sums[slot].clear(STATISTICS);
        s.pending = 0;
        for (Index run = e.first_run; run < e.last_run; ++run) {
            if (C::FORM == FACTORED)
                for (int k = 0; k < 3; ++k)
                    repeat(across.factor + k * across.entries() + plan.across(group, run), plan.period, s.pattern[k]);
            const Streams streams = streams_of(t, plan.start(group, run) + e.offset, nullptr);
            advance_run<C, OLD, PERIODIC>(plan, rule, condition, streams, e.length, factors, s);
        }
        float* sums = plan.sums + plan.cell(group, e.run_block, e.length_block) * plan.cycle * STATISTICS;
        std::fill_n(sums, plan.cycle * STATISTICS, 0.0f);
        for (Index slot = 0; slot < slots; ++slot) {
            s.sums[slot].settle(STATISTICS);
            for (int lane = 0; lane < W; ++lane)
                for (int k = 0; k < STATISTICS; ++k)
                    sums[(slot * W + lane) % plan.cycle * STATISTICS + k] += float(s.sums[slot].total[k][lane]);
        }
    }
}

// Adds up a parameter's statistics: the scale of every channel (SPEC §2), the moments for the LSTM's inputs, rms(p).
inline void finish(const Plan& plan, const Rule& rule) {
    const int statistics = plan.statistics(), channels = plan.channels, parameter = rule.velo ? 2 : 1;
    const Index cells = plan.run_blocks * plan.length_blocks, n = plan.task->size();
    std::vector<double> total(plan.batches * statistics);
    const float* sums = plan.sums;
    for (Index group = 0; group < plan.groups; ++group)
        for (Index cell = 0; cell < cells; ++cell)
            for (Index c = 0; c < plan.cycle; ++c)
                for (int k = 0; k < statistics; ++k, ++sums)
                    total[(plan.batches == 1 ? 0 : group * plan.cycle + c) * statistics + k] += *sums;
    double old[OLD_MOMENTS] = {}, p2 = 0;
    for (Index batch = 0; batch < plan.batches; ++batch) {
        const double* each = total.data() + batch * statistics;
        for (int k = 0; k < channels; ++k)
            plan.scales[batch * SCALES + k] = float(1.0 / std::sqrt(rule.norm_eps + each[k] * plan.batches / n));
        for (int k = 0; k < OLD_MOMENTS; ++k) old[k] += each[channels + k];
        p2 += each[parameter];
    }
    plan.moments[0] = float(p2 / n);
    for (int k = 0; rule.old_moments && k < 4; ++k) {  // m [3] and v: means in 0 to 2 and 6, mean squares in 3 to 5 and 7
        const int value = k < 3 ? k : 6, square = k < 3 ? 3 + k : 7;
        const double mean = old[value] / n;
        plan.moments[1 + value] = float(plan.sample[k] + mean);
        plan.moments[1 + square] = float(old[square] / n - mean * mean);
    }
    *plan.rms = float(std::sqrt(p2 / n + 1e-9));
}

}  // namespace
