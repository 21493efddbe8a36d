#include "budgets.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string_view>

#include "error.hpp"
#include "text.hpp"

namespace ptp_core {
namespace {

constexpr int MAX_DIGITS = 18;  // numerator and denominator fit into 64 bits, their products with a count into 128

__extension__ typedef __int128 Wide;

struct Fraction {
    int64_t numerator, denominator;

    double value() const {
        // 64 bits of mantissa or more, so that the quotient of what a float is written as is that float
        return static_cast<double>(static_cast<long double>(numerator) / static_cast<long double>(denominator));
    }
    int64_t floor_of(int64_t count) const {
        return static_cast<int64_t>(static_cast<Wide>(numerator) * count / denominator);
    }
};

int64_t digits(std::string_view text, const Error& problem) {
    int64_t value = 0;
    if (text.empty()) throw problem;
    for (const char c : text) {
        if (c < '0' || c > '9') throw problem;
        value = value * 10 + (c - '0');
    }
    return value;
}

Fraction parse_fraction(std::string_view text) {
    const Error problem = Error(PTP_ERROR_CONFIG, "keep is not a number")
                              .got(cited(text))
                              .expected("a fraction such as 0.25, of at most 18 digits");
    const auto count = std::count_if(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
    if (count == 0 || count > MAX_DIGITS) throw problem;
    if (starts_with(text, "+")) text.remove_prefix(1);
    if (const size_t slash = text.find('/'); slash != std::string_view::npos) {
        const Fraction fraction{digits(text.substr(0, slash), problem), digits(text.substr(slash + 1), problem)};
        if (!fraction.denominator) throw problem;
        return fraction;
    }
    int64_t exponent = 0;
    if (const size_t e = text.find_first_of("eE"); e != std::string_view::npos) {
        std::string_view power = text.substr(e + 1);
        const bool negative = starts_with(power, "-");
        if (negative || starts_with(power, "+")) power.remove_prefix(1);
        exponent = digits(power, problem) * (negative ? -1 : 1);
        text = text.substr(0, e);
    }
    std::string number(text);
    if (const size_t point = number.find('.'); point != std::string::npos) {
        exponent -= static_cast<int64_t>(number.size() - point - 1);
        number.erase(point, 1);
    }
    Fraction fraction{digits(number, problem), 1};
    if (exponent < -MAX_DIGITS || exponent > MAX_DIGITS) throw problem;
    for (; exponent < 0; ++exponent) fraction.denominator *= 10;
    for (; exponent > 0 && fraction.numerator <= 10; --exponent) fraction.numerator *= 10;  // beyond 1 in any case
    return fraction;
}

std::string short_number(double value) {
    char text[32];
    std::snprintf(text, sizeof text, "%g", value);
    return text;
}

std::string fixed(double value, int digits) {
    char text[32];
    std::snprintf(text, sizeof text, "%.*f", digits, value);
    return text;
}

// Return K of a fraction: floor(keep · T · N) and every newline or none.
int64_t kept_of(const Fraction& keep, const Manifest& manifest) {
    const Tiling& tiling = manifest.tiling;
    const int64_t per_tile = tiling.tokens_per_side * tiling.tokens_per_side, count = tiling.max_tiles * per_tile;
    const int64_t total = keep.floor_of(count);
    int64_t newlines = 0;
    for (const Grid& grid : tiling.grids) newlines = std::max(newlines, grid.first * tiling.tokens_per_side);
    if (total == 0)
        throw Error(PTP_ERROR_CONFIG, "keep keeps no token at all")
            .got(short_number(keep.value()))
            .expected("at least " + fixed(1.0 / static_cast<double>(count), 6) + " (1 of " + std::to_string(count) +
                      " tokens)");
    if (manifest.pruning.thumbnail == "keep_all" && total < per_tile) {
        throw Error(PTP_ERROR_CONFIG, "the whole thumbnail is more than keep allows")
            .got(short_number(keep.value()))
            .expected("at least " + fixed(1.0 / static_cast<double>(tiling.max_tiles), 4))
            .advise("raise --keep or choose another --thumbnail");
    }
    return total + (manifest.pruning.newline == "keep" ? newlines : 0);
}

}  // namespace

double alpha_input(double alpha, const Pruning& pruning) {
    if (std::isnan(alpha)) return pruning.alpha;
    if (pruning.instruction == "none") {
        throw Error(PTP_ERROR_CONFIG, "alpha weighs the question, which this bundle does not look at")
            .advise("leave alpha out or export with --instruction attention");
    }
    if (alpha == PTP_ALPHA_AUTO || (alpha >= 0 && alpha <= 1)) return alpha;
    throw Error(PTP_ERROR_CONFIG, "alpha is the weight of the question")
        .got(short_number(alpha))
        .expected("0 to 1, or PTP_ALPHA_AUTO");
}

int64_t num_kept_at(const char* keep, const Manifest& manifest) {
    const Pruning& pruning = manifest.pruning;
    if (!keep) return pruning.num_kept;
    const Fraction fraction = parse_fraction(keep);
    const double value = fraction.value();
    if (!(value > 0 && value <= 1))
        throw Error(PTP_ERROR_CONFIG, "keep is a fraction of the visual tokens").got(keep).expected("0 < keep ≤ 1");
    // the manifest's own values are rounded: 1/3 is written 0.3333333333333333, of which the floor may be one less
    const auto& range = pruning.keep_range;
    if (range && value == range->max) return range->max_kept;
    if (range && value == range->min) return range->min_kept;
    if (value == pruning.keep) return pruning.num_kept;
    if (!range) {
        throw Error(PTP_ERROR_CONFIG, "keep is fixed in this bundle")
            .got(keep)
            .expected(short_number(pruning.keep))
            .advise("leave it out, or export with --keep MIN:OPT:MAX to choose at run time");
    }
    const int64_t kept = kept_of(fraction, manifest);
    if (kept < range->min_kept || kept > range->max_kept) {
        throw Error(PTP_ERROR_CONFIG, "keep is outside the range that this bundle was exported for")
            .got(std::string(keep) + " (K = " + std::to_string(kept) + ")")
            .expected(short_number(range->min) + " to " + short_number(range->max) +
                      " (K = " + std::to_string(range->min_kept) + " to " + std::to_string(range->max_kept) + ")");
    }
    return kept;
}

}  // namespace ptp_core
