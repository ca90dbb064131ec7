// The step of every learned rule for many parameters, on a CPU. pylo_zoo/kernels/base.py describes the passes.
//
//   vectors.h     vectors of floats and their functions
//   plan.h        the records that Python passes, and how the work is divided
//   features.h    gradient preprocessing, and features of an element
//   factors.h     the factor pass: sums along rows and columns, the factored second moment
//   moments.h     the moment pass: the other accumulators, statistics, the normalizer's scales
//   network.h     the network, with the normalizer in its first layer
//   move.h        the move pass
//   normalized.h  CELO2's last pass
//   adam.h        AdamW
//   lstm.h        the LSTM's inputs and gates
//
// The interface is plain C, called without the GIL. A pass over all parameters is one parallel loop over their units.

#include <memory>

#include "adam.h"
#include "lstm.h"
#include "move.h"
#include "normalized.h"

namespace {

// Thread-local working memory, kept from call to call.
template <class T>
T& scratch() {
    static thread_local std::unique_ptr<T> kept(new T);
    return *kept;
}

template <class Each>
void in_parallel(Index count, int threads, Each each) {
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (count > 1)
    for (Index i = 0; i < count; ++i) each(i);
}

// Calls `f(Channels)` with a parameter's form under the rule.
template <class F>
void for_channels(const Plan& plan, const Rule& rule, F f) {
    if (!rule.velo)
        plan.task->factored ? f(Channels<false, FACTORED>{}) : f(Channels<false, UNFACTORED>{});
    else if (plan.task->factored)
        f(Channels<true, FACTORED>{});
    else
        rule.brief ? f(Channels<true, BRIEF>{}) : f(Channels<true, UNFACTORED>{});
}

// The moment pass of one unit.
template <class C, bool OLD>
void advance_unit(const Work& work, const Rule& rule, Index i, const float* scale) {
    const Unit unit = work.units[i];
    const Plan& plan = work.plans[unit.plan];
    MomentsScratch& s = scratch<MomentsScratch>();
    if constexpr (C::VELO && C::FORM == FACTORED)
        if (plan.cycle > 1) return advance_moments<C, OLD, true>(plan, rule, unit.index, scale, s);
    advance_moments<C, OLD, false>(plan, rule, unit.index, scale, s);
}

// The move pass of one unit, with a network of up to H units per layer.
template <class C, int H>
void move_unit(const Work& work, const Rule& rule, const Move& move, Index i, const float* scale) {
    const Unit unit = work.units[i];
    Mover<C, H> mover(work.plans[unit.plan], rule, move, unit.plan, scale, scratch<MoveScratch<C, H>>());
    mover(unit.index, move.out ? move.out[unit.plan] : nullptr);
}

}  // namespace

