// CELO2's last pass (SPEC §6): p ← p − coefficient·norm(step) − shrink·p, with one norm per matrix of a stack.
//
// The shape is merged to [A, X, B, Y, C] as in plan.h. X and Y are the matrices' axes, so each a, b and c has one mean.
#pragma once

#include "moments.h"

namespace {

struct Normalized {
    float* p;
    const float* step;
    Index a, x, b, y, c;
    float coefficient, shrink, eps, unused;
};

// A parameter's units of work, the cells. Within a contiguous run, the matrix index is constant or cycles through C.
struct Cells {
    const Normalized* task;
    Index groups, runs, length, cycle, cell_length, per_run;
    double* sums;   // [groups, runs, per_run, cycle]
    float* scales;  // [groups, cycle + TILE], periodic

    explicit Cells(const Normalized& t) : task(&t), cycle(t.c), sums(nullptr), scales(nullptr) {
        groups = t.a * t.b;
        runs = t.b == 1 ? 1 : t.x;
        length = t.b == 1 ? t.x * t.y * t.c : t.y * t.c;
        const Index whole = std::lcm(cycle, Index(W));
        cell_length = whole * std::max<Index>(1, UNIT / whole);
        per_run = (length + cell_length - 1) / cell_length;
    }

    Index count() const { return groups * runs * per_run; }
    Index group_of(Index cell) const { return cell / (runs * per_run); }
    Index size_of(Index cell) const { return std::min(cell_length, length - cell % per_run * cell_length); }
    Index start_of(Index cell) const {
        const Index group = group_of(cell), run = cell / per_run % runs, b = task->b;
        const Index first = b == 1 ? group : (group / b * task->x + run) * b + group % b;
        return first * length + cell % per_run * cell_length;
    }
};

inline void sum_cell(const Cells& cells, Index cell, std::vector<double>& lanes) {
    const float* step = cells.task->step + cells.start_of(cell);
    const Index n = cells.size_of(cell), cycle = cells.cycle, slots = std::lcm(cycle, Index(W)) / W;
    lanes.assign(slots * W, 0.0);
    Index i = 0, slot = 0, rounds = 0;
    if (slots <= LONGEST_CYCLE) {
        V few[LONGEST_CYCLE] = {};
        const auto settle = [&] {
            for (Index k = 0; k < slots; ++k) {
                for (int lane = 0; lane < W; ++lane) lanes[k * W + lane] += few[k][lane];
                few[k] = V{};
            }
            rounds = 0;
        };
        for (; i + W <= n; i += W) {
            const V x = load(step + i);
            few[slot] += x * x;
            if (++slot == slots) slot = 0, ++rounds;
            if (rounds == Sums::FEW) settle();
        }
        settle();
    }
    for (; i < n; ++i) lanes[i % (slots * W)] += double(step[i]) * step[i];
    double* sums = cells.sums + cell * cycle;
    std::fill_n(sums, cycle, 0.0);
    for (Index k = 0; k < slots * W; ++k) sums[k % cycle] += lanes[k];
}

inline void make_scales(const Cells& cells) {
    const Index each = cells.runs * cells.per_run, period = cells.cycle + TILE;
    for (Index group = 0; group < cells.groups; ++group)
        for (Index k = 0; k < period; ++k) {
            double total = 0;
            for (Index cell = 0; cell < each; ++cell)
                total += cells.sums[(group * each + cell) * cells.cycle + k % cells.cycle];
            const double mean = total / double(cells.task->x * cells.task->y);
            cells.scales[group * period + k] = float(cells.task->coefficient / std::sqrt(cells.task->eps + mean));
        }
}

inline void move_cell(const Cells& cells, Index cell) {
    const Index start = cells.start_of(cell), n = cells.size_of(cell), advance = W % cells.cycle;
    const float* scales = cells.scales + cells.group_of(cell) * (cells.cycle + TILE);
    const float* step = cells.task->step + start;
    const float shrink = cells.task->shrink;  // not 1 - shrink, whose rounding would bias every step
    float* p = cells.task->p + start;
    Index i = 0, phase = 0;
    for (; i + W <= n; i += W) {
        const V old = load(p + i);
        store(p + i, old - (load(scales + phase) * load(step + i) + shrink * old));
        phase = phase + advance < cells.cycle ? phase + advance : phase + advance - cells.cycle;
    }
    for (; i < n; ++i) p[i] = p[i] - (scales[i % cells.cycle] * step[i] + shrink * p[i]);
}

}  // namespace
