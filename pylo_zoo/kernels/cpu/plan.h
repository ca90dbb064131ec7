// The records that Python passes, and how the work is divided.
//
// The shape of a factored parameter is merged to [A, X, B, Y, C], where X and Y are the factored axes in memory order. Its
// second moment has two factors. The *outer* one, indexed ((a·X + x)·B + b)·C + c, is constant along y. The *inner* one,
// indexed ((a·B + b)·Y + y)·C + c, is constant along x. A flag tells which of them is `row`, the one averaged over d0.
//
// Loops go over contiguous *runs* of elements. Along a run, one factor is read contiguously ("along"), the other repeats
// with a short period ("across"):
//   usually a group (a, b) has X runs of Y·C elements: along is the inner factor, across the outer one with period C;
//   if Y·C is short and B·Y·C not long, a group (a) is one "flat" run of X·B·Y·C elements: along is the outer factor,
//   each entry expanded to Y elements, and across the inner one with period B·Y·C.
// An unfactored parameter is one run.
//
// A unit of work is a rectangle: a number of runs times a number of elements per run. Its size depends only on the shape.
// Sums are kept per unit and added in a fixed order, so results do not depend on the number of threads.
#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "vectors.h"

namespace {

typedef int64_t Index;

// --- the records that Python fills (pylo_zoo/kernels/cpu/records.py) --------------------------------------------------

struct Task {
    float* p;
    const float* g;
    float *momentum, *second_moment, *row, *col;  // if unfactored, row is diag
    Index a, x, b, y, c;
    int32_t factored, outer_is_row, replace_nonfinite;
    float max_gradient;
    float momentum_decay[3], rms_decay, adafactor_decay[3], unused;

    Index size() const { return a * x * b * y * c; }
};

struct Rule {
    int32_t velo;    // VeLO's 30 channels, else AdafacMLP's 28
    int32_t brief;   // unfactored parameters have only the first 15
    int32_t per_matrix, tanh, parameter_scale;
    int32_t old_moments;  // compute statistics of the moments before this step
    float rsqrt_eps, diag_eps, norm_eps, exp_mult;
};

// --- constants --------------------------------------------------------------------------------------------------------

constexpr Index LONGEST_CYCLE = 64;   // largest C
constexpr Index LONG_RUN = 128;       // elements of a run that is worth its fixed cost
constexpr Index LONGEST_PERIOD = 512; // largest period of the factor across
constexpr Index TILE = 4 * W;         // most elements that a kernel processes at once
constexpr Index UNIT = 32768;         // elements of a unit, about
constexpr Index UNIT_LENGTH = 4096;   // elements of a run in a unit, about
constexpr Index UNIT_RUNS = 64;       // most runs in a unit, which limits consecutive float32 additions
constexpr Index LONGEST = 4096;       // most elements of a run in a unit

constexpr Index AHEAD = 1024;         // prefetch distance in elements

constexpr int MAX_CHANNELS = 24;        // per element
constexpr int OLD_MOMENTS = 8;           // m [3], m² [3], v and v² before this step, relative to a sample
constexpr int OUTER = MAX_CHANNELS, INNER = OUTER + 6;
constexpr int SCALES = INNER + 6;        // channels, then value [3] and rsqrt [3] of both factors
constexpr int MOMENTS = 9;

// A factor of the second moment: its state and derived planes of `entries` values. It is averaged over one axis of the
// matrix and runs along the other: entry (i, k, j) is at (i·along + k)·after + j.
struct Factor {
    float* value;            // [3]
    float *factor, *rsqrt;   // [3]: the multiplier of gradients; (value + 1e-8)^-½
    float* sums;             // [blocks]: sums of squared gradients
    Index before, along, after, blocks, averaged;

    Index entries() const { return before * along * after; }
};

struct Plan {
    const Task* task;
    bool flat;
    Index groups, runs, length, period;
    Index unit_groups, unit_runs, unit_length;  // sides of a unit
    Index run_blocks, length_blocks;
    Index cycle, batches;  // the normalizer's means: one per group and c modulo cycle
    int channels;
    Factor outer, inner;
    float *sums;     // [cells, cycle, channels + OLD_MOMENTS]
    float *scales;   // [batches, SCALES]
    float *moments;  // [MOMENTS]: mean of p², means [3] and variances [3] of m, mean and variance of v
    float *sample;   // [4]: means of a few m [3] and v before this step
    float *rms;      // sqrt(mean(p²) + 1e-9)

    Index units() const { return (groups + unit_groups - 1) / unit_groups * run_blocks * length_blocks; }
    int statistics() const { return channels + OLD_MOMENTS; }
    // Index of the sums of a group and block.
    Index cell(Index group, Index run_block, Index length_block) const {
        return (group * run_blocks + run_block) * length_blocks + length_block;
    }
    // The first element of a run.
    Index start(Index group, Index run) const {
        return flat ? group * length : ((group / task->b * task->x + run) * task->b + group % task->b) * length;
    }
    // The first entry for a run in the factor across, and in the factor along.
    Index across(Index group, Index run) const { return flat ? group * period : start(group, run) / task->y; }
    Index along(Index group) const { return flat ? group * length / task->y : group * length; }
};

struct Unit {
    int32_t plan, index;
};

// Allocates from the workspace. If it is null, counts the floats only.
struct Places {
    float* workspace;
    Index used;