extern "C" {

// Sizes in bytes of the records that Python fills, which Python checks.
void pylo_zoo_records(Index* bytes) {
    bytes[0] = sizeof(Task), bytes[1] = sizeof(Rule), bytes[2] = sizeof(Layer), bytes[3] = sizeof(Adam);
    bytes[4] = sizeof(Normalized);
}

// Size of the workspace for the calls below, in floats.
Index pylo_zoo_workspace(const Task* tasks, Index count, const Rule* rule) {
    return work_of(tasks, count, *rule, nullptr).floats;
}

void pylo_zoo_advance(const Task* tasks, Index count, const Rule* rule, float* workspace, const float* scale,
                      int threads) {
    const Work work = work_of(tasks, count, *rule, workspace);
    const Index units = Index(work.units.size());
    std::vector<Unit> factored;
    std::copy_if(work.units.begin(), work.units.end(), std::back_inserter(factored),
                 [&](Unit unit) { return tasks[unit.plan].factored; });
    in_parallel(Index(factored.size()), threads, [&](Index i) {
        sum_squares(work.plans[factored[i].plan], factored[i].index, scale, scratch<SquaresScratch>());
    });
    if (!factored.empty())
        in_parallel(count, threads, [&](Index i) {
            if (tasks[i].factored) advance_factors(work.plans[i], *rule);
        });
    for (const Plan& plan : work.plans)
        if (rule->old_moments) take_sample(plan);
    in_parallel(units, threads, [&](Index i) {
        for_channels(work.plans[work.units[i].plan], *rule, [&](auto channels) {
            using C = decltype(channels);
            rule->old_moments ? advance_unit<C, true>(work, *rule, i, scale) : advance_unit<C, false>(work, *rule, i, scale);
        });
    });
    in_parallel(count, threads, [&](Index i) { finish(work.plans[i], *rule); });
}

void pylo_zoo_moments(const Task* tasks, Index count, const Rule* rule, float* workspace, float* out) {
    const Work work = work_of(tasks, count, *rule, workspace);
    for (Index i = 0; i < count; ++i) std::copy_n(work.plans[i].moments, MOMENTS, out + i * MOMENTS);
}

// `scale` multiplies gradients, as in pylo_zoo_advance.
void pylo_zoo_move(const Task* tasks, Index count, const Rule* rule, float* workspace, const float* scale,
                   const Layer* layers, Index layer_count, const float* coefficient, const float* shrink,
                   float* const* out, int threads) {
    const Work work = work_of(tasks, count, *rule, workspace);
    const Move move{layers, int(layer_count), coefficient, shrink, out};
    const Index hidden = layers[0].outputs;
    in_parallel(Index(work.units.size()), threads, [&](Index i) {
        for_channels(work.plans[work.units[i].plan], *rule, [&](auto channels) {
            using C = decltype(channels);
            if (hidden <= 4) return move_unit<C, 4>(work, *rule, move, i, scale);
            if (hidden <= 8) return move_unit<C, 8>(work, *rule, move, i, scale);
            if (hidden <= 16) return move_unit<C, 16>(work, *rule, move, i, scale);
            move_unit<C, 32>(work, *rule, move, i, scale);
        });
    });
}

void pylo_zoo_normalized(const Normalized* tasks, Index count, int threads) {
    std::vector<Cells> all;
    std::vector<Unit> units;
    Index doubles = 0, floats = 0;
    for (Index i = 0; i < count; ++i) {
        all.emplace_back(tasks[i]);
        const Cells& cells = all.back();
        doubles += cells.count() * cells.cycle;
        floats += cells.groups * (cells.cycle + TILE);
        for (Index k = 0; k < cells.count(); ++k) units.push_back({int32_t(i), int32_t(k)});
    }
    std::vector<double> sums(doubles);
    std::vector<float> scales(floats);
    doubles = floats = 0;
    for (Cells& cells : all) {
        cells.sums = sums.data() + doubles;
        cells.scales = scales.data() + floats;
        doubles += cells.count() * cells.cycle;
        floats += cells.groups * (cells.cycle + TILE);
    }
    in_parallel(Index(units.size()), threads, [&](Index i) {
        sum_cell(all[units[i].plan], units[i].index, scratch<std::vector<double>>());
    });
    in_parallel(count, threads, [&](Index i) { make_scales(all[i]); });
    in_parallel(Index(units.size()), threads, [&](Index i) { move_cell(all[units[i].plan], units[i].index); });
}

// Writes a step's numbers to the records: `numbers` [count, 5], the others [count].
void pylo_zoo_adam_numbers(Adam* tasks, Index count, const double* numbers, const Index* counts,
                           const double* coefficient, const double* shrink) {
    for (Index i = 0; i < count; ++i) set_numbers(tasks[i], numbers + 5 * i, counts[i], coefficient[i], shrink[i]);
}

void pylo_zoo_adam(const Adam* tasks, Index count, const float* scale, int threads) {
    std::vector<Unit> units;
    for (Index i = 0; i < count; ++i)
        for (Index k = 0; k * UNIT < tasks[i].size; ++k) units.push_back({int32_t(i), int32_t(k)});
    in_parallel(Index(units.size()), threads, [&](Index i) { adam_unit(tasks[units[i].plan], units[i].index, scale); });
}

// Adds a loss to the averages and minima [10] of a run, and writes the LSTM's inputs: the run's features [18], or for
// `count` tensors with moments [9] and ranks [5] rows of 30. `decays` [10], `powers` [10]: see advance_run.
void pylo_zoo_lstm_inputs(float* average, float* minimum, const float* decays, const float* powers, Index losses,
                          Index horizon, const float* loss, const float* moments, const float* ranks, Index count,
                          float* out) {
    if (!moments) return advance_run(average, minimum, decays, powers, losses, horizon, *loss, out);
    float run[2 * RUN_FEATURES];
    advance_run(average, minimum, decays, powers, losses, horizon, *loss, run);
    for (Index i = 0; i < count; ++i)
        lstm_input(run, moments + i * MOMENTS, ranks + i * RANKS, out + i * (2 * RUN_FEATURES + TENSOR_FEATURES));
}

// The LSTM's cell and hidden state [count, units] from its gates [count, 4, units] and `shift` [4, units].
void pylo_zoo_gates(const float* gates, const float* shift, const float* cell, Index count, Index units,
                    float* new_hidden, float* new_cell, int threads) {
    const Index rows = std::max<Index>(1, 4096 / units);
    in_parallel((count + rows - 1) / rows, threads, [&](Index block) {
        for (Index i = block * rows; i < std::min(count, (block + 1) * rows); ++i)
            gate_row({gates + 4 * i * units, shift, cell + i * units, new_hidden + i * units, new_cell + i * units, units});
    });
}

// The same for few tensors, products included: `out` [count, heads].
void pylo_zoo_lstm_step(const Weights* weights, const float* x, Index rows, Index inputs, Index count, Index units,
                        Index heads, const float* hidden, const float* cell, float* new_hidden, float* new_cell,
                        float* out) {
    step_few(*weights, x, rows, inputs, count, units, heads, hidden, cell, new_hidden, new_cell, out);
}
}
