# OnnxRuntime::Headers: onnxruntime_c_api.h of 1.20 or newer. The library is found when the program runs.
find_path(OnnxRuntimeHeaders_INCLUDE_DIR onnxruntime_c_api.h
  HINTS "${CMAKE_CURRENT_LIST_DIR}/../../.cpp/include" ENV ONNXRUNTIME_INCLUDE_DIR
  PATH_SUFFIXES onnxruntime onnxruntime/core/session)
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(OnnxRuntimeHeaders
  REQUIRED_VARS OnnxRuntimeHeaders_INCLUDE_DIR
  REASON_FAILURE_MESSAGE "run scripts/install-cpp, or set OnnxRuntimeHeaders_INCLUDE_DIR to a folder with onnxruntime_c_api.h")
if(OnnxRuntimeHeaders_FOUND AND NOT TARGET OnnxRuntime::Headers)
  add_library(OnnxRuntime::Headers INTERFACE IMPORTED)
  set_target_properties(OnnxRuntime::Headers PROPERTIES
    INTERFACE_SYSTEM_INCLUDE_DIRECTORIES "${OnnxRuntimeHeaders_INCLUDE_DIR}"
    INTERFACE_INCLUDE_DIRECTORIES "${OnnxRuntimeHeaders_INCLUDE_DIR}")
endif()