    float* take(Index floats) {
        float* place = workspace ? workspace + used : nullptr;
        used += (floats + 15) / 16 * 16;
        return place;
    }
};

inline int channels_of(const Rule& rule, bool factored) {
    const int before_factors = rule.velo ? 15 : 13;
    return factored ? before_factors + 3 : rule.brief ? before_factors : before_factors + 9;
}

inline Plan plan_of(const Task& t, const Rule& rule, Places& places) {
    Plan plan{};
    plan.task = &t;
    const Index run = t.y * t.c;
    plan.flat = t.factored && run < LONG_RUN && t.b * run <= LONGEST_PERIOD && !(rule.per_matrix && t.b > 1);
    plan.groups = plan.flat ? t.a : t.a * t.b;
    plan.runs = plan.flat ? 1 : t.x;
    plan.length = plan.flat ? t.x * t.b * run : run;
    plan.period = plan.flat ? t.b * run : t.c;
    const Index aligned = std::lcm(plan.period, TILE), whole = aligned <= UNIT_LENGTH ? aligned : plan.period;
    plan.unit_length = std::min(plan.length, whole * std::max<Index>(1, UNIT_LENGTH / whole));
    plan.unit_runs = std::min({plan.runs, UNIT_RUNS, std::max<Index>(1, UNIT / plan.unit_length)});
    plan.run_blocks = (plan.runs + plan.unit_runs - 1) / plan.unit_runs;
    plan.length_blocks = (plan.length + plan.unit_length - 1) / plan.unit_length;
    const bool whole_groups = plan.run_blocks * plan.length_blocks == 1;
    plan.unit_groups = whole_groups ? std::max<Index>(1, UNIT / (plan.runs * plan.length)) : 1;
    plan.cycle = rule.per_matrix ? t.c : 1;
    plan.batches = rule.per_matrix ? plan.groups * t.c : 1;
    plan.channels = channels_of(rule, t.factored);

    if (t.factored) {
        const Index outer_blocks = plan.flat ? 1 : plan.length_blocks;
        const Index inner_blocks = plan.flat ? plan.length_blocks : plan.run_blocks;
        float *outer = t.outer_is_row ? t.row : t.col, *inner = t.outer_is_row ? t.col : t.row;
        plan.outer = {outer, nullptr, nullptr, nullptr, t.a, t.x, t.b * t.c, outer_blocks, t.y};
        plan.inner = {inner, nullptr, nullptr, nullptr, t.a * t.b, t.y, t.c, inner_blocks, t.x};
        for (Factor* each : {&plan.outer, &plan.inner}) {
            each->factor = places.take(3 * each->entries() + TILE);
            each->rsqrt = places.take(3 * each->entries() + TILE);
            each->sums = places.take(each->blocks * each->entries());
        }
    }
    plan.sums = places.take(plan.groups * plan.run_blocks * plan.length_blocks * plan.cycle * plan.statistics());
    plan.scales = places.take(plan.batches * SCALES);
    plan.moments = places.take(MOMENTS);
    plan.sample = places.take(4);
    plan.rms = places.take(1);
    return plan;
}

// The rectangle of a unit.
struct Extent {
    Index first_group, last_group, run_block, length_block, first_run, last_run, offset, length;
};

inline Extent extent_of(const Plan& plan, Index index) {
    Extent e{};
    e.length_block = index % plan.length_blocks;
    e.run_block = index / plan.length_blocks % plan.run_blocks;
    e.first_group = index / (plan.length_blocks * plan.run_blocks) * plan.unit_groups;
    e.last_group = std::min(e.first_group + plan.unit_groups, plan.groups);
    e.first_run = e.run_block * plan.unit_runs;
    e.last_run = std::min(e.first_run + plan.unit_runs, plan.runs);
    e.offset = e.length_block * plan.unit_length;
    e.length = std::min(plan.unit_length, plan.length - e.offset);
    return e;
}

struct Work {
    std::vector<Plan> plans;
    std::vector<Unit> units;
    Index floats;
};

inline Work work_of(const Task* tasks, Index count, const Rule& rule, float* workspace) {
    Work work;
    Places places{workspace, 0};
    work.plans.reserve(count);
    for (Index i = 0; i < count; ++i) {
        work.plans.push_back(plan_of(tasks[i], rule, places));
        const Index units = work.plans.back().units();
        for (Index k = 0; k < units; ++k) work.units.push_back({int32_t(i), int32_t(k)});
    }
    work.floats = places.used;
    return work;
}

}  // namespace
