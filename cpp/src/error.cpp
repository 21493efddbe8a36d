#include "error.hpp"

#include "text.hpp"

namespace ptp_core {

Error::Error(ptp_status status, std::string_view what) : status_(status), message_(one_line(what)) {}

Error& Error::append(std::string_view label, std::string_view part) {
    message_ += "; ";
    message_ += label;
    message_ += one_line(part);
    return *this;
}

}  // namespace ptp_core
