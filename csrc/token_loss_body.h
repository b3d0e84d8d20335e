// The rows of a cross-entropy, eight logits at a time.
//
// In an unnamed namespace: the file is compiled once for each instruction set, with flags of its own.
#pragma once

#include <cmath>

#include "blockwise_body.h"
#include "row_values.h"
#include "token_loss.h"

namespace lorasmith {
namespace {

// One row of shaped logits. Capped tells whether there is a softcap, so that plain rows do not pay for it.
template <class Set, class T, bool Capped>
struct LogitRow {
    using Vec = typename Set::Vec;

    T* const x;
    const int64_t columns;
    const float scale, softcap;

    float shaped_value(float value) const {
        const float z = value * scale;
        return Capped ? softcap * std::tanh(z / softcap) : z;
    }

    // z of the columns i <= column < i + 8; beyond the last one the last one's again.
    Vec shaped(int64_t i) const {
        Vec z;
        if (i + kLanes <= columns) {
            z = Set::load(x + i);
        } else {
            T part[kLanes];
            for (int64_t lane = 0; lane < kLanes; ++lane) part[lane] = x[std::min(i + lane, columns - 1)];
            z = Set::load(part);
        }
        z = Set::mul(z, Set::set(scale));
        if (!Capped) return z;
        return Set::mul(hyperbolic_tangent<Set>(Set::div(z, Set::set(softcap))), Set::set(softcap));
    }

    // 1 where i's column exists, 0 beyond the last.
    Vec exists(int64_t i) const {
        if (i + kLanes <= columns) return Set::set(1.0f);
        float ones[kLanes] = {};
        for (int64_t lane = 0; i + lane < columns; ++lane) ones[lane] = 1.0f;
        return Set::load(ones);
    }

    float largest() const {
        Vec most = shaped(0);
        for (int64_t i = kLanes; i < columns; i += kLanes) most = Set::max(most, shaped(i));
        float lanes[kLanes];
        Set::store(lanes, most);
        float found = lanes[0];
        for (const float lane : lanes) found = std::max(found, lane);
        return found;
    }
};

template <class Set, class T, bool Capped>
void token_loss_rows_of(const TokenLoss& t, int64_t first, int64_t last) {
    using Vec = typename Set::Vec;
    const int64_t columns = t.columns;
    const float mean = 1.0f / float(columns);
    for (int64_t number = first; number < last; ++number) {
        const LogitRow<Set, T, Capped> row{static_cast<T*>(t.logits) + number * columns, columns, t.scale, t.softcap};
        // everything is measured from the largest logit, so that large ones keep their differences
        const float most = row.largest();
        const Vec top = Set::set(most);
        const float powers = sum_of<Set>(columns, [&](int64_t i, Vec sum) {
            return Set::fma(exponential<Set>(Set::sub(row.shaped(i), top)), row.exists(i), sum);
        });
        const float rest = std::log(powers), normaliser = most + rest;
        T& raw = row.x[t.labels[number]];
        const float z = row.shaped_value(widen(raw));
        const float weight = t.weights == nullptr ? 1.0f : t.weights[number];
        float loss = rest - (1 - t.smoothing) * (z - most) + t.z_loss * normaliser * normaliser;
        if (t.smoothing != 0.0f) {
            loss -= t.smoothing * mean * sum_of<Set>(columns, [&](int64_t i, Vec sum) {
                        return Set::fma(Set::sub(row.shaped(i), top), row.exists(i), sum);
                    });
        }
        t.losses[number] = weight * loss;
        if (!t.gradient) continue;

        // to z: p (1 + 2 c lse) - s / columns, and at the label s - 1 more; to x through cap and scale
        const float rise = (1 + 2 * t.z_loss * normaliser) / powers, even = t.smoothing * mean,
                    outer = weight * t.scale;
        const float tanh = Capped ? z / t.softcap : 0.0f;
        const float at_label = std::exp(z - most) * rise - even + t.smoothing - 1;
        for (int64_t i = 0; i < columns; i += kLanes) {
            const Vec shaped = row.shaped(i);
            Vec g = exponential<Set>(Set::sub(shaped, top));
            g = Set::mul(Set::sub(Set::mul(g, Set::set(rise)), Set::set(even)), Set::set(outer));
            if (Capped) {
                const Vec part = Set::mul(shaped, Set::set(1 / t.softcap));
                g = Set::mul(g, Set::sub(Set::set(1.0f), Set::mul(part, part)));
            }
            store<Set>(row.x, i, columns, g);
        }
        narrow(at_label * outer * (1 - tanh * tanh), &raw);
    }
}

template <class Set, class T>
void token_loss_rows(const TokenLoss& t, int64_t first, int64_t last) {
    (t.softcap == 0.0f ? token_loss_rows_of<Set, T, false> : token_loss_rows_of<Set, T, true>)(t, first, last);
}

template <class Set>
TokenLossKernels token_loss_kernels() {
    return {token_loss_rows<Set, float>, token_loss_rows<Set, bf16>};
}

}  // namespace
}  // namespace lorasmith
