// One kind of error for the whole library: a status for programs, a sentence for people.
#pragma once

#include <exception>
#include <string>
#include <string_view>

#include "ptp.h"

namespace ptp_core {

// What failed; what was found; what would have been accepted; what to do. One line, as in the Python package.
class Error : public std::exception {
public:
    Error(ptp_status status, std::string_view what);

    Error& got(std::string_view found) { return append("got ", found); }
    Error& got(long long found) { return got(std::to_string(found)); }
    Error& expected(std::string_view wanted) { return append("expected ", wanted); }
    Error& expected(long long wanted) { return expected(std::to_string(wanted)); }
    Error& advise(std::string_view advice) { return append("", advice); }

    ptp_status status() const { return status_; }
    const char* what() const noexcept override { return message_.c_str(); }

private:
    Error& append(std::string_view label, std::string_view part);

    ptp_status status_;
    std::string message_;
};

}  // namespace ptp_core
